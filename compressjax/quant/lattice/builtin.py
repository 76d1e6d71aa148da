"""Operators that no converter of ours writes, in the fixed point of LiteRT's builtin kernels.

XNNPACK declines them for int8. They are here for the files of others: ABS, PRELU, DIV,
SQUARED_DIFFERENCE and comparisons. `pointwise` has what XNNPACK takes, `fixed` the arithmetic.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from compressjax.quant.lattice import fixed, fixed_point
from compressjax.quant.lattice.fixed import Multiplier
from compressjax.quant.lattice.grid import (
    CODE_MAX,
    CODE_MIN,
    Affine,
    builtin_bounds,
    clamped_like,
    f32,
    ratio,
    to_int,
)

_DIFFERENCE_BITS, _ORDER_BITS = 7, 8


def absolute(x: jax.Array, x_q: Affine, out_q: Affine) -> jax.Array:
    """Computes ABS: |code - zero point| times x scale / out scale.

    Args:
        x: codes of any shape.
        x_q: the grid of `x`.
        out_q: the output's grid.

    Returns:
        Output codes, float32.

    Example:
        >>> one = Affine(f32(1.0), f32(0.0))
        >>> absolute(jnp.array([-3.0, 4.0]), one, one).tolist()
        [3.0, 4.0]
    """
    multiplier = ratio(x_q.scale, out_q.scale)
    steps = jnp.abs(x - f32(x_q.zero_point))
    moved = fixed.multiply(to_int(steps), fixed.multiplier_of(multiplier, f32(1.0)))
    return _stored(moved, steps * multiplier, out_q, CODE_MIN, CODE_MAX)


def prelu(x: jax.Array, slope: jax.Array, x_q: Affine, slope_q: Affine, out_q: Affine) -> jax.Array:
    """Computes PRELU (He et al. 2015, 1502.01852): below zero times `slope`.

    Args:
        x: codes of any shape.
        slope: codes that broadcast with `x` as in NumPy.
        x_q: the grid of `x`.
        slope_q: the grid of `slope`.
        out_q: the output's grid.

    Returns:
        Output codes in the broadcast shape, float32.

    Example:
        >>> one, half = (Affine(f32(s), f32(0.0)) for s in (1.0, 0.5))
        >>> prelu(jnp.array([-8.0, 4.0]), jnp.array([1.0]), one, half, one).tolist()
        [-4.0, 4.0]
    """
    above = ratio(x_q.scale, out_q.scale)
    below = ratio(f32(x_q.scale) * f32(slope_q.scale), out_q.scale)
    steps, times = x - f32(x_q.zero_point), slope - f32(slope_q.zero_point)
    moved = jnp.where(
        steps >= 0,
        fixed.multiply(to_int(steps), fixed.multiplier_of(above, f32(1.0))),
        fixed.multiply(to_int(steps * times), fixed.multiplier_of(below, f32(1.0))),
    )
    real = jnp.where(steps >= 0, steps * above, steps * times * below)
    return _stored(moved, real, out_q, CODE_MIN, CODE_MAX)


def squared_difference(
    a: jax.Array, b: jax.Array, a_q: Affine, b_q: Affine, out_q: Affine
) -> jax.Array:
    """Computes SQUARED_DIFFERENCE: both sides on a grid 2**7 times as fine as twice the coarser.

    Args:
        a: codes of any shape.
        b: codes that broadcast with `a` as in NumPy.
        a_q: the grid of `a`.
        b_q: the grid of `b`.
        out_q: the output's grid.

    Returns:
        Output codes in the broadcast shape, float32.

    Example:
        >>> one = Affine(f32(1.0), f32(0.0))
        >>> squared_difference(jnp.array([3.0]), jnp.array([-4.0]), one, one, one).tolist()
        [49.0]
    """
    coarse = 2 * jnp.maximum(f32(a_q.scale), f32(b_q.scale))
    with jax.enable_x64(True):  # a product of two scales has more bits than float32
        wide, out = (lax.stop_gradient(x).astype(jnp.float64) for x in (coarse, f32(out_q.scale)))
        last = fixed_point.quantized_multiplier(wide * wide / (out * 2.0 ** (2 * _DIFFERENCE_BITS)))
        last = Multiplier(*(part.astype(jnp.int32) for part in last))
    sides = ((a - f32(a_q.zero_point), a_q.scale), (b - f32(b_q.zero_point), b_q.scale))
    left, right = (
        fixed.multiply(to_int(steps) << _DIFFERENCE_BITS, fixed.multiplier_of(f32(scale), coarse))
        for steps, scale in sides
    )
    moved = fixed.multiply(jnp.square(left - right), last)
    real_left, real_right = (steps * f32(scale) for steps, scale in sides)
    steps = jnp.square(real_left - real_right) / f32(out_q.scale)
    return _stored(moved, steps, out_q, CODE_MIN, CODE_MAX)


def div(
    a: jax.Array,
    b: jax.Array,
    a_q: Affine,
    b_q: Affine,
    out_q: Affine,
    lo: float | None = None,
    hi: float | None = None,
) -> jax.Array:
    """Computes DIV by the reciprocal that gemmlowp's Newton steps find.

    LiteRT fails at run time where `b` is zero; here that divides by one step. Where a quotient is
    far below a step LiteRT shifts by more bits than there are, and what should be the zero point
    comes out as anything. So it does here.

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
        >>> div(jnp.array([13.0, -13.0]), jnp.array([4.0, -2.0]), one, one, one).tolist()
        [3.0, 7.0]
    """
    multiplier = ratio(a_q.scale, f32(b_q.scale) * f32(out_q.scale))
    times = fixed.multiplier_of(multiplier, f32(1.0))
    above, below = a - f32(a_q.zero_point), b - f32(b_q.zero_point)
    below = jnp.where(below == 0, 1.0, below)
    whole, size = to_int(jnp.where(below < 0, -above, above)), jnp.abs(to_int(below))
    headroom = 31 - _bit_length(jnp.where(whole < 0, ~whole, whole))
    inverse = jnp.take(jnp.asarray(_reciprocals(), jnp.int32), size, mode="clip")
    quotient = fixed.high_product(whole << headroom, inverse)
    shift = headroom + (_bit_length(size) - 1) - times.exponent
    moved = _divided(fixed.high_product(quotient, times.mantissa), shift)
    return _stored(moved, above / below * multiplier, out_q, *builtin_bounds(out_q, lo, hi))


def comparable(x: jax.Array, x_q: Affine) -> jax.Array:
    """Gives the integers that comparisons look at: steps times 2**8 times the scale.

    So LiteRT takes values for equal that lie closer than 2**-8, even on one grid. From a scale of 1
    on its shift is out of range, and its comparisons tell little apart. So it is here.

    Args:
        x: codes of any shape.
        x_q: their grid.

    Returns:
        int32, in the shape of `x`.

    Example:
        >>> comparable(jnp.array([3.0, -4.0]), Affine(f32(0.5), f32(0.0))).tolist()
        [384, -512]
    """
    steps = to_int(x - f32(x_q.zero_point)) << _ORDER_BITS
    times = fixed.multiplier_of(f32(x_q.scale), f32(1.0))
    return _divided(fixed.high_product(steps, times.mantissa), -times.exponent)


@functools.cache
def _reciprocals() -> np.ndarray:
    """For n of 0 to 255 the reciprocal of n / 2**k in [1, 2), in (1/2, 1], with 31 bits."""
    return np.array([_reciprocal(n) for n in range(256)], np.int64)


def _reciprocal(n: int) -> int:
    """gemmlowp's one_over_one_plus_x_for_x_in_0_1, from the bits behind the first."""
    bits = max(n, 1).bit_length()
    rest = (max(n, 1) << (32 - bits)) - (1 << 31)
    half = (rest + fixed_point.INT_MAX + 1) >> 1
    start, slope, one = 1515870810, -1010580540, 1 << 29  # 48/17 and -32/17 with two integer bits
    x = start + fixed_point.high_product_of(half, slope)
    for _ in range(3):
        left = one - fixed_point.high_product_of(half, x)
        x += fixed_point.saturated(fixed_point.high_product_of(x, left) << 2)
    return fixed_point.saturated(x << 1)


def _divided(value: jax.Array, exponent: jax.Array) -> jax.Array:
    """Divides by 2**exponent as `fixed.divide_by_power`, also where the exponent is out of range.

    Processors take it modulo 32 then, and the mask of what is rounded has all bits set.
    """
    fits = (exponent >= 0) & (exponent < 32)
    return jnp.where(
        fits,
        fixed.divide_by_power(value, exponent.clip(0, 31)),
        (value >> (exponent & 31)) + (value >= 0),
    )


def _bit_length(value: jax.Array) -> jax.Array:
    return 32 - lax.clz(value)


def _stored(
    moved: jax.Array,
    steps: jax.Array,
    out_q: Affine,
    lo: jax.typing.ArrayLike,
    hi: jax.typing.ArrayLike,
) -> jax.Array:
    """Shifts integers to the output's zero point and clamps them; the gradient is that of reals."""
    zero = f32(out_q.zero_point)
    exact = jnp.clip(moved.astype(jnp.float32) + zero, lo, hi)
    return clamped_like(exact, steps + zero, f32(lo), f32(hi))
