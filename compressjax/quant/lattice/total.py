"""Sums of more than 32 bits, in 32-bit integers: what LiteRT's int16 kernels keep in an int64.

A product of an int16 activation and an int8 weight has 22 bits, so float32 can add only four of
them exactly. An activation is therefore taken apart into two bytes, whose products with the weights
are sums like those of `products`, and the two sums are put together here. How they come to the
output's grid is `fixed`'s arithmetic with wider operands: convolutions multiply by 15 bits of the
multiplier, fully connected layers by a float64.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from compressjax.quant.lattice.fixed import Multiplier, Quotient
from compressjax.quant.lattice.grid import along, straight_through
from compressjax.quant.lattice.matmul import integer_matmul
from compressjax.quant.lattice.products import Bilinear

# With more, the upper bytes' sum could leave an int32.
MOST_TERMS = 2**16
# A bias of more codes could, likewise.
LARGEST_BIAS = 2.0**38


class Total(NamedTuple):
    """An int64 in two words: high * 2**32 + low.

    Attributes:
        high: int32.
        low: uint32.
        approx: the integer as float32, differentiable.
    """

    high: jax.Array
    low: jax.Array
    approx: jax.Array


def of_int32(value: jax.Array) -> Total:
    """Widens an int32; the float32 beside it is not differentiated.

    Example:
        >>> int(of_int32(jnp.array([-5])).high[0])
        -1
    """
    return Total(value >> 31, value.astype(jnp.uint32), value.astype(jnp.float32))


def total(form: Bilinear, x: jax.Array, w: jax.Array, bias: jax.Array | None) -> Total:
    """Adds the products of 16-bit activations and 8-bit weights, and a bias, exactly.

    Args:
        form: the sum, from `products.convolution` or `products.dot`.
        x: codes in [-32768, 32767], float32; padded positions are 0, the zero point.
        w: weight codes in [-127, 127], float32 or bfloat16.
        bias: int32, or integer-valued float32 of at most 2**38 in size, [O]; or None.

    Returns:
        The sums.

    Raises:
        ValueError: a sum has more than 65,536 terms.

    Example:
        >>> from compressjax.quant.lattice.products import dot
        >>> x, w = jnp.full((1, 600), 32767.0), jnp.full((600, 1), 127.0)
        >>> form = dot(x, w, dimension_numbers=(((1,), (0,)), ((), ())))
        >>> found = total(form, x, w, None)
        >>> (int(found.high[0, 0]) << 32) + int(found.low[0, 0]) == 600 * 32767 * 127
        True
    """
    if form.terms > MOST_TERMS:
        raise ValueError(
            f"a sum of {form.terms} products of 16 by 8 bits: expected at most {MOST_TERMS}; "
            "split the layer along its inputs"
        )
    upper, lower = (_whole(form, part, w) for part in _bytes(x))
    parts = [(upper, 8), (lower, 0)]
    approx = form.product(x, w.astype(x.dtype))
    if bias is not None:
        bias = along(bias, form.axis, upper.ndim)
        approx = approx + bias.astype(jnp.float32)
        if bias.dtype == jnp.int32:
            parts += [(bias, 0)]
        else:
            parts += [
                (byte.astype(jnp.int32), shift)
                for byte, shift in zip(_bytes(bias), (8, 0), strict=True)
            ]
    return added(parts, approx)


def matmul(a: jax.Array, b: jax.Array) -> Total:
    """Adds the products of two arrays of 16-bit codes exactly: those of BATCH_MATMUL.

    Args:
        a: codes [..., M, K], float32.
        b: codes [..., K, N], float32.

    Returns:
        The sums, [..., M, N].

    Raises:
        ValueError: K is over 2**15.

    Example:
        >>> found = matmul(jnp.full((1, 9), 32767.0), jnp.full((9, 1), -32768.0))
        >>> (int(found.high[0, 0]) << 32) + int(found.low[0, 0]) == -9 * 32767 * 32768
        True
    """
    if a.shape[-1] > 2**15:
        raise ValueError(f"a sum of {a.shape[-1]} products of 16 bits, expected at most {2**15}")
    parts = [
        (integer_matmul(first, second), one + two)
        for first, one in zip(_bytes(a), (8, 0), strict=True)
        for second, two in zip(_bytes(b), (8, 0), strict=True)
    ]
    return added(parts, jnp.matmul(a, b, precision=lax.Precision.HIGHEST))


def added(parts: Sequence[tuple[jax.Array, int]], approx: jax.Array) -> Total:
    """Adds int32 arrays, each shifted left by 0, 8 or 16 bits, into an int64.

    Args:
        parts: the arrays and their shifts.
        approx: the sum as it is differentiated, float32.

    Returns:
        The sum.

    Example:
        >>> found = added([(jnp.array([2**30]), 16), (jnp.array([-1]), 0)], jnp.zeros(1))
        >>> (int(found.high[0]) << 32) + int(found.low[0]) == 2**46 - 1
        True
    """
    high, low = jnp.int32(0), jnp.uint32(0)
    for value, shift in parts:
        word = value.astype(jnp.uint32) << shift
        high = high + (value >> (31 if not shift else 32 - shift))
        high, low = _plus(high, low, word)
    negative, upper, lower = _size(high, low)
    real = upper.astype(jnp.float32) * 2.0**32 + lower.astype(jnp.float32)
    return Total(high, low, straight_through(jnp.where(negative, -real, real), approx))


def _size(high: jax.Array, low: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Whether an integer is negative, and the two words of its size, uint32."""
    negative = high < 0
    upper = jnp.where(negative, -high - (low > 0), high).astype(jnp.uint32)
    return negative, upper, jnp.where(negative, jnp.uint32(0) - low, low)


