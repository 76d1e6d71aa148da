"""Channels inside loops: what a `scan` ties together, and how it runs with positions gone.

A scan runs one body many times, on slices of stacked arrays (the layers of a network, the steps of
a sequence) and on a carry. So a channel that the body makes goes out of every slice alike, and one
of the carry goes out before, inside and after the loop. The rules of `channel_rules` see one
operation at a time; those here hand the body back to whoever runs the rules. `while` and `cond`
stay whole: they have no rule, and freeze what they touch.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.graph import fixed
from compressjax.graph.ir import Graph, Literal, Op, Value, follow
from compressjax.graph.units import UNKNOWN, ZERO, Axes, Units

# Runs the rules over operations, and adds the units of what they put out.
Run = Callable[[Units, Iterable[Op], dict[Value, Axes]], None]


class Parts(NamedTuple):
    """What a scan reads, or what its body does: both come in this order.

    Attributes:
      consts: the same in every step.
      carry: what a step passes to the next.
      xs: what is scanned over; the body sees one slice, without the leading axis.
    """

    consts: tuple[Any, ...]
    carry: tuple[Any, ...]
    xs: tuple[Any, ...]


def parts(op: Op, of: Iterable[Any]) -> Parts:
    """Sorts what comes in the order of a scan's operands.

    Args:
      op: the scan.
      of: one thing for each operand.

    Returns:
      The same things by the part they belong to.

    Example:
      >>> from compressjax.graph.trace import trace
      >>> fn = lambda v, x: jax.lax.scan(lambda c, w: (c * w + v['b'], None), x, v['w'])[0]
      >>> (op,) = trace(fn, {'w': np.ones(4, 'f'), 'b': np.float32(1)}, np.float32(2)).ops
      >>> parts(op, 'bxw')
      Parts(consts=('b',), carry=('x',), xs=('w',))
    """
    of, first = tuple(of), op.params["num_consts"]
    last = first + op.params["num_carry"]
    return Parts(of[:first], of[first:last], of[last:])


def read(units: Units, axes: Mapping[Value, Axes], value: Value) -> Axes:
    """Gives the units of a value; those of a literal are new, and may not be cut.

    Args:
      units: the units.
      axes: the units of values.
      value: one of them, or a literal.

    Returns:
      Its units by axis.

    Example:
      >>> read(Units(), {}, Literal(2.0))
      ()
    """
    if isinstance(value, Literal):
        return tuple(units.fixed(size, "a literal") for size in value.shape)
    return axes[value]


def couple(
    units: Units, op: Op, body: Graph, ins: Sequence[Axes], axes: dict[Value, Axes], run: Run
) -> list[Axes]:
    """Ties positions of a scan's operands, its body's values and its results together.

    An axis of the carry holds zeros at cut positions if it starts so and stays so. That it stays is
    assumed, and the body run again without what turned out to be wrong.

    Args:
      units: the units.
      op: the scan.
      body: its body.
      ins: the units of its operands.
      axes: the units of values; those of the body's are added.
      run: runs the rules.

    Returns:
      The units of its results.

    Example:
      >>> from compressjax.graph.channels import couple as couple_graph
      >>> from compressjax.graph.trace import trace
      >>> fn = lambda v, x: jax.lax.scan(lambda c, w: (c @ w, None), x @ v['a'], v['w'])[0]
      >>> graph = trace(fn, {'a': np.ones((3, 2)), 'w': np.ones((4, 2, 2))}, np.ones((1, 3)))
      >>> channels = couple_graph(graph, {}, hold_outputs=False)
      >>> a, w = (channels.axes[graph.variables[path]] for path in 'aw')
      >>> [int(channels.units.frozen(axis).sum()) for axis in w], bool((a[1] == w[2]).all())
      ([4, 0, 0], True)
    """
    outer, inner = parts(op, ins), parts(op, body.inputs.values())
    for stacked in outer.xs:
        units.freeze(stacked[0], f"{op.name}: the steps of a loop", plain=True)
    axes.update({value: fixed.sources(units, value) for value in body.constants})
    axes.update(zip(inner.consts, outer.consts, strict=True))
    axes.update(zip(inner.xs, (stacked[1:] for stacked in outer.xs), strict=True))
    starts = [axis for start in outer.carry for axis in start]
    zero = [units.rest(axis) == ZERO for axis in starts]
    while True:
        enter = (
            units.join([axis], np.where(is_zero, ZERO, UNKNOWN))
            for axis, is_zero in zip(starts, zero, strict=True)
        )
        for value in inner.carry:
            axes[value] = tuple(itertools.islice(enter, len(value.shape)))
        run(units, body.ops, axes)
        outs = [read(units, axes, value) for value in body.outputs]
        leave = [axis for end in outs[: len(inner.carry)] for axis in end]
        stays = [
            bool((~is_zero | (units.rest(axis) == ZERO) | units.frozen(axis)).all())
            for axis, is_zero in zip(leave, zero, strict=True)
        ]
        if all(stays):
            break
        zero = [is_zero & stay for is_zero, stay in zip(zero, stays, strict=True)]
    carried = [
        tuple(units.join(pair) for pair in zip(start, end, strict=True))
        for start, end in zip(outer.carry, outs, strict=False)
    ]
    steps = units.fixed(op.params["length"], f"{op.name}: the steps of a loop")
    return [*carried, *((steps, *out) for out in outs[len(carried) :])]


def on_variables(units: Units, op: Op, body: Graph, axes: dict[Value, Axes]) -> None:
    """Finds what goes into a scan's body that depends on variables alone, in every step.

    Args:
      units: the units.
      op: the scan.
      body: its body.
      axes: the units of values that depend on variables alone; those of the body's inputs and
        constants are added.

    Example:
      >>> from compressjax.graph.trace import trace
      >>> fn = lambda v, x: jax.lax.scan(lambda c, w: (c @ w, None), x, v)[0]
      >>> graph = trace(fn, np.ones((4, 2, 2)), np.ones((1, 2)))
      >>> axes = {graph.variables['']: (np.arange(4), np.arange(4, 6), np.arange(6, 8))}
      >>> (op,) = graph.ops
      >>> on_variables(Units(), op, op.body, axes)
      >>> [value in axes for value in op.body.inputs.values()]
      [False, True]
    """
    pairs = tuple(zip(body.inputs.values(), op.inputs, strict=True))
    inner = parts(op, body.inputs.values())
    known = {mine for mine, value in pairs if isinstance(value, Literal) or value in axes}
    while True:
        found = follow(body.ops, (*known, *body.constants))
        ends = zip(inner.carry, body.outputs, strict=False)
        stays = {mine for mine, end in ends if isinstance(end, Literal) or end in found}
        if not (lost := known.intersection(inner.carry) - stays):
            break
        known -= lost
    for mine, value in pairs:
        if mine in known:
            outer = read(units, axes, value)
            axes[mine] = outer[1:] if mine in inner.xs else outer
    for value in body.constants:
        axes[value] = tuple(units.fresh(size) for size in value.shape)


def narrow(
    op: Op,
    inputs: Sequence[Any],
    body: Graph,
    step: Callable[[Mapping[Value, Any]], Sequence[Any]],
) -> Sequence[Any]:
    """Runs a scan whose body has become another one.

    A body of which a part was checkpointed is checkpointed as a whole.

    Args:
      op: the scan.
      inputs: its operands.
      body: its body, as it was.
      step: what the body has become: from the arrays of its inputs to those of its outputs.

    Returns:
      The scan's results.

    Example:
      >>> from compressjax.graph.trace import trace
      >>> fn = lambda v, x: jax.lax.scan(lambda c, w: (c * w, c), x, v)
      >>> (op,) = trace(fn, np.ones((3, 5)), np.ones(5)).ops
      >>> c, w = op.body.inputs.values()
      >>> step = lambda known: (known[c] * known[w], known[c])
      >>> last, all_ = narrow(op, (jnp.ones(2), 2 * jnp.ones((3, 2))), op.body, step)
      >>> last.tolist(), all_.shape
      ([8.0, 8.0], (3, 2))
    """
    given, starts = parts(op, inputs), parts(op, op.inputs).carry
    carry = [
        jnp.asarray(x, value.dtype) if isinstance(value, Literal) else x
        for x, value in zip(given.carry, starts, strict=True)
    ]

    def run(carried: Sequence[Any], slices: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        arrays = (*given.consts, *carried, *slices)
        outputs = list(step(dict(zip(body.inputs.values(), arrays, strict=True))))
        return outputs[: len(carry)], outputs[len(carry) :]

    if body.checkpoint is not None:
        run = jax.checkpoint(run, policy=body.checkpoint["policy"])
    how = {name: op.params[name] for name in ("length", "reverse", "unroll")}
    last, collected = jax.lax.scan(run, carry, list(given.xs), **how)
    return [*last, *collected]
