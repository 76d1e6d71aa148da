"""What LiteRT's int8 operators compute, as calls of the lattice: bit for bit.

`operators.py` writes operators into files; this reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from compressjax.export.meaning import contractions, reals
from compressjax.export.meaning.call import Call, Rule, same_rank
from compressjax.export.meaning.contractions import Arithmetic, Operands, Window
from compressjax.quant import lattice
from compressjax.quant.lattice import Affine


def _conv(call: Call, operands: Operands, window: Window) -> jax.Array:
    acc = lattice.conv_sum(
        operands.x, operands.kernel, _float(operands.bias), call.grid(operands.source),
        window_strides=window.strides, padding=window.padding, lhs_dilation=window.lhs_dilation,
        rhs_dilation=window.rhs_dilation, dimension_numbers=window.layout,
        feature_group_count=window.groups,
    )  # fmt: skip
    return _rescaled(call, acc, operands.source)


def _dense(call: Call, operands: Operands) -> jax.Array:
    numbers = (((1,), (1,)), ((), ()))
    x, kernel, bias, source = operands
    acc = lattice.dot_sum(x, kernel, _float(bias), call.grid(source), dimension_numbers=numbers)
    return _rescaled(call, acc, source)


def _float(bias: jax.Array | None) -> jax.Array | None:
    return None if bias is None else bias.astype(jnp.float32)


def _rescaled(call: Call, acc: jax.Array, source: int) -> jax.Array:
    call.constant(1, "kernels")
    (lo, hi), scale, axis = call.clamp(), call.grid(1).scale, acc.ndim - 1
    return lattice.rescale(acc, call.grid(source), scale, call.out_grid(), axis, lo=lo, hi=hi)


def binary(function: Callable[..., jax.Array]) -> Rule:
    """Operators of two inputs, each with its own grid."""

    def rule(call: Call) -> jax.Array:
        (a, b), (lo, hi) = same_rank(*call.inputs), call.clamp()
        return function(a, b, call.grid(0), call.grid(1), call.out_grid(), lo=lo, hi=hi)

    return rule


def compared(function: Callable[..., jax.Array]) -> Rule:
    """Operators that compare codes of one grid."""

    def rule(call: Call) -> jax.Array:
        return function(call.inputs[0], call.inputs[1])

    return rule


def _matmul(call: Call) -> jax.Array:
    sums = lattice.matmul_sum(*contractions.matmul_operands(call), call.grid(0), call.grid(1))
    return lattice.matmul_rescale(sums, call.grid(0), call.grid(1), call.out_grid())


def pool(function: Callable[..., jax.Array]) -> Rule:
    """Operators that slide a window."""

    def rule(call: Call) -> jax.Array:
        options, (lo, hi) = call.options, call.clamp()
        return function(
            call.inputs[0], call.grid(0),
            window_dimensions=(1, options.filterHeight, options.filterWidth, 1),
            window_strides=(1, options.strideH, options.strideW, 1),
            padding=call.padding(), lo=lo, hi=hi,
        )  # fmt: skip

    return rule


def total(function: Callable[..., jax.Array]) -> Rule:
    """Operators that add along axes."""

    def rule(call: Call) -> jax.Array:
        keep = bool(call.options.keepDims)
        return function(call.inputs[0], call.grid(0), call.out_grid(), call.reduced(), keep)

    return rule


def extreme(function: Callable[..., jax.Array]) -> Rule:
    """Operators that pick along axes."""

    def rule(call: Call) -> jax.Array:
        return function(call.inputs[0], axis=call.reduced(), keepdims=bool(call.options.keepDims))

    return rule


def table(function: Callable[[jax.Array, Affine, Affine], jax.Array]) -> Rule:
    """Functions of one input that have a table of values."""

    def rule(call: Call) -> jax.Array:
        return function(call.inputs[0], call.grid(0), call.out_grid())

    return rule


def on_fixed_grid(function: Callable[[jax.Array, Affine], jax.Array]) -> Rule:
    """Functions whose output has the grid that LiteRT's specification fixes."""

    def rule(call: Call) -> jax.Array:
        if getattr(call.options, "beta", 1.0) != 1.0:
            raise ValueError(f"its beta is {call.options.beta}, expected 1")
        return function(call.inputs[0], call.grid(0))

    return rule


def _relu(lo: float, hi: float | None) -> Rule:
    def rule(call: Call) -> jax.Array:
        return lattice.relu(call.inputs[0], call.grid(0), call.out_grid(), lo=lo, hi=hi)

    return rule


