"""Running a graph at fewer positions: what is left of every operation when channels are gone.

What is gone counts as zero: the narrowed function equals the whole one over variables that are zero
at every cut position. Only sums over channels could tell the difference: a variance has one term
for each channel, cut or not. Where what they sum is not zero at cut positions, it depends on no
variable there: that part, the rest of the axis, is computed beside the others. Mostly it is the
same at all cut positions, so that one is computed, and counted as often as positions were cut;
constants that differ by channel are there for each (see `rests`).

`channels` says what belongs together; given which positions of the variables are kept, `narrow`
works out what is kept of every other value, and evaluates. The cut is named by variable, axis and
position, so it applies to any function of the same variables: another batch size, or training mode.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from compressjax.graph import fixed, loops, rests
from compressjax.graph.branches import branch
from compressjax.graph.channel_rules import RULES
from compressjax.graph.channels import Channels, couple
from compressjax.graph.interpret import bind_arguments, evaluate
from compressjax.graph.ir import Graph, Op, Value
from compressjax.graph.reorder import reorder
from compressjax.graph.units import Axes, kept_shape, take


def narrow(graph: Graph, keep: Mapping[str, Axes], *, gather: bool = False) -> Callable[..., Any]:
    """Makes the function that a graph is when some positions of its variables are gone.

    Args:
      graph: from `trace(..., keep_custom=False)`, at the full shapes.
      keep: for each variable path that was cut, one boolean mask an axis, True = kept.
      gather: whether norms may read fewer channels than there are (see `branches`).

    Returns:
      `run(variables, *args)`, which takes the smaller variables. It computes what the graph does if
      every variable is zero at its cut positions.

    Raises:
      ValueError: if the graph ties a cut position to one that is kept.

    Example:
      >>> from compressjax.graph.trace import trace
      >>> variables = {'a': np.ones((4, 3), 'f'), 'b': np.ones((3, 2), 'f')}
      >>> graph = trace(lambda v, x: x @ v['a'] @ v['b'], variables, np.ones((1, 4), 'f'))
      >>> all_kept = [np.ones(size, bool) for size in range(5)]
      >>> two = np.array([True, False, True])
      >>> run = narrow(graph, {'a': (all_kept[4], two), 'b': (two, all_kept[2])})
      >>> run({'a': np.ones((4, 2), 'f'), 'b': np.ones((2, 2), 'f')}, np.ones((1, 4), 'f')).tolist()
      [[8.0, 8.0]]
    """
    graph = branch(reorder(graph)) if gather else reorder(graph)
    narrowed = _narrowed(graph, *_kept_positions(graph, keep))

    def run(variables: Any, *args: Any) -> Any:
        outputs = narrowed(bind_arguments(graph, variables, *args))
        return jax.tree.unflatten(graph.out_tree, outputs)

    return run


def _narrowed(
    graph: Graph, channels: Channels, kept: Mapping[Value, Axes]
) -> Callable[[Mapping[Value, Any]], Sequence[Any]]:
    """From the smaller variables and the inputs of a graph, or of a loop's body, to its outputs."""
    lone = fixed.fixed(graph)
    needed = rests.needed([op for op in graph.ops if op not in lone], channels.zero, kept)
    border = fixed.border(graph, lone)
    whole = [value for value in border if _whole(kept[value])]
    fixed_rests: dict[rests.Rest, Any] = {}
    constants = {}
    read = [value for value in (*graph.constants, *border) if not _whole(kept[value])]
    for value, array in zip(read, fixed.compute(graph, read), strict=True):
        constants[value] = take(array, kept[value])
        for axis in needed.get(value, ()):
            masks = (~mask if i == axis else mask for i, mask in enumerate(kept[value]))
            fixed_rests[value, axis] = take(array, tuple(masks))
    bodies = {op: _narrowed(op.body, channels, kept) for op in graph.ops if op.body is not None}

    def narrowed(op: Op, inputs: tuple[Any, ...]) -> Sequence[Any] | None:
        kin = [kept.get(value) or _all_of(value) for value in op.inputs]
        kout = [kept[value] for value in op.outputs]
        if all(map(_whole, kin)) and all(map(_whole, kout)):
            return None
        if op.body is not None:
            return loops.narrow(op, inputs, op.body, bodies[op])
        own = RULES[op.kind].narrow
        if own is not None:
            return own(op, inputs, kin, kout)
        outputs = op.bind(op.params, *inputs)
        if [np.shape(x) for x in outputs] == [kept_shape(keeps) for keeps in kout]:
            return outputs
        return [take(x, keeps) for x, keeps in zip(outputs, kout, strict=True)]

    def run(known: Mapping[Value, Any]) -> Sequence[Any]:
        found = dict(fixed_rests)
        untouched = zip(whole, evaluate(graph, whole, {}), strict=True)

        def rule(op: Op, inputs: tuple[Any, ...]) -> Sequence[Any] | None:
            outputs = narrowed(op, inputs)
            if outputs is None:
                return None
            for axis in needed.get(op.outputs[0], ()):
                found[op.outputs[0], axis] = rests.rest(op, axis, inputs, found, kept)
            for axis in op.params["axes"] if op.kind == "reduce_sum" else ():
                if (op.inputs[0], axis) in found:
                    rest = found[op.inputs[0], axis]
                    (gone,) = op.bind(op.params, rest)
                    count = np.sum(~kept[op.inputs[0]][axis]) // rest.shape[axis]
                    outputs = [outputs[0] + count.astype(gone.dtype) * gone]
            return outputs

        return evaluate(graph, graph.outputs, {**constants, **dict(untouched), **known}, rule=rule)

    return run


def _all_of(value: Value) -> Axes:
    return tuple(np.ones(size, bool) for size in value.shape)


def _whole(keeps: Axes) -> bool:
    return all(keep.all() for keep in keeps)


def _kept_positions(graph: Graph, keep: Mapping[str, Axes]) -> tuple[Channels, dict[Value, Axes]]:
    """Carries keep masks from variables to all values, along the graph's own ties."""
    held = {}
    for path, value in graph.variables.items():
        masks = keep.get(path) or _all_of(value)
        held[path] = (masks, f"{path} is kept there")
    channels = couple(graph, held, hold_outputs=False)
    units = channels.units
    cut = np.zeros(len(units), bool)
    for path, masks in keep.items():
        for axis, mask in zip(channels.axes[graph.variables[path]], masks, strict=True):
            cut[axis[~mask]] = True
    clash = np.flatnonzero(cut & units.frozen(np.arange(len(units))))
    if clash.size:
        raise ValueError(_explain(graph, keep, channels, int(clash[0])))
    kept = {value: tuple(~cut[axis] for axis in axes) for value, axes in channels.axes.items()}
    return channels, kept


def _explain(graph: Graph, keep: Mapping[str, Axes], channels: Channels, unit: int) -> str:
    members = [
        f"{path}[{axis}]"
        for path, masks in keep.items()
        for axis, units in enumerate(channels.axes[graph.variables[path]])
        if (units[~masks[axis]] == unit).any()
    ]
    reasons = [r for r in channels.units.reasons if (channels.units.find(r.units) == unit).any()]
    why = next((r.why for r in reasons if not r.plain), reasons[0].why)
    return (
        f"this function does not allow the cut of {', '.join(members[:4])}: {why}. Shrink with a "
        "function that ties the same variables together, or protect them"
    )
