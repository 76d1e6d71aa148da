"""Running a graph: the one interpreter that every transform hooks into.

`interpret` evaluates under any JAX transform. Hooks see each operation before and after it runs, or
stand in for it, so quantizing, shrinking, counting and capturing are the same walk.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from compressjax import tree
from compressjax.graph.ir import Graph, Literal, Op, Value

Before = Callable[[Op, tuple[Any, ...]], tuple[Any, ...]]
Rule = Callable[[Op, tuple[Any, ...]], Sequence[Any] | None]
After = Callable[[Op, tuple[Any, ...]], Sequence[Any]]


def evaluate(
    graph: Graph,
    wanted: Sequence[Value],
    known: Mapping[Value, Any],
    *,
    before: Before | None = None,
    rule: Rule | None = None,
    after: After | None = None,
) -> list[Any]:
    """Evaluates some values of a graph from others; only the operations in between run.

    Args:
      graph: the graph.
      wanted: the values to compute.
      known: arrays (or whatever the hooks use instead) for the values that are given.
      before: `before(op, inputs) -> inputs`, called before an operation.
      rule: `rule(op, inputs) -> outputs`, run instead of an operation; `None` runs the operation.
      after: `after(op, outputs) -> outputs`, called after an operation.

    Returns:
      One result for each wanted value.

    Raises:
      ValueError: if a wanted value depends on an input or variable that is not given.

    Example:
      >>> from compressjax.graph.trace import trace
      >>> graph = trace(lambda v, x: (x + 1.0) * v['a'], {'a': 2.0}, 3.0)
      >>> evaluate(graph, [graph.ops[0].outputs[0]], {graph.inputs['input_0']: 3.0})
      [Array(4., dtype=float32, weak_type=True)]
    """
    env: dict[Value, Any] = {**graph.constants, **known}

    def read(value: Value) -> Any:
        return value.value if isinstance(value, Literal) else env[value]

    for op in _needed(graph, wanted, env):
        inputs = tuple(read(value) for value in op.inputs)
        if before is not None:
            inputs = before(op, inputs)
        outputs = rule(op, inputs) if rule is not None else None
        if outputs is None:
            outputs = op.bind(op.params, *inputs)
        if after is not None:
            outputs = after(op, tuple(outputs))
        env.update(zip(op.outputs, outputs, strict=True))
    return [read(value) for value in wanted]


def interpret(
    graph: Graph,
    variables: Any,
    *args: Any,
    before: Before | None = None,
    rule: Rule | None = None,
    after: After | None = None,
) -> Any:
    """Runs a graph as the function it was traced from; without hooks it equals that function.

    Args:
      graph: from `trace`.
      variables: a tree with the paths of the traced variables that the graph still uses.
      *args: as the traced function takes them, at the traced shapes.
      before: see `evaluate`.
      rule: see `evaluate`.
      after: see `evaluate`.

    Returns:
      What the function returns.

    Raises:
      ValueError: if variables are missing or of other shapes, or arguments are not those that were
        traced.

    Example:
      >>> from compressjax.graph.trace import trace
      >>> graph = trace(lambda v, x: x * v['a'], {'a': 2.0}, 3.0)
      >>> float(interpret(graph, {'a': 2.0}, 3.0))
      6.0
    """
    known = bind_arguments(graph, variables, *args)
    for path, value in graph.variables.items():
        if value in known and jnp.shape(known[value]) != value.shape:
            raise ValueError(
                f"the variables do not fit the function: {path} has shape "
                f"{jnp.shape(known[value])}, expected {value.shape}"
            )
    outputs = evaluate(graph, graph.outputs, known, before=before, rule=rule, after=after)
    return jax.tree.unflatten(graph.out_tree, outputs)


def bind_arguments(graph: Graph, variables: Any, *args: Any) -> dict[Value, Any]:
    """Pairs the graph's inputs and variables with the arrays of one call.

    Args:
      graph: from `trace`.
      variables: a tree with paths of the traced variables; some may be missing.
      *args: as the traced function takes them.

    Returns:
      The arrays by value.

    Raises:
      ValueError: if the number of inputs is not the traced one.

    Example:
      >>> from compressjax.graph.trace import trace
      >>> list(bind_arguments(trace(lambda v, x: x, {}, 3.0), {}, 4.0).values())
      [4.0]
    """
    leaves = [leaf for arg in args for leaf in jax.tree.leaves(arg)]
    if len(leaves) != len(graph.inputs):
        raise ValueError(
            f"the function was traced with {len(graph.inputs)} inputs "
            f"({', '.join(graph.inputs)}), called with {len(leaves)}; call it as it was traced"
        )
    return {
        **dict(zip(graph.inputs.values(), leaves, strict=True)),
        **bind_variables(graph, variables),
    }


def bind_variables(graph: Graph, variables: Any) -> dict[Value, Any]:
    """Pairs the graph's variables with the leaves that have their paths.

    Args:
      graph: from `trace`.
      variables: a tree with paths of the traced variables; some may be missing, others are ignored.

    Returns:
      The arrays by value.

    Example:
      >>> from compressjax.graph.trace import trace
      >>> graph = trace(lambda v, x: x * v['a'], {'a': 2.0}, 3.0)
      >>> list(bind_variables(graph, {'a': 5.0, 'b': 6.0}).values())
      [5.0]
    """
    given = tree.paths(variables)
    return {value: given[path] for path, value in graph.variables.items() if path in given}


def _needed(graph: Graph, wanted: Sequence[Value], known: Mapping[Value, Any]) -> list[Op]:
    """The operations between known and wanted values, in order."""
    missing: set[Value] = {v for v in wanted if v not in known and not isinstance(v, Literal)}
    ops = []
    for op in reversed(graph.ops):
        if any(value in missing for value in op.outputs):
            missing.difference_update(op.outputs)
            missing.update(v for v in op.inputs if v not in known and not isinstance(v, Literal))
            ops.append(op)
    if missing:
        named = {value: name for name, value in {**graph.variables, **graph.inputs}.items()}
        raise ValueError(
            "the variables do not fit the function: missing "
            + ", ".join(sorted(named.get(value, repr(value)) for value in missing)[:4])
        )
    return ops[::-1]
