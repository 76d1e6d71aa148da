"""Integers of 2 to 16 bits: evenly spaced values, the grids that hardware multiplies.

The symmetric ones are LiteRT's for weights: codes in +-(2^(bits-1) - 1), the narrow range, with no
zero point. `levels` has the formats whose values are not evenly spaced.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from compressjax.quant.grids.granularity import Granularity, per_channel
from compressjax.quant.grids.grid import Grid, Params
from compressjax.quant.grids.scaled import mean_size, reach, scaled, snapped, usable
from compressjax.quant.lattice.grid import ratio, saturate, ste_round, straight_through


def integer(bits: int, *, symmetric: bool = True, granularity: Granularity | None = None) -> Grid:
    """Makes the grid of integers times a scale (Jacob et al. 2018, 1712.05877, section 2).

    Symmetric: values `scale * code`, codes in +-(2^(bits-1) - 1), `scale = max|w| / largest code`.
    Affine: values `scale * (code - zero_point)` with 2^bits codes that cover the weights and zero,
    which is always representable; LiteRT stores no such weights.

    Args:
      bits: 2 to 16.
      symmetric: no zero point.
      granularity: which weights share a scale; each output channel by default.

    Returns:
      The grid. Its params are the scales, one for each group; affine, a dictionary of `scale` and
      `zero_point`. Symmetric grids of up to 8 bits have codes, where LiteRT has such scales.

    Raises:
      ValueError: if `bits` is outside 2 to 16.

    Example:
      >>> grid = integer(3)
      >>> w = jnp.array([[3.0, 0.5], [-1.2, 0.1]])
      >>> grid.project(w, grid.fit(w)).round(2)
      Array([[ 3.  ,  0.5 ],
             [-1.  ,  0.17]], dtype=float32)
    """
    _check_bits(bits)
    granularity = per_channel() if granularity is None else granularity
    if not symmetric:
        return _affine(bits, granularity)
    largest = 2.0 ** (bits - 1) - 1.0

    def fit(w: jax.Array, keep: jax.Array | None = None) -> jax.Array:
        del keep  # Zeros do not move a maximum.
        return ratio(reach(granularity, w), largest)

    return scaled(
        f"int{bits}",
        bits,
        granularity,
        fit=fit,
        scale=lambda scale, w: scale,
        code=lambda w, _, scale: saturate(ste_round(ratio(w, scale)), -largest, largest),
        around=lambda w, _, scale: _whole_around(ratio(w, scale), -largest, largest),
        largest=largest,
    )


def learned_step(bits: int, *, granularity: Granularity | None = None) -> Grid:
    """Makes the grid of integers times a trained scale: LSQ (Esser et al. 2020, 1902.08153).

    With r = w / scale and Q = 2^(bits-1) - 1 the gradients are equations 3 and 5 of the paper: to
    the scale `round(r) - r` where |r| < Q and +-Q elsewhere, to a weight 1 where |r| < Q and 0
    elsewhere. That of the scale is multiplied by `1 / sqrt(N Q)`, N weights to a scale (section
    2.2), and the scale starts at `2 mean|w| / sqrt(Q)` (section 2.1). The paper has one more
    negative code, which LiteRT's weights leave out.

    Args:
      bits: 2 to 16.
      granularity: which weights share a scale; each output channel by default.

    Returns:
      The grid, to be learned: its params are the scales, one for each group. Only their size
      counts, so a step that crosses zero does no harm.

    Raises:
      ValueError: if `bits` is outside 2 to 16.

    Example:
      >>> grid = learned_step(2)
      >>> w = jnp.array([[1.0], [0.375], [-9.0], [0.125]])
      >>> project = lambda scale: grid.project(w, scale).ravel()
      >>> project(jnp.array([0.5])).tolist()
      [0.5, 0.5, -0.5, 0.0]
      >>> jax.jacobian(project)(jnp.array([0.5])).ravel().tolist()
      [0.5, 0.125, -0.5, -0.125]
    """
    _check_bits(bits)
    granularity = per_channel() if granularity is None else granularity
    largest = 2.0 ** (bits - 1) - 1.0

    def fit(w: jax.Array, keep: jax.Array | None = None) -> jax.Array:
        return mean_size(granularity, w, keep) * (2.0 / math.sqrt(largest))

    def scale_of(params: jax.Array, w: jax.Array) -> jax.Array:
        scale, number = jnp.abs(params), w.size / params.size
        return straight_through(lax.stop_gradient(scale), scale / math.sqrt(number * largest))

    def code(w: jax.Array, _: Params, scale: jax.Array) -> jax.Array:
        steps = ratio(w, scale)
        inside = jnp.where(jnp.abs(steps) < largest, steps, largest * jnp.sign(steps))
        return ste_round(inside)

    return scaled(
        f"learned int{bits}",
        bits,
        granularity,
        fit=fit,
        scale=scale_of,
        code=code,
        around=lambda w, _, scale: _whole_around(ratio(w, scale), -largest, largest),
        largest=largest,
        learned=True,
    )


def _affine(bits: int, granularity: Granularity) -> Grid:
    lowest, highest = -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1.0

    def fit(w: jax.Array, keep: jax.Array | None = None) -> dict[str, jax.Array]:
        del keep  # The range holds zero in any case.
        w = lax.stop_gradient(w)
        low = jnp.minimum(granularity.reduce(jnp.min, w), 0.0)
        high = jnp.maximum(granularity.reduce(jnp.max, w), 0.0)
        scale = usable(ratio(high - low, highest - lowest))
        zero_point = jnp.clip(jnp.round(lowest - ratio(low, scale)), lowest, highest)
        return {"scale": scale, "zero_point": zero_point}

    def spread(params: dict[str, jax.Array], w: jax.Array) -> tuple[jax.Array, jax.Array]:
        scale = granularity.spread(usable(params["scale"]), w.shape)
        return scale, granularity.spread(ste_round(params["zero_point"]), w.shape)

    def project(w: jax.Array, params: dict[str, jax.Array]) -> jax.Array:
        scale, zero_point = spread(params, w)
        steps = ste_round(ratio(w, scale))
        return saturate(steps, lowest - zero_point, highest - zero_point) * scale

    def around(w: jax.Array, params: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        scale, zero_point = spread(params, w)
        ends = lowest - zero_point, highest - zero_point
        below, above = _whole_around(ratio(w, scale), *ends)
        return below * scale, above * scale

    name = f"affine int{bits} {granularity.name}"
    return Grid(name, bits, fit, project, None, around)


def _whole_around(
    steps: jax.Array, lowest: jax.typing.ArrayLike, highest: jax.typing.ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """The integers on either side, between two codes."""
    steps = jnp.clip(snapped(steps), lowest, highest)
    return jnp.floor(steps), jnp.ceil(steps)


def _check_bits(bits: int) -> None:
    if not 2 <= bits <= 16:
        raise ValueError(f"bits is {bits}, expected 2 to 16")
