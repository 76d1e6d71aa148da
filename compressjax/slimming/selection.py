"""How many channels each group keeps, and which.

An importance scores the channels of a group; a ranking says how the groups share a cut between
them; `choose` rounds, keeps every layer alive, and takes the best channels. `targets` is the
neighbour that finds the cut for a cost.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from compressjax.graph.channels import Channels, Group

Normalise = Callable[[np.ndarray], np.ndarray]


class Ranking(NamedTuple):
    """How groups share a cut.

    Attributes:
      wanted: `wanted(scores, ratios) -> numbers`: from the scores `[C]` of each group and the ratio
        that is asked for it, the number of channels it should keep, not rounded yet; all by name.
    """

    wanted: Callable[[Mapping[str, np.ndarray], Mapping[str, float]], Mapping[str, float]]


def per_group() -> Ranking:
    """Cuts the same part of every group.

    Li et al., "Pruning Filters for Efficient ConvNets" (2017), section 3: ratios by layer.

    Returns:
      The ranking.

    Example:
      >>> per_group().wanted({'a': np.arange(4.0), 'b': np.arange(2.0)}, {'a': 0.5, 'b': 0.0})
      {'a': 2.0, 'b': 2.0}
    """
    return Ranking(
        lambda scores, ratios: {name: (1 - ratios[name]) * len(x) for name, x in scores.items()}
    )


def global_(normalise: Normalise = np.asarray) -> Ranking:
    """Cuts the lowest scores of all groups together, so that groups lose different parts.

    Liu et al., "Learning Efficient Convolutional Networks through Network Slimming" (2017),
    section 3: one threshold for the whole network. Groups with the same ratio are ranked together,
    and a group with ratio 0 stays.

    Args:
      normalise: `[C] -> [C]`, makes the scores of a group comparable with those of others, such as
        `slimming.mean_normalised`; as they are unless given, which suits the scales of batch norm.

    Returns:
      The ranking.

    Example:
      >>> scores = {'a': np.array([5.0, 6.0]), 'b': np.array([1.0, 7.0])}
      >>> global_().wanted(scores, {'a': 0.25, 'b': 0.25})
      {'a': 2.0, 'b': 1.0}
    """

    def wanted(
        scores: Mapping[str, np.ndarray], ratios: Mapping[str, float]
    ) -> Mapping[str, float]:
        numbers = {name: float(len(x)) for name, x in scores.items()}
        for ratio in sorted({ratio for ratio in ratios.values() if ratio}):
            pool = {name: normalise(x) for name, x in scores.items() if ratios[name] == ratio}
            sizes = [len(x) for x in pool.values()]
            goes = np.zeros(sum(sizes), bool)
            order = np.argsort(np.concatenate(list(pool.values())), kind="stable")
            goes[order[: round(ratio * len(goes))]] = True
            parts = np.split(goes, np.cumsum(sizes)[:-1])
            numbers.update({n: float(np.sum(~p)) for n, p in zip(pool, parts, strict=True)})
        return numbers

    return Ranking(wanted)


def choose(
    channels: Channels,
    found: Mapping[str, Group],
    scores: Mapping[str, np.ndarray],
    wanted: Mapping[str, float],
    round_to: int,
) -> dict[str, np.ndarray]:
    """Chooses which channels of each group are kept.

    Args:
      channels: the ties of the graph.
      found: its groups by name.
      scores: of each group, `[C]`.
      wanted: how many channels each group should keep.
      round_to: what is kept is a multiple of this many positions, at least one multiple; or the
        whole group.

    Returns:
      For each group, `[C]` booleans, True = kept. No axis of any value becomes empty.

    Example:
      >>> from compressjax.graph import trace
      >>> from compressjax.graph.channels import couple, groups
      >>> fn = lambda v, x: (x @ v['a']) @ v['b']
      >>> variables = {'a': np.ones((4, 3), 'f'), 'b': np.ones((3, 2), 'f')}
      >>> graph = trace(fn, variables, np.ones((1, 4), 'f'))
      >>> channels = couple(graph, {})
      >>> found = {group.name: group for group in groups(graph, channels)}
      >>> choose(channels, found, {'a': np.array([3.0, 1.0, 2.0])}, {'a': 1.6}, 1)
      {'a': array([ True, False,  True])}
    """
    choice, owner = {}, {}
    cut = np.zeros(len(channels.units), bool)
    reading = np.zeros(len(channels.units), bool)
    for _, read in channels.reads:
        reading[read] = True
    steps = {name: round_to // math.gcd(round_to, group.width) for name, group in found.items()}
    for name in sorted(found, key=lambda name: bool(reading[found[name].units].any())):
        group = found[name]
        for there, read in channels.reads:
            cut[read[cut[there]]] = True
        left = ~cut[group.units]
        number = math.floor(wanted[name] / steps[name] + 0.5) * steps[name]
        number = max(number, steps[name]) if wanted[name] < group.size else group.size
        choice[name] = _best(np.where(left, scores[name], -np.inf), min(number, int(left.sum())))
        cut[group.units[~choice[name]]] = True
        owner.update({unit: (name, i) for i, unit in enumerate(group.units.tolist())})
    for axis in (axis for axes in channels.axes.values() for axis in axes if len(axis)):
        if cut[axis].all():  # such as one half of a split: a part of a group lost all it had
            name = owner[int(axis[0])][0]
            part = np.isin(found[name].units, axis)
            back = part & _best(np.where(part, scores[name], -np.inf), steps[name])
            choice[name] |= back
            cut[found[name].units[back]] = False
    return choice


def _best(scores: np.ndarray, number: int) -> np.ndarray:
    chosen = np.zeros(len(scores), bool)
    chosen[np.argsort(-scores, kind="stable")[:number]] = True
    return chosen
