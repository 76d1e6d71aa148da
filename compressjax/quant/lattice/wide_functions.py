"""Functions of 16-bit activations, which LiteRT looks up in short tables with lines in between.

The int8 forms in `functions` and `tables` have an entry for every code. For 65,536 codes LiteRT
has 256 or 513 entries, the same for all scales in the case of logistic, tanh and softmax.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from compressjax.quant.lattice import fixed, fixed_point
from compressjax.quant.lattice.fixed import Multiplier, multiplier_of
from compressjax.quant.lattice.grid import Affine, dequantize, f32, ratio, straight_through
from compressjax.quant.lattice.wide import CODES, stored, to_int

# The entries of LiteRT's table of logistic(i / 24) * 65536 that are one above the nearest integer.
_ROUNDED_UP = (1 << 255) | 0x800011009020440005C0467BAEFA7BD110
_SOFTMAX_SPAN = 10.0  # below the largest input, in which the exponential is tabulated


def logistic(x: jax.Array, x_q: Affine) -> jax.Array:
    """Computes LOGISTIC by a table of 256 values and the lines between them; output scale 2**-15.

    Args:
        x: codes of any shape.
        x_q: the grid of `x`.

    Returns:
        Codes, float32.

    Example:
        >>> logistic(jnp.array([-32768.0, 0.0, 32767.0]), Affine(f32(0.001), f32(0.0))).tolist()
        [1.0, 16384.0, 32767.0]
    """
    place, size = _on_table(x, x_q)
    high, part = size >> 9, size & 0x1FF
    first, second = _sigmoid_at(high), _sigmoid_at(high + 1)
    found = jnp.where(high >= 255, 0x7FFF << 10, (first << 9) + part * (second - first))
    found = jnp.where(place >= 0, found + (1 << 9), (1 << 25) - found + (1 << 9) - 1)
    return straight_through(f32(found >> 10), jax.nn.sigmoid(dequantize(x, x_q)) * 2.0**15)


def tanh(x: jax.Array, x_q: Affine) -> jax.Array:
    """Computes TANH by the table of `logistic`, tanh(x) = 2 logistic(2 x) - 1; output scale 2**-15.

    Args:
        x: codes of any shape.
        x_q: the grid of `x`.

    Returns:
        Codes, float32.

    Example:
        >>> tanh(jnp.array([-32768.0, 0.0, 32767.0]), Affine(f32(0.001), f32(0.0))).tolist()
        [-32767.0, 0.0, 32767.0]
    """
    place, size = _on_table(x, x_q)
    high, part = size >> 8, size & 0xFF
    first, second = _sigmoid_at(high), _sigmoid_at(high + 1)
    found = jnp.where(high >= 255, 0xFFFF << 8, (first << 8) + part * (second - first))
    half = (1 << 23, 1 << 7)
    found = jnp.where(place >= 0, found - half[0] + half[1], half[0] - found + half[1] - 1)
    return straight_through(f32(found >> 8), jnp.tanh(dequantize(x, x_q)) * 2.0**15)


def _on_table(x: jax.Array, x_q: Affine) -> tuple[jax.Array, jax.Array]:
    """Brings codes to the table's grid, 1 / (3 * 4096), and gives their sizes there.

    The multiplier is 3 * 4096 * scale, doubled until it is over 32767 / 2, and cut.
    """
    bits = lax.bitcast_convert_type(lax.stop_gradient(f32(x_q.scale)), jnp.int32)
    mantissa, exponent = 3 * ((bits & 0x7FFFFF) | 0x800000), (bits >> 23) - 150
    cut = jnp.where(mantissa > 33553408, 11, 10)  # 33553408 is 32767 / 2 * 2**11
    shift = jnp.clip(-(exponent + 12) - cut, 0, 31)
    times = mantissa >> jnp.clip(-(exponent + 12) - shift, 0, 31)
    half = jnp.where(shift > 0, 1 << jnp.maximum(shift - 1, 0), 0)
    place = (to_int(x) * times + half) >> shift
    return place, jnp.abs(place)


def _sigmoid_at(index: jax.Array) -> jax.Array:
    """The kernel's table: logistic(index / 24) in 16 bits, with the last bit as it is there."""
    bits = [(_ROUNDED_UP >> i) & 1 for i in range(256)]
    table = np.round(65536 / (1 + np.exp(-np.arange(256) / 24))).astype(np.int32) + bits
    return jnp.asarray(table, jnp.int32)[jnp.minimum(index, 255)]


