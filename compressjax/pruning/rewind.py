"""Rewinding: what makes iterative pruning a search for lottery tickets.

A wrapper around `prune`: wherever masks change, the weights that are left go back to what they
were at an early step, and train again. Combine it with `iterative`, whose rounds are the tickets.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from compressjax.pruning.masks import PruneState, apply_masks
from compressjax.pruning.schedules import check_count

PyTree = Any


class RewindState(NamedTuple):
    """State of `rewind`.

    Attributes:
      pruned: state of the `prune` inside.
      params: the parameters to go back to.
      inner: the state, to go back to, of the optimizer inside `prune`.
    """

    pruned: PruneState
    params: PyTree
    inner: PyTree


def rewind(
    tx: optax.GradientTransformationExtraArgs, to: int = 0
) -> optax.GradientTransformationExtraArgs:
    """Sends weights back to an early step whenever masks change after it.

    Frankle and Carbin 2019, "The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural
    Networks" (`to=0`); Frankle et al. 2020, "Linear Mode Connectivity and the Lottery Ticket
    Hypothesis" (later steps). Kept weights, all other parameters and the state of the optimizer
    inside `prune`, with the counter of its learning-rate schedule, become what they were after
    step `to`; masks and their schedule go on. Parameters come back up to the rounding of one
    addition, since an optimizer can only add to them.

    Args:
      tx: what `prune` returns, without `latent`.
      to: the step to go back to; 0 is the start.

    Returns:
      An optax transformation whose update needs `params`, in which `masks` finds the masks.

    Raises:
      ValueError: if `to` is negative.
      TypeError: if `to` is not an int; and, by `init`, if `tx` is not what `prune` returns.

    Example:
      >>> from compressjax import pruning
      >>> tx = rewind(pruning.prune(optax.sgd(1.0), schedule=pruning.one_shot(0.5, at=2)))
      >>> params = {'kernel': jnp.array([[3.0, 1.0]])}
      >>> state = tx.init(params)
      >>> for _ in range(2):
      ...     updates, state = tx.update({'kernel': jnp.array([[1.0, -1.0]])}, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> params['kernel']
      Array([[3., 0.]], dtype=float32)
    """
    check_count(to, "to", 0)

    def init(params: PyTree) -> RewindState:
        pruned = tx.init(params)
        if not isinstance(pruned, PruneState) or pruned.held != ():
            raise TypeError(
                "rewind goes around what prune(...) returns, without latent; its state is a "
                f"{type(pruned).__name__} here. Use rewind(prune(optax.chain(...), ...))"
            )
        return RewindState(pruned, *jax.tree.map(jnp.array, (params, pruned.inner)))

    def update(
        updates: PyTree, state: RewindState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, RewindState]:
        updates, pruned = tx.update(updates, state.pruned, params, **extra_args)
        after = optax.apply_updates(params, updates)
        old, new = jax.tree.leaves(state.pruned.keep), jax.tree.leaves(pruned.keep)
        changed = jnp.stack([jnp.any(a != b) for a, b in zip(old, new, strict=True)])
        again = jnp.any(changed) & (pruned.step > to)

        def back() -> tuple[PyTree, PyTree]:
            start = apply_masks(state.params, pruned.keep)
            moves = jax.tree.map(
                lambda aim, param, move: (aim - param).astype(move.dtype), start, params, updates
            )
            return moves, state.inner

        updates, inner = jax.lax.cond(again, back, lambda: (updates, pruned.inner))
        saved = jax.lax.cond(
            pruned.step == to, lambda: (after, inner), lambda: (state.params, state.inner)
        )
        return updates, RewindState(pruned._replace(inner=inner), *saved)

    return optax.GradientTransformationExtraArgs(init, update)
