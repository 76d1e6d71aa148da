"""Contractions as matrix products on sampled rows: what a layer is to a method that only fits it.

Every output position of a convolution is one row, its window one vector. A few thousand rows say as
much about a layer as whole images, and products of matrices have fast gradients everywhere;
convolutions inside compiled loops do not.
"""

import jax
import jax.numpy as jnp
from jax import lax

from compressjax.quant.plan import Step


def groups(step: Step) -> int:
    """The number of groups of channels that a contraction treats apart."""
    return int(step.params.get("feature_group_count", 1))


def sample(step: Step, x: jax.Array, kernel_shape: tuple[int, ...], rows: jax.Array) -> jax.Array:
    """Collects what a contraction multiplies its kernel with, at some of its output's positions.

    Args:
      step: `conv`, `depthwise_conv` or `dense`.
      x: its input, `[B, H, W, C]` or `[..., I]`.
      kernel_shape: `[KH, KW, I / G, O]` or `[I, O]`.
      rows: flat positions in the output without its last axis, `[N]`.

    Returns:
      `[G, N, K]`; G groups, K weights of each output channel.

    Example:
      >>> step = Step('dense', 'dense', ('x',), (2, 3))
      >>> sample(step, jnp.array([[1.0, 2.0], [3.0, 4.0]]), (2, 3), jnp.array([1])).tolist()
      [[[3.0, 4.0]]]
    """
    if len(kernel_shape) == 2:
        return x.reshape(-1, x.shape[-1])[rows].reshape(1, rows.size, -1)
    p, window = step.params, kernel_shape[:2]
    strides = p["window_strides"]
    dilation = p.get("rhs_dilation") or (1, 1)
    pads = p["padding"]
    if isinstance(pads, str):
        reach = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
        pads = lax.padtype_to_pads(x.shape[1:3], reach, strides, pads)
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    image, place = jnp.divmod(rows, step.shape[1] * step.shape[2])
    corner = jnp.divmod(place, step.shape[2])
    at = [
        c.reshape(-1, 1) * s + d * jnp.arange(k).reshape(1, -1)
        for c, s, d, k in zip(corner, strides, dilation, window, strict=True)
    ]
    n = rows.size
    taken = padded[image.reshape(n, 1, 1), at[0].reshape(n, -1, 1), at[1].reshape(n, 1, -1)]
    apart = taken.reshape(n, window[0] * window[1], groups(step), -1)
    return apart.transpose(2, 0, 1, 3).reshape(groups(step), n, -1)


def to_matrix(step: Step, kernel: jax.Array) -> jax.Array:
    """Brings anything in the shape of a kernel into that of the matrix product.

    Args:
      step: the contraction.
      kernel: `[KH, KW, I / G, O]` or `[I, O]`.

    Returns:
      `[G, K, O / G]`.

    Example:
      >>> to_matrix(Step('dense', 'dense', ('x',), (2, 3)), jnp.ones((2, 3))).shape
      (1, 2, 3)
    """
    count, width = groups(step), kernel.shape[-1]
    return kernel.reshape(-1, count, width // count).transpose(1, 0, 2)


def from_matrix(matrix: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Inverts `to_matrix`.

    Args:
      matrix: `[G, K, O / G]`.
      shape: of the kernel.

    Returns:
      The kernel.

    Example:
      >>> from_matrix(jnp.ones((4, 9, 1)), (3, 3, 1, 4)).shape
      (3, 3, 1, 4)
    """
    return matrix.transpose(1, 0, 2).reshape(shape)


def by_group(step: Step, rows: jax.Array) -> jax.Array:
    """Brings rows of outputs, or a bias as one row, into the shape of the matrix product.

    Args:
      step: the contraction.
      rows: `[N, O]`.

    Returns:
      `[G, N, O / G]`.

    Example:
      >>> step = Step('c', 'conv', ('x',), (1, 1, 1, 4), {'feature_group_count': 2})
      >>> by_group(step, jnp.arange(4.0).reshape(1, 4)).tolist()
      [[[0.0, 1.0]], [[2.0, 3.0]]]
    """
    count = groups(step)
    return rows.reshape(rows.shape[0], count, -1).transpose(1, 0, 2)
