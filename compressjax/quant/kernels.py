"""Quantizing the kernels of any function, with float arithmetic around them.

Where activations stay float there are no steps to place: every convolution and matrix product of
the graph takes its kernel from a grid, and all else runs as it was written. With `Dynamic`
activations the other operand is rounded too, to the range that each example has, as LiteRT's
dynamic-range kernels do.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from compressjax import graph as graphs
from compressjax import tree
from compressjax.graph import Graph, Op
from compressjax.quant import forward
from compressjax.quant.grids import Grid, fit_at
from compressjax.quant.lattice.grid import opaque, ratio, rounded_product, straight_through
from compressjax.quant.spec import Dynamic, Spec


def run(graph: Graph, spec: Spec, qv: Mapping[str, Any], args: tuple[Any, ...]) -> Any:
    """Runs a graph with its kernels on their grids.

    Args:
      graph: the graph.
      spec: with dynamic activations or none.
      qv: the variables; with the params of grids that learn.
      args: the function's arguments after the variables.

    Returns:
      What the function returns.

    Raises:
      ValueError: if a rule of the spec matches nothing, or params of a learned grid are missing.
    """
    grids = kernel_grids(graph, spec)

    def before(op: Op, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        grid = grids.get(op.name)
        if grid is None:
            return inputs
        side = _kernel_side(graph, op)
        kernel, x = inputs[side], inputs[1 - side]
        rows = _rows(op, side, kernel)
        own = forward.grid_params(op.name, grid, rows, qv)
        kernel = _unrowed(op, side, grid.project(rows, own), kernel)
        if isinstance(spec.activations, Dynamic) and _dynamic(op, side):
            x = rounded_by_range(x, _sharing(op, 1 - side), spec.activations.bits)
        return (kernel, x) if side == 0 else (x, kernel)

    return graphs.interpret(graph, qv, *args, before=before)


class Stored(NamedTuple):
    """A kernel as a file holds it.

    Attributes:
      values: float32, in the function's own layout, on the grid.
      codes: int8, in the same layout; `None` where the values are half-precision floats.
      scale: float32, broadcast to the same layout; `codes * scale` are the values.
      dynamic: whether the other operand is quantized when the function runs.
    """

    values: np.ndarray
    codes: np.ndarray | None
    scale: np.ndarray | None
    dynamic: bool


class FrozenKernels(NamedTuple):
    """A function with float arithmetic around the kernels that a file holds as codes.

    Attributes:
      fn: `fn(*args) -> outputs`, float, with the stored values in place of the kernels.
      kernels: those that have a grid, by operation name.
    """

    fn: Callable[..., Any]
    kernels: dict[str, Stored]


def freeze(graph: Graph, spec: Spec, qv: Mapping[str, Any]) -> FrozenKernels:
    """Puts kernels on their grids, once and for all.

    Args:
      graph: the graph.
      spec: with dynamic activations or none.
      qv: the variables; with the params of grids that learn.

    Returns:
      The function of the inputs alone, and its kernels.

    Raises:
      ValueError: if LiteRT's tensors cannot hold a grid, the message names the kernels; or if
        dynamic activations have other than 8 bits.
    """
    dynamic = isinstance(spec.activations, Dynamic)
    if isinstance(spec.activations, Dynamic) and spec.activations.bits != 8:
        raise ValueError(
            f"dynamic activations have {spec.activations.bits} bits, LiteRT's have 8: others can "
            "only be simulated"
        )
    known = graphs.bind_variables(graph, qv)
    kernels, problems = {}, []
    for name, grid in kernel_grids(graph, spec).items():
        if grid is None:
            continue
        op = next(op for op in graph.ops if op.name == name)
        side = _kernel_side(graph, op)
        (kernel,) = graphs.evaluate(graph, [op.inputs[side]], known)
        found = _stored(op, side, grid, kernel, qv, dynamic=dynamic and _dynamic(op, side))
        if found is None:
            problems.append(f"{name} has the grid {grid.name!r}")
        else:
            kernels[name] = found
    if problems:
        raise ValueError(
            "LiteRT's tensors cannot hold these kernels, they can only be simulated: "
            + "; ".join(problems)
            + ". Use integer, ternary, binary or power-of-two grids of at most 8 bits per channel "
            "or per tensor, or float16."
        )

    def before(op: Op, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        if op.name not in kernels:
            return inputs
        pair = list(inputs)
        pair[_kernel_side(graph, op)] = jnp.asarray(kernels[op.name].values)
        return tuple(pair)

    def fn(*args: Any) -> Any:
        return graphs.interpret(graph, qv, *args, before=before)

    return FrozenKernels(fn, kernels)


def _stored(
    op: Op, side: int, grid: Grid, kernel: jax.Array, qv: Any, *, dynamic: bool
) -> Stored | None:
    @jax.jit
    def numbers(kernel: jax.Array) -> tuple[jax.Array, ...]:
        rows = _rows(op, side, kernel)
        own = forward.grid_params(op.name, grid, rows, qv)
        if grid.codes is None:
            return (_unrowed(op, side, grid.project(rows, own), kernel),)
        codes, scale = grid.codes(rows, own, jnp.float32(0))
        wide = jnp.broadcast_to(scale, rows.shape)
        return tuple(_unrowed(op, side, each, kernel) for each in (codes, wide))

    found = [np.asarray(x, np.float32) for x in numbers(kernel)]
    if len(found) == 2:
        codes, scale = found
        return Stored(codes * scale, codes.astype(np.int8), scale, dynamic)
    (values,) = found
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    exact = (halves.astype(np.float32) == values).all()
    return Stored(values, None, None, dynamic) if exact else None


def params(graph: Graph, spec: Spec, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Fits the grids that learn.

    Args:
      graph: the graph.
      spec: with dynamic activations or none.
      variables: the function's variables.

    Returns:
      The params of each such grid, by kernel name.
    """
    known = graphs.bind_variables(graph, variables)
    fitted = {}
    for name, grid in kernel_grids(graph, spec).items():
        if grid is not None and grid.learned:
            op = next(op for op in graph.ops if op.name == name)
            side = _kernel_side(graph, op)
            (kernel,) = graphs.evaluate(graph, [op.inputs[side]], known)
            fitted[name] = fit_at(name, grid, _rows(op, side, kernel))
    return fitted


