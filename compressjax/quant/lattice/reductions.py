"""The lattice's pools, means and sums over codes.

Unlike `products` these multiply by no weights, and LiteRT's two kinds of kernel meet here:
XNNPACK takes the max pool, the mean and the sum; the average pool stays with the builtin kernel,
whose integer division and clamp round halves away from zero.
"""

import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from compressjax.quant.lattice.grid import (
    CODE_MAX,
    CODE_MIN,
    Affine,
    bounds,
    builtin_bounds,
    clamped_like,
    f32,
    ratio,
    rounded_product,
)

Padding = str | Sequence[tuple[int, int]]


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
    """Computes MAX_POOL_2D; padded positions never win.

    XNNPACK takes it where no stride is longer than its window; else the builtin kernel runs,
    whose only difference is how a fused activation's bound is rounded.

    Args:
        x: codes of any rank.
        q: the grid of the input and of the output.
        window_dimensions: window size per axis of `x`.
        window_strides: stride per axis of `x`.
        padding: 'SAME', 'VALID' or a pair per axis of `x`.
        lo: least real value of the fused activation, or None.
        hi: greatest real value of the fused activation, or None.

    Returns:
        Codes on the same grid, float32.

    Example:
        >>> one = Affine(jnp.float32(1.0), jnp.float32(0.0))
        >>> max_pool(jnp.array([1.0, 7.0, -3.0, 2.0]), one, window_dimensions=(2,),
        ...          window_strides=(2,), padding="VALID").tolist()
        [7.0, 2.0]
    """
    best = lax.reduce_window(
        x, -jnp.inf, lax.max, tuple(window_dimensions), tuple(window_strides), padding
    )
    gaps = any(map(operator.gt, window_strides, window_dimensions))
    code_bounds = (builtin_bounds if gaps else bounds)(q, lo, hi)
    return clamped_like(jnp.clip(best, *code_bounds), best, *code_bounds)


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
    """Computes AVERAGE_POOL_2D with LiteRT's builtin kernel: XNNPACK declines it for int8.

    The sum of the codes is divided by the number of positions inside the input, padding
    excluded, with halves rounded away from zero.

    Args:
        x: codes of any rank.
        q: the grid of the input and of the output.
        window_dimensions: window size per axis of `x`.
        window_strides: stride per axis of `x`.
        padding: 'SAME', 'VALID' or a pair per axis of `x`.
        lo: least real value of the fused activation, or None.
        hi: greatest real value of the fused activation, or None.

    Returns:
        Codes on the same grid, float32.

    Raises:
        ValueError: if the window has 2**17 positions or more.

    Example:
        >>> one = Affine(jnp.float32(1.0), jnp.float32(0.0))
        >>> avg_pool(jnp.array([1.0, 2.0, -1.0, -2.0]), one, window_dimensions=(2,),
        ...          window_strides=(2,), padding="VALID").tolist()
        [2.0, -2.0]
    """
    exact, approx = window_average(x, window_dimensions, window_strides, padding, 2**17)
    code_bounds = builtin_bounds(q, lo, hi)
    return clamped_like(jnp.clip(exact, *code_bounds), approx, *code_bounds)


