"""Operations that only reorder the positions of one axis, read as what they are.

A channel shuffle is written as a reshape, a transpose and a reshape, between which a channel has no
single place on any axis; picking channels is written as a gather by constant indices. `reorder`
makes each of them one operation of kind `take`, for which a channel goes from one place to another.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from compressjax.graph.interpret import evaluate
from compressjax.graph.ir import Graph, Literal, Op, Value


def reorder(graph: Graph) -> Graph:
    """Replaces what only reorders the positions of one axis by operations of kind `take`.

    Args:
      graph: from `trace`; the bodies of its loops are gone through too.

    Returns:
      The same function; a `take` has the parameters `axis` and `positions` (`[D]`, where each
      position of the result comes from).

    Example:
      >>> from compressjax.graph.trace import trace
      >>> shuffle = lambda v, x: x.reshape(-1, 2, 3).swapaxes(1, 2).reshape(-1, 6)
      >>> (op,) = reorder(trace(shuffle, {}, np.ones((4, 6), 'f'))).ops
      >>> op.kind, op.params['positions'].tolist()
      ('take', [0, 3, 1, 4, 2, 5])
    """
    gone: set[Op] = set()
    ops: dict[Op, Op] = {}
    for op in graph.ops:
        found = _constant_gather(graph, op) or _shuffle(graph, op)
        if found is not None:
            ops[op], replaced = found
            gone.update(replaced)
        elif op.body is not None and (body := reorder(op.body)) is not op.body:
            ops[op] = dataclasses.replace(op, body=body)
    if not ops:
        return graph
    kept = tuple(ops.get(op, op) for op in graph.ops if op not in gone)
    return dataclasses.replace(graph, ops=kept)


def take_positions(array: jax.Array, positions: np.ndarray, axis: int) -> jax.Array:
    """Takes positions of an axis by one gather with constant indices.

    Args:
      array: any array.
      positions: `[N]` integers within the axis.
      axis: the axis.

    Returns:
      The array with `N` positions along the axis.

    Example:
      >>> take_positions(jax.numpy.arange(4.0), np.array([2, 0]), 0).tolist()
      [2.0, 0.0]
    """
    numbers = jax.lax.GatherDimensionNumbers(
        offset_dims=tuple(i for i in range(array.ndim) if i != axis),
        collapsed_slice_dims=(axis,),
        start_index_map=(axis,),
    )
    sizes = tuple(1 if i == axis else size for i, size in enumerate(array.shape))
    indices = np.asarray(positions, np.int32)[:, None]
    return jax.lax.gather(array, indices, numbers, sizes, mode="promise_in_bounds")


def _constant_gather(graph: Graph, op: Op) -> tuple[Op, list[Op]] | None:
    """Reads a gather with the pattern of `take_positions`."""
    if op.kind != "gather":
        return None
    operand, source = op.inputs
    numbers, sizes = op.params["dimension_numbers"], op.params["slice_sizes"]
    if len(numbers.start_index_map) != 1 or len(source.shape) != 2:
        return None
    axis = numbers.start_index_map[0]
    if numbers.collapsed_slice_dims != (axis,) or numbers.operand_batching_dims:
        return None
    others = tuple(i for i in range(len(operand.shape)) if i != axis)
    if numbers.offset_dims != others or any(sizes[i] != operand.shape[i] for i in others):
        return None
    indices = _constant(graph, source)
    if indices is None:
        return None
    places = indices[:, 0]
    if places.size == 0 or places.min() < 0 or places.max() >= operand.shape[axis]:
        return None
    return _take(op, operand, axis, places, lambda params, x: op.bind(op.params, x, indices)), []


def _constant(graph: Graph, value: Value) -> np.ndarray | None:
    """What a value always is, if it depends on constants alone."""
    pending, leaves = [value], set()
    while pending:
        current = pending.pop()
        if current in graph.producers:
            pending.extend(graph.producers[current].inputs)
        elif not isinstance(current, Literal):
            leaves.add(current)
    known = [graph.constants.get(leaf) for leaf in leaves]
    if any(array is None or isinstance(array, jax.core.Tracer) for array in known):
        return None
    with jax.ensure_compile_time_eval():
        return np.asarray(evaluate(graph, [value], {})[0])


def _shuffle(graph: Graph, last: Op) -> tuple[Op, list[Op]] | None:
    """Reads a reshape of a transpose of a reshape, if axes made of one axis became it again."""
    middle = _only_producer(graph, last, "reshape", "transpose")
    first = middle and _only_producer(graph, middle, "transpose", "reshape")
    if not middle or not first:
        return None
    source = first.inputs[0]
    shape, split = source.shape, first.out_shape
    extra = len(split) - len(shape)
    permutation = middle.params["permutation"]
    if extra < 1 or last.out_shape != shape:
        return None
    axis = next((i for i, size in enumerate(shape) if split[i] != size), None)
    if axis is None or split[axis + extra + 1 :] != shape[axis + 1 :]:
        return None
    inside = range(axis, axis + extra + 1)
    if any(to != i for i, to in enumerate(permutation) if i not in inside):
        return None
    order = np.arange(shape[axis]).reshape(split[axis : axis + extra + 1])
    places = order.transpose([permutation[i] - axis for i in inside]).reshape(-1)

    def bind(params: Any, x: Any) -> Any:
        del params
        for op in (first, middle, last):
            (x,) = op.bind(op.params, x)
        return [x]

    return _take(last, source, axis, places, bind), [first, middle]


def _only_producer(graph: Graph, op: Op, kind: str, above: str) -> Op | None:
    """The operation of a kind that an operation reads, if nothing else reads it."""
    if op.kind != kind or op.inputs[0] not in graph.producers:
        return None
    found = graph.producers[op.inputs[0]]
    alone = graph.consumers[op.inputs[0]] == (op,) and op.inputs[0] not in graph.outputs
    return found if found.kind == above and alone else None


def _take(op: Op, source: Value, axis: int, places: np.ndarray, bind: Any) -> Op:
    params = {"axis": axis, "positions": places}
    return dataclasses.replace(op, kind="take", inputs=(source,), params=params, bind=bind)
