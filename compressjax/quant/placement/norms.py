"""Finds the variances of a network, so that each is computed in the one form that int8 survives.

Flax's norms take the mean of the squares minus the square of the mean, which in 8 bits cancels to
nothing. The same variance is placed as LiteRT's converters decompose a layer norm: MEAN, SUB, MUL
of the difference with itself, MEAN. The difference is what the norm multiplies afterwards anyway,
so this costs no operation more, and mean and variance come out with the axes of size one that the
norm needs, without a RESHAPE.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from compressjax.graph import Graph, Op, Value
from compressjax.quant.placement.placer import Placer
from compressjax.quant.placement.scalars import number, source


class Variance(NamedTuple):
    """A variance in a graph.

    Attributes:
      x: what it is the variance of.
      axes: over which.
      centred: operations that subtract the mean from `x`, in order; perhaps none.
      means: values that are the mean, with or without the axes.
      variances: values that are the variance.
      ops: all operations that the four steps stand for; the first one is where they are placed.
    """

    x: Value
    axes: tuple[int, ...]
    centred: tuple[Op, ...]
    means: tuple[Value, ...]
    variances: tuple[Value, ...]
    ops: tuple[Op, ...]


def variances(graph: Graph) -> Iterator[Variance]:
    """Finds the variances in a graph, in one pass (E[x^2] - E[x]^2) or in two.

    Args:
      graph: from `trace(..., keep_custom=False)`.

    Yields:
      The variances.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from compressjax.graph import trace
      >>> graph = trace(lambda v, x: jax.nn.standardize(x), {}, jnp.ones((2, 8)))
      >>> [(found.axes, len(found.centred)) for found in variances(graph)]
      [((1,), 1)]
    """
    for op in graph.ops:
        found = _one_pass(graph, op) or _two_pass(graph, op)
        if found is not None:
            x, axes, value, inner = found
            yield _whole(graph, x, axes, value, inner)


def place_variance(placer: Placer, found: Variance) -> None:
    """Adds the steps of a variance, and a RESHAPE where a value is read without its axes.

    Args:
      placer: what the steps are added to; `found.x` is placed.
      found: from `variances`.
    """
    first, x = found.ops[0], placer.tensor(found.ops[0], found.x)
    kept = _kept(found.x, found.axes)
    over = {"axes": found.axes, "keepdims": True}

    def add(kind: str, suffix: str, *inputs: str) -> str:
        name = f"{first.name}/{suffix}"
        shape, params = (kept, over) if kind == "mean" else (found.x.shape, None)
        return placer.add(first, kind, inputs, None, name=name, shape=shape, params=params)

    mean = add("mean", "mean", x)
    centred = add("sub", "centred", x, mean)
    variance = add("mean", "variance", add("mul", "square", centred, centred))
    placer.tensors.update(dict.fromkeys((op.outputs[0] for op in found.centred), centred))
    graph, inside = placer.graph, set(found.ops)
    for values, tensor in ((found.means, mean), (found.variances, variance)):
        for value in values:
            outside = not inside.issuperset(graph.consumers.get(value, ()))
            if value.shape == kept:
                placer.tensors[value] = tensor
            elif outside or value in graph.outputs:
                name = f"{tensor}/flat"
                placer.add(
                    first, "reshape", [tensor], value, name=name, shape=value.shape, same_range=True
                )


_Found = tuple[Value, tuple[int, ...], Value, set[Op]]


def _one_pass(graph: Graph, op: Op) -> _Found | None:
    if op.kind != "sub":
        return None
    squares, square = _mean(graph, op.inputs[0]), _square(graph, op.inputs[1])
    mean = _mean(graph, square[0]) if square else None
    inner = _square(graph, squares[0]) if squares else None
    if squares is None or square is None or mean is None or inner is None:
        return None
    if inner[0] is not mean[0] or squares[1] != mean[1]:
        return None
    ops = {op, *squares[2], square[1], inner[1]}
    value = op.outputs[0]
    readers = graph.consumers.get(value, ())
    if len(readers) == 1 and readers[0].kind == "max" and value not in graph.outputs:
        if any(number(graph, other) == 0.0 for other in readers[0].inputs):
            ops.add(readers[0])
            value = readers[0].outputs[0]
    return mean[0], mean[1], value, ops


def _two_pass(graph: Graph, op: Op) -> _Found | None:
    if op.kind not in ("div", "mul"):
        return None
    squares = _mean(graph, op.outputs[0])
    square = _square(graph, squares[0]) if squares else None
    centre = graph.producers.get(source(graph, square[0])) if square else None
    if squares is None or square is None or centre is None or centre.kind != "sub":
        return None
    mean = _mean(graph, centre.inputs[1])
    if mean is None or mean[0] is not centre.inputs[0] or mean[1] != squares[1]:
        return None
    return mean[0], mean[1], op.outputs[0], {*squares[2], square[1]}


def _whole(graph: Graph, x: Value, axes: tuple[int, ...], value: Value, inner: set[Op]) -> Variance:
    """Adds the mean, what subtracts it, and views of mean and variance."""
    ops, means = set(inner), []
    for op in graph.ops:
        mean = _mean(graph, op.outputs[0]) if op.kind in ("div", "mul") else None
        if mean is not None and mean[0] is x and mean[1] == axes:
            ops.update(mean[2])
            means.append(op.outputs[0])
    variances = [value]
    for op in graph.ops:
        if op.kind in ("broadcast_in_dim", "reshape") and not graph.is_static(op.outputs[0]):
            whole = source(graph, op.outputs[0])
            for group in (means, variances):
                if whole in group and op.out_shape in (_kept(x, axes), _reduced(x, axes)):
                    ops.add(op)
                    group.append(op.outputs[0])
    centred = tuple(
        op for op in graph.ops if op.kind == "sub" and op.inputs[0] is x and op.inputs[1] in means
    )
    ops.update(centred)
    known = {*means, *variances, *(op.outputs[0] for op in centred)}
    # What is read elsewhere and is none of the four steps has to be placed by itself.
    while others := {op for op in ops if not _inside(graph, op, ops, known)}:
        ops -= others
    ordered = tuple(op for op in graph.ops if op in ops)
    return Variance(x, axes, centred, tuple(means), tuple(variances), ordered)


def _inside(graph: Graph, op: Op, ops: set[Op], known: set[Value]) -> bool:
    value = op.outputs[0]
    read = value in graph.outputs or not ops.issuperset(graph.consumers.get(value, ()))
    return value in known or not read


def _kept(x: Value, axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))


def _reduced(x: Value, axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for axis, size in enumerate(x.shape) if axis not in axes)


def _mean(graph: Graph, value: Value) -> tuple[Value, tuple[int, ...], set[Op]] | None:
    """What a value is the mean of, over which axes, and by which operations."""
    value = source(graph, value)
    op = graph.producers.get(value)
    if op is None or op.kind not in ("div", "mul"):
        return None
    factors = [number(graph, operand) for operand in op.inputs]
    place = 0 if op.kind == "div" or factors[1] is not None else 1
    factor = factors[1 - place]
    total = graph.producers.get(source(graph, op.inputs[place]))
    if not factor or total is None or total.kind != "reduce_sum":
        return None
    axes = tuple(sorted(int(axis) for axis in total.params["axes"]))
    count = math.prod(total.inputs[0].shape[axis] for axis in axes)
    divisor = factor if op.kind == "div" else 1.0 / factor
    if count == 1 or not math.isclose(divisor, count, rel_tol=1e-5):
        return None
    return total.inputs[0], axes, {op, total, *_views_between(graph, op.inputs[place])}


def _square(graph: Graph, value: Value) -> tuple[Value, Op] | None:
    """What a value is the square of."""
    op = graph.producers.get(source(graph, value))
    if op is None:
        return None
    doubled = op.kind == "mul" and op.inputs[0] is op.inputs[1]
    if op.kind == "square" or doubled or (op.kind == "integer_pow" and op.params["y"] == 2):
        return op.inputs[0], op
    return None


def _views_between(graph: Graph, value: Value) -> Iterator[Op]:
    end = source(graph, value)
    while value is not end:
        op = graph.producers[value]
        yield op
        value = op.inputs[0]
