"""The array maths under every budget: keep exactly the `count` largest of some arrays.

Nothing is sorted or gathered. A threshold is found by its digits, 2 bits of a rank with one
counting pass over the data, and ties at the threshold by their place in the same way. Every pass
reduces to three integers, so arrays keep their sharding and a mesh exchanges only counts.

A pass reads the data once and writes nothing. That takes some care with XLA on CPU:

* What does not change in a loop is computed before it and kept, which for ranks is a copy of all
  data. So every pass makes its data depend on where the search stands.
* A sum of one array is split into windows, and their input is written to memory first. A reduction
  of several arrays at once is not. On a mesh such a reduction gathers the devices' counts
  instead of adding them on the way; so under `jax.set_mesh` each array is summed on its own.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any
_Search = tuple[jax.Array, jax.Array, jax.Array]


def ranks_of(scores: jax.Array) -> jax.Array:
    """Maps scores to integers in the same order.

    Args:
      scores: real floating array; it is compared in float32. NaN ranks above everything, so that
        it is kept and seen; -0 equals 0.

    Returns:
      uint32 array of the same shape; `a < b` exactly where the scores are.

    Example:
      >>> ranks = ranks_of(jnp.array([-1.0, -0.0, 0.0, 2.0]))
      >>> [int(rank) - 2**31 for rank in ranks]
      [-1065353217, 0, 0, 1073741824]
    """
    bits = jax.lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    bits = jnp.where(bits == sign, jnp.uint32(0), bits)
    ranks = jnp.where(bits & sign != 0, ~bits, bits | sign)
    return jnp.where(jnp.isnan(scores), jnp.uint32(2**32 - 1), ranks)


def _counts(masks: Sequence[jax.Array]) -> list[jax.Array]:
    """Counts what is True in each of several arrays of one shape, in one pass."""
    if not jax.sharding.get_abstract_mesh().empty:
        return [jnp.sum(mask, dtype=jnp.int32) for mask in masks]
    counts = jax.lax.reduce(
        [mask.astype(jnp.int32) for mask in masks],
        [jnp.int32(0)] * len(masks),
        lambda ours, theirs: [a + b for a, b in zip(ours, theirs, strict=True)],
        tuple(range(masks[0].ndim)),
    )
    return list(counts)


def _places_from_end(shape: tuple[int, ...], last: jax.Array) -> jax.Array:
    """Row-major place of every element counted from the end, of any sharding: `last` for the first.

    The sum begins with `last`, so that in a loop which changes it no array is kept between rounds.
    """
    places = jnp.broadcast_to(last, shape)
    for axis, length in enumerate(shape):
        steps = jnp.arange(length, dtype=jnp.uint32) * jnp.uint32(math.prod(shape[axis + 1 :]))
        places = places - jax.lax.broadcast_in_dim(steps, shape, (axis,))
    return places


def _largest_fitting(
    below: Callable[[PyTree, list[jax.Array]], list[list[jax.Array]]],
    data: PyTree,
    limit: jax.Array,
    bits: int,
) -> tuple[jax.Array, jax.Array]:
    """Finds the largest value with at most `limit` elements below it, 2 bits a pass.

    Args:
      below: `below(data, values)` counts, for every leaf, the elements below each of three values.
      data: what `below` reads.
      limit: int32 [], at least 0.
      bits: how many the value has.

    Returns:
      The value, uint32 [], and how many elements are below it, int32 []; where a value has exactly
      `limit` elements below it, any such value.
    """

    def step(carry: _Search) -> _Search:
        value, count, shift = carry
        # Without the barrier all that `below` makes of the data would be computed before the loop.
        here, value = jax.lax.optimization_barrier((data, value))
        shift = shift - 2
        higher = [value + (jnp.uint32(digit) << shift) for digit in (1, 2, 3)]
        counts = [sum(parts, jnp.int32(0)) for parts in zip(*below(here, higher), strict=True)]
        for candidate, found in zip(higher, counts, strict=True):
            value = jnp.where(found <= limit, candidate, value)
            count = jnp.where(found <= limit, found, count)
        return value, count, shift

    value, count, _ = jax.lax.while_loop(
        lambda carry: (carry[1] < limit) & (carry[2] > 0),
        step,
        (jnp.uint32(0), jnp.int32(0), jnp.uint32(bits + bits % 2)),
    )
    return value, count


def keep_largest(
    ranks: PyTree,
    count: jax.Array | int,
    make: Callable[[PyTree], Sequence[jax.Array]] = list,
) -> list[jax.Array]:
    """Marks exactly the `count` largest ranks of several arrays taken together.

    Args:
      ranks: uint32 arrays of any shapes, under 2**31 elements in all; rank 0 is never kept. With
        `make`, any tree of arrays.
      count: int32 [], how many to keep.
      make: `make(ranks)` returns the arrays of ranks. It is called again in every pass over the
        data, so ranks that are cheap to compute need no memory: pass what they are made of.

    Returns:
      Boolean arrays of the same shapes with `min(count, number of ranks above 0)` True in all. Of
      equal ranks the earlier arrays, and the earlier elements in row-major order, are kept first.

    Example:
      >>> keep_largest([jnp.array([5, 1, 5, 5], jnp.uint32)], 2)
      [Array([ True, False,  True, False], dtype=bool)]
      >>> keep_largest([jnp.array([-3.0, 2.0])], 1, lambda leaves: [ranks_of(abs(leaves[0]))])
      [Array([ True, False], dtype=bool)]
    """
    shapes = [rank.shape for rank in jax.eval_shape(make, ranks)]
    if not shapes:
        return []
    elements = sum(math.prod(shape) for shape in shapes)
    # Seen from below: all but `count` are dropped, and the last of the ties are the first to go.
    dropped = elements - jnp.clip(jnp.asarray(count, jnp.int32), 0, elements)
    threshold, under = _largest_fitting(
        lambda data, values: [_counts([rank < x for x in values]) for rank in make(data)],
        ranks,
        dropped,
        32,
    )
    # Ties at rank 0 need no breaking.
    dropped_ties = jnp.where(threshold == 0, 0, dropped - under)
    ends = [
        jnp.uint32(max(0, elements - 1 - sum(math.prod(shape) for shape in shapes[:i])))
        for i in range(len(shapes))
    ]

    def ties_below(
        data: tuple[PyTree, list[jax.Array]], values: list[jax.Array]
    ) -> list[list[jax.Array]]:
        found = []
        for rank, end in zip(make(data[0]), data[1], strict=True):
            places = _places_from_end(rank.shape, end)
            found.append(_counts([(rank == threshold) & (places < x) for x in values]))
        return found

    cut, _ = _largest_fitting(ties_below, (ranks, ends), dropped_ties, elements.bit_length())
    return [
        (rank > 0)
        & ((rank > threshold) | ((rank == threshold) & (_places_from_end(rank.shape, end) >= cut)))
        for rank, end in zip(make(ranks), ends, strict=True)
    ]
