"""Quantizing the kernels of any function, with float arithmetic around them.

Where activations stay float there are no steps to place: every convolution and matrix product of
the graph takes its kernel from a grid, and all else runs as it was written. With `Dynamic`
activations the other operand is rounded too, to the range that each example has, as LiteRT's
dynamic-range kernels do.
"""

import math
from collections.abc import Mapping
from typing import Any

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
        if isinstance(spec.activations, Dynamic):
            x = _rounded(op, 1 - side, x, spec.activations.bits)
        return (kernel, x) if side == 0 else (x, kernel)

    return graphs.interpret(graph, qv, *args, before=before)


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
