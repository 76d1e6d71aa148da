"""Learning step sizes and clips: what a loss says about the ends of a range.

With straight-through rounding, the gradient of LSQ for a step size is what differentiating the
quantizer gives: `round(v) - v` inside the range and the code of the bound outside, with
`v = x / step`. The forward pass is differentiable in the ends already, so a rule here only decides
what of that gradient passes.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from compressjax.quant.grids import Granularity, Grid, integer, learned_step
from compressjax.quant.ranges import Range


class Learning(NamedTuple):
    """How the ends of a range learn.

    Attributes:
      name: for reports.
      kernel: `kernel(bits, granularity) -> Grid`, the grid of weights that goes with it.
      grid: `grid(ends, size, codes) -> ends`, the ends that the grid is made of; `size` is the
        number of values an example has in the tensor, `codes` the largest code above zero.
      clip: `clip(ends) -> high`, a bound that is differentiated like a clamp's, or `None`.
    """

    name: str
    kernel: Callable[[int, Granularity], Grid]
    grid: Callable[[Range, int, int], Range]
    clip: Callable[[Range], jax.Array] | None


@jax.custom_jvp
def scaled_gradient(x: jax.Array, factor: float) -> jax.Array:
    """Returns `x`; its gradient is multiplied by `factor`.

    Args:
      x: any array.
      factor: a number.

    Returns:
      `x`.

    Example:
      >>> float(jax.grad(scaled_gradient)(2.0, 0.5))
      0.5
    """
    del factor
    return x


@scaled_gradient.defjvp
def _scaled_gradient_jvp(
    primals: tuple[jax.Array, float], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    x, factor = primals
    return x, tangents[0] * factor


def lsq() -> Learning:
    """Both ends of a range and the scales of weights learn (LSQ, Esser et al., 2020).

    Learning both ends instead of the step alone is LSQ+ (Bhalgat et al., 2020).

    A grid of step `s` and zero point `z` has the ends `s (code - z)`, so learning the ends is
    learning step and offset. The gradient is multiplied by `1 / sqrt(N Q)` for N values and Q
    positive codes, as in section 2.2 of LSQ.

    Example:
      >>> lsq().name
      'lsq'
    """

    def grid(ends: Range, size: int, codes: int) -> Range:
        factor = 1.0 / math.sqrt(size * codes)
        low, high = ends
        return scaled_gradient(low, factor), scaled_gradient(high, factor)

    def kernel(bits: int, granularity: Granularity) -> Grid:
        return learned_step(bits, granularity=granularity)

    return Learning("lsq", kernel, grid, None)


def pact() -> Learning:
    """The upper end of a range learns as a clamp does (PACT, Choi et al., 2018, equation 3).

    Its gradient is one where a value lies at or above it and zero below: rounding has no part in
    it. Meant for tensors that start at zero, behind a ReLU.

    Example:
      >>> pact().name
      'pact'
    """

    def grid(ends: Range, size: int, codes: int) -> Range:
        del size, codes
        low, high = ends
        return lax.stop_gradient(low), lax.stop_gradient(high)

    def clip(ends: Range) -> jax.Array:
        return jnp.asarray(ends[1], jnp.float32)

    def kernel(bits: int, granularity: Granularity) -> Grid:
        return integer(bits, granularity=granularity)

    return Learning("pact", kernel, grid, clip)
