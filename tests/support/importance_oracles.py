"""Importances of channels, in float64 NumPy written from their papers, one kernel at a time.

Kernels are `[..., I, O]`, filters their last axis. Nothing here uses the library.
"""

import numpy as np


def rows(kernel):
    """The filters of a kernel, `[O, K]`."""
    return [np.asarray(kernel, np.float64)[..., o].ravel() for o in range(kernel.shape[-1])]


def l1(kernel):
    return [sum(abs(w) for w in row) for row in rows(kernel)]


def l2(kernel):
    return [sum(w * w for w in row) ** 0.5 for row in rows(kernel)]


def lamp(kernel):
    """Lee et al. (2021), equation 4: of equal filters, the earlier one goes first."""
    squares = [sum(w * w for w in row) for row in rows(kernel)]
    order = sorted(range(len(squares)), key=lambda i: (squares[i], i))
    scores = [0.0] * len(squares)
    for place, i in enumerate(order):
        scores[i] = squares[i] / sum(squares[j] for j in order[place:])
    return scores


def geometric_median(kernel):
    """He et al. (2019), equation 7."""
    found = rows(kernel)
    return [sum(np.sqrt(np.sum((a - b) ** 2)) for b in found) for a in found]


def taylor(kernel, gradients):
    """Molchanov et al. (2019), equation 8, averaged over batches."""
    changes = [
        [np.dot(w, g) ** 2 for w, g in zip(rows(kernel), rows(gradient), strict=True)]
        for gradient in gradients
    ]
    return np.mean(changes, axis=0)


def second_order(kernel, curvature):
    """LeCun et al. (1990), equation 5, and Theis et al. (2018) with the Fisher diagonal."""
    return [np.dot(w * w, h) / 2 for w, h in zip(rows(kernel), rows(curvature), strict=True)]


def rank(matrix, tolerance=1e-5):
    """The rank of a matrix by Gaussian elimination with full pivoting."""
    left = np.array(matrix, np.float64)
    largest = np.abs(left).max()
    found = 0
    while left.size and np.abs(left).max() > tolerance * max(largest, 1e-30):
        i, j = np.unravel_index(np.abs(left).argmax(), left.shape)
        left = left - np.outer(left[:, j], left[i]) / left[i, j]
        left = np.delete(np.delete(left, i, 0), j, 1)
        found += 1
    return found


def moments_of_least_squares(w, x, y):
    """Mean gradient, and mean square of it, of `mean((x w - y)^2) / 2` over batches `[N, B, I]`."""
    w, x, y = (np.asarray(a, np.float64) for a in (w, x, y))
    gradients = [
        batch.T @ (batch @ w - target) / len(target) for batch, target in zip(x, y, strict=True)
    ]
    return np.mean(gradients, axis=0), np.mean(np.square(gradients), axis=0)


def mean_magnitude(x):
    """Molchanov et al. (2017), section 2.2, of absolute activations, one feature at a time."""
    return np.array([np.mean(np.abs(np.float64(x[..., i]))) for i in range(x.shape[-1])])
