"""Steps that move values without changing them: the same on real values and on codes."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from compressjax.quant.lattice import Affine
from compressjax.quant.plan import Step
from compressjax.quant.steps.kind import Coded, Kind, Stored


def _move(function: Callable[[Step, Sequence[jax.Array]], jax.Array]) -> Kind:
    def real(step: Step, inputs: Sequence[jax.Array], constants: Sequence[jax.Array]) -> jax.Array:
        del constants
        return function(step, inputs)

    def lattice_step(
        step: Step,
        codes: Sequence[jax.Array],
        grids: Sequence[Affine],
        coded: Coded | None,
        out: Affine,
    ) -> Stored:
        del grids, coded, out
        return Stored(function(step, codes), None)

    return Kind(real, lattice_step)


def _slice(step: Step, inputs: Sequence[jax.Array]) -> jax.Array:
    return lax.slice(
        inputs[0], step.params["starts"], step.params["limits"], step.params["strides"]
    )


def _real_pad(step: Step, inputs: Sequence[jax.Array], constants: Sequence[jax.Array]) -> jax.Array:
    del constants
    x, p = inputs[0], step.params
    # What stands for the lowest code: a value that no maximum picks.
    edge = x.min() if p["lowest"] else 0.0
    return jnp.pad(x, p["padding"], constant_values=p.get("value", edge))


def _lattice_pad(
    step: Step,
    codes: Sequence[jax.Array],
    grids: Sequence[Affine],
    coded: Coded | None,
    out: Affine,
) -> Stored:
    del coded, out
    edge = jnp.float32(-128.0) if step.params["lowest"] else grids[0].zero_point
    config = [(low, high, 0) for low, high in step.params["padding"]]
    return Stored(lax.pad(codes[0], edge, config), None)


RESHAPE = _move(lambda step, inputs: inputs[0].reshape(step.shape))
TRANSPOSE = _move(lambda step, inputs: jnp.transpose(inputs[0], step.params["permutation"]))
SLICE = _move(_slice)
CONCATENATE = _move(lambda step, inputs: jnp.concatenate(inputs, axis=step.params["axis"]))
PAD = Kind(_real_pad, _lattice_pad)
