"""Cutting channels: the same function over smaller arrays.

`shrink` finds the channel groups of a function, ranks the channels of each, and takes the chosen
ones out of every variable that has them. Nothing of the model is rewritten: the smaller function is
an interpretation of the graph (`graph.narrow`). `pruning.prune` is the neighbour that leaves shapes
alone and zeroes weights.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from compressjax import graph as graphs
from compressjax import tree
from compressjax.graph.channels import Group, frozen
from compressjax.slimming import cutting, targets
from compressjax.slimming.finding import Found, find
from compressjax.slimming.importance import Importance, l1
from compressjax.slimming.kept import channels, positions
from compressjax.slimming.selection import Ranking, choose, per_group


@dataclasses.dataclass(frozen=True)
class Report:
    """What was cut, what could not be, and why.

    Attributes:
      groups: for each group, its channels before and after.
      gathers: for each norm that reads only some channels of a residual stream, by the path of its
        scale, how many there are, how many it reads, and how many values are copied for that in one
        call at the example inputs' shapes.
      frozen: for each variable axis that had to stay (`params/Dense_1/kernel[1]`), the reason.
      notes: what tracing left whole, in sentences.
    """

    groups: Mapping[str, tuple[int, int]]
    gathers: Mapping[str, tuple[int, int, int]]
    frozen: Mapping[str, str]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{name}: {old} -> {new} channels" for name, (old, new) in self.groups.items()]
        lines += [
            f"{name} reads {some} of {all_} channels: a gather of {values:,} values"
            for name, (all_, some, values) in self.gathers.items()
        ]
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
      cut: `cut(variables)`, the same cut of other variables of the same shapes, such as a moving
        average; it raises ValueError if they do not fit.
      masked: `masked(variables)`, with zeros where they are cut and the shapes they had:
        `fn(masked(variables), *args)` equals `apply(cut(variables), *args)`.
      cut_state: `cut_state(opt_state)`, the same cut of the state of an optimizer of the collection
        `params`, or of all variables where there is no such collection; it raises ValueError where
        a state cannot be cut.
      report: what was cut, what could not be, and why.
    """

    apply: Callable[..., Any]
    variables: Any
    kept: dict[str, list[int]]
    transform: Callable[[Callable[..., Any]], Callable[..., Any]]
    cut: Callable[[Any], Any]
    masked: Callable[[Any], Any]
    cut_state: Callable[[Any], Any]
    report: Report


def shrink(
    fn: Callable[..., Any],
    variables: Any,
    *args: Any,
    ratio: float | Mapping[str, float] | None = None,
    target: targets.Target | None = None,
    importance: Importance | None = None,
    ranking: Ranking | None = None,
    round_to: int = 8,
    protect: str | Iterable[str] = (),
    gather: bool = False,
    kept: Mapping[str, Sequence[int]] | None = None,
) -> Shrunk:
    """Takes the least important channels out of a function.

    The result equals `fn` over variables that are zero at all positions that were cut: in the
    kernels that make a channel, in its norms, and in the kernels that read it. Channels that cannot
    be cut without changing anything else stay, and the report says why. Filter pruning is that of
    Li et al., "Pruning Filters for Efficient ConvNets" (2017); cutting coupled layers together,
    that of Fang et al., "DepGraph: Towards Any Structural Pruning" (2023).

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
        that matches counts, and a group that none matches stays. 0.5 unless given.
      target: cut as little as reaches this cost, such as `slimming.macs(0.5)`. A mapping as `ratio`
        then says in which proportions groups are cut, and its ratios are not passed.
      importance: scores of channels, `slimming.l1()` unless given.
      ranking: whether every group loses its ratio (`slimming.per_group()`, unless given) or the
        lowest scores of all of them go (`slimming.global_()`).
      round_to: what is kept of a group is a multiple of this many channels: at least one multiple,
        or the whole group if it is no larger.
      protect: globs over paths of variables which must keep their shapes.
      gather: whether a norm that reads a residual stream (in pre-activation networks) may be cut
        apart from the stream. Where it then reads fewer channels than the stream has, they are
        gathered in front of it, which copies values on every call: the report says how many. What
        is cut alike needs no gather.
      kept: cut these instead of ranking: the `kept` of an earlier result, for a fresh checkpoint of
        the same model and the same `gather` (`ratio`, `target`, `importance`, `ranking` and
        `round_to` then do not matter).

    Returns:
      The smaller function and its variables.

    Raises:
      ValueError: if an argument is out of range, a glob matches nothing, scores are not finite, the
        target cannot be reached, a shape is not known, or `kept` does not fit the function's
        groups.

    Example:
      >>> import jax
      >>> fn = lambda v, x: jax.nn.relu(x @ v['a']) @ v['b']
      >>> variables = {'a': np.array([[1., 5., 2., 4.]]), 'b': np.ones((4, 3))}
      >>> shrunk = shrink(fn, variables, np.ones((1, 1)), round_to=1)
      >>> shrunk.kept, shrunk.variables['b'].shape
      ({'a': [1, 3]}, (2, 3))
      >>> shrunk.apply(shrunk.variables, np.ones((1, 1))).tolist()
      [[9.0, 9.0, 9.0]]
    """
    _check(ratio, round_to)
    found = find(fn, variables, args, protect, gather)
    if kept is None:
        choice = _ranked(
            found,
            fn,
            variables,
            _ratios(ratio, found.groups.values(), 0.5 if target is None else 1.0),
            target,
            importance or l1(),
            ranking or per_group(),
            round_to,
        )
    else:
        choice = _chosen(found, kept)
    keep = cutting.keep_masks(found.graph, found.groups, choice)
    return Shrunk(
        apply=cutting.narrowed(fn, keep, gather=gather),
        variables=cutting.cut(variables, keep),
        kept={name: positions(group, choice[name]) for name, group in found.groups.items()},
        transform=lambda other: cutting.narrowed(other, keep, gather=gather),
        cut=lambda others: cutting.cut(others, keep),
        masked=lambda others: cutting.masked(others, keep),
        cut_state=_state_cutter(graphs.template(variables), keep),
        report=Report(
            {name: (len(choice[name]), int(choice[name].sum())) for name in found.groups},
            found.gathers(choice),
            frozen(found.graph, found.channels),
            found.graph.notes,
        ),
    )


