"""What an observer is, and how one observer of a tensor becomes one of each of its channels."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

State = dict[str, jax.Array]
Range = tuple[jax.Array, jax.Array]


class Observer(NamedTuple):
    """Estimates the range of a tensor.

    Whatever is not finite in a batch, and a state that saw no batch, give a range that is not
    finite either, or whose low end is above its high end: no grid is made of it by mistake.

    Under `jax.jit` with arrays that are sharded over devices, `update` sees whole arrays and gives
    what one device gives. Where each device or host keeps a state of its own, as under
    `jax.shard_map`, `merge` makes one of two.

    Attributes:
      init: `init() -> state`, before any batch.
      update: `update(state, values) -> state`; `values` may have any shape.
      find: `find(state) -> (low, high)`, float32 scalars.
      merge: `merge(state, state) -> state`; the state after the batches of both.
    """

    init: Callable[[], State]
    update: Callable[[State, jax.Array], State]
    find: Callable[[State], Range]
    merge: Callable[[State, State], State]


def per_channel(observer: Observer, channels: int, axis: int = -1) -> Observer:
    """Observes every channel of a tensor by itself.

    Args:
      observer: how to observe one channel.
      channels: how many there are, C.
      axis: the axis of the values that has the channels.

    Returns:
      An observer whose range is two float32 arrays [C]. Its `update` raises ValueError for values
      without C channels.

    Raises:
      ValueError: if `channels` is under 1.

    Example:
      >>> from compressjax.quant.observers import min_max
      >>> observer = per_channel(min_max(), 2)
      >>> state = observer.update(observer.init(), jnp.array([[-1.0, 5.0], [2.0, 7.0]]))
      >>> [end.tolist() for end in observer.find(state)]
      [[-1.0, 5.0], [2.0, 7.0]]
    """
    if channels < 1:
        raise ValueError(f"per_channel: channels is {channels}, expected at least 1")

    def init() -> State:
        return jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (channels, *leaf.shape)), observer.init()
        )

    def update(state: State, values: jax.Array) -> State:
        if not -values.ndim <= axis < values.ndim or values.shape[axis] != channels:
            raise ValueError(
                f"per_channel: values of shape {values.shape}, expected {channels} channels on "
                f"axis {axis}: make an observer for each number of channels"
            )
        return jax.vmap(observer.update, in_axes=(0, axis))(state, values)

    def find(state: State) -> Range:
        # In turns, for a search holds many candidates at once.
        return jax.lax.map(observer.find, state)

    return Observer(init, update, find, jax.vmap(observer.merge))
