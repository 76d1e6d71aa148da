"""A kind of step: what it computes on real values, and what LiteRT computes on codes.

The two stand side by side so that they cannot drift apart. A new kind is one `Kind` in the module
of its family and one row in the table of the package.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from compressjax.quant.lattice import Affine
from compressjax.quant.plan import Step
from compressjax.quant.ranges import Range


class Operand(NamedTuple):
    """A constant operand as real values.

    Attributes:
      value: float32; a kernel `[KH, KW, I, O]` or `[I, O]`, or an elementwise constant.
      bias: float32 `[O]`, or `None`.
    """

    value: jax.Array
    bias: jax.Array | None


class Coded(NamedTuple):
    """A constant operand as codes.

    Attributes:
      codes: integer-valued float32, in the shape of the real value.
      grid: its scale (`[O]` for a kernel with one scale per channel) and zero point.
      bias: integer-valued float32 `[O]` at the scale of input times weight, or `None`.
      ends: of the real values before the grid clamped them, of a constant that is a tensor.
    """

    codes: jax.Array
    grid: Affine
    bias: jax.Array | None
    ends: Range | None = None


class Stored(NamedTuple):
    """What a step puts out on the lattice.

    Attributes:
      codes: integer-valued float32.
      ends: smallest and largest real value before the output grid clamped it, for steps that have a
        range of their own; `None` for steps that share their input's or have a fixed one.
    """

    codes: jax.Array
    ends: Range | None


class Call(NamedTuple):
    """A step as the lattice computes it.

    Attributes:
      step: the step.
      codes: of its inputs.
      grids: of its inputs.
      coded: its constant operand, or `None`.
      out: the grid of its output.
    """

    step: Step
    codes: Sequence[jax.Array]
    grids: Sequence[Affine]
    coded: Coded | None
    out: Affine


class Kind(NamedTuple):
    """What a kind of step computes.

    Attributes:
      real: `real(step, inputs, constants) -> output` on real values, before the fused activation;
        `constants` are weight and bias, or an elementwise constant, or nothing.
      lattice: `lattice(call) -> Stored` on codes, exactly as LiteRT.
      wide: the same on int16 codes; `None` if it is not known exactly.
    """

    real: Callable[[Step, Sequence[jax.Array], Sequence[jax.Array]], jax.Array]
    lattice: Callable[[Call], Stored]
    wide: Callable[[Call], Stored] | None = None


def ends_of(real: jax.Array) -> Range:
    """The smallest and the largest of real values; no gradient passes.

    Example:
      >>> [float(end) for end in ends_of(jnp.array([1.0, -2.0, 3.0]))]
      [-2.0, 3.0]
    """
    real = lax.stop_gradient(real)
    return real.min(), real.max()


def clamped(step: Step, real: jax.Array) -> jax.Array:
    """Applies the fused activation of a step to real values.

    Example:
      >>> clamped(Step('relu6', 'conv', (), (3,), lo=0.0, hi=6.0), jnp.array([-1.0, 2.0, 9.0]))
      Array([0., 2., 6.], dtype=float32)
    """
    real = real if step.lo is None else jnp.maximum(real, step.lo)
    return real if step.hi is None else jnp.minimum(real, step.hi)
