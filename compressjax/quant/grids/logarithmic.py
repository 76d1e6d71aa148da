"""Companded weights: even steps of `sign(w) log(1 + |w|)`, fine about zero and coarse outside.

Unlike powers of two, the steps grow with the weight only where it is not small against one.
"""

import jax
import jax.numpy as jnp

from compressjax.quant.grids.granularity import Granularity, per_channel
from compressjax.quant.grids.grid import Grid
from compressjax.quant.grids.scaled import reach, snapped, usable
from compressjax.quant.lattice.grid import ratio, saturate, ste_round


def logarithmic(bits: int, *, granularity: Granularity | None = None) -> Grid:
    """Makes the grid that is even after `sign(w) log(1 + |w|)` (mu-law companding, mu = 1).

    Values are `sign(c) (exp(step |c|) - 1)` for the integers |c| up to 2^(bits-1) - 1, and the
    nearest in the logarithmic domain is taken; `max|w|` is representable. Gradients pass the
    rounding alone as the identity: a weight's is multiplied by `(1 + |value|) / (1 + |w|)`, close
    to one, and the step's by `(1 + |value|) (c - r)`, with r the weight in steps.

    Args:
      bits: 2 to 16.
      granularity: which weights share a step; each output channel by default.

    Returns:
      The grid; its params are the steps, one for each group. LiteRT's int8 is even, so this grid
      is simulated.

    Raises:
      ValueError: if `bits` is outside 2 to 16.

    Example:
      >>> grid = logarithmic(3)
      >>> w = jnp.array([[7.0], [0.9], [-3.5]])
      >>> grid.project(w, grid.fit(w)).ravel().astype('float16')
      Array([ 7.,  1., -3.], dtype=float16)
    """
    if not 2 <= bits <= 16:
        raise ValueError(f"bits is {bits}, expected 2 to 16")
    granularity = per_channel() if granularity is None else granularity
    largest = 2.0 ** (bits - 1) - 1.0

    def fit(w: jax.Array, keep: jax.Array | None = None) -> jax.Array:
        del keep  # Zeros do not move a maximum.
        return ratio(jnp.log1p(reach(granularity, w)), largest)

    def expand(codes: jax.Array, step: jax.Array) -> jax.Array:
        sign = _sign(codes)
        return sign * jnp.expm1(sign * codes * step)

    def steps_of(w: jax.Array, params: jax.Array) -> tuple[jax.Array, jax.Array]:
        step = granularity.spread(usable(params), w.shape)
        return ratio(_sign(w) * jnp.log1p(_sign(w) * w), step), step

    def project(w: jax.Array, params: jax.Array) -> jax.Array:
        steps, step = steps_of(w, params)
        return expand(saturate(ste_round(steps), -largest, largest), step)

    def around(w: jax.Array, params: jax.Array) -> tuple[jax.Array, jax.Array]:
        steps, step = steps_of(w, params)
        steps = jnp.clip(snapped(steps), -largest, largest)
        return expand(jnp.floor(steps), step), expand(jnp.ceil(steps), step)

    return Grid(f"log{bits} {granularity.name}", bits, fit, project, None, around)


def _sign(x: jax.Array) -> jax.Array:
    """The sign, that of zero being one: so zero too has a slope on both sides of a logarithm."""
    return jnp.where(x < 0, -1.0, 1.0)
