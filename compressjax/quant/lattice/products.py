"""The lattice's sums of products: convolutions and fully connected layers.

Beside `pointwise` and `reductions`, which are cheap, these carry a network's cost, so they run as
ordinary float32 convolutions and dots on codes: the products are integers, and float32 adds them
exactly in any order while no partial sum can reach 2**24. A reduction long enough to get there is
cut along its input channels into pieces that cannot, whose sums are added as int32.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from compressjax.quant.lattice.grid import (
    Affine,
    along,
    bounds,
    f32,
    ratio,
    store,
    straight_through,
)

# An input code less its zero point times a weight code is at most 255 * 127.
MAX_EXACT_TERMS = 2**24 // (255 * 127)

Padding = str | Sequence[tuple[int, int]]
Pieces = list[tuple[jax.Array, jax.Array]]


class Bilinear(NamedTuple):
    """A sum of products of two arrays: a convolution or a dot.

    Attributes:
        product: `product(x, w)`, float32 sums.
        pieces: `pieces(x, w)`, parts whose products have sums below 2**24 for codes of 8 bits, and
            add up to that of `x` and `w`.
        terms: how many products a sum has.
        axis: of the sums, along which the output channels lie.
    """

    product: Callable[[jax.Array, jax.Array], jax.Array]
    pieces: Callable[[jax.Array, jax.Array], Pieces]
    terms: int
    axis: int


def convolution(
    x: jax.Array,
    w: jax.Array,
    *,
    window_strides: Sequence[int],
    padding: Padding,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: object,
    feature_group_count: int = 1,
) -> Bilinear:
    """Describes a convolution of arrays of these shapes; the arguments are those of `conv_sum`.

    Example:
        >>> x, w = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5))
        >>> form = convolution(x, w, window_strides=(1, 1), padding="SAME",
        ...                    dimension_numbers=("NHWC", "HWIO", "NHWC"))
        >>> form.terms, form.axis
        (18, 3)
    """
    dims = lax.conv_dimension_numbers(x.shape, w.shape, dimension_numbers)

    def product(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x,
            w,
            window_strides,
            padding,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            dimension_numbers=dims,
            feature_group_count=feature_group_count,
            precision=lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )

    def pieces(x: jax.Array, w: jax.Array) -> Pieces:
        return _conv_pieces(x, w, dims, feature_group_count)

    return Bilinear(product, pieces, w.size // w.shape[dims.rhs_spec[0]], dims.out_spec[1])


def dot(x: jax.Array, w: jax.Array, *, dimension_numbers: lax.DotDimensionNumbers) -> Bilinear:
    """Describes a dot of arrays of these shapes; the arguments are those of `dot_sum`.

    Example:
        >>> numbers = (((1,), (0,)), ((), ()))
        >>> dot(jnp.ones((1, 3)), jnp.ones((3, 2)), dimension_numbers=numbers).terms
        3
    """
    (x_axes, w_axes), (_, w_batch) = dimension_numbers

    def product(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.dot_general(
            x,
            w,
            dimension_numbers,
            precision=lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )

    def pieces(x: jax.Array, w: jax.Array) -> Pieces:
        return _dot_pieces(x, w, tuple(x_axes), tuple(w_axes))

    terms = int(np.prod([w.shape[axis] for axis in w_axes]))
    return Bilinear(product, pieces, terms, x.ndim + w.ndim - 2 * len(w_axes) - len(w_batch) - 1)


def conv_sum(
    x: jax.Array,
    w: jax.Array,
    bias: jax.Array | None,
    x_q: Affine,
    *,
    window_strides: Sequence[int],
    padding: Padding,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: object,
    feature_group_count: int = 1,
) -> jax.Array:
    """Computes the int32 sums of a convolution; `rescale` does the rest.

    CONV_2D and DEPTHWISE_CONV_2D, strided, dilated or grouped, and TRANSPOSE_CONV: XNNPACK takes
    them all, except a transposed one with SAME padding whose kernel is shorter than its stride. A
    sum is that of (x - zero_point) * w, plus the bias; padded and dilated positions add zero.

    Args:
        x: input codes; any layout that `dimension_numbers` describes.
        w: weight codes in [-127, 127].
        bias: integer-valued codes at scale x_q.scale * w_scale, [O], or None.
        x_q: the input's grid.
        window_strides: one per spatial axis.
        padding: 'SAME', 'VALID' or a pair per spatial axis.
        lhs_dilation: input dilation per spatial axis, the stride of a transposed convolution, or
            None. LiteRT's kernel is this one turned around on its spatial axes.
        rhs_dilation: kernel dilation per spatial axis, or None.
        dimension_numbers: as `jax.lax.conv_general_dilated` takes it.
        feature_group_count: number of groups; the input's channels for a depthwise conv.

    Returns:
        The sums, float32: each the exact integer or, past 2**24, that integer rounded once, as
        LiteRT rounds it before it multiplies.

    Example:
        >>> one = Affine(jnp.float32(1.0), jnp.float32(0.0))
        >>> conv_sum(jnp.ones((1, 3, 3, 1)), jnp.full((3, 3, 1, 1), 2.0), None, one,
        ...          window_strides=(1, 1), padding="VALID",
        ...          dimension_numbers=("NHWC", "HWIO", "NHWC")).item()
        18.0
    """
    centred = (x - f32(x_q.zero_point)).astype(w.dtype)
    form = convolution(
        centred,
        w,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
    )
    return _exact_sum(form, centred, w, bias)


def dot_sum(
    x: jax.Array,
    w: jax.Array,
    bias: jax.Array | None,
    x_q: Affine,
    *,
    dimension_numbers: lax.DotDimensionNumbers,
) -> jax.Array:
    """Computes the int32 sums of FULLY_CONNECTED, like those of `conv_sum`.

    Args:
        x: input codes.
        w: weight codes in [-127, 127].
        bias: integer-valued codes at scale x_q.scale * w_scale, [O], or None.
        x_q: the input's grid.
        dimension_numbers: as `jax.lax.dot_general` takes it; `x` on the left.

    Returns:
        The sums, float32, as those of `conv_sum`; the free axis of `w` last.

    Raises:
        ValueError: if there is a bias and `w` has not one free axis.

    Example:
        >>> one = Affine(jnp.float32(1.0), jnp.float32(0.0))
        >>> dot_sum(jnp.ones((1, 3)), jnp.ones((3, 2)), jnp.array([1.0, 2.0]), one,
        ...         dimension_numbers=(((1,), (0,)), ((), ()))).tolist()
        [[4.0, 5.0]]
    """
    (_, w_axes), (_, w_batch) = dimension_numbers
    if bias is not None and w.ndim != len(w_axes) + len(w_batch) + 1:
        raise ValueError(
            f"weights of shape {w.shape} with contracted axes {tuple(w_axes)} have not one free "
            "axis for the bias: reshape them to [.., O] first"
        )
    centred = (x - f32(x_q.zero_point)).astype(w.dtype)
    form = dot(centred, w, dimension_numbers=dimension_numbers)
    return _exact_sum(form, centred, w, bias)


def rescale(
    acc: jax.Array,
    x_q: Affine,
    w_scale: jax.Array,
    out_q: Affine,
    axis: int,
    *,
    lo: float | None = None,
    hi: float | None = None,
) -> jax.Array:
    """Brings the sums of a convolution or a dense layer to the output's grid.

    A sum is multiplied by (x scale * w scale) / out scale in float32, rounded half to even, shifted
    by the zero point and clamped. That multiplier must be below 256: LiteRT refuses to load a model
    where it is not.

    Args:
        acc: from `conv_sum` or `dot_sum`.
        x_q: the input's grid.
        w_scale: the weights' scale, [] or [O].
        out_q: the output's grid.
        axis: the axis of `acc` along which the channels lie.
        lo: least real value of the fused activation, or None.
        hi: greatest real value of the fused activation, or None.

    Returns:
        Output codes, float32.

    Example:
        >>> half, one = (Affine(jnp.float32(s), jnp.float32(0.0)) for s in (0.5, 1.0))
        >>> rescale(jnp.array([[8.0, -8.0]]), half, jnp.float32(0.5), one, 1, lo=0.0).tolist()
        [[2.0, 0.0]]
    """
    multiplier = ratio(f32(x_q.scale) * f32(w_scale), out_q.scale)
    if multiplier.ndim:
        multiplier = along(multiplier, axis, acc.ndim)
    return store(acc * multiplier, out_q, *bounds(out_q, lo, hi))


def _exact_sum(form: Bilinear, x: jax.Array, w: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Adds a product of codes and a bias exactly, and rounds once to float32."""
    approx, pieces = form.product(x, w), form.pieces(x, w)
    offset = jnp.zeros(()) if bias is None else along(bias, form.axis, approx.ndim)
    if len(pieces) == 1:
        return approx + offset
    parts = (form.product(*piece).astype(jnp.int32) for piece in pieces)
    total = sum(parts) + offset.astype(jnp.int32)
    return straight_through(lax.stop_gradient(total.astype(jnp.float32)), approx + offset)


