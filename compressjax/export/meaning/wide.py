"""What LiteRT's operators compute on 16-bit codes with 8-bit kernels (int16x8): bit for bit.

The neighbour of `codes.py`, whose rules are for 8 bits. XNNPACK takes none of these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from compressjax.export.meaning import codes, contractions, reals
from compressjax.export.meaning.call import Call, Rule
from compressjax.export.meaning.contractions import Arithmetic, Operands, Window
from compressjax.quant import lattice

_FUNCTIONS, _REDUCTIONS = lattice.wide_functions, lattice.wide_reductions
_UNIT = (2.0**-15, 0)  # what goes from 0 or -1 to 1


def _conv(call: Call, operands: Operands, window: Window) -> jax.Array:
    form = lattice.convolution(
        operands.x, operands.kernel,
        window_strides=window.strides, padding=window.padding, lhs_dilation=window.lhs_dilation,
        rhs_dilation=window.rhs_dilation, dimension_numbers=window.layout,
        feature_group_count=window.groups,
    )  # fmt: skip
    return _rescaled(call, operands, form, lattice.wide.rescale)


def _dense(call: Call, operands: Operands) -> jax.Array:
    numbers = (((1,), (1,)), ((), ()))
    form = lattice.dot(operands.x, operands.kernel, dimension_numbers=numbers)
    return _rescaled(call, operands, form, lattice.wide.rescale_dense)


def _rescaled(
    call: Call, operands: Operands, form: lattice.Bilinear, rescale: Callable[..., jax.Array]
) -> jax.Array:
    call.constant(1, "kernels")
    (lo, hi), source = call.clamp(), call.grid(operands.source)
    acc = lattice.total.total(form, operands.x, operands.kernel, operands.bias)
    scale, axis = call.grid(1).scale, acc.high.ndim - 1
    return rescale(acc, source, scale, call.out_grid(), axis, lo=lo, hi=hi)


def _matmul(call: Call) -> jax.Array:
    sums = lattice.total.matmul(*contractions.matmul_operands(call))
    return lattice.wide.rescale_matmul(sums, call.grid(0), call.grid(1), call.out_grid())


def _relu(lo: float, hi: float | None) -> Rule:
    def rule(call: Call) -> jax.Array:
        return lattice.wide.requantize(call.inputs[0], call.grid(0), call.out_grid(), lo, hi)

    return rule


def _quantize(call: Call) -> jax.Array:
    source = call.grids[0]
    if source is None:
        return lattice.quantize(call.inputs[0], call.out_grid(), lattice.wide.CODES)
    return lattice.wide.requantize(call.inputs[0], source, call.out_grid())


# Operators whose inputs and output have one grid, beside those of `moves.py`.
ONE_GRID: Mapping[str, Rule] = {
    "MAX_POOL_2D": codes.pool(_REDUCTIONS.max_pool),
    "AVERAGE_POOL_2D": codes.pool(_REDUCTIONS.avg_pool),
    "REDUCE_MAX": codes.extreme(jnp.max), "REDUCE_MIN": codes.extreme(jnp.min),
    "MAXIMUM": codes.compared(lattice.maximum), "MINIMUM": codes.compared(lattice.minimum),
    **{name: reals.RULES[name] for name in ("SELECT", "SELECT_V2")},
}  # fmt: skip
# Operators whose output has a grid that LiteRT's specification fixes.
FIXED: Mapping[str, tuple[Rule, tuple[float, int]]] = {
    "SOFTMAX": (codes.on_fixed_grid(_FUNCTIONS.softmax), _UNIT),
    "LOGISTIC": (codes.on_fixed_grid(_FUNCTIONS.logistic), _UNIT),
    "TANH": (codes.on_fixed_grid(_FUNCTIONS.tanh), _UNIT),
}
RULES: Mapping[str, Rule] = {
    **contractions.rules(Arithmetic(_conv, _dense)),
    **ONE_GRID,
    **{name: rule for name, (rule, _) in FIXED.items()},
    "QUANTIZE": _quantize, "BATCH_MATMUL": _matmul, "ADD": codes.binary(lattice.wide.add),
    "SUB": codes.binary(lattice.wide.sub), "MUL": codes.binary(lattice.wide.mul),
    "MEAN": codes.total(_REDUCTIONS.mean),
    "SUM": codes.total(_REDUCTIONS.sum), "RELU": _relu(0.0, None),
    "RELU6": _relu(0.0, 6.0), "LEAKY_RELU": codes.leaky(_FUNCTIONS.leaky_relu),
    "GELU": codes.gelu(_FUNCTIONS.gelu), "EXP": codes.table(_FUNCTIONS.exp),
    "LOG": codes.table(_FUNCTIONS.log),
}  # fmt: skip
