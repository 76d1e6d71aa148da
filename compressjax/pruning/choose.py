"""Choosing masks: where scores, a budget and a pattern meet.

`choose` is the one-shot form, a pure function of scores. `prune` calls the same function on the
steps that its schedule marks.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from compressjax import tree
from compressjax.pruning import budgets, patterns
from compressjax.pruning.schedules import check_sparsity
from compressjax.pruning.selection import keep_largest, ranks_of

PyTree = Any
Leaves = Mapping[str, jax.Array]

UNIFORM = budgets.uniform()
UNSTRUCTURED = patterns.unstructured()
_FIRST = np.uint32(2**32 - 1)  # of NumPy: an array of JAX would choose its devices at import


class Growth(NamedTuple):
    """Weights that are to return in place of others.

    Attributes:
      fraction: float32 [], how much of every share returns.
      values: scores by path; of the weights not kept otherwise the highest return.
    """

    fraction: jax.Array
    values: Leaves


class _Ranked(NamedTuple):
    """What one leaf is ranked by: numbers, and a mask of the leaf or of its units; () for none."""

    values: jax.Array
    keep: Any


def as_is(values: jax.Array) -> jax.Array:
    """Says that values are scores already, where a function of weights is asked for.

    Args:
      values: scores of a leaf.

    Returns:
      The same.

    Example:
      >>> as_is(jnp.float32(2.0)).item()
      2.0
    """
    return values


def choose_leaves(
    values: Leaves,
    sparsity: jax.Array | float,
    budget: budgets.Budget,
    pattern: patterns.Pattern,
    *,
    of_weight: Callable[[jax.Array], jax.Array] = as_is,
    live: Leaves | None = None,
    growth: Growth | None = None,
) -> dict[str, jax.Array]:
    """Chooses masks for leaves by path.

    Args:
      values: real scores by path; the highest are kept.
      sparsity: float32 [], in [0, 1).
      budget: how many units each leaf keeps.
      pattern: what a unit is, and which may be kept together.
      of_weight: makes scores of `values` where these are not the scores yet; it is cheap, and done
        again in every pass over the data, so that nothing is stored where the pattern is free.
      live: masks in force; what they prune is kept only when nothing else is left. None: all live.
      growth: what returns in place of the lowest of the weights kept; None: nothing.

    Returns:
      Boolean masks by path. At sparsity 0, and in the shares that a budget leaves whole, everything
      is kept, whatever the pattern.

    Example:
      >>> values = {'kernel': jnp.array([[3.0, 1.0], [2.0, 4.0]])}
      >>> choose_leaves(values, 0.5, budgets.uniform(), patterns.unstructured())['kernel']
      Array([[ True, False],
             [False,  True]], dtype=bool)
    """
    dense = jnp.asarray(sparsity) == 0
    shapes = {path: jnp.shape(leaf) for path, leaf in values.items()}
    pooled = {path: jax.eval_shape(pattern.pool, leaf).shape for path, leaf in values.items()}
    units = {path: math.prod(shape) for path, shape in pooled.items()}

    def largest(
        leaves: list[_Ranked],
        rank: Callable[[_Ranked], jax.Array],
        share: budgets.Share,
        count: Any,
    ) -> list[jax.Array]:
        def make(leaves: list[_Ranked]) -> list[jax.Array]:
            ranks = [rank(leaf) for leaf in leaves]
            if pattern.free:
                return ranks
            return [
                jnp.where(pattern.allowed(rank) | dense | share.whole, rank, jnp.uint32(0))
                for rank in ranks
            ]

        if pattern.free:
            return keep_largest(leaves, count, make)
        return keep_largest(make(leaves), count)

    def by_score(leaf: _Ranked) -> jax.Array:
        # 0 is never kept; 1 was pruned before, and comes back only when nothing else is left.
        rank = jnp.maximum(ranks_of(pattern.pool(of_weight(leaf.values))), 2)
        if live is None:
            return rank
        return jnp.where(pattern.pool(leaf.keep) > 0, rank, jnp.uint32(1))

    def by_growth(leaf: _Ranked) -> jax.Array:
        # What stays comes first, so that the pattern and the count leave room for it.
        rank = jnp.clip(ranks_of(pattern.pool(leaf.values)), 1, _FIRST - 1)
        return jnp.where(leaf.keep, _FIRST, rank)

    keep: dict[str, jax.Array] = {}
    for share in budget(sparsity, shapes, units):
        paths = [path for path in share.paths if units[path]]
        if not paths:
            continue
        leaves = [_Ranked(values[path], () if live is None else live[path]) for path in paths]
        if growth is None:
            kept = largest(leaves, by_score, share, share.keep)
        else:
            moved = jnp.round(growth.fraction * share.keep).astype(jnp.int32)
            stays = largest(leaves, by_score, share, share.keep - moved)
            leaves = [
                _Ranked(growth.values[path], mask) for path, mask in zip(paths, stays, strict=True)
            ]
            kept = largest(leaves, by_growth, share, share.keep)
        for path, mask in zip(paths, kept, strict=True):
            # On a mesh the leaf gives its sharding to what is spread over it.
            whole = jnp.ones_like(values[path], dtype=bool)
            keep[path] = whole & pattern.spread(mask, shapes[path])
    return {path: keep.get(path, jnp.zeros(shape, bool)) for path, shape in shapes.items()}


def selected_leaves(
    values: PyTree, select: str | Sequence[str], pattern: patterns.Pattern
) -> dict[str, Any]:
    """Lists the leaves that are to be pruned, after checking that they can be.

    Args:
      values: tree of anything with a shape and a dtype.
      select: globs of the leaves.
      pattern: that masks will have.

    Returns:
      The leaves by path.

    Raises:
      ValueError: if a glob matches nothing, or the pattern does not fit a leaf.
      TypeError: if a leaf is not of real floating numbers.

    Example:
      >>> params = {'kernel': jnp.ones((2, 2)), 'bias': jnp.ones(2)}
      >>> list(selected_leaves(params, '**/kernel', patterns.unstructured()))
      ['kernel']
    """
    leaves = tree.paths(values)
    selected = {path: leaves[path] for path in tree.match(select, leaves, what="select")}
    for path, leaf in selected.items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"{path} has dtype {leaf.dtype}; only real floating parameters can be pruned, "
                "leave it out of select"
            )
        pattern.check(path, jnp.shape(leaf))
    return selected


def choose(
    values: PyTree,
    sparsity: jax.Array | float,
    *,
    budget: budgets.Budget = UNIFORM,
    pattern: patterns.Pattern = UNSTRUCTURED,
    select: str | Sequence[str] = "**/kernel",
    of_weight: Callable[[jax.Array], jax.Array] = as_is,
) -> PyTree:
    """Chooses the masks that keep the highest scores.

    Args:
      values: tree like params of real scores, for instance the absolute weights.
      sparsity: fraction to prune, in [0, 1); a traced scalar never recompiles.
      budget: how many units each leaf keeps.
      pattern: in which shape.
      select: globs of the leaves to prune.
      of_weight: makes the scores where `values` are not the scores yet: `choose(params, 0.9,
        of_weight=jnp.abs)` needs no memory for absolute weights.

    Returns:
      A tree like `values`: boolean masks, True = kept; None where a leaf is not selected. Ties keep
      the earlier element in row-major order, and the earlier leaf.

    Raises:
      ValueError: if a glob matches nothing, the pattern does not fit a leaf, or a number for
        `sparsity` is outside [0, 1).
      TypeError: if a selected leaf is not of real floating numbers.

    Example:
      >>> keep = choose({'kernel': jnp.array([[3.0, 1.0]]), 'bias': jnp.zeros(2)}, 0.5)
      >>> keep
      {'bias': None, 'kernel': Array([[ True, False]], dtype=bool)}
    """
    if not isinstance(sparsity, jax.Array):
        check_sparsity(sparsity, "sparsity")
    selected = selected_leaves(values, select, pattern)
    keep = choose_leaves(selected, sparsity, budget, pattern, of_weight=of_weight)
    return tree.map_with_path(lambda path, _: keep.get(path), values)
