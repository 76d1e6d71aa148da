"""Tucker-2: few directions of the inputs and of the outputs, and a smaller layer between them.

The window stays in the smaller layer, which is where most of a wide convolution's work then is not.
`svd` is the neighbour that reduces outputs alone.
"""

import numpy as np

from compressjax.lowrank.factors import Factor
from compressjax.lowrank.layers import Layer
from compressjax.lowrank.methods.base import Method, Moments, Ranks
from compressjax.lowrank.methods.whitening import whitened


def tucker2() -> Method:
    """Decomposes a convolution along its inputs and its outputs: 1x1, the window, 1x1.

    Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile
    Applications" (2016), by higher-order orthogonal iteration (De Lathauwer et al., "On the Best
    Rank-1 and Rank-(R1, R2, ..., RN) Approximation of Higher-Order Tensors", 2000), from symmetric
    eigenproblems of the size of the channels and by steps of orthogonal iteration: it takes seconds
    for a whole network where a general decomposition of the unfolded kernels takes minutes. With
    moments, inputs count as much as they were seen to vary together; what they do at different
    taps is taken as unrelated.

    Returns:
      The method. Its ranks are those of the inputs and of the outputs; a side that keeps its full
      rank gets no layer of its own.

    Example:
      >>> layer = Layer('w', (3, 3), 4, 6, 1, (((1, 8, 8), (1, 8, 8)),))
      >>> [factor.shape for factor in tucker2().plan(layer, (2, 3))]
      [(1, 1, 4, 2), (3, 3, 2, 3), (1, 1, 3, 6)]
    """
    return Method("tucker2", _refuses, _limits, _plan, _spectra, _factors)


_SWEEPS = 3


def _refuses(layer: Layer) -> str:
    if max(layer.inputs, layer.outputs) < 2:
        return "it has one input and one output in each group: there are no channels to reduce"
    return ""


def _limits(layer: Layer) -> Ranks:
    return layer.inputs, layer.outputs


def _plan(layer: Layer, ranks: Ranks) -> tuple[Factor, ...]:
    inner, outer = ranks
    axes = tuple(range(len(layer.window)))
    ones = (1,) * len(axes)
    down = (Factor("down", (*ones, layer.inputs, inner)),) if inner < layer.inputs else ()
    up = (Factor("up", (*ones, outer, layer.outputs)),) if outer < layer.outputs else ()
    return *down, Factor("core", (*layer.window, inner, outer), axes), *up


def _spectra(layer: Layer, weights: np.ndarray, moments: Moments | None) -> tuple[np.ndarray, ...]:
    tensor, _ = whitened(layer, weights, moments)
    return tuple(_together(np.linalg.eigvalsh(_gram(tensor, side))) for side in (0, 1))


def _together(values: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(values, 0.0).sum(axis=0)[::-1])


def _factors(
    layer: Layer, weights: np.ndarray, ranks: Ranks, moments: Moments | None
) -> list[np.ndarray]:
    tensor, back = whitened(layer, weights, moments)
    inner, outer = ranks
    ins = _leading(tensor, 0, inner)
    outs = _leading(tensor, 1, outer)
    if inner < layer.inputs and outer < layer.outputs:
        for _ in range(_SWEEPS):
            ins = _turned(tensor @ outs[:, None], 0, ins)
            outs = _turned(ins[:, None].swapaxes(2, 3) @ tensor, 1, outs)
    lead = (layer.groups, *(1 for _ in layer.window))
    down, up = back @ ins, outs.swapaxes(1, 2)
    core = ins[:, None].swapaxes(2, 3) @ tensor @ outs[:, None]
    if inner == layer.inputs:
        core = down[:, None] @ core
    if outer == layer.outputs:
        core = core @ up[:, None]
    return [
        *([down.reshape(*lead, layer.inputs, inner)] if inner < layer.inputs else []),
        core.reshape(layer.groups, *layer.window, inner, outer),
        *([up.reshape(*lead, outer, layer.outputs)] if outer < layer.outputs else []),
    ]


def _turned(tensor: np.ndarray, side: int, directions: np.ndarray) -> np.ndarray:
    """Turns directions towards those that hold most: a step of orthogonal iteration.

    A step costs far less than eigenvectors, which the next sweep would only start from again.
    """
    flat = _unfolded(tensor, side)
    return np.linalg.qr(flat @ (flat.swapaxes(1, 2) @ directions))[0]


def _unfolded(tensor: np.ndarray, side: int) -> np.ndarray:
    """`[G, taps, I, O]` as a matrix of inputs (0) or outputs (1) and all else, `[G, C, -1]`."""
    moved = tensor.transpose((0, 2, 1, 3) if side == 0 else (0, 3, 1, 2))
    return moved.reshape(*moved.shape[:2], -1)


def _gram(tensor: np.ndarray, side: int) -> np.ndarray:
    """Sums of products of inputs (0) or of outputs (1), `[G, C, C]`."""
    flat = _unfolded(tensor, side)
    return flat @ flat.swapaxes(1, 2)


def _leading(tensor: np.ndarray, side: int, rank: int) -> np.ndarray:
    """The directions of inputs or outputs that hold most, `[G, C, rank]`."""
    _, vectors = np.linalg.eigh(_gram(tensor, side))
    return np.ascontiguousarray(vectors[..., ::-1][..., :rank])  # BLAS wants no steps of -1
