"""What happens to images on the device: pure functions to call inside jit.

A data set that `fits` is put on the device once, and a jitted epoch draws its batches with
`epoch_indices`, augments and normalises them there. One that does not is fed by `host`, with the
same indices, so both see the same batches in the same order.
"""

import os

import chex
import jax
import jax.numpy as jnp
import numpy as np

from compressjax.data.source import Arrays


def moments(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Measures each channel's mean and standard deviation, for `normalise`.

    Args:
      images: `[N, H, W, C]`, uint8 or floating.

    Returns:
      Mean `[C]` and standard deviation `[C]`, float32, of uint8 images scaled to 0..1, and of
      floating images as they are.

    Example:
      >>> moments(np.array([0, 255], np.uint8).reshape([2, 1, 1, 1]))
      (array([0.5], dtype=float32), array([0.5], dtype=float32))
    """
    chex.assert_rank(images, 4)
    scale = 255.0 if images.dtype == np.uint8 else 1.0
    mean = images.mean((0, 1, 2), dtype=np.float64) / scale
    std = images.std((0, 1, 2), dtype=np.float64) / scale
    return mean.astype(np.float32), std.astype(np.float32)


def normalise(images: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Scales images to mean 0 and standard deviation 1 per channel.

    Args:
      images: `[B, H, W, C]`, uint8 (taken as 0..1) or floating.
      mean: `[C]` float, as `moments` gives it.
      std: `[C]` float; a channel that never varies (0) is only centred.

    Returns:
      `[B, H, W, C]` float32.

    Example:
      >>> images = jnp.array([0, 255], jnp.uint8).reshape([2, 1, 1, 1])
      >>> normalise(images, jnp.array([0.5]), jnp.array([0.5])).ravel()
      Array([-1.,  1.], dtype=float32)
    """
    chex.assert_rank(images, 4)
    chex.assert_shape([mean, std], [images.shape[-1]])
    unit = 255.0 if images.dtype == jnp.uint8 else 1.0
    channel = [1, 1, 1, -1]
    std = jnp.where(std > 0, std, 1)
    return (images.astype(jnp.float32) / unit - mean.reshape(channel)) / std.reshape(channel)


def augment(
    rng: jax.Array, images: jax.Array, *, shift: int = 0, flip: bool = False, degrees: float = 0.0
) -> jax.Array:
    """Moves, mirrors and turns each image at random; run it on images before `normalise`.

    Shift and flip are those of He et al., "Deep Residual Learning" (2016), section 4.2: pad, crop
    at random, mirror with probability 1/2. What comes in from outside is 0.

    Args:
      rng: a key; each image draws its own transformation from it.
      images: `[B, H, W, C]`, any dtype.
      shift: largest shift in pixels, up and down and sideways; every whole number up to it is
        equally likely.
      flip: mirror left to right, for data whose classes survive that (digits do not).
      degrees: largest rotation about the centre, in either direction, interpolated bilinearly.

    Returns:
      `[B, H, W, C]` of the same dtype.

    Raises:
      ValueError: a negative shift or rotation.

    Example:
      >>> images = jnp.ones([2, 8, 8, 1], jnp.uint8)
      >>> move = jax.jit(lambda rng: augment(rng, images, shift=1, degrees=10.0))
      >>> moved = move(jax.random.key(0))
      >>> moved.shape, moved.dtype
      ((2, 8, 8, 1), dtype('uint8'))
    """
    chex.assert_rank(images, 4)
    if shift < 0 or degrees < 0:
        raise ValueError(f"augment: shift={shift} and degrees={degrees} must not be negative")
    rotate_rng, shift_rng, flip_rng = jax.random.split(rng, 3)
    batch = images.shape[0]
    if degrees:
        angles = jax.random.uniform(rotate_rng, [batch], minval=-degrees, maxval=degrees)
        images = jax.vmap(_rotate)(images, jnp.deg2rad(angles))
    if shift:
        padded = jnp.pad(images, [(0, 0), (shift, shift), (shift, shift), (0, 0)])
        corners = jax.random.randint(shift_rng, [batch, 2], 0, 2 * shift + 1)
        images = jax.vmap(
            lambda image, corner: jax.lax.dynamic_slice(
                image, (corner[0], corner[1], 0), images.shape[1:]
            )
        )(padded, corners)
    if flip:
        mirrored = jax.random.bernoulli(flip_rng, 0.5, [batch, 1, 1, 1])
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images


def _rotate(image: jax.Array, angle: jax.Array) -> jax.Array:
    """Turns one image `[H, W, C]` by `angle` radians about its centre, bilinearly."""
    height, width, _ = image.shape
    y, x = jnp.meshgrid(
        jnp.arange(height) - (height - 1) / 2, jnp.arange(width) - (width - 1) / 2, indexing="ij"
    )
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    places = [
        cosine * y - sine * x + (height - 1) / 2,
        sine * y + cosine * x + (width - 1) / 2,
    ]
    sample = jax.vmap(
        lambda channel: jax.scipy.ndimage.map_coordinates(channel, places, order=1),
        in_axes=2,
        out_axes=2,
    )
    turned = sample(image.astype(jnp.float32))
    if jnp.issubdtype(image.dtype, jnp.integer):
        turned = jnp.round(turned)
    return turned.astype(image.dtype)


def epoch_indices(rng: jax.Array, n: int, batch: int) -> jax.Array:
    """Shuffles `n` examples into whole batches; the examples left over sit this epoch out.

    Args:
      rng: a key; the same key gives the same batches.
      n: number of examples.
      batch: examples in a batch.

    Returns:
      `[n // batch, batch]` int32, without repetition: scan over its rows.

    Raises:
      ValueError: `batch` is not in `1..n`.

    Example:
      >>> epoch_indices(jax.random.key(0), 1437, 128).shape
      (11, 128)
    """
    if not 1 <= batch <= n:
        raise ValueError(f"epoch_indices: batch={batch} must be from 1 to the {n} examples")
    return jax.random.permutation(rng, n)[: n // batch * batch].reshape([-1, batch])


def fits(arrays: Arrays, *, device: jax.Device | None = None, fraction: float = 0.25) -> bool:
    """Says whether a split may be held on a device, with room left for training.

    Args:
      arrays: the split.
      device: where it would be held; the default device if None.
      fraction: the share of the device's memory (of the host's, for CPU devices) it may take.

    Returns:
      True if the arrays take at most that share.

    Example:
      >>> fits(Arrays(np.zeros([4, 8, 8, 1], np.uint8), np.zeros(4, np.int32), num_classes=10))
      True
    """
    device = device or jax.devices()[0]
    stats = device.memory_stats() or {}
    memory = stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return arrays.images.nbytes + arrays.labels.nbytes <= fraction * memory
