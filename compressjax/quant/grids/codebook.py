"""Weight sharing: a few values, found by k-means in the weights and trained as such.

The other grids have a formula for their values; this one has a table of them. Only the table and
an index for each weight are stored.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from compressjax.quant.grids.grid import Grid
from compressjax.quant.grids.lookup import cell_of
from compressjax.quant.lattice.grid import ratio, straight_through


def codebook(size: int, *, iterations: int = 25) -> Grid:
    """Makes the grid of shared weights: Deep Compression (Han et al. 2016, 1510.00149, section 3).

    The centroids start evenly between the smallest and the largest weight (section 3.2) and move
    to the means of their clusters. A weight takes the nearest centroid, found so that
    nothing larger than the weights is made. In training a centroid gets the sum of the
    gradients of its weights (equation 3): weights that stay where they are keep their cluster.

    Args:
      size: how many centroids each kernel has, at least 2.
      iterations: of k-means.

    Returns:
      The grid, to be learned: its params are the centroids, `[size]`. Pruned weights need
      `keep_zeros`; then the centroids are fitted to the others alone. The codes of a codebook are
      indices, no int8 values, so it is simulated.

    Raises:
      ValueError: if `size` is below 2 or `iterations` negative, and, when it meets a kernel, if
        that has fewer weights than centroids.

    Example:
      >>> grid = codebook(2)
      >>> w = jnp.array([[1.0, 1.5], [-2.0, -1.0]])
      >>> grid.project(w, grid.fit(w)).tolist()
      [[1.25, 1.25], [-1.5, -1.5]]
    """
    if size < 2:
        raise ValueError(f"a codebook of {size} was asked for, expected at least 2 centroids")
    if iterations < 0:
        raise ValueError(f"iterations is {iterations}, expected at least 0")

    def fit(w: jax.Array, keep: jax.Array | None = None) -> jax.Array:
        if w.size < size:
            raise ValueError(
                f"a codebook of {size} is larger than its kernel, which has shape {w.shape} and "
                f"{w.size} weights: take fewer centroids, or leave this kernel out"
            )
        return k_means(lax.stop_gradient(w), size, iterations, keep)

    def project(w: jax.Array, centroids: jax.Array) -> jax.Array:
        # Training may reorder centroids; the search needs them in order.
        ordered = jnp.sort(centroids)
        shared = ordered[_nearest(ordered, w)]
        return straight_through(lax.stop_gradient(shared), shared + w)

    def around(w: jax.Array, centroids: jax.Array) -> tuple[jax.Array, jax.Array]:
        ordered = jnp.sort(centroids)
        above = cell_of(ordered, w, side="right")
        return ordered[jnp.maximum(above - 1, 0)], ordered[jnp.minimum(above, size - 1)]

    bits = math.ceil(math.log2(size))
    return Grid(f"codebook of {size}", bits, fit, project, None, around, learned=True)


def k_means(w: jax.Array, size: int, iterations: int, keep: jax.Array | None = None) -> jax.Array:
    """Clusters numbers by Lloyd's algorithm (Lloyd 1982), from evenly spaced centroids.

    It takes no more memory than a few arrays like `w`. A
    centroid without weights stays where it is, so centroids stay in order.

    Args:
      w: float32 of any shape.
      size: how many centroids.
      iterations: how many times to move them.
      keep: mask of the numbers that count; `None` for all.

    Returns:
      float32 `[size]`, in ascending order.

    Example:
      >>> k_means(jnp.array([0.0, 1.0, 10.0, 12.0]), 2, 3).tolist()
      [0.5, 11.0]
    """
    w = w.ravel()
    weight = jnp.ones_like(w) if keep is None else keep.ravel().astype(w.dtype)
    some = weight.sum() > 0
    low = jnp.where(some, jnp.where(weight > 0, w, jnp.inf).min(), 0.0)
    high = jnp.where(some, jnp.where(weight > 0, w, -jnp.inf).max(), 0.0)

    def step(_: int, centroids: jax.Array) -> jax.Array:
        cluster = _nearest(centroids, w)
        total = jax.ops.segment_sum(weight * w, cluster, size)
        count = jax.ops.segment_sum(weight, cluster, size)
        return jnp.where(count > 0, ratio(total, jnp.maximum(count, 1.0)), centroids)

    return lax.fori_loop(0, iterations, step, jnp.linspace(low, high, size))


def _nearest(ordered: jax.Array, w: jax.Array) -> jax.Array:
    """The index of the nearest of some ordered values; of two as near, the lower."""
    return cell_of((ordered[1:] + ordered[:-1]) / 2, w, side="left")
