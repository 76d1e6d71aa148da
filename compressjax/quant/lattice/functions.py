"""The lattice's nonlinear functions: logistic, tanh, softmax, hard-swish and a lone relu.

Elsewhere in this package one formula serves every operator; here LiteRT uses a different device
for each. XNNPACK evaluates logistic and tanh once per code in floating point; softmax, hard-swish
and an unfused relu stay with the builtin kernels: a float table, 16-bit and 32-bit fixed point.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from compressjax.quant.lattice.fixed import divide_by_power
from compressjax.quant.lattice.grid import (
    CODE_MAX,
    CODE_MIN,
    Affine,
    builtin_bounds,
    clamped_like,
    dequantize,
    f32,
    ratio,
    straight_through,
)

# The grids that LiteRT prescribes for these functions' outputs: (scale, zero point).
LOGISTIC_GRID = (1 / 256, -128)
TANH_GRID = (1 / 128, 0)
SOFTMAX_GRID = (1 / 256, -128)


def _thresholds(
    function: Callable[[np.ndarray], np.ndarray], scale: float, zero: int
) -> np.ndarray:
    """Finds, for each code above the least, the least float32 input that reaches it: [255].

    `function` is increasing and evaluated in float64, as LiteRT does; bisection over the ordered
    bit patterns of float32 then leaves no rounding to chance.
    """

    def code(x: np.ndarray) -> np.ndarray:
        y = function(x.astype(np.float64)).astype(np.float32)
        return np.rint(y * np.float32(1 / scale) + np.float32(zero))

    def value(order: np.ndarray) -> np.ndarray:
        bits = np.where(order < 0, -order - 1 | np.int64(0x80000000), order)
        return bits.astype(np.uint32).view(np.float32)

    wanted = np.arange(CODE_MIN + 1, CODE_MAX + 1)
    edge = np.int64(np.float32(100.0).view(np.uint32))
    low, high = np.full(wanted.shape, -edge - 1), np.full(wanted.shape, edge)
    reachable = code(value(high)) >= wanted
    while (high - low > 1).any():
        middle = (low + high) // 2
        reached = code(value(middle)) >= wanted
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    return np.where(reachable, value(high), np.inf).astype(np.float32)


_LOGISTIC_EDGES = _thresholds(lambda x: 1 / (1 + np.exp(-x)), *LOGISTIC_GRID)
_TANH_EDGES = _thresholds(np.tanh, *TANH_GRID)


def logistic(x: jax.Array, x_q: Affine) -> jax.Array:
    """Computes LOGISTIC on XNNPACK's table; the output grid is `LOGISTIC_GRID`.

    Args:
        x: codes of any shape.
        x_q: the grid of `x`.

    Returns:
        Codes at scale 1/256 and zero point -128, float32.

    Example:
        >>> logistic(jnp.array([-50.0, 0.0, 50.0]), Affine(f32(0.2), f32(0.0))).tolist()
        [-128.0, 0.0, 127.0]
    """
    approx = jax.nn.sigmoid(dequantize(x, x_q)) * 256.0 - 128.0
    return straight_through(_staircase(x, x_q, _LOGISTIC_EDGES), approx)


def tanh(x: jax.Array, x_q: Affine) -> jax.Array:
    """Computes TANH on XNNPACK's table; the output grid is `TANH_GRID`.

    Args:
        x: codes of any shape.
        x_q: the grid of `x`.

    Returns:
        Codes at scale 1/128 and zero point 0, float32.

    Example:
        >>> tanh(jnp.array([-50.0, 0.0, 50.0]), Affine(f32(0.2), f32(0.0))).tolist()
        [-128.0, 0.0, 127.0]
    """
    return straight_through(_staircase(x, x_q, _TANH_EDGES), jnp.tanh(dequantize(x, x_q)) * 128.0)


def _staircase(x: jax.Array, x_q: Affine, edges: np.ndarray) -> jax.Array:
    """Counts the thresholds that each code's real value reaches."""
    reals = dequantize(_all_codes(), x_q)[:, None]
    table = jnp.sum((reals >= edges[None, :]).astype(jnp.float32), axis=1) + CODE_MIN
    return _look_up(table, x)


def _all_codes() -> jax.Array:
    return jnp.arange(CODE_MIN, CODE_MAX + 1, dtype=jnp.float32)


def _look_up(table: jax.Array, x: jax.Array) -> jax.Array:
    """Maps codes through a table of 256 values, without a gradient."""
    index = (lax.stop_gradient(x) - CODE_MIN).astype(jnp.int32)
    return jnp.take(lax.stop_gradient(table), index, mode="clip")


