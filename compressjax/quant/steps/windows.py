"""Pools over windows, and reductions of whole axes."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from compressjax.quant import lattice
from compressjax.quant.lattice import Affine
from compressjax.quant.plan import Step
from compressjax.quant.steps.kind import Coded, Kind, Stored, ends_of
from compressjax.quant.steps.moves import move


def _window(step: Step) -> tuple[tuple[int, ...], tuple[int, ...], str]:
    p = step.params
    return (1, *p["window_dimensions"], 1), (1, *p["window_strides"], 1), p["padding"]


def _real_max(step: Step, inputs: Sequence[jax.Array], constants: Sequence[jax.Array]) -> jax.Array:
    del constants
    return lax.reduce_window(inputs[0], -jnp.inf, lax.max, *_window(step))


def _real_average(
    step: Step, inputs: Sequence[jax.Array], constants: Sequence[jax.Array]
) -> jax.Array:
    del constants
    x = inputs[0]
    counts = lax.reduce_window(jnp.ones((1, *x.shape[1:3], 1)), 0.0, lax.add, *_window(step))
    return lax.reduce_window(x, 0.0, lax.add, *_window(step)) / counts


def _pool(on_lattice: Callable[..., jax.Array]) -> Callable[..., Stored]:
    def lattice_step(
        step: Step,
        codes: Sequence[jax.Array],
        grids: Sequence[Affine],
        coded: Coded | None,
        out: Affine,
    ) -> Stored:
        del coded, out
        window, strides, padding = _window(step)
        stored = on_lattice(
            codes[0],
            grids[0],
            window_dimensions=window,
            window_strides=strides,
            padding=padding,
            lo=step.lo,
            hi=step.hi,
        )
        return Stored(stored, None)

    return lattice_step


def _real_mean(
    step: Step, inputs: Sequence[jax.Array], constants: Sequence[jax.Array]
) -> jax.Array:
    del constants
    return jnp.mean(inputs[0], axis=step.params["axes"], keepdims=step.params["keepdims"])


def _lattice_mean(
    step: Step,
    codes: Sequence[jax.Array],
    grids: Sequence[Affine],
    coded: Coded | None,
    out: Affine,
) -> Stored:
    del coded
    x, grid, p = codes[0], grids[0], step.params
    stored = lattice.mean(x, grid, out, p["axes"], p["keepdims"])
    return Stored(stored, ends_of(_real_mean(step, [lattice.dequantize(x, grid)], ())))


def _real_sum(step: Step, inputs: Sequence[jax.Array], constants: Sequence[jax.Array]) -> jax.Array:
    del constants
    return jnp.sum(inputs[0], axis=step.params["axes"], keepdims=step.params["keepdims"])


def _lattice_sum(
    step: Step,
    codes: Sequence[jax.Array],
    grids: Sequence[Affine],
    coded: Coded | None,
    out: Affine,
) -> Stored:
    del coded
    x, grid, p = codes[0], grids[0], step.params
    stored = lattice.sum(x, grid, out, p["axes"], p["keepdims"])
    return Stored(stored, ends_of(_real_sum(step, [lattice.dequantize(x, grid)], ())))


MAX_POOL = Kind(_real_max, _pool(lattice.max_pool))
AVG_POOL = Kind(_real_average, _pool(lattice.avg_pool))
MEAN = Kind(_real_mean, _lattice_mean)
SUM = Kind(_real_sum, _lattice_sum)
REDUCE_MAX = move(lambda step, inputs: jnp.max(inputs[0], axis=step.params["axes"]))
REDUCE_MIN = move(lambda step, inputs: jnp.min(inputs[0], axis=step.params["axes"]))
