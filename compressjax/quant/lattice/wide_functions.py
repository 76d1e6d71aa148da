"""Functions of 16-bit activations, which LiteRT looks up in short tables with lines in between.

The int8 forms in `functions` and `tables` have an entry for every code. For 65,536 codes LiteRT
has 256 or 513 entries. Those of logistic, tanh and softmax are the same for all scales; those of
the others follow from two scales and are made inside the traced function, in single precision as
`tables` has it.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from compressjax.quant.lattice import fixed, fixed_point
from compressjax.quant.lattice.fixed import Multiplier, multiplier_of
from compressjax.quant.lattice.grid import (
    Affine,
    dequantize,
    f32,
    ratio,
    straight_through,
    to_int,
)
from compressjax.quant.lattice.tables import (
    single,
    single_gelu,
    single_tanh_gelu,
    where_positive,
)
from compressjax.quant.lattice.wide import CODES, stored

_Function = Callable[[jax.Array], jax.Array]
# The entries of LiteRT's table of logistic(i / 24) * 65536 that are one above the nearest integer.
_ROUNDED_UP = (1 << 255) | 0x800011009020440005C0467BAEFA7BD110
_SOFTMAX_SPAN = 10.0  # below the largest input, in which the exponential is tabulated


def logistic(x: jax.Array, x_q: Affine) -> jax.Array:
    """Computes LOGISTIC by a table of 256 values and the lines between them; output scale 2**-15.

    At an input scale of exactly 2**-12 LiteRT has another kernel, which is not this one.

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

    At an input scale of exactly 2**-12 or 2**-11 LiteRT has another kernel, which is not this one.

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


def exp(x: jax.Array, x_q: Affine, out_q: Affine) -> jax.Array:
    """Computes EXP between the 513 values that LiteRT tabulates over all codes.

    Args:
        x: codes of any shape.
        x_q: the grid of `x`.
        out_q: the output's grid.

    Returns:
        Output codes, float32.

    Example:
        >>> exp(jnp.array([0.0]), Affine(f32(1e-4), f32(0.0)), Affine(f32(1e-3), f32(0.0))).tolist()
        [1000.0]
    """
    return _tabled(x, x_q, out_q, lambda real: single(jnp.exp(real)), jnp.exp)


def log(x: jax.Array, x_q: Affine, out_q: Affine) -> jax.Array:
    """Computes LOG, like `exp`; in the table what is not positive counts as code -32768.

    Args:
        x: codes of any shape.
        x_q: the grid of `x`.
        out_q: the output's grid.

    Returns:
        Output codes, float32.

    Example:
        >>> grid = Affine(f32(1e-3), f32(0.0))
        >>> log(jnp.array([-500.0, 1000.0, 20000.0]), grid, grid).tolist()
        [-32768.0, -1.0, 2996.0]
    """

    def function(real: jax.Array) -> jax.Array:
        lowest = lax.stop_gradient(f32(out_q.scale)).astype(jnp.float64) * CODES[0]
        return jnp.where(real > 0, single(jnp.log(jnp.where(real > 0, real, 1.0))), lowest)

    def smooth(real: jax.Array) -> jax.Array:
        return where_positive(jnp.log, real, -jnp.inf)

    return _tabled(x, x_q, out_q, function, smooth)


def gelu(x: jax.Array, x_q: Affine, out_q: Affine, *, approximate: bool) -> jax.Array:
    """Computes GELU (Hendrycks & Gimpel 2016, 1606.08415), like `exp`.

    Args:
        x: codes of any shape.
        x_q: the grid of `x`.
        out_q: the output's grid.
        approximate: whether the form with tanh is meant.

    Returns:
        Output codes, float32.

    Example:
        >>> grid = Affine(f32(1e-3), f32(0.0))
        >>> gelu(jnp.array([-30000.0, 1000.0, 30000.0]), grid, grid, approximate=False).tolist()
        [0.0, 841.0, 30000.0]
    """

    def smooth(real: jax.Array) -> jax.Array:
        return jax.nn.gelu(real, approximate=approximate)

    return _tabled(x, x_q, out_q, single_tanh_gelu if approximate else single_gelu, smooth)


def _tabled(
    x: jax.Array, x_q: Affine, out_q: Affine, function: _Function, smooth: _Function
) -> jax.Array:
    """Fills a table as LUTPopulate does, in single precision, and looks codes up."""
    with jax.enable_x64(True):
        x_scale, out_scale = (
            lax.stop_gradient(f32(q.scale)).astype(jnp.float64) for q in (x_q, out_q)
        )
        low, high = single(x_scale * CODES[0]), single(x_scale * CODES[1])
        spread = single(single(out_scale * CODES[1]) - single(out_scale * CODES[0]))
        inverse, step = single(65536.0 / spread), single(high - low) / 512
        starts = single(low + single(jnp.arange(513, dtype=jnp.float64) * step))
        value = _rounded(single(function(starts) * inverse))
        middle = _rounded(single(function(single(starts[:-1] + step / 2)) * inverse))
        following = single(function(starts[1:]) * inverse)
        error = _rounded(single(following + value[:-1]) / 2) - middle
        last = _rounded(single(function(high[None]) * inverse))
        entries = jnp.append(value[:-1] - _rounded(error / 2), last)
        table = entries.clip(*CODES).astype(jnp.int32)
    steps = smooth(dequantize(x, x_q)) / f32(out_q.scale)
    return stored(_between(to_int(x), table), steps, None, None, out_q)


def _rounded(x: jax.Array) -> jax.Array:
    """Rounds float64 numbers of single precision, and infinities, with halves away from zero."""
    return jnp.trunc(x + jnp.copysign(0.5, x))


def _between(place: jax.Array, table: jax.Array) -> jax.Array:
    """Looks up a table of 513 entries: the upper 9 bits choose two, the lower 7 lie in between."""
    index, part = 256 + (place >> 7), place & 0x7F
    first, second = jnp.take(table, index), jnp.take(table, index + 1)
    slope = (second - first).astype(jnp.int16).astype(jnp.int32)  # LiteRT's are int16
    return (first + ((slope * part + 64) >> 7)).astype(jnp.int16).astype(jnp.int32)


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
