"""Channel rules of the primitives that move positions without computing: reshape, slice, gather.

Each rule carries units from where they were to where they go. `channel_rules` holds the rules of
primitives that compute, and the table of both.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from compressjax.graph.ir import Literal, Op, Value
from compressjax.graph.reorder import take_positions
from compressjax.graph.units import UNKNOWN, ZERO, Axes, Units, kept_shape

Couple = Callable[[Units, Op, Sequence[Axes]], Sequence[Axes]]
Narrow = Callable[[Op, Sequence[Any], Sequence[Axes], Sequence[Axes]], Sequence[Any]]


class Rule(NamedTuple):
    """How one primitive treats channels.

    Attributes:
      couple: `couple(units, op, operand_units) -> result_units`.
      narrow: `narrow(op, operands, operand_keeps, result_keeps) -> results`; None if the operation
        runs unchanged on smaller operands.
    """

    couple: Couple
    narrow: Narrow | None = None


def is_zero(value: Value) -> bool:
    """Tells whether a value is the number zero, as the function wrote it down."""
    return isinstance(value, Literal) and not np.any(value.value)


def _transpose(units: Units, op: Op, ins: Sequence[Axes]) -> Sequence[Axes]:
    del units
    return [tuple(ins[0][i] for i in op.params["permutation"])]


def _squeeze(units: Units, op: Op, ins: Sequence[Axes]) -> Sequence[Axes]:
    gone = op.params["dimensions"]
    for i in gone:
        units.freeze(ins[0][i], f"{op.name}: the axis is dropped", plain=True)
    return [tuple(axis for i, axis in enumerate(ins[0]) if i not in gone)]


def _rev(units: Units, op: Op, ins: Sequence[Axes]) -> Sequence[Axes]:
    del units
    turned = op.params["dimensions"]
    return [tuple(axis[::-1] if i in turned else axis for i, axis in enumerate(ins[0]))]


def _broadcast(units: Units, op: Op, ins: Sequence[Axes]) -> Sequence[Axes]:
    out: list[Any] = [None] * len(op.out_shape)
    for axis, i in zip(ins[0], op.params["broadcast_dimensions"], strict=True):
        if len(axis) == op.out_shape[i]:
            out[i] = axis
        else:
            units.freeze(axis, f"{op.name}: one position is spread over many", plain=True)
    for i, size in enumerate(op.out_shape):
        if out[i] is None:  # the same at each of the new positions
            alike = ZERO if is_zero(op.inputs[0]) else units.label((op.outputs[0], i))
            out[i] = units.fresh(size, alike)
    return [tuple(out)]


def _narrow_broadcast(
    op: Op, inputs: Sequence[Any], kin: Sequence[Axes], kout: Sequence[Axes]
) -> Sequence[Any]:
    del kin
    return op.bind({**op.params, "shape": kept_shape(kout[0])}, *inputs)


def _concatenate(units: Units, op: Op, ins: Sequence[Axes]) -> Sequence[Axes]:
    joined = op.params["dimension"]
    return [
        tuple(
            np.concatenate(axes) if i == joined else units.join(axes)
            for i, axes in enumerate(zip(*ins, strict=True))
        )
    ]


def _stack(units: Units, op: Op, ins: Sequence[Axes]) -> Sequence[Axes]:
    new = op.params["axis"]
    axis = units.fixed(len(ins), f"{op.name}: the axis along which arrays are stacked")
    others = [units.join(axes) for axes in zip(*ins, strict=True)]
    return [(*others[:new], axis, *others[new:])]


def _unstack(units: Units, op: Op, ins: Sequence[Axes]) -> Sequence[Axes]:
    gone = op.params["axis"]
    units.freeze(ins[0][gone], f"{op.name}: taken apart along the channels")
    return [(*ins[0][:gone], *ins[0][gone + 1 :])] * len(op.outputs)


def _tile(units: Units, op: Op, ins: Sequence[Axes]) -> Sequence[Axes]:
    del units
    return [tuple(np.tile(axis, n) for axis, n in zip(ins[0], op.params["reps"], strict=True))]


def _split(units: Units, op: Op, ins: Sequence[Axes]) -> Sequence[Axes]:
    del units
    cut = op.params["axis"]
    parts = np.split(ins[0][cut], np.cumsum(op.params["sizes"])[:-1])
    return [tuple(part if i == cut else axis for i, axis in enumerate(ins[0])) for part in parts]


def _narrow_split(
    op: Op, inputs: Sequence[Any], kin: Sequence[Axes], kout: Sequence[Axes]
) -> Sequence[Any]:
    del kin
    sizes = tuple(kept_shape(keeps)[op.params["axis"]] for keeps in kout)
    return op.bind({**op.params, "sizes": sizes}, *inputs)


def _slice(units: Units, op: Op, ins: Sequence[Axes]) -> Sequence[Axes]:
    del units
    return [tuple(axis[at] for axis, at in zip(ins[0], _slices(op, len(ins[0])), strict=True))]


def _slices(op: Op, rank: int) -> list[slice]:
    strides = op.params["strides"] or (1,) * rank
    bounds = zip(op.params["start_indices"], op.params["limit_indices"], strides, strict=True)
    return [slice(*bound) for bound in bounds]


def _narrow_slice(
    op: Op, inputs: Sequence[Any], kin: Sequence[Axes], kout: Sequence[Axes]
) -> Sequence[Any]:
    del kout
    array, bounds = inputs[0], []
    for i, (keep, at) in enumerate(zip(kin[0], _slices(op, len(kin[0])), strict=True)):
        sliced = np.zeros(len(keep), bool)
        sliced[at] = True
        places = np.flatnonzero(sliced[keep])  # the slice's positions among those that are kept
        steps = np.unique(np.diff(places))
        if not places.size:
            bounds.append((0, 0, 1))
        elif len(steps) > 1:
            array = take_positions(array, places, i)
            bounds.append((0, len(places), 1))
        else:
            bounds.append((int(places[0]), int(places[-1]) + 1, int(steps[0]) if len(steps) else 1))
    starts, limits, strides = zip(*bounds, strict=True)
    new = {"start_indices": starts, "limit_indices": limits, "strides": strides}
    return op.bind({**op.params, **new}, array)


def _take(units: Units, op: Op, ins: Sequence[Axes]) -> Sequence[Axes]:
    del units
    places, along = op.params["positions"], op.params["axis"]
    return [tuple(axis[places] if i == along else axis for i, axis in enumerate(ins[0]))]


def _narrow_take(
    op: Op, inputs: Sequence[Any], kin: Sequence[Axes], kout: Sequence[Axes]
) -> Sequence[Any]:
    along = op.params["axis"]
    keep_in, keep_out = kin[0][along], kout[0][along]
    places = (np.cumsum(keep_in) - 1)[op.params["positions"][keep_out]]
    return [take_positions(inputs[0], places, along)]


def _select(units: Units, op: Op, ins: Sequence[Axes]) -> Sequence[Axes]:
    """What is read may be less than what is there; that it is not more, `Channels.reads` says."""
    chosen = op.params["axis"]
    fresh = units.fresh(len(ins[0][chosen]))
    return [tuple(fresh if i == chosen else axis for i, axis in enumerate(ins[0]))]


def _narrow_select(
    op: Op, inputs: Sequence[Any], kin: Sequence[Axes], kout: Sequence[Axes]
) -> Sequence[Any]:
    axis = op.params["axis"]
    there, read = kin[0][axis], kout[0][axis]
    if read.sum() == there.sum():
        return inputs
    return [take_positions(inputs[0], np.flatnonzero(read[there]), axis)]


def _pad(units: Units, op: Op, ins: Sequence[Axes]) -> Sequence[Axes]:
    out = []
    rest = ZERO if is_zero(op.inputs[1]) else UNKNOWN
    for i, (low, high, interior) in enumerate(op.params["padding_config"]):
        axis = ins[0][i]
        if rest != ZERO:  # the padding of other axes reaches cut positions of this one
            axis = units.join([axis], np.full(len(axis), UNKNOWN))
        if low < 0 or high < 0 or interior:
            units.freeze(axis, f"{op.name}: padded between positions, or cropped", plain=True)
            axis = units.fixed(op.out_shape[i], f"{op.name}: padded positions")
        elif low or high:
            axis = np.concatenate([units.fresh(low, rest), axis, units.fresh(high, rest)])
        out.append(axis)
    return [tuple(out)]


def _narrow_pad(
    op: Op, inputs: Sequence[Any], kin: Sequence[Axes], kout: Sequence[Axes]
) -> Sequence[Any]:
    del kin
    config = []
    for keep, (low, high, interior) in zip(kout[0], op.params["padding_config"], strict=True):
        if low > 0 or high > 0:
            low, high = int(keep[:low].sum()), int(keep[len(keep) - high :].sum())
        config.append((low, high, interior))
    return op.bind({**op.params, "padding_config": tuple(config)}, *inputs)


def reshape_blocks(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Splits a reshape into the smallest blocks of axes that are reshaped into each other.

    Args:
      old: the shape before; no axis has length 0.
      new: the shape after.

    Returns:
      For each block, its axes before and its axes after; axes of length 1 are in no block.

    Example:
      >>> reshape_blocks((2, 1, 6, 5), (2, 3, 2, 5))
      [([0], [0]), ([2], [1, 2]), ([3], [3])]
    """
    before = [i for i, size in enumerate(old) if size != 1]
    after = [i for i, size in enumerate(new) if size != 1]
    blocks = []
    while before:
        left, right = [before.pop(0)], [after.pop(0)]
        while (a := math.prod(old[i] for i in left)) != (b := math.prod(new[i] for i in right)):
            if a < b:
                left.append(before.pop(0))
            else:
                right.append(after.pop(0))
        blocks.append((left, right))
    return blocks


