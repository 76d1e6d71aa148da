"""Integers of 2 to 16 bits: evenly spaced values, the grids that hardware multiplies.

The symmetric ones are LiteRT's for weights: codes in +-(2^(bits-1) - 1), the narrow range, with no
zero point. `levels` has the formats whose values are not evenly spaced.
"""

import jax
import jax.numpy as jnp
from jax import lax

from compressjax.quant.grids.granularity import Granularity, per_channel
from compressjax.quant.grids.grid import Grid
from compressjax.quant.lattice.grid import ratio, saturate, ste_round

# The scale of a group of zeros; any one gives zeros.
_SCALE_OF_ZEROS = 2.0**-7


def integer(bits: int, *, symmetric: bool = True, granularity: Granularity | None = None) -> Grid:
    """Makes the grid of integers times a scale (Jacob et al. 2018, 1712.05877, section 3).

    Symmetric: values `scale * code`, codes in +-(2^(bits-1) - 1), `scale = max|w| / largest code`.

    Args:
      bits: 2 to 16.
      symmetric: no zero point.
      granularity: which weights share a scale; each output channel by default.

    Returns:
      The grid; its params are the scales, one for each group. It has codes up to 8 bits, where
      LiteRT has such scales.

    Raises:
      ValueError: if `bits` is outside 2 to 16.

    Example:
      >>> grid = integer(3)
      >>> w = jnp.array([[3.0, 0.5], [-1.2, 0.1]])
      >>> grid.project(w, grid.fit(w)).round(2).tolist()
      [[3.0, 0.5], [-1.0, 0.17]]
    """
    if not 2 <= bits <= 16:
        raise ValueError(f"bits is {bits}, expected 2 to 16")
    granularity = per_channel() if granularity is None else granularity
    largest = 2.0 ** (bits - 1) - 1.0

    def fit(w: jax.Array, keep: jax.Array | None = None) -> jax.Array:
        del keep  # Zeros do not move a maximum.
        return ratio(granularity.reduce(jnp.max, jnp.abs(lax.stop_gradient(w))), largest)

    def code(w: jax.Array, scale: jax.Array) -> jax.Array:
        steps = ratio(w, granularity.spread(scale, w.shape))
        return saturate(ste_round(steps), -largest, largest)

    def project(w: jax.Array, scale: jax.Array) -> jax.Array:
        scale = jnp.where(scale > 0, scale, _SCALE_OF_ZEROS)
        return code(w, scale) * granularity.spread(scale, w.shape)

    def codes(w: jax.Array, scale: jax.Array, least: jax.Array) -> tuple[jax.Array, jax.Array]:
        scale = jnp.maximum(scale, least)
        scale = jnp.where(scale > 0, scale, _SCALE_OF_ZEROS)
        return code(w, scale), scale

    def around(w: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
        scale = granularity.spread(jnp.where(scale > 0, scale, _SCALE_OF_ZEROS), w.shape)
        steps = saturate(ratio(w, scale), -largest, largest)
        return jnp.floor(steps) * scale, jnp.ceil(steps) * scale

    return Grid(
        name=f"int{bits} {granularity.name}",
        bits=bits,
        fit=fit,
        project=project,
        codes=codes if bits <= 8 and granularity.storable else None,
        around=around,
    )
