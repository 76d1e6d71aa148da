"""What each primitive does to channels: one rule a primitive, coupling and narrowing side by side.

A rule's `couple` says which positions of the operands and results belong together; its `narrow`
says how to run the operation once positions are gone. A primitive without a rule couples nothing:
it freezes what it touches, so a missing rule costs compression, never correctness. `channels`
drives these rules over a graph; `narrow` evaluates with them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from compressjax.graph.channel_moves import MOVES, Couple, Rule, is_zero
from compressjax.graph.ir import Literal, Op
from compressjax.graph.units import UNKNOWN, ZERO, Axes, Units

# Operations that compute each position from the same position of each operand: those that give zero
# where all operands are zero,
_ZERO_OF_ZEROS = """
    abs add add_any asin asinh atan atanh bessel_i1e cbrt ceil complex conj convert_element_type
    copy erf erf_inv expm1 floor imag log1p max min name ne neg or real reduce_precision round sign
    sin sinh sqrt square stop_gradient sub tan tanh xor zeros_like
    celu elu gelu hard_silu hard_swish hard_tanh leaky_relu mish relu relu6 selu silu soft_sign
    swish
""".split()
# those that give zero where one operand is,
_ZERO_OF_ONE = "and mul".split()
# where the first one is,
_ZERO_OF_FIRST = "div rem".split()
# and the others, some of which are looked at more closely.
_ANYTHING = """
    acos acosh atan2 bessel_i0e clamp clz cos cosh digamma eq erfc exp exp2 ge gt igamma igammac
    integer_pow is_finite le lgamma log logistic lt mulhi nextafter not polygamma population_count
    pow regularized_incomplete_beta rsqrt select_n shift_left shift_right_arithmetic
    shift_right_logical zeta
    hard_sigmoid log1mexp log_sigmoid sigmoid softplus sparse_plus sparse_sigmoid squareplus
