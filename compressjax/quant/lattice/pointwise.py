"""The lattice's elementwise arithmetic: add, subtract, multiply, compare and requantize.

Where `products` multiplies sums once in float32, XNNPACK adds in 32-bit fixed point and changes
a grid with an 8-bit multiplier. Both round differently from float arithmetic on some codes, so
their integer forms are evaluated as such and only their derivatives are those of the reals.
"""

import jax
import jax.numpy as jnp
from jax import lax

from compressjax.quant.lattice.grid import (
    CODE_MAX,
    CODE_MIN,
    Affine,
    bounds,
    clamped_like,
    f32,
    opaque,
    ratio,
    store,
    to_int,
)


def add(
    a: jax.Array,
    b: jax.Array,
    a_q: Affine,
    b_q: Affine,
    out_q: Affine,
    lo: float | None = None,
    hi: float | None = None,
) -> jax.Array:
    """Computes ADD in XNNPACK's fixed point.

    With the ratios r = input scale / out scale and shift = 20 - exponent(max r), each input is
    multiplied by rint(r * 2**shift); the int32 sum is shifted right with halves rounded up.
    Exact for ratios in [2**-10, 2**8), the range XNNPACK takes.

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
        >>> one, two = (Affine(jnp.float32(s), jnp.float32(0.0)) for s in (1.0, 2.0))
        >>> add(jnp.array([3.0, 5.0]), jnp.array([4.0, 4.0]), one, one, two).tolist()
        [4.0, 5.0]
    """
    return _add(a, b, a_q, b_q, out_q, 1, bounds(out_q, lo, hi))


def sub(
    a: jax.Array,
    b: jax.Array,
    a_q: Affine,
    b_q: Affine,
    out_q: Affine,
    lo: float | None = None,
    hi: float | None = None,
) -> jax.Array:
    """Computes SUB in XNNPACK's fixed point: `add` with the second multiplier negated.

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
        >>> one = Affine(jnp.float32(1.0), jnp.float32(0.0))
        >>> sub(jnp.array([3.0]), jnp.array([4.0]), one, one, one).tolist()
        [-1.0]
    """
    return _add(a, b, a_q, b_q, out_q, -1, bounds(out_q, lo, hi))


def _add(
    a: jax.Array,
    b: jax.Array,
    a_q: Affine,
    b_q: Affine,
    out_q: Affine,
    sign: int,
    code_bounds: tuple[jax.Array, jax.Array],
) -> jax.Array:
    """Adds or subtracts in fixed point; differentiated as the real sum."""
    a, b = _same_rank(a, b)
    a_ratio, b_ratio = ratio(a_q.scale, out_q.scale), ratio(b_q.scale, out_q.scale)
    greatest = lax.stop_gradient(jnp.maximum(a_ratio, b_ratio))
    shift = 20 - ((lax.bitcast_convert_type(greatest, jnp.int32) >> 23) - 127)
    power = lax.bitcast_convert_type((shift + 127) << 23, jnp.float32)

    def multiplier(value: jax.Array) -> jax.Array:
        return jnp.round(lax.stop_gradient(value) * power).astype(jnp.int32)

    a_times, b_times = multiplier(a_ratio), sign * multiplier(b_ratio)
    a_zero, b_zero, zero = (to_int(q.zero_point) for q in (a_q, b_q, out_q))
    offset = (1 << (shift - 1)) - a_times * a_zero - b_times * b_zero
    total = (to_int(a) * a_times + offset) + to_int(b) * b_times
    exact = jnp.clip(((total >> shift) + zero).astype(jnp.float32), *code_bounds)
    steps = (a - f32(a_q.zero_point)) * a_ratio + sign * (b - f32(b_q.zero_point)) * b_ratio
    return clamped_like(exact, steps + f32(out_q.zero_point), *code_bounds)


def mul(
    a: jax.Array,
    b: jax.Array,
    a_q: Affine,
    b_q: Affine,
    out_q: Affine,
    lo: float | None = None,
    hi: float | None = None,
) -> jax.Array:
    """Computes MUL: the integer product times a scale * b scale / out scale, half to even.

    Exact for that multiplier in [2**-16, 2**8), the range XNNPACK takes.

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
        >>> one = Affine(jnp.float32(1.0), jnp.float32(0.0))
        >>> mul(jnp.array([3.0]), jnp.array([-4.0]), one, one, one).tolist()
        [-12.0]
    """
    a, b = _same_rank(a, b)
    whole = (a - f32(a_q.zero_point)) * (b - f32(b_q.zero_point))
    multiplier = ratio(f32(a_q.scale) * f32(b_q.scale), out_q.scale)
    return store(opaque(whole, whole) * multiplier, out_q, *bounds(out_q, lo, hi))


def maximum(a: jax.Array, b: jax.Array) -> jax.Array:
    """Computes MAXIMUM, which compares codes: both inputs and the output share one grid.

    The builtin kernel runs it (XNNPACK declines it for int8), in a quarter of the time of an ADD.

    Args:
        a: codes of any shape.
        b: codes on the same grid that broadcast with `a` as in NumPy.

    Returns:
        Codes on the same grid, float32.

    Example:
        >>> maximum(jnp.array([3.0, -4.0]), jnp.array([1.0])).tolist()
        [3.0, 1.0]
    """
    return jnp.maximum(*_same_rank(a, b))


def minimum(a: jax.Array, b: jax.Array) -> jax.Array:
    """Computes MINIMUM, like `maximum`.

    Args:
        a: codes of any shape.
        b: codes on the same grid that broadcast with `a` as in NumPy.

    Returns:
        Codes on the same grid, float32.

    Example:
        >>> minimum(jnp.array([3.0, -4.0]), jnp.array([1.0])).tolist()
        [1.0, -4.0]
    """
    return jnp.minimum(*_same_rank(a, b))


def requantize(x: jax.Array, x_q: Affine, out_q: Affine) -> jax.Array:
    """Moves codes to another grid as QUANTIZE from int8 to int8 does.

    XNNPACK multiplies by rint(256 * x scale / out scale), adds a half and shifts right by 8;
    exact for x scale / out scale in [2**-8, 2**7], the range it takes.

    Args:
        x: codes of any shape.
        x_q: the grid of `x`.
        out_q: the grid wanted.

    Returns:
        Codes in [-128, 127], float32.

    Example:
        >>> one, two = (Affine(jnp.float32(s), jnp.float32(0.0)) for s in (1.0, 2.0))
        >>> requantize(jnp.array([3.0, -3.0]), one, two).tolist()
        [2.0, -1.0]
    """
    multiplier = ratio(x_q.scale, out_q.scale)
    centred, zero_point = x - f32(x_q.zero_point), f32(out_q.zero_point)
    # Integers below 2**24 all through, so that float32 is exact here.
    moved = jnp.floor((centred * jnp.round(256.0 * multiplier) + 128.0) / 256.0) + zero_point
    exact = jnp.clip(moved, CODE_MIN, CODE_MAX)
    return clamped_like(exact, centred * multiplier + zero_point, f32(CODE_MIN), f32(CODE_MAX))


def _same_rank(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gives the array of lower rank leading axes of size 1."""
    rank = max(jnp.ndim(a), jnp.ndim(b))
    a, b = (jnp.reshape(v, (1,) * (rank - jnp.ndim(v)) + jnp.shape(v)) for v in (a, b))
    return a, b
