"""Half-precision floats: weights rounded to bfloat16 or float16 and kept in float32.

A plain cast there and back may be removed by a compiler, which is free to keep excess precision;
here the weight is rounded to a multiple of a power of two, which it is not.
"""

import jax
import jax.numpy as jnp
from jax import lax

from compressjax.quant.grids.grid import Grid
from compressjax.quant.grids.levels import power_below
from compressjax.quant.lattice.grid import straight_through


def bfloat16() -> Grid:
    """Makes the grid of bfloat16, rounding half to even (Kalamkar et al. 2019, 1905.12322).

    Below 2^-119 values are multiples of 2^-126.

    Returns:
      The grid; it has no params.

    Example:
      >>> grid = bfloat16()
      >>> grid.project(jnp.array([1.0, 1.003, 3.1416]), grid.fit(jnp.ones(3))).tolist()
      [1.0, 1.0, 3.140625]
    """
    return _cast("bfloat16", jnp.bfloat16, mantissa=7, smallest=2.0**-126)


def float16() -> Grid:
    """Makes the grid of IEEE 754 half precision, rounding half to even.

    Weights beyond +-65504 become the end, not infinity.

    Returns:
      The grid; it has no params.

    Example:
      >>> grid = float16()
      >>> grid.project(jnp.array([1.0, 3.1416, 1e6]), grid.fit(jnp.ones(3))).tolist()
      [1.0, 3.140625, 65504.0]
    """
    return _cast("float16", jnp.float16, mantissa=10, smallest=2.0**-24)


def _cast(name: str, dtype: jax.typing.DTypeLike, *, mantissa: int, smallest: float) -> Grid:
    largest = float(jnp.finfo(dtype).max)

    def split(w: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A weight in multiples of the gap between values there, and that gap; both exact."""
        w = jnp.clip(w, -largest, largest)
        gap = jnp.maximum(power_below(jnp.abs(w)) * 2.0**-mantissa, smallest)
        return w / gap, gap

    def project(w: jax.Array, params: tuple[()]) -> jax.Array:
        del params
        steps, gap = split(lax.stop_gradient(w))
        return straight_through(jnp.round(steps) * gap, w)

    def around(w: jax.Array, params: tuple[()]) -> tuple[jax.Array, jax.Array]:
        del params
        steps, gap = split(w)
        return jnp.floor(steps) * gap, jnp.ceil(steps) * gap

    return Grid(name, 16, lambda w, keep=None: (), project, None, around)
