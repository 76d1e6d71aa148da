"""The graph: values, and the operations that make them from one another.

These are plain data. `trace` makes them from jaxprs, `interpret` runs them, and the other modules
of this package read them; none of those needs JAX's own representation.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np


class Value:
    """A value that flows through a graph: an input, a variable, or what an operation puts out."""

    __slots__ = ("dtype", "shape")

    def __init__(self, shape: tuple[int, ...], dtype: Any):
        self.shape = shape
        self.dtype = dtype

    def __repr__(self) -> str:
        return f"Value({self.shape}, {self.dtype})"


class Literal(Value):
    """A scalar that the function wrote down."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        super().__init__(np.shape(value), jax.dtypes.result_type(value))
        self.value = value


@dataclasses.dataclass(frozen=True, eq=False)
class Op:
    """One operation.

    Attributes:
      name: unique; the path of the variable it computes with (`params/Conv_0/kernel`), or its kind
        and order (`add_3`; `static_add_3` where no input is involved). Those of operations that
        depend on an input do not change with the batch size.
      kind: the primitive's name, or, of a function with a derivative rule of its own, that
        function's name (`relu`).
      inputs: the values it reads.
      outputs: the values it puts out.
      params: the primitive's parameters.
      variables: paths of the variables it reads, directly or through casts, transposes, reshapes
        and broadcasts.
      macs: multiply-accumulates, batch included.
      bind: evaluates it: `bind(params, *inputs) -> outputs`.
      body: of a `scan`, one step: its inputs are the constants, the carry and one slice of what is
        scanned over, its outputs the new carry and one slice of what is collected.
      source: the line that it comes from, `net.py:12:4 (apply)`; empty where that is not known.
    """

    name: str
    kind: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    params: Mapping[str, Any]
    variables: tuple[str, ...]
    macs: int
    bind: Callable[..., Sequence[Any]]
    body: "Graph | None" = None
    source: str = ""

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the first output."""
        return self.outputs[0].shape

    def __repr__(self) -> str:
        return f"Op({self.name!r}, {self.kind}, {self.out_shape})"


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """A traced function: operations in the order they run.

    Attributes:
      ops: the operations that the outputs depend on.
      inputs: values of the non-variable arguments, by name (`input_0`, `input_1/key`).
      variables: values of the variable leaves, by path.
      constants: arrays that the function closed over, by value.
      outputs: what the function returns, flat.
      out_tree: the structure of what it returns.
      links: for each value that is a variable or a moved variable, the path of that variable.
      notes: what tracing had to leave whole or could not keep, in sentences.
      checkpoint: the parameters of the first `jax.checkpoint` in it, whose operations are part of
        the list like any others.
    """

    ops: tuple[Op, ...]
    inputs: Mapping[str, Value]
    variables: Mapping[str, Value]
    constants: Mapping[Value, Any]
    outputs: tuple[Value, ...]
    out_tree: Any
    links: Mapping[Value, str]
    notes: tuple[str, ...]
    checkpoint: Mapping[str, Any] | None = None

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one call, batch included."""
        return sum(op.macs for op in self.ops)

    @property
    def params(self) -> Mapping[str, Value]:
        """The variables of the collection `params`, by path; all where there is none."""
        trained = {p: v for p, v in self.variables.items() if p.split("/")[0] == "params"}
        return trained or self.variables

    @property
    def num_params(self) -> int:
        """Elements of all variables in `params`."""
        return sum(int(np.prod(value.shape)) for value in self.params.values())

    @functools.cached_property
    def producers(self) -> Mapping[Value, Op]:
        """The operation that puts out each value."""
        return {value: op for op in self.ops for value in op.outputs}

    @functools.cached_property
    def consumers(self) -> Mapping[Value, tuple[Op, ...]]:
        """The operations that read each value, in order."""
        found: dict[Value, list[Op]] = {}
        for op in self.ops:
            for value in dict.fromkeys(op.inputs):
                found.setdefault(value, []).append(op)
        return {value: tuple(ops) for value, ops in found.items()}

    @functools.cached_property
    def static(self) -> frozenset[Value]:
        """Values that depend on variables and constants alone, never on an input."""
        return follow(self.ops, (*self.variables.values(), *self.constants))

    def is_static(self, value: Value) -> bool:
        """Tells whether a value is a literal or depends on variables and constants alone."""
        return isinstance(value, Literal) or value in self.static

    def summary(self) -> str:
        """Lists the operations as a table: name, kind, output shape, MACs.

        Example:
          >>> from compressjax.graph.trace import trace
          >>> graph = trace(lambda v, x: x @ v['w'], {'w': np.ones((3, 2))}, np.ones((1, 3)))
          >>> print(graph.summary())
          name kind         out     MACs
          w    dot_general  (1, 2)     6
          total: 6 MACs, 6 parameters
        """
        rows = [(op.name, op.kind, str(op.out_shape), f"{op.macs:,}") for op in self.ops]
        rows.insert(0, ("name", "kind", "out", "MACs"))
        wide = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = [
            f"{n:<{wide[0]}} {k:<{wide[1]}}  {s:<{wide[2]}}  {m:>{wide[3]}}" for n, k, s, m in rows
        ]
        lines.append(f"total: {self.macs:,} MACs, {self.num_params:,} parameters")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def substitute(graph: Graph, replacements: Mapping[Value, Value]) -> Graph:
    """Rewires a graph: every reader of one value reads another, and what nothing reads is dropped.

    Args:
      graph: the graph.
      replacements: the new value for each old one; chains are followed.

    Returns:
      A graph with the same inputs and the same names.

    Example:
      >>> from compressjax.graph.trace import trace
      >>> graph = trace(lambda v, x: (x + 1) * 2, {}, 1.0)
      >>> add, mul = graph.ops
      >>> [op.kind for op in substitute(graph, {mul.outputs[0]: add.outputs[0]}).ops]
      ['add']
    """

    def final(value: Value) -> Value:
        while value in replacements:
            value = replacements[value]
        return value

    ops = [
        dataclasses.replace(op, inputs=tuple(final(value) for value in op.inputs))
        for op in graph.ops
    ]
    outputs = tuple(final(value) for value in graph.outputs)
    return dataclasses.replace(graph, ops=tuple(reachable(ops, outputs)), outputs=outputs)


