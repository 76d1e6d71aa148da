"""Writes a dense layer on one pixel as a convolution of one pixel, which converters get right.

Of `[1, 1, 1, C] @ [C, O]`, as squeeze-and-excitation on kept dimensions has it, both converters
make a BATCH_MATMUL of another rank and then refuse it, also where the rows are reshaped first. The
convolution has the same sums, and LiteRT runs it as the same kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax

from compressjax.export.forms import rewritten
from compressjax.graph import Op


def on_one_pixel(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiplies one pixel by a kernel.

    Args:
        x: `[1, 1, 1, C]`.
        kernel: `[C, O]`.

    Returns:
        `[1, 1, 1, O]`.
    """
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel.reshape(1, 1, *kernel.shape), (1, 1), "VALID", dimension_numbers=numbers
    )


def is_pixel(shape: Sequence[int]) -> bool:
    """Whether a shape is that of one pixel."""
    return len(shape) == 4 and tuple(shape[:3]) == (1, 1, 1)


def pixels_convolved(
    fn: Callable[..., Any], specs: Sequence[jax.ShapeDtypeStruct]
) -> Callable[..., Any]:
    """Replaces the dense layers on one pixel.

    Args:
        fn: pure function of arrays.
        specs: shape and dtype of each.

    Returns:
        A function with the same values; `fn` itself where it has no such layer.

    Example:
        >>> import jax.numpy as jnp
        >>> def excite(x):
        ...     return x.mean((1, 2), keepdims=True) @ jnp.ones((2, 3))
        >>> x = jnp.ones((1, 5, 5, 2))
        >>> changed = pixels_convolved(excite, [jax.ShapeDtypeStruct(x.shape, x.dtype)])
        >>> changed is excite, bool((changed(x) == excite(x)).all())
        (False, True)
    """
    return rewritten(fn, specs, _is_dense_on_pixel, lambda op, inputs: on_one_pixel(*inputs))


def _is_dense_on_pixel(op: Op) -> bool:
    if op.kind != "dot_general" or not is_pixel(op.inputs[0].shape):
        return False
    rows = op.params["dimension_numbers"] == (((3,), (0,)), ((), ()))
    return rows and len(op.inputs[1].shape) == 2
