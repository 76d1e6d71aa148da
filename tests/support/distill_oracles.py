"""Distillation losses in NumPy, float64, one loop for each sum in the papers' equations."""

import itertools
from typing import Any

import numpy as np

Array = np.ndarray


def _softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def _kl(p: Array, q: Array) -> float:
    return float(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True)))


def _cosine(a: Array, b: Array) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def logits_regression(student: Array, teacher: Array) -> Array:
    """Ba and Caruana (2014)."""
    s, t = np.float64(student), np.float64(teacher)
    return np.array([0.5 * np.linalg.norm(a - b) ** 2 for a, b in zip(s, t, strict=True)])


def decoupled(
    student: Array, teacher: Array, labels: Array, temperature: float, alpha: float, beta: float
) -> Array:
    """Zhao et al. (2022)."""
    losses = []
    for z, v, y in zip(np.float64(student), np.float64(teacher), labels, strict=True):
        q, p = _softmax(z / temperature), _softmax(v / temperature)
        target = _kl(np.array([p[y], 1 - p[y]]), np.array([q[y], 1 - q[y]]))
        others_p, others_q = np.delete(p, y) / (1 - p[y]), np.delete(q, y) / (1 - q[y])
        losses.append(temperature**2 * (alpha * target + beta * _kl(others_p, others_q)))
    return np.array(losses)


def virtual_teacher(labels: Array, num_classes: int, correct: float) -> Array:
    """Yuan et al. (2020)."""
    p = np.full((len(labels), num_classes), (1 - np.float64(correct)) / (num_classes - 1))
    p[np.arange(len(labels)), labels] = correct
    return np.log(p)


def hint(student: Array, teacher: Array) -> Array:
    """Romero et al. (2015), a feature's share."""
    difference = (np.float64(student) - np.float64(teacher)).reshape(len(student), -1)
    return np.array([0.5 * (row @ row) / row.size for row in difference])


def attention_transfer(student: Array, teacher: Array, power: float) -> Array:
    """Zagoruyko and Komodakis (2017)."""

    def unit(x: Array) -> Array:
        total = sum(np.abs(x[..., c]) ** power for c in range(x.shape[-1])).ravel()
        return total / np.linalg.norm(total)

    pairs = zip(np.float64(student), np.float64(teacher), strict=True)
    return np.array([np.mean((unit(s) - unit(t)) ** 2) for s, t in pairs])


def _channels(x: Array) -> list[Array]:
    maps = [x[..., c].ravel() for c in range(x.shape[-1])]
    return [m / np.linalg.norm(m) for m in maps]


def neuron_selectivity(student: Array, teacher: Array, kernel: str) -> Array:
    """Huang and Wang (2017)."""
    losses = []
    for s, t in zip(np.float64(student), np.float64(teacher), strict=True):
        ss, ts = _channels(s), _channels(t)
        distances = [np.sum((a - b) ** 2) for a, b in itertools.product(ts, ss)]
        variance = np.mean(distances)

        def k(a: Array, b: Array, variance: float = variance) -> float:
            if kernel == "linear":
                return float(a @ b)
            if kernel == "polynomial":
                return float(a @ b) ** 2
            return float(np.exp(-np.sum((a - b) ** 2) / (2 * variance)))

        def mean(one: list[Array], other: list[Array], k: Any = k) -> float:
            return sum(k(a, b) for a in one for b in other) / (len(one) * len(other))

        losses.append(mean(ts, ts) + mean(ss, ss) - 2 * mean(ss, ts))
    return np.array(losses)


def similarity(student: Array, teacher: Array) -> float:
    """Tung and Mori (2019), of the whole batch."""
    grams = []
    for x in (student, teacher):
        flat = np.float64(x).reshape(len(x), -1)
        gram = flat @ flat.T
        grams.append(gram / np.linalg.norm(gram, axis=1, keepdims=True))
    return float(np.linalg.norm(grams[0] - grams[1]) ** 2 / len(student) ** 2)


def _huber(x: float) -> float:
    return 0.5 * x * x if abs(x) <= 1 else abs(x) - 0.5


def relational_distance(student: Array, teacher: Array) -> float:
    """Park et al. (2019), of the whole batch."""
    potentials = []
    pairs = list(itertools.permutations(range(len(student)), 2))
    for x in (student, teacher):
        flat = np.float64(x).reshape(len(x), -1)
        lengths = np.array([np.linalg.norm(flat[i] - flat[j]) for i, j in pairs])
        potentials.append(lengths / lengths.mean())
    return float(np.mean([_huber(a - b) for a, b in zip(*potentials, strict=True)]))


def relational_angle(student: Array, teacher: Array) -> float:
    """Park et al. (2019), of the whole batch."""
    flat = [np.float64(x).reshape(len(x), -1) for x in (student, teacher)]
    losses = [
        _huber(_cosine(s[i] - s[j], s[k] - s[j]) - _cosine(t[i] - t[j], t[k] - t[j]))
        for s, t in [flat]
        for i, j, k in itertools.permutations(range(len(student)), 3)
    ]
    return float(np.mean(losses))


def contrastive(
    student: Array,
    teacher: Array,
    bank: tuple[Array, Array],
    drawn: Array,
    temperature: float,
) -> Array:
    """Tian et al. (2020): the critic and its objective, in both directions."""
    total, count = len(bank[0]), drawn.shape[1]

    def critic(a: Array, b: Array) -> float:
        e = np.exp(np.float64(a) @ np.float64(b) / temperature)
        return float(e / (e + count / total))

    return np.array(
        [
            -2 * np.log(critic(s, t))
            - sum(np.log(1 - critic(s, bank[1][j])) for j in rows)
            - sum(np.log(1 - critic(t, bank[0][j])) for j in rows)
            for s, t, rows in zip(student, teacher, drawn, strict=True)
        ]
    )


def ensemble(logits: Array, weights: Array, temperature: float) -> Array:
    """Hinton et al. (2015): the mean of softened probabilities, as probabilities at T."""
    shares = np.float64(weights) / np.sum(weights, dtype=np.float64)
    softened = [[_softmax(row / temperature) for row in np.float64(teacher)] for teacher in logits]
    return np.tensordot(shares, np.array(softened), 1)


def mutual(logits: Array, labels: Array, temperature: float) -> Array:
    """Zhang et al. (2018)."""
    logits = np.float64(logits)
    losses = np.zeros(logits.shape[:2])
    for k, b in np.ndindex(*losses.shape):
        losses[k, b] = -np.log(_softmax(logits[k, b])[labels[b]])
        for other in range(len(logits)):
            if other != k:
                p, q = (_softmax(logits[i, b] / temperature) for i in (other, k))
                losses[k, b] += temperature**2 * _kl(p, q) / (len(logits) - 1)
    return losses