""".split()
ELEMENTWISE = frozenset([*_ZERO_OF_ZEROS, *_ZERO_OF_ONE, *_ZERO_OF_FIRST, *_ANYTHING])


def without_rule(units: Units, op: Op, ins: Sequence[Axes]) -> Sequence[Axes]:
    """Freezes everything an operation touches.

    Args:
      units: the units.
      op: the operation.
      ins: the units of its operands.

    Returns:
      Frozen units for its results.

    Example:
      >>> import jax
      >>> from compressjax.graph.trace import trace
      >>> op = trace(lambda v, x: jax.lax.linalg.cholesky(x), {}, jax.numpy.eye(2)).ops[0]
      >>> units = Units()
      >>> ins = [(units.fresh(2), units.fresh(2))]
      >>> _ = without_rule(units, op, ins)
      >>> bool(units.frozen(ins[0][0]).all())
      True
    """
    why = f"{op.name}: no rule for {op.kind}"
    for axes in ins:
        for axis in axes:
            units.freeze(axis, why)
    outs = [tuple(units.fresh(size) for size in value.shape) for value in op.outputs]
    for axis in (axis for axes in outs for axis in axes):
        units.freeze(axis, why)
    return outs


def _elementwise(units: Units, op: Op, ins: Sequence[Axes]) -> Sequence[Axes]:
    out = []
    for i, size in enumerate(op.out_shape):
        axes = [operand[i] if operand else None for operand in ins]
        for j, axis in enumerate(axes):
            if axis is not None and len(axis) != size:
                units.freeze(axis, f"{op.name}: one position is spread over {size}", plain=True)
                axes[j] = None
        rest = _rest_of(units, op, axes, i)
        out.append(units.join([axis for axis in axes if axis is not None], rest))
    return [tuple(out)]


def _rest_of(units: Units, op: Op, axes: Sequence[np.ndarray | None], i: int) -> np.ndarray:
    """What an elementwise result holds at cut positions of axis i; some operands have no such."""
    size = op.out_shape[i]
    zeros, known = [], []
    for value, axis in zip(op.inputs, axes, strict=True):
        if axis is None:
            zeros.append(np.full(size, is_zero(value)))
            continue
        rest, stays = units.rest(axis), units.frozen(axis)
        zeros.append(rest == ZERO)
        marks = (ZERO, units.label((value, i)))
        known.append(any(((rest == mark) | stays).all() for mark in marks))
    alike = units.label((op.outputs[0], i)) if all(known) else UNKNOWN
    return np.where(_zeros_of(op, zeros), ZERO, alike)


def _zeros_of(op: Op, zeros: Sequence[np.ndarray]) -> np.ndarray:
    """Where an elementwise result is zero, given where its operands are."""
    if op.kind in _ZERO_OF_ONE:
        return np.logical_or.reduce(zeros)
    if op.kind in _ZERO_OF_ZEROS:
        return np.logical_and.reduce(zeros)
    if op.kind in _ZERO_OF_FIRST or (op.kind == "integer_pow" and op.params["y"] > 0):
        return zeros[0]
    if op.kind == "select_n":  # whichever operand is picked
        return np.logical_and.reduce(zeros[1:])
    if op.kind == "clamp":
        low, _, high = op.inputs
        if isinstance(low, Literal) and isinstance(high, Literal):
            return zeros[1] & bool(np.all(low.value <= 0) and np.all(high.value >= 0))
    return np.zeros_like(zeros[0])


def _bitcast(units: Units, op: Op, ins: Sequence[Axes]) -> Sequence[Axes]:
    same = len(ins[0]) == len(op.out_shape)  # otherwise bytes become an axis
    return _elementwise(units, op, ins) if same else without_rule(units, op, ins)


def _identity(units: Units, op: Op, ins: Sequence[Axes]) -> Sequence[Axes]:
    del units, op
    return ins


def _source(units: Units, op: Op, ins: Sequence[Axes]) -> Sequence[Axes]:
    """Results made anew (iota, random bits): the kept positions are taken of the whole."""
    for axis in (axis for axes in ins for axis in axes):
        units.freeze(axis, f"{op.name}: read whole by {op.kind}", plain=True)
    return [tuple(units.fresh(size) for size in value.shape) for value in op.outputs]


def _conv(units: Units, op: Op, ins: Sequence[Axes]) -> Sequence[Axes]:
    numbers, groups = op.params["dimension_numbers"], op.params["feature_group_count"]
    if op.params["batch_group_count"] != 1:
        return without_rule(units, op, ins)
    lhs, rhs = ins
    for i in numbers.lhs_spec[2:]:
        _freeze_window(units, op, lhs[i])
    for i in numbers.rhs_spec[2:]:
        units.freeze(rhs[i], f"{op.name}: a window", plain=True)
    features, inputs = lhs[numbers.lhs_spec[1]], rhs[numbers.rhs_spec[1]]
    outputs = rhs[numbers.rhs_spec[0]]
    if groups == 1:
        _contract(units, op, features, inputs)
    elif len(inputs) == 1:  # depthwise: each input channel has outputs of its own
        units.freeze(inputs, f"{op.name}: depthwise", plain=True)
        units.tie(features[:, None], outputs.reshape(groups, -1))
    else:  # every group has to keep the same number: the same positions of each go
        for part in features.reshape(groups, -1):
            _contract(units, op, part, inputs)
        per_group = outputs.reshape(groups, -1)
        units.tie(per_group[0], per_group)
    out: list[Any] = [None] * len(lhs)
    out[numbers.out_spec[0]] = lhs[numbers.lhs_spec[0]]
    out[numbers.out_spec[1]] = outputs
    for i in numbers.out_spec[2:]:
        out[i] = units.fixed(op.out_shape[i], f"{op.name}: positions of windows")
    return [tuple(out)]


def _contract(units: Units, op: Op, left: np.ndarray, right: np.ndarray) -> None:
    """Ties two axes that are summed over; what is cut of them must not count in the sum."""
    units.tie(left, right)
    counts = (units.rest(left) != ZERO) & (units.rest(right) != ZERO)
    units.freeze(left[counts & ~units.frozen(left)], f"{op.name}: neither factor would be zero")


def _freeze_window(units: Units, op: Op, axis: np.ndarray) -> None:
    """An axis that may still be cut is no axis of an image: these are windows of channels."""
    units.freeze(axis[~units.frozen(axis)], f"{op.name}: a window goes over the channels")


def _narrow_conv(
    op: Op, inputs: Sequence[Any], kin: Sequence[Axes], kout: Sequence[Axes]
) -> Sequence[Any]:
    del kin, kout
    numbers = op.params["dimension_numbers"]
    groups = inputs[0].shape[numbers.lhs_spec[1]] // inputs[1].shape[numbers.rhs_spec[1]]
    return op.bind({**op.params, "feature_group_count": groups}, *inputs)


def _dot(units: Units, op: Op, ins: Sequence[Axes]) -> Sequence[Axes]:
    (lhs, rhs), ((lc, rc), (lb, rb)) = ins, op.params["dimension_numbers"]
    for i, j in zip(lc, rc, strict=True):
        _contract(units, op, lhs[i], rhs[j])
    batch = []
    for i, j in zip(lb, rb, strict=True):
        zero = (units.rest(lhs[i]) == ZERO) | (units.rest(rhs[j]) == ZERO)
        batch.append(units.join([lhs[i], rhs[j]], np.where(zero, ZERO, UNKNOWN)))
    free = [axis for i, axis in enumerate(lhs) if i not in (*lc, *lb)]
    free += [axis for i, axis in enumerate(rhs) if i not in (*rc, *rb)]
    return [(*batch, *free)]


def _reduce(units: Units, op: Op, ins: Sequence[Axes]) -> Sequence[Axes]:
    reduced = op.params["axes"]
    for axes in ins:
        for i in reduced:
            units.freeze(axes[i], f"{op.name}: {op.kind} goes over the channels")
    return [tuple(axis for i, axis in enumerate(ins[0]) if i not in reduced)] * len(op.outputs)


def _sum(units: Units, op: Op, ins: Sequence[Axes]) -> Sequence[Axes]:
    """Cut positions count as what they hold: nothing where that is zero, else see `narrow`.

    Of several axes whose cut positions would count, the longest stays free.
    """
    (axes,), reduced = ins, op.params["axes"]
    counted = False
    for i in sorted(reduced, key=lambda i: (len(axes[i]), i), reverse=True):
        open_ = ~units.frozen(axes[i])
        rest = units.rest(axes[i])
        if not (open_ & (rest != ZERO)).any():
            continue
        alike = (rest == units.label((op.inputs[0], i))) | (rest == ZERO)
        if counted or (open_ & ~alike).any() or (open_ & (rest == ZERO)).any():
            units.freeze(axes[i], f"{op.name}: {op.kind} goes over the channels")
        else:
            counted = True
    return [tuple(axis for i, axis in enumerate(axes) if i not in reduced)]


def _along(name: str, why: str, *, zero_of_zeros: bool = True) -> Couple:
    """A rule for operations that mix the positions of one axis, and leave the others alone."""

    def couple(units: Units, op: Op, ins: Sequence[Axes]) -> Sequence[Axes]:
        mixed = op.params[name] % len(ins[0])
        for axes in ins:
            units.freeze(axes[mixed], f"{op.name}: {why}")
        joined = tuple(units.join(axes) for axes in zip(*ins, strict=True))
        if not zero_of_zeros:
            joined = tuple(units.join([axis], np.full(len(axis), UNKNOWN)) for axis in joined)
        return [joined] * len(op.outputs)

    return couple


def _top_k(units: Units, op: Op, ins: Sequence[Axes]) -> Sequence[Axes]:
    along = op.params["axis"] % len(ins[0])
    units.freeze(ins[0][along], f"{op.name}: picks the largest channels")
    picked = units.fixed(op.out_shape[along], f"{op.name}: the largest channels", plain=False)
    out = tuple(picked if i == along else axis for i, axis in enumerate(ins[0]))
    places = tuple(units.join([axis], np.full(len(axis), UNKNOWN)) for axis in out)
    return [out, places]


def _window(units: Units, op: Op, ins: Sequence[Axes]) -> Sequence[Axes]:
    settings = [
        op.params[name]
        for name in ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
    ]
    out = []
    for i, axis in enumerate(ins[0]):
        if all(setting[i] == 1 for setting in settings) and op.params["padding"][i] == (0, 0):
            out.append(axis)
            continue
        _freeze_window(units, op, axis)
        out.append(units.fixed(op.out_shape[i], f"{op.name}: positions of windows"))
    return [tuple(out)]


RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, Rule(_elementwise)),
    **MOVES,
    **dict.fromkeys("device_put optimization_barrier sharding_constraint".split(), Rule(_identity)),
    "bitcast_convert_type": Rule(_bitcast),
    "iota": Rule(_source),
    "random_bits": Rule(_source),
    "conv_general_dilated": Rule(_conv, _narrow_conv),
    "dot_general": Rule(_dot),
    "reduce_sum": Rule(_sum),
    **dict.fromkeys(
        """reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax
        argmin""".split(),
        Rule(_reduce),
    ),
    **dict.fromkeys(
        "cumsum cumprod cummax cummin".split(),
        Rule(_along("axis", "accumulates over the channels")),
    ),
    "cumlogsumexp": Rule(_along("axis", "accumulates over the channels", zero_of_zeros=False)),
    "top_k": Rule(_top_k),
    "sort": Rule(_along("dimension", "sorts the channels")),
    **dict.fromkeys("reduce_window_max reduce_window_min reduce_window_sum".split(), Rule(_window)),
}