def softmax(x: jax.Array, x_q: Affine, axis: int = -1) -> jax.Array:
    """Computes SOFTMAX (beta 1) as LiteRT's builtin kernel does on x86; output `SOFTMAX_GRID`.

    The kernel's float table holds C's expf and its sum runs in order, so a value next to a tie
    can come out one step away: seen on fewer than 1 in 10,000. On 64-bit ARM LiteRT uses another
    kernel (16-bit tables), and there this is an approximation. XNNPACK declines int8 softmax.

    Args:
        x: codes of any shape.
        x_q: the grid of `x`.
        axis: the axis to normalize; LiteRT knows the last one only.

    Returns:
        Codes at scale 1/256 and zero point -128, float32.

    Example:
        >>> softmax(jnp.array([3.0, 3.0]), Affine(f32(0.2), f32(0.0))).tolist()
        [0.0, 0.0]
    """
    below = lax.stop_gradient(x.max(axis, keepdims=True) - x)
    shares = jnp.exp(-f32(x_q.scale) * below)
    steps = shares * (1.0 / (shares.sum(axis, keepdims=True) * np.float32(1 / 256)))
    exact = jnp.minimum(jnp.floor(steps + 0.5) + CODE_MIN, CODE_MAX)
    approx = jax.nn.softmax(dequantize(x, x_q), axis) * 256.0 + CODE_MIN
    return straight_through(lax.stop_gradient(exact), approx)


def relu(
    x: jax.Array, x_q: Affine, out_q: Affine, lo: float | None = 0.0, hi: float | None = None
) -> jax.Array:
    """Computes a lone RELU, RELU6 or RELU_N1_TO_1 in the builtin kernel's 32-bit fixed point.

    XNNPACK declines them for int8. A relu fused into its producer costs and rounds nothing:
    prefer that where there is a producer. On one grid this is MAXIMUM and MINIMUM with the codes
    of the bounds, whatever those are.

    Args:
        x: codes of any shape.
        x_q: the grid of `x`.
        out_q: the output's grid.
        lo: least real value, or None.
        hi: greatest real value, or None.

    Returns:
        Output codes, float32.

    Example:
        >>> one = Affine(f32(1.0), f32(0.0))
        >>> relu(jnp.array([-5.0, 5.0]), one, one).tolist()
        [0.0, 5.0]
    """
    multiplier, zero = ratio(x_q.scale, out_q.scale), f32(out_q.zero_point)
    code_lo, code_hi = builtin_bounds(out_q, lo, hi)
    mantissa, exponent = _frexp(multiplier)
    moved = (_all_codes() - f32(x_q.zero_point)).astype(jnp.int32)
    moved = moved << jnp.maximum(exponent, 0)
    # (moved * mantissa + 2**23) >> 24 without leaving 32 bits.
    low = (moved * (mantissa & 0xFFF)) >> 12
    moved = (moved * (mantissa >> 12) + low + (1 << 11)) >> 12
    moved = divide_by_power(moved, jnp.clip(-exponent, 0, 30))
    exact = _look_up(jnp.clip(moved.astype(jnp.float32) + zero, code_lo, code_hi), x)
    steps = (x - f32(x_q.zero_point)) * multiplier
    return clamped_like(exact, steps + zero, code_lo, code_hi)


def hard_swish(x: jax.Array, x_q: Affine, out_q: Affine) -> jax.Array:
    """Computes HARD_SWISH (Howard et al. 2019, 1905.02244) in the builtin 16-bit fixed point.

    XNNPACK declines it for int8. LiteRT needs x scale / (128 * out scale) below 1.

    Args:
        x: codes of any shape.
        x_q: the grid of `x`.
        out_q: the output's grid.

    Returns:
        Output codes, float32.

    Example:
        >>> grid = Affine(f32(0.05), f32(0.0))
        >>> hard_swish(jnp.array([-100.0, 0.0, 100.0]), grid, grid).tolist()
        [0.0, 0.0, 100.0]
    """
    fine_scale = f32(x_q.scale) * np.float32(1 / 128)
    out_times, out_exponent = _short_multiplier(ratio(fine_scale, out_q.scale))
    gate_times, gate_exponent = _short_multiplier(ratio(fine_scale, np.float32(3 / 32768)))
    fine = (_all_codes() - f32(x_q.zero_point)).astype(jnp.int32) << 7
    gate = _short(fine << jnp.clip(gate_exponent - 1, 0, 15))
    gate = _short((gate * gate_times + (1 << 14)) >> 15)
    gate = jnp.where(gate_exponent > 0, _short(gate << 1), gate)
    gate = divide_by_power(gate, jnp.clip(-gate_exponent, 0, 30))
    gate = (gate + (1 << 15)) >> 1
    product = lax.div(gate * ((fine * out_times + (1 << 14)) >> 15), jnp.int32(1 << 15))
    moved = divide_by_power(product, jnp.clip(-out_exponent, 0, 30)).astype(jnp.float32)
    zero = f32(out_q.zero_point)
    exact = _look_up(jnp.clip(moved + zero, CODE_MIN, CODE_MAX), x)
    steps = jax.nn.hard_swish(dequantize(x, x_q)) / f32(out_q.scale)
    return clamped_like(exact, steps + zero, f32(CODE_MIN), f32(CODE_MAX))


def _frexp(value: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Splits a positive float32 into a 24-bit integer mantissa and the exponent of its fraction."""
    bits = lax.bitcast_convert_type(lax.stop_gradient(value), jnp.int32)
    return (bits & 0x7FFFFF) | 0x800000, (bits >> 23) - 126


def _short_multiplier(value: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rounds a float32 multiplier to a 15-bit mantissa, saturated, and an exponent."""
    mantissa, exponent = _frexp(value)
    return jnp.minimum((mantissa + (1 << 8)) >> 9, 32767), exponent


def _short(value: jax.Array) -> jax.Array:
    """Saturates to 16 bits."""
    return jnp.clip(value, -32768, 32767)
