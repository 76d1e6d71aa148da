"""What LiteRT's operators compute on real values, integers and booleans.

XNNPACK and the builtin kernels add in other orders than XLA, and have polynomials of their own for
functions such as tanh, so values are LiteRT's within float32's rounding and not bit for bit. The
rules are differentiable: a float file can be trained on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from compressjax.export.meaning import contractions
from compressjax.export.meaning.call import Call, Rule, same_rank
from compressjax.export.meaning.contractions import Arithmetic, Operands, Window
from compressjax.quant.lattice.resize import lines

_Function = Callable[..., Any]
_EXACT = lax.Precision.HIGHEST


def clamped(call: Call, x: jax.Array) -> jax.Array:
    """Applies the fused activation."""
    lo, hi = call.clamp()
    return x if lo is None and hi is None else jnp.clip(x, lo, hi)


def _conv(call: Call, operands: Operands, window: Window) -> jax.Array:
    x, kernel, bias, _ = operands
    made = lax.conv_general_dilated(
        x, kernel, window.strides, window.padding, window.lhs_dilation, window.rhs_dilation,
        window.layout, window.groups, precision=_EXACT,
    )  # fmt: skip
    return clamped(call, made if bias is None else made + bias.reshape(1, 1, 1, -1))


def _dense(call: Call, operands: Operands) -> jax.Array:
    x, kernel, bias, _ = operands
    made = jnp.matmul(x, kernel.T, precision=_EXACT)
    return clamped(call, made if bias is None else made + bias.reshape(1, -1))


def _matmul(call: Call) -> jax.Array:
    return jnp.matmul(*contractions.matmul_operands(call), precision=_EXACT)


def _unary(function: _Function) -> Rule:
    return lambda call: function(call.inputs[0])


def _binary(function: _Function) -> Rule:
    return lambda call: clamped(call, function(*same_rank(*call.inputs)))


def _divide(a: jax.Array, b: jax.Array) -> jax.Array:
    return lax.div(*jnp.broadcast_arrays(a, b))  # of integers, towards zero


def _squared_difference(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.square(a - b)


def _prelu(x: jax.Array, slope: jax.Array) -> jax.Array:
    return jnp.where(x >= 0, x, x * slope)


def _sum_all(*arrays: jax.Array) -> jax.Array:
    return functools.reduce(jnp.add, arrays)


def _select(condition: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.where(condition, a, b)


def _select_rows(call: Call) -> jax.Array:
    """SELECT, whose condition may have one entry for each row."""
    condition, a, b = call.inputs
    if condition.ndim == 1 and a.ndim > 1:
        condition = condition.reshape(-1, *[1] * (a.ndim - 1))
    return _select(*same_rank(condition, a, b))


def _reduced(function: _Function) -> Rule:
    def rule(call: Call) -> jax.Array:
        return function(call.inputs[0], axis=call.reduced(), keepdims=bool(call.options.keepDims))

    return rule


def _mean(x: jax.Array, *, axis: tuple[int, ...], keepdims: bool) -> jax.Array:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError("it is a mean of integers, expected real values")
    return jnp.mean(x, axis=axis, keepdims=keepdims)


def _pool(
    function: Callable[[jax.Array, tuple[int, ...], tuple[int, ...], str], jax.Array],
) -> Rule:
    def rule(call: Call) -> jax.Array:
        options = call.options
        window = (1, options.filterHeight, options.filterWidth, 1)
        strides = (1, options.strideH, options.strideW, 1)
        return clamped(call, function(call.inputs[0], window, strides, call.padding()))

    return rule


def _max_pool(x: jax.Array, window: Any, strides: Any, padding: str) -> jax.Array:
    return lax.reduce_window(x, -np.inf, lax.max, window, strides, padding)


def _average_pool(x: jax.Array, window: Any, strides: Any, padding: str) -> jax.Array:
    """Positions in the padding do not count."""
    total = lax.reduce_window(x, 0.0, lax.add, window, strides, padding)
    return total / lax.reduce_window(jnp.ones_like(x), 0.0, lax.add, window, strides, padding)


def _l2_pool(x: jax.Array, window: Any, strides: Any, padding: str) -> jax.Array:
    return jnp.sqrt(_average_pool(jnp.square(x), window, strides, padding))


def _softmax(call: Call) -> jax.Array:
    return jax.nn.softmax(call.inputs[0] * call.options.beta)


def _l2_normalization(call: Call) -> jax.Array:
    x = call.inputs[0]
    norm = jnp.sqrt(jnp.square(x).sum(-1, keepdims=True))
    return clamped(call, x / jnp.maximum(norm, 1e-6))


def _local_response(call: Call) -> jax.Array:
    options, x = call.options, call.inputs[0]
    wide = (*(1,) * (x.ndim - 1), 2 * options.radius + 1)
    edges = [(0, 0)] * (x.ndim - 1) + [(options.radius, options.radius)]
    total = lax.reduce_window(jnp.square(x), 0.0, lax.add, wide, (1,) * x.ndim, edges)
    return x * jnp.power(options.bias + options.alpha * total, -options.beta)


def _leaky(call: Call) -> jax.Array:
    return jax.nn.leaky_relu(call.inputs[0], call.options.alpha)


def _gelu(call: Call) -> jax.Array:
    return jax.nn.gelu(call.inputs[0], approximate=bool(call.options.approximate))


def _hard_swish(x: jax.Array) -> jax.Array:
    return x * jnp.clip(x + 3, 0, 6) / 6


def _cumsum(call: Call) -> jax.Array:
    x, options = call.inputs[0], call.options
    axis = call.axis(1, x.ndim)
    x = jnp.flip(x, axis) if options.reverse else x
    made = jnp.cumsum(x, axis) - (x if options.exclusive else jnp.zeros_like(x))
    return jnp.flip(made, axis) if options.reverse else made


def corners(call: Call) -> dict[str, bool]:
    """How a resize counts lines."""
    options = call.options
    return {
        "align_corners": bool(options.alignCorners),
        "half_pixel_centers": bool(options.halfPixelCenters),
    }


def _resize_bilinear(call: Call) -> jax.Array:
    x = call.inputs[0]
    sizes = call.constant(1, "sizes").tolist()
    for axis, wanted in zip((1, 2), sizes, strict=True):
        low, high, part = lines(x.shape[axis], wanted, **corners(call))
        below, above = jnp.take(x, low, axis=axis), jnp.take(x, high, axis=axis)
        weights = part.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
        x = below + (above - below) * weights
    return x


def _extreme_place(function: _Function) -> Rule:
    def rule(call: Call) -> jax.Array:
        x = call.inputs[0]
        return function(x, call.axis(1, x.ndim)).astype(jnp.int32)

    return rule


def _top_k(call: Call) -> tuple[jax.Array, jax.Array]:
    values, places = lax.top_k(call.inputs[0], int(call.constant(1, "count").item()))
    return values, places


def _one_hot(call: Call) -> jax.Array:
    places, on, off = call.inputs[0], call.inputs[2], call.inputs[3]
    count, axis = int(call.constant(1, "depth").item()), call.options.axis
    hot = jax.nn.one_hot(places, count, dtype=bool, axis=axis)
    return jnp.where(hot, on.reshape((1,) * hot.ndim), off.reshape((1,) * hot.ndim))


def _fill(call: Call) -> jax.Array:
    shape = tuple(call.constant(0, "sizes").ravel().tolist())
    return jnp.broadcast_to(call.inputs[1].reshape((1,) * len(shape)), shape)


def _range(call: Call) -> jax.Array:
    start, stop, step = (call.constant(i, "limits").item() for i in range(3))
    return jnp.arange(start, stop, step)


def _cast(call: Call) -> jax.Array:
    """Between reals, integers and booleans; LiteRT cuts towards zero."""
    return jnp.asarray(call.inputs[0]).astype(call.dtype)


_UNARY: Mapping[str, _Function] = {
    "ABS": jnp.abs, "NEG": jnp.negative, "EXP": jnp.exp, "LOG": jnp.log, "SQRT": jnp.sqrt,
    "RSQRT": lax.rsqrt, "SQUARE": jnp.square, "SIN": jnp.sin, "COS": jnp.cos,
    "FLOOR": jnp.floor, "CEIL": jnp.ceil, "ROUND": jnp.round, "SIGN": jnp.sign,
    "TANH": jnp.tanh, "LOGISTIC": jax.nn.sigmoid, "RELU": jax.nn.relu, "RELU6": jax.nn.relu6,
    "RELU_N1_TO_1": functools.partial(jnp.clip, min=-1, max=1),
    "RELU_0_TO_1": functools.partial(jnp.clip, min=0, max=1), "HARD_SWISH": _hard_swish,
    "ELU": jax.nn.elu, "LOG_SOFTMAX": jax.nn.log_softmax, "LOGICAL_NOT": jnp.logical_not,
    "ZEROS_LIKE": jnp.zeros_like,
}  # fmt: skip
_BINARY: Mapping[str, _Function] = {
    "ADD": jnp.add, "SUB": jnp.subtract, "MUL": jnp.multiply, "DIV": _divide, "POW": jnp.power,
    "MAXIMUM": jnp.maximum, "MINIMUM": jnp.minimum, "SQUARED_DIFFERENCE": _squared_difference,
    "FLOOR_DIV": jnp.floor_divide, "FLOOR_MOD": jnp.mod, "PRELU": _prelu,
    "ATAN2": jnp.arctan2, "EQUAL": jnp.equal, "NOT_EQUAL": jnp.not_equal, "LESS": jnp.less,
    "LESS_EQUAL": jnp.less_equal, "GREATER": jnp.greater, "GREATER_EQUAL": jnp.greater_equal,
    "LOGICAL_AND": jnp.logical_and, "LOGICAL_OR": jnp.logical_or, "ADD_N": _sum_all,
    "SELECT_V2": _select,
}  # fmt: skip
_REDUCTIONS: Mapping[str, _Function] = {
    "MEAN": _mean, "SUM": jnp.sum, "REDUCE_MAX": jnp.max, "REDUCE_MIN": jnp.min,
    "REDUCE_PROD": jnp.prod, "REDUCE_ANY": jnp.any, "REDUCE_ALL": jnp.all,
}  # fmt: skip
RULES: Mapping[str, Rule] = {
    **contractions.rules(Arithmetic(_conv, _dense)),
    **{name: _unary(function) for name, function in _UNARY.items()},
    **{name: _binary(function) for name, function in _BINARY.items()},
    **{name: _reduced(function) for name, function in _REDUCTIONS.items()},
    "BATCH_MATMUL": _matmul, "MAX_POOL_2D": _pool(_max_pool),
    "AVERAGE_POOL_2D": _pool(_average_pool), "L2_POOL_2D": _pool(_l2_pool), "SOFTMAX": _softmax,
    "L2_NORMALIZATION": _l2_normalization, "LOCAL_RESPONSE_NORMALIZATION": _local_response,
    "LEAKY_RELU": _leaky, "GELU": _gelu, "CUMSUM": _cumsum, "RESIZE_BILINEAR": _resize_bilinear,
    "ARG_MAX": _extreme_place(jnp.argmax), "ARG_MIN": _extreme_place(jnp.argmin),
    "TOPK_V2": _top_k, "ONE_HOT": _one_hot, "FILL": _fill, "RANGE": _range,
    "SELECT": _select_rows, "CAST": _cast,
}  # fmt: skip
