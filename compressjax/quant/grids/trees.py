"""Grids on pytrees: project chosen leaves of the parameters, in one pure function.

For users who want the number format alone, in a float network of any framework; `quantize` also
gives the activations their grids and computes what the phone computes.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from compressjax import tree
from compressjax.quant.grids.grid import Grid, Params

PyTree = Any
Rules = Mapping[str, Grid | None] | Iterable[tuple[str, Grid | None]]
_T = TypeVar("_T")


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
    return {
        path: _named(path, grid, grid.fit, leaf)
        for path, (leaf, grid) in _chosen(params, rules).items()
    }


def fake_quant(params: PyTree, rules: Rules, fitted: Mapping[str, Params] | None = None) -> PyTree:
    """Puts the leaves that rules choose on their grids; straight-through gradients pass.

    Pure and jittable. Without `fitted`, grids are fitted to the leaves of this call.

    Args:
      params: a pytree of float arrays.
      rules: see `fit_grids`.
      fitted: the params of the grids by path, as `fit_grids` gives them; differentiated by each
        grid's own rule.

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
    found = {}
    for path, (leaf, grid) in _chosen(params, rules).items():
        if fitted is None:
            own = _named(path, grid, grid.fit, leaf)
        elif path in fitted:
            own = fitted[path]
        else:
            raise ValueError(
                f"{path!r} has no fitted params for the grid {grid.name!r}: fit them with "
                "fit_grids(params, rules), with the same rules"
            )
        found[path] = _named(path, grid, grid.project, leaf, own)
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


def _named(path: str, grid: Grid, function: Callable[..., _T], *args: Any) -> _T:
    """Calls a grid's function on a leaf; its errors say which."""
    try:
        return function(*args)
    except ValueError as error:
        raise ValueError(f"{path!r} does not suit the grid {grid.name!r}: {error}") from error
