"""What score, budget, pattern and schedule are together: masks from step to step.

`prune` and `latent` train weights in two ways; both ask a `Masker` what is kept.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from compressjax import tree
from compressjax.pruning.budgets import Budget
from compressjax.pruning.choose import Growth, as_is, choose_leaves, selected_leaves
from compressjax.pruning.patterns import Pattern
from compressjax.pruning.regrow import Regrow
from compressjax.pruning.schedules import Schedule
from compressjax.pruning.scores import Score

PyTree = Any


class Masker(NamedTuple):
    """Masks from step to step.

    Attributes:
      init: `init(params) -> (keep, evidence)`: everything kept, and the score's first state.
      gather: `gather(gradients, evidence, weights, extra arguments) -> evidence`.
      renew: `renew(step, keep, evidence, weights, gradients) -> keep` of this step: new masks where
        the schedule says so, else those that are there.
      sparsity: `sparsity(step) -> float32 []`.
    """

    init: Callable[[PyTree], tuple[PyTree, PyTree]]
    gather: Callable[[PyTree, PyTree, PyTree, Mapping[str, Any]], PyTree]
    renew: Callable[[jax.Array, PyTree, PyTree, PyTree, PyTree], PyTree]
    sparsity: Callable[[jax.Array], jax.Array]


def everything(params: PyTree, select: str | Sequence[str], pattern: Pattern) -> PyTree:
    """Makes masks that keep everything.

    Args:
      params: tree of arrays.
      select: globs of the leaves that have a mask.
      pattern: that masks will have.

    Returns:
      A tree like `params` of masks, None where a leaf is not selected; each has its parameter's
      sharding.

    Raises:
      ValueError: if a glob matches nothing, or the pattern does not fit a leaf.
      TypeError: if a selected leaf is not of real floating numbers.

    Example:
      >>> from compressjax.pruning.patterns import unstructured
      >>> everything({'kernel': jnp.ones((1, 2)), 'bias': 0.0}, '**/kernel', unstructured())
      {'bias': None, 'kernel': Array([[ True,  True]], dtype=bool)}
    """
    selected = selected_leaves(params, select, pattern)
    return tree.map_with_path(
        lambda path, x: jnp.ones_like(x, dtype=bool) if path in selected else None, params
    )


def masker(
    schedule: Schedule,
    score: Score,
    budget: Budget,
    pattern: Pattern,
    select: str | Sequence[str],
    *,
    regrow: Regrow | None = None,
    monotone: bool = True,
) -> Masker:
    """Joins what says which weights are kept.

    Args:
      schedule: when, and how sparse.
      score: which weights matter.
      budget: how many each leaf keeps.
      pattern: in which shape.
      select: globs of the leaves.
      regrow: which pruned weights return.
      monotone: whether weights pruned before go first.

    Returns:
      A `Masker`.

    Example:
      >>> from compressjax import pruning
      >>> keeps = masker(pruning.one_shot(0.5), pruning.magnitude(), pruning.uniform(),
      ...                pruning.unstructured(), '**/kernel')
      >>> params = {'kernel': jnp.array([[3.0, 1.0]])}
      >>> keeps.renew(jnp.int32(1), *keeps.init(params), params, params)
      {'kernel': Array([[ True, False]], dtype=bool)}
    """

    def init(params: PyTree) -> tuple[PyTree, PyTree]:
        return everything(params, select, pattern), score.init(params)

    def gather(
        gradients: PyTree, evidence: PyTree, weights: PyTree, extra_args: Mapping[str, Any]
    ) -> PyTree:
        missing = [name for name in score.extra if name not in extra_args]
        if missing:
            raise ValueError(
                f"the score needs {', '.join(missing)}: call tx.update(gradients, state, params, "
                f"{', '.join(f'{name}=...' for name in missing)})"
            )
        extra = {name: extra_args[name] for name in score.extra}
        return score.update(gradients, evidence, weights, **extra)

    def of(live: Mapping[str, jax.Array], values: PyTree) -> dict[str, jax.Array]:
        leaves = tree.paths(values)
        return {path: leaves[path] for path in live}

    def chosen(
        step: jax.Array,
        live: Mapping[str, jax.Array],
        evidence: PyTree,
        weights: PyTree,
        gradients: PyTree,
    ) -> dict[str, jax.Array]:
        values, of_weight, growth = of(live, weights), score.of_weight, None
        if of_weight is None or (regrow is not None and regrow.start is not None):
            values, of_weight = of(live, score.values(evidence, weights)), as_is
        if regrow is not None:
            fraction = regrow.fraction(step)
            if regrow.start is not None:
                first = jnp.all(jnp.stack([jnp.all(mask) for mask in live.values()]))
                start = of(live, regrow.start.values(regrow.start.init(weights), weights))
                values = {path: jnp.where(first, start[path], values[path]) for path in live}
                fraction = jnp.where(first, 0.0, fraction)
            growth = Growth(fraction, of(live, regrow.values(step, gradients)))
        sparsity = schedule.sparsity(step)
        before = live if monotone else None
        return choose_leaves(
            values, sparsity, budget, pattern, of_weight=of_weight, live=before, growth=growth
        )

    @jax.jit
    def renew(
        step: jax.Array, keep: PyTree, evidence: PyTree, weights: PyTree, gradients: PyTree
    ) -> PyTree:
        def anew() -> PyTree:
            masks = chosen(step, tree.paths(keep), evidence, weights, gradients)
            return tree.map_with_path(lambda path, _: masks[path], keep)

        return jax.lax.cond(schedule.due(step), anew, lambda: keep)

    return Masker(init, gather, renew, schedule.sparsity)
