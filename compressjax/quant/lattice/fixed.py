"""The 32-bit fixed point of LiteRT's builtin kernels, in int32 and uint32 alone.

XNNPACK multiplies in float32 (`products.rescale`); where it declines an operator the builtin
kernel multiplies a sum by a 31-bit integer and shifts it, and rounds both times. The multiplier is
made in float64 and the product has 62 bits. `fixed_point` has that in 64-bit types, for tables of
256 values; whole activations, on accelerators without such types, need it in 32 bits, so both
quotient and product are worked out here digit by digit.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


class Multiplier(NamedTuple):
    """A positive real number as mantissa * 2**(exponent - 31).

    Attributes:
        mantissa: int32 in [2**30, 2**31), [].
        exponent: int32, [].
    """

    mantissa: jax.Array
    exponent: jax.Array


class Quotient(NamedTuple):
    """A positive float64 as (high * 2**22 + low) * 2**(exponent - 53).

    Attributes:
        high: the upper 31 bits of its mantissa, uint32 in [2**30, 2**31).
        low: the lower 22 bits, uint32.
        exponent: int32.
    """

    high: jax.Array
    low: jax.Array
    exponent: jax.Array


def quotient(first: jax.Array, second: jax.Array, denominator: jax.Array) -> Quotient:
    """Computes first * second / denominator in float64: the product is exact, the rest rounds once.

    Args:
        first: positive float32, of any shape.
        second: positive float32, broadcasts.
        denominator: positive float32, broadcasts.

    Returns:
        The number, rounded half to even; no gradient passes.

    Example:
        >>> one, three = jnp.float32(1.0), jnp.float32(3.0)
        >>> high, low, exponent = quotient(one, one, three)
        >>> (int(high) * 2**22 + int(low)) * 2.0 ** (int(exponent) - 53) == 1 / 3
        True
    """
    (one, one_exponent), (two, two_exponent) = _mantissa(first), _mantissa(second)
    below, below_exponent = _mantissa(denominator)
    above, more, short = _product_of_mantissas(one, two)
    larger = above >= below
    exponent = one_exponent + two_exponent - below_exponent + larger - short
    divisor = jnp.where(larger, below << 1, below)
    # A remainder is below 2**25, so that 7 more digits fit.
    high, rest, more = _divide(above, more, divisor, (7, 7, 7, 7, 3))
    low, rest, _ = _divide(rest, more, divisor, (7, 7, 7, 1))
    low = low + ((2 * rest > divisor) | ((2 * rest == divisor) & (low & 1 == 1)))
    high, exponent = _normal(high + (low >> 22), exponent)
    return Quotient(high, low & (2**22 - 1), exponent)


def multiplier_of(
    numerator: jax.Array, denominator: jax.Array, times: jax.typing.ArrayLike = 1.0
) -> Multiplier:
    """Makes the multiplier numerator * times / denominator as LiteRT's QuantizeMultiplier does.

    The fraction of the float64 (`quotient`) is rounded to 31 bits with halves up.

    Args:
        numerator: positive float32, of any shape.
        denominator: positive float32, broadcasts.
        times: positive float32, broadcasts.

    Returns:
        The multiplier; no gradient passes.

    Example:
        >>> found = multiplier_of(jnp.float32(1.0), jnp.float32(3.0))
        >>> int(found.mantissa), int(found.exponent), round(2**31 / 3 * 2)
        (1431655765, -1, 1431655765)
    """
    found = quotient(numerator, jnp.asarray(times, jnp.float32), denominator)
    mantissa, exponent = _normal(found.high + (found.low >> 21), found.exponent)
    return Multiplier(mantissa.astype(jnp.int32), exponent)


def multiply(value: jax.Array, times: Multiplier) -> jax.Array:
    """Computes LiteRT's MultiplyByQuantizedMultiplier, with its two roundings.

    The value, shifted left where the exponent is positive, times mantissa / 2**31 is rounded with
    halves up; the shift to the right that is left rounds halves away from zero.

    Args:
        value: int32 of any shape; with the left shift below 2**31 in magnitude.
        times: the multiplier.

    Returns:
        int32 in the shape of `value`.

    Example:
        >>> half = multiplier_of(jnp.float32(1.0), jnp.float32(2.0))
        >>> multiply(jnp.array([3, -3, 4]), half).tolist()
        [2, -1, 2]
    """
    value = value << jnp.maximum(times.exponent, 0)
    return divide_by_power(high_product(value, times.mantissa), jnp.maximum(-times.exponent, 0))


def divide_by_power(value: jax.Array, exponent: jax.Array) -> jax.Array:
    """Divides by 2**exponent, rounding halves away from zero (gemmlowp's RoundingDivideByPOT).

    Args:
        value: int32 of any shape.
        exponent: int32 in [0, 31], broadcasts with `value`.

    Returns:
        int32.

    Example:
        >>> divide_by_power(jnp.array([5, -5, 6]), jnp.int32(1)).tolist()
        [3, -3, 3]
    """
    mask = (1 << exponent) - 1
    threshold = (mask >> 1) + (value < 0)
    return (value >> exponent) + ((value & mask) > threshold)


def _mantissa(value: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Splits a positive float32: mantissa * 2**(exponent - 24), the mantissa uint32 of 24 bits."""
    bits = lax.bitcast_convert_type(lax.stop_gradient(value), jnp.int32)
    return ((bits & 0x7FFFFF) | 0x800000).astype(jnp.uint32), (bits >> 23) - 126


def _product_of_mantissas(one: jax.Array, two: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Multiplies two of `_mantissa`: the upper 24 bits, the rest at the left, if it had 47 bits."""
    (one_high, one_low), (two_high, two_low) = ((x >> 12, x & 0xFFF) for x in (one, two))
    middle = one_high * two_low + one_low * two_high
    low = one_low * two_low + ((middle & 0xFFF) << 12)
    high, low = one_high * two_high + (middle >> 12) + (low >> 24), low << 8
    short = high < 1 << 23
    high, low = jnp.where(short, (high << 1) | (low >> 31), high), jnp.where(short, low << 1, low)
    return high, low, short


def _divide(
    rest: jax.Array, more: jax.Array, divisor: jax.Array, digits: tuple[int, ...]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gives the next binary digits of a quotient, what remains, and the digits not yet used."""
    found = jnp.zeros_like(rest)
    for bits in digits:
        rest = (rest << bits) | (more >> (32 - bits))
        part = rest // divisor
        found, rest, more = (found << bits) | part, rest - part * divisor, more << bits
    return found, rest, more


def _normal(mantissa: jax.Array, exponent: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Brings a mantissa that was rounded up to 2**31 back into [2**30, 2**31)."""
    full = mantissa == jnp.uint32(2**31)
    return jnp.where(full, jnp.uint32(2**30), mantissa), exponent + full


def high_product(value: jax.Array, mantissa: jax.Array) -> jax.Array:
    """Computes value * mantissa / 2**31, halves up: gemmlowp's SaturatingRoundingDoublingHighMul.

    Args:
        value: int32 of any shape.
        mantissa: int32, not negative, so that nothing saturates; broadcasts with `value`.

    Returns:
        int32.

    Example:
        >>> high_product(jnp.array([3, -3, 5]), jnp.int32(1 << 30)).tolist()
        [2, -1, 3]
    """
    size, times = jnp.abs(value).astype(jnp.uint32), mantissa.astype(jnp.uint32)
    size_low, size_high = size & 0xFFFF, size >> 16
    times_low, times_high = times & 0xFFFF, times >> 16
    middle = size_high * times_low + size_low * times_high + ((size_low * times_low) >> 16)
    high, low = size_high * times_high + (middle >> 16), size * times
    rest = low & np.uint32(0x7FFFFFFF)
    rounded = 2 * high + (low >> 31) + (rest >= 2**30)
    whole = rounded.astype(jnp.int32)
    return jnp.where(value < 0, (rest == 2**30).astype(jnp.int32) - whole, whole)
