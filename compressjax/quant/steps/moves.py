"""Steps that hold or move values without changing them: the same on real values and on codes."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from compressjax.quant import lattice
from compressjax.quant.lattice.grid import CODE_MIN
from compressjax.quant.plan import Step
from compressjax.quant.steps.kind import Call, Kind, Stored


def move(function: Callable[[Step, Sequence[jax.Array]], jax.Array]) -> Kind:
    """Makes a kind of step of a function that chooses among values: `function(step, inputs)`."""

    def real(step: Step, inputs: Sequence[jax.Array], constants: Sequence[jax.Array]) -> jax.Array:
        del constants
        return function(step, inputs)

    def lattice_step(call: Call) -> Stored:
        return Stored(function(call.step, call.codes), None)

    return Kind(real, lattice_step, lattice_step)


def _slice(step: Step, inputs: Sequence[jax.Array]) -> jax.Array:
    return lax.slice(
        inputs[0], step.params["starts"], step.params["limits"], step.params["strides"]
    )


def _gather(step: Step, inputs: Sequence[jax.Array]) -> jax.Array:
    return jnp.take(inputs[0], np.asarray(step.params["indices"]), axis=step.params["axis"])


def _real_pad(step: Step, inputs: Sequence[jax.Array], constants: Sequence[jax.Array]) -> jax.Array:
    del constants
    x, p = inputs[0], step.params
    # What stands for the lowest code: a value that no maximum picks.
    edge = x.min() if p["lowest"] else 0.0
    return jnp.pad(x, p["padding"], constant_values=p.get("value", edge))


def _pad(least: float) -> Callable[[Call], Stored]:
    def lattice_step(call: Call) -> Stored:
        p = call.step.params
        edge = jnp.float32(least) if p["lowest"] else call.grids[0].zero_point
        config = [(low, high, 0) for low, high in p["padding"]]
        return Stored(lax.pad(call.codes[0], edge, config), None)

    return lattice_step


def _lattice_constant(call: Call) -> Stored:
    assert call.coded is not None
    return Stored(call.coded.codes, call.coded.ends)


CONSTANT = Kind(lambda step, inputs, constants: constants[0], _lattice_constant, _lattice_constant)
RESHAPE = move(lambda step, inputs: inputs[0].reshape(step.shape))
TRANSPOSE = move(lambda step, inputs: jnp.transpose(inputs[0], step.params["permutation"]))
SLICE = move(_slice)
GATHER = move(_gather)
RESIZE_NEAREST = move(lambda step, inputs: jax.image.resize(inputs[0], step.shape, "nearest"))
CONCATENATE = move(lambda step, inputs: jnp.concatenate(inputs, axis=step.params["axis"]))
PAD = Kind(_real_pad, _pad(CODE_MIN), _pad(lattice.wide.CODES[0]))