def _state_cutter(variables: Any, keep: cutting.Keep) -> Callable[[Any], Any]:
    """Cuts optimizers' states; they are of the collection `params`, where there is one."""
    if isinstance(variables, Mapping) and "params" in variables:
        inside = [path for path in keep if path.startswith("params/")]
        keep = {path.removeprefix("params/"): keep[path] for path in inside}
        variables = variables["params"]
    return lambda state: cutting.cut_state(state, variables, keep)


def _ranked(
    found: Found,
    fn: Callable[..., Any],
    variables: Any,
    ratios: Mapping[str, float],
    target: targets.Target | None,
    importance: Importance,
    ranking: Ranking,
    round_to: int,
) -> dict[str, np.ndarray]:
    """Which channels of each group are kept, by their scores; `[C]` booleans."""
    leaves = tree.paths(variables)
    scores = {name: _scores(group, leaves, importance) for name, group in found.groups.items()}

    def chosen(level: float) -> dict[str, np.ndarray]:
        wanted = ranking.wanted(scores, {name: level * part for name, part in ratios.items()})
        return choose(found.channels, found.groups, scores, wanted, round_to)

    if target is None:
        return chosen(1.0)

    def candidate(level: float) -> targets.Candidate:
        choice = chosen(level)

        def build() -> tuple[Callable[..., Any], Any]:
            keep = cutting.keep_masks(found.graph, found.groups, choice)
            small = cutting.narrowed(fn, keep, gather=found.gather)
            return small, cutting.cut(variables, keep)

        return targets.Candidate(found.graph, found.channels, found.cut(choice), build)

    return chosen(targets.level(target, candidate, lambda: _explain(found, chosen(1.0), round_to)))


def _explain(found: Found, choice: Mapping[str, np.ndarray], round_to: int) -> str:
    """What stands in the way of cutting more."""
    left = sorted(found.groups, key=lambda name: -int(choice[name].sum()))
    lines = [
        f"{name} keeps {int(choice[name].sum())} of {len(choice[name])} channels (members "
        f"{', '.join(member.path for member in found.groups[name].members[:4])})"
        for name in left[:3]
    ]
    stays = [f"{place} stays: {why}" for place, why in frozen(found.graph, found.channels).items()]
    return f"With round_to={round_to}: {'; '.join([*lines, *stays[:3]])}"


def _check(ratio: float | Mapping[str, float] | None, round_to: int) -> None:
    given = ratio if isinstance(ratio, Mapping) else {} if ratio is None else {"all": ratio}
    for where, value in given.items():
        if not 0 <= value < 1:
            raise ValueError(
                f"ratio for {where!r} is {value}, expected a number in [0, 1): the part of the "
                "channels to cut; at 1 nothing would be left"
            )
    if round_to < 1:
        raise ValueError(f"round_to is {round_to}, expected 1 (any number of channels) or more")


def _ratios(
    ratio: float | Mapping[str, float] | None, found: Iterable[Group], default: float
) -> dict[str, float]:
    """The ratio of each group; a mapping's globs are matched with the variables that make it."""
    makers = {g.name: [g.name, *(m.path for m in g.members if m.makes)] for g in found}
    if not isinstance(ratio, Mapping):
        return dict.fromkeys(makers, default if ratio is None else ratio)
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


def _chosen(found: Found, kept: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """Reads the `kept` of an earlier result; what it says has to fit the groups."""
    for name in kept:
        if name not in found.groups:
            stays = frozen(found.graph, found.channels).items()
            why = "; ".join(f"{at} stays: {why}" for at, why in stays if at.startswith(f"{name}["))
            raise ValueError(
                f"kept names {name!r}, which is no group of this function"
                f"{f' ({why})' if why else ''}; its groups are {', '.join(list(found.groups)[:8])}"
            )
    return {name: channels(group, kept.get(name)) for name, group in found.groups.items()}
