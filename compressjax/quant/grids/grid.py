"""What a number format for weights is, and what can be done with any of them.

A grid is a set of representable values, given as pure functions: `fit` chooses its free numbers
(scales, centroids) from the weights, `project` puts weights on it, `codes` writes them as int8
where LiteRT could store them. `compressjax.quant.ranges` does the same for activations, whose
grids are always affine and come from what was observed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from compressjax.quant.lattice.grid import ratio, straight_through

Params = Any


class Grid(NamedTuple):
    """A number format for weights, as pure functions of kernels `[..., O]`, float32.

    Attributes:
      name: what reports and errors call it, such as `'int4 per channel'`.
      bits: bits of storage per weight; scales, codebooks and masks are not counted.
      fit: `fit(w, keep=None) -> params`, a pytree of float32 arrays (scales, centroids) that suits
        the weights `w`; with the boolean mask `keep`, only the kept ones. No gradient passes.
      project: `project(w, params) -> values` on the grid, in the shape of `w`. Its gradient is
        straight-through to `w` and the paper's rule to `params`.
      codes: `codes(w, params, least) -> (codes, scale)`: integer-valued float32 codes in
        [-127, 127], in the shape of `w`, and a scale, `[]` or `[O]`, with
        `codes * scale == project(w, params)` wherever the scale is not below `least` (`[]` or
        `[O]`). Elsewhere the scale is `least` and the codes are rounded to it. Gradients pass as
        in `project`. `None` where no int8 tensor of LiteRT's holds this grid.
      around: `around(w, params) -> (below, above)`, the representable values on either side of each
        weight; beyond the grid's ends both are the end.
      learned: whether `params` are meant to be stored and trained; otherwise they are fitted anew
        to the weights of every step.
    """

    name: str
    bits: float
    fit: Callable[..., Params]
    project: Callable[[jax.Array, Params], jax.Array]
    codes: Callable[[jax.Array, Params, jax.Array], tuple[jax.Array, jax.Array]] | None
    around: Callable[[jax.Array, Params], tuple[jax.Array, jax.Array]]
    learned: bool = False


def keep_zeros(grid: Grid) -> Grid:
    """Makes a grid leave weights that are exactly zero at zero, so that pruning survives it.

    Zeros are fitted by nothing, stay zero in values and codes, and get no gradient: what was pruned
    stays pruned, and grids without a zero (binary, codebooks) can hold sparse weights. The mask is
    read off the weights; storing it is not counted in `bits`.

    Args:
      grid: any grid.

    Returns:
      The grid with zeros kept.

    Example:
      >>> from compressjax.quant.grids import binary
      >>> grid = keep_zeros(binary())
      >>> w = jnp.array([[0.0], [2.0], [-1.0]])
      >>> grid.project(w, grid.fit(w)).tolist()
      [[0.0], [1.5], [-1.5]]
    """

    def fit(w: jax.Array, keep: jax.Array | None = None) -> Params:
        return grid.fit(w, w != 0 if keep is None else keep & (w != 0))

    def project(w: jax.Array, params: Params) -> jax.Array:
        return jnp.where(w == 0, 0.0, grid.project(w, params))

    def around(w: jax.Array, params: Params) -> tuple[jax.Array, jax.Array]:
        below, above = grid.around(w, params)
        return jnp.where(w == 0, 0.0, below), jnp.where(w == 0, 0.0, above)

    def codes(w: jax.Array, params: Params, least: jax.Array) -> tuple[jax.Array, jax.Array]:
        assert grid.codes is not None
        found, scale = grid.codes(w, params, least)
        return jnp.where(w == 0, 0.0, found), scale

    return grid._replace(
        name=f"{grid.name}, zeros kept",
        fit=fit,
        project=project,
        codes=None if grid.codes is None else codes,
        around=around,
    )


def stochastic(w: jax.Array, grid: Grid, params: Params, rng: jax.Array) -> jax.Array:
    """Rounds weights at random to one of their two neighbours on a grid, without bias.

    Gupta et al. 2015, "Deep Learning with Limited Numerical Precision", section 3.1: the neighbour
    above is drawn with a probability equal to how far along the gap the weight lies. Weights
    between a grid's ends keep their value in expectation, on uneven grids too; those beyond become
    the end. What is drawn is on the grid, so putting it there again changes nothing.

    Args:
      w: weights, float32.
      grid: the grid.
      params: its params.
      rng: a key.

    Returns:
      Values on the grid, in the shape of `w`; gradients pass as in `grid.project`.

    Example:
      >>> from compressjax.quant.grids import integer
      >>> w = jnp.full((1000, 1), 0.25).at[0].set(1.0)
      >>> drawn = stochastic(w, integer(2), jnp.array([1.0]), jax.random.key(0))
      >>> sorted(set(drawn.ravel().tolist())), 0.2 < float(drawn.mean()) < 0.3
      ([0.0, 1.0], True)
    """
    below, above = grid.around(w, params)
    gap = above - below
    chance = jnp.where(gap > 0, ratio(w - below, jnp.where(gap > 0, gap, 1.0)), 0.0)
    drawn = jnp.where(jax.random.uniform(rng, w.shape) < chance, above, below)
    return straight_through(jax.lax.stop_gradient(drawn), grid.project(w, params))
