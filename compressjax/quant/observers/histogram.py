"""A histogram on line: one pass over any number of batches, in constant memory.

Percentiles, squared error and divergence are searched for on the same counts, so this is what the
three share. Bins are as wide as a power of two allows that covers the largest value so far: when a
batch goes beyond, neighbours merge pairwise until it fits, so that no count is lost and nothing
depends on the order of the batches.

Slots: zero has one of its own (every grid stores it exactly, and ReLU makes many), and each side of
it has `BINS`. In widths of a bin, slot `BINS + m` holds the values in (m - 1, m], and slot
`BINS - m` those in [-m, 1 - m). Rounding away from zero twice is rounding once to the wider bin, so
merged counts equal counts made anew.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from compressjax.quant.observers.observer import Observer, Range, State

BINS = 2048
_LOG_BINS = 11

# Powers of two that the largest value may reach; under the least all bins are equally empty.
_LEAST, _GREATEST = -100, 128

# Counts are two digits in int32, the lower one of 16 bits: they stay exact up to 2^47.
_DIGIT = 16

Search = Callable[[jax.Array, jax.Array, jax.Array], Range]


def observer(search: Search, *, samples: int | None, symmetric: bool = False) -> Observer:
    """Makes an observer that keeps a histogram and the exact extremes.

    Args:
      search: `search(counts, low, high) -> (low, high)`; int32 [2, 2 BINS + 1] and the extremes, in
        widths of a bin, float32 []. What it finds is cut to the extremes.
      samples: how many values of a batch to count at most, or None for all. Those counted are a
        stride apart that visits all channels alike; extremes are of all values anyhow.
      symmetric: search on absolute values, and give a range that is symmetric about zero.

    Returns:
      The observer.

    Raises:
      ValueError: if `samples` is under 1.
    """
    if samples is not None and samples < 1:
        raise ValueError(f"samples is {samples}, expected at least 1, or None to count all values")

    def init() -> State:
        return {
            "counts": jnp.zeros((2, 2 * BINS + 1), jnp.int32),
            "exponent": jnp.int32(_LEAST),
            "low": jnp.float32(jnp.inf),
            "high": jnp.float32(-jnp.inf),
        }

    def update(state: State, values: jax.Array) -> State:
        values = values.ravel().astype(jnp.float32)
        low, high = values.min(), values.max()
        exponent = jnp.maximum(state["exponent"], _exponent(jnp.maximum(-low, high)))
        new = _count(values[:: _stride(values.size, samples)], exponent)
        counts = merge_bins(state["counts"], exponent - state["exponent"])
        return {
            "counts": _carried(counts.at[1].add(new)),
            "exponent": exponent,
            "low": jnp.minimum(state["low"], low),
            "high": jnp.maximum(state["high"], high),
        }

    def merge(a: State, b: State) -> State:
        exponent = jnp.maximum(a["exponent"], b["exponent"])
        one, two = (merge_bins(s["counts"], exponent - s["exponent"]) for s in (a, b))
        return {
            "counts": _carried(one + two),
            "exponent": exponent,
            "low": jnp.minimum(a["low"], b["low"]),
            "high": jnp.maximum(a["high"], b["high"]),
        }

    def find(state: State) -> Range:
        counts, low, high = state["counts"], state["low"], state["high"]
        usable = jnp.isfinite(low) & jnp.isfinite(high)
        width = _power_of_two(state["exponent"] - _LOG_BINS)
        inverse = _power_of_two(_LOG_BINS - state["exponent"])
        if symmetric:
            reach = jnp.maximum(-low, high)
            _, end = search(_folded(counts), jnp.float32(0.0), reach * inverse)
            end = jnp.where(usable, jnp.minimum(end * width, reach), reach)
            return -end, end
        ends = search(counts, low * inverse, high * inverse)
        start, end = (jnp.clip(end * width, low, high) for end in ends)
        return jnp.where(usable, start, low), jnp.where(usable, end, high)

    return Observer(init, update, find, merge)


def levels(bits: int, *, symmetric: bool) -> int:
    """Counts the codes that a grid has for the slots a search looks at.

    Args:
      bits: of the grid.
      symmetric: whether the search looks at absolute values, so at zero and one side of it.

    Returns:
      The number of codes.

    Raises:
      ValueError: if `bits` is outside 2 to 8: steps of more bits are finer than bins.
    """
    if not 2 <= bits <= 8:
        raise ValueError(
            f"bits is {bits}, expected 2 to 8: with more, steps are finer than the bins of a "
            "histogram, and min_max or percentile does well"
        )
    return 2 ** (bits - 1) if symmetric else 2**bits


def merge_bins(counts: jax.Array, times: jax.Array) -> jax.Array:
    """Merges neighbouring bins pairwise, from zero outwards, a number of times.

    Args:
      counts: int32 [2, 2 BINS + 1].
      times: int32 [], not negative.

    Returns:
      int32 [2, 2 BINS + 1]; the outer bins are empty.
    """

    def once(_: jax.Array, counts: jax.Array) -> jax.Array:
        sides = jnp.stack([counts[:, BINS - 1 :: -1], counts[:, BINS + 1 :]], 1)
        pairs = sides.reshape(2, 2, BINS // 2, 2).sum(-1)
        sides = jnp.concatenate([pairs, jnp.zeros_like(pairs)], -1)
        return jnp.concatenate(
            [sides[:, 0, ::-1], counts[:, BINS : BINS + 1], sides[:, 1]], axis=-1
        )

    # After _LOG_BINS times all counts of a side are in one bin, which stays where it is.
    return lax.fori_loop(0, jnp.minimum(times, _LOG_BINS), once, counts)


def totals(counts: jax.Array) -> jax.Array:
    """Reads two digits as a number, rounded once.

    Args:
      counts: int32 [2, ...].

    Returns:
      float32 [...].
    """
    high, low = counts.astype(jnp.float32)
    return high * 2.0**_DIGIT + low


def edges() -> tuple[jax.Array, jax.Array]:
    """Gives the lower and the upper edge of every slot, float32 [2 BINS + 1], in bin widths."""
    slots = jnp.arange(-BINS, BINS + 1, dtype=jnp.float32)
    return jnp.where(slots > 0, slots - 1, slots), jnp.where(slots < 0, slots + 1, slots)


def _count(values: jax.Array, exponent: jax.Array) -> jax.Array:
    """Counts values in [-2^exponent, 2^exponent], [N]; int32 [2 BINS + 1]."""
    widths = values * _power_of_two(_LOG_BINS - exponent)
    slots = jnp.where(widths > 0, jnp.ceil(widths), jnp.floor(widths)).astype(jnp.int32) + BINS
    # NaN and infinity may fall anywhere; then the extremes tell.
    return jnp.zeros(2 * BINS + 1, jnp.int32).at[slots].add(1, mode="drop")


def _carried(counts: jax.Array) -> jax.Array:
    """Moves what passes the lower digit to the higher one."""
    high, low = counts
    return jnp.stack([high + (low >> _DIGIT), low & (2**_DIGIT - 1)])


def _folded(counts: jax.Array) -> jax.Array:
    """Counts absolute values: the negative side is added to the positive one, and emptied."""
    positive = counts[:, BINS + 1 :] + counts[:, BINS - 1 :: -1]
    return jnp.concatenate(
        [jnp.zeros_like(positive), counts[:, BINS : BINS + 1], positive], axis=-1
    )


def _exponent(reach: jax.Array) -> jax.Array:
    """Finds the least power of two that is not under a positive number, int32 []."""
    bits = lax.bitcast_convert_type(reach, jnp.int32)
    exponent = (bits >> 23) - 127 + (bits & (2**23 - 1) != 0)
    return jnp.clip(exponent, _LEAST, _GREATEST)


def _power_of_two(exponent: jax.Array) -> jax.Array:
    """Raises 2 to a power in [-126, 127], exactly; float32 []."""
    return lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)


def _stride(size: int, samples: int | None) -> int:
    """Chooses a stride that takes at most `samples` of `size` values and divides no axis."""
    if samples is None:
        return 1
    stride = -(-size // samples)
    while math.gcd(stride, size) != 1:
        stride += 1
    return stride
