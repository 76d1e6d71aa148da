"""Depthwise-separable: each input channel is filtered by itself, then a 1x1 layer mixes them.

This turns a trained network into one of the kind that phones like, as a start for distillation.
`cp` is the neighbour that also narrows the channels, before and after.
"""

import numpy as np
import scipy.sparse.linalg

from compressjax.lowrank.factors import Factor
from compressjax.lowrank.layers import Layer
from compressjax.lowrank.methods.balance import balance
from compressjax.lowrank.methods.base import Method, Moments, Ranks

_STEPS = 20  # of conjugate gradients in each sweep


def separable(*, sweeps: int = 8) -> Method:
    """Decomposes a convolution into a depthwise one and a 1x1.

    Guo et al., "Network Decoupling: From Regular to Depthwise Separable Convolutions" (2018): the
    truncated SVD of each input channel's matrix from taps to outputs, which no sum of as many pairs
    comes closer to. With moments, the outputs on the data count: filters and mixture are fitted to
    them in turn, by least squares, from that start on. `lowrank.observe(..., patches=True)` tells
    how taps vary together; without patches they are taken as unrelated.

    Args:
      sweeps: how often filters and mixture are fitted in turn; at least 1.

    Returns:
      The method; its rank is the number of filters for each input channel: 1 gives the usual pair.

    Raises:
      ValueError: if `sweeps` is under 1.

    Example:
      >>> layer = Layer('w', (3, 3), 4, 6, 1, (((1, 8, 8), (1, 8, 8)),))
      >>> [(factor.shape, factor.groups) for factor in separable().plan(layer, (1,))]
      [((3, 3, 1, 4), 4), ((1, 1, 4, 6), 1)]
    """
    if sweeps < 1:
        raise ValueError(f"sweeps is {sweeps}, expected at least 1")

    def factors(
        layer: Layer, weights: np.ndarray, ranks: Ranks, moments: Moments | None
    ) -> list[np.ndarray]:
        (rank,) = ranks
        filters, mixture = _closest(layer, weights, rank)
        if moments is not None:
            seen = _patches(layer, moments)
            own = weights.reshape(layer.groups, layer.taps, layer.inputs, layer.outputs)
            fitted = [
                _fitted(*group, sweeps) for group in zip(own, seen, filters, mixture, strict=True)
            ]
            filters, mixture = (np.stack(arrays) for arrays in zip(*fitted, strict=True))
        ones = (1,) * len(layer.window)
        return [
            filters.reshape(layer.groups, *layer.window, 1, layer.inputs * rank),
            mixture.reshape(layer.groups, *ones, layer.inputs * rank, layer.outputs),
        ]

    return Method("separable", _refuses, _limits, _plan, _spectra, factors)


def _refuses(layer: Layer) -> str:
    if layer.taps < 2:
        return "it has one tap: it is a 1x1 layer as it is"
    if layer.inputs < 2:
        return "it has one input in each group: it is a depthwise layer as it is"
    return ""


def _limits(layer: Layer) -> Ranks:
    return (min(layer.taps, layer.outputs),)


def _plan(layer: Layer, ranks: Ranks) -> tuple[Factor, ...]:
    (rank,) = ranks
    axes = tuple(range(len(layer.window)))
    between, ones = layer.inputs * rank, (1,) * len(axes)
    return (
        Factor("depthwise", (*layer.window, 1, between), axes, groups=layer.inputs),
        Factor("pointwise", (*ones, between, layer.outputs)),
    )


def _channels(layer: Layer, weights: np.ndarray) -> np.ndarray:
    """`[G, I, taps, O]`."""
    split = weights.reshape(layer.groups, layer.taps, layer.inputs, layer.outputs)
    return split.swapaxes(1, 2)


def _spectra(layer: Layer, weights: np.ndarray, moments: Moments | None) -> tuple[np.ndarray, ...]:
    del moments  # what a fit to data keeps has no singular values
    values = np.linalg.svd(_channels(layer, weights), compute_uv=False)
    return (np.sqrt(np.sum(np.square(values), axis=(0, 1))),)


def _closest(layer: Layer, weights: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Filters `[G, taps, I, rank]` and mixture `[G, I, rank, O]`, by weights alone."""
    left, values, right = np.linalg.svd(_channels(layer, weights), full_matrices=False)
    size = np.sqrt(values[..., :rank])
    filters = (left[..., :rank] * size[..., None, :]).swapaxes(1, 2)
    return filters, size[..., None] * right[..., :rank, :]


def _patches(layer: Layer, moments: Moments) -> np.ndarray:
    """Sums of products of all that an output is computed from, `[G, taps, I, taps, I]`."""
    shape = (layer.groups, layer.taps, layer.inputs, layer.taps, layer.inputs)
    if moments.patches is not None:
        return moments.patches.reshape(shape)
    return np.einsum("tu,gij->gtiuj", np.eye(layer.taps), moments.inputs)


def _fitted(
    weights: np.ndarray,
    seen: np.ndarray,
    filters: np.ndarray,
    mixture: np.ndarray,
    sweeps: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Least squares on what one group was seen to read, the mixture and the filters in turn.

    Args:
      weights: `[taps, I, O]`.
      seen: `[taps, I, taps, I]`.
      filters: `[taps, I, rank]` to start from.
      mixture: `[I, rank, O]` to start from.
      sweeps: how often.

    Returns:
      Filters and mixture.
    """
    count = weights.shape[0] * weights.shape[1]
    flat = seen.reshape(count, count)
    wanted = (flat @ weights.reshape(count, -1)).reshape(weights.shape)

    def action(flat_filters: np.ndarray) -> np.ndarray:
        chain = np.einsum("tik,iko->tio", flat_filters.reshape(filters.shape), mixture)
        moved = (flat @ chain.reshape(count, -1)).reshape(weights.shape)
        return np.einsum("tio,iko->tik", moved, mixture).ravel()

    size = filters.size
    for _ in range(sweeps):
        between = mixture.shape[0] * mixture.shape[1]
        gram = np.einsum("tik,tiuj,ujl->ikjl", filters, seen, filters, optimize=True)
        target = np.einsum("tik,tio->iko", filters, wanted).reshape(between, -1)
        found = np.linalg.lstsq(gram.reshape(between, between), target, rcond=1e-12)[0]
        mixture = found.reshape(mixture.shape)
        right = np.einsum("tio,iko->tik", wanted, mixture).ravel()
        operator = scipy.sparse.linalg.LinearOperator((size, size), matvec=action, dtype=np.float64)
        better, _ = scipy.sparse.linalg.cg(operator, right, x0=filters.ravel(), maxiter=_STEPS)
        filters = better.reshape(filters.shape)
    scale = balance(np.linalg.norm(filters, axis=0), np.linalg.norm(mixture, axis=2))
    return filters * scale, mixture / scale[..., None]
