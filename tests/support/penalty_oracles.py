"""Penalties on channels in float64 NumPy, written from their papers, one channel at a time.

A channel is a list of slices, `(path, axis, position)`: all weights of that variable at that
position. Parameters are dictionaries from path to array.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

Params = dict[str, np.ndarray]
Channel = Sequence[tuple[str, int, int]]


def channels(
    sizes: Sequence[int], members: Mapping[tuple[str, int], Sequence[tuple[int, int]]]
) -> list[list[Channel]]:
    """Lists the slices of every channel of every group.

    Args:
      sizes: channels of each group.
      members: for each variable and axis, for each position the group and its channel there, or
        (-1, -1).

    Returns:
      For each group, for each channel its slices.
    """
    found: list[list[list[tuple[str, int, int]]]] = [[[] for _ in range(n)] for n in sizes]
    for (path, axis), places in members.items():
        for position, (group, channel) in enumerate(places):
            if group >= 0:
                found[group][channel].append((path, axis, position))
    return found


def weights(params: Params, channel: Channel) -> np.ndarray:
    """Gathers the weights of a channel, `[N]` float64."""
    slices = [np.take(np.float64(params[path]), i, axis).ravel() for path, axis, i in channel]
    return np.concatenate(slices)


def group_lasso(params: Params, groups: Sequence[Sequence[Channel]], strength: float) -> float:
    """Wen et al. 2016, equations 3 to 5, weighted as Yuan and Lin 2006, equation 2.1, weight it."""
    total = 0.0
    for channel in itertools.chain(*groups):
        w = weights(params, channel)
        total += strength * math.sqrt(w.size) * math.sqrt((w**2).sum())
    return total


def l1(params: Params, paths: Sequence[str], strength: float) -> float:
    """Liu et al. 2017, equation 1."""
    return strength * sum(np.abs(np.float64(params[path])).sum() for path in paths)


def squares(
    params: Params, groups: Sequence[Sequence[Channel]], factors: Sequence[Sequence[float]]
) -> float:
    """The sum of squares of each channel's weights, times a factor of its own."""
    total = 0.0
    for channel, factor in zip(itertools.chain(*groups), itertools.chain(*factors), strict=True):
        total += factor * (weights(params, channel) ** 2).sum()
    return total


def growing_factors(
    groups: Sequence[Sequence[Channel]],
    kept: Sequence[set[int]],
    step: int,
    *,
    delta: float,
    every: int,
    ceiling: float,
    ordinary: float,
) -> list[list[float]]:
    """Half the factors of Wang et al. 2021, section 3.1: one `delta` more each `every` steps."""
    factor = 0.0
    for i in range(step + 1):
        if i % every == 0:
            factor = min(factor + delta, ceiling)
    return [
        [(ordinary if k in stays else factor) / 2 for k in range(len(group))]
        for group, stays in zip(groups, kept, strict=True)
    ]


def importance_factors(
    params: Params, groups: Sequence[Sequence[Channel]], *, strength: float, alpha: float
) -> list[list[float]]:
    """Fang et al. 2023, section 3.3: from 1 for the largest channel to `2^alpha`."""
    factors = []
    for group in groups:
        scores = [(weights(params, channel) ** 2).sum() for channel in group]
        most, least = max(scores), min(scores)
        span = (most - least) or 1.0
        factors.append([strength * 2 ** (alpha * (most - score) / span) for score in scores])
    return factors


def derivative(penalty: Callable[[Params], float], params: Params, width: float = 1e-6) -> Params:
    """Differentiates a penalty by central differences, one weight at a time."""
    start = {path: np.float64(leaf) for path, leaf in params.items()}
    found = {path: np.zeros(leaf.shape) for path, leaf in start.items()}
    for path, leaf in start.items():
        for index in np.ndindex(leaf.shape):
            ends = []
            for side in (width, -width):
                moved = leaf.copy()
                moved[index] += side
                ends.append(penalty({**start, path: moved}))
            found[path][index] = (ends[0] - ends[1]) / (2 * width)
    return found


def lasso_gradient(params: Params, groups: Sequence[Sequence[Channel]], strength: float) -> Params:
    """The subgradient of `group_lasso`: each weight over its channel's norm, 0 at 0."""
    found = {path: np.zeros(leaf.shape) for path, leaf in params.items()}
    for channel in itertools.chain(*groups):
        w = weights(params, channel)
        norm = math.sqrt((w**2).sum())
        if norm:
            _add(found, params, channel, strength * math.sqrt(w.size) / norm)
    return found


def squares_gradient(
    params: Params, groups: Sequence[Sequence[Channel]], factors: Sequence[Sequence[float]]
) -> Params:
    """The derivative of `squares`, factors being constants."""
    found = {path: np.zeros(leaf.shape) for path, leaf in params.items()}
    for channel, factor in zip(itertools.chain(*groups), itertools.chain(*factors), strict=True):
        _add(found, params, channel, 2 * factor)
    return found


def proximal_l1(params: Params, paths: Sequence[str], threshold: float) -> Params:
    """Soft thresholds, as in Ye et al. 2018, section 4."""
    found = {path: np.float64(leaf) for path, leaf in params.items()}
    for path in paths:
        for index, value in np.ndenumerate(found[path].copy()):
            found[path][index] = math.copysign(max(abs(value) - threshold, 0.0), value)
    return found


def proximal_lasso(params: Params, groups: Sequence[Sequence[Channel]], threshold: float) -> Params:
    """Shrinks each channel as a whole, as in Alvarez and Salzmann 2016, section 3."""
    found = {path: np.float64(leaf).copy() for path, leaf in params.items()}
    for channel in itertools.chain(*groups):
        w = weights(params, channel)
        norm = math.sqrt((w**2).sum())
        left = max(0.0, 1 - threshold * math.sqrt(w.size) / norm) if norm else 0.0
        for path, axis, i in channel:
            np.moveaxis(found[path], axis, 0)[i] *= left
    return found


def _add(found: Params, params: Params, channel: Channel, factor: float) -> None:
    for path, axis, i in channel:
        np.moveaxis(found[path], axis, 0)[i] += factor * np.take(params[path], i, axis)
