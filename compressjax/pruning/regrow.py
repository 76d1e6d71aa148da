"""Regrowing: which pruned weights return when masks are chosen anew.

Without it sparsity only removes. A method here lets some of the weights that are kept go, and as
many others return, so that a network which is sparse from its first step finds its own shape: the
schedule is `constant`, and the budget stays exact. Weights return from zero, and their moments in
the optimizer start over; Adam, whose bias correction is over by then, moves them by several times
the learning rate at first, so the papers' optimizer, SGD with momentum, is the safer one. Methods
that keep the values of pruned weights are in `latent.py`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from compressjax.pruning import scores
from compressjax.pruning.schedules import check_count

PyTree = Any

_RANDOM = scores.random()


class Regrow(NamedTuple):
    """Which weights return.

    Attributes:
      fraction: `fraction(step) -> float32 []`, how much of what is kept is let go for others.
      values: `values(step, gradients) -> tree like params` of scores: of the weights that are not
        kept, those with the highest return. Gradients are those of all weights.
      start: the score that chooses the first masks; None leaves it to the score of `prune`, as it
        should for a network that is trained already.
    """

    fraction: Callable[[jax.Array], jax.Array]
    values: Callable[[jax.Array, PyTree], PyTree]
    start: scores.Score | None


def _fraction(fraction: float, end: int | None) -> Callable[[jax.Array], jax.Array]:
    if not 0.0 < fraction < 1.0:
        raise ValueError(
            f"fraction must be in (0, 1), found {fraction}; it is the part of the kept weights "
            "that others replace"
        )
    if end is None:
        return lambda step: jnp.float32(fraction)
    check_count(end, "end", 1)

    def falling(step: jax.Array) -> jax.Array:
        progress = jnp.minimum(step / end, 1.0).astype(jnp.float32)
        return jnp.where(step < end, fraction / 2 * (1 + jnp.cos(math.pi * progress)), 0.0)

    return falling


def set_(
    fraction: float = 0.3,
    end: int | None = None,
    *,
    seed: int = 0,
    start: scores.Score | None = _RANDOM,
) -> Regrow:
    """Lets the smallest weights go and random ones return.

    Mocanu et al. 2018, "Scalable training of artificial neural networks with adaptive sparse
    connectivity inspired by network science" (sparse evolutionary training, SET), section "SET".
    The paper keeps the fraction constant and starts from a random mask.

    Args:
      fraction: part of the kept weights that is replaced at a mask update, in (0, 1).
      end: step at which the fraction reaches 0 along a cosine; None keeps it constant.
      seed: of the random numbers; they depend on it and on the step only.
      start: the score that chooses the first masks; None leaves it to the score of `prune`.

    Returns:
      A `Regrow` for `prune`, whose `score` says which weights go: `magnitude`.

    Raises:
      ValueError: if `fraction` is not in (0, 1) or `end` is not at least 1.
      TypeError: if `end` is not an int.

    Example:
      >>> regrow = set_(0.3)
      >>> values = regrow.values(jnp.int32(1), {'kernel': jnp.zeros((2, 3))})
      >>> values['kernel'].shape, float(regrow.fraction(jnp.int32(1))) == jnp.float32(0.3)
      ((2, 3), Array(True, dtype=bool))
    """

    def values(step: jax.Array, gradients: PyTree) -> PyTree:
        return scores.draws(jax.random.fold_in(jax.random.key(seed), step), gradients)

    return Regrow(_fraction(fraction, end), values, start)


def rigl(
    fraction: float = 0.3, end: int | None = None, *, start: scores.Score | None = _RANDOM
) -> Regrow:
    """Lets the smallest weights go and those with the largest gradients return.

    Evci et al. 2020, "Rigging the Lottery: Making All Tickets Winners" (RigL), section 3: the
    fraction falls along a cosine, `fraction / 2 * (1 + cos(pi * t / end))`. The paper stops at
    three quarters of the training; it skips the optimizer on the steps that update masks, here
    they train as well.

    Args:
      fraction: part of the kept weights that is replaced at the first mask update, in (0, 1).
      end: step at which the fraction reaches 0; None keeps it constant.
      start: the score that chooses the first masks; None leaves it to the score of `prune`.

    Returns:
      A `Regrow` for `prune`, whose `score` says which weights go: `magnitude`.

    Raises:
      ValueError: if `fraction` is not in (0, 1) or `end` is not at least 1.
      TypeError: if `end` is not an int.

    Example:
      >>> [round(float(rigl(0.3, end=100).fraction(jnp.int32(step))), 3) for step in (0, 50, 100)]
      [0.3, 0.15, 0.0]
    """
    return Regrow(
        _fraction(fraction, end),
        lambda step, gradients: jax.tree.map(jnp.abs, gradients),
        start,
    )


def reset_moments(
    tx: optax.GradientTransformation, state: PyTree, params: PyTree, returned: PyTree
) -> PyTree:
    """Sets what an optimizer remembers of some weights to what it starts with.

    It never looks inside the state: optax says which of its arrays belong to parameters.

    Args:
      tx: the optimizer.
      state: its state.
      params: the parameters.
      returned: tree like `params` of boolean arrays: what is to be forgotten; False for none of a
        leaf.

    Returns:
      A state like `state`. Arrays of other shapes than their parameter's (the factored moments of
      `optax.adafactor`) and counters stay as they are.

    Example:
      >>> tx = optax.sgd(0.1, momentum=0.9)
      >>> params = {'a': jnp.zeros(2)}
      >>> _, state = tx.update({'a': jnp.ones(2)}, tx.init(params), params)
      >>> state = reset_moments(tx, state, params, {'a': jnp.array([True, False])})
      >>> optax.tree.get(state, 'trace')['a']
      Array([0., 1.], dtype=float32)
    """

    def is_hole(node: Any) -> bool:
        return isinstance(node, optax.MaskedNode)

    def mark(leaf: Any, back: Any) -> Any:
        fits = not is_hole(leaf) and jnp.shape(back) == jnp.shape(leaf)
        return back if fits else jax.tree.map(lambda _: False, leaf)

    marks = optax.tree.map_params(
        tx, mark, state, returned, transform_non_params=lambda _: False, is_leaf=is_hole
    )
    return jax.tree.map(
        lambda back, leaf, fresh: leaf if back is False else jnp.where(back, fresh, leaf),
        marks,
        state,
        tx.init(params),
    )
