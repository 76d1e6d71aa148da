"""Scores by chance: what every other criterion has to beat."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from compressjax.pruning.scores.base import Score

PyTree = Any


def draws(key: jax.Array, like: PyTree) -> PyTree:
    """Draws a number for every weight.

    Args:
      key: [] typed key.
      like: tree of arrays.

    Returns:
      A tree like it of float32 numbers, uniform in [0, 1); the same under any sharding.

    Example:
      >>> jax.tree.map(jnp.shape, draws(jax.random.key(0), {'kernel': jnp.zeros((2, 3))}))
      {'kernel': (2, 3)}
    """
    return optax.tree.random_like(key, like, jax.random.uniform, dtype=jnp.float32)


def random(seed: int = 0) -> Score:
    """Scores weights by chance: the baseline that every other criterion has to beat.

    Gale et al. 2019, "The State of Sparsity in Deep Neural Networks", compares with it.

    Args:
      seed: of the numbers; a weight has the same one at every step.

    Returns:
      A `Score` without state.

    Example:
      >>> score = random(seed=1)
      >>> score.values((), {'kernel': jnp.zeros((2, 3))})['kernel'].shape
      (2, 3)
    """
    return Score(
        init=lambda params: (),
        update=lambda gradients, state, params: state,
        values=lambda state, params: draws(jax.random.key(seed), params),
    )