def _conv_pieces(x: jax.Array, w: jax.Array, dims: lax.ConvDimensionNumbers, groups: int) -> Pieces:
    """Cuts a convolution along its input channels (and its kernel, if that alone is too long)."""
    w_axis, x_axis = dims.rhs_spec[1], dims.lhs_spec[1]
    depth, taps = w.shape[w_axis], int(np.prod([w.shape[axis] for axis in dims.rhs_spec[2:]]))
    if depth * taps <= MAX_EXACT_TERMS:
        return [(x, w)]
    step = max(1, MAX_EXACT_TERMS // taps)
    split = (*x.shape[:x_axis], groups, depth, *x.shape[x_axis + 1 :])
    pieces = []
    for start in range(0, depth, step):
        stop = min(start + step, depth)
        part = lax.slice_in_dim(x.reshape(split), start, stop, axis=x_axis + 1)
        part = part.reshape(*x.shape[:x_axis], -1, *x.shape[x_axis + 1 :])
        kernel = lax.slice_in_dim(w, start, stop, axis=w_axis)
        pieces += [(part, kernel * mask) for mask in _tap_masks(kernel.shape, dims.rhs_spec[2:])]
    return pieces


def _tap_masks(shape: Sequence[int], axes: Sequence[int]) -> list[np.ndarray | float]:
    """Parts the positions of a kernel's window into sets of at most MAX_EXACT_TERMS."""
    sizes = [shape[axis] for axis in axes]
    taps = int(np.prod(sizes))
    if taps <= MAX_EXACT_TERMS:
        return [1.0]
    owner = np.arange(taps) // MAX_EXACT_TERMS
    spread = np.ones(len(shape), int)
    spread[list(axes)] = sizes
    order = np.argsort(axes)
    owner = owner.reshape(sizes).transpose(order).reshape(spread)
    return [(owner == part).astype(np.float32) for part in range(owner.max() + 1)]


def _dot_pieces(
    x: jax.Array, w: jax.Array, x_axes: tuple[int, ...], w_axes: tuple[int, ...]
) -> Pieces:
    """Cuts a dot along its contracted axes, the longest first, until every piece is short."""
    sizes = [w.shape[axis] for axis in w_axes]
    if int(np.prod(sizes)) <= MAX_EXACT_TERMS:
        return [(x, w)]
    longest = int(np.argmax(sizes))
    rest = int(np.prod(sizes)) // sizes[longest]
    step = max(1, MAX_EXACT_TERMS // rest)
    pieces = []
    for start in range(0, sizes[longest], step):
        stop = min(start + step, sizes[longest])
        part = lax.slice_in_dim(x, start, stop, axis=x_axes[longest])
        kernel = lax.slice_in_dim(w, start, stop, axis=w_axes[longest])
        pieces += _dot_pieces(part, kernel, x_axes, w_axes)
    return pieces
