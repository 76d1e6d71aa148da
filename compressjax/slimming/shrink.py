"""Cutting channels: the same function over smaller arrays.

`shrink` finds the channel groups of a function, ranks the channels of each, and takes the chosen
ones out of every variable that has them. Nothing of the model is rewritten: the smaller function is
an interpretation of the graph (`graph.narrow`). `pruning.prune` is the neighbour that leaves shapes
alone and zeroes weights.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from compressjax import graph as graphs
from compressjax import tree
from compressjax.graph.channels import Channels, Group, couple, frozen, groups
from compressjax.graph.narrow import narrow
from compressjax.graph.reorder import reorder
from compressjax.graph.units import Axes, kept_shape, take
from compressjax.slimming.importance import Importance, l1


@dataclasses.dataclass(frozen=True)
class Report:
    """What was cut, what could not be, and why.

    Attributes:
      groups: for each group, its channels before and after.
      frozen: for each variable axis that had to stay (`params/Dense_1/kernel[1]`), the reason.
      notes: what tracing left whole, in sentences.
    """

    groups: Mapping[str, tuple[int, int]]
    frozen: Mapping[str, str]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{name}: {old} -> {new} channels" for name, (old, new) in self.groups.items()]
        lines += [f"{place} stays: {why}" for place, why in self.frozen.items()]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


@dataclasses.dataclass(frozen=True)
class Shrunk:
    """A function with fewer channels.

    Attributes:
      apply: `apply(variables, *args)`, the function over the smaller variables, at any batch size.
      variables: the tree that was given, with smaller arrays.
      kept: for each group, the positions that were kept along the axis that names it; plain
        integers, to be stored as JSON and passed to `shrink` again.
      transform: `transform(fn2)`, the same cut of another function of the same variables (training
        mode, another head); its outputs may come out narrower.
      report: what was cut, what could not be, and why.
    """

    apply: Callable[..., Any]
    variables: Any
    kept: dict[str, list[int]]
    transform: Callable[[Callable[..., Any]], Callable[..., Any]]
    report: Report


def shrink(
    fn: Callable[..., Any],
    variables: Any,
    *args: Any,
    ratio: float | Mapping[str, float] = 0.5,
    importance: Importance | None = None,
    round_to: int = 8,
    protect: str | Iterable[str] = (),
    kept: Mapping[str, Sequence[int]] | None = None,
) -> Shrunk:
    """Takes the least important channels out of a function.

    The result equals `fn` with every convolution and matrix product that reads a cut channel
    leaving it out of its sum (as if its kernel were zero there). Channels that cannot be cut
    without changing anything else stay, and the report says why. Filter pruning is that of Li et
    al., "Pruning Filters for Efficient ConvNets" (2017); cutting coupled layers together, that of
    Fang et al., "DepGraph: Towards Any Structural Pruning" (2023).

    All outputs of `fn` keep their shapes, so give the function for inference: one that also returns
    new running statistics would hold every width. `transform` then cuts the training function.
    Derivatives are those of what `fn` computes: a `jax.custom_vjp` is opened, since its rule knows
    only the full shapes.

    Args:
      fn: a pure function, called as `fn(variables, *args)`; from any framework.
      variables: pytree of arrays.
      *args: example inputs, or `jax.ShapeDtypeStruct`s; their batch size does not matter.
      ratio: the part of the channels to cut of each group, in `[0, 1)`; or a mapping from globs
        over group names and the paths of the variables that make the channels to ratios: the first
        that matches counts, and a group that none matches stays.
      importance: scores of channels, `slimming.l1()` unless given.
      round_to: what is kept of a group is a multiple of this many channels: at least one multiple,
        or the whole group if it is no larger.
      protect: globs over paths of variables which must keep their shapes.
      kept: cut these instead of ranking: the `kept` of an earlier result, for a fresh checkpoint of
        the same model (`ratio`, `importance` and `round_to` then do not matter).

    Returns:
      The smaller function and its variables.

    Raises:
      ValueError: if an argument is out of range, a glob matches nothing, scores are not finite, or
        `kept` does not fit the function's groups.

    Example:
      >>> fn = lambda v, x: jax.nn.relu(x @ v['a']) @ v['b']
      >>> variables = {'a': np.array([[1., 5., 2., 4.]]), 'b': np.ones((4, 3))}
      >>> shrunk = shrink(fn, variables, np.ones((1, 1)), round_to=1)
      >>> shrunk.kept, shrunk.variables['b'].shape
      ({'a': [1, 3]}, (2, 3))
      >>> shrunk.apply(shrunk.variables, np.ones((1, 1))).tolist()
      [[9.0, 9.0, 9.0]]
    """
    _check(ratio, round_to)
    shapes = graphs.template((variables, args))
    graph = reorder(graphs.trace(fn, shapes[0], *shapes[1], keep_custom=False))
    protected = tree.match(protect, graph.variables, what="protect")
    channels = couple(graph, {path: (_all(graph, path), "protected") for path in protected})
    found = {group.name: group for group in groups(graph, channels)}
    if kept is None:
        ratios = _ratios(ratio, found.values())
        leaves = tree.paths(variables)
        score = importance or l1()
        scores = {name: _scores(group, leaves, score) for name, group in found.items()}
        choice = _choose(channels, found, ratios, scores, round_to)
    else:
        choice = _chosen(found, kept)
    keep = _masks(graph, found, choice)
    return Shrunk(
        apply=_narrowed(fn, keep),
        variables=tree.map_with_path(
            lambda path, leaf: _cut(leaf, keep[path]) if path in keep else leaf, variables
        ),
        kept={name: _positions(group, choice[name]) for name, group in found.items()},
        transform=lambda other: _narrowed(other, keep),
        report=Report(
            {name: (group.size, int(choice[name].sum())) for name, group in found.items()},
            frozen(graph, channels),
            graph.notes,
        ),
    )


def _check(ratio: float | Mapping[str, float], round_to: int) -> None:
    for where, value in ratio.items() if isinstance(ratio, Mapping) else (("all", ratio),):
        if not 0 <= value < 1:
            raise ValueError(
                f"ratio for {where!r} is {value}, expected a number in [0, 1): the part of the "
                "channels to cut; at 1 nothing would be left"
            )
    if round_to < 1:
        raise ValueError(f"round_to is {round_to}, expected 1 (any number of channels) or more")


def _all(graph: graphs.Graph, path: str) -> Axes:
    return tuple(np.ones(size, bool) for size in graph.variables[path].shape)


def _ratios(ratio: float | Mapping[str, float], found: Iterable[Group]) -> dict[str, float]:
    """The ratio of each group; a mapping's globs are matched with the variables that make it."""
    makers = {g.name: [g.name, *(m.path for m in g.members if m.makes)] for g in found}
    if not isinstance(ratio, Mapping):
        return dict.fromkeys(makers, ratio)
    paths = list(dict.fromkeys(path for group in makers.values() for path in group))
    matched = [(set(tree.match(glob, paths, what="ratio")), part) for glob, part in ratio.items()]
    return {
        name: next((part for chosen, part in matched if chosen.intersection(group)), 0.0)
        for name, group in makers.items()
    }


