"""Choosing masks: where scores, a budget and a pattern meet.

`choose` is the one-shot form, a pure function of scores. `prune` calls the same function on the
steps that its schedule marks.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from compressjax import tree
from compressjax.pruning import budgets, patterns
from compressjax.pruning.schedules import check_sparsity
from compressjax.pruning.selection import keep_largest, ranks_of

PyTree = Any
Leaves = Mapping[str, jax.Array]

UNIFORM = budgets.uniform()
UNSTRUCTURED = patterns.unstructured()
_FIRST = jnp.uint32(2**32 - 1)


class Growth(NamedTuple):
    """Weights that are to return in place of others.

    Attributes:
      fraction: float32 [], how much of every share returns.
      values: scores by path; of the weights not kept otherwise the highest return.
    """

    fraction: jax.Array
    values: Leaves


def choose_leaves(
    values: Leaves,
    sparsity: jax.Array | float,
    budget: budgets.Budget,
    pattern: patterns.Pattern,
    *,
    live: Leaves | None = None,
    growth: Growth | None = None,
) -> dict[str, jax.Array]:
    """Chooses masks for leaves by path.

    Args:
      values: real scores by path; the highest are kept.
      sparsity: float32 [], in [0, 1).
      budget: how many units each leaf keeps.
      pattern: what a unit is, and which may be kept together.
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

    def allowed(ranks: jax.Array, share: budgets.Share) -> jax.Array:
        return jnp.where(pattern.allowed(ranks) | dense | share.whole, ranks, jnp.uint32(0))

    # 0 is never kept; 1 was pruned before, and comes back only when nothing else is left.
    ranks = {path: jnp.maximum(ranks_of(pattern.pool(leaf)), 2) for path, leaf in values.items()}
    if live is not None:
        ranks = {
            path: jnp.where(pattern.pool(live[path]) > 0, rank, jnp.uint32(1))
            for path, rank in ranks.items()
        }
    shapes = {path: jnp.shape(leaf) for path, leaf in values.items()}
    units = {path: math.prod(rank.shape) for path, rank in ranks.items()}
    keep: dict[str, jax.Array] = {}
    for share in budget(sparsity, shapes, units):
        paths = [path for path in share.paths if units[path]]
        if not paths:
            continue
        moved = jnp.int32(0)
        if growth is not None:
            moved = jnp.round(growth.fraction * share.keep).astype(jnp.int32)
        fits = [allowed(ranks[path], share) for path in paths]
        kept = keep_largest(fits, share.keep - moved)
        if growth is not None:
            # What stays comes first, so that the pattern and the count leave room for it.
            after = [
                allowed(
                    jnp.where(
                        stays,
                        _FIRST,
                        jnp.clip(ranks_of(pattern.pool(growth.values[path])), 1, _FIRST - 1),
                    ),
                    share,
                )
                for path, stays in zip(paths, kept, strict=True)
            ]
            kept = keep_largest(after, share.keep)
        for path, mask in zip(paths, kept, strict=True):
            # On a mesh the leaf gives its sharding to what is spread over it.
            whole = jnp.ones_like(values[path], dtype=bool)
            keep[path] = whole & pattern.spread(mask, shapes[path])
    return {path: keep.get(path, jnp.zeros(shape, bool)) for path, shape in shapes.items()}


def check_leaf(path: str, leaf: Any, pattern: patterns.Pattern) -> None:
    """Refuses a leaf that cannot be pruned.

    Args:
      path: of the leaf.
      leaf: anything with a shape and a dtype.
      pattern: that masks will have.

    Raises:
      TypeError: if the leaf is not of real floating numbers.
      ValueError: if the pattern does not fit it.

    Example:
      >>> check_leaf('kernel', jnp.ones((2, 2)), patterns.unstructured())
    """
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise TypeError(
            f"{path} has dtype {leaf.dtype}; only real floating parameters can be pruned, leave it "
            "out of select"
        )
    pattern.check(path, jnp.shape(leaf))


def choose(
    values: PyTree,
    sparsity: jax.Array | float,
    *,
    budget: budgets.Budget = UNIFORM,
    pattern: patterns.Pattern = UNSTRUCTURED,
    select: str | Sequence[str] = "**/kernel",
) -> PyTree:
    """Chooses the masks that keep the highest scores.

    Args:
      values: tree like params of real scores, for instance the absolute weights.
      sparsity: fraction to prune, in [0, 1); a traced scalar never recompiles.
      budget: how many units each leaf keeps.
      pattern: in which shape.
      select: globs of the leaves to prune.

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
    leaves = tree.paths(values)
    selected = {path: leaves[path] for path in tree.match(select, leaves, what="select")}
    for path, leaf in selected.items():
        check_leaf(path, leaf, pattern)
    keep = choose_leaves(selected, sparsity, budget, pattern)
    return tree.map_with_path(lambda path, _: keep.get(path), values)
