"""Pruning as an optax transformation: what joins score, budget, pattern and schedule.

Masks live in the optimizer's state and nowhere else. `prune` changes values and never shapes;
cutting channels out is `compressjax.slimming.shrink`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from compressjax import tree
from compressjax.pruning import budgets, patterns, scores
from compressjax.pruning.schedules import Schedule
from compressjax.pruning.selection import keep_largest, ranks_of

PyTree = Any

_MAGNITUDE = scores.magnitude()
_UNIFORM = budgets.uniform()
_UNSTRUCTURED = patterns.unstructured()


class PruneState(NamedTuple):
    """State of `prune`.

    Attributes:
      step: int32 [], updates made so far.
      keep: tree like params: boolean masks, True = kept; None where a leaf is not pruned.
      score: the evidence the score has gathered.
      inner: state of the optimizer inside.
    """

    step: jax.Array
    keep: PyTree
    score: PyTree
    inner: PyTree


def _fitting(keep: PyTree, params: PyTree) -> dict[str, jax.Array]:
    """Lists masks by path after checking that each fits the parameter it masks."""
    kept, leaves = tree.paths(keep), tree.paths(params)
    for path, mask in kept.items():
        if path not in leaves:
            raise ValueError(
                f"masks do not fit the parameters: there is a mask for {path}, but no such "
                "parameter; use masks made for this model"
            )
        if jnp.shape(mask) != jnp.shape(leaves[path]):
            raise ValueError(
                f"masks do not fit the parameters: the mask of {path} has shape "
                f"{jnp.shape(mask)}, the parameter {jnp.shape(leaves[path])}; prune the model "
                "anew after changing its shapes"
            )
    return kept


def apply_masks(params: PyTree, keep: PyTree) -> PyTree:
    """Sets pruned weights to zero.

    Args:
      params: tree of arrays.
      keep: tree like `params` of boolean masks, True = kept; None where a leaf is not pruned.

    Returns:
      A tree like `params`.

    Raises:
      ValueError: if a mask has no parameter, or another shape than it.

    Example:
      >>> apply_masks({'a': jnp.ones(2), 'b': 1.0}, {'a': jnp.array([True, False]), 'b': None})
      {'a': Array([1., 0.], dtype=float32), 'b': 1.0}
    """
    kept = _fitting(keep, params)
    return tree.map_with_path(
        lambda path, x: jnp.where(kept[path], x, jnp.zeros_like(x)) if path in kept else x, params
    )


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


def _check_leaf(path: str, leaf: Any, pattern: patterns.Pattern) -> None:
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise TypeError(
            f"{path} has dtype {leaf.dtype}; only real floating parameters can be pruned, leave it "
            "out of select"
        )
    pattern.check(path, jnp.shape(leaf))


def _new_masks(
    params: PyTree,
    keep: PyTree,
    values: PyTree,
    sparsity: jax.Array,
    budget: budgets.Budget,
    pattern: patterns.Pattern,
) -> PyTree:
    kept, leaves, by_path = tree.paths(keep), tree.paths(params), tree.paths(values)
    ranks = {}
    for path, mask in kept.items():
        # 0 is never kept; 1 is pruned before, and comes back only when nothing else is left.
        live = jnp.where(mask, jnp.maximum(ranks_of(by_path[path]), 2), jnp.uint32(1))
        ranks[path] = jnp.where(pattern.allowed(live), live, jnp.uint32(0))
    chosen: dict[str, jax.Array] = {}
    for share in budget(sparsity, {path: jnp.shape(leaves[path]) for path in kept}):
        largest = keep_largest([ranks[path] for path in share.paths], share.keep)
        chosen.update(zip(share.paths, largest, strict=True))
    return tree.map_with_path(lambda path, _: chosen[path], keep)


def prune(
    tx: optax.GradientTransformation,
    *,
    schedule: Schedule,
    score: scores.Score = _MAGNITUDE,
    budget: budgets.Budget = _UNIFORM,
    pattern: patterns.Pattern = _UNSTRUCTURED,
    select: str | Sequence[str] = "**/kernel",
) -> optax.GradientTransformationExtraArgs:
    """Prunes weights while an optimizer trains them.

    After `optax.apply_updates(params, updates)` every pruned weight is exactly 0, whatever `tx`
    does (momentum, weight decay): its update is minus the weight. So nothing that changes updates
    may come after it; `tx` goes inside, as in `prune(optax.chain(...), ...)`. The optimizer inside
    sees the gradients of pruned weights as 0, so their moments decay, while the score sees the
    gradients as they came.

    On each step that `schedule` marks, masks are computed anew, from the parameters before that
    step's update, with exactly as many weights kept as `budget` says (ties keep the earlier element
    in row-major order, and the earlier leaf). Weights pruned before go first, so while sparsity
    grows no weight returns. On all other steps the masks stay. Sparsity is traced: it never
    recompiles a step.

    Args:
      tx: the optimizer.
      schedule: when, and how sparse: `polynomial`, `constant`, `one_shot`.
      score: which weights matter: `magnitude`.
      budget: how many each leaf keeps: `uniform`, `global_`, `erdos_renyi`, `erk`.
      pattern: in which shape: `unstructured`, `n_m`.
      select: globs of the parameters to prune; all others train as `tx` says.

    Returns:
      An optax transformation whose update needs `params`. Its state is a pytree of arrays. `init`
      raises ValueError where a glob of `select` matches nothing or the pattern does not fit a
      leaf, and TypeError for a selected leaf that is not floating; `update` raises ValueError
      without `params`, or with others than it was initialised for.

    Example:
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
    inner = optax.with_extra_args_support(tx)

    @jax.jit
    def refresh(step: jax.Array, keep: PyTree, evidence: PyTree, params: PyTree) -> PyTree:
        def renew() -> PyTree:
            values = score.values(evidence, params)
            return _new_masks(params, keep, values, schedule.sparsity(step), budget, pattern)

        return jax.lax.cond(schedule.due(step), renew, lambda: keep)

    def init(params: PyTree) -> PruneState:
        leaves = tree.paths(params)
        selected = set(tree.match(select, leaves, what="select"))
        for path in selected:
            _check_leaf(path, leaves[path], pattern)
        keep = tree.map_with_path(
            lambda path, x: jnp.ones_like(x, dtype=bool) if path in selected else None, params
        )
        return PruneState(jnp.zeros((), jnp.int32), keep, score.init(params), inner.init(params))

    def update(
        updates: PyTree, state: PruneState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, PruneState]:
        if params is None:
            raise ValueError("prune needs the parameters: call tx.update(gradients, state, params)")
        _fitting(state.keep, params)
        step = optax.safe_increment(state.step)
        evidence = score.update(updates, state.score, params)
        keep = refresh(step, state.keep, evidence, params)
        masked = apply_masks(updates, keep)
        updates, inner_state = inner.update(masked, state.inner, params, **extra_args)
        return _erase(updates, keep, params), PruneState(step, keep, evidence, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _is_hole(node: Any) -> bool:
    return node is None or isinstance(node, optax.MaskedNode)


def _children(node: PyTree) -> tuple[list[PyTree], Any] | None:
    """Splits a tree one level down; None for a leaf."""
    children, structure = jax.tree.flatten(node, is_leaf=lambda child: child is not node)
    return None if children and children[0] is node else (children, structure)


def _join(first: PyTree, second: PyTree) -> PyTree:
    """Joins two trees of masks that may each have holes: kept means kept by both."""
    if _is_hole(first) or _is_hole(second):
        return second if _is_hole(first) else first
    ours, theirs = _children(first), _children(second)
    if ours is None or theirs is None:
        return first & second
    joined = [_join(a, b) for a, b in zip(ours[0], theirs[0], strict=True)]
    return jax.tree.unflatten(ours[1], joined)


def masks(opt_state: PyTree) -> PyTree:
    """Finds the masks of `prune` inside any nesting of optax states.

    Args:
      opt_state: state of an optimizer that contains `prune`, alone or inside `optax.chain`,
        `multi_transform`, `masked`, `inject_hyperparams`, `MultiSteps` and the like.

    Returns:
      A tree like params: boolean masks, True = kept; None where a leaf (or, under `masked`, a
      whole branch) is not pruned. Masks of several `prune`s are joined: kept means kept by all.

    Raises:
      ValueError: if the state contains no masks.

    Example:
      >>> from compressjax.pruning.schedules import one_shot
      >>> tx = optax.chain(optax.clip(1.0), prune(optax.adam(1e-3), schedule=one_shot(0.5)))
      >>> masks(tx.init({'dense': {'kernel': jnp.zeros((1, 2)), 'bias': jnp.zeros(2)}}))
      {'dense': {'bias': None, 'kernel': Array([[ True,  True]], dtype=bool)}}
    """
    found: list[PyTree] = []

    def visit(node: PyTree) -> None:
        for leaf in jax.tree.leaves(node, is_leaf=lambda x: isinstance(x, PruneState)):
            if isinstance(leaf, PruneState):
                found.append(leaf.keep)
                visit(leaf.inner)

    visit(opt_state)
    if not found:
        raise ValueError(
            f"no masks in this {type(opt_state).__name__}: it comes from an optimizer without "
            "prune, or was restored from a checkpoint without its template (states come back as "
            "plain dictionaries then)"
        )
    joined = found[0]
    for keep in found[1:]:
        joined = _join(joined, keep)
    return jax.tree.map(lambda x: None if _is_hole(x) else x, joined, is_leaf=_is_hole)
