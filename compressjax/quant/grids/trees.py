"""Grids on pytrees: project chosen leaves of the parameters, in one pure function.

For users who want the number format alone, in a float network of any framework; `quantize` also
gives the activations their grids and computes what the phone computes.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compressjax import tree
from compressjax.quant.grids.grid import Grid, Params, stochastic

PyTree = Any
Rules = Mapping[str, Grid | None] | Iterable[tuple[str, Grid | None]]


def fit_at(path: str, grid: Grid, w: jax.Array) -> Params:
    """Fits a grid to a kernel; an error says which.

    Args:
      path: what the kernel is called.
      grid: the grid.
      w: the kernel, float32.

    Returns:
      The grid's params.

    Raises:
      ValueError: if the kernel does not suit the grid: a codebook larger than it, blocks that do
        not divide it.

    Example:
      >>> from compressjax.quant.grids import integer
      >>> fit_at('dense/kernel', integer(2), jnp.array([[-3.0, 2.0]])).tolist()
      [3.0, 2.0]
    """
    try:
        return grid.fit(w)
    except ValueError as error:
        raise ValueError(f"{path!r} does not suit the grid {grid.name!r}: {error}") from error


def fit_grids(params: PyTree, rules: Rules) -> dict[str, Params]:
    """Fits grids to the leaves that rules choose.

    Args:
      params: a pytree of float arrays.
      rules: `(glob, grid)` in order, or a mapping; the first glob that matches a path decides, and
        the grid `None` leaves a leaf as it is.

    Returns:
      The params of each chosen leaf's grid, by path: what there is to train beside the weights.

    Raises:
      ValueError: if a glob matches nothing, a leaf does not hold floats, holds NaN or infinity
        (checked outside jit), or does not suit its grid; the message names the path.

    Example:
      >>> from compressjax.quant.grids import codebook
      >>> params = {'dense': {'kernel': jnp.array([[1.0, 1.5], [-2.0, -1.0]])}}
      >>> fit_grids(params, [('**/kernel', codebook(2))])['dense/kernel'].tolist()
      [-1.5, 1.25]
    """
    return {path: fit_at(path, grid, leaf) for path, (leaf, grid) in _chosen(params, rules).items()}


def fake_quant(
    params: PyTree,
    rules: Rules,
    fitted: Mapping[str, Params] | None = None,
    *,
    rng: jax.Array | None = None,
) -> PyTree:
    """Puts the leaves that rules choose on their grids; straight-through gradients pass.

    Pure and jittable. Without `fitted`, grids are fitted to the leaves of this call.

    Args:
      params: a pytree of float arrays.
      rules: see `fit_grids`.
      fitted: the params of the grids by path, as `fit_grids` gives them; differentiated by each
        grid's own rule.
      rng: a key, to round at random to one of the two neighbours (`stochastic`); without it,
        weights go where the grid projects them.

    Returns:
      A tree like `params`, of the same dtypes.

    Raises:
      ValueError: see `fit_grids`; also if `fitted` lacks a chosen leaf.

    Example:
      >>> from compressjax.quant.grids import ternary
      >>> params = {'dense': {'kernel': jnp.array([[1.0, 0.5], [-2.0, 0.1]]), 'bias': jnp.ones(2)}}
      >>> fake_quant(params, {'**/kernel': ternary()})['dense']['kernel'].tolist()
      [[1.5, 0.0], [-1.5, 0.0]]
    """
    chosen = _chosen(params, rules)
    if fitted is None:
        fitted = {path: fit_at(path, grid, leaf) for path, (leaf, grid) in chosen.items()}
    found = {}
    for i, (path, (leaf, grid)) in enumerate(chosen.items()):
        if path not in fitted:
            raise ValueError(
                f"{path!r} has no fitted params for the grid {grid.name!r}: fit them with "
                "fit_grids(params, rules), with the same rules"
            )
        if rng is None:
            found[path] = grid.project(leaf, fitted[path])
        else:
            found[path] = stochastic(leaf, grid, fitted[path], jax.random.fold_in(rng, i))
    return tree.map_with_path(
        lambda path, leaf: found[path].astype(leaf.dtype) if path in found else leaf, params
    )


def _chosen(params: PyTree, rules: Rules) -> dict[str, tuple[jax.Array, Grid]]:
    """The leaves to quantize, in float32, with their grids."""
    leaves = tree.paths(params)
    chosen = {}
    for path, grid in tree.assign(rules, leaves, what="rules").items():
        if grid is not None:
            chosen[path] = _checked(path, leaves[path]), grid
    return chosen


def _checked(path: str, leaf: Any) -> jax.Array:
    dtype = jnp.result_type(leaf)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"{path!r} holds {dtype}, expected floats: leave it out of the rules")
    if not isinstance(leaf, jax.core.Tracer) and not np.isfinite(np.asarray(leaf, "float32")).all():
        raise ValueError(f"{path!r} holds NaN or infinity, which no grid can represent")
    return jnp.asarray(leaf, jnp.float32)