def _reshape(units: Units, op: Op, ins: Sequence[Axes]) -> Sequence[Axes]:
    old, new = tuple(len(axis) for axis in ins[0]), op.out_shape
    if 0 in old or op.params["dimensions"] is not None:
        for axis in ins[0]:
            units.freeze(axis, f"{op.name}: an empty or transposing reshape")
        return [tuple(units.fixed(size, f"{op.name}: an odd reshape") for size in new)]
    out: list[Any] = [None] * len(new)
    blocks = reshape_blocks(old, new)
    for left, right in blocks:
        merged = _merge(units, op, [ins[0][i] for i in left])
        parts = _unmerge(units, op, merged, [new[i] for i in right])
        for i, axis in zip(right, parts, strict=True):
            out[i] = axis
    for axis in (axis for axis, size in zip(ins[0], old, strict=True) if size == 1):
        units.freeze(axis, f"{op.name}: the axis is dropped", plain=True)
    return [tuple(units.fresh(1) if axis is None else axis for axis in out)]


def _merge(units: Units, op: Op, axes: Sequence[np.ndarray]) -> np.ndarray:
    """Units of the axis that several become; only one of them, the longest, can stay free."""
    if len(axes) == 1:
        return axes[0]
    free = [i for i, axis in enumerate(axes) if not units.frozen(axis).all()]
    chosen = max(free, key=lambda i: (len(axes[i]), i), default=None)
    for i in free:
        if i != chosen:
            units.freeze(axes[i], f"{op.name}: merged with a longer axis, which is cut instead")
    shape = [len(axis) for axis in axes]
    if chosen is None:
        return units.fixed(math.prod(shape), f"{op.name}: merged from axes that stay")
    aligned = axes[chosen].reshape([-1 if i == chosen else 1 for i in range(len(axes))])
    return np.broadcast_to(aligned, shape).reshape(-1)


