"""Which cell of a line a number is in, for grids whose values come from a table."""

from typing import Literal

import jax
import jax.numpy as jnp

# Up to so many edges, comparing with all of them is faster than bisection; measured on a CPU with
# two million weights: 1 ms against 11 ms at 15 edges, 4,900 ms against 140 ms at 255.
_FEW = 32


def cell_of(
    edges: jax.typing.ArrayLike, x: jax.Array, *, side: Literal["left", "right"]
) -> jax.Array:
    """Counts the edges below each number; nothing larger than `x` is made.

    Args:
      edges: float32 `[E]`, in ascending order.
      x: float32 of any shape.
      side: `'right'` counts an edge that a number equals, `'left'` does not.

    Returns:
      int32 in the shape of `x`, 0 to E.

    Example:
      >>> cell_of(jnp.array([1.0, 2.0]), jnp.array([0.0, 1.0, 5.0]), side='right').tolist()
      [0, 1, 2]
    """
    edges = jnp.asarray(edges, jnp.float32)
    method = "compare_all" if edges.size <= _FEW else "scan_unrolled"
    return jnp.searchsorted(edges, x, side=side, method=method)
