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


def multiplier_of(numerator: jax.Array, denominator: jax.Array) -> Multiplier:
    """Makes the multiplier numerator / denominator as LiteRT's QuantizeMultiplier does.

    The quotient of the two float32 numbers is rounded to float64 (half to even), and its fraction
    to 31 bits with halves up.

    Args:
        numerator: positive float32, [].
        denominator: positive float32, [].

    Returns:
        The multiplier; no gradient passes.

    Example:
        >>> found = multiplier_of(jnp.float32(1.0), jnp.float32(3.0))
        >>> int(found.mantissa), int(found.exponent), round(2**31 / 3 * 2)
        (1431655765, -1, 1431655765)
    """
    above, above_exponent = _mantissa(numerator)
    below, below_exponent = _mantissa(denominator)
    exponent = above_exponent - below_exponent + (above >= below)
    divisor = jnp.where(above >= below, below << 1, below)
    rest, digits = above, jnp.uint32(0)
    for bits in (7, 7, 7, 7, 3):  # a remainder below 2**25, so that 7 more digits fit
        digits, rest = _divide(digits, rest, divisor, bits)
    tail = jnp.uint32(0)
    for bits in (7, 7, 7, 1):  # the 22 binary digits by which float64 is longer
        tail, rest = _divide(tail, rest, divisor, bits)
    half = 1 << 21
    up = (tail >= half) | ((tail == half - 1) & (2 * rest >= divisor))
    mantissa = digits + up.astype(jnp.uint32)
    full = mantissa == jnp.uint32(2**31)
    mantissa = jnp.where(full, jnp.uint32(2**30), mantissa)
    return Multiplier(mantissa.astype(jnp.int32), exponent + full)


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
    """Splits a positive float32: value = mantissa * 2**exponent * a fixed power, 24-bit uint32."""
    bits = lax.bitcast_convert_type(lax.stop_gradient(value), jnp.int32)
    return ((bits & 0x7FFFFF) | 0x800000).astype(jnp.uint32), bits >> 23


def _divide(
    digits: jax.Array, rest: jax.Array, divisor: jax.Array, bits: int
) -> tuple[jax.Array, jax.Array]:
    """Appends the next binary digits of a quotient, and returns what remains."""
    rest = rest << bits
    quotient = rest // divisor
    return (digits << bits) | quotient, rest - quotient * divisor


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
