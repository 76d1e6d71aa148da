"""Readings: which contraction reads which data with which variable, in loops too.

`graph.kernels` is the neighbour for transforms that rescale weights, and so takes only kernels that
one contraction uses once, with one axis of outputs. To look at what a kernel is multiplied with,
any use will do: kernels that are used twice, have axes of heads, or are slices of a scan's stack.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from compressjax.graph import kernels, loops
from compressjax.graph.interpret import evaluate
from compressjax.graph.ir import Graph, Literal, Op, Value

Back = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """One contraction of data with a variable.

    Attributes:
      path: path of the variable.
      data: what is read.
      features: the axes of `data` whose positions meet weights of their own.
      depth: how many loops are around it.
      weights: from what is known of each feature, `[*L, I]`, to an array of the variable's shape
        that says it of each weight; `L` are the steps of the loops around it.
    """

    path: str
    data: Value
    features: tuple[int, ...]
    depth: int
    weights: Back


@dataclasses.dataclass(frozen=True, eq=False)
class Readings:
    """The readings of a graph.

    Attributes:
      graph: the graph.
      here: those that are not in loops.
      loops: for scans that have some, those of their bodies.
    """

    graph: Graph
    here: tuple[Reading, ...]
    loops: Mapping[Op, "Readings"]

    def __iter__(self) -> Iterator[Reading]:
        yield from self.here
        for inside in self.loops.values():
            yield from inside


def find(graph: Graph) -> Readings:
    """Finds the readings of a graph.

    Args:
      graph: from `trace`.

    Returns:
      The readings. Contractions of two variables, of two inputs, and with kernels that were
      computed from variables are none.

    Example:
      >>> from compressjax.graph.trace import trace
      >>> graph = trace(lambda v, x: x @ v['w'].T, {'w': np.ones((2, 3))}, np.ones((1, 3)))
      >>> (reading,) = find(graph)
      >>> reading.path, reading.weights(np.array([1.0, 2.0, 3.0])).tolist()
      ('w', [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    """
    return _find(graph, {value: (path, _same) for path, value in graph.variables.items()}, 0)


def run(
    readings: Readings,
    known: Mapping[Value, Any],
    statistic: Callable[[jax.Array], jax.Array],
) -> list[jax.Array]:
    """Takes a statistic of the data of each reading.

    Args:
      readings: from `find`.
      known: arrays for the graph's inputs and variables.
      statistic: `statistic(x) -> array`, of `x: [..., I]`, data with its features last.

    Returns:
      The statistics in the order of `readings`; those in loops with the axes of their steps in
      front.

    Example:
      >>> from compressjax.graph.interpret import bind_arguments
      >>> from compressjax.graph.trace import trace
      >>> fn = lambda v, x: jax.lax.scan(lambda c, w: (c @ w, None), x, v)[0]
      >>> graph = trace(fn, np.ones((3, 2, 2), 'f'), np.ones((1, 2), 'f'))
      >>> known = bind_arguments(graph, np.ones((3, 2, 2), 'f'), np.ones((1, 2), 'f'))
      >>> [x.tolist() for x in run(find(graph), known, lambda x: x.sum(0))]
      [[[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]]]
    """
    return _run(readings, (), known, statistic)[1]


def _run(
    readings: Readings,
    wanted: Sequence[Value],
    known: Mapping[Value, Any],
    statistic: Callable[[jax.Array], jax.Array],
) -> tuple[list[Any], list[jax.Array]]:
    inside: dict[Op, list[jax.Array]] = {}

    def rule(op: Op, inputs: tuple[Any, ...]) -> Sequence[Any] | None:
        if op not in readings.loops:
            return None
        body = readings.loops[op]

        def step(arrays: Mapping[Value, Any]) -> list[Any]:
            outputs, seen = _run(body, body.graph.outputs, arrays, statistic)
            return [*outputs, *seen]

        made = list(loops.narrow(op, inputs, body.graph, step))
        inside[op] = made[len(op.outputs) :]
        return made[: len(op.outputs)]

    data = list(dict.fromkeys(reading.data for reading in readings.here))
    ends = [op.outputs[0] for op in readings.loops]
    values = evaluate(readings.graph, [*wanted, *data, *ends], known, rule=rule)
    arrays = dict(zip(data, values[len(wanted) :], strict=False))
    looks = dict.fromkeys((reading.data, reading.features) for reading in readings.here)
    seen = {look: statistic(_features_last(arrays[look[0]], look[1])) for look in looks}
    here = [seen[reading.data, reading.features] for reading in readings.here]
    return values[: len(wanted)], [*here, *(x for op in readings.loops for x in inside[op])]


def _find(graph: Graph, sources: Mapping[Value, tuple[str, Back]], depth: int) -> Readings:
    here: list[Reading] = []
    inside: dict[Op, Readings] = {}
    for op in graph.ops:
        if op.kind in ("conv_general_dilated", "dot_general"):
            found = [_source(graph, value, sources) for value in op.inputs]
            for side, source in enumerate(found):
                data = op.inputs[1 - side]
                if source is not None and data not in graph.static:
                    here += _reading(op, side, *source, depth)
        elif op.body is not None:
            body = _find(op.body, _in_body(graph, op, op.body, sources, depth), depth + 1)
            if body.here or body.loops:
                inside[op] = body
    return Readings(graph, tuple(here), inside)


def _reading(op: Op, side: int, path: str, back: Back, depth: int) -> Iterator[Reading]:
    """How a contraction's operand, which is a variable, reads the other operand."""
    shape, data = op.inputs[side].shape, op.inputs[1 - side]
    numbers = op.params["dimension_numbers"]
    groups = repeats = 1
    if op.kind == "dot_general":
        (contracting, batch), other = numbers, 1 - side
        features, axes = (*batch[other], *contracting[other]), (*batch[side], *contracting[side])
    elif side == 1 and op.params["batch_group_count"] == 1:
        features, axes = (numbers.lhs_spec[1],), numbers.rhs_spec[:2]
        groups = op.params["feature_group_count"]
        repeats = shape[axes[0]] // groups  # all outputs of a group read the same features
    else:
        return

    def weights(x: np.ndarray) -> np.ndarray:
        steps = x.shape[:depth]
        x = x.reshape(*steps, groups, 1, -1)
        x = np.broadcast_to(x, (*steps, groups, repeats, x.shape[-1]))
        x = x.reshape(*steps, *(shape[axis] for axis in axes))
        x = x.transpose(*range(depth), *(depth + np.argsort(axes)))
        x = x.reshape(*steps, *(n if axis in axes else 1 for axis, n in enumerate(shape)))
        return back(np.broadcast_to(x, (*steps, *shape)))

    yield Reading(path, data, features, depth, weights)


def _source(
    graph: Graph, value: Value, sources: Mapping[Value, tuple[str, Back]]
) -> tuple[str, Back] | None:
    """The variable that casts and moves made a value of, and the way back to its shape."""
    root = value
    while root not in sources:
        op = graph.producers.get(root)
        if root not in graph.links or op is None or isinstance(op.inputs[0], Literal):
            return None
        root = op.inputs[0]
        if math.prod(root.shape) != math.prod(value.shape):
            return None
    path, back = sources[root]
    if root is value:
        return path, back

    def unmoved(x: np.ndarray) -> np.ndarray:
        order = np.argsort(kernels.places(graph, value, root), axis=None)
        steps = x.shape[: x.ndim - len(value.shape)]
        return back(x.reshape(*steps, -1)[..., order].reshape(*steps, *root.shape))

    return path, unmoved


def _in_body(
    graph: Graph,
    op: Op,
    body: Graph,
    sources: Mapping[Value, tuple[str, Back]],
    depth: int,
) -> dict[Value, tuple[str, Back]]:
    """The variables that a scan's body sees, whole or in slices; a carry does not stay one."""
    mine, given = (loops.parts(op, of) for of in (body.inputs.values(), op.inputs))
    found = {}
    for inner, outer, stacked in (
        *((a, b, False) for a, b in zip(mine.consts, given.consts, strict=True)),
        *((a, b, True) for a, b in zip(mine.xs, given.xs, strict=True)),
    ):
        source = _source(graph, outer, sources)
        if source is not None:
            path, back = source
            found[inner] = (path, back if stacked else _over_steps(back, depth))
    return found


def _over_steps(back: Back, axis: int) -> Back:
    """What every step reads with the same weights is averaged over the steps."""
    return lambda x: back(x.mean(axis=axis))


def _same(x: np.ndarray) -> np.ndarray:
    return x


def _features_last(data: jax.Array, features: Sequence[int]) -> jax.Array:
    others = [axis for axis in range(data.ndim) if axis not in features]
    moved = data.transpose(*others, *features)
    return moved.reshape(*moved.shape[: len(others)], -1)
