"""RESIZE_BILINEAR on codes: which lines of an image lie next to each other, and how they mix.

XNNPACK takes it for int8 and mixes in 11-bit fixed point. Input and output share one grid.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from compressjax.quant.lattice.grid import straight_through

_BITS = 11


def lines(
    size: int, wanted: int, *, align_corners: bool, half_pixel_centers: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds between which lines of an image the lines of a resized one lie.

    Args:
        size: lines of the image.
        wanted: lines of the resized one.
        align_corners: whether the first and last lines of both lie on each other.
        half_pixel_centers: whether lines are counted from the middle of pixels.

    Returns:
        The line below and the line above, int `[wanted]`, and how far each lies between the two,
        float32 in [0, 1], as XNNPACK finds them (its src/indirection.c).

    Example:
        >>> low, high, part = lines(2, 4, align_corners=False, half_pixel_centers=True)
        >>> low.tolist(), high.tolist(), part.tolist()
        ([0, 0, 0, 1], [1, 1, 1, 1], [0.0, 0.25, 0.75, 0.0])
    """
    corners = align_corners and wanted > 1
    top, bottom = (size - 1, wanted - 1) if corners else (size, wanted)
    scale, at = np.float32(top) / np.float32(bottom), np.arange(wanted, dtype=np.float32)
    half = np.float32(0.5 if half_pixel_centers else 0.0)
    at = np.clip((at + half) * scale - half, np.float32(0), np.float32(size - 1))
    low = np.floor(at).astype(int)
    return low, np.minimum(low + 1, size - 1), at - low.astype(np.float32)


def resize_bilinear(
    x: jax.Array,
    sizes: tuple[int, int],
    *,
    align_corners: bool = False,
    half_pixel_centers: bool = False,
) -> jax.Array:
    """Computes RESIZE_BILINEAR in XNNPACK's fixed point.

    The two parts are rounded to 11 bits, half to even; the four codes are mixed in int32, first
    along a line, and the sum is shifted right by 22 with halves rounded up.

    Args:
        x: codes `[N, H, W, C]`.
        sizes: wanted height and width.
        align_corners: as for `lines`.
        half_pixel_centers: as for `lines`.

    Returns:
        Codes `[N, *sizes, C]` on the same grid, float32.

    Example:
        >>> x = jnp.array([0.0, 3.0]).reshape(1, 1, 2, 1)
        >>> resize_bilinear(x, (1, 4), half_pixel_centers=True).ravel().tolist()
        [0.0, 1.0, 2.0, 3.0]
    """
    rows, columns = (
        lines(
            size,
            wanted,
            align_corners=align_corners,
            half_pixel_centers=half_pixel_centers,
        )
        for size, wanted in zip(x.shape[1:3], sizes, strict=True)
    )

    def corners(codes: jax.Array) -> list[jax.Array]:
        return [
            jnp.take(jnp.take(codes, row, axis=1), column, axis=2)
            for row in rows[:2]
            for column in columns[:2]
        ]

    def mixed(codes: jax.Array, down: jax.Array, right: jax.Array, one: int) -> jax.Array:
        top_left, top_right, bottom_left, bottom_right = corners(codes)
        top = top_left * one + (top_right - top_left) * right
        bottom = bottom_left * one + (bottom_right - bottom_left) * right
        return top * one + (bottom - top) * down

    down, right = rows[2].reshape(1, -1, 1, 1), columns[2].reshape(1, 1, -1, 1)
    fine = [jnp.asarray(np.rint(part * 2**_BITS), jnp.int32) for part in (down, right)]
    total = mixed(lax.stop_gradient(x).astype(jnp.int32), fine[0], fine[1], 1 << _BITS)
    exact = (total + (1 << (2 * _BITS - 1))) >> (2 * _BITS)
    approx = mixed(x, jnp.asarray(down), jnp.asarray(right), 1)
    return straight_through(exact.astype(jnp.float32), approx)
