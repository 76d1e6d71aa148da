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

PyTree = Any


class Score(NamedTuple):
    """A pruning criterion.

    Attributes:
      init: `init(params) -> state`, the evidence before the first step.
      update: `update(gradients, state, params) -> state`, called on every step with the gradients
        before they are masked.
      values: `values(state, params) -> tree like params` of real scores; the lowest are pruned
        first. Called only on the steps that update the masks.
    """

    init: Callable[[PyTree], PyTree]
    update: Callable[[PyTree, PyTree, PyTree], PyTree]
    values: Callable[[PyTree, PyTree], PyTree]


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
