"""CP: a kernel as a sum of products of vectors, one for inputs, the window and outputs each.

The layer becomes 1x1, a depthwise window, 1x1. `tucker` is the neighbour whose middle layer mixes
channels: it needs fewer of them, each at a higher cost.
"""

import math
from collections.abc import Sequence

import numpy as np

from compressjax.lowrank.factors import Factor
from compressjax.lowrank.layers import Layer
from compressjax.lowrank.methods.base import Method, Moments, Ranks
from compressjax.lowrank.methods.whitening import whitened


def cp(*, split: bool = False, steps: int = 50, seed: int = 0) -> Method:
    """Decomposes a convolution by canonical polyadic decomposition.

    Lebedev et al., "Speeding-up Convolutional Neural Networks Using Fine-tuned CP-Decomposition"
    (2015), with an axis of the tensor for each axis of the window; Astrid and Lee,
    "CP-decomposition with Tensor Power Method for Convolutional Neural Networks Compression"
    (2017), with one for the whole window. The vectors are found by alternating least squares
    (`tensorly`) from drawn ones, within the strongest directions of each axis first, twice as many
    as there are products, and then, in a tenth of the rounds, without that bound: Bro and
    Andersson, "Improving the speed of multiway algorithms, Part II: Compression" (1998). With
    moments, inputs count as much as they were seen to vary together.

    Args:
      split: whether each axis of the window gets a depthwise layer of its own.
      steps: at most this many rounds of least squares before the last ones.
      seed: of the draw.

    Returns:
      The method. Its rank is the number of products; there are no singular values to choose it by.
      Its factors raise ImportError if `tensorly` is missing.

    Raises:
      ValueError: if `steps` is under 1.

    Example:
      >>> layer = Layer('w', (3, 3), 4, 6, 1, (((1, 8, 8), (1, 8, 8)),))
      >>> [(factor.shape, factor.groups) for factor in cp().plan(layer, (5,))]
      [((1, 1, 4, 5), 1), ((3, 3, 1, 5), 5), ((1, 1, 5, 6), 1)]
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}, expected at least 1")

    def windows(layer: Layer) -> list[tuple[int, ...]]:
        """The axes that each depthwise layer slides along."""
        axes = tuple(range(len(layer.window)))
        return [(axis,) for axis in axes if layer.window[axis] > 1] if split else [axes]

    def plan(layer: Layer, ranks: Ranks) -> tuple[Factor, ...]:
        (rank,), ones = ranks, (1,) * len(layer.window)
        own = windows(layer)
        names = [f"window_{axes[0]}" for axes in own] if split else ["window"]
        shapes = [
            tuple(taps if i in axes else 1 for i, taps in enumerate(layer.window)) for axes in own
        ]
        return (
            Factor("down", (*ones, layer.inputs, rank)),
            *(
                Factor(name, (*shape, 1, rank), axes, rank)
                for name, shape, axes in zip(names, shapes, own, strict=True)
            ),
            Factor("up", (*ones, rank, layer.outputs)),
        )

    def factors(
        layer: Layer, weights: np.ndarray, ranks: Ranks, moments: Moments | None
    ) -> list[np.ndarray]:
        tensor, back = whitened(layer, weights, moments)
        modes = [math.prod(layer.window[i] for i in axes) for axes in windows(layer)]
        sizes = (*modes, layer.inputs, layer.outputs)
        groups = [_decomposed(one.reshape(sizes), ranks[0], steps, seed) for one in tensor]
        *taps, down, up = (np.stack(factor) for factor in zip(*groups, strict=True))
        ordered = [back @ down, *taps, up.swapaxes(1, 2)]
        return [
            factor.reshape(layer.groups, *own.shape)
            for own, factor in zip(plan(layer, ranks), ordered, strict=True)
        ]

    return Method("cp", _refuses, _limits, plan, None, factors)


def _refuses(layer: Layer) -> str:
    if layer.taps < 2:
        return "its window has one tap: as a matrix, svd() decomposes it best"
    if max(layer.inputs, layer.outputs) < 2:
        return "it has one input and one output in each group: there are no channels to reduce"
    return ""


def _limits(layer: Layer) -> Ranks:
    """As many products as any tensor of these sizes needs at most, the window as one axis."""
    sizes = (layer.taps, layer.inputs, layer.outputs)
    return (math.prod(sizes) // max(sizes),)


def _decomposed(tensor: np.ndarray, rank: int, steps: int, seed: int) -> list[np.ndarray]:
    """A factor `[size, rank]` for each axis, all of a product equally long."""
    size = float(np.linalg.norm(tensor))
    if not size:
        return [np.zeros((length, rank)) for length in tensor.shape]
    bases = [_directions(tensor / size, axis, 2 * rank) for axis in range(tensor.ndim)]
    if any(basis is not None for basis in bases):
        core = tensor / size
        for axis, basis in enumerate(bases):
            core = core if basis is None else _along(core, basis.T, axis)
        drawn = [
            factor if basis is None else basis @ factor
            for basis, factor in zip(bases, _least_squares(core, rank, steps, seed), strict=True)
        ]
        found = _least_squares(tensor / size, rank, -(-steps // 10), seed, drawn)
    else:
        found = _least_squares(tensor / size, rank, steps, seed)
    lengths = [np.maximum(np.linalg.norm(factor, axis=0), 1e-150) for factor in found]
    common = (size * np.prod(lengths, axis=0)) ** (1 / len(found))
    return [factor / own * common for factor, own in zip(found, lengths, strict=True)]


def _directions(tensor: np.ndarray, axis: int, count: int) -> np.ndarray | None:
    """The `[size, count]` strongest directions along an axis; `None` where there are no more."""
    size = tensor.shape[axis]
    if size <= count:
        return None
    rows = np.moveaxis(tensor, axis, 0).reshape(size, -1)
    _, vectors = np.linalg.eigh(rows @ rows.T)
    return vectors[:, -count:]


def _along(tensor: np.ndarray, matrix: np.ndarray, axis: int) -> np.ndarray:
    """Multiplies an axis of a tensor by a matrix `[new, old]`."""
    return np.moveaxis(np.tensordot(matrix, tensor, (1, axis)), 0, axis)


def _least_squares(
    tensor: np.ndarray, rank: int, steps: int, seed: int, start: Sequence[np.ndarray] | None = None
) -> list[np.ndarray]:
    """Alternates, from the factors of `start` or drawn ones."""
    try:
        from tensorly.decomposition import parafac
    except ImportError as error:
        raise ImportError(
            "cp needs tensorly, which is not installed: pip install 'compressjax[lowrank]'"
        ) from error
    _, found = parafac(
        tensor,
        rank,
        n_iter_max=steps,
        init="random" if start is None else (np.ones(rank), list(start)),
        random_state=seed,
        normalize_factors=False,
        tol=1e-7,
    )
    return list(found)
