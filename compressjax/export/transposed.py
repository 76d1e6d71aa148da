"""Brings transposed convolutions of float functions into a form that converters get right.

LiteRT's TRANSPOSE_CONV cuts nothing off, or what SAME cuts. For other edges both converters write
one of the two all the same, or refuse; and SAME itself they mistake where it cuts at one end alone
(a window of 3 with strides of 2), which LiteRT then runs with another shape. Such a convolution is
computed whole here, and its edges are sliced off. Plans have their own rule for the same thing
(`compressjax.quant.placement.transposed`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax

from compressjax.export.forms import rewritten
from compressjax.graph import Op


def cut_apart(fn: Callable[..., Any], specs: Sequence[jax.ShapeDtypeStruct]) -> Callable[..., Any]:
    """Slices off the edges that a converter would not cut as the function does.

    Args:
        fn: pure function of arrays.
        specs: shape and dtype of each.

    Returns:
        A function with the same values; `fn` itself where it has no such convolution.

    Example:
        >>> import jax.numpy as jnp
        >>> kernel = jnp.ones((3, 3, 1, 1))
        >>> def up(x):
        ...     return lax.conv_transpose(x, kernel, (2, 2), 'SAME')
        >>> x = jnp.arange(9.0).reshape(1, 3, 3, 1)
        >>> cut = cut_apart(up, [jax.ShapeDtypeStruct(x.shape, x.dtype)])
        >>> cut is up, bool((cut(x) == up(x)).all())
        (False, True)
        >>> cut_apart(jnp.tanh, [jax.ShapeDtypeStruct((2,), jnp.float32)]) is jnp.tanh
        True
    """
    return rewritten(fn, specs, lambda op: cuts(op) is not None, _whole)


def cuts(op: Op) -> tuple[tuple[int, int], ...] | None:
    """What is to be sliced off a transposed convolution that is computed whole.

    Args:
        op: any operation.

    Returns:
        Positions at both ends of each spatial axis of the output; `None` where a converter gets the
        operation right as it is, or would not get the whole one right either.
    """
    if op.kind != "conv_general_dilated":
        return None
    params, axes = op.params, op.params["dimension_numbers"].rhs_spec[2:]
    strides = params["lhs_dilation"]
    plain = {*params["rhs_dilation"], *params["window_strides"]} == {1}
    single = params["feature_group_count"] == params["batch_group_count"] == 1
    if len(axes) != 2 or set(strides) == {1} or not plain or not single:
        return None
    sizes = [op.inputs[1].shape[axis] for axis in axes]
    # A kernel shorter than its stride leaves room: converters see to that.
    found = tuple(
        (max(0, size - 1 - int(low)), max(0, size - 1 - int(high)))
        for size, (low, high) in zip(sizes, params["padding"], strict=True)
    )
    rests = [max(0, size - stride) for size, stride in zip(sizes, strides, strict=True)]
    same = found == tuple((rest // 2, rest - rest // 2) for rest in rests)
    # Converters take a convolution that cuts nothing at the lower ends for one that cuts nothing.
    lower = any(low for low, _ in found)
    return None if not any(map(any, found)) or (same and lower) else found


def _whole(op: Op, inputs: tuple[Any, ...]) -> jax.Array:
    """Computes a transposed convolution with all its edges, and slices them off."""
    edges = cuts(op)
    assert edges is not None
    padding = tuple(
        (low + before, high + after)
        for (low, high), (before, after) in zip(op.params["padding"], edges, strict=True)
    )
    (whole,) = op.bind({**op.params, "padding": padding}, *inputs)
    start, stop = [0] * whole.ndim, list(whole.shape)
    axes = op.params["dimension_numbers"].out_spec[2:]
    for axis, (before, after) in zip(axes, edges, strict=True):
        start[axis], stop[axis] = before, stop[axis] - after
    return lax.slice(whole, start, stop)
