"""Parameters, gradients and steps for tests of optimizers."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


def params_of(shapes: Mapping[str, tuple[int, ...]], seed: int, dtype: Any = jnp.float32) -> Any:
    """Draws a kernel of each shape, and its bias, from a normal distribution."""
    rng = np.random.default_rng(seed)
    return {
        name: {
            "kernel": jnp.asarray(rng.normal(size=shape), dtype),
            "bias": jnp.asarray(rng.normal(size=shape[-1:]), dtype),
        }
        for name, shape in shapes.items()
    }


def gradients_of(step: int, params: Any) -> Any:
    """Draws the gradients of a step, the same for the same step."""
    rng = np.random.default_rng(1000 + step)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), params)


def stepper(tx: optax.GradientTransformation) -> Any:
    """Makes a jitted `(params, state, gradients) -> (params, state)` of an optimizer."""

    @jax.jit
    def step(params: Any, state: Any, gradients: Any) -> tuple[Any, Any]:
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return step
