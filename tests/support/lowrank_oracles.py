"""Low-rank decompositions in NumPy, float64, written from the papers; no code of the library."""

import numpy as np


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
