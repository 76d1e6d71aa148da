"""Replacing operations by functions: a rewrite is a graph like any other.

`substitute` is the neighbour that only rewires values. Here an operation gives way to operations
that were traced from a function of new variables, so that one layer becomes two or three.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

from compressjax.graph.ir import Graph, Literal, Op, Value, reachable


class Part(NamedTuple):
    """What stands in for an operation.

    Attributes:
      graph: of the function that takes its place; its variables have the paths that they get in the
        whole.
      inputs: the values of the whole graph that the function is called with.
    """

    graph: Graph
    inputs: tuple[Value, ...]


def splice(graph: Graph, parts: Mapping[Op, Part]) -> Graph:
    """Replaces operations, and drops the variables that only they used.

    Args:
      graph: the graph.
      parts: what stands in for each of some of its operations; with outputs of the same shapes.

    Returns:
      A graph with the same inputs and outputs. Parts may share variables, by path. An operation of
      a part keeps its name if that is a variable's path, numbered if it is taken; otherwise the
      name of the operation that it stands in for comes before it.

    Raises:
      ValueError: if a part's variable has the path of one of the graph's, or two parts disagree in
        a variable's shape.

    Example:
      >>> import numpy as np
      >>> from compressjax.graph.trace import trace
      >>> x = np.ones((1, 4), 'f')
      >>> whole = trace(lambda v, x: x @ v['w'] + 1, {'w': np.ones((4, 3), 'f')}, x)
      >>> two = {'a': np.ones((4, 1), 'f'), 'b': np.ones((1, 3), 'f')}
      >>> part = trace(lambda v, x: x @ v['a'] @ v['b'], two, x)
      >>> spliced = splice(whole, {whole.ops[0]: Part(part, (whole.inputs['input_0'],))})
      >>> [op.name for op in spliced.ops], list(spliced.variables)
      (['a', 'b', 'add_0'], ['a', 'b'])
    """
    ops: list[Op] = []
    known: dict[Value, Value] = {}  # a part's values, in terms of the whole's
    new: dict[str, Value] = {}
    constants, links = dict(graph.constants), dict(graph.links)
    ends: dict[Value, Value] = {}
    names = {op.name for op in graph.ops if op not in parts}
    for op in graph.ops:
        part = parts.get(op)
        if part is None:
            ops.append(op)
            continue
        known.update(zip(part.graph.inputs.values(), part.inputs, strict=True))
        for path, value in part.graph.variables.items():
            known[value] = new.setdefault(path, value)
            if path in graph.variables or known[value].shape != value.shape:
                raise ValueError(f"{op.name}: its part has a variable at {path!r}, which is taken")
        constants.update(part.graph.constants)
        links.update({known.get(v, v): path for v, path in part.graph.links.items() if path in new})
        ops += [
            dataclasses.replace(
                inner,
                name=_unique(inner.name if inner.variables else f"{op.name}/{inner.name}", names),
                inputs=tuple(known.get(value, value) for value in inner.inputs),
            )
            for inner in part.graph.ops
        ]
        ends.update(zip(op.outputs, (known.get(v, v) for v in part.graph.outputs), strict=True))
    ops = [
        dataclasses.replace(op, inputs=tuple(ends.get(value, value) for value in op.inputs))
        for op in ops
    ]
    outputs = tuple(ends.get(value, value) for value in graph.outputs)
    ops = reachable(ops, outputs)
    used = {v for op in ops for v in op.inputs if not isinstance(v, Literal)} | set(outputs)
    gone = {path for op in parts for path in op.variables}
    variables = {p: v for p, v in graph.variables.items() if v in used or p not in gone}
    return dataclasses.replace(
        graph,
        ops=tuple(ops),
        variables={**variables, **new},
        constants={value: constant for value, constant in constants.items() if value in used},
        outputs=outputs,
        links={v: path for v, path in links.items() if path in variables or path in new},
    )


def _unique(name: str, taken: set[str]) -> str:
    """The name, numbered if it is taken; it then is."""
    base, order = name, 0
    while name in taken:
        order += 1
        name = f"{base}#{order}"
    taken.add(name)
    return name
