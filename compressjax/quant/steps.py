"""What each kind of step computes: on real values, and on the lattice.

The two stand side by side so that they cannot drift apart: `real_step` is what calibration sees
and what the converters are told, `lattice_step` is what the phone computes.
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
from compressjax.quant.plan import Constant, Plan, Step
from compressjax.quant.ranges import Range, grid_of, widened

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
    constants: dict[str, Constant] = {
        step.name: step.constant for step in plan.steps if step.constant is not None
    }
    values = graphs.evaluate(graph, [constant.value for constant in constants.values()], known)
    found = {}
    for (name, constant), value in zip(constants.items(), values, strict=True):
        real = jnp.asarray(constant.layout(jnp.asarray(value)), jnp.float32)
        bias = None
        if constant.chain:
            scale, shift = graphs.affine_map(graph, constant.chain, constant.chain_axis, known)
            real = real * scale.astype(jnp.float32).reshape((1,) * (real.ndim - 1) + (-1,))
            bias = jnp.broadcast_to(shift.astype(jnp.float32), real.shape[-1:])
        found[name] = Operand(real, bias)
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
        least = out_grid.scale * jnp.float32(2.0**-8) if step.kind != "mul" else jnp.float32(0.0)
        grid = grid_of(*widened((value.min(), value.max()), least))
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
        # What stands for the lowest code: a value that no maximum picks.
        edge = x.min() if p["lowest"] else 0.0
        y = jnp.pad(x, p["padding"], constant_values=p.get("value", edge))
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


class Stored(NamedTuple):
    """What a step puts out on the lattice.

    Attributes:
      codes: integer-valued float32.
      ends: smallest and largest real value before the output grid clamped it, for steps that have a
        range of their own; `None` for steps that share their input's or have a fixed one.
    """

    codes: jax.Array
    ends: Range | None


def lattice_step(
    step: Step,
    codes: Sequence[jax.Array],
    grids: Sequence[Affine],
    coded: Coded | None,
    out: Affine,
) -> Stored:
    """Computes a step on codes, exactly as LiteRT does.

    Args:
      step: the step.
      codes: the codes of its inputs.
      grids: their grids.
      coded: its constant operand, or `None`.
      out: the grid of its output.

    Returns:
      The codes of its output, and the ends of its range.
    """
    x, grid, p = codes[0], grids[0], step.params
    if step.kind in CONTRACTIONS and coded is not None:
        acc = _accumulated(step, x, grid, coded)
        axis = acc.ndim - 1
        stored = lattice.rescale(acc, grid, coded.grid.scale, out, axis, lo=step.lo, hi=step.hi)
        return Stored(stored, _contraction_ends(step, acc, grid, coded))
    if step.kind in ("add", "sub", "mul"):
        function = {"add": lattice.add, "sub": lattice.sub, "mul": lattice.mul}[step.kind]
        other, other_grid = (coded.codes, coded.grid) if coded else (codes[1], grids[1])
        stored = function(x, other, grid, other_grid, out, lo=step.lo, hi=step.hi)
        reals = [lattice.dequantize(x, grid), lattice.dequantize(other, other_grid)]
        return Stored(stored, _ends(real_step(step, reals, ())))
    if step.kind == "mean":
        stored = lattice.mean(x, grid, out, p["axes"], p["keepdims"])
        return Stored(stored, _ends(real_step(step, [lattice.dequantize(x, grid)], ())))
    if step.kind == "requantize":
        return Stored(lattice.requantize(x, grid, out), _ends(lattice.dequantize(x, grid)))
    return Stored(_shared_step(step, codes, grid, out), None)


def _accumulated(step: Step, x: jax.Array, grid: Affine, coded: Coded) -> jax.Array:
    if step.kind == "dense":
        numbers = (((x.ndim - 1,), (0,)), ((), ()))
        return lattice.dot_sum(x, coded.codes, coded.bias, grid, dimension_numbers=numbers)
    return lattice.conv_sum(
        x, coded.codes, coded.bias, grid, dimension_numbers=_NHWC, **step.params
    )


def _contraction_ends(step: Step, acc: jax.Array, grid: Affine, coded: Coded) -> Range:
    """The ends of a contraction's real values, from those of each channel's sum."""
    acc, axes = lax.stop_gradient(acc), tuple(range(acc.ndim - 1))
    scale = lax.stop_gradient(grid.scale * coded.grid.scale)
    low, high = (acc.min(axes) * scale).min(), (acc.max(axes) * scale).max()
    clamp = (step.lo, step.hi)
    return jnp.clip(low, *clamp), jnp.clip(high, *clamp)


def _ends(real: jax.Array) -> Range:
    real = lax.stop_gradient(real)
    return real.min(), real.max()


def _shared_step(step: Step, codes: Sequence[jax.Array], grid: Affine, out: Affine) -> jax.Array:
    """Steps whose output has their input's grid, or a fixed one."""
    x, p = codes[0], step.params
    bounds = {"lo": step.lo, "hi": step.hi}
    if step.kind in ("max_pool", "avg_pool"):
        pool = lattice.max_pool if step.kind == "max_pool" else lattice.avg_pool
        window, strides, padding = _window(p)
        return pool(
            x, grid, window_dimensions=window, window_strides=strides, padding=padding, **bounds
        )
    if step.kind == "pad":
        edge = jnp.float32(-128.0) if p["lowest"] else grid.zero_point
        return lax.pad(x, edge, [(low, high, 0) for low, high in p["padding"]])
    if step.kind == "relu":
        return lattice.relu(x, grid, out, lo=step.lo or 0.0, hi=step.hi)
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
