"""Pools over windows, and reductions of whole axes."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from compressjax.quant import lattice
from compressjax.quant.plan import Step
from compressjax.quant.steps.kind import Call, Kind, Stored, ends_of
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
    def lattice_step(call: Call) -> Stored:
        window, strides, padding = _window(call.step)
        stored = on_lattice(
            call.codes[0],
            call.grids[0],
            window_dimensions=window,
            window_strides=strides,
            padding=padding,
            lo=call.step.lo,
            hi=call.step.hi,
        )
        return Stored(stored, None)

    return lattice_step


def _total(
    function: Callable[..., jax.Array],
    on_lattice: Callable[..., jax.Array],
    on_wide: Callable[..., jax.Array] | None = None,
) -> Kind:
    """A mean or a sum over axes, with a range of its own."""

    def real(step: Step, inputs: Sequence[jax.Array], constants: Sequence[jax.Array]) -> jax.Array:
        del constants
        return function(inputs[0], axis=step.params["axes"], keepdims=step.params["keepdims"])

    def on_codes(compute: Callable[..., jax.Array]) -> Callable[[Call], Stored]:
        def lattice_step(call: Call) -> Stored:
            x, grid, p = call.codes[0], call.grids[0], call.step.params
            stored = compute(x, grid, call.out, p["axes"], p["keepdims"])
            return Stored(stored, ends_of(real(call.step, [lattice.dequantize(x, grid)], ())))

        return lattice_step

    return Kind(real, on_codes(on_lattice), on_codes(on_wide) if on_wide else None)


MAX_POOL = Kind(_real_max, _pool(lattice.max_pool), _pool(lattice.wide_reductions.max_pool))
AVG_POOL = Kind(_real_average, _pool(lattice.avg_pool), _pool(lattice.wide_reductions.avg_pool))
MEAN = _total(jnp.mean, lattice.mean, lattice.wide_reductions.mean)
SUM = _total(jnp.sum, lattice.sum, lattice.wide_reductions.sum)
REDUCE_MAX = move(lambda step, inputs: jnp.max(inputs[0], axis=step.params["axes"]))
REDUCE_MIN = move(lambda step, inputs: jnp.min(inputs[0], axis=step.params["axes"]))