def window_average(
    x: jax.Array,
    window_dimensions: Sequence[int],
    window_strides: Sequence[int],
    padding: Padding,
    too_many: int,
) -> tuple[jax.Array, jax.Array]:
    """Averages codes over windows, with halves rounded away from zero; the rest as `avg_pool`.

    Args:
        x: codes of any rank.
        window_dimensions: window size per axis of `x`.
        window_strides: stride per axis of `x`.
        padding: 'SAME', 'VALID' or a pair per axis of `x`.
        too_many: positions of a window whose sum an int32 may not hold.

    Returns:
        The integers, float32, and what they were rounded from, which is differentiable.

    Raises:
        ValueError: if a window has so many positions.

    Example:
        >>> exact, approx = window_average(jnp.array([1.0, 2.0]), (2,), (2,), "VALID", 2**16)
        >>> float(exact[0]), float(approx[0])
        (2.0, 1.5)
    """
    window, strides = tuple(window_dimensions), tuple(window_strides)
    if np.prod(window) >= too_many:
        raise ValueError(
            f"average pool over a window of {window}: at most {too_many - 1} positions sum "
            "exactly; use mean for a larger one"
        )
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape, window, strides, padding)
    pads = tuple((int(before), int(after)) for before, after in padding)
    codes = lax.stop_gradient(x).astype(jnp.int32)
    whole = lax.reduce_window(codes, 0, lax.add, window, strides, pads)
    count = _positions(x.shape, window, strides, pads)
    half = jnp.where(whole > 0, count // 2, -(count // 2))
    exact = lax.div(whole + half, jnp.broadcast_to(count, whole.shape)).astype(jnp.float32)
    approx = lax.reduce_window(x, 0.0, lax.add, window, strides, pads)
    return exact, approx / count.astype(np.float32)


def _positions(
    shape: Sequence[int],
    window: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[tuple[int, int]],
) -> np.ndarray:
    """Counts the positions of each window that lie inside the input, int32."""
    count = np.ones((1,) * len(shape), np.int32)
    for axis, (size, width, stride, (before, after)) in enumerate(
        zip(shape, window, strides, pads, strict=True)
    ):
        starts = np.arange(0, size + before + after - width + 1, stride) - before
        inside = np.minimum(starts + width, size) - np.maximum(starts, 0)
        spread = [1] * len(shape)
        spread[axis] = len(starts)
        count = count * inside.astype(np.int32).reshape(spread)
    return count


def mean(
    x: jax.Array, x_q: Affine, out_q: Affine, axes: Sequence[int], keepdims: bool = False
) -> jax.Array:
    """Computes MEAN over any axes as XNNPACK does.

    The raw int32 sum of codes is multiplied by (x scale / out scale) * (1 / count); the zero
    points enter as one float32 addend, and the total is rounded half to even.

    Args:
        x: codes of any rank.
        x_q: the grid of `x`.
        out_q: the output's grid.
        axes: the axes to average over.
        keepdims: whether they stay, with size 1.

    Returns:
        Output codes, float32.

    Example:
        >>> one, half = (Affine(jnp.float32(s), jnp.float32(0.0)) for s in (1.0, 0.5))
        >>> mean(jnp.array([[1.0, 2.0], [4.0, 5.0]]), one, half, axes=(1,)).tolist()
        [3.0, 9.0]
    """
    count = int(np.prod([x.shape[axis] for axis in axes]))
    return _reduce(x, x_q, out_q, axes, keepdims, count, np.float32(1.0) / np.float32(count))


def sum(  # noqa: A001
    x: jax.Array, x_q: Affine, out_q: Affine, axes: Sequence[int], keepdims: bool = False
) -> jax.Array:
    """Computes SUM over any axes as XNNPACK does: `mean` without the division.

    Args:
        x: codes of any rank.
        x_q: the grid of `x`.
        out_q: the output's grid.
        axes: the axes to sum over.
        keepdims: whether they stay, with size 1.

    Returns:
        Output codes, float32.

    Example:
        >>> one, two = (Affine(jnp.float32(s), jnp.float32(0.0)) for s in (1.0, 2.0))
        >>> sum(jnp.array([[1.0, 3.0], [4.0, 5.0]]), one, two, axes=(1,)).tolist()
        [2.0, 4.0]
    """
    count = int(np.prod([x.shape[axis] for axis in axes]))
    return _reduce(x, x_q, out_q, axes, keepdims, count, np.float32(1.0))


def _reduce(
    x: jax.Array,
    x_q: Affine,
    out_q: Affine,
    axes: Sequence[int],
    keepdims: bool,
    count: int,
    factor: np.float32,
) -> jax.Array:
    """Sums codes, scales the sum and moves it to the output's grid."""
    axes = tuple(axes)
    zero_in, zero_out = f32(x_q.zero_point), f32(out_q.zero_point)
    multiplier = ratio(x_q.scale, out_q.scale) * factor
    whole = lax.stop_gradient(x).astype(jnp.int32).sum(axes, keepdims=keepdims)
    offset = zero_out - rounded_product(zero_in * count, multiplier)
    codes = jnp.round(rounded_product(whole.astype(jnp.float32), multiplier) + offset)
    exact = jnp.clip(codes, CODE_MIN, CODE_MAX)
    centred = (x - zero_in).sum(axes, keepdims=keepdims)
    return clamped_like(exact, centred * multiplier + zero_out, f32(CODE_MIN), f32(CODE_MAX))
