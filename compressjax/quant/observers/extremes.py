"""Observers that keep nothing but extremes: the cheapest, and blind to how rare an extreme is."""

import jax
import jax.numpy as jnp

from compressjax.quant.observers.observer import Observer, Range, State


def min_max() -> Observer:
    """Keeps the smallest and the largest value ever seen (Jacob et al., 2018, section 3.1).

    Example:
      >>> observer = min_max()
      >>> state = observer.update(observer.init(), jnp.array([-1.0, 2.0]))
      >>> [float(end) for end in observer.find(observer.update(state, jnp.array([0.0, 3.0])))]
      [-1.0, 3.0]
    """

    def init() -> State:
        return {"low": jnp.float32(jnp.inf), "high": jnp.float32(-jnp.inf)}

    def update(state: State, values: jax.Array) -> State:
        return merge(state, {"low": values.min(), "high": values.max()})

    def merge(a: State, b: State) -> State:
        return {
            "low": jnp.minimum(a["low"], b["low"]).astype(jnp.float32),
            "high": jnp.maximum(a["high"], b["high"]).astype(jnp.float32),
        }

    def find(state: State) -> Range:
        return state["low"], state["high"]

    return Observer(init, update, find, merge)


def moving_average(decay: float = 0.9) -> Observer:
    """Averages the extremes of the batches with exponential weights (Jacob et al., 2018).

    The average is corrected for its start, so the first batches count as much as they should. Two
    states merge into the average of both; to get what one device gets from whole batches, update
    under `jax.jit` with sharded arrays instead.

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
        new = {
            "low": values.min().astype(jnp.float32),
            "high": values.max().astype(jnp.float32),
            "weight": jnp.float32(1.0),
        }
        return {name: decay * state[name] + (1.0 - decay) * new[name] for name in new}

    def merge(a: State, b: State) -> State:
        return jax.tree.map(jnp.add, a, b)

    def find(state: State) -> Range:
        # Without a batch the weight is 0, and the range NaN.
        return state["low"] / state["weight"], state["high"] / state["weight"]

    return Observer(init, update, find, merge)