def kernel_grids(graph: Graph, spec: Spec) -> dict[str, Grid | None]:
    """The grid of every kernel of a graph.

    Args:
      graph: the graph.
      spec: the spec.

    Returns:
      The grids by operation name.

    Raises:
      ValueError: if a glob matches nothing, or there are no kernels.

    Example:
      >>> from compressjax.quant.spec import weight_only
      >>> graph = graphs.trace(lambda v, x: x @ v['kernel'], {'kernel': jnp.eye(2)}, jnp.eye(2))
      >>> [grid.name for grid in kernel_grids(graph, weight_only()).values()]
      ['int8 per channel']
    """
    kinds = ("conv_general_dilated", "dot_general")
    names = [op.name for op in graph.ops if op.kind in kinds and _has_kernel(graph, op)]
    if not names:
        raise ValueError("the function has no convolution or matrix product with a kernel")
    return tree.assign(spec.weights, names, what="weights")


def _has_kernel(graph: Graph, op: Op) -> bool:
    return bool(op.variables) and sum(map(graph.is_static, op.inputs)) == 1


def _kernel_side(graph: Graph, op: Op) -> int:
    return 0 if graph.is_static(op.inputs[0]) else 1


def _order(op: Op, side: int, ndim: int) -> tuple[tuple[int, ...], int]:
    """The axes of a kernel with its outputs last, and how many of these axes there are."""
    numbers = op.params["dimension_numbers"]
    if op.kind == "conv_general_dilated":
        out, into, *spatial = numbers.rhs_spec
        return (*spatial, into, out), 1
    contract, batch = numbers[0][side], numbers[1][side]
    free = [axis for axis in range(ndim) if axis not in (*contract, *batch)]
    return (*batch, *contract, *free), len(free)


