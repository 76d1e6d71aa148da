"""Grids whose values are integers times a scale: all that LiteRT's int8 tensors can hold.

A format says how a weight becomes an integer; `scaled` makes the grid of it, so that what is
simulated (`project`) and what is shipped (`codes`) come from one function.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from compressjax.quant.grids.granularity import Granularity
from compressjax.quant.grids.grid import Grid, Params
from compressjax.quant.lattice.grid import CODE_MAX, ratio

# The scale of a group of zeros; any one gives zeros.
_SCALE_OF_ZEROS = 2.0**-7


def usable(scale: jax.Array) -> jax.Array:
    """Replaces the scale of a group without one, which holds only zeros.

    Args:
      scale: float32 of any shape.

    Returns:
      The scales, all positive.

    Example:
      >>> usable(jnp.array([0.0, 2.0])).tolist()
      [0.0078125, 2.0]
    """
    return jnp.where(scale > 0, scale, _SCALE_OF_ZEROS)


def snapped(steps: jax.Array) -> jax.Array:
    """Rounds steps that are whole but for the rounding error of the division that made them.

    Args:
      steps: weights in units of their scale.

    Returns:
      The steps.

    Example:
      >>> snapped(jnp.array([126.99999, 126.5])).tolist()
      [127.0, 126.5]
    """
    whole = jnp.round(steps)
    return jnp.where(jnp.abs(steps - whole) <= 2.0**-21 * jnp.abs(whole), whole, steps)


def reach(granularity: Granularity, w: jax.Array) -> jax.Array:
    """Finds the largest absolute weight of each group; no gradient passes.

    Args:
      granularity: the groups.
      w: weights.

    Returns:
      `[groups]`.

    Example:
      >>> from compressjax.quant.grids import per_tensor
      >>> float(reach(per_tensor(), jnp.array([1.0, -3.0])))
      3.0
    """
    return granularity.reduce(jnp.max, jnp.abs(lax.stop_gradient(w)))


def mean_size(granularity: Granularity, w: jax.Array, keep: jax.Array | None) -> jax.Array:
    """Averages the absolute weights of each group; no gradient passes.

    Args:
      granularity: the groups.
      w: weights.
      keep: mask of the weights that count; `None` for all.

    Returns:
      `[groups]`; zero for a group of which nothing is kept.

    Example:
      >>> from compressjax.quant.grids import per_tensor
      >>> float(mean_size(per_tensor(), jnp.array([1.0, -3.0, 0.0]), jnp.array([1, 1, 0]) > 0))
      2.0
    """
    sizes = jnp.abs(lax.stop_gradient(w))
    if keep is None:
        return granularity.reduce(jnp.mean, sizes)
    total = granularity.reduce(jnp.sum, jnp.where(keep, sizes, 0.0))
    count = granularity.reduce(jnp.sum, keep.astype(jnp.float32))
    return ratio(total, jnp.maximum(count, 1.0))


def scaled(
    name: str,
    bits: float,
    granularity: Granularity,
    *,
    fit: Callable[..., Params],
    scale: Callable[[Params, jax.Array], jax.Array],
    code: Callable[[jax.Array, Params, jax.Array], jax.Array],
    around: Callable[[jax.Array, Params, jax.Array], tuple[jax.Array, jax.Array]],
    largest: float,
    learned: bool = False,
) -> Grid:
    """Makes the grid of a format whose values are integers times a scale.

    Args:
      name: what the format is called; the granularity's name is added.
      bits: bits of storage per weight.
      granularity: which weights share a scale.
      fit: see `Grid`.
      scale: `scale(params, w) -> [groups]`, zero for a group of zeros.
      code: `code(w, params, scale) -> codes`, with the scale spread over `w` and perhaps raised
        above the one that `params` say; differentiable to `w`, `params` and `scale` so that the
        product of codes and scale has the gradient wanted.
      around: `around(w, params, scale) -> (below, above)`, codes on either side of `w / scale`.
      largest: the largest code.
      learned: see `Grid`.

    Returns:
      The grid; it has codes where they fit in int8 and LiteRT has such scales.
    """

    def project(w: jax.Array, params: Params) -> jax.Array:
        wide = granularity.spread(usable(scale(params, w)), w.shape)
        return code(w, params, wide) * wide

    def codes(w: jax.Array, params: Params, least: jax.Array) -> tuple[jax.Array, jax.Array]:
        floored = usable(jnp.maximum(scale(params, w), least))
        return code(w, params, granularity.spread(floored, w.shape)), floored

    def values_around(w: jax.Array, params: Params) -> tuple[jax.Array, jax.Array]:
        wide = granularity.spread(usable(scale(params, w)), w.shape)
        below, above = around(w, params, wide)
        return below * wide, above * wide

    return Grid(
        name=f"{name} {granularity.name}",
        bits=bits,
        fit=fit,
        project=project,
        codes=codes if largest <= CODE_MAX and granularity.storable else None,
        around=values_around,
        learned=learned,
    )
