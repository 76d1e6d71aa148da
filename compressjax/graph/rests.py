"""What values hold at positions that are cut, where that is not zero but known.

Sums over channels have to count it (see `narrow`). It is known of constants, of what is the same at
all positions, and of all that is computed from those position by position: along an axis that an
operation only carries from an operand to its result, the rest of the result is what the operation
makes of the rests of its operands. `units` has the names of such rests, labels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from compressjax.graph.channel_moves import reshape_blocks
from compressjax.graph.channel_rules import ELEMENTWISE, RULES
from compressjax.graph.ir import Op, Value
from compressjax.graph.units import ZERO, Axes, Units

Place = tuple[int, int]  # an operand's number and one of its axes
Rest = tuple[Value, int]  # a value and one of its axes


def origins(op: Op, axis: int) -> list[Place] | None:
    """Tells where an axis of a result comes from, if the operation only carries it along.

    Args:
      op: the operation.
      axis: an axis of its first result.

    Returns:
      The operands' axes that become this one, position by position; none of them for an axis along
      which the result is the same everywhere; None if the operation does more to it.

    Example:
      >>> from compressjax.graph.trace import trace
      >>> fn = lambda v, x: jnp.swapaxes(x, 0, 1) @ v
      >>> transpose, dot = trace(fn, np.ones((4, 3)), np.ones((4, 2))).ops
      >>> origins(transpose, 0), origins(dot, 0), origins(dot, 1)
      ([(0, 1)], [(0, 0)], [(1, 1)])
    """
    shapes, params = [value.shape for value in op.inputs], op.params
    size = op.out_shape[axis]
    if op.kind in ELEMENTWISE:
        return [(k, axis) for k, shape in enumerate(shapes) if shape and shape[axis] == size]
    if op.kind == "concatenate":
        return [(k, axis) for k in range(len(shapes))] if params["dimension"] != axis else None
    if op.kind == "slice":
        return [(0, axis)] if shapes[0][axis] == size else None
    if op.kind == "broadcast_in_dim":
        found = [(0, i) for i, to in enumerate(params["broadcast_dimensions"]) if to == axis]
        return None if any(shapes[0][i] != size for _, i in found) else found
    carried: list[Place | None] = []
    if op.kind == "transpose":
        carried = [(0, i) for i in params["permutation"]]
    elif op.kind == "reduce_sum":
        carried = [(0, i) for i in range(len(shapes[0])) if i not in params["axes"]]
    elif op.kind == "squeeze":
        carried = [(0, i) for i in range(len(shapes[0])) if i not in params["dimensions"]]
    elif op.kind == "reshape" and params["dimensions"] is None and 0 not in shapes[0]:
        carried = [None] * len(op.out_shape)
        for left, right in reshape_blocks(shapes[0], op.out_shape):
            if len(left) == len(right) == 1:
                carried[right[0]] = (0, left[0])
    elif op.kind == "dot_general":
        contracting, batch = params["dimension_numbers"]
        carried = [None] * len(batch[0])
        for k, shape in enumerate(shapes):
            taken = (*contracting[k], *batch[k])
            carried += [(k, i) for i in range(len(shape)) if i not in taken]
    place = carried[axis] if carried else None
    return None if place is None else [place]


def relabel(units: Units, op: Op, ins: Sequence[Axes], outs: Sequence[Axes]) -> Sequence[Axes]:
    """Labels the axes of results whose rests are known from those of the operands.

    Args:
      units: the units.
      op: the operation, not elementwise.
      ins: the units of its operands.
      outs: the units of its results.

    Returns:
      The units of its results, labelled.

    Example:
      >>> from compressjax.graph.trace import trace
      >>> (op,) = trace(lambda v, x: jnp.transpose(x), {}, np.ones((3, 2))).ops
      >>> units = Units()
      >>> rows, columns = units.fresh(3), units.fresh(2, units.label((op.inputs[0], 1)))
      >>> ((first, _),) = relabel(units, op, [(rows, columns)], [(columns, rows)])
      >>> bool((units.rest(first) == units.label((op.outputs[0], 0))).all())
      True
    """
    if not any((units.rest(axis) > ZERO).any() for axes in ins for axis in axes):
        return outs
    return [
        tuple(_labelled(units, op, ins, value, i, axis) for i, axis in enumerate(axes))
        for value, axes in zip(op.outputs, outs, strict=True)
    ]


def _labelled(
    units: Units, op: Op, ins: Sequence[Axes], out: Value, i: int, axis: np.ndarray
) -> np.ndarray:
    places = origins(op, i)
    if not places or units.frozen(axis).all():
        return axis
    if op.kind == "reduce_sum" and any(
        (~units.frozen(summed) & (units.rest(summed) != ZERO)).any()
        for summed in (ins[0][j] for j in op.params["axes"])
    ):
        return axis
    zeros, known = [], []
    for k, j in places:
        rest, stays = units.rest(ins[k][j]), units.frozen(ins[k][j])
        label = units.label((op.inputs[k], j))
        zeros.append(rest == ZERO)
        known.append(any(((rest == mark) | stays).all() for mark in (ZERO, label)))
    if not all(known):
        return axis
    zero = np.logical_and.reduce(zeros)
    return axis if zero.all() else units.join([axis], np.where(zero, ZERO, units.label((out, i))))


def needed(
    ops: Sequence[Op], zero: Mapping[Value, Axes], kept: Mapping[Value, Axes]
) -> dict[Value, list[int]]:
    """Finds the axes whose rests a sum over channels needs.

    Args:
      ops: the operations that run.
      zero: for each value, by axis, whether it is zero at a position that is cut.
      kept: for each value, one boolean mask an axis, True = kept.

    Returns:
      For each value, axes along which something is cut that is not zero.
    """
    found: dict[Value, list[int]] = {}
    for op in reversed(ops):
        wanted = [
            place for axis in found.get(op.outputs[0], ()) for place in origins(op, axis) or ()
        ]
        wanted += [(0, axis) for axis in op.params["axes"]] if op.kind == "reduce_sum" else []
        for k, axis in wanted:
            value = op.inputs[k]
            axes = found.setdefault(value, [])
            if axis not in axes and (~kept[value][axis] & ~zero[value][axis]).any():
                axes.append(axis)
    return {value: axes for value, axes in found.items() if axes}


def rest(
    op: Op,
    axis: int,
    inputs: Sequence[Any],
    rests: Mapping[Rest, Any],
    kept: Mapping[Value, Axes],
) -> Any:
    """Computes what the result of an operation holds at the cut positions of an axis.

    Args:
      op: the operation.
      axis: the axis of its first result.
      inputs: its operands, at kept positions.
      rests: those of its operands; where there is none, they are zero.
      kept: for each value, one boolean mask an axis, True = kept.

    Returns:
      The result at the cut positions of the axis, or at one of them where it is the same at all.
    """
    places = dict(origins(op, axis) or ())
    known = {k: rests[op.inputs[k], i] for k, i in places.items() if (op.inputs[k], i) in rests}
    size = max((x.shape[places[k]] for k, x in known.items()), default=1)
    cut = ~kept[op.outputs[0]][axis]
    which = cut & (np.cumsum(cut) <= size)
    found, kin = [], []
    for k, (value, x) in enumerate(zip(op.inputs, inputs, strict=True)):
        masks = list(kept[value]) if value in kept else [np.ones(n, bool) for n in value.shape]
        if k in places:
            i = places[k]
            masks[i] = which
            x = known.get(k, jnp.zeros((), x.dtype))
            x = jnp.broadcast_to(x, [int(mask.sum()) for mask in masks])
        found.append(x)
        kin.append(tuple(masks))
    kout = [which if i == axis else mask for i, mask in enumerate(kept[op.outputs[0]])]
    own = RULES[op.kind].narrow
    if own is not None:
        return own(op, found, kin, [tuple(kout)])[0]
    return op.bind(op.params, *found)[0]
