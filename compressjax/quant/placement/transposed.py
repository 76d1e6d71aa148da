"""Placing transposed convolutions: those whose input is dilated, as `ConvTranspose` makes them.

LiteRT's TRANSPOSE_CONV adds the kernel at each input position, `stride` apart, and cuts the edges
off: nothing, or what SAME cuts. JAX pads freely, dilates kernels and strides further than kernels
reach. Here every case becomes one of the two: kernels grow by zeros, and other edges are sliced
off. A kernel at least as long as its stride is also what XNNPACK asks for.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from jax import lax


class Spread(NamedTuple):
    """A transposed convolution in LiteRT's terms.

    Attributes:
      grown: `(low, high, between)` for each spatial axis, the zeros that the kernel grows by.
      padding: explicit padding of the dilated input, for each spatial axis.
      window: `(start, stop)` of what is kept of each spatial axis of the output; `None` where all
        of it is.
    """

    grown: tuple[tuple[int, int, int], ...]
    padding: tuple[tuple[int, int], ...]
    window: tuple[tuple[int, int], ...] | None


def spread(
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
) -> Spread:
    """Brings a transposed convolution into the form that LiteRT runs.

    Args:
      sizes: of the input's spatial axes.
      kernel: of the kernel's.
      strides: how far apart input positions lie in the output (JAX's `lhs_dilation`).
      padding: of the dilated input, as JAX has it.
      dilation: of the kernel.

    Returns:
      The form.

    Example:
      >>> spread((5,), (3,), (2,), ((2, 1),), (1,))  # SAME
      Spread(grown=((0, 0, 0),), padding=((2, 1),), window=None)
      >>> spread((5,), (2,), (3,), ((1, 2),), (1,))  # a kernel shorter than its stride
      Spread(grown=((1, 0, 0),), padding=((2, 2),), window=None)
      >>> spread((5,), (3,), (2,), ((1, 1),), (1,))  # one position cut off at both ends
      Spread(grown=((0, 0, 0),), padding=((2, 2),), window=((1, 10),))
    """
    grown, cuts, lengths = [], [], []
    for size, stride, (low, high), gap in zip(
        kernel, strides, padding, (d - 1 for d in dilation), strict=True
    ):
        reach = (size - 1) * (gap + 1) + 1
        cut_low, cut_high = reach - 1 - low, reach - 1 - high
        after = max(0, -cut_low)
        before = max(0, -cut_high, stride - reach - after)
        grown.append((before, after, gap))
        cuts.append((cut_low + after, cut_high + before))
        lengths.append(reach + before + after)
    outputs = [
        (size - 1) * stride + length - sum(cut)
        for size, stride, length, cut in zip(sizes, strides, lengths, cuts, strict=True)
    ]
    same = all(
        out == size * stride and cut[0] == (length - stride) // 2
        for out, size, stride, length, cut in zip(
            outputs, sizes, strides, lengths, cuts, strict=True
        )
    )
    if same or not any(map(any, cuts)):
        kept = tuple(
            (length - 1 - low, length - 1 - high)
            for length, (low, high) in zip(lengths, cuts, strict=True)
        )
        return Spread(tuple(grown), kept, None)
    window = tuple((low, low + out) for (low, _), out in zip(cuts, outputs, strict=True))
    return Spread(tuple(grown), tuple((n - 1, n - 1) for n in lengths), window)


def grow(
    layout: Callable[[jax.Array], jax.Array], grown: Sequence[tuple[int, int, int]]
) -> Callable[[jax.Array], jax.Array]:
    """Adds a kernel's growth to its layout.

    Args:
      layout: brings the graph's array to `[*spatial, I, O]`.
      grown: from `spread`.

    Returns:
      The layout with the zeros.

    Example:
      >>> import jax.numpy as jnp
      >>> grow(lambda w: w, [(1, 0, 1)])(jnp.ones((2, 1, 1))).ravel().tolist()
      [0.0, 1.0, 0.0, 1.0]
    """
    config = [*grown, (0, 0, 0), (0, 0, 0)]
    return lambda w: lax.pad(layout(w), w.dtype.type(0), config)