def _rows(op: Op, side: int, kernel: jax.Array) -> jax.Array:
    """A kernel as float32 `[..., O]`."""
    order, free = _order(op, side, kernel.ndim)
    moved = jnp.transpose(jnp.asarray(kernel, jnp.float32), order)
    lead = moved.shape[: kernel.ndim - free]
    return moved.reshape(*lead, math.prod(moved.shape[kernel.ndim - free :]))


def _unrowed(op: Op, side: int, rows: jax.Array, kernel: jax.Array) -> jax.Array:
    order, _ = _order(op, side, kernel.ndim)
    moved = rows.reshape([kernel.shape[axis] for axis in order])
    back = tuple(int(axis) for axis in np.argsort(order))
    return jnp.transpose(moved, back).astype(kernel.dtype)


def _dynamic(op: Op, side: int) -> bool:
    """Whether LiteRT has a fast kernel that quantizes the other operand when it runs.

    It has none for depthwise convolutions (also those of a single input) nor for products with
    batch axes or a kernel on the left. Their kernels are stored as codes and multiplied as floats.
    """
    if op.kind == "dot_general":
        return side == 1 and not any(op.params["dimension_numbers"][1])
    return _inputs_of_group(op) > 1 and len(op.params["window_strides"]) <= 2


def _inputs_of_group(op: Op) -> int:
    numbers = op.params["dimension_numbers"]
    return op.inputs[1].shape[numbers.rhs_spec[1]]


def rounded_by_range(x: jax.Array, axes: tuple[int, ...], bits: int = 8) -> jax.Array:
    """Rounds values to the range of each row or example, by XNNPACK's own formula.

    It finds how many codes a unit of value has, and multiplies codes by the inverse of that; both
    are float32, and zero points and ties depend on it (`xnn_f32_qd8_asymmetric_quantization_params`
    in its src/xnnpack/quantization.h). Nothing lies outside the range, so all gradients pass.

    Args:
      x: float array of any shape.
      axes: along which values share a range.
      bits: of a code.

    Returns:
      The rounded values, in the shape and dtype of `x`.

    Example:
      >>> rounded_by_range(jnp.array([[0.0, 1.26, 2.55]]), (1,)).round(2).tolist()
      [[0.0, 1.2599999904632568, 2.549999952316284]]
    """
    lowest, highest = -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1.0
    seen = jax.lax.stop_gradient(x.astype(jnp.float32))
    low = jnp.minimum(seen.min(axes, keepdims=True), 0.0)
    high = jnp.maximum(seen.max(axes, keepdims=True), 0.0)
    width = jnp.where(high > low, high - low, highest - lowest)  # zeros: one code for each unit
    # Hidden, or a compiler would turn the inverse of this quotient around.
    steps = opaque(ratio(jnp.float32(highest - lowest), width), width)
    below, above = rounded_product(low, steps), rounded_product(high, steps)
    point = jnp.where((lowest + below) + (highest + above) > 0, lowest - below, highest - above)
    point = jnp.round(jnp.clip(point, lowest, highest))
    codes = jnp.round(jnp.clip(x * steps, lowest - point, highest - point))
    return straight_through(codes * ratio(jnp.float32(1.0), steps), x).astype(x.dtype)


def _sharing(op: Op, side: int) -> tuple[int, ...]:
    """The axes of an operand along which values share a grid: a row, or an example.

    XNNPACK runs a convolution with a window of one pixel, one group and no strides as a fully
    connected layer: each pixel is a row.
    """
    numbers = op.params["dimension_numbers"]
    if op.kind != "conv_general_dilated":
        return tuple(numbers[0][side])
    _, channels, *spatial = numbers.lhs_spec
    window = [op.inputs[1].shape[axis] for axis in numbers.rhs_spec[2:]]
    sizes = (*window, *op.params["window_strides"], *op.params["lhs_dilation"])
    one = op.params["feature_group_count"] == 1 and set(sizes) == {1}
    return (channels,) if one else (channels, *spatial)
