"""Weight grids in NumPy and float64, each written from its paper; nothing here is the library's.

A group is one scale's weights: `[n]`. `by_channel` and `by_block` cut a kernel into groups.
"""

from collections.abc import Callable

import numpy as np

Oracle = Callable[[np.ndarray], np.ndarray]


def by_channel(oracle: Oracle) -> Oracle:
    def project(w: np.ndarray) -> np.ndarray:
        columns = np.float64(w).reshape(-1, w.shape[-1])
        return np.stack([oracle(column) for column in columns.T], -1).reshape(w.shape)

    return project


def by_tensor(oracle: Oracle) -> Oracle:
    return lambda w: oracle(np.float64(w).ravel()).reshape(w.shape)


def by_block(oracle: Oracle, size: int) -> Oracle:
    def project(w: np.ndarray) -> np.ndarray:
        parts = np.split(np.float64(w), w.shape[-2] // size, axis=-2)
        lead = [part.reshape(-1, size, w.shape[-1]) for part in parts]
        done = [np.stack([by_channel(oracle)(x) for x in part]) for part in lead]
        return np.concatenate([d.reshape(p.shape) for d, p in zip(done, parts, strict=True)], -2)

    return project


def nearest(values: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Of some values, the nearest to each weight; of two as near, the one further from zero."""
    values = np.array(sorted(set(np.float64(values)), key=lambda v: -abs(v)))
    return values[np.abs(w[:, None] - values[None, :]).argmin(1)]


def symmetric(bits: int) -> Oracle:
    """Jacob et al. 2018, symmetric, narrow range."""

    def project(w: np.ndarray) -> np.ndarray:
        largest = 2 ** (bits - 1) - 1
        scale = np.abs(w).max() / largest
        return np.rint(w / scale).clip(-largest, largest) * scale

    return project


def affine(bits: int) -> Oracle:
    """Jacob et al. 2018, equation 1, with the range widened to hold zero."""

    def project(w: np.ndarray) -> np.ndarray:
        low, high = min(w.min(), 0.0), max(w.max(), 0.0)
        scale = (high - low) / (2**bits - 1)
        zero_point = np.rint(-low / scale)
        return (np.clip(np.rint(w / scale) + zero_point, 0, 2**bits - 1) - zero_point) * scale

    return project


def learned_step_start(bits: int) -> Oracle:
    """Esser et al. 2020: the value of the quantizer (equations 1 and 2) with its first step."""

    def project(w: np.ndarray) -> np.ndarray:
        largest = 2 ** (bits - 1) - 1
        step = 2 * np.abs(w).mean() / np.sqrt(largest)
        return np.rint(np.clip(w / step, -largest, largest)) * step

    return project


def ternary(w: np.ndarray) -> np.ndarray:
    """Li et al. 2016, equations 3, 5 and 6."""
    large = np.abs(w) > 0.7 * np.abs(w).mean()
    return np.where(large, np.sign(w), 0.0) * np.abs(w[large]).mean()


def trained_ternary_start(threshold: float) -> Oracle:
    """Zhu et al. 2017, equations 6 and 9, with sizes that start at their sides' means."""

    def project(w: np.ndarray) -> np.ndarray:
        edge = threshold * np.abs(w).max()
        up, down = w[w > edge].mean(), -w[w < -edge].mean()
        return np.select([w > edge, w < -edge], [up, -down], 0.0)

    return project


def binary(w: np.ndarray) -> np.ndarray:
    """Rastegari et al. 2016, equation 6."""
    return np.where(w < 0, -1.0, 1.0) * np.abs(w).mean()


def power_of_two(bits: int) -> Oracle:
    """Zhou et al. 2017, equations 1 to 4."""

    def project(w: np.ndarray) -> np.ndarray:
        top = np.floor(np.log2(4 * np.abs(w).max() / 3))
        bottom = top + 1 - 2 ** (bits - 1) // 2
        sizes = 2.0 ** np.arange(bottom, top + 1)
        return nearest(np.concatenate([-sizes, [0.0], sizes]), w)

    return project


# Li et al. 2020, equation 5 and appendix: the choices of each term, for the bits beside the sign.
_TERMS = {
    2: [[0, 1 / 2, 1 / 4, 1 / 8]],
    3: [[0, 1 / 2, 1 / 4, 1 / 16], [0, 1 / 8]],
    4: [[0, 1 / 2, 1 / 8, 1 / 32], [0, 1 / 4, 1 / 16, 1 / 64]],
    5: [[0, 1 / 2, 1 / 8, 1 / 64], [0, 1 / 4, 1 / 16, 1 / 128], [0, 1 / 32]],
}


def additive_levels(bits: int) -> np.ndarray:
    """The sizes of `bits`-bit sums of powers of two, the largest of them one."""
    sums = np.zeros(1)
    for term in _TERMS[bits - 1]:
        sums = (sums[:, None] + np.array(term)[None, :]).ravel()
    return np.unique(sums) / sums.max()


def additive_power_of_two(bits: int) -> Oracle:
    def project(w: np.ndarray) -> np.ndarray:
        sizes = additive_levels(bits) * np.abs(w).max()
        return nearest(np.concatenate([-sizes, sizes]), w)

    return project


def logarithmic(bits: int) -> Oracle:
    def project(w: np.ndarray) -> np.ndarray:
        companded = np.sign(w) * np.log(1 + np.abs(w))
        even = symmetric(bits)(companded)
        return np.sign(even) * (np.exp(np.abs(even)) - 1)

    return project


def k_means(w: np.ndarray, size: int, iterations: int) -> np.ndarray:
    """Han et al. 2016, section 3.2: linear start, then Lloyd's iterations."""
    centroids = np.linspace(w.min(), w.max(), size)
    for _ in range(iterations):
        cluster = np.abs(w[:, None] - centroids[None, :]).argmin(1)
        for i in range(size):
            if (cluster == i).any():
                centroids[i] = w[cluster == i].mean()
    return centroids


def codebook(size: int, iterations: int = 25) -> Oracle:
    return lambda w: nearest(k_means(w, size, iterations), w)
