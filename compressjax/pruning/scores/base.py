"""What a pruning criterion is, and what several of them share.

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
        before they are masked, and by name with what `extra` lists.
      values: `values(state, params) -> tree like params` of real scores; the lowest are pruned
        first. Called only on the steps that update the masks.
      extra: names of the extra arguments of the optimizer's update that `update` takes, for
        instance `obj_fn`, `params -> loss []` on the batch of this step.
      of_weight: where a score is a cheap function of each weight by itself, that function of a
        leaf: `values` maps it over the tree. It lets masks be chosen without storing any scores.
    """

    init: Callable[[PyTree], PyTree]
    update: Callable[..., PyTree]
    values: Callable[[PyTree, PyTree], PyTree]
    extra: tuple[str, ...] = ()
    of_weight: Callable[[jax.Array], jax.Array] | None = None


def check_decay(decay: float) -> None:
    """Refuses a decay of evidence outside (0, 1].

    Args:
      decay: what evidence is multiplied by at every step.

    Raises:
      ValueError: if it is not in (0, 1].

    Example:
      >>> check_decay(1.0)
    """
    if not 0.0 < decay <= 1.0:
        raise ValueError(
            f"decay must be in (0, 1], found {decay}; 1 counts all steps alike, less forgets"
        )


def wide(x: jax.Array) -> jax.Array:
    """Casts to float32, in which all evidence is held.

    Args:
      x: array of any real dtype.

    Returns:
      float32 array.

    Example:
      >>> wide(jnp.zeros(2, jnp.bfloat16)).dtype
      dtype('float32')
    """
    return x.astype(jnp.float32)


def none_yet(params: PyTree) -> PyTree:
    """Makes evidence of nothing.

    Args:
      params: tree of arrays.

    Returns:
      A tree like `params` of float32 zeros, each with its parameter's sharding.

    Example:
      >>> none_yet({'kernel': jnp.ones(2, jnp.bfloat16)})
      {'kernel': Array([0., 0.], dtype=float32)}
    """
    return jax.tree.map(lambda x: jnp.zeros_like(x, dtype=jnp.float32), params)


def summed(
    term: Callable[[jax.Array, jax.Array], jax.Array],
    values: Callable[[jax.Array, jax.Array], jax.Array],
    decay: float,
) -> Score:
    """Makes a score of evidence that is summed over steps.

    Args:
      term: `term(weight, gradient) -> array like weight`, what one step adds; all float32.
      values: `values(evidence, weight) -> array like weight`, the scores; all float32.
      decay: what evidence is multiplied by before a step adds its own, in (0, 1].

    Returns:
      A `Score`; its state is a tree like the parameters of float32.

    Raises:
      ValueError: if `decay` is not in (0, 1].

    Example:
      >>> score = summed(lambda w, g: g, lambda evidence, w: evidence, 0.5)
      >>> state, w = score.init(jnp.zeros(1)), jnp.zeros(1)
      >>> score.update(jnp.ones(1), score.update(jnp.ones(1), state, w), w)
      Array([1.5], dtype=float32)
    """
    check_decay(decay)

    def update(gradients: PyTree, state: PyTree, params: PyTree) -> PyTree:
        return jax.tree.map(
            lambda g, evidence, w: decay * evidence + term(wide(w), wide(g)),
            gradients,
            state,
            params,
        )

    return Score(
        init=none_yet,
        update=update,
        values=lambda state, params: jax.tree.map(
            lambda evidence, w: values(evidence, wide(w)), state, params
        ),
    )


def of_leaves(values: Callable[[jax.Array], jax.Array]) -> Score:
    """Makes a score of the weights of each leaf alone.

    Args:
      values: `values(leaf) -> array like leaf`.

    Returns:
      A `Score` without state.

    Example:
      >>> of_leaves(jnp.abs).values((), {'kernel': jnp.array([-3.0])})
      {'kernel': Array([3.], dtype=float32)}
    """
    return Score(
        init=lambda params: (),
        update=lambda gradients, state, params: state,
        values=lambda state, params: jax.tree.map(values, params),
    )
