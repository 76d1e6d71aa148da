"""Norms that read a residual stream, and may read fewer of its channels than it has.

In a pre-activation network a norm's channels are the stream's, so cutting one of them would cut it
out of every block. With a selection of channels in front of the norm they come apart: the stream
keeps its channels, and the norm and the convolution behind it are cut on their own. `branch` puts
such selections in; where they turn out to keep what the stream keeps, they cost nothing.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from compressjax.graph.ir import Graph, Op, Value
from compressjax.graph.trace import MOVEMENT

# What a norm does to its input, besides moving and reducing.
_NORM = frozenset("add sub mul div rsqrt sqrt square integer_pow max neg".split()) | MOVEMENT


def branch(graph: Graph) -> Graph:
    """Puts a selection of channels in front of each norm whose input has other readers.

    He, Zhang and Sun, "Channel Pruning for Accelerating Very Deep Neural Networks" (2017), section
    3.3, sample the channels of the first layer of a residual branch; Liu et al., "Learning
    Efficient Convolutional Networks through Network Slimming" (2017), section 4.2, put a channel
    selection in front of the first norm of a pre-activation block.

    Args:
      graph: from `trace`.

    Returns:
      The same function; a `select` has the parameter `axis` and is named by a variable of the norm.

    Example:
      >>> import numpy as np
      >>> from compressjax.graph.trace import trace
      >>> fn = lambda v, x: x + (x * v['scale'] + v['bias']) @ v['w']
      >>> shapes = {'scale': (1, 4), 'bias': (1, 4), 'w': (4, 4)}
      >>> variables = {name: np.ones(shape, 'f') for name, shape in shapes.items()}
      >>> [op.kind for op in branch(trace(fn, variables, np.ones((2, 4), 'f'))).ops]
      ['select', 'mul', 'add', 'dot_general', 'add']
    """
    readers: dict[Value, list[tuple[set[Op], int, str]]] = {}
    for op, axis, name in _anchors(graph):
        region = _region(graph, op, axis)
        if region is None:
            continue
        source, ops = region
        known = readers.setdefault(source, [])
        joined = [entry for entry in known if entry[0] & ops]
        readers[source] = [entry for entry in known if not entry[0] & ops]
        ops = ops.union(*(entry[0] for entry in joined))
        readers[source].append((ops, axis, max([name, *(entry[2] for entry in joined)])))
    before: dict[Op, Op] = {}
    inside: dict[Op, tuple[Value, Value]] = {}
    for source, regions in readers.items():
        for ops, axis, name in regions:
            mine = [op for op in graph.consumers[source] if op in ops]
            out = Value(source.shape, source.dtype)
            before[mine[0]] = _select(name, source, out, axis)
            inside.update(dict.fromkeys(mine, (source, out)))
    if not before:
        return graph
    return dataclasses.replace(graph, ops=tuple(_rewired(graph.ops, before, inside)))


def _select(name: str, source: Value, out: Value, axis: int) -> Op:
    return Op(name, "select", (source,), (out,), {"axis": axis}, (), 0, lambda params, x: [x])


def _rewired(
    ops: Sequence[Op], before: Mapping[Op, Op], inside: Mapping[Op, tuple[Value, Value]]
) -> Iterator[Op]:
    for op in ops:
        if op in before:
            yield before[op]
        if op in inside:
            old, new = inside[op]
            inputs = tuple(new if value is old else value for value in op.inputs)
            op = dataclasses.replace(op, inputs=inputs)
        yield op


def _anchors(graph: Graph) -> Iterator[tuple[Op, int, str]]:
    """Operations that combine an input with a variable along one axis: op, axis, variable."""
    for op in graph.ops:
        if op.kind not in _NORM or len(op.inputs) != 2 or graph.is_static(op.outputs[0]):
            continue
        for value in op.inputs:
            wide = [i for i, size in enumerate(value.shape) if size > 1]
            if graph.is_static(value) and len(wide) == 1 and len(value.shape) == len(op.out_shape):
                path = _variable(graph, value)
                if path is not None:
                    yield op, wide[0], path


def _variable(graph: Graph, value: Value) -> str | None:
    """A variable that a static value is computed from; of several, the last in order."""
    named = {found: path for path, found in graph.variables.items()}
    pending, found = [value], []
    while pending:
        current = pending.pop()
        if current in named:
            found.append(named[current])
        elif current in graph.producers:
            pending.extend(graph.producers[current].inputs)
    return max(found, default=None)


def _region(graph: Graph, anchor: Op, axis: int) -> tuple[Value, set[Op]] | None:
    """The value that a norm reads among others that do, and the norm's operations up to an anchor.

    On the way back from the anchor, it is the first value that something else reads too.
    """
    ops: set[Op] = set()
    pending = [anchor]
    while pending:
        op = pending.pop()
        if op not in ops and _normalises(graph, op, axis):
            ops.add(op)
            pending.extend(graph.producers[v] for v in op.inputs if v in graph.producers)
    op = anchor
    while op in ops:
        source = next(iter(_whole(graph, op, axis)), None)
        if source is None:
            return None
        if source in graph.outputs or any(op not in ops for op in graph.consumers[source]):
            break
        if source not in graph.producers:
            return None
        op = graph.producers[source]
    else:
        return None
    reached, mine = {source}, set()
    for op in graph.ops:
        if op in ops and reached.intersection(op.inputs):
            mine.add(op)
            reached.update(op.outputs)
    return (source, mine) if source.shape == anchor.out_shape else None


def _normalises(graph: Graph, op: Op, axis: int) -> bool:
    if graph.is_static(op.outputs[0]):
        return False
    if op.kind == "reduce_sum":
        return axis not in op.params["axes"]
    return op.kind in _NORM and len(_whole(graph, op, axis)) <= 1


def _whole(graph: Graph, op: Op, axis: int) -> list[Value]:
    """The operands that are neither variables nor statistics."""
    return [v for v in op.inputs if not graph.is_static(v) and not _statistic(graph, v, axis)]


def _statistic(graph: Graph, value: Value, axis: int) -> bool:
    """Whether a value is computed from sums over positions alone, a channel by itself."""
    op = graph.producers.get(value)
    if op is None:
        return False
    if op.kind == "reduce_sum":
        return axis not in op.params["axes"]
    moving = [v for v in op.inputs if not graph.is_static(v)]
    return op.kind in _NORM and all(_statistic(graph, v, axis) for v in moving)
