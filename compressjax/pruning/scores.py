"""Pruning criteria: how much each weight matters.

A score answers "which weights go first", and nothing else: how many go is a budget, when is a
schedule, and in which shape is a pattern. It is a named tuple of pure functions with explicit
state, so that a criterion which gathers evidence over batches is written like one which only
looks at the weights.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

PyTree = Any


class Score(NamedTuple):
    """A pruning criterion.

    Attributes:
      init: `init(params) -> state`, the evidence before the first step.
      update: `update(gradients, state, params) -> state`, called on every step with the gradients
        before they are masked, and by name with what `extra` lists.
      values: `values(state, params) -> tree like params` of real scores; the lowest are pruned
        first. Called only on the steps that update the masks.
      extra: names of the extra arguments of the optimizer's update that `update` takes, for
        instance `obj_fn`, `params -> loss []` on the batch of this step.
    """

    init: Callable[[PyTree], PyTree]
    update: Callable[..., PyTree]
    values: Callable[[PyTree, PyTree], PyTree]
    extra: tuple[str, ...] = ()


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
    return Score(
        init=lambda params: (),
        update=lambda gradients, state, params: state,
        values=lambda state, params: jax.tree.map(jnp.abs, params),
    )


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
