"""LiteRT's int16 arithmetic: 16-bit symmetric activations with 8-bit weights, per operator.

XNNPACK takes none of these operators, so all are those of the builtin kernels, whose fixed point
is in `fixed` and, for sums of more than 32 bits, in `total`. A code is an integer in [-32768,
32767] held in a float32; zero points are 0. Differentiated straight-through, like the int8
operators of the other modules.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from compressjax.quant.lattice import fixed, total
from compressjax.quant.lattice.fixed import Multiplier, multiplier_of, quotient
from compressjax.quant.lattice.grid import (
    Affine,
    along,
    builtin_bounds,
    clamped_like,
    dequantize,
    f32,
    ratio,
    straight_through,
)
from compressjax.quant.lattice.reductions import Padding, window_average
from compressjax.quant.lattice.total import Total

CODES = (-32768.0, 32767.0)
# The entries of LiteRT's table of logistic(i / 24) * 65536 that are one above the nearest integer.
_ROUNDED_UP = (1 << 255) | 0x800011009020440005C0467BAEFA7BD110


def rescale(
    value: Total,
    x_q: Affine,
    w_scale: jax.Array,
    out_q: Affine,
    axis: int,
    *,
    lo: float | None = None,
    hi: float | None = None,
) -> jax.Array:
    """Brings the sums of CONV_2D, DEPTHWISE_CONV_2D or TRANSPOSE_CONV to the output's grid.

    Args:
        value: from `total.total`.
        x_q: the input's grid.
        w_scale: the weights' scale, [] or [O].
        out_q: the output's grid.
        axis: of the sums, along which the channels lie.
        lo: least real value of the fused activation, or None.
        hi: greatest real value of the fused activation, or None.

    Returns:
        Output codes, float32.

    Example:
        >>> sums = total.of_int32(jnp.array([[8, -8]]))
        >>> half, one = (Affine(f32(s), f32(0.0)) for s in (0.5, 1.0))
        >>> rescale(sums, half, f32(0.5), one, 1, lo=0.0).tolist()
        [[2.0, 0.0]]
    """
    times = multiplier_of(f32(x_q.scale), f32(out_q.scale), f32(w_scale))
    exact = total.multiply(value, Multiplier(*_spread(times, axis, value.high.ndim)))
    return _stored(exact, _steps(value, x_q, w_scale, out_q, axis), lo, hi, out_q)


def rescale_dense(
    value: Total,
    x_q: Affine,
    w_scale: jax.Array,
    out_q: Affine,
    axis: int,
    *,
    lo: float | None = None,
    hi: float | None = None,
) -> jax.Array:
    """Brings the sums of FULLY_CONNECTED to the output's grid, in float64: see `rescale`.

    Args:
        value: from `total.total`.
        x_q: the input's grid.
        w_scale: the weights' scale, [] or [O].
        out_q: the output's grid.
        axis: of the sums, along which the channels lie.
        lo: least real value of the fused activation, or None.
        hi: greatest real value of the fused activation, or None.

    Returns:
        Output codes, float32.

    Example:
        >>> sums = total.of_int32(jnp.array([[8, -8]]))
        >>> half, one = (Affine(f32(s), f32(0.0)) for s in (0.5, 1.0))
        >>> rescale_dense(sums, half, f32(0.5), one, 1).tolist()
        [[2.0, -2.0]]
    """
    times = quotient(f32(x_q.scale), f32(w_scale), f32(out_q.scale))
    spread = fixed.Quotient(*_spread(times, axis, value.high.ndim))
    exact = total.multiply_float(value, spread)
    return _stored(exact, _steps(value, x_q, w_scale, out_q, axis), lo, hi, out_q)


def rescale_matmul(value: Total, a_q: Affine, b_q: Affine, out_q: Affine) -> jax.Array:
    """Brings the sums of BATCH_MATMUL to the output's grid; the scales are multiplied in float32.

    Args:
        value: from `total.matmul`.
        a_q: the grid of the first operand.
        b_q: the grid of the second.
        out_q: the output's grid.

    Returns:
        Output codes, float32.

    Example:
        >>> half, one = (Affine(f32(s), f32(0.0)) for s in (0.5, 1.0))
        >>> rescale_matmul(total.of_int32(jnp.array([8, -8])), half, half, one).tolist()
        [2.0, -2.0]
    """
    product = f32(a_q.scale) * f32(b_q.scale)
    exact = total.multiply(value, multiplier_of(product, f32(out_q.scale)))
    return _stored(exact, value.approx * ratio(product, out_q.scale), None, None, out_q)


def add(
    a: jax.Array,
    b: jax.Array,
    a_q: Affine,
    b_q: Affine,
    out_q: Affine,
    lo: float | None = None,
    hi: float | None = None,
) -> jax.Array:
    """Computes ADD: both inputs, shifted left by 15, on half the coarser grid; then the output's.

    Args:
        a: codes of any shape.
        b: codes that broadcast with `a` as in NumPy.
        a_q: the grid of `a`.
        b_q: the grid of `b`.
        out_q: the output's grid.
        lo: least real value of the fused activation, or None.
        hi: greatest real value of the fused activation, or None.

    Returns:
        Output codes in the broadcast shape, float32.

    Example:
        >>> one, two = (Affine(f32(s), f32(0.0)) for s in (1.0, 2.0))
        >>> add(jnp.array([3.0, 5.0]), jnp.array([4.0, 4.0]), one, one, two).tolist()
        [4.0, 5.0]
    """
    return _sum_of_two(a, b, a_q, b_q, out_q, 1, lo, hi)


def sub(
    a: jax.Array,
    b: jax.Array,
    a_q: Affine,
    b_q: Affine,
    out_q: Affine,
    lo: float | None = None,
    hi: float | None = None,
) -> jax.Array:
    """Computes SUB, like `add`.

    Args:
        a: codes of any shape.
        b: codes that broadcast with `a` as in NumPy.
        a_q: the grid of `a`.
        b_q: the grid of `b`.
        out_q: the output's grid.
        lo: least real value of the fused activation, or None.
        hi: greatest real value of the fused activation, or None.

    Returns:
        Output codes in the broadcast shape, float32.

    Example:
        >>> one = Affine(f32(1.0), f32(0.0))
        >>> sub(jnp.array([3.0]), jnp.array([4.0]), one, one, one).tolist()
        [-1.0]
    """
    return _sum_of_two(a, b, a_q, b_q, out_q, -1, lo, hi)


def _sum_of_two(
    a: jax.Array,
    b: jax.Array,
    a_q: Affine,
    b_q: Affine,
    out_q: Affine,
    sign: int,
    lo: float | None,
    hi: float | None,
) -> jax.Array:
    a_scale, b_scale, out_scale = (f32(q.scale) for q in (a_q, b_q, out_q))
    coarser = jnp.maximum(a_scale, b_scale)

    def scaled(codes: jax.Array, scale: jax.Array) -> jax.Array:
        mantissa, exponent = multiplier_of(scale, coarser)
        return fixed.multiply(_int(codes) << 15, Multiplier(mantissa, exponent - 1))

    mantissa, exponent = multiplier_of(coarser, out_scale)
    both = scaled(a, a_scale) + sign * scaled(b, b_scale)
    exact = fixed.multiply(both, Multiplier(mantissa, exponent - 14))
    steps = a * ratio(a_scale, out_scale) + sign * b * ratio(b_scale, out_scale)
    return _stored(exact, steps, lo, hi, out_q)


def mul(
    a: jax.Array,
    b: jax.Array,
    a_q: Affine,
    b_q: Affine,
    out_q: Affine,
    lo: float | None = None,
    hi: float | None = None,
) -> jax.Array:
    """Computes MUL; its multiplier is made in float32, unlike the others.

    Args:
        a: codes of any shape.
        b: codes that broadcast with `a` as in NumPy.
        a_q: the grid of `a`.
        b_q: the grid of `b`.
        out_q: the output's grid.
        lo: least real value of the fused activation, or None.
        hi: greatest real value of the fused activation, or None.

    Returns:
        Output codes in the broadcast shape, float32.

    Example:
        >>> one = Affine(f32(1.0), f32(0.0))
        >>> mul(jnp.array([3.0]), jnp.array([-4.0]), one, one, one).tolist()
        [-12.0]
    """
    factor = ratio(f32(a_q.scale) * f32(b_q.scale), out_q.scale)
    exact = fixed.multiply(_int(a) * _int(b), multiplier_of(factor, f32(1.0)))
    return _stored(exact, a * b * factor, lo, hi, out_q)


def requantize(
    x: jax.Array, x_q: Affine, out_q: Affine, lo: float | None = None, hi: float | None = None
) -> jax.Array:
    """Moves codes to another grid, as QUANTIZE from int16 to int16 and as a lone RELU do.

    Args:
        x: codes of any shape.
        x_q: the grid of `x`.
        out_q: the output's grid.
        lo: least real value of the activation, or None.
        hi: greatest real value of the activation, or None.

    Returns:
        Codes, float32.

    Example:
        >>> one, two = (Affine(f32(s), f32(0.0)) for s in (1.0, 2.0))
        >>> requantize(jnp.array([3.0, -3.0]), one, two).tolist()
        [2.0, -1.0]
    """
    exact = fixed.multiply(_int(x), multiplier_of(f32(x_q.scale), f32(out_q.scale)))
    return _stored(exact, x * ratio(x_q.scale, out_q.scale), lo, hi, out_q)


def max_pool(
    x: jax.Array,
    q: Affine,
    *,
    window_dimensions: Sequence[int],
    window_strides: Sequence[int],
    padding: Padding,
    lo: float | None = None,
    hi: float | None = None,
) -> jax.Array:
    """Computes MAX_POOL_2D; the arguments are those of `reductions.max_pool`.

    Example:
        >>> max_pool(jnp.array([1.0, 7.0, -3.0, 2.0]), Affine(f32(1.0), f32(0.0)),
        ...          window_dimensions=(2,), window_strides=(2,), padding="VALID").tolist()
        [7.0, 2.0]
    """
    best = lax.reduce_window(
        x, -jnp.inf, lax.max, tuple(window_dimensions), tuple(window_strides), padding
    )
    return _stored(best, best, lo, hi, q)


def avg_pool(
    x: jax.Array,
    q: Affine,
    *,
    window_dimensions: Sequence[int],
    window_strides: Sequence[int],
    padding: Padding,
    lo: float | None = None,
    hi: float | None = None,
) -> jax.Array:
    """Computes AVERAGE_POOL_2D; the arguments are those of `reductions.avg_pool`.

    Example:
        >>> avg_pool(jnp.array([1.0, 2.0, -1.0, -2.0]), Affine(f32(1.0), f32(0.0)),
        ...          window_dimensions=(2,), window_strides=(2,), padding="VALID").tolist()
        [2.0, -2.0]
    """
    exact, approx = window_average(x, window_dimensions, window_strides, padding, 2**16)
    return _stored(exact, approx, lo, hi, q)


def mean(
    x: jax.Array, x_q: Affine, out_q: Affine, axes: Sequence[int], keepdims: bool = False
) -> jax.Array:
    """Computes MEAN: the int32 sum times a multiplier that one over the count is worked into.

    Args:
        x: codes of any rank.
        x_q: the grid of `x`.
        out_q: the output's grid.
        axes: the axes to average over.
        keepdims: whether they stay, with size 1.

    Returns:
        Output codes, float32.

    Raises:
        ValueError: over 65,536 values, whose sum LiteRT's int32 may not hold.

    Example:
        >>> one, half = (Affine(f32(s), f32(0.0)) for s in (1.0, 0.5))
        >>> mean(jnp.array([[1.0, 2.0], [4.0, 5.0]]), one, half, axes=(1,)).tolist()
        [3.0, 9.0]
    """
    count = int(np.prod([x.shape[axis] for axis in axes]))
    if count > 2**16:
        raise ValueError(f"mean over {count} values of 16 bits, expected at most {2**16}")
    mantissa, exponent = multiplier_of(f32(x_q.scale), f32(out_q.scale))
    shift = count.bit_length() - 1
    whole, rest = mantissa // count, mantissa % count
    for bits in (min(shift, 8), max(shift - 8, 0)):  # mantissa * 2**shift / count
        rest = rest.astype(jnp.uint32) << bits
        whole, rest = (whole << bits) + (rest // count).astype(jnp.int32), rest % count
    exact = fixed.multiply(
        _int(x).sum(tuple(axes), keepdims=keepdims), Multiplier(whole, exponent - shift)
    )
    steps = x.mean(tuple(axes), keepdims=keepdims) * ratio(x_q.scale, out_q.scale)
    return _stored(exact, steps, None, None, out_q)


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
    place = (_int(x) * times + half) >> shift
    return place, jnp.abs(place)


def _sigmoid_at(index: jax.Array) -> jax.Array:
    """The kernel's table: logistic(index / 24) in 16 bits, with the last bit as it is there."""
    bits = [(_ROUNDED_UP >> i) & 1 for i in range(256)]
    table = np.round(65536 / (1 + np.exp(-np.arange(256) / 24))).astype(np.int32) + bits
    return jnp.asarray(table, jnp.int32)[jnp.minimum(index, 255)]


def _steps(value: Total, x_q: Affine, w_scale: jax.Array, out_q: Affine, axis: int) -> jax.Array:
    factor = ratio(f32(x_q.scale) * f32(w_scale), out_q.scale)
    return value.approx * (along(factor, axis, value.approx.ndim) if factor.ndim else factor)


def _spread(parts: Sequence[jax.Array], axis: int, ndim: int) -> list[jax.Array]:
    return [along(part, axis, ndim) if part.ndim else part for part in parts]


def _stored(
    exact: jax.Array, steps: jax.Array, lo: float | None, hi: float | None, out_q: Affine
) -> jax.Array:
    """Clamps codes, differentiated as the steps they were rounded from."""
    ends = builtin_bounds(out_q, lo, hi, CODES)
    return clamped_like(jnp.clip(f32(exact), *ends), steps, *ends)


def _int(codes: jax.Array) -> jax.Array:
    return lax.stop_gradient(codes).astype(jnp.int32)
