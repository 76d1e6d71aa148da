"""The array maths under every budget: keep exactly the `count` largest of some arrays.

Nothing is sorted or gathered. A threshold is found by bisecting the 32 bits of a rank, one counting
pass over the data a bit, and ties at the threshold by bisecting the position. Every pass is a
reduction to one integer, so arrays keep their sharding and a mesh exchanges only counts.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp


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


def _positions(shape: tuple[int, ...], start: jax.Array) -> jax.Array:
    """Row-major position of every element, plus `start`, of any sharding.

    The sum begins with `start`, so that in a loop which changes it no array is kept between rounds.
    """
    total = jnp.broadcast_to(start, shape)
    for axis, length in enumerate(shape):
        steps = jnp.arange(length, dtype=jnp.uint32) * jnp.uint32(math.prod(shape[axis + 1 :]))
        total = total + jax.lax.broadcast_in_dim(steps, shape, (axis,))
    return total


def _last_reaching(
    count_at: Callable[[jax.Array], jax.Array], goal: jax.Array, low: jax.Array, high: jax.Array
) -> jax.Array:
    """Bisects for the largest value in [low, high] with `count_at(value) >= goal`.

    Args:
      count_at: a falling function, `uint32 [] -> int32 []`, with `count_at(low) >= goal`.
      goal: int32 [].
      low: uint32 [].
      high: uint32 [], at least `low`.

    Returns:
      uint32 []; or, where a value counts exactly `goal`, any such value.
    """

    def step(bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = high - (high - low) // 2
        count = count_at(middle)
        low = jnp.where(count >= goal, middle, low)
        high = jnp.where(count > goal, high, jnp.where(count == goal, middle, middle - 1))
        return low, high

    return jax.lax.while_loop(lambda bounds: bounds[0] < bounds[1], step, (low, high))[0]


def keep_largest(ranks: Sequence[jax.Array], count: jax.Array) -> list[jax.Array]:
    """Marks exactly the `count` largest ranks of several arrays taken together.

    Args:
      ranks: uint32 arrays of any shapes, under 2**31 elements in all; rank 0 is never kept.
      count: int32 [], how many to keep.

    Returns:
      Boolean arrays of the same shapes with `min(count, number of ranks above 0)` True in all. Of
      equal ranks the earlier arrays, and the earlier elements in row-major order, are kept first.

    Example:
      >>> keep_largest([jnp.array([5, 1, 5, 5], jnp.uint32)], 2)
      [Array([ True, False,  True, False], dtype=bool)]
    """

    def total(masks: Sequence[jax.Array]) -> jax.Array:
        return sum((jnp.sum(mask, dtype=jnp.int32) for mask in masks), jnp.int32(0))

    count = jnp.minimum(jnp.asarray(count, jnp.int32), total([rank > 0 for rank in ranks]))
    threshold = _last_reaching(
        lambda value: total([rank >= value for rank in ranks]),
        count,
        jnp.uint32(1),
        jnp.uint32(2**32 - 1),
    )
    # Of the ties, those at positions under `stop` stay. Counting them from the far end makes the
    # count fall, as the bisection wants: stop = elements - back.
    above = [rank > threshold for rank in ranks]
    ties = [rank == threshold for rank in ranks]
    wanted = count - total(above)
    elements = sum(rank.size for rank in ranks)
    offsets = [sum(rank.size for rank in ranks[:i]) for i in range(len(ranks))]

    def first_ties(back: jax.Array) -> list[jax.Array]:
        return [
            tie & (_positions(tie.shape, back + jnp.uint32(offset)) < jnp.uint32(elements))
            for tie, offset in zip(ties, offsets, strict=True)
        ]

    no_ties_to_break = total(ties) == wanted
    back = _last_reaching(
        lambda back: total(first_ties(back)),
        wanted,
        jnp.uint32(0),
        jnp.where(no_ties_to_break, jnp.uint32(0), jnp.uint32(elements)),
    )
    return [keep | tie for keep, tie in zip(above, first_ties(back), strict=True)]
