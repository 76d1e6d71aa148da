"""Low-rank decompositions in NumPy, float64, written from the papers; no code of the library."""

import itertools

import numpy as np
import scipy.optimize


def patches(x, window, *, strides, pads, dilation, groups):
    """Rows `[N * OH * OW, groups, taps * inputs]` of images `[N, H, W, C]`, one by one."""
    x = np.pad(np.asarray(x, np.float64), ((0, 0), *pads, (0, 0)))
    sizes = [(x.shape[i + 1] - (window[i] - 1) * dilation[i] - 1) // strides[i] + 1 for i in (0, 1)]
    inputs = x.shape[-1] // groups
    rows = []
    for n in range(x.shape[0]):
        for top in range(sizes[0]):
            for left in range(sizes[1]):
                taps = [
                    x[n, top * strides[0] + i * dilation[0], left * strides[1] + j * dilation[1]]
                    for i in range(window[0])
                    for j in range(window[1])
                ]
                rows.append(np.stack(taps).reshape(len(taps), groups, inputs).swapaxes(0, 1))
    return np.stack(rows).reshape(len(rows), groups, -1)


def truncated(matrix, rank):
    """The closest matrix of a rank: Eckart and Young (1936)."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


def variational_minimum(value, rows, columns):
    """Twice the free energy that one component adds, noise variance 1, at its best parameters.

    Nakajima et al. (2013): the posteriors of both sides are normal with means a, b and variances
    s, t, their priors have the variances c and d; all of them are minimised over, c = d without
    loss. A component that is switched off adds 0.
    """

    def energy(logs):
        a, b, s, t, c = np.exp(logs)
        left, right = a**2 + columns * s, b**2 + rows * t
        return (
            columns * np.log(c / s)
            + rows * np.log(c / t)
            - rows
            - columns
            + (left + right) / c
            - 2 * a * b * value
            + left * right
        )

    root = np.sqrt(value)
    scale = 1 / (value + 1)
    starts = [
        np.log([part * root, part * root, scale, scale, value / rows]) for part in (0.7, 0.95)
    ]
    found = [
        scipy.optimize.minimize(energy, start, method="Nelder-Mead",
                                options={"maxiter": 4000, "xatol": 1e-7, "fatol": 1e-9})
        for start in starts
    ]  # fmt: skip
    return min(result.fun for result in found)


def cheapest(scan, costs, limit):
    """The smallest sum of losses whose cost is within a part of the whole, by trying all."""
    options = []
    for path, (whole, cost) in costs.items():
        mine = [(0.0, whole)]
        for ranks, score in zip(scan.ranks[path], scan.scores[path], strict=True):
            mine.append((scan.whole - score, cost(ranks[0])))
        options.append(mine)
    most = limit * sum(whole for whole, _ in costs.values())
    sums = [
        sum(loss for loss, _ in chosen)
        for chosen in itertools.product(*options)
        if sum(cost for _, cost in chosen) <= most
    ]
    return min(sums)


def chain(down, window, up):
    """1x1, a depthwise window, 1x1 as one kernel `[H, W, I, O]`, product by product."""
    whole = np.zeros((*window.shape[:2], down.shape[2], up.shape[3]))
    for rank in range(down.shape[3]):
        taps = np.asarray(window, np.float64)[:, :, 0, rank]
        pair = np.outer(down[0, 0, :, rank], up[0, 0, rank])
        whole += taps[:, :, None, None] * pair
    return whole
