"""What can be cut of a function: its graph, the ties between positions, and the groups they make.

`shrink` decides over these groups; nothing here looks at a weight.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from compressjax import graph as graphs
from compressjax import tree
from compressjax.graph.branches import branch
from compressjax.graph.channels import Channels, Group, couple, groups
from compressjax.graph.reorder import reorder
from compressjax.slimming.cutting import whole


@dataclasses.dataclass(frozen=True)
class Found:
    """What can be cut of a function.

    Attributes:
      graph: of the function.
      channels: what is tied to what in it.
      groups: its groups by name.
      gather: whether norms are cut apart from their streams.
    """

    graph: graphs.Graph
    channels: Channels
    groups: Mapping[str, Group]
    gather: bool

    def cut(self, choice: Mapping[str, np.ndarray]) -> np.ndarray:
        """Says which classes of units go, booleans, if these channels of each group are kept."""
        gone = np.zeros(len(self.channels.units), bool)
        for name, group in self.groups.items():
            gone[group.units[~choice[name]]] = True
        return gone

    def gathers(self, choice: Mapping[str, np.ndarray]) -> dict[str, tuple[int, int, int]]:
        """Says what is gathered in front of norms: channels there, channels read, values copied."""
        cut, gathers = self.cut(choice), {}
        for op in self.graph.ops:
            if op.kind != "select":
                continue
            there, read = (
                [int(np.sum(~cut[axis])) for axis in self.channels.axes[value]]
                for value in (op.inputs[0], op.outputs[0])
            )
            axis = op.params["axis"]
            if read[axis] < there[axis]:
                gathers[op.name] = (there[axis], read[axis], math.prod(read))
        return gathers


def find(
    fn: Callable[..., Any],
    variables: Any,
    args: Sequence[Any],
    protect: str | Iterable[str],
    gather: bool,
) -> Found:
    """Traces a function and finds its groups.

    Args:
      fn: a pure function, called as `fn(variables, *args)`.
      variables: pytree of arrays or `jax.ShapeDtypeStruct`s.
      args: example inputs, or their shapes.
      protect: globs over paths of variables which must keep their shapes.
      gather: whether norms are cut apart from their streams.

    Returns:
      What can be cut.

    Raises:
      ValueError: if a glob matches nothing or a shape is not known.

    Example:
      >>> variables = {'a': np.ones((1, 4)), 'b': np.ones((4, 3))}
      >>> fn = lambda v, x: x @ v['a'] @ v['b']
      >>> list(find(fn, variables, [np.ones((1, 1))], protect=(), gather=False).groups)
      ['a']
    """
    for path, leaf in tree.paths((variables, args)).items():
        if not all(isinstance(size, int) for size in np.shape(leaf)):
            raise ValueError(
                f"the shape of argument {path} is {np.shape(leaf)}: shapes that are not known yet "
                "cannot be cut; give an example with numbers, the result takes any batch size"
            )
    shapes = graphs.template((variables, args))
    graph = reorder(graphs.trace(fn, shapes[0], *shapes[1], keep_custom=False))
    if gather:
        graph = branch(graph)
    protected = tree.match(protect, graph.variables, what="protect")
    held = {path: (whole(graph, path), "protected") for path in protected}
    for path, value in graph.variables.items():  # another function may use it whole
        if value not in graph.consumers and value not in graph.outputs:
            held.setdefault(path, (whole(graph, path), "not used by this function"))
    channels = couple(graph, held)
    return Found(graph, channels, {group.name: group for group in groups(graph, channels)}, gather)


def find_groups(
    fn: Callable[..., Any],
    variables: Any,
    *args: Any,
    protect: str | Iterable[str] = (),
    gather: bool = False,
) -> tuple[Group, ...]:
    """Finds the channels of a function that have to be kept or cut together.

    Args:
      fn: a pure function, called as `fn(variables, *args)`.
      variables: pytree of arrays or `jax.ShapeDtypeStruct`s.
      *args: example inputs, or their shapes.
      protect: globs over paths of variables which must keep their shapes.
      gather: see `shrink`.

    Returns:
      The groups that `shrink` would cut, in the order in which the function makes their channels.

    Raises:
      ValueError: if a glob matches nothing or a shape is not known.

    Example:
      >>> import jax
      >>> fn = lambda v, x: jax.nn.relu(x @ v['a']) @ v['b']
      >>> find_groups(fn, {'a': np.ones((1, 4)), 'b': np.ones((4, 3))}, np.ones((1, 1)))
      (Group('a', 4 channels, 2 members),)
    """
    return tuple(find(fn, variables, args, protect, gather).groups.values())
