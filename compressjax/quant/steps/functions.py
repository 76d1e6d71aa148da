"""Functions of one tensor whose output has a range of its own, and the larger of two tensors."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from compressjax.quant import lattice
from compressjax.quant.lattice import Affine
from compressjax.quant.plan import Step
from compressjax.quant.steps.kind import Call, Kind, Stored, ends_of
from compressjax.quant.steps.pointwise import same_rank


def _tabulated(
    function: Callable[[Step, jax.Array], jax.Array],
    on_lattice: Callable[[Step, jax.Array, Affine, Affine], jax.Array],
    on_wide: Callable[[Step, jax.Array, Affine, Affine], jax.Array] | None = None,
    *,
    positive: bool = False,
) -> Kind:
    """A function of one tensor; all callables are given the step for its params.

    One that is infinite at zero is `positive`: a value that the grid rounds to zero counts as half
    a step where the ends of the output are looked for.
    """

    def real(step: Step, inputs: Sequence[jax.Array], constants: Sequence[jax.Array]) -> jax.Array:
        del constants
        return function(step, inputs[0])

    def on_codes(
        compute: Callable[[Step, jax.Array, Affine, Affine], jax.Array],
    ) -> Callable[[Call], Stored]:
        def lattice_step(call: Call) -> Stored:
            step, codes, grid = call.step, call.codes[0], call.grids[0]
            x = lattice.dequantize(codes, grid)
            x = jnp.maximum(x, 0.5 * grid.scale) if positive else x
            return Stored(compute(step, codes, grid, call.out), ends_of(function(step, x)))

        return lattice_step

    return Kind(real, on_codes(on_lattice), on_codes(on_wide) if on_wide else None)


def _plain(
    function: Callable[[jax.Array], jax.Array],
    on_lattice: Callable[[jax.Array, Affine, Affine], jax.Array],
    on_wide: Callable[[jax.Array, Affine, Affine], jax.Array] | None = None,
    *,
    positive: bool = False,
) -> Kind:
    """A function without parameters."""
    return _tabulated(
        lambda step, x: function(x),
        lambda step, x, grid, out: on_lattice(x, grid, out),
        (lambda step, x, grid, out: on_wide(x, grid, out)) if on_wide else None,
        positive=positive,
    )


def _pairwise(
    function: Callable[[jax.Array, jax.Array], jax.Array],
    on_lattice: Callable[[jax.Array, jax.Array], jax.Array],
) -> Kind:
    """A choice between two tensors on one grid, which is also the output's."""

    def real(step: Step, inputs: Sequence[jax.Array], constants: Sequence[jax.Array]) -> jax.Array:
        del step, constants
        return function(*same_rank(inputs[0], inputs[1]))

    def lattice_step(call: Call) -> Stored:
        return Stored(on_lattice(call.codes[0], call.codes[1]), None)

    return Kind(real, lattice_step, lattice_step)


GELU = _tabulated(
    lambda step, x: jax.nn.gelu(x, approximate=step.params["approximate"]),
    lambda step, x, grid, out: lattice.gelu(x, grid, out, approximate=step.params["approximate"]),
    lambda step, x, grid, out: lattice.wide_functions.gelu(
        x, grid, out, approximate=step.params["approximate"]
    ),
)
LEAKY_RELU = _tabulated(
    lambda step, x: jax.nn.leaky_relu(x, step.params["slope"]),
    lambda step, x, grid, out: lattice.leaky_relu(x, grid, out, step.params["slope"]),
    lambda step, x, grid, out: lattice.wide_functions.leaky_relu(
        x, grid, out, step.params["slope"]
    ),
)
ELU = _plain(jax.nn.elu, lattice.elu)
EXP = _plain(jnp.exp, lattice.exp, lattice.wide_functions.exp)
LOG = _plain(jnp.log, lattice.log, lattice.wide_functions.log, positive=True)
SQRT = _plain(jnp.sqrt, lattice.sqrt)
RSQRT = _plain(lax.rsqrt, lattice.rsqrt, positive=True)
MAXIMUM = _pairwise(jnp.maximum, lattice.maximum)
MINIMUM = _pairwise(jnp.minimum, lattice.minimum)
