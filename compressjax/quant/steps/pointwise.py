"""Elementwise arithmetic, changes of grid, and the functions that LiteRT computes with tables."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from compressjax.quant import lattice
from compressjax.quant.lattice import Affine
from compressjax.quant.plan import Step
from compressjax.quant.steps.kind import Call, Kind, Stored, clamped, ends_of


def same_rank(first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gives the operand of lower rank leading axes of size one, as broadcasting would.

    Example:
      >>> [x.shape for x in same_rank(jnp.ones((2, 3)), jnp.ones(3))]
      [(2, 3), (1, 3)]
    """
    rank = max(first.ndim, second.ndim)
    first, second = (x.reshape((1,) * (rank - x.ndim) + x.shape) for x in (first, second))
    return first, second


def _binary(
    function: Callable[[jax.Array, jax.Array], jax.Array],
    on_lattice: Callable[..., jax.Array],
    on_wide: Callable[..., jax.Array],
) -> Kind:
    """A step of two operands; the second may be a constant, the first one where `reversed`."""

    def real(step: Step, inputs: Sequence[jax.Array], constants: Sequence[jax.Array]) -> jax.Array:
        operands = same_rank(inputs[0], inputs[1] if len(inputs) > 1 else constants[0])
        return function(*(operands[::-1] if step.params.get("reversed") else operands))

    def on_codes(compute: Callable[..., jax.Array]) -> Callable[[Call], Stored]:
        def lattice_step(call: Call) -> Stored:
            step, coded, x, grid = call.step, call.coded, call.codes[0], call.grids[0]
            other = coded.codes if coded else call.codes[1]
            other_grid = coded.grid if coded else call.grids[1]
            order = -1 if step.params.get("reversed") else 1
            values, ends = same_rank(x, other)[::order], [grid, other_grid][::order]
            stored = compute(*values, *ends, call.out, lo=step.lo, hi=step.hi)
            reals = [lattice.dequantize(x, grid), lattice.dequantize(other, other_grid)]
            return Stored(stored, ends_of(clamped(step, real(step, reals, ()))))

        return lattice_step

    return Kind(real, on_codes(on_lattice), on_codes(on_wide))


def _unary(
    function: Callable[[jax.Array], jax.Array],
    on_lattice: Callable[[jax.Array, Affine], jax.Array],
    on_wide: Callable[[jax.Array, Affine], jax.Array] | None = None,
) -> Kind:
    """A function with a fixed output grid."""

    def real(step: Step, inputs: Sequence[jax.Array], constants: Sequence[jax.Array]) -> jax.Array:
        del step, constants
        return function(inputs[0])

    def on_codes(compute: Callable[[jax.Array, Affine], jax.Array]) -> Callable[[Call], Stored]:
        return lambda call: Stored(compute(call.codes[0], call.grids[0]), None)

    return Kind(real, on_codes(on_lattice), on_codes(on_wide) if on_wide else None)


def _identity(step: Step, inputs: Sequence[jax.Array], constants: Sequence[jax.Array]) -> jax.Array:
    del step, constants
    return inputs[0]


def _requantize(on_lattice: Callable[..., jax.Array]) -> Callable[[Call], Stored]:
    def lattice_step(call: Call) -> Stored:
        x, grid = call.codes[0], call.grids[0]
        return Stored(on_lattice(x, grid, call.out), ends_of(lattice.dequantize(x, grid)))

    return lattice_step


def _relu(on_lattice: Callable[..., jax.Array]) -> Callable[[Call], Stored]:
    def lattice_step(call: Call) -> Stored:
        bounds = {"lo": call.step.lo, "hi": call.step.hi}
        return Stored(on_lattice(call.codes[0], call.grids[0], call.out, **bounds), None)

    return lattice_step


_WIDE, _WIDE_FUNCTIONS = lattice.wide, lattice.wide_functions
ADD = _binary(jnp.add, lattice.add, _WIDE.add)
SUB = _binary(jnp.subtract, lattice.sub, _WIDE.sub)
MUL = _binary(jnp.multiply, lattice.mul, _WIDE.mul)
REQUANTIZE = Kind(_identity, _requantize(lattice.requantize), _requantize(_WIDE.requantize))
RELU = Kind(_identity, _relu(lattice.relu), _relu(_WIDE.requantize))
SOFTMAX = _unary(jax.nn.softmax, lattice.softmax, _WIDE_FUNCTIONS.softmax)
LOGISTIC = _unary(jax.nn.sigmoid, lattice.logistic, _WIDE_FUNCTIONS.logistic)
TANH = _unary(jnp.tanh, lattice.tanh, _WIDE_FUNCTIONS.tanh)
