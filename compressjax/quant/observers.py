"""Observers: how a range is estimated from the values that a tensor takes.

An observer is three pure functions on a small state, so that calibration over any number of batches
is one jitted update in constant memory. What it finds, a range, becomes a grid in `steps`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

State = dict[str, jax.Array]


class Observer(NamedTuple):
    """Estimates the range of a tensor.

    Attributes:
      init: `init() -> state`, before any batch.
      update: `update(state, values) -> state`; `values` may have any shape.
      find: `find(state) -> (low, high)`, float32 scalars.
    """

    init: Callable[[], State]
    update: Callable[[State, jax.Array], State]
    find: Callable[[State], tuple[jax.Array, jax.Array]]


def _ends(state: State) -> tuple[jax.Array, jax.Array]:
    return state["low"], state["high"]


def min_max() -> Observer:
    """Keeps the smallest and the largest value ever seen (Jacob et al., 2018).

    Example:
      >>> observer = min_max()
      >>> state = observer.update(observer.init(), jnp.array([-1.0, 2.0]))
      >>> [float(end) for end in observer.find(observer.update(state, jnp.array([0.0, 3.0])))]
      [-1.0, 3.0]
    """

    def init() -> State:
        return {"low": jnp.float32(jnp.inf), "high": jnp.float32(-jnp.inf)}

    def update(state: State, values: jax.Array) -> State:
        return {
            "low": jnp.minimum(state["low"], values.min()),
            "high": jnp.maximum(state["high"], values.max()),
        }

    return Observer(init, update, _ends)


def moving_average(decay: float = 0.9) -> Observer:
    """Averages the extremes of the batches with exponential weights (Jacob et al., 2018).

    The average is corrected for its start, so the first batches count as much as they should.

    Args:
      decay: weight of the past, in [0, 1).

    Raises:
      ValueError: if `decay` is outside [0, 1).

    Example:
      >>> observer = moving_average(0.5)
      >>> state = observer.update(observer.init(), jnp.array([0.0, 2.0]))
      >>> state = observer.update(state, jnp.array([0.0, 5.0]))
      >>> [round(float(end), 4) for end in observer.find(state)]
      [0.0, 4.0]
    """
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"decay is {decay}, expected a number in [0, 1)")

    def init() -> State:
        return {name: jnp.float32(0.0) for name in ("low", "high", "weight")}

    def update(state: State, values: jax.Array) -> State:
        new = {"low": values.min(), "high": values.max(), "weight": jnp.float32(1.0)}
        return {name: decay * state[name] + (1.0 - decay) * new[name] for name in new}

    def find(state: State) -> tuple[jax.Array, jax.Array]:
        weight = jnp.where(state["weight"] > 0, state["weight"], 1.0)
        return state["low"] / weight, state["high"] / weight

    return Observer(init, update, find)
