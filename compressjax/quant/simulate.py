"""Steps that LiteRT's int8 kernels do not run: simulated by rounding what a float step puts out.

This is ordinary fake quantization (Krishnamoorthi, 2018): real values in, a float operation, and
codes of any width out. It shares codes and grids with the lattice, so that one network may have
steps of both sorts; unlike the lattice it does not promise anyone's exact numbers.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from compressjax.quant.lattice import Affine
from compressjax.quant.lattice.grid import clamped_like, f32, ratio
from compressjax.quant.plan import Step
from compressjax.quant.steps import Stored, real_step
from compressjax.quant.steps.kind import ends_of


def encode(real: jax.Array, grid: Affine, codes: tuple[int, int]) -> jax.Array:
    """Rounds real values to codes of any width.

    The gradient passes where the value before rounding is in range, as LSQ has it.

    Args:
      real: float32 of any shape.
      grid: scale and zero point, [].
      codes: the smallest and the largest code.

    Returns:
      Integer-valued float32 codes, in the shape of `real`.

    Example:
      >>> import jax.numpy as jnp
      >>> encode(jnp.array([0.2, 9.0]), Affine(jnp.float32(0.5), jnp.float32(0.0)), (-8, 7))
      Array([0., 7.], dtype=float32)
    """
    steps, ends = ratio(real, grid.scale), (f32(codes[0]), f32(codes[1]))
    exact = jnp.clip(jnp.round(steps) + grid.zero_point, *ends)
    return clamped_like(exact, steps + grid.zero_point, *ends)


def decode(codes: jax.Array, grid: Affine) -> jax.Array:
    """Gives the real values of codes.

    Args:
      codes: integer-valued float32 of any shape.
      grid: scale and zero point, [].

    Returns:
      float32, in the shape of `codes`.

    Example:
      >>> import jax.numpy as jnp
      >>> decode(jnp.array([3.0]), Affine(jnp.float32(0.5), jnp.float32(1.0)))
      Array([1.], dtype=float32)
    """
    return (codes - grid.zero_point) * grid.scale


def simulated_step(
    step: Step,
    codes: Sequence[jax.Array],
    grids: Sequence[Affine],
    constants: Sequence[jax.Array],
    out: Affine,
    limits: tuple[int, int],
) -> Stored:
    """Computes a step on the real values of codes and rounds its output.

    Args:
      step: the step.
      codes: the codes of its inputs.
      grids: their grids.
      constants: weight and bias as real values, or the elementwise constant, or nothing.
      out: the grid of its output.
      limits: the smallest and the largest code of its output.

    Returns:
      The codes of its output, and the ends of its range.

    Example:
      >>> import jax.numpy as jnp
      >>> half = Affine(jnp.float32(0.5), jnp.float32(0.0))
      >>> step = Step('sum', 'add', ('x', 'y'), (1,))
      >>> simulated_step(step, [jnp.array([3.0])] * 2, [half] * 2, [], half, (-8, 7)).codes
      Array([6.], dtype=float32)
    """
    inputs = [decode(x, grid) for x, grid in zip(codes, grids, strict=True)]
    real = real_step(step, inputs, constants)
    return Stored(encode(real, out, limits), ends_of(real))