def _unmerge(units: Units, op: Op, axis: np.ndarray, sizes: Sequence[int]) -> Sequence[np.ndarray]:
    """Units of the axes that one becomes; all but one, the one that ties least, stay whole."""
    if len(sizes) == 1:
        return [axis]
    if units.frozen(axis).all():
        return [units.fixed(size, f"{op.name}: part of an axis that stays") for size in sizes]
    grid = units.find(axis).reshape(sizes)
    rows = [np.moveaxis(grid, i, 0).reshape(size, -1) for i, size in enumerate(sizes)]
    chosen = max(
        range(len(sizes)),
        key=lambda i: (bool((rows[i] == rows[i][:, :1]).all()), sizes[i], i),
    )
    tied = np.moveaxis(axis.reshape(sizes), chosen, -1).reshape(-1, sizes[chosen])
    units.tie(tied[0], tied)
    zero = (units.rest(tied) == ZERO).all(0)
    out = [units.fixed(n, f"{op.name}: split from channels that are cut alike") for n in sizes]
    out[chosen] = units.join([tied[0]], np.where(zero, ZERO, UNKNOWN))
    return out


def _narrow_reshape(
    op: Op, inputs: Sequence[Any], kin: Sequence[Axes], kout: Sequence[Axes]
) -> Sequence[Any]:
    del kin
    return op.bind({**op.params, "new_sizes": kept_shape(kout[0])}, *inputs)


