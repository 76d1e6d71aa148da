"""Truncated SVD: few directions of the outputs, and one layer in front that computes them.

For a matrix product that is two thinner ones. For a convolution the window stays in the first
layer, and the second is 1x1 ("channel SVD"); `spatial` is the neighbour that splits the window.
"""

import math

import numpy as np

from compressjax.lowrank.factors import Factor
from compressjax.lowrank.layers import Layer
from compressjax.lowrank.methods.balance import balance
from compressjax.lowrank.methods.base import Method, Moments, Ranks


def svd() -> Method:
    """Decomposes a layer by the singular vectors of its outputs.

    Denton et al., "Exploiting Linear Structure Within Convolutional Networks for Efficient
    Evaluation" (2014), for kernels; Zhang et al., "Accelerating Very Deep Convolutional Networks
    for Classification and Detection" (2015), for outputs on data: with moments, the directions are
    those that hold most of what the layer was seen to put out, which makes the sum of squared
    errors of its outputs on that data as small as any projection of this rank can.

    Returns:
      The method; it has one rank, and takes every matrix product and every convolution that mixes
      channels.

    Example:
      >>> layer = Layer('w', (), 3, 2, 1, (((1,), (1,)),))
      >>> weights = np.array([[[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]]])
      >>> down, up = svd().factors(layer, weights, (1,), None)
      >>> np.allclose(down @ up, weights)
      True
    """
    return Method("svd", _refuses, _limits, _plan, _spectra, _factors)


def _refuses(layer: Layer) -> str:
    if min(layer.taps * layer.inputs, layer.outputs) < 2:
        return f"its matrix of {layer.taps * layer.inputs} by {layer.outputs} has rank 1 as it is"
    return ""


def _limits(layer: Layer) -> Ranks:
    return (min(layer.taps * layer.inputs, layer.outputs),)


def _plan(layer: Layer, ranks: Ranks) -> tuple[Factor, ...]:
    (rank,) = ranks
    axes = tuple(range(len(layer.window)))
    ones = (1,) * len(axes)
    return (
        Factor("down", (*layer.window, layer.inputs, rank), axes),
        Factor("up", (*ones, rank, layer.outputs)),
    )


def _spectra(layer: Layer, weights: np.ndarray, moments: Moments | None) -> tuple[np.ndarray, ...]:
    values, _ = _directions(layer, weights, moments)
    return (np.sqrt(np.sum(values, axis=0))[: _limits(layer)[0]],)


def _factors(
    layer: Layer, weights: np.ndarray, ranks: Ranks, moments: Moments | None
) -> list[np.ndarray]:
    _, directions = _directions(layer, weights, moments)
    up = directions[..., : ranks[0]]
    down = weights.reshape(layer.groups, -1, layer.outputs) @ up
    lengths = np.linalg.norm(down, axis=1, keepdims=True)
    scale = balance(lengths, np.ones_like(lengths))
    window = (1,) * len(layer.window)
    return [
        (down * scale).reshape(layer.groups, *layer.window, layer.inputs, ranks[0]),
        (up / scale).swapaxes(1, 2).reshape(layer.groups, *window, ranks[0], layer.outputs),
    ]


def _directions(
    layer: Layer, weights: np.ndarray, moments: Moments | None
) -> tuple[np.ndarray, np.ndarray]:
    """Of the outputs: how much each direction holds, falling, `[groups, O]`; and `[.., O, O]`."""
    matrix = weights.reshape(layer.groups, math.prod(weights.shape[1:-1]), layer.outputs)
    square = matrix.swapaxes(1, 2) @ matrix if moments is None else moments.outputs
    values, vectors = np.linalg.eigh(square)
    # BLAS wants no steps of -1.
    return np.maximum(values[:, ::-1], 0.0), np.ascontiguousarray(vectors[..., ::-1])
