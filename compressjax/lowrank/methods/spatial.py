"""Spatial SVD: a window of kh x kw becomes kh x 1, then 1 x kw.

Each tap of one axis then is paid for once, not once for each tap of the other. `svd` is the
neighbour that keeps the window whole and reduces outputs.
"""

import numpy as np

from compressjax.lowrank.factors import Factor
from compressjax.lowrank.layers import Layer
from compressjax.lowrank.methods.balance import balance
from compressjax.lowrank.methods.base import Method, Moments, Ranks
from compressjax.lowrank.methods.whitening import whitened


def spatial() -> Method:
    """Decomposes a convolution of two axes into a vertical and a horizontal one.

    Jaderberg et al., "Speeding up Convolutional Neural Networks with Low Rank Expansions" (2014),
    the scheme that shares its vertical filters among outputs. Its factors here are those of the
    truncated SVD of the matrix from (rows, inputs) to (columns, outputs), which no pair of this
    rank comes closer than. With moments, inputs count as much as they were seen to vary together;
    what they do at different taps is taken as unrelated.

    Returns:
      The method; its rank is the number of channels between the two.

    Example:
      >>> layer = Layer('w', (3, 5), 4, 6, 1, (((1, 8, 8), (1, 8, 8)),))
      >>> [factor.shape for factor in spatial().plan(layer, (2,))]
      [(3, 1, 4, 2), (1, 5, 2, 6)]
    """
    return Method("spatial", _refuses, _limits, _plan, _spectra, _factors)


def _refuses(layer: Layer) -> str:
    if len(layer.window) != 2 or min(layer.window) < 2:
        window = "x".join(map(str, layer.window)) or "none, a matrix product"
        return f"its window is {window}: there are no two axes to split"
    return ""


def _limits(layer: Layer) -> Ranks:
    rows, columns = layer.window
    return (min(rows * layer.inputs, columns * layer.outputs),)


def _plan(layer: Layer, ranks: Ranks) -> tuple[Factor, ...]:
    (rank,), (rows, columns) = ranks, layer.window
    return (
        Factor("vertical", (rows, 1, layer.inputs, rank), (0,)),
        Factor("horizontal", (1, columns, rank, layer.outputs), (1,)),
    )


def _spectra(layer: Layer, weights: np.ndarray, moments: Moments | None) -> tuple[np.ndarray, ...]:
    matrix, _ = _matrix(layer, weights, moments)
    small = matrix if matrix.shape[1] <= matrix.shape[2] else matrix.swapaxes(1, 2)
    values = np.linalg.eigvalsh(small @ small.swapaxes(1, 2))
    return (np.sqrt(np.maximum(values, 0.0).sum(axis=0)[::-1]),)


def _factors(
    layer: Layer, weights: np.ndarray, ranks: Ranks, moments: Moments | None
) -> list[np.ndarray]:
    (rank,), (rows, columns) = ranks, layer.window
    matrix, back = _matrix(layer, weights, moments)
    tall = matrix.shape[1] > matrix.shape[2]
    small = matrix.swapaxes(1, 2) if tall else matrix
    _, vectors = np.linalg.eigh(small @ small.swapaxes(1, 2))
    leading = np.ascontiguousarray(vectors[..., ::-1][..., :rank])  # BLAS wants no steps of -1
    if tall:
        left, right = matrix @ leading, leading.swapaxes(1, 2)
    else:
        left, right = leading, leading.swapaxes(1, 2) @ matrix
    scale = balance(np.linalg.norm(left, axis=1), np.linalg.norm(right, axis=2))
    vertical = back[:, None] @ (left * scale[:, None]).reshape(-1, rows, layer.inputs, rank)
    horizontal = (right / scale[..., None]).reshape(-1, rank, columns, layer.outputs)
    return [vertical[:, :, None], horizontal.swapaxes(1, 2)[:, None]]


def _matrix(
    layer: Layer, weights: np.ndarray, moments: Moments | None
) -> tuple[np.ndarray, np.ndarray]:
    """`[G, rows * I, columns * O]` as it acts on inputs that are alike, and the way back."""
    tensor, back = whitened(layer, weights, moments)
    rows, columns = layer.window
    split = tensor.reshape(layer.groups, rows, columns, layer.inputs, layer.outputs)
    return split.swapaxes(2, 3).reshape(layer.groups, rows * layer.inputs, -1), back
