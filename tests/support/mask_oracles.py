"""Masks and schedules as the papers describe them, in NumPy and float64, by sorting.

A pattern is two labellings of the weights of a leaf: the unit each belongs to, in row-major order
of units, and for N:M the group it belongs to.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

Leaves = Mapping[str, np.ndarray]


class Pattern(NamedTuple):
    """A pattern.

    Attributes:
      units: `units(shape) -> int array` of that shape.
      groups: `groups(shape) -> int array` of that shape; units are single weights then.
      n: most weights kept in a group.
    """

    units: Callable[[tuple[int, ...]], np.ndarray] = lambda shape: np.arange(
        math.prod(shape)
    ).reshape(shape)
    groups: Callable[[tuple[int, ...]], np.ndarray] | None = None
    n: int = 0


def block(rows: int, columns: int) -> Pattern:
    """Blocks of the last two axes."""

    def units(shape: tuple[int, ...]) -> np.ndarray:
        place = np.indices(shape)
        down, across = shape[-2] // rows, shape[-1] // columns
        coarse = (*place[:-2], place[-2] // rows, place[-1] // columns)
        return np.ravel_multi_index(coarse, (*shape[:-2], down, across))

    return Pattern(units)


def channels(axis: int) -> Pattern:
    """Slices across one axis."""
    return Pattern(lambda shape: np.indices(shape)[axis])


def n_m(n: int, m: int, axis: int) -> Pattern:
    """At most n of m neighbours along an axis."""

    def groups(shape: tuple[int, ...]) -> np.ndarray:
        place = np.indices(shape)
        place[axis] //= m
        return np.ravel_multi_index(tuple(place), shape)

    return Pattern(groups=groups, n=n)


def means(values: np.ndarray, units: np.ndarray) -> np.ndarray:
    """The mean of each unit's values."""
    return np.bincount(units.ravel(), np.float64(values).ravel()) / np.bincount(units.ravel())


def _best(scores: np.ndarray, count: int) -> np.ndarray:
    """Marks the `count` largest scores, the first of equal ones first."""
    keep = np.zeros(scores.size, bool)
    keep[np.argsort(-scores, kind="stable")[:count]] = True
    return keep


def _fits(scores: np.ndarray, shape: tuple[int, ...], pattern: Pattern) -> np.ndarray:
    """Marks the units of a leaf that the pattern lets be kept."""
    if pattern.groups is None:
        return np.ones(scores.size, bool)
    groups, fits = pattern.groups(shape).ravel(), np.zeros(scores.size, bool)
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        fits[members[_best(scores[members], pattern.n)]] = True
    return fits


def _share(
    scores: Sequence[np.ndarray], shapes: Sequence[tuple[int, ...]], count: int, pattern: Pattern
) -> list[np.ndarray]:
    fits = np.concatenate(
        [_fits(score, shape, pattern) for score, shape in zip(scores, shapes, strict=True)]
    )
    flat = np.concatenate(scores)
    keep = np.zeros(flat.size, bool)
    keep[np.flatnonzero(fits)[_best(flat[fits], count)]] = True
    return np.split(keep, np.cumsum([score.size for score in scores])[:-1])


def choose(
    values: Leaves,
    shares: Sequence[tuple[Sequence[str], int]],
    pattern: Pattern = Pattern(),  # noqa: B008
    live: Leaves | None = None,
    fraction: float = 0.0,
    growth: Leaves | None = None,
) -> dict[str, np.ndarray]:
    """Masks with the highest scores kept; live units go first, and a fraction makes room.

    Args:
      values: scores.
      shares: paths that compete, and how many units they keep.
      pattern: the pattern.
      live: masks before; None: everything.
      fraction: part of the kept units that others replace.
      growth: scores of those that return.

    Returns:
      Masks of all leaves in `shares`.
    """
    masks: dict[str, np.ndarray] = {}
    for paths, count in shares:
        shapes = [values[path].shape for path in paths]
        labels = [pattern.units(shape) for shape in shapes]
        scores = [means(values[path], unit) for path, unit in zip(paths, labels, strict=True)]
        if live is not None:
            alive = [means(live[path], unit) > 0 for path, unit in zip(paths, labels, strict=True)]
            scores = [np.where(a, s, -np.inf) for a, s in zip(alive, scores, strict=True)]
        moved = round(fraction * count)
        keep = _share(scores, shapes, count - moved, pattern)
        if growth is not None:
            back = [means(growth[path], unit) for path, unit in zip(paths, labels, strict=True)]
            scores = [np.where(k, np.inf, b) for k, b in zip(keep, back, strict=True)]
            keep = _share(scores, shapes, count, pattern)
        for path, mask, unit in zip(paths, keep, labels, strict=True):
            masks[path] = mask[unit]
    return masks


def cosine(final: float, progress: float) -> float:
    """Half a cosine from 0 to `final`."""
    return final * (1 - math.cos(math.pi * progress)) / 2


def exponential(final: float, updates: int, of: int) -> float:
    """SynFlow, algorithm 1: a density of `rho ** (-k / n)` at a compression ratio rho."""
    ratio = 1 / (1 - final)
    return 1 - ratio ** (-updates / of)


def rounds(final: float, count: int) -> list[float]:
    """Sparsities of rounds that each prune the same fraction of what the one before left."""
    fraction = 1 - (1 - final) ** (1 / count)
    left, sparsities = 1.0, []
    for _ in range(count):
        left -= fraction * left
        sparsities.append(1 - left)
    return sparsities


def phases(begin: int, end: int, sparse: int, dense: int, steps: int) -> list[bool]:
    """Whether each step from 0 is in a sparse phase, told phase by phase."""
    plan = [False] * max(begin, 1)
    while len(plan) < end:
        plan += [True] * sparse + [False] * dense
    return (plan[:end] + [True] * steps)[:steps]
