"""What each kind of step computes: on real values, and on the lattice.

The two columns of this table stand side by side so that they cannot drift apart: `real_step` is what
calibration sees and what the converters are told, `lattice_step` is what the phone computes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from compressjax import graph as graphs
from compressjax.quant import lattice
from compressjax.quant.lattice import Affine
from compressjax.quant.lattice.grid import ratio
from compressjax.quant.plan import Plan, Step

_NHWC = ("NHWC", "HWIO", "NHWC")
# A bias of at most this many codes keeps the sum of a contraction far from int32's end.
_LARGEST_BIAS = 2.0**22
CONTRACTIONS = frozenset({"conv", "depthwise_conv", "dense"})


class Operand(NamedTuple):
    """A constant operand as real values.

    Attributes:
      value: float32; a kernel `[KH, KW, I, O]` or `[I, O]`, or an elementwise constant.
      bias: float32 `[O]`, or `None`.
    """

    value: jax.Array
    bias: jax.Array | None


class Coded(NamedTuple):
    """A constant operand as codes.

    Attributes:
      codes: integer-valued float32, in the shape of the real value.
      grid: its scale (`[O]` for a kernel with one scale per channel) and zero point.
      bias: integer-valued float32 `[O]` at the scale of input times weight, or `None`.
    """

    codes: jax.Array
    grid: Affine
    bias: jax.Array | None


def operands(plan: Plan, variables: Any) -> dict[str, Operand]:
    """Evaluates the constant operands of a plan from the variables; differentiable.

    Args:
      plan: the plan.
      variables: the function's variables.

    Returns:
      The operand of each step that has one, by step name.
    """
    graph = plan.graph
    known = graphs.bind_variables(graph, variables)
    steps = [step for step in plan.steps if step.constant is not None]
    values = graphs.evaluate(graph, [step.constant.value for step in steps], known)
    found = {}
    for step, value in zip(steps, values, strict=True):
        constant = step.constant
        real = jnp.asarray(constant.layout(jnp.asarray(value)), jnp.float32)
        bias = None
        if constant.chain:
            scale, shift = graphs.affine_map(graph, constant.chain, constant.chain_axis, known)
            real = (real * scale).astype(jnp.float32)
            bias = jnp.broadcast_to(shift.astype(jnp.float32), real.shape[-1:])
        found[step.name] = Operand(real, bias)
    return found


def code_operand(
    step: Step, operand: Operand, x_grid: Affine, out_grid: Affine, *, per_channel: bool
) -> Coded:
    """Puts a constant operand on its grid.

    A kernel's scale is symmetric, `max|w| / 127` for each output channel or for the whole kernel,
    and never so small that its bias needs more than 2^22 codes. An elementwise constant has an
    affine grid, never so fine that XNNPACK's fixed point would lose it.

    Args:
      step: the step.
      operand: its constant.
      x_grid: grid of the step's input.
      out_grid: grid of the step's output.
      per_channel: one scale for each output channel of a kernel.

    Returns:
      The codes; straight-through gradients reach the operand.
    """
    value, bias = operand
    if step.kind not in CONTRACTIONS:
        grid = grid_of(value.min(), value.max())
        floor = out_grid.scale * jnp.float32(2.0**-8)
        grid = grid_of_scale(jnp.maximum(grid.scale, floor), value.min())
        return Coded(lattice.quantize(value, grid), grid, None)
    axes = tuple(range(value.ndim - 1)) if per_channel else None
    reach = lax.stop_gradient(jnp.abs(value).max(axes))
    scale = ratio(reach, jnp.float32(127.0))
    if bias is not None:
        least = ratio(jnp.abs(lax.stop_gradient(bias)), x_grid.scale * _LARGEST_BIAS)
        scale = jnp.maximum(scale, least if per_channel else least.max())
    # A channel of zeros has no scale of its own; any one gives zeros.
    scale = jnp.where(scale > 0, scale, jnp.float32(2.0**-7))
    codes = lattice.weight_codes(value, scale, value.ndim - 1 if per_channel else None)
    bias_codes = None if bias is None else lattice.bias_codes(bias, x_grid.scale, scale)
    return Coded(codes, Affine(scale, jnp.float32(0.0)), bias_codes)


def grid_of(low: jax.Array, high: jax.Array) -> Affine:
    """Makes the int8 grid of a range, as the LiteRT converters do.

    Zero is always representable. A range of nothing but zero gets the step 1/255.

    Args:
      low: smallest real value, [].
      high: largest real value, [].

    Returns:
      The grid; no gradient passes.

    Example:
      >>> grid = grid_of(jnp.float32(0.0), jnp.float32(255.0))
      >>> float(grid.scale), float(grid.zero_point)
      (1.0, -128.0)
    """
    low = jnp.minimum(lax.stop_gradient(low).astype(jnp.float32), 0.0)
    high = jnp.maximum(lax.stop_gradient(high).astype(jnp.float32), 0.0)
    width = jnp.where(high > low, high - low, jnp.float32(1.0))
    return grid_of_scale(ratio(width, jnp.float32(255.0)), low)


def grid_of_scale(scale: jax.Array, low: jax.Array) -> Affine:
    """Makes the int8 grid with a given scale whose smallest code stands for `low`.

    Args:
      scale: float32, [].
      low: smallest real value, [].

    Returns:
      The grid.

    Example:
      >>> float(grid_of_scale(jnp.float32(0.5), jnp.float32(-1.0)).zero_point)
      -126.0
    """
    low = jnp.minimum(lax.stop_gradient(low), 0.0)
    zero_point = jnp.round(-128.0 - ratio(low, scale))
    return Affine(scale, jnp.clip(zero_point, -128.0, 127.0))


def real_step(step: Step, inputs: Sequence[jax.Array], constants: Sequence[jax.Array]) -> jax.Array:
    """Computes a step on real values, fused activation included.

    Args:
      step: the step.
      inputs: its inputs.
      constants: weight and bias, or the elementwise constant, or nothing.

    Returns:
      The real output.
    """
    x, p = inputs[0], step.params
    if step.kind in ("conv", "depthwise_conv"):
        y = lax.conv_general_dilated(x, constants[0], dimension_numbers=_NHWC, **p)
        y = y + constants[1][None, None, None, :] if len(constants) > 1 else y
    elif step.kind == "dense":
        y = lax.dot_general(x, constants[0], (((x.ndim - 1,), (0,)), ((), ())))
        y = y + constants[1].reshape((1,) * (y.ndim - 1) + (-1,)) if len(constants) > 1 else y
    elif step.kind in ("add", "sub", "mul"):
        other = inputs[1] if len(inputs) > 1 else constants[0]
        x, other = same_rank(x, other)
        y = {"add": jnp.add, "sub": jnp.subtract, "mul": jnp.multiply}[step.kind](x, other)
    elif step.kind == "max_pool":
        y = lax.reduce_window(x, -jnp.inf, lax.max, *_window(p))
    elif step.kind == "avg_pool":
        counts = lax.reduce_window(jnp.ones((1, *x.shape[1:3], 1)), 0.0, lax.add, *_window(p))
        y = lax.reduce_window(x, 0.0, lax.add, *_window(p)) / counts
    elif step.kind == "mean":
        y = jnp.mean(x, axis=p["axes"], keepdims=p["keepdims"])
    elif step.kind == "pad":
        y = jnp.pad(x, p["padding"], constant_values=p.get("value", 0.0))
    elif step.kind == "softmax":
        y = jax.nn.softmax(x)
    elif step.kind == "logistic":
        y = jax.nn.sigmoid(x)
    elif step.kind == "tanh":
        y = jnp.tanh(x)
    elif step.kind in ("relu", "requantize"):
        y = x
    else:
        y = _moved(step, inputs)
    if step.lo is not None:
        y = jnp.maximum(y, step.lo)
    return y if step.hi is None else jnp.minimum(y, step.hi)


def lattice_step(
    step: Step,
    codes: Sequence[jax.Array],
    grids: Sequence[Affine],
    coded: Coded | None,
    out: Affine,
) -> jax.Array:
    """Computes a step on codes, exactly as LiteRT does.

    Args:
      step: the step.
      codes: the codes of its inputs.
      grids: their grids.
      coded: its constant operand, or `None`.
      out: the grid of its output.

    Returns:
      The codes of its output.
    """
    x, grid, p = codes[0], grids[0], step.params
    bounds = {"lo": step.lo, "hi": step.hi}
    if step.kind in CONTRACTIONS:
        operands = (x, coded.codes, coded.bias, grid, coded.grid.scale, out)
        if step.kind == "dense":
            numbers = (((x.ndim - 1,), (0,)), ((), ()))
            return lattice.dot_general(*operands, dimension_numbers=numbers, **bounds)
        return lattice.conv(*operands, dimension_numbers=_NHWC, **p, **bounds)
    if step.kind in ("add", "sub", "mul"):
        function = {"add": lattice.add, "sub": lattice.sub, "mul": lattice.mul}[step.kind]
        if coded is not None:
            return function(x, coded.codes, grid, coded.grid, out, **bounds)
        return function(x, codes[1], grid, grids[1], out, **bounds)
    if step.kind in ("max_pool", "avg_pool"):
        pool = lattice.max_pool if step.kind == "max_pool" else lattice.avg_pool
        window, strides, padding = _window(p)
        return pool(
            x, grid, window_dimensions=window, window_strides=strides, padding=padding, **bounds
        )
    if step.kind == "mean":
        return lattice.mean(x, grid, out, p["axes"], p["keepdims"])
    if step.kind == "requantize":
        return lattice.requantize(x, grid, out)
    if step.kind == "pad":
        edge = jnp.float32(-128.0) if p["lowest"] else grid.zero_point
        return lax.pad(x, edge, [(low, high, 0) for low, high in p["padding"]])
    if step.kind == "relu":
        return jnp.clip(x, *lattice.bounds(grid, step.lo, step.hi))
    if step.kind in ("softmax", "logistic", "tanh"):
        table = {"softmax": lattice.softmax, "logistic": lattice.logistic, "tanh": lattice.tanh}
        return table[step.kind](x, grid)
    return _moved(step, codes)


def same_rank(first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gives the operand of lower rank leading axes of size one, as broadcasting would.

    Example:
      >>> [x.shape for x in same_rank(jnp.ones((2, 3)), jnp.ones(3))]
      [(2, 3), (1, 3)]
    """
    rank = max(first.ndim, second.ndim)
    first, second = (x.reshape((1,) * (rank - x.ndim) + x.shape) for x in (first, second))
    return first, second


def _window(p: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...], str]:
    return (1, *p["window_dimensions"], 1), (1, *p["window_strides"], 1), p["padding"]


def _moved(step: Step, inputs: Sequence[jax.Array]) -> jax.Array:
    """Steps that move values without changing them: the same on real values and on codes."""
    x, p = inputs[0], step.params
    if step.kind == "reshape":
        return x.reshape(step.shape)
    if step.kind == "transpose":
        return jnp.transpose(x, p["permutation"])
    if step.kind == "slice":
        return lax.slice(x, p["starts"], p["limits"], p["strides"])
    if step.kind == "concatenate":
        return jnp.concatenate(inputs, axis=p["axis"])
    raise ValueError(f"step {step.name!r} has unknown kind {step.kind!r}")
