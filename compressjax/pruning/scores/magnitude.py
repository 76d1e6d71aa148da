"""Scores from the weights alone: no data, no state, nothing to pay between mask updates."""

import jax
import jax.numpy as jnp

from compressjax.pruning.scores.base import Score, of_leaves, wide


def magnitude() -> Score:
    """Scores a weight by its absolute value.

    Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks".

    Returns:
      A `Score` without state.

    Example:
      >>> score = magnitude()
      >>> score.values(score.init({'kernel': jnp.zeros(2)}), {'kernel': jnp.array([-3.0, 2.0])})
      {'kernel': Array([3., 2.], dtype=float32)}
    """
    return of_leaves(jnp.abs)._replace(of_weight=jnp.abs)


def _square(weights: jax.Array) -> jax.Array:
    return jnp.square(wide(weights))


def squared_magnitude() -> Score:
    """Scores a weight by its square.

    The order of single weights is that of `magnitude`. The two differ where a pattern averages the
    scores of the weights in a unit: this one compares units by their mean square, so by their
    Euclidean norm where they have one size. Weights under about 1e-22 have a square of 0.

    Returns:
      A `Score` without state, of float32 values.

    Example:
      >>> squared_magnitude().values((), {'kernel': jnp.array([-3.0, 2.0])})
      {'kernel': Array([9., 4.], dtype=float32)}
    """
    return of_leaves(_square)._replace(of_weight=_square)


def _lamp(weights: jax.Array) -> jax.Array:
    """LAMP scores, float32, of a leaf of any shape."""
    size = jnp.abs(wide(weights)).ravel()
    # Relative to the largest, so that no square over- or underflows where it matters.
    largest = jnp.max(size, initial=0.0)
    squares = jnp.square(size / jnp.where(largest > 0, largest, 1.0))
    # From the largest down, the earlier of equal ones first, so that ties keep it.
    order = jnp.argsort(size, descending=True, stable=True)
    falling = squares[order]
    total = jnp.cumsum(falling)
    shares = falling / jnp.where(total > 0, total, 1.0)
    # Partial sums are rounded: without this a smaller weight could come out ahead of a larger one.
    shares = jax.lax.cummin(shares)
    return jnp.zeros_like(size).at[order].set(shares, unique_indices=True).reshape(weights.shape)


def lamp() -> Score:
    """Scores a weight by its share among the weights of its leaf that are not smaller.

    Lee et al. 2021, "Layer-adaptive sparsity for the magnitude-based pruning" (LAMP), equation 1:
    `w[u]^2 / sum(w[v]^2 for v >= u)` with the leaf sorted by magnitude. It is the part
    of what is left of a leaf's squared norm that goes with the weight, so scores of different
    leaves compare: use it with the budget `global_()`. Within a leaf the order is that of
    `magnitude`, and with `uniform()` nothing changes. The largest weight of a leaf that is not all
    zero scores 1, the most there is, so no leaf is emptied while fewer others need a place.

    Every leaf is sorted on the steps that update masks, in O(n log n). Under a mesh a sort gathers
    the leaf on every device.

    Returns:
      A `Score` without state, of float32 values in [0, 1]; of equal weights the earlier in
      row-major order scores higher. In leaves of a million weights and more, some magnitudes that
      differ by a few parts in 10 million score the same.

    Example:
      >>> lamp().values((), {'kernel': jnp.array([1.0, -1.0, 1.0, 1.0])})['kernel'][:2]
      Array([1. , 0.5], dtype=float32)
    """
    return of_leaves(_lamp)