def _bytes(codes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Takes integers apart: upper * 256 + lower, with the lower part in [0, 256)."""
    codes = lax.stop_gradient(codes)
    upper = jnp.floor(codes / 256.0)
    return upper, codes - 256.0 * upper


def _whole(form: Bilinear, x: jax.Array, w: jax.Array) -> jax.Array:
    """The int32 sums for one byte of the activations."""
    pieces = form.pieces(x.astype(w.dtype), lax.stop_gradient(w))
    parts = [form.product(*piece).astype(jnp.int32) for piece in pieces]
    return jnp.asarray(sum(parts[1:], parts[0]))


def multiply(value: Total, times: Multiplier) -> jax.Array:
    """Computes LiteRT's MultiplyByQuantizedMultiplier for an int64, which rounds halves up once.

    The multiplier is rounded to 15 bits first (Jacob et al. 2018 have 31).

    Args:
        value: the sums.
        times: the multiplier, which broadcasts with them; its exponent is in [-31, 8).

    Returns:
        int32, in the shape of `value`.

    Example:
        >>> from compressjax.quant.lattice.fixed import multiplier_of
        >>> half = multiplier_of(jnp.float32(1.0), jnp.float32(2.0))
        >>> multiply(of_int32(jnp.array([3, -3])), half).tolist()
        [2, -1]
    """
    short = jnp.where(times.mantissa < 0x7FFF0000, (times.mantissa + (1 << 15)) >> 16, 0x7FFF)
    shift = 15 - times.exponent
    # The product of each 16 bits has a word: first * 2**32 + second * 2**16 + third.
    first = value.high * short
    second, third = ((part * short.astype(jnp.uint32)) for part in _halves(value.low))
    high, low = first + (second >> 16).astype(jnp.int32), second << 16
    half = jnp.where(shift <= 32, _power(shift - 1), jnp.uint32(0))
    for addend in (third, half):
        high, low = _plus(high, low, addend)
    high = high + jnp.where(shift > 32, 1 << jnp.clip(shift - 33, 0, 31), 0)
    near = (low >> _within(shift)) | (high.astype(jnp.uint32) << _within(32 - shift))
    return jnp.where(shift < 32, near.astype(jnp.int32), high >> jnp.clip(shift - 32, 0, 31))


def _halves(word: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The upper and the lower 16 bits of a uint32."""
    return word >> 16, word & 0xFFFF


def _within(places: jax.Array) -> jax.Array:
    """A shift that a word bears, in its type: of a uint32 and an int32 JAX would make an int32."""
    return jnp.clip(places, 0, 31).astype(jnp.uint32)


def _power(exponent: jax.Array) -> jax.Array:
    return jnp.uint32(1) << _within(exponent)


def _plus(high: jax.Array, low: jax.Array, addend: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Adds a uint32 to an integer of two words."""
    added = low + addend
    return high + (added < low), added


def multiply_float(value: Total, times: Quotient) -> jax.Array:
    """Multiplies by a float64 and rounds halves away from zero, as the fully connected kernel does.

    The product of the two is rounded to float64 before.

    Args:
        value: the sums.
        times: the factor, which broadcasts with them.

    Returns:
        int32, in the shape of `value`.

    Example:
        >>> from compressjax.quant.lattice.fixed import quotient
        >>> half = quotient(jnp.float32(1.0), jnp.float32(1.0), jnp.float32(2.0))
        >>> multiply_float(of_int32(jnp.array([3, -3])), half).tolist()
        [2, -2]
    """
    negative, high, low = _size(value.high, value.low)
    size = [*_halves(low)[::-1], *_halves(high)[::-1]]
    factor = [
        times.low & 0xFFFF,
        (times.low >> 16) | ((times.high & 0x3FF) << 6),
        (times.high >> 10) & 0xFFFF,
        times.high >> 26,
    ]
    digits = _digits(size, factor)
    shift = 53 - times.exponent
    whole = _bits(digits, shift)
    upper, lower = _bits(digits, shift - 32), _bits(digits, shift - 64)
    # Just under a half, a float64 of this size may not be able to tell, and rounds up to it.
    length = jnp.where(whole == 0, -1, 32 - lax.clz(whole.astype(jnp.int32)))
    nearly = (upper == 0x7FFFFFFF) & (lower >= jnp.uint32(0) - _power(10 + length))
    rounded = (whole + ((upper >> 31) | nearly)).astype(jnp.int32)
    return jnp.where(negative, -rounded, rounded)


def _digits(first: list[jax.Array], second: list[jax.Array]) -> list[jax.Array]:
    """Multiplies two numbers of 16-bit digits, the lowest first."""
    columns: list[jax.Array] = [jnp.uint32(0)] * (len(first) + len(second) + 1)
    for i, one in enumerate(first):
        for j, two in enumerate(second):
            product = one * two
            columns[i + j] = columns[i + j] + (product & 0xFFFF)
            columns[i + j + 1] = columns[i + j + 1] + (product >> 16)
    carry, found = jnp.uint32(0), []
    for column in columns:
        column = column + carry
        found.append(column & 0xFFFF)
        carry = column >> 16
    return found


def _bits(digits: list[jax.Array], position: jax.Array) -> jax.Array:
    """32 bits of a number of 16-bit digits, from a position on; below the lowest are zeros."""
    found = jnp.uint32(0)
    for place, digit in zip(np.arange(len(digits)) * 16, digits, strict=True):
        left = int(place) - position
        there = jnp.where(left >= 0, digit << _within(left), digit >> _within(-left))
        found = found | jnp.where((left < 32) & (left > -16), there, jnp.uint32(0))
    return found