def leaky(function: Callable[[jax.Array, Affine, Affine, float], jax.Array]) -> Rule:
    """LEAKY_RELU, whose slope is an option."""

    def rule(call: Call) -> jax.Array:
        return function(call.inputs[0], call.grid(0), call.out_grid(), call.options.alpha)

    return rule


def gelu(function: Callable[..., jax.Array]) -> Rule:
    """GELU, which has two forms."""

    def rule(call: Call) -> jax.Array:
        grids, approximate = (call.grid(0), call.out_grid()), bool(call.options.approximate)
        return function(call.inputs[0], *grids, approximate=approximate)

    return rule


def _resize(call: Call) -> jax.Array:
    height, width = call.constant(1, "sizes").tolist()
    return lattice.resize_bilinear(call.inputs[0], (height, width), **reals.corners(call))


def _difference(call: Call) -> jax.Array:
    a, b = same_rank(*call.inputs)
    return lattice.squared_difference(a, b, call.grid(0), call.grid(1), call.out_grid())


def _prelu(call: Call) -> jax.Array:
    x, slope = same_rank(*call.inputs)
    return lattice.prelu(x, slope, call.grid(0), call.grid(1), call.out_grid())


def _comparison(rule: Rule) -> Rule:
    def compared(call: Call) -> jax.Array:
        sides = [lattice.comparable(call.inputs[i], call.grid(i)) for i in (0, 1)]
        return rule(call._replace(inputs=sides))

    return compared


def _quantize(call: Call) -> jax.Array:
    """QUANTIZE: real values become codes, or codes go to another grid."""
    source = call.grids[0]
    if source is None:
        return lattice.quantize(call.inputs[0], call.out_grid())
    return lattice.requantize(call.inputs[0], source, call.out_grid())


_COMPARISONS = ("EQUAL", "NOT_EQUAL", "LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL")
# Operators whose inputs and output have one grid, beside those of `moves.py`.
ONE_GRID: Mapping[str, Rule] = {
    "MAX_POOL_2D": pool(lattice.max_pool), "AVERAGE_POOL_2D": pool(lattice.avg_pool),
    "REDUCE_MAX": extreme(jnp.max), "REDUCE_MIN": extreme(jnp.min),
    "MAXIMUM": compared(lattice.maximum), "MINIMUM": compared(lattice.minimum),
    **{name: reals.RULES[name] for name in ("TOPK_V2", "SELECT", "SELECT_V2", "ONE_HOT")},
    "RESIZE_BILINEAR": _resize,
}  # fmt: skip
# Operators whose output has a grid that LiteRT's specification fixes.
FIXED: Mapping[str, tuple[Rule, tuple[float, int]]] = {
    "SOFTMAX": (on_fixed_grid(lattice.softmax), lattice.SOFTMAX_GRID),
    "LOGISTIC": (on_fixed_grid(lattice.logistic), lattice.LOGISTIC_GRID),
    "TANH": (on_fixed_grid(lattice.tanh), lattice.TANH_GRID),
}
RULES: Mapping[str, Rule] = {
    **contractions.rules(Arithmetic(_conv, _dense)),
    **ONE_GRID,
    "QUANTIZE": _quantize,
    **{name: rule for name, (rule, _) in FIXED.items()},
    **{name: reals.RULES[name] for name in ("ARG_MAX", "ARG_MIN")},
    **{name: _comparison(reals.RULES[name]) for name in _COMPARISONS},
    "ABS": table(lattice.absolute), "PRELU": _prelu, "DIV": binary(lattice.div),
    "SQUARED_DIFFERENCE": _difference,
    "BATCH_MATMUL": _matmul, "ADD": binary(lattice.add),
    "SUB": binary(lattice.sub), "MUL": binary(lattice.mul), "MEAN": total(lattice.mean),
    "SUM": total(lattice.sum), "RELU": _relu(0.0, None), "RELU6": _relu(0.0, 6.0),
    "RELU_N1_TO_1": _relu(-1.0, 1.0), "RELU_0_TO_1": _relu(0.0, 1.0),
    "HARD_SWISH": table(lattice.hard_swish), "ELU": table(lattice.elu),
    "EXP": table(lattice.exp), "LOG": table(lattice.log), "SQRT": table(lattice.sqrt),
    "RSQRT": table(lattice.rsqrt), "LEAKY_RELU": leaky(lattice.leaky_relu),
    "GELU": gelu(lattice.gelu),
}  # fmt: skip