def _gather(units: Units, op: Op, ins: Sequence[Axes]) -> Sequence[Axes]:
    numbers, sizes = op.params["dimension_numbers"], op.params["slice_sizes"]
    operand, indices = ins
    out: list[Any] = [None] * len(op.out_shape)
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    windows = iter(numbers.offset_dims)
    for i, axis in enumerate(operand):
        to = None if i in gone else next(windows)
        if to is not None and sizes[i] == len(axis):  # whole slices can only start at 0
            out[to] = units.join([axis], np.full(len(axis), UNKNOWN)) if _fills(op) else axis
        else:
            units.freeze(axis, f"{op.name}: positions are picked by a gather")
    for axis in indices:
        units.freeze(axis, f"{op.name}: the indices of a gather", plain=True)
    why = f"{op.name}: positions are picked by a gather"
    return [
        tuple(
            units.fixed(size, why, plain=False) if axis is None else axis
            for axis, size in zip(out, op.out_shape, strict=True)
        )
    ]


def _fills(op: Op) -> bool:
    """Whether indices out of bounds read something else than zeros, or the nans that spread."""
    if op.params["mode"] != jax.lax.GatherScatterMode.FILL_OR_DROP:
        return False
    fill, dtype = op.params["fill_value"], op.outputs[0].dtype
    if fill is None:
        return not np.issubdtype(dtype, np.inexact)
    return not (fill == 0 or np.isnan(fill))


def _dynamic_slice(units: Units, op: Op, ins: Sequence[Axes]) -> Sequence[Axes]:
    out = []
    for axis, size in zip(ins[0], op.params["slice_sizes"], strict=True):
        if len(axis) != size:
            units.freeze(axis, f"{op.name}: sliced where the data says")
            axis = units.fixed(size, f"{op.name}: sliced where the data says", plain=False)
        out.append(axis)
    return [tuple(out)]


def _narrow_slice_sizes(
    op: Op, inputs: Sequence[Any], kin: Sequence[Axes], kout: Sequence[Axes]
) -> Sequence[Any]:
    del kout
    sizes = tuple(
        kept if size == len(keep) else size
        for size, keep, kept in zip(
            op.params["slice_sizes"], kin[0], kept_shape(kin[0]), strict=True
        )
    )
    return op.bind({**op.params, "slice_sizes": sizes}, *inputs)


def _dynamic_update_slice(units: Units, op: Op, ins: Sequence[Axes]) -> Sequence[Axes]:
    out = []
    for axis, part in zip(ins[0], ins[1], strict=True):
        if len(axis) == len(part):
            out.append(units.join([axis, part]))
            continue
        out.append(axis)
        for units_of in (axis, part):
            units.freeze(units_of, f"{op.name}: written where the data says")
    return [tuple(out)]


MOVES: dict[str, Rule] = {
    "transpose": Rule(_transpose),
    "squeeze": Rule(_squeeze),
    "rev": Rule(_rev),
    "broadcast_in_dim": Rule(_broadcast, _narrow_broadcast),
    "concatenate": Rule(_concatenate),
    "stack": Rule(_stack),
    "unstack": Rule(_unstack),
    "tile": Rule(_tile),
    "split": Rule(_split, _narrow_split),
    "slice": Rule(_slice, _narrow_slice),
    "take": Rule(_take, _narrow_take),
    "select": Rule(_select, _narrow_select),
    "pad": Rule(_pad, _narrow_pad),
    "reshape": Rule(_reshape, _narrow_reshape),
    "gather": Rule(_gather, _narrow_slice_sizes),
    "dynamic_slice": Rule(_dynamic_slice, _narrow_slice_sizes),
    "dynamic_update_slice": Rule(_dynamic_update_slice),
}
