"""Pruning scores in NumPy, float64, written from the papers' equations."""

from collections.abc import Sequence

import numpy as np

Leaf = np.ndarray
History = Sequence[tuple[Leaf, Leaf]]  # weights and gradients of every step


def _double(history: History) -> list[tuple[Leaf, Leaf]]:
    return [(w.astype(np.float64), g.astype(np.float64)) for w, g in history]


def _weighted(terms: Sequence[Leaf], decay: float) -> Leaf:
    return sum(decay ** (len(terms) - 1 - i) * term for i, term in enumerate(terms))


def lamp(weights: Leaf) -> Leaf:
    """Lee et al. 2021, equation 1, one weight at a time; the earlier of equal ones is larger."""
    flat = weights.astype(np.float64).ravel()
    scores = np.zeros_like(flat)
    for u, size in enumerate(np.abs(flat)):
        larger = [v**2 for i, v in enumerate(flat) if abs(v) > size or (abs(v) == size and i <= u)]
        scores[u] = size**2 / sum(larger) if size else 0
    return scores.reshape(weights.shape)


def saliency(history: History, decay: float = 1.0) -> Leaf:
    """Molchanov et al. 2017, equation 7, without the mean over a feature map."""
    return _weighted([np.abs(w * g) for w, g in _double(history)], decay)


def movement(history: History, decay: float = 1.0) -> Leaf:
    """Sanh et al. 2020, equation 7."""
    return _weighted([-w * g for w, g in _double(history)], decay)


def snip(history: History, decay: float = 1.0) -> Leaf:
    """Lee et al. 2019, equation 6, not normalised."""
    pairs = _double(history)
    return np.abs(pairs[-1][0] * _weighted([g for _, g in pairs], decay))


def diagonal_fisher(history: History, decay: float = 1.0) -> Leaf:
    """Theis et al. 2018: half the squared weight times the sum of squared gradients."""
    pairs = _double(history)
    return 0.5 * pairs[-1][0] ** 2 * _weighted([g**2 for _, g in pairs], decay)


def norm_quartic(weights: Leaf) -> Leaf:
    """The Hessian of `(sum of w^2)^2 / 4`: `|w|^2 I + 2 w w^T`, [n, n]."""
    flat = weights.astype(np.float64).ravel()
    return np.sum(flat**2) * np.eye(flat.size) + 2 * np.outer(flat, flat)


def grasp(weights: Leaf, gradient: Leaf, hessian: Leaf) -> Leaf:
    """Wang et al. 2020, equation 8: the scores of removal are these, negated."""
    flat = weights.astype(np.float64).ravel()
    return (flat * (hessian @ gradient.astype(np.float64).ravel())).reshape(weights.shape)


def brain_damage(weights: Leaf, diagonals: Sequence[Leaf]) -> Leaf:
    """LeCun et al. 1990, equation 5, with the mean of several diagonals."""
    return weights.astype(np.float64) ** 2 * np.mean(np.float64(diagonals), axis=0) / 2


def synflow_chain(first: Leaf, second: Leaf) -> tuple[Leaf, Leaf]:
    """Tanaka et al. 2020, section 4, for two dense layers: sums over all paths through a weight."""
    first, second = np.abs(first.astype(np.float64)), np.abs(second.astype(np.float64))
    scores = np.zeros_like(first), np.zeros_like(second)
    for i, j in np.ndindex(first.shape):
        for k in range(second.shape[1]):
            scores[0][i, j] += first[i, j] * second[j, k]
            scores[1][j, k] += first[i, j] * second[j, k]
    return scores


def inverse_fisher(gradients: Sequence[Leaf], damping: float) -> Leaf:
    """Singh and Alistarh 2020, equation 11: the inverse, one gradient [n] at a time, [n, n]."""
    inverse = np.eye(gradients[0].size) / damping
    for gradient in np.float64(gradients):
        across = inverse @ gradient
        inverse = inverse - np.outer(across, across) / (len(gradients) + gradient @ across)
    return inverse


def brain_surgeon(history: History, block_size: int, damping: float) -> Leaf:
    """Hassibi and Stork 1993, equation 5, in blocks of the flat weights; the last may be short."""
    pairs = [(w.ravel(), g.ravel()) for w, g in _double(history)]
    weights = pairs[-1][0]
    scores = np.zeros_like(weights)
    for start in range(0, weights.size, block_size):
        block = slice(start, start + block_size)
        inverse = inverse_fisher([g[block] for _, g in pairs], damping)
        scores[block] = weights[block] ** 2 / (2 * np.diag(inverse))
    return scores.reshape(history[-1][0].shape)


def surgery(weights: Leaf, inverse: Leaf, pruned: Leaf) -> Leaf:
    """Kurtic et al. 2022, the update of a set Q: `-inv(F) E (E^T inv(F) E)^-1 E^T w`, on [n]."""
    chosen = np.eye(weights.size)[:, pruned]
    middle = np.linalg.inv(chosen.T @ inverse @ chosen)
    return weights - inverse @ chosen @ middle @ chosen.T @ weights
