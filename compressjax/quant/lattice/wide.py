"""LiteRT's int16 arithmetic: 16-bit symmetric activations with 8-bit weights, per operator.

XNNPACK takes none of these operators, so all are those of the builtin kernels, whose fixed point
is in `fixed` and, for sums of more than 32 bits, in `total`. A code is an integer in [-32768,
32767] held in a float32; zero points are 0. Differentiated straight-through, like the int8
operators of the other modules. `wide_reductions` has means and pools, and
`wide_functions` what LiteRT looks up in tables.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.quant.lattice import fixed, total
from compressjax.quant.lattice.fixed import Multiplier, multiplier_of, quotient
from compressjax.quant.lattice.grid import (
    Affine,
    along,
    builtin_bounds,
    clamped_like,
    f32,
    ratio,
    to_int,
)
from compressjax.quant.lattice.total import Total

CODES = (-32768.0, 32767.0)


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
    return stored(exact, _steps(value, x_q, w_scale, out_q, axis), lo, hi, out_q)


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
    return stored(exact, _steps(value, x_q, w_scale, out_q, axis), lo, hi, out_q)


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
    return stored(exact, value.approx * ratio(product, out_q.scale), None, None, out_q)


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

    Where nothing is broadcast LiteRT adds 16 numbers of an example at a time, with one rounding
    of an input in place of two; what is left over, and other shapes, are as the reference has it.
    The first axis is that of the examples.

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

    def scaled(codes: jax.Array, scale: jax.Array, places: int) -> jax.Array:
        """Shifts to the left by so many of the 15 places, and by the others in the product."""
        mantissa, exponent = multiplier_of(scale, coarser)
        times = Multiplier(mantissa, exponent - 1 + 15 - places)
        return fixed.multiply(to_int(codes) << places, times)

    def both(places: int) -> jax.Array:
        return scaled(a, a_scale, places) + sign * scaled(b, b_scale, places)

    whole = both(15)
    if sign > 0 and a.shape[1:] == b.shape[1:]:
        whole = jnp.where(_in_sixteens(a.shape[1:]), both(0), whole)
    mantissa, exponent = multiplier_of(coarser, out_scale)
    exact = fixed.multiply(whole, Multiplier(mantissa, exponent - 14))
    steps = a * ratio(a_scale, out_scale) + sign * b * ratio(b_scale, out_scale)
    return stored(exact, steps, lo, hi, out_q)


def _in_sixteens(shape: Sequence[int]) -> np.ndarray:
    """Which numbers of an array LiteRT takes sixteen at a time: all but the last few."""
    size = int(np.prod(shape))
    return (np.arange(size) < size - size % 16).reshape(shape)


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
    exact = fixed.multiply(to_int(a) * to_int(b), multiplier_of(factor, f32(1.0)))
    return stored(exact, a * b * factor, lo, hi, out_q)


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
    exact = fixed.multiply(to_int(x), multiplier_of(f32(x_q.scale), f32(out_q.scale)))
    return stored(exact, x * ratio(x_q.scale, out_q.scale), lo, hi, out_q)


def _steps(value: Total, x_q: Affine, w_scale: jax.Array, out_q: Affine, axis: int) -> jax.Array:
    factor = ratio(f32(x_q.scale) * f32(w_scale), out_q.scale)
    return value.approx * (along(factor, axis, value.approx.ndim) if factor.ndim else factor)


def _spread(parts: Sequence[jax.Array], axis: int, ndim: int) -> list[jax.Array]:
    return [along(part, axis, ndim) if part.ndim else part for part in parts]


def stored(
    exact: jax.Array, steps: jax.Array, lo: float | None, hi: float | None, out_q: Affine
) -> jax.Array:
    """Clamps codes, differentiated as the steps that they were rounded from.

    Args:
        exact: the codes before the clamp, of any type.
        steps: real value / output scale, float32 in the shape of `exact`.
        lo: least real value of the fused activation, or None.
        hi: greatest real value of the fused activation, or None.
        out_q: the output's grid.

    Returns:
        Output codes, float32.

    Example:
        >>> one = Affine(f32(1.0), f32(0.0))
        >>> stored(jnp.array([40000, 3]), f32([4e4, 3.0]), None, None, one).tolist()
        [32767.0, 3.0]
    """
    ends = builtin_bounds(out_q, lo, hi, CODES)
    return clamped_like(jnp.clip(f32(exact), *ends), steps, *ends)