def follow(ops: Iterable[Op], known: Iterable[Value]) -> frozenset[Value]:
    """Finds what depends on some values alone.

    Args:
      ops: operations in the order they run.
      known: the values.

    Returns:
      Those values, and all that the operations make of them and of literals.

    Example:
      >>> from compressjax.graph.trace import trace
      >>> graph = trace(lambda v, x: x * (v + 1), 2.0, 1.0)
      >>> add, mul = graph.ops
      >>> found = follow(graph.ops, graph.variables.values())
      >>> add.outputs[0] in found, mul.outputs[0] in found
      (True, False)
    """
    found = set(known)
    for op in ops:
        if all(isinstance(value, Literal) or value in found for value in op.inputs):
            found.update(op.outputs)
    return frozenset(found)


def reachable(ops: Iterable[Op], outputs: Sequence[Value]) -> list[Op]:
    """Keeps the operations that some outputs depend on.

    Args:
      ops: operations in the order they run.
      outputs: the values wanted.

    Returns:
      Those of the operations that are needed, in the same order.

    Example:
      >>> from compressjax.graph.trace import trace
      >>> graph = trace(lambda v, x: (x + 1) * 2, {}, 1.0)
      >>> [op.kind for op in reachable(graph.ops, graph.ops[0].outputs)]
      ['add']
    """
    needed: set[Value] = set(outputs)
    kept = []
    for op in reversed(list(ops)):
        if any(value in needed for value in op.outputs):
            kept.append(op)
            needed.update(op.inputs)
    return kept[::-1]
