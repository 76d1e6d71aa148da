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
from compressjax.quant import forward, ranges, simulate
from compressjax.quant.grids import Grid, fit_at
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
        if isinstance(spec.activations, Dynamic) and _dynamic(op):
            x = _rounded(op, 1 - side, x, spec.activations.bits)
        return (kernel, x) if side == 0 else (x, kernel)

    return graphs.interpret(graph, qv, *args, before=before)


class Stored(NamedTuple):
    """A kernel as a file holds it.

    Attributes:
      values: float32, in the function's own layout, on the grid.
      codes: int8, in the same layout; `None` where the values are half-precision floats.
      scale: float32, broadcast to the same layout; `codes * scale` are the values.
    """

    values: np.ndarray
    codes: np.ndarray | None
    scale: np.ndarray | None


class FrozenKernels(NamedTuple):
    """A function with float arithmetic around the kernels that a file holds as codes.

    Attributes:
      fn: `fn(*args) -> outputs`, float, with the stored values in place of the kernels.
      kernels: those that have a grid, by operation name.
      dynamic: whether the kernels' other operands are quantized when the function runs.
    """

    fn: Callable[..., Any]
    kernels: dict[str, Stored]
    dynamic: bool


def freeze(graph: Graph, spec: Spec, qv: Mapping[str, Any]) -> FrozenKernels:
    """Puts kernels on their grids, once and for all.

    Args:
      graph: the graph.
      spec: with dynamic activations or none.
      qv: the variables; with the params of grids that learn.

    Returns:
      The function of the inputs alone, and its kernels.

    Raises:
      ValueError: if LiteRT's tensors cannot hold a grid; the message names the kernels.
    """
    known = graphs.bind_variables(graph, qv)
    kernels, problems = {}, []
    for name, grid in kernel_grids(graph, spec).items():
        if grid is None:
            continue
        op = next(op for op in graph.ops if op.name == name)
        side = _kernel_side(graph, op)
        (kernel,) = graphs.evaluate(graph, [op.inputs[side]], known)
        found = _stored(op, side, grid, kernel, qv)
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

    return FrozenKernels(fn, kernels, isinstance(spec.activations, Dynamic))


def _stored(op: Op, side: int, grid: Grid, kernel: jax.Array, qv: Any) -> Stored | None:
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
        return Stored(codes * scale, codes.astype(np.int8), scale)
    (values,) = found
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    return Stored(values, None, None) if (halves.astype(np.float32) == values).all() else None


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


def _dynamic(op: Op) -> bool:
    """Whether LiteRT has a fast kernel that quantizes the other operand when it runs.

    It has none for depthwise and transposed convolutions, nor for products with batch axes; their
    kernels are stored as codes and multiplied as floats.
    """
    if op.kind == "dot_general":
        return not any(op.params["dimension_numbers"][1])
    depthwise = op.params["feature_group_count"] > 1 and _inputs_of_group(op) == 1
    dilated = any(dilation != 1 for dilation in op.params["lhs_dilation"])
    return not (depthwise or dilated or len(op.params["window_strides"]) > 2)


def _inputs_of_group(op: Op) -> int:
    numbers = op.params["dimension_numbers"]
    return op.inputs[1].shape[numbers.rhs_spec[1]]


def _rounded(op: Op, side: int, x: jax.Array, bits: int) -> jax.Array:
    """Rounds each example of a convolution's input, or each row of a product's."""
    numbers = op.params["dimension_numbers"]
    if op.kind == "conv_general_dilated":
        axes = tuple(numbers.lhs_spec[1:])
    else:
        axes = tuple(numbers[0][side])
    codes = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    low, high = (jax.lax.stop_gradient(end(x, axes, keepdims=True)) for end in (jnp.min, jnp.max))
    grid = ranges.grid_of(low, high, codes)
    return simulate.decode(simulate.encode(x, grid, codes), grid).astype(x.dtype)
