"""What observers should find, in NumPy and float64, written from the papers' rules."""

import math

import numpy as np

BINS = 2048


def bin_width(values: np.ndarray) -> float:
    """1/2048 of the least power of two that is not under the largest magnitude."""
    return 2.0 ** math.ceil(math.log2(np.abs(values).max())) / BINS


def bins(values: np.ndarray) -> np.ndarray:
    """Counts of the values on either side of zero, [4096]; bins are closed on the outer side."""
    values = np.float64(values)
    edges = np.arange(BINS + 1) * bin_width(values)
    below, above = (
        np.bincount(np.searchsorted(edges, side, side="left"), minlength=BINS + 1)[1:]
        for side in (-values[values < 0], values[values > 0])
    )
    return np.concatenate([below[::-1], above])


def divergence(counts: np.ndarray, start: int, end: int, levels: int) -> float:
    """KL(P || Q) of the range between two edges, as TensorRT's slides and NVIDIA's code have it."""
    inside = counts[start:end].astype(np.float64)
    p = inside.copy()
    p[0] += counts[:start].sum()
    p[-1] += counts[end:].sum()
    level = np.arange(end - start) * levels // (end - start)
    filled = inside > 0
    each = np.bincount(level, inside) / np.maximum(np.bincount(level, filled), 1)
    q = np.where(filled, each[level], 0.0)
    p, q = p / p.sum(), q / q.sum()
    if (q[p > 0] == 0).any():
        return math.inf
    return float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())


def entropy(values: np.ndarray, levels: int = 256) -> tuple[float, float]:
    """The range of least divergence: both ends are moved, then the high one, then the low one."""
    counts, width = bins(values), bin_width(values)
    first = math.floor(min(values.min() / width, 0))
    last = math.ceil(max(values.max() / width, 0))
    reach = max(-first, last)

    best, start, end = math.inf, first, last
    for walk in ("both ends", "high end", "low end"):
        candidates = {
            "both ends": [(first * i // reach, -(-last * i // reach)) for i in range(reach, 0, -1)],
            "high end": [(start, i) for i in range(last, 0, -1)],
            "low end": [(i, end) for i in range(first, 0)],
        }
        for low, high in candidates[walk]:
            if high - low < levels:
                continue
            found = divergence(counts, BINS + low, BINS + high, levels)
            if found < best:
                best, start, end = found, low, high
    return max(start * width, values.min()), min(end * width, values.max())


def quantized(values: np.ndarray, low: float, high: float, bits: int = 8) -> np.ndarray:
    """Values on an affine grid that holds zero (Jacob et al., 2018, section 2.1)."""
    low, high, codes = min(low, 0.0), max(high, 0.0), 2**bits - 1
    scale = (high - low) / codes or 1.0
    zero = np.rint(-low / scale)
    return (np.clip(np.rint(np.float64(values) / scale) + zero, 0, codes) - zero) * scale


def squared_error(values: np.ndarray, low: float, high: float, bits: int = 8) -> float:
    """The mean squared error of a range."""
    return float(((values - quantized(values, low, high, bits)) ** 2).mean())


def least_squared_error(values: np.ndarray, bits: int = 8, candidates: int = 40) -> float:
    """The least error among ranges that cut up to 15/16 off either extreme."""
    shares = np.geomspace(1 / 16, 1, candidates)
    return min(
        squared_error(values, low * min(values.min(), 0), high * max(values.max(), 0), bits)
        for low in (shares if values.min() < 0 else [1.0])
        for high in (shares if values.max() > 0 else [1.0])
    )


def least_end(values: np.ndarray, bits: int) -> tuple[float, float]:
    """The range of positive values with the least error, among ends 1/256 of an octave apart."""
    ends = np.exp2(-np.arange(4 * 256) / 256) * values.max()
    errors = [squared_error(values, values.min(), end, bits) for end in ends]
    return float(values.min()), float(ends[np.argmin(errors)])


def percentile(values: np.ndarray, p: float) -> tuple[float, float]:
    """The outermost values that are not cut off."""
    return (
        float(np.quantile(values, 1 - p / 100, method="lower")),
        float(np.quantile(values, p / 100, method="higher")),
    )
