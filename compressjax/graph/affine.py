"""Affine maps per channel: the part of a graph that can be multiplied into a kernel.

Batch norm in evaluation mode, a bias and a constant factor are all of this form. Folding and
quantization both read it here, so they agree on what belongs to a kernel.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.graph.interpret import evaluate
from compressjax.graph.ir import Graph, Op, Value

_AFFINE = frozenset({"add", "sub", "mul", "div"})

# Each operation with its static operand; a cast between float dtypes has none.
Chain = tuple[tuple[Op, Value | None], ...]


def affine_chain(graph: Graph, value: Value, axis: int) -> Chain:
    """Collects the per-channel affine operations that follow a value.

    Args:
      graph: the graph.
      value: what the first of them reads, such as the output of a convolution.
      axis: the channel axis of `value`.

    Returns:
      Each operation with its static operand, in order, as far as nothing else reads in between.
      Casts between float dtypes are part of it, with `None` for the operand.

    Example:
      >>> from compressjax.graph.trace import trace
      >>> graph = trace(lambda v, x: (x * v + 1.0).sum(), jnp.ones((1, 4)), jnp.ones((2, 4)))
      >>> [op.kind for op, _ in affine_chain(graph, graph.inputs['input_0'], 1)]
      ['mul', 'add']
    """
    chain: list[tuple[Op, Value | None]] = []
    while value not in graph.outputs:
        readers = graph.consumers.get(value, ())
        if len(readers) != 1:
            break
        step = readers[0]
        if _is_float_cast(step):
            chain.append((step, None))
            value = step.outputs[0]
            continue
        if step.kind not in _AFFINE:
            break
        side = step.inputs.index(value)
        other = step.inputs[1 - side]
        divides = step.kind == "div" and side == 1
        if divides or not graph.is_static(other) or step.out_shape != value.shape:
            break
        if channel_vector(graph, other, axis) is None and not _alike(graph, other, axis):
            break
        chain.append((step, other))
        value = step.outputs[0]
    return tuple(chain)


def _is_float_cast(op: Op) -> bool:
    dtypes = [value.dtype for value in (*op.inputs, *op.outputs)]
    return op.kind == "convert_element_type" and all(
        jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes
    )


_ELEMENTWISE = frozenset(
    "add sub mul div max min neg abs exp log tanh logistic erf integer_pow square sqrt rsqrt "
    "convert_element_type copy".split()
)


def _alike(graph: Graph, value: Value, axis: int) -> bool:
    """Whether an operand is the same along all axes but one, as a first state times a kernel is."""
    return set(range(len(value.shape))) - _uniform(graph, value, {}) <= {axis}


def _uniform(graph: Graph, value: Value, known: dict[Value, set[int]]) -> set[int]:
    """Axes along which a static value is the same everywhere, however long they are."""
    if value not in known:
        known[value] = _uniform_axes(graph, value, known)
    return known[value]


def _uniform_axes(graph: Graph, value: Value, known: dict[Value, set[int]]) -> set[int]:
    op, rank = graph.producers.get(value), len(value.shape)
    if op is None:
        constant = graph.constants.get(value)
        if constant is None or 0 in value.shape:
            return set()
        array = np.asarray(constant)
        return {i for i in range(rank) if np.all(array == array.take([0], i))}
    if op.kind == "broadcast_in_dim":
        (source, *_), dims = op.inputs, op.params["broadcast_dimensions"]
        kept = {d for i, d in enumerate(dims) if source.shape[i] == value.shape[d]}
        alike = {dims[i] for i in _uniform(graph, source, known)}
        return set(range(rank)) - kept | alike
    if op.kind in _ELEMENTWISE and len(op.outputs) == 1:
        arrays = [x for x in op.inputs if x.shape]
        everywhere = set(range(rank))
        for x in arrays:
            everywhere &= _uniform(graph, x, known) | {
                i for i, size in enumerate(x.shape) if size == 1
            }
        return everywhere if all(len(x.shape) == rank for x in arrays) else set()
    if op.kind == "dot_general":
        contracts, batches = op.params["dimension_numbers"]
        axes = [(0, axis) for axis in batches[0]]
        for side, x in enumerate(op.inputs):
            bound = {*contracts[side], *batches[side]}
            axes += [(side, i) for i in range(len(x.shape)) if i not in bound]
        sides = [_uniform(graph, x, known) for x in op.inputs]
        free = range(len(batches[0]), rank)
        return {i for i in free if axes[i][1] in sides[axes[i][0]]}
    return set()


def channel_vector(graph: Graph, value: Value, axis: int) -> Value | None:
    """Looks through broadcasts for a value that varies along one axis alone.

    Args:
      graph: the graph.
      value: an operand of an elementwise operation.
      axis: the channel axis of that operation's output.

    Returns:
      The value before broadcasting (its elements, flat, are one scalar or one number for each
      channel), or `None` where the operand varies along another axis.

    Example:
      >>> from compressjax.graph.trace import trace
      >>> graph = trace(lambda v, x: x + v, jnp.ones((1, 4)), jnp.ones((2, 4)))
      >>> variable = graph.variables['']
      >>> channel_vector(graph, variable, 1).shape, channel_vector(graph, variable, 0)
      ((1, 4), None)
    """
    varying = [i for i, length in enumerate(value.shape) if length != 1]
    if not varying or varying == [axis]:
        return value
    producer = graph.producers.get(value)
    if producer is None or producer.kind != "broadcast_in_dim":
        return None
    source = producer.inputs[0]
    dims = producer.params["broadcast_dimensions"]
    inner = [dims[i] for i, length in enumerate(source.shape) if length != 1]
    return source if inner in ([], [axis]) else None


def affine_map(
    graph: Graph, chain: Chain, axis: int, known: Mapping[Value, Any]
) -> tuple[jax.Array, jax.Array]:
    """Evaluates a chain as `scale * value + shift`.

    Args:
      graph: the graph.
      chain: from `affine_chain`.
      axis: the channel axis that `affine_chain` was given.
      known: the arrays of the variables, by value.

    Returns:
      Scale and shift, each `[channels]` or a scalar.

    Example:
      >>> from compressjax.graph.trace import trace
      >>> graph = trace(lambda v, x: 1.0 - x * v, jnp.ones((1, 2)), jnp.ones((2, 2)))
      >>> chain = affine_chain(graph, graph.inputs['input_0'], 1)
      >>> affine_map(graph, chain, 1, {graph.variables['']: jnp.array([[2.0, 3.0]])})
      (Array([-2., -3.], dtype=float32), Array([1., 1.], dtype=float32))
    """
    maps = [(step, other) for step, other in chain if other is not None]
    vectors = [channel_vector(graph, other, axis) for _, other in maps]
    whole = [
        other if vector is None else vector
        for (_, other), vector in zip(maps, vectors, strict=True)
    ]
    numbers = evaluate(graph, whole, known)
    scale, shift = jnp.ones(()), jnp.zeros(())
    for (step, other), vector, number in zip(maps, vectors, numbers, strict=True):
        flat = jnp.reshape(jnp.asarray(number), (-1,))
        if vector is None:  # the same everywhere along the other axes
            flat = jnp.moveaxis(jnp.asarray(number), axis, -1).reshape(-1, other.shape[axis])[0]
        flipped = step.inputs[0] is other
        if step.kind == "add":
            shift = shift + flat
        elif step.kind == "sub":
            scale, shift = (-scale, flat - shift) if flipped else (scale, shift - flat)
        elif step.kind == "mul":
            scale, shift = scale * flat, _product(shift, flat)
        else:
            scale, shift = scale / flat, shift / flat
    return scale, shift


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Multiplies so that no compiler joins the product with a following addition.

    Joined, it would be rounded once instead of twice, under jit only. The sign is applied after the
    product, by a selection.
    """
    size = jnp.abs(a) * b
    return jnp.where(a < 0, -size, size)
