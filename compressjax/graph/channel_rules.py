"""What each primitive does to channels: one rule a primitive, coupling and narrowing side by side.

A rule's `couple` says which positions of the operands and results belong together; its `narrow`
says how to run the operation once positions are gone. A primitive without a rule couples nothing:
it freezes what it touches, so a missing rule costs compression, never correctness. `channels`
drives these rules over a graph; `narrow` evaluates with them.
"""

from collections.abc import Sequence
from typing import Any

from compressjax.graph.channel_moves import MOVES, Couple, Rule
from compressjax.graph.ir import Op
from compressjax.graph.units import Axes, Units

# Operations that compute each position from the same position of each operand.
_ELEMENTWISE = """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil
    clamp clz complex conj convert_element_type copy cos cosh digamma div eq erf erf_inv erfc
    exp exp2 expm1 floor ge gt igamma igammac imag integer_pow is_finite le lgamma log log1p
    logistic lt max min mul mulhi name ne neg nextafter not or polygamma population_count pow
    real reduce_precision regularized_incomplete_beta rem round rsqrt select_n shift_left
    shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub tan
    tanh xor zeros_like zeta
    celu elu gelu hard_sigmoid hard_silu hard_swish hard_tanh leaky_relu log1mexp log_sigmoid
    mish relu relu6 selu sigmoid silu soft_sign softplus sparse_plus sparse_sigmoid squareplus
    swish
""".split()


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
        axis = None
        for axes in ins:
            if not axes:
                continue
            if len(axes[i]) != size:
                units.freeze(axes[i], f"{op.name}: one position is spread over {size}", plain=True)
            elif axis is None:
                axis = axes[i]
            else:
                units.tie(axis, axes[i])
        out.append(units.fresh(size) if axis is None else axis)
    return [tuple(out)]


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
    for axis in (*(lhs[i] for i in numbers.lhs_spec[2:]), *(rhs[i] for i in numbers.rhs_spec[2:])):
        units.freeze(axis, f"{op.name}: a window", plain=True)
    features, inputs = lhs[numbers.lhs_spec[1]], rhs[numbers.rhs_spec[1]]
    outputs = rhs[numbers.rhs_spec[0]]
    if groups == 1:
        units.tie(features, inputs)
    elif len(inputs) == 1:  # depthwise: each input channel has outputs of its own
        units.freeze(inputs, f"{op.name}: depthwise", plain=True)
        units.tie(features[:, None], outputs.reshape(groups, -1))
    else:  # every group has to keep the same number: the same positions of each go
        units.tie(inputs, features.reshape(groups, -1))
        per_group = outputs.reshape(groups, -1)
        units.tie(per_group[0], per_group)
    out: list[Any] = [None] * len(lhs)
    out[numbers.out_spec[0]] = lhs[numbers.lhs_spec[0]]
    out[numbers.out_spec[1]] = outputs
    for i in numbers.out_spec[2:]:
        out[i] = units.fixed(op.out_shape[i], f"{op.name}: positions of windows")
    return [tuple(out)]


def _narrow_conv(
    op: Op, inputs: Sequence[Any], kin: Sequence[Axes], kout: Sequence[Axes]
) -> Sequence[Any]:
    del kin, kout
    numbers = op.params["dimension_numbers"]
    groups = inputs[0].shape[numbers.lhs_spec[1]] // inputs[1].shape[numbers.rhs_spec[1]]
    return op.bind({**op.params, "feature_group_count": groups}, *inputs)


def _dot(units: Units, op: Op, ins: Sequence[Axes]) -> Sequence[Axes]:
    (lhs, rhs), ((lc, rc), (lb, rb)) = ins, op.params["dimension_numbers"]
    for i, j in (*zip(lc, rc, strict=True), *zip(lb, rb, strict=True)):
        units.tie(lhs[i], rhs[j])
    free = [axis for i, axis in enumerate(lhs) if i not in (*lc, *lb)]
    free += [axis for i, axis in enumerate(rhs) if i not in (*rc, *rb)]
    return [(*(lhs[i] for i in lb), *free)]


def _reduce(units: Units, op: Op, ins: Sequence[Axes]) -> Sequence[Axes]:
    reduced = op.params["axes"]
    for axes in ins:
        for i in reduced:
            units.freeze(axes[i], f"{op.name}: {op.kind} goes over the channels")
    return [tuple(axis for i, axis in enumerate(ins[0]) if i not in reduced)] * len(op.outputs)


def _along(name: str, why: str) -> Couple:
    """A rule for operations that mix the positions of one axis, and leave the others alone."""

    def couple(units: Units, op: Op, ins: Sequence[Axes]) -> Sequence[Axes]:
        mixed = op.params[name] % len(ins[0])
        for axes in ins:
            units.freeze(axes[mixed], f"{op.name}: {why}")
            for axis, first in zip(axes, ins[0], strict=True):
                units.tie(axis, first)
        return [ins[0]] * len(op.outputs)

    return couple


def _top_k(units: Units, op: Op, ins: Sequence[Axes]) -> Sequence[Axes]:
    along = op.params["axis"] % len(ins[0])
    units.freeze(ins[0][along], f"{op.name}: picks the largest channels")
    picked = units.fixed(op.out_shape[along], f"{op.name}: the largest channels", plain=False)
    out = tuple(picked if i == along else axis for i, axis in enumerate(ins[0]))
    return [out] * len(op.outputs)


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
        units.freeze(axis, f"{op.name}: a window", plain=True)
        out.append(units.fixed(op.out_shape[i], f"{op.name}: positions of windows"))
    return [tuple(out)]


RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, Rule(_elementwise)),
    **MOVES,
    **dict.fromkeys("device_put optimization_barrier sharding_constraint".split(), Rule(_identity)),
    "bitcast_convert_type": Rule(_bitcast),
    "iota": Rule(_source),
    "random_bits": Rule(_source),
    "conv_general_dilated": Rule(_conv, _narrow_conv),
    "dot_general": Rule(_dot),
    **dict.fromkeys(
        """reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax
        argmin""".split(),
        Rule(_reduce),
    ),
    **dict.fromkeys(
        "cumsum cumprod cummax cummin cumlogsumexp".split(),
        Rule(_along("axis", "accumulates over the channels")),
    ),
    "top_k": Rule(_top_k),
    "sort": Rule(_along("dimension", "sorts the channels")),
    **dict.fromkeys("reduce_window_max reduce_window_min reduce_window_sum".split(), Rule(_window)),
}
