"""Pruning as an optax transformation: what joins score, budget, pattern and schedule.

Masks live in the optimizer's state and nowhere else. `prune` changes values and never shapes;
cutting channels out is `compressjax.slimming.shrink`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from compressjax import tree
from compressjax.pruning import scores
from compressjax.pruning.budgets import Budget
from compressjax.pruning.choose import UNIFORM, UNSTRUCTURED
from compressjax.pruning.latent import Latent, with_latent
from compressjax.pruning.masker import Masker, masker
from compressjax.pruning.masks import PruneState, apply_masks, checked
from compressjax.pruning.patterns import Pattern
from compressjax.pruning.regrow import Regrow, reset_moments
from compressjax.pruning.schedules import Schedule

PyTree = Any

_MAGNITUDE = scores.magnitude()


def _erase(updates: PyTree, keep: PyTree, params: PyTree) -> PyTree:
    """Replaces the update of every pruned weight by minus the weight: their sum is exactly 0."""
    kept = tree.paths(keep)

    def erase(path: str, update: jax.Array, param: jax.Array) -> jax.Array:
        if path not in kept:
            return update
        # A narrower update could not hold minus the weight.
        dtype = jnp.promote_types(update.dtype, param.dtype)
        return jnp.where(kept[path], update.astype(dtype), -param.astype(dtype))

    return tree.map_with_path(erase, updates, params)


def _returned(before: PyTree, after: PyTree, params: PyTree) -> PyTree:
    """Marks weights that were pruned and are kept now; False where a leaf has no mask."""
    old, new = tree.paths(before), tree.paths(after)
    return tree.map_with_path(
        lambda path, _: new[path] & ~old[path] if path in new else False, params
    )


def _masked(
    tx: optax.GradientTransformationExtraArgs, keeps: Masker, *, returns: bool
) -> optax.GradientTransformationExtraArgs:
    """The transformation in which pruned weights are lost; `returns`: they may start anew."""

    def init(params: PyTree) -> PruneState:
        keep, evidence = keeps.init(params)
        return PruneState(jnp.zeros((), jnp.int32), keep, evidence, tx.init(params))

    def update(
        updates: PyTree, state: PruneState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, PruneState]:
        params = checked(state, params)
        step = optax.safe_increment(state.step)
        evidence = keeps.gather(updates, state.score, params, extra_args)
        keep = keeps.renew(step, state.keep, evidence, params, updates)
        inner = state.inner
        if returns:
            inner = reset_moments(tx, inner, params, _returned(state.keep, keep, params))
        updates, inner = tx.update(apply_masks(updates, keep), inner, params, **extra_args)
        return _erase(updates, keep, params), PruneState(step, keep, evidence, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def prune(
    tx: optax.GradientTransformation,
    *,
    schedule: Schedule,
    score: scores.Score = _MAGNITUDE,
    budget: Budget = UNIFORM,
    pattern: Pattern = UNSTRUCTURED,
    select: str | Sequence[str] = "**/kernel",
    regrow: Regrow | None = None,
    latent: Latent | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Prunes weights while an optimizer trains them.

    After `optax.apply_updates(params, updates)` every pruned weight is exactly 0, whatever `tx`
    does (momentum, weight decay): its update is minus the weight. So nothing that changes updates
    may come after it; `tx` goes inside, as in `prune(optax.chain(...), ...)`. The optimizer inside
    sees the gradients of pruned weights as 0, so their moments decay, while the score sees the
    gradients as they came.

    On each step that `schedule` marks, masks are computed anew, from the weights before that
    step's update, with exactly as many units kept as `budget` says (ties keep the earlier element
    in row-major order, and the earlier leaf). Weights pruned before go first, so while sparsity
    grows no weight returns. On all other steps the masks stay. Sparsity is traced: it never
    recompiles a step.

    Two options let weights come back. With `regrow` some kept weights are replaced by pruned ones;
    they start from 0, and with fresh moments, as do weights that return because the schedule's
    sparsity falls. With `latent` dense weights are trained in the state, and masks are chosen among
    all of them, from their values after the update.

    Args:
      tx: the optimizer.
      schedule: when, and how sparse: `polynomial`, `cosine`, `constant`, `one_shot` and others.
      score: which weights matter: `magnitude`, `saliency` and others.
      budget: how many each leaf keeps: `uniform`, `global_`, `erdos_renyi`, `erk`, `by_path`.
      pattern: in which shape: `unstructured`, `n_m`, `block`, `channels`.
      select: globs of the parameters to prune; all others train as `tx` says.
      regrow: which pruned weights return: `set_`, `rigl`; None: none.
      latent: how pruned weights are trained on: `straight_through`, `top_kast`; None: not at all.

    Returns:
      An optax transformation whose update needs `params`, and the extra arguments that the score
      lists. Its state is a pytree of arrays. `init` raises ValueError where a glob of `select`
      matches nothing or the pattern does not fit a leaf, and TypeError for a selected leaf that is
      not floating; `update` raises ValueError without `params`, without an extra argument, or with
      parameters it was not initialised for.

    Raises:
      ValueError: if both `latent` and `regrow` are given.

    Example:
      >>> from compressjax.pruning.masks import masks
      >>> from compressjax.pruning.schedules import one_shot
      >>> tx = prune(optax.sgd(0.1), schedule=one_shot(0.5))
      >>> params = {'Dense_0': {'kernel': jnp.array([[3.0], [-1.0]]), 'bias': jnp.zeros(1)}}
      >>> gradients = jax.tree.map(jnp.zeros_like, params)
      >>> updates, state = tx.update(gradients, tx.init(params), params)
      >>> optax.apply_updates(params, updates)['Dense_0']['kernel'][:, 0]
      Array([3., 0.], dtype=float32)
      >>> masks(state)['Dense_0']['kernel'][:, 0]
      Array([ True, False], dtype=bool)
    """
    if latent is not None and regrow is not None:
        raise ValueError(
            "latent weights keep their values, so none can regrow from 0: pass latent or regrow"
        )
    inner = optax.with_extra_args_support(tx)
    if latent is None:
        keeps = masker(schedule, score, budget, pattern, select, regrow=regrow)
        return _masked(inner, keeps, returns=schedule.falls or regrow is not None)
    keeps = masker(schedule, score, budget, pattern, select, monotone=False)
    if latent.reach is None:
        return with_latent(inner, latent, keeps, None)
    reach = latent.reach
    wider = schedule._replace(sparsity=lambda step: reach(schedule.sparsity(step)))
    trains = masker(wider, score, budget, pattern, select, monotone=False)
    return with_latent(inner, latent, keeps, trains)