def _scores(group: Group, leaves: Mapping[str, Any], importance: Importance) -> np.ndarray:
    scores = importance(group, leaves)
    if scores.shape != (group.size,) or not np.isfinite(scores).all():
        raise ValueError(
            f"importance of group {group.name!r}: expected {group.size} finite scores, found shape "
            f"{scores.shape} with {np.isfinite(scores).sum()} finite; check the variables "
            f"{', '.join(member.path for member in group.members[:4])} for NaN or infinity"
        )
    return scores


def _best(scores: np.ndarray, number: int) -> np.ndarray:
    chosen = np.zeros(len(scores), bool)
    chosen[np.argsort(-scores, kind="stable")[:number]] = True
    return chosen


def _choose(
    channels: Channels,
    found: Mapping[str, Group],
    ratios: Mapping[str, float],
    scores: Mapping[str, np.ndarray],
    round_to: int,
) -> dict[str, np.ndarray]:
    """Which channels of each group are kept, `[size]` booleans."""
    choice, owner = {}, {}
    cut = np.zeros(len(channels.units), bool)
    steps = {name: round_to // math.gcd(round_to, group.width) for name, group in found.items()}
    for name, group in found.items():
        number = math.floor((1 - ratios[name]) * group.size / steps[name] + 0.5) * steps[name]
        number = min(max(number, steps[name]), group.size) if ratios[name] else group.size
        choice[name] = _best(scores[name], number)
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


def _chosen(found: Mapping[str, Group], kept: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """Reads the `kept` of an earlier result; what it says has to fit the groups."""
    if unknown := [name for name in kept if name not in found]:
        raise ValueError(
            f"kept names {unknown[0]!r}, which is no group of this function; its groups are "
            f"{', '.join(list(found)[:8])}"
        )
    choice = {}
    for name, group in found.items():
        channel = group.members[0].channel
        places = np.asarray(kept.get(name, np.flatnonzero(channel >= 0)), int)
        inside = (places >= 0) & (places < len(channel))
        if not places.size or not inside.all() or (channel[places] < 0).any():
            raise ValueError(
                f"kept of group {name!r} is {places.tolist()[:8]}: expected at least one position, "
                f"each of them one of the group's along {group.members[0].path}"
                f"[{group.members[0].axis}], which has {len(channel)}"
            )
        choice[name] = np.zeros(group.size, bool)
        choice[name][channel[places]] = True
        if len(places) != len(_positions(group, choice[name])):
            raise ValueError(
                f"kept of group {name!r} splits positions that are tied together; keep all of "
                f"{_positions(group, choice[name])[:16]}"
            )
    return choice


def _positions(group: Group, chosen: np.ndarray) -> list[int]:
    """The kept positions along the axis that names a group."""
    channel = group.members[0].channel
    return np.flatnonzero((channel >= 0) & chosen[channel]).tolist()


def _masks(
    graph: graphs.Graph, found: Mapping[str, Group], choice: Mapping[str, np.ndarray]
) -> dict[str, Axes]:
    """Keep masks by axis, for the variables that are cut."""
    masks: dict[str, Axes] = {}
    for name, group in found.items():
        if choice[name].all():
            continue
        for member in group.members:
            mine = member.channel >= 0
            axes = masks.setdefault(member.path, _all(graph, member.path))
            axes[member.axis][mine] = choice[name][member.channel[mine]]
    return masks


def _cut(leaf: Any, masks: Axes) -> Any:
    """The kept positions of a variable; on one device nothing is compiled for it."""
    if isinstance(leaf, jax.core.Tracer) or not isinstance(leaf, jax.Array):
        return take(leaf, masks)
    if len(leaf.sharding.device_set) > 1:
        return take(leaf, masks)
    return jax.device_put(take(np.asarray(leaf), masks), leaf.sharding)


def _narrowed(fn: Callable[..., Any], keep: Mapping[str, Axes]) -> Callable[..., Any]:
    """A function over smaller variables; what it is at each shape is worked out once."""
    prepared = graphs.Retrace(fn, lambda graph: narrow(graph, keep), keep_custom=False)

    def apply(variables: Any, *args: Any) -> Any:
        return prepared(_widened(variables, keep), *args)(variables, *args)

    return apply


def _widened(variables: Any, keep: Mapping[str, Axes]) -> Any:
    """The shapes that variables had before they were cut."""
    found = tree.paths(variables)
    if missing := [path for path in keep if path not in found]:
        raise ValueError(f"variables do not fit: missing {', '.join(missing[:4])}")

    def widen(path: str, leaf: Any) -> jax.ShapeDtypeStruct:
        shape = np.shape(leaf)
        if path in keep:
            expected = kept_shape(keep[path])
            if shape != expected:
                raise ValueError(
                    f"variables do not fit: {path} has shape {shape}, expected {expected}; give "
                    "the variables of the shrunk function, not the original ones"
                )
            shape = tuple(map(len, keep[path]))
        return jax.ShapeDtypeStruct(shape, jax.dtypes.result_type(leaf))

    return tree.map_with_path(widen, variables)
