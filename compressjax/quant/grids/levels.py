"""Powers of two and sums of them: values whose products are shifts and additions.

Levels are dense about zero, where most weights are, and coarse at the ends. They are integers times
the smallest level, so the coarser ones also fit in LiteRT's int8.
"""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from compressjax.quant.grids.granularity import Granularity, per_channel
from compressjax.quant.grids.grid import Grid
from compressjax.quant.grids.lookup import cell_of
from compressjax.quant.grids.scaled import reach, scaled, snapped
from compressjax.quant.lattice.grid import ratio, saturate, straight_through


def power_of_two(bits: int, *, granularity: Granularity | None = None) -> Grid:
    """Makes the grid of zero and powers of two: INQ (Zhou et al. 2017, 1702.03044, equations 1-4).

    The 2^(bits-2) exponents end at `floor(log2(4/3 max|w|))`, and a weight goes to the nearest
    value; one of the bits tells zero. Multiplying by such a weight is a shift.

    Args:
      bits: 2 to 7. Up to 4 bits fit in LiteRT's int8; the paper's 5 bits would need the code 128.
      granularity: which weights share their exponents; each output channel by default (the paper
        has one set for each layer).

    Returns:
      The grid; its params are the smallest powers, one for each group.

    Raises:
      ValueError: if `bits` is outside 2 to 7.

    Example:
      >>> grid = power_of_two(3)
      >>> w = jnp.array([[1.0], [0.7], [0.2], [-0.4]])
      >>> grid.project(w, grid.fit(w)).ravel().tolist()
      [1.0, 0.5, 0.0, -0.5]
    """
    if not 2 <= bits <= 7:
        raise ValueError(f"bits of a power of two is {bits}, expected 2 to 7")
    granularity = per_channel() if granularity is None else granularity
    sizes = np.array([0.0, *(2.0**i for i in range(2 ** (bits - 2)))], np.float32)

    def fit(w: jax.Array, keep: jax.Array | None = None) -> jax.Array:
        del keep  # Zeros do not move a maximum.
        return power_below(ratio(4.0 * reach(granularity, w), 3.0)) / sizes[-1]

    return _on_levels(f"{bits}-bit power of two", bits, granularity, sizes, fit)


def additive_power_of_two(bits: int, *, granularity: Granularity | None = None) -> Grid:
    """Makes the grid of sums of powers of two: APoT (Li et al. 2020, 1909.13144, section 2.2).

    One bit is the sign. Of the rest, each pair of bits chooses zero or one of three powers, and a
    bit left over zero or one power; the powers 1/2, 1/4, ... are dealt to the terms in turn, and a
    value is a sum of one choice from each. `max|w|` is put on the largest sum. The gradient to the
    scale is that of the paper's reparametrised clipping (equation 8).

    Args:
      bits: 2 to 8. Up to 6 bits fit in LiteRT's int8.
      granularity: which weights share a scale; each output channel by default (the paper has one
        for each layer).

    Returns:
      The grid; its params are the smallest levels above zero, one for each group.

    Raises:
      ValueError: if `bits` is outside 2 to 8.

    Example:
      >>> grid = additive_power_of_two(4)
      >>> w = jnp.linspace(0.0, 10.0, 11).reshape(-1, 1)
      >>> grid.project(w, grid.fit(w)).ravel().tolist()
      [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 6.0, 8.0, 8.0, 10.0, 10.0]
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"bits of an additive power of two is {bits}, expected 2 to 8")
    granularity = per_channel() if granularity is None else granularity
    sizes = _sums_of_powers(bits - 1)

    def fit(w: jax.Array, keep: jax.Array | None = None) -> jax.Array:
        del keep  # Zeros do not move a maximum.
        return ratio(reach(granularity, w), sizes[-1])

    return _on_levels(f"{bits}-bit additive power of two", bits, granularity, sizes, fit)


def power_below(x: jax.Array) -> jax.Array:
    """Finds the largest power of two that is not above a number.

    Args:
      x: positive float32; zero, and numbers below 2^-126, give zero.

    Returns:
      The powers, float32.

    Example:
      >>> power_below(jnp.array([0.0, 0.7, 8.0])).tolist()
      [0.0, 0.5, 8.0]
    """
    bits = lax.bitcast_convert_type(x, jnp.uint32) & jnp.uint32(0x7F800000)
    return lax.bitcast_convert_type(bits, jnp.float32)


def _sums_of_powers(bits: int) -> np.ndarray:
    """The sums that an unsigned number of `bits` bits stands for, in units of the smallest."""
    pairs, rest = divmod(bits, 2)
    terms: list[list[float]] = [[0.0] for _ in range(pairs + rest)]
    # The term of one bit takes its power in the second round, after the pairs.
    turns = [t for turn in range(3) for t in range(pairs + (rest if turn == 1 else 0))]
    if not pairs:
        turns = [0]
    for power, term in enumerate(turns):
        terms[term].append(2.0 ** (len(turns) - 1 - power))
    return np.unique([sum(choice) for choice in itertools.product(*terms)]).astype(np.float32)


def _on_levels(
    name: str,
    bits: int,
    granularity: Granularity,
    sizes: np.ndarray,
    fit: Callable[..., jax.Array],
) -> Grid:
    """The grid of +-sizes times a scale; ties go away from zero."""
    largest = float(sizes[-1])
    middles = (sizes[1:] + sizes[:-1]) / 2

    def code(w: jax.Array, _: jax.Array, scale: jax.Array) -> jax.Array:
        steps = ratio(w, scale)
        size = jnp.asarray(sizes)[cell_of(middles, jnp.abs(steps), side="right")]
        nearest = jnp.where(steps < 0, -size, size)
        return straight_through(lax.stop_gradient(nearest), saturate(steps, -largest, largest))

    def around(w: jax.Array, _: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
        steps = snapped(ratio(w, scale))
        below = cell_of(sizes, jnp.abs(steps), side="right") - 1
        above = cell_of(sizes, jnp.minimum(jnp.abs(steps), largest), side="left")
        inner, outer = jnp.asarray(sizes)[below], jnp.asarray(sizes)[above]
        return jnp.where(steps < 0, -outer, inner), jnp.where(steps < 0, -inner, outer)

    return scaled(
        name,
        bits,
        granularity,
        fit=fit,
        scale=lambda scale, w: scale,
        code=code,
        around=around,
        largest=largest,
    )
