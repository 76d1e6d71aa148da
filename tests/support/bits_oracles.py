"""Sensitivities of a two-layer network in NumPy, float64, written from the papers' formulas.

The network is `tanh(x @ first) @ second`; each kernel in turn is put on symmetric integers with one
scale for each output channel.
"""

from collections.abc import Callable

import numpy as np

from tests.support.grid_oracles import by_channel, symmetric

Kernels = dict[str, np.ndarray]


def logits(kernels: Kernels, x: np.ndarray) -> np.ndarray:
    return np.tanh(np.float64(x) @ kernels["first"]) @ kernels["second"]


def log_softmax(z: np.ndarray) -> np.ndarray:
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def cross_entropy(kernels: Kernels, x: np.ndarray, labels: np.ndarray) -> float:
    return -log_softmax(logits(kernels, x))[np.arange(len(labels)), labels].mean()


def quantized(kernel: np.ndarray, bits: int) -> np.ndarray:
    return by_channel(symmetric(bits))(np.float64(kernel))


def second_derivatives(
    loss: Callable[[Kernels], float], kernels: Kernels, name: str, step: float = 1e-3
) -> np.ndarray:
    """The diagonal of one layer's block of the Hessian, by central differences of the loss."""
    found = np.empty(kernels[name].size)
    for i in range(found.size):
        values = []
        for sign in (1, 0, -1):
            moved = np.float64(kernels[name]).copy()
            moved.flat[i] += sign * step
            values.append(loss({**kernels, name: moved}))
        found[i] = (values[0] - 2 * values[1] + values[2]) / step**2
    return found


def each(
    kernels: Kernels, widths: tuple[int, ...], score: Callable[[np.ndarray, Kernels], float]
) -> dict[str, dict[int, float]]:
    return {
        name: {bits: score(kernel, {**kernels, name: quantized(kernel, bits)}) for bits in widths}
        for name, kernel in kernels.items()
    }


def divergence(kernels: Kernels, x: np.ndarray, widths: tuple[int, ...]) -> dict:
    log_p = log_softmax(logits(kernels, x))

    def score(kernel: np.ndarray, changed: Kernels) -> float:
        log_q = log_softmax(logits(changed, x))
        return (np.exp(log_p) * (log_p - log_q)).sum(-1).mean()

    return each(kernels, widths, score)


def accuracy_lost(
    kernels: Kernels, x: np.ndarray, labels: np.ndarray, widths: tuple[int, ...]
) -> dict:
    def accuracy(kernels: Kernels) -> float:
        return np.mean(logits(kernels, x).argmax(-1) == labels)

    return each(kernels, widths, lambda kernel, changed: accuracy(kernels) - accuracy(changed))
