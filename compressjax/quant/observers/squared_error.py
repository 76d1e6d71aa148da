"""The range with the least squared error, of rounding and of clipping together."""

import functools

import jax
import jax.numpy as jnp

from compressjax.quant.observers import histogram
from compressjax.quant.observers.observer import Observer, Range

# Each pass tries this many ends on either side, over so many octaves about the best so far: from
# 1/16 of the extremes to all of them, then a quarter of an octave about it, then a 32nd of one.
_CANDIDATES = 17
_OCTAVES = (2.0, 1 / 4, 1 / 32)


def mse(*, bits: int = 8, symmetric: bool = False, samples: int | None = None) -> Observer:
    """Searches the clipping range with the least mean squared error of quantization.

    A wide range rounds coarsely, a narrow one clips much; between them lies the least L2 error, the
    criterion of Sung et al. (2015, "Resiliency of deep neural networks under quantization"). Both
    ends are searched for together, each between 1/16 of its extreme and all of it, on a histogram
    whose values are taken to be even within a bin. The extremes are among the candidates, so by
    that measure the range is never worse than theirs.

    Args:
      bits: of the grid, 2 to 8; its 2^bits codes cover the range and zero.
      symmetric: for a grid of 2^bits - 1 codes with zero in the middle.
      samples: how many values of a batch to count at most; None counts all.

    Raises:
      ValueError: if `bits` is outside 2 to 8 or `samples` under 1.

    Example:
      >>> observer = mse(bits=4)
      >>> values = jax.random.laplace(jax.random.key(0), (10000,))
      >>> low, high = observer.find(observer.update(observer.init(), values))
      >>> bool(high < 0.8 * values.max()), bool(low > 0.8 * values.min())
      (True, True)
    """
    steps = histogram.levels(bits, symmetric=symmetric) - 1
    return histogram.observer(
        functools.partial(_search, steps=steps), samples=samples, symmetric=symmetric
    )


@functools.partial(jax.jit, static_argnames="steps")
def _search(counts: jax.Array, low: jax.Array, high: jax.Array, *, steps: int) -> Range:
    """Finds both ends on a histogram, coarsely and then finely."""
    density = histogram.totals(counts)
    density = density / jnp.maximum(density.sum(), 1.0)
    low, high = jnp.minimum(low, 0.0), jnp.maximum(high, 0.0)
    error = jax.vmap(functools.partial(_error, density, steps=steps))
    best = [jnp.float32(-_OCTAVES[0])] * 2
    for octaves in _OCTAVES:
        # Widest first: of equal errors, the first is taken.
        offsets = octaves * jnp.linspace(1.0, -1.0, _CANDIDATES, dtype=jnp.float32)
        tried = [
            logs.ravel()
            for logs in jnp.meshgrid(*(jnp.minimum(middle + offsets, 0.0) for middle in best))
        ]
        least = error(low * jnp.exp2(tried[0]), high * jnp.exp2(tried[1])).argmin()
        best = [logs[least] for logs in tried]
    return low * jnp.exp2(best[0]), high * jnp.exp2(best[1])


def _error(density: jax.Array, low: jax.Array, high: jax.Array, *, steps: int) -> jax.Array:
    """Computes the mean squared error of a grid whose range is [low, high], []."""
    step = jnp.where(high > low, (high - low) / steps, 1.0)
    zero = jnp.round(-low / step)

    def integral(x: jax.Array) -> jax.Array:
        """Integrates (x - quantized x)^2 from 0: whole steps, and what is left."""
        code = jnp.clip(jnp.round(x / step), -zero, steps - zero)
        return code * step**3 / 12.0 + (x - code * step) ** 3 / 3.0

    lower, upper = histogram.edges()
    return (density * (integral(upper) - integral(lower))).sum()
