"""Channels: which positions of which variables must be cut together.

`couple` carries units along a graph, one rule a primitive, so that any architecture is covered by
what its primitives do, not by a list of known layers. `groups` gathers the classes that are free to
go into groups of one layer each, and `frozen` says why the rest is not. What is done with that is
the business of `narrow` (running with positions gone) and of `compressjax.slimming` (which
positions).

Compare the dependency graph of Fang et al., "DepGraph: Towards Any Structural Pruning" (2023),
which links whole layers by index mappings; here each position is tied by itself, so that
concatenation, splits, flattening and grouped convolutions need no mapping of their own.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from compressjax.graph import fixed, loops, rests
from compressjax.graph.channel_rules import ELEMENTWISE, RULES, without_rule
from compressjax.graph.ir import Graph, Literal, Op, Value
from compressjax.graph.units import UNKNOWN, ZERO, Axes, Units

Place = tuple[str, int]  # a variable's path and one of its axes


@dataclasses.dataclass(frozen=True, eq=False)
class Channels:
    """What is tied to what in one graph.

    Attributes:
      units: the union-find over all units.
      axes: for each value, the class of its units by axis; `[D]` int64 for an axis of length `D`.
      zero: for each value, by axis, whether it holds only zeros at a position that is cut, if every
        variable is zero where it is cut; `[D]` booleans.
      reads: pairs of axes `[D]`, of which the second reads the first: a position that is cut in the
        first one must be cut in the second too.
    """

    units: Units
    axes: Mapping[Value, Axes]
    zero: Mapping[Value, Axes]
    reads: tuple[tuple[np.ndarray, np.ndarray], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """One axis of one variable that belongs to a group.

    Attributes:
      path: the variable's path.
      axis: the axis.
      channel: `[D]` int64, the channel of the group that each position is part of; -1 for none.
      makes: whether the variable makes the channels along this axis (the output features of a
        kernel, a norm's scale); False for the kernels that read them.
      kernel: whether it is a kernel of a convolution or matrix product that makes the channels.
    """

    path: str
    axis: int
    channel: np.ndarray
    makes: bool
    kernel: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Channels of one layer, or of several layers that have to agree.

    Attributes:
      name: the path of the first variable that makes the channels; a second group of the same
        variable has `#1` behind it.
      members: every variable axis that has the channels; the first one gives the name.
      units: `[C]` int64, the class of each channel; a channel is kept or cut as a whole.
    """

    name: str
    members: tuple[Member, ...]
    units: np.ndarray

    @property
    def size(self) -> int:
        """The number of channels."""
        return len(self.units)

    @property
    def width(self) -> int:
        """Positions that one channel takes along the first member's axis."""
        return int((self.members[0].channel >= 0).sum()) // self.size

    def __repr__(self) -> str:
        return f"Group({self.name!r}, {self.size} channels, {len(self.members)} members)"


def couple(
    graph: Graph,
    held: Mapping[str, tuple[Axes, str]],
    *,
    hold_outputs: bool = True,
) -> Channels:
    """Ties together all positions that have to be kept or cut together.

    Args:
      graph: from `trace(..., keep_custom=False)`, then `reorder`.
      held: for some variables, which positions may not be cut (one boolean mask an axis, True = may
        not), and why.
      hold_outputs: whether the function's outputs have to keep their shapes.

    Returns:
      The ties. Axes of inputs are frozen, and so are those of primitives without a rule.

    Example:
      >>> from compressjax.graph.trace import trace
      >>> fn = lambda v, x: (x @ v['a']) @ v['b']
      >>> variables = {'a': np.ones((4, 3), 'f'), 'b': np.ones((3, 2), 'f')}
      >>> graph = trace(fn, variables, np.ones((1, 4), 'f'))
      >>> channels = couple(graph, {})
      >>> a, b = (channels.axes[graph.variables[path]] for path in 'ab')
      >>> bool((a[1] == b[0]).all()), [bool(channels.units.frozen(axis).any()) for axis in (*a, *b)]
      (True, [True, False, False, True])
    """
    units = Units()
    axes = _sources(units, graph)
    for name, value in graph.inputs.items():
        for axis in axes[value]:
            units.freeze(axis, f"{name} is an input", plain=True)
    for path, (masks, why) in held.items():
        for axis, mask in zip(axes[graph.variables[path]], masks, strict=True):
            units.freeze(axis[mask], why)
    lone = fixed.fixed(graph)
    _run(units, graph.ops, axes, lone)
    reads = [
        (axes[op.inputs[0]][op.params["axis"]], axes[op.outputs[0]][op.params["axis"]], op.name)
        for op in graph.ops
        if op.kind == "select"
    ]
    for i, value in enumerate(graph.outputs if hold_outputs else ()):
        for axis in loops.read(units, axes, value):
            units.freeze(axis, f"output {i} of the function has this width")
    for there, read, name in reversed(reads):  # a stream is frozen after all that read it
        units.freeze(there[units.frozen(read)], f"{name} reads it")
    return Channels(
        units,
        {value: tuple(map(units.find, found)) for value, found in axes.items()},
        {value: tuple(units.rest(a) == ZERO for a in found) for value, found in axes.items()},
        tuple((units.find(there), units.find(read)) for there, read, _ in reads),
    )


def groups(graph: Graph, channels: Channels) -> tuple[Group, ...]:
    """Gathers what is free to be cut into groups.

    Channels belong to one group if the same kernels make them; so a layer's output features are one
    group, and layers whose outputs are added share one.

    Args:
      graph: the graph.
      channels: from `couple`.

    Returns:
      The groups, in the order in which the graph first makes their channels.

    Example:
      >>> from compressjax.graph.trace import trace
      >>> fn = lambda v, x: (x @ v['a']) @ v['b']
      >>> variables = {'a': np.ones((4, 3), 'f'), 'b': np.ones((3, 2), 'f')}
      >>> graph = trace(fn, variables, np.ones((1, 4), 'f'))
      >>> groups(graph, couple(graph, {}))
      (Group('a', 3 channels, 2 members),)
    """
    made, taken = _kernels(graph)
    places = {
        (path, axis): units
        for path, value in graph.variables.items()
        for axis, units in enumerate(channels.axes[value])
    }
    free = {place: ~channels.units.frozen(units) for place, units in places.items()}
    order = {value: i for i, op in reversed([*enumerate(graph.ops)]) for value in op.inputs}
    others = [place for place in places if place not in made and place not in taken]
    others.sort(  # parameters before statistics, each where it is used first
        key=lambda place: (
            not place[0].startswith("params/"),
            order.get(graph.variables[place[0]], len(order)),
        )
    )
    makers = [*made, *others]
    by_unit: dict[int, list[int]] = {}
    for i, place in enumerate(makers):
        for unit in dict.fromkeys(places[place][free[place]].tolist()):
            known = by_unit.setdefault(unit, [])
            if i < len(made) or not known:  # what no kernel makes belongs to the first that has it
                known.append(i)
    gathered: dict[tuple[int, ...], list[int]] = {}
    for unit, indices in by_unit.items():
        gathered.setdefault(tuple(indices), []).append(unit)
    group_of = np.full(len(channels.units), -1)
    channel_of = np.full(len(channels.units), -1)
    signatures = sorted(gathered)
    for number, signature in enumerate(signatures):
        group_of[gathered[signature]] = number
        channel_of[gathered[signature]] = np.arange(len(gathered[signature]))
    members: list[dict[Place, Member]] = [{} for _ in signatures]
    for place, units in places.items():
        owners = group_of[units]
        for number in np.unique(owners[owners >= 0]).tolist():
            channel = np.where(owners == number, channel_of[units], -1)
            member = Member(*place, channel, place not in taken, place in made)
            members[number][place] = member
    found: dict[str, Group] = {}
    for number, signature in enumerate(signatures):
        first = [members[number].pop(makers[i]) for i in signature]
        name = path = first[0].path
        repeat = 0
        while name in found:
            repeat += 1
            name = f"{path}#{repeat}"
        found[name] = Group(
            name, (*first, *members[number].values()), np.array(gathered[signature])
        )
    return tuple(found.values())


def frozen(graph: Graph, channels: Channels) -> dict[str, str]:
    """Says which axes of variables may not be cut, and why.

    Args:
      graph: the graph.
      channels: from `couple`.

    Returns:
      A reason for each axis, `{'params/Dense_1/kernel[1]': 'output 0 of ...'}`; axes that nobody
      would cut (windows, input features) are left out.

    Example:
      >>> from compressjax.graph.trace import trace
      >>> graph = trace(lambda v, x: x @ v['a'], {'a': np.ones((4, 3), 'f')}, np.ones((1, 4), 'f'))
      >>> frozen(graph, couple(graph, {}))
      {'a[1]': 'output 0 of the function has this width'}
    """
    why: dict[int, str] = {}
    for reason in channels.units.reasons:
        if not reason.plain:
            for unit in np.unique(channels.units.find(reason.units)).tolist():
                why.setdefault(unit, reason.why)
    found = {}
    for path, value in graph.variables.items():
        for axis, units in enumerate(channels.axes[value]):
            known = next((why[unit] for unit in units.tolist() if unit in why), None)
            if known is not None:
                found[f"{path}[{axis}]"] = known
    return found


def _sources(units: Units, graph: Graph) -> dict[Value, Axes]:
    """Fresh units for all that operations start from."""
    sources = dict.fromkeys(graph.inputs.values(), UNKNOWN)
    sources.update(dict.fromkeys(graph.variables.values(), ZERO))
    axes = {
        value: tuple(units.fresh(size, rest) for size in value.shape)
        for value, rest in sources.items()
    }
    return axes | {value: fixed.sources(units, value) for value in graph.constants}


def _run(
    units: Units,
    ops: Iterable[Op],
    axes: dict[Value, Axes],
    lone: frozenset[Op] = frozenset(),
) -> None:
    for op in ops:
        ins = [loops.read(units, axes, value) for value in op.inputs]
        if op in lone:
            outs: Sequence[Axes] = fixed.couple(units, op, ins)
        elif op.body is not None:
            run = functools.partial(_run, lone=lone)
            outs = loops.couple(units, op, op.body, ins, axes, run)
        elif op.kind in ELEMENTWISE:
            outs = RULES[op.kind].couple(units, op, ins)
        elif op.kind in RULES:
            outs = rests.relabel(units, op, ins, RULES[op.kind].couple(units, op, ins))
        else:
            outs = without_rule(units, op, ins)
        axes.update(zip(op.outputs, outs, strict=True))


def _kernels(graph: Graph) -> tuple[list[Place], set[Place]]:
    """Which variable axes are output features of kernels, in order, and which are input features.

    A kernel may reach its operation transposed, reshaped, cast or scaled: the same rules, run over
    the operations on variables alone, find the variable's axis behind the operand's.
    """
    units = Units()
    axes = _sources(units, graph)
    for value in graph.inputs.values():
        del axes[value]
    contractions = _contractions(units, graph.ops, axes)
    owner: dict[int, tuple[Place, ...]] = {}
    for path, value in graph.variables.items():
        for axis, mine in enumerate(axes[value]):
            for unit in np.unique(units.find(mine)).tolist():
                owner[unit] = (*owner.get(unit, ()), (path, axis))
    made: dict[Place, None] = {}
    taken: dict[Place, None] = {}
    for op in contractions:
        static = [value in axes for value in op.inputs]
        if sum(static) != 1:
            continue
        side = static.index(True)
        for into, which in zip((taken, made), _kernel_axes(op, side), strict=True):
            for axis in which:
                found = units.find(axes[op.inputs[side]][axis]).tolist()
                for places in dict.fromkeys(owner.get(unit, ()) for unit in found):
                    into.update(dict.fromkeys(places))
    return list(made), set(taken) - set(made)


def _contractions(units: Units, ops: Iterable[Op], axes: dict[Value, Axes]) -> list[Op]:
    """Convolutions and matrix products, in loops too; what variables alone make gets units."""
    found = []
    for op in ops:
        if op.kind in ("conv_general_dilated", "dot_general"):
            found.append(op)
        elif op.body is not None:
            loops.on_variables(units, op, op.body, axes)
            found += _contractions(units, op.body.ops, axes)
        elif all(isinstance(value, Literal) or value in axes for value in op.inputs):
            _run(units, [op], axes)
    return found


def _kernel_axes(op: Op, side: int) -> tuple[Sequence[int], Sequence[int]]:
    """The input-feature and the output-feature axes of an operand that is a kernel."""
    numbers = op.params["dimension_numbers"]
    if op.kind == "conv_general_dilated":
        return ((), ()) if side == 0 else ((numbers.rhs_spec[1],), (numbers.rhs_spec[0],))
    contracting = numbers[0][side]
    rank = len(op.inputs[side].shape)
    return contracting, [axis for axis in range(rank) if axis not in contracting]
