"""Pools and reductions of 16-bit activations, as LiteRT's builtin kernels compute them.

Like `reductions`, but XNNPACK takes no int16: sums are int32, a mean works one over the count into
a 31-bit multiplier, and a sum is multiplied in float32.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from compressjax.quant.lattice import fixed
from compressjax.quant.lattice.fixed import Multiplier, multiplier_of
from compressjax.quant.lattice.grid import (
    Affine,
    away,
    f32,
    ratio,
    rounded_product,
    to_int,
)
from compressjax.quant.lattice.reductions import Padding, window_average
from compressjax.quant.lattice.wide import stored


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
    return stored(best, best, lo, hi, q)


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
    return stored(exact, approx, lo, hi, q)


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
    count = _check_count(x, axes)
    mantissa, exponent = multiplier_of(f32(x_q.scale), f32(out_q.scale))
    shift = count.bit_length() - 1
    whole, rest = mantissa // count, mantissa % count
    for bits in (min(shift, 8), max(shift - 8, 0)):  # mantissa * 2**shift / count
        rest = rest.astype(jnp.uint32) << bits
        whole, rest = (whole << bits) + (rest // count).astype(jnp.int32), rest % count
    exact = fixed.multiply(
        to_int(x).sum(tuple(axes), keepdims=keepdims), Multiplier(whole, exponent - shift)
    )
    steps = x.mean(tuple(axes), keepdims=keepdims) * ratio(x_q.scale, out_q.scale)
    return stored(exact, steps, None, None, out_q)


def sum(  # noqa: A001
    x: jax.Array, x_q: Affine, out_q: Affine, axes: Sequence[int], keepdims: bool = False
) -> jax.Array:
    """Computes SUM: the int32 sum times the float32 ratio of the scales, halves away from zero.

    Args:
        x: codes of any rank.
        x_q: the grid of `x`.
        out_q: the output's grid.
        axes: the axes to sum over.
        keepdims: whether they stay, with size 1.

    Returns:
        Output codes, float32.

    Raises:
        ValueError: over 65,536 values, whose sum LiteRT's int32 may not hold.

    Example:
        >>> one, two = (Affine(f32(s), f32(0.0)) for s in (1.0, 2.0))
        >>> sum(jnp.array([[1.0, 3.0], [4.0, 5.0]]), one, two, axes=(1,)).tolist()
        [2.0, 5.0]
    """
    _check_count(x, axes)
    factor = ratio(x_q.scale, out_q.scale)
    whole = to_int(x).sum(tuple(axes), keepdims=keepdims)
    exact = away(rounded_product(f32(whole), lax.stop_gradient(factor)))
    return stored(exact, x.sum(tuple(axes), keepdims=keepdims) * factor, None, None, out_q)


def _check_count(x: jax.Array, axes: Sequence[int]) -> int:
    count = int(np.prod([x.shape[axis] for axis in axes]))
    if count > 2**16:
        raise ValueError(
            f"mean or sum over {count} values of 16 bits, expected at most {2**16}: reduce one "
            "axis after the other"
        )
    return count
