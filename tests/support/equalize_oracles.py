"""Oracles of equalization, bias absorption and batch-norm re-estimation, from their papers."""

import numpy as np


def equalized(weights, biases, steps=200):
    """Equations 9 to 11 of Nagel et al. (2019), one pair after the other, on `[I, O]` kernels."""
    weights = [np.array(w, np.float64) for w in weights]
    biases = [np.array(b, np.float64) for b in biases]
    for _ in range(steps):
        for i in range(len(weights) - 1):
            r1, r2 = np.abs(weights[i]).max(0), np.abs(weights[i + 1]).max(1)
            s = np.sqrt(r1 * r2) / r2
            weights[i], biases[i] = weights[i] / s, biases[i] / s
            weights[i + 1] = weights[i + 1] * s[:, None]
    return weights, biases


def absorbed(values, deviations):
    """Section 4.1.3 of Nagel et al. (2019) with measured moments: what `[N, C]` values lose."""
    values = np.float64(values)
    constant = values.mean(0) - deviations * values.std(0)
    return np.maximum(0, np.maximum(values.min(0), constant))


def population(batches):
    """Wu and Johnson (2021): mean and variance of `[N, ..., C]` batches, put together."""
    flat = [np.float64(batch).reshape(-1, batch.shape[-1]) for batch in batches]
    counts = [len(batch) for batch in batches]
    mean = np.average([y.mean(0) for y in flat], axis=0, weights=counts)
    square = np.average([(y**2).mean(0) for y in flat], axis=0, weights=counts)
    return mean, square - mean**2