def softmax(x: jax.Array, x_q: Affine, axis: int = -1) -> jax.Array:
    """Computes SOFTMAX (beta 1) by tables of exp(x) and 1 / (1 + x); output scale 2**-15.

    Exponentials of what lies more than 10 below the largest input are taken at 10.

    Args:
        x: codes of any shape, at most 65,536 along `axis`.
        x_q: the grid of `x`.
        axis: the axis to normalize; LiteRT knows the last one only.

    Returns:
        Codes in [0, 32767], float32.

    Example:
        >>> softmax(jnp.array([30000.0, 30000.0]), Affine(f32(0.001), f32(0.0))).tolist()
        [16384.0, 16384.0]
    """
    with jax.enable_x64(True):  # the span in 16 bits is no float32
        scale = lax.stop_gradient(f32(x_q.scale)).astype(jnp.float64)
        parts = fixed_point.quantized_multiplier(scale / (_SOFTMAX_SPAN / 65535.0))
        times = Multiplier(*(part.astype(jnp.int32) for part in parts))
    below = to_int(x) - to_int(x).max(axis, keepdims=True)
    place = jnp.clip(fixed.multiply(below, times) + 32767, *map(int, CODES))
    powers = _between(place, jnp.asarray(_exponentials(), jnp.int32))
    total = powers.sum(axis, keepdims=True)
    zeros = lax.clz(total)
    leading = (total.astype(jnp.uint32) << (zeros - 1).astype(jnp.uint32)) + (1 << 13)
    place = jnp.clip((leading >> 14).astype(jnp.int32) - (3 << 15), *map(int, CODES))
    inverse = _between(place, jnp.asarray(_inverses(), jnp.int32))
    shift = 31 - zeros
    exact = (powers * inverse + (1 << (shift - 1))) >> shift
    approx = jax.nn.softmax(dequantize(x, x_q), axis) * 2.0**15
    return straight_through(f32(jnp.clip(exact, 0, 32767)), approx)


def leaky_relu(x: jax.Array, x_q: Affine, out_q: Affine, slope: float) -> jax.Array:
    """Computes LEAKY_RELU, with a 31-bit multiplier above zero and one below.

    Args:
        x: codes of any shape.
        x_q: the grid of `x`.
        out_q: the output's grid.
        slope: the factor below zero.

    Returns:
        Output codes, float32.

    Example:
        >>> one = Affine(f32(1.0), f32(0.0))
        >>> leaky_relu(jnp.array([-800.0, 800.0]), one, one, 0.25).tolist()
        [-200.0, 800.0]
    """
    above = ratio(x_q.scale, out_q.scale)
    below = ratio(f32(x_q.scale) * np.float32(abs(slope)), out_q.scale)
    sign = 1 if slope >= 0 else -1
    right, left = (
        fixed.multiply(to_int(x), multiplier_of(factor, f32(1.0))) for factor in (above, below)
    )
    exact = jnp.where(x >= 0, right, sign * left)
    return stored(exact, jnp.where(x >= 0, x * above, sign * x * below), None, None, out_q)


def _between(place: jax.Array, table: jax.Array) -> jax.Array:
    """Looks up a table of 513 entries: the upper 9 bits choose two, the lower 7 lie in between."""
    index, part = 256 + (place >> 7), place & 0x7F
    first, second = jnp.take(table, index), jnp.take(table, index + 1)
    return first + (((second - first) * part + 64) >> 7)


@functools.cache
def _exponentials() -> np.ndarray:
    """The table of exp(x) for x from -10 to 0, in 15 bits."""
    return _tabulated(np.exp, -_SOFTMAX_SPAN, 0.0)


@functools.cache
def _inverses() -> np.ndarray:
    """The table of 1 / (1 + x) for x from 0 to 1, in 15 bits."""
    return _tabulated(lambda x: 1 / (1 + x), 0.0, 1.0)


def _tabulated(function: Callable[[np.ndarray], np.ndarray], low: float, high: float) -> np.ndarray:
    """Fills a table as LUTPopulate does: entries are moved by half the error behind each."""
    step = (high - low) / 512
    start = low + np.arange(512) * step
    value, middle, following = (
        function(x) * 32768.0 for x in (start, start + step / 2, low + np.arange(1, 513) * step)
    )
    error = _away((following + _away(value)) / 2) - _away(middle)
    entries = np.append(
        _away(value) - _away(error / 2), _away(function(np.array([high])) * 32768.0)
    )
    return entries.clip(*CODES).astype(np.int64)


def _away(x: np.ndarray) -> np.ndarray:
    return np.trunc(x + np.copysign(0.5, x))
