"""A range that leaves out a fixed share of the values: robust, but it knows nothing of the grid."""

import functools

import jax
import jax.numpy as jnp

from compressjax.quant.observers import histogram
from compressjax.quant.observers.observer import Observer, Range


def percentile(p: float = 99.99, *, samples: int | None = None) -> Observer:
    """Cuts the same share of the values off at either end.

    At most (100 - p) percent of the values lie above the range, and as many below, up to the width
    of a bin: 1/2048 of the power of two that covers the largest value. This is the percentile
    calibration of Wu et al. (2020, "Integer quantization for deep learning inference"), done at
    each end where theirs takes absolute values.

    Args:
      p: percent, in (50, 100]; 100 gives the same range as `min_max`.
      samples: how many values of a batch to count at most; None counts all.

    Raises:
      ValueError: if `p` is outside (50, 100] or `samples` under 1.

    Example:
      >>> observer = percentile(99.0)
      >>> values = jnp.arange(1000.0).at[0].set(1e3).at[1].set(-1e3)
      >>> low, high = observer.find(observer.update(observer.init(), values))
      >>> bool(abs(low - 10) < 2), bool(abs(high - 990) < 2)
      (True, True)
    """
    if not 50.0 < p <= 100.0:
        raise ValueError(f"p is {p}, expected a number of percent in (50, 100]")
    return histogram.observer(functools.partial(_search, beyond=1.0 - p / 100.0), samples=samples)


@jax.jit
def _search(counts: jax.Array, low: jax.Array, high: jax.Array, beyond: float) -> Range:
    """Finds both ends on a histogram."""
    del low, high
    return -_end(counts[:, ::-1], beyond), _end(counts, beyond)


def _end(counts: jax.Array, beyond: jax.typing.ArrayLike) -> jax.Array:
    """Finds where a share of the values lies above; in bin widths, []."""
    # Whole numbers are summed, so that one value in a million is not lost in rounding.
    from_here = jnp.cumsum(counts[:, ::-1], axis=1)[:, ::-1]
    above = histogram.totals(from_here - counts)
    count = histogram.totals(from_here)
    allowed = beyond * (count[0] - 1.0)
    slot = jnp.maximum((count > allowed).sum() - 1, 0)
    lower, upper = (side[slot] for side in histogram.edges())
    own = jnp.maximum(count[slot] - above[slot], 1.0)
    return upper - (upper - lower) * (allowed - above[slot]) / own
