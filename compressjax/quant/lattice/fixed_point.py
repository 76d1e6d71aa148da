"""The 32-bit fixed point of LiteRT's builtin kernels (gemmlowp; Jacob et al. 2018, section 2.2).

`functions` has it for multipliers of 24 bits in 32-bit integers. Here are multipliers of 31 bits in
64-bit integers: call these inside `jax.enable_x64(True)`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

_ONE = 1 << 28  # 1.0 with three integer bits
_HALF_ROOT_2 = 1518500250  # sqrt(2) / 2 without integer bits
INT_MAX, INT_MIN = 2**31 - 1, -(2**31)


def quantized_multiplier(value: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Splits a factor into a 31-bit mantissa and an exponent, as QuantizeMultiplier does.

    Args:
        value: float64, of any shape.

    Returns:
        (mantissa, exponent), int64: value = mantissa * 2**(exponent - 31), within rounding.

    Example:
        >>> with jax.enable_x64(True):
        ...     [int(part) for part in quantized_multiplier(jnp.float64(3.0))]
        [1610612736, 2]
    """
    fraction, exponent = jnp.frexp(value)
    scaled = fraction * 2.0**31
    mantissa = jnp.trunc(scaled + jnp.copysign(0.5, scaled)).astype(jnp.int64)
    full = jnp.abs(mantissa) == 1 << 31
    mantissa, exponent = jnp.where(full, mantissa // 2, mantissa), exponent + full
    return jnp.where(exponent < -31, 0, mantissa), jnp.maximum(exponent, -31).astype(jnp.int64)


def multiply(x: jax.Array, mantissa: jax.Array, exponent: jax.Array) -> jax.Array:
    """Multiplies by mantissa * 2**(exponent - 31), as MultiplyByQuantizedMultiplier does.

    Rounded twice: the doubled high product with halves up, the right shift with halves away from
    zero.

    Args:
        x: int64 holding int32 values.
        mantissa: from `quantized_multiplier`.
        exponent: the same.

    Returns:
        int64 holding int32 values, in the shape of `x`.

    Example:
        >>> with jax.enable_x64(True):
        ...     factor = quantized_multiplier(jnp.float64(0.25))
        ...     multiply(jnp.array([5, 6, -6]), *factor).tolist()  # 1.25, 1.5, -1.5
        [2, 2, -2]
    """
    product = (x << jnp.maximum(exponent, 0)) * mantissa
    nudge = jnp.where(product >= 0, 1 << 30, 1 - (1 << 30))
    high = jnp.sign(product + nudge) * (jnp.abs(product + nudge) >> 31)
    high = jnp.clip(high, INT_MIN, INT_MAX)
    shift = jnp.maximum(-exponent, 0)
    mask = (1 << shift) - 1
    return (high >> shift) + ((high & mask) > (mask >> 1) + (high < 0))


@functools.cache
def inverse_roots() -> np.ndarray:
    """Tabulates 2**20 / sqrt(n) for n of 0 to 255, as the RSQRT kernel's Newton steps find it.

    Returns:
        int64 [256]; that of 0 is that of 1.

    Example:
        >>> inverse_roots()[[1, 4, 100]].tolist()
        [1048576, 524288, 104858]
    """
    return np.array([_inverse_root(n) for n in range(256)], np.int64)


def _inverse_root(n: int) -> int:
    if n <= 1:
        return high_product_of(1 << 20, INT_MAX)
    # n * 4**pairs has its leading bit at 2**27 or 2**28, that is, n is brought to [1/2, 2).
    pairs = (31 - n.bit_length()) // 2 - 1
    shift = 11 - pairs
    value = n << (2 * pairs - 1)
    half, x = _shift_right(value, 1), _ONE
    for _ in range(5):
        cube = saturated(high_product_of(high_product_of(x, x), x) << 6)
        x = saturated((high_product_of(3 * _ONE // 2, x) - high_product_of(half, cube)) << 3)
    x = high_product_of(x, _HALF_ROOT_2)
    x, shift = (x << -shift, 0) if shift < 0 else (x, shift)
    left = 20 - shift
    return _shift_right(high_product_of(1 << max(left, 0), x), max(-left, 0))


def high_product_of(a: int, b: int) -> int:
    """Computes a * b / 2**31 of two int32, halves away from zero or up, as gemmlowp does.

    Args:
        a: an int32.
        b: an int32.

    Returns:
        The doubled high half of the product.

    Example:
        >>> high_product_of(1 << 30, 5)
        3
    """
    nudged = a * b + ((1 << 30) if a * b >= 0 else 1 - (1 << 30))
    return nudged >> 31 if nudged >= 0 else -(-nudged >> 31)


def _shift_right(value: int, shift: int) -> int:
    mask = (1 << shift) - 1
    return (value >> shift) + ((value & mask) > (mask >> 1) + (value < 0))


def saturated(value: int) -> int:
    """Gives the int32 that is closest to a number.

    Args:
        value: any integer.

    Returns:
        It, or the bound that it passes.

    Example:
        >>> saturated(1 << 40) == (1 << 31) - 1
        True
    """
    return max(min(value, INT_MAX), INT_MIN)
