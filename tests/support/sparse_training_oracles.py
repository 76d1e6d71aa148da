"""Sparse training in NumPy, written from the papers: masks by sorting, momentum by hand.

Every oracle trains kernels `{layer: array}` with SGD of rate `RATE` and momentum `MOMENTUM` on the
gradients it is given, at one sparsity in every layer, and returns (kernels, masks) at the end.
"""

from collections.abc import Callable, Sequence

import numpy as np

RATE = np.float32(0.1)
MOMENTUM = np.float32(0.9)
Kernels = dict[str, np.ndarray]


def largest(scores: np.ndarray, count: int) -> np.ndarray:
    """Masks the `count` largest scores, the earlier of equal ones first, by a stable sort."""
    keep = np.zeros(scores.size, bool)
    keep[np.argsort(-scores.ravel(), kind="stable")[:count]] = True
    return keep.reshape(scores.shape)


def _kept(size: int, sparsity: float) -> int:
    return size - round(sparsity * size)


def regrown(
    kernels: Kernels,
    history: Sequence[Kernels],
    sparsity: float,
    fractions: dict[int, float],
    growth: Callable[[int, Kernels], Kernels],
) -> tuple[Kernels, Kernels]:
    """Drop-and-grow: Evci et al. 2020, algorithm 1, and Mocanu et al. 2018.

    Args:
      kernels: at the start.
      history: gradients of each step.
      sparsity: of every layer.
      fractions: part of the kept weights that is replaced, by step (from 1) with new masks.
      growth: `(step, gradients) -> scores` of the weights that may return.

    Returns:
      Kernels and masks after the last step.
    """
    kernels = dict(kernels)
    keep = {name: np.ones(w.shape, bool) for name, w in kernels.items()}
    moments = {name: np.zeros_like(w) for name, w in kernels.items()}
    for step, gradients in enumerate(history, start=1):
        scores = growth(step, gradients)
        for name, weights in kernels.items():
            if step in fractions:
                count = _kept(weights.size, sparsity)
                moved = round(fractions[step] * count)
                stays = largest(np.where(keep[name], np.abs(weights), -1), count - moved)
                grown = largest(np.where(stays, -1, scores[name]), moved)
                moments[name] = np.where(grown & ~keep[name], 0, moments[name])
                keep[name] = stays | grown
            masked = np.where(keep[name], gradients[name], 0)
            moments[name] = masked + MOMENTUM * moments[name]
            kernels[name] = np.where(keep[name], weights - RATE * moments[name], 0)
    return kernels, keep


def latent(
    kernels: Kernels,
    history: Sequence[Kernels],
    sparsity: float,
    due: Sequence[int],
    *,
    decay: float,
    backward: float | None = None,
) -> tuple[Kernels, Kernels]:
    """Straight-through training (Zhou et al. 2021) or, with `backward`, Jayakumar et al. 2020.

    Args:
      kernels: at the start.
      history: gradients of each step, at the masked kernels.
      sparsity: of every layer in the forward pass.
      due: steps (from 1) that end with new masks.
      decay: of pruned weights; with `backward` of all trained ones, pruned ones over the density.
      backward: sparsity of the weights that are trained; None: all are.

    Returns:
      Masked kernels and masks after the last step.
    """
    dense = dict(kernels)
    keep = {name: np.ones(w.shape, bool) for name, w in dense.items()}
    trained = {name: np.ones(w.shape, bool) for name, w in dense.items()}
    moments = {name: np.zeros_like(w) for name, w in dense.items()}
    for step, gradients in enumerate(history, start=1):
        for name, weights in dense.items():
            kept = 0.0 if backward is None else 1.0
            others = 1.0 if backward is None else 1 / (1 - sparsity)
            strength = np.float32(decay) * np.where(keep[name], kept, others).astype(np.float32)
            pulled = np.where(trained[name], gradients[name] + strength * weights, 0)
            moments[name] = pulled + MOMENTUM * moments[name]
            dense[name] = np.where(trained[name], weights - RATE * moments[name], weights)
            if step in due:
                scores = np.abs(dense[name])
                keep[name] = largest(scores, _kept(scores.size, sparsity))
                if backward is not None:
                    trained[name] = largest(scores, _kept(scores.size, backward))
    return {name: np.where(keep[name], w, 0) for name, w in dense.items()}, keep


def rewound(
    kernels: Kernels, history: Sequence[Kernels], sparsities: dict[int, float], to: int
) -> tuple[Kernels, Kernels]:
    """Iterative magnitude pruning with rewinding: Frankle et al. 2020, algorithm 2.

    Args:
      kernels: at the start.
      history: gradients of each step.
      sparsities: of every layer, by step (from 1) that prunes.
      to: the step whose weights and moments come back.

    Returns:
      Kernels and masks after the last step.
    """
    kernels = dict(kernels)
    keep = {name: np.ones(w.shape, bool) for name, w in kernels.items()}
    moments = {name: np.zeros_like(w) for name, w in kernels.items()}
    start = (dict(kernels), dict(moments))
    for step, gradients in enumerate(history, start=1):
        for name, weights in kernels.items():
            if step in sparsities:
                scores = np.where(keep[name], np.abs(weights), -1)
                keep[name] = largest(scores, _kept(weights.size, sparsities[step]))
            moments[name] = np.where(keep[name], gradients[name], 0) + MOMENTUM * moments[name]
            kernels[name] = np.where(keep[name], weights - RATE * moments[name], 0)
            if step in sparsities and step > to:
                kernels[name] = np.where(keep[name], start[0][name], 0)
                moments[name] = start[1][name]
        if step == to:
            start = (dict(kernels), dict(moments))
    return kernels, keep
