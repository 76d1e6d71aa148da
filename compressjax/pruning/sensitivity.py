"""Which leaves bear pruning: the accuracy of a model with one of them pruned and the others whole.

A scan answers before any training what a budget has to know: where weights may go. It measures and
chooses nothing; `choose` makes the masks of a whole model, and `quant.bits` measures the same of
bits.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from compressjax import tree
from compressjax.pruning.choose import UNIFORM, UNSTRUCTURED, choose_leaves, selected_leaves
from compressjax.pruning.patterns import Pattern
from compressjax.pruning.schedules import check_sparsity

PyTree = Any

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


class Sensitivity(NamedTuple):
    """What a model loses by each leaf.

    Attributes:
      levels: float64 [L], sparsities, rising.
      dense: score of the whole model.
      scores: float64 [L] for each leaf by path, the score with this leaf alone pruned.
    """

    levels: np.ndarray
    dense: float
    scores: dict[str, np.ndarray]


def check_levels(levels: Sequence[float]) -> tuple[float, ...]:
    """Refuses sparsities that are no levels to go through.

    Args:
      levels: sparsities, or parts of the channels.

    Returns:
      The same as floats.

    Raises:
      ValueError: if there are none, one is outside [0, 1), or they do not rise.

    Example:
      >>> check_levels([0.5, 0.75])
      (0.5, 0.75)
    """
    found = tuple(float(level) for level in levels)
    if not found:
        raise ValueError("levels is empty; give at least one number in [0, 1)")
    for i, level in enumerate(found):
        check_sparsity(level, f"levels[{i}]")
    for i in range(1, len(found)):
        if found[i] <= found[i - 1]:
            raise ValueError(
                f"levels must rise, found {found[i]} after {found[i - 1]} at levels[{i}]; sort "
                "them and give each once"
            )
    return found


@functools.partial(jax.jit, static_argnames="pattern")
def _pruned(leaf: jax.Array, values: jax.Array, sparsity: jax.Array, pattern: Pattern) -> jax.Array:
    keep = choose_leaves({"leaf": values}, sparsity, UNIFORM, pattern)["leaf"]
    return jnp.where(keep, leaf, jnp.zeros_like(leaf))


def sensitivity(
    evaluate: Callable[[PyTree], Any],
    params: PyTree,
    levels: Sequence[float] = LEVELS,
    *,
    values: PyTree | None = None,
    pattern: Pattern = UNSTRUCTURED,
    select: str | Sequence[str] = "**/kernel",
) -> Sensitivity:
    """Scores a model with every selected leaf pruned alone, at every level.

    The scan of Han et al. 2015, "Learning both Weights and Connections for Efficient Neural
    Networks", figure 6, and, with a pattern of channels, of Li et al. 2017, "Pruning Filters for
    Efficient ConvNets", section 3.2: no training in between. `evaluate` is called once for the
    whole model and once for each leaf and level, always with leaves of the same shapes, and the
    sparsity is traced: a jitted `evaluate` compiles once, choosing masks once for each shape.

    Args:
      evaluate: `params -> score []`, such as the accuracy on held-out examples.
      params: tree of arrays.
      levels: sparsities in [0, 1), rising.
      values: tree like params of real scores of the weights, the lowest go first; None: the
        absolute weights.
      pattern: in which shape.
      select: globs of the leaves to scan.

    Returns:
      The score of each leaf at each level, and of the whole model.

    Raises:
      ValueError: if the levels do not rise inside [0, 1), a glob matches nothing, the pattern does
        not fit a leaf, or `values` has no scores of a leaf's shape.
      TypeError: if a selected leaf is not of real floating numbers.

    Example:
      >>> params = {'a': {'kernel': jnp.array([3.0, 1.0])}, 'b': {'kernel': jnp.array([8.0, 9.0])}}
      >>> scan = sensitivity(lambda p: p['a']['kernel'].sum() + p['b']['kernel'].sum(), params,
      ...                    levels=[0.0, 0.5])
      >>> scan.dense, {path: scores.tolist() for path, scores in scan.scores.items()}
      (21.0, {'a/kernel': [21.0, 20.0], 'b/kernel': [21.0, 13.0]})
    """
    sparsities = check_levels(levels)
    given = {} if values is None else tree.paths(values)
    leaves = selected_leaves(params, select, pattern)
    for path in leaves:
        if values is not None and jnp.shape(given.get(path, 0.0)) != leaves[path].shape:
            found = f"shape {jnp.shape(given[path])}" if path in given else "nothing"
            raise ValueError(
                f"values do not fit the parameters: expected scores of shape {leaves[path].shape} "
                f"for {path}, found {found}"
            )

    def score(path: str, sparsity: float) -> float:
        leaf = leaves[path]
        ranked = jnp.abs(leaf) if values is None else given[path]
        pruned = _pruned(leaf, ranked, jnp.float32(sparsity), pattern)
        return float(evaluate(tree.replace(params, {path: pruned})))

    dense = float(evaluate(params))
    scores = {path: np.array([score(path, level) for level in sparsities]) for path in leaves}
    return Sensitivity(np.array(sparsities), dense, scores)
