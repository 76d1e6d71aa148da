"""Which weights share a scale: a granularity is a value, made of two functions.

A grid asks nothing else of it than a statistic of each group of weights, and that statistic beside
every weight of its group.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Granularity(NamedTuple):
    """Which weights of a kernel share a scale.

    Attributes:
      name: what reports call it.
      reduce: `reduce(statistic, w) -> [groups]`; the statistic, such as `jnp.max`, is called as
        `statistic(array, axes)` and gives one value for each group of weights.
      spread: `spread(groups, shape) -> array` that broadcasts over a kernel of that shape.
      storable: whether LiteRT's int8 tensors can hold such scales.
    """

    name: str
    reduce: Callable[[Callable[..., jax.Array], jax.Array], jax.Array]
    spread: Callable[[jax.Array, tuple[int, ...]], jax.Array]
    storable: bool


def per_tensor() -> Granularity:
    """One scale for the whole kernel; its groups have the shape `[]`.

    Returns:
      The granularity.

    Example:
      >>> float(per_tensor().reduce(jnp.max, jnp.array([[1.0, 4.0], [3.0, 2.0]])))
      4.0
    """
    return Granularity(
        name="per tensor",
        reduce=lambda statistic, w: statistic(w, None),
        spread=lambda groups, shape: groups,
        storable=True,
    )


def per_channel() -> Granularity:
    """One scale for each output channel, the last axis; its groups have the shape `[O]`.

    Returns:
      The granularity.

    Example:
      >>> per_channel().reduce(jnp.max, jnp.array([[1.0, 4.0], [3.0, 2.0]])).tolist()
      [3.0, 4.0]
    """
    return Granularity(
        name="per channel",
        reduce=lambda statistic, w: statistic(w, tuple(range(w.ndim - 1))),
        spread=lambda groups, shape: groups.reshape((1,) * (len(shape) - 1) + (-1,)),
        storable=True,
    )


def per_block(size: int) -> Granularity:
    """One scale for each run of weights along the contraction, in each output channel.

    The contraction is the last axis but one of `[I, O]` and `[KH, KW, I, O]`; the groups have the
    shape `[..., I / size, O]`. LiteRT's int8 kernels have no such scales, so they are simulated.

    Args:
      size: how many weights share a scale; it must divide I.

    Returns:
      The granularity.

    Raises:
      ValueError: if `size` is not positive, and, when it meets a kernel, if it does not divide I.

    Example:
      >>> per_block(2).reduce(jnp.max, jnp.arange(8.0).reshape(4, 2)).tolist()
      [[2.0, 3.0], [6.0, 7.0]]
    """
    if size < 1:
        raise ValueError(f"the block size is {size}, expected at least 1")

    def blocks(shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(shape) < 2 or shape[-2] % size:
            raise ValueError(
                f"blocks of {size} do not divide a kernel of shape {shape}: its last axis but one, "
                f"the contraction, must be a multiple of {size}; choose a size that divides it, or "
                "per_channel()"
            )
        return (*shape[:-2], shape[-2] // size)

    def reduce(statistic: Callable[..., jax.Array], w: jax.Array) -> jax.Array:
        return statistic(w.reshape(*blocks(w.shape), size, w.shape[-1]), -2)

    def spread(groups: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        wide = jnp.broadcast_to(groups[..., None, :], (*blocks(shape), size, shape[-1]))
        return wide.reshape(shape)

    return Granularity(f"per block of {size}", reduce, spread, storable=False)
