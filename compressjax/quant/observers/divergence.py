"""The range whose quantized histogram tells least apart from the histogram itself."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import xlogy

from compressjax.quant.observers import histogram
from compressjax.quant.observers.histogram import BINS
from compressjax.quant.observers.observer import Observer, Range


def entropy(*, bits: int = 8, symmetric: bool = False, samples: int | None = None) -> Observer:
    """Searches the clipping range with the least Kullback-Leibler divergence.

    The rule of TensorRT (Migacz, 2017, "8-bit inference with TensorRT") and of MNN. For every
    range that ends at the edge of a bin: P is the histogram inside, with what lies outside added to
    its outermost bins; Q spreads the bins inside over as many levels as there are codes, each bin
    whole to the level that it begins in, and gives a level's mass evenly to those of its bins that
    are not empty. The range with the least KL(P || Q) is taken, of equal ones the widest. Exact
    zeros are not counted, for every grid holds them.

    TensorRT's rule is for absolute values and 2^(bits - 1) levels: that is `symmetric`. An affine
    grid has 2^bits levels. On a tensor with one sign the same walk moves its one end. With both
    signs, the first walk moves both ends in proportion, the second the high end, the third the low
    one, and each keeps the range unless it finds a better one.

    Args:
      bits: of the grid, 2 to 8.
      symmetric: for a grid with zero in the middle.
      samples: how many values of a batch to count at most; None counts all.

    Raises:
      ValueError: if `bits` is outside 2 to 8 or `samples` under 1.

    Example:
      >>> observer = entropy()
      >>> values = abs(jax.random.t(jax.random.key(0), 3.0, (100000,)))
      >>> low, high = observer.find(observer.update(observer.init(), values))
      >>> bool(high < 0.5 * values.max())
      True
    """
    levels = histogram.levels(bits, symmetric=symmetric)
    return histogram.observer(
        functools.partial(_search, levels=levels), samples=samples, symmetric=symmetric
    )


@functools.partial(jax.jit, static_argnames="levels")
def _search(counts: jax.Array, low: jax.Array, high: jax.Array, *, levels: int) -> Range:
    """Walks over ranges from the widest to the narrowest, three times."""
    first = jnp.clip(jnp.floor(low), -BINS, 0).astype(jnp.int32)
    last = jnp.clip(jnp.ceil(high), 0, BINS).astype(jnp.int32)
    reach = jnp.maximum(jnp.maximum(-first, last), 1)
    divergence = jax.vmap(_divergence(counts, levels))
    bins = jnp.arange(BINS, 0, -1)
    shares = jnp.minimum(bins, reach)
    walks = (
        lambda start, end: (-_share(-first, shares, reach), _share(last, shares, reach)),
        lambda start, end: (jnp.broadcast_to(start, bins.shape), jnp.minimum(bins, last)),
        lambda start, end: (-jnp.minimum(bins, -first), jnp.broadcast_to(end, bins.shape)),
    )
    start, end, least = first, last, jnp.float32(jnp.inf)
    for walk in walks:
        starts, ends = walk(start, end)
        found = divergence(starts, ends)
        best = found.argmin()
        better = found[best] < least
        start = jnp.where(better, starts[best], start)
        end = jnp.where(better, ends[best], end)
        least = jnp.where(better, found[best], least)
    return start.astype(jnp.float32), end.astype(jnp.float32)


def _share(whole: jax.Array, part: jax.Array, parts: jax.Array) -> jax.Array:
    """Computes whole * part / parts, rounded up."""
    return (whole * part + parts - 1) // parts


def _divergence(counts: jax.Array, levels: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Prepares sums over bins, so that a range costs as many operations as there are levels.

    Args:
      counts: int32 [2, 2 BINS + 1].
      levels: how many codes a range has.

    Returns:
      `divergence(start, end) -> []` of a range from bin edge `start` to `end`, int32 [], in bins
      from zero; infinite for fewer bins than levels, and where values outside would have to be
      added to an empty bin.
    """
    bins = jnp.concatenate([counts[:, :BINS], counts[:, BINS + 1 :]], axis=1)
    mass = histogram.totals(bins)
    whole = jnp.maximum(mass.sum(), 1.0)
    share = mass / whole
    # Whole numbers, so that differences of sums are exact.
    occupied = (mass > 0).astype(jnp.int32).reshape(1, -1)
    sums = jnp.cumsum(jnp.concatenate([bins, occupied]), axis=1)
    sums = jnp.concatenate([jnp.zeros((3, 1), jnp.int32), sums], axis=1)
    # Summed from outside: what a range leaves out is little, and then precise.
    terms = xlogy(share, share)
    zero = jnp.zeros(1)
    below = jnp.concatenate([zero, jnp.cumsum(terms)])
    above = jnp.concatenate([jnp.cumsum(terms[::-1])[::-1], zero])

    def divergence(start: jax.Array, end: jax.Array) -> jax.Array:
        span = end - start
        cuts = start + (jnp.arange(levels + 1) * span + levels - 1) // levels + BINS
        parts = jnp.diff(sums[:, cuts], axis=1)
        held = histogram.totals(parts[:2]) / whole
        inside = held.sum()
        # Q of every bin of a level that is not empty.
        log_q = jnp.log(held / (jnp.maximum(parts[2], 1) * inside))
        entropy = terms.sum() - below[cuts[0]] - above[cuts[-1]]
        cross = jnp.where(held > 0, held * log_q, 0.0).sum()
        for edge, level, outside in (
            (cuts[0], 0, sums[:2, cuts[0]]),
            (cuts[-1] - 1, -1, sums[:2, -1] - sums[:2, cuts[-1]]),
        ):
            extra = histogram.totals(outside) / whole
            own = share[edge]
            entropy += xlogy(own + extra, own + extra) - xlogy(own, own)
            cross += jnp.where(extra > 0, jnp.where(own > 0, extra * log_q[level], -jnp.inf), 0.0)
        return jnp.where((span >= levels) & (inside > 0), entropy - cross, jnp.inf)

    return divergence
