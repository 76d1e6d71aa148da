"""Values that depend on constants alone, such as a table of sinusoids or a mask.

No cut changes them, so they tie nothing together: they are computed whole, and what of them is read
is taken. What they hold where it is not read is known too, and sums over channels count it (see
`narrow`).
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from compressjax.graph.channel_moves import MOVES, is_zero
from compressjax.graph.interpret import evaluate
from compressjax.graph.ir import Graph, Op, Value, follow
from compressjax.graph.units import ZERO, Axes, Units


def fixed(graph: Graph) -> frozenset[Op]:
    """Finds the operations on constants alone, in the bodies of loops too.

    Args:
      graph: the graph.

    Returns:
      The operations, but for those that spread one number over a shape: the number may be computed
      whole, the shape follows from what reads it.

    Example:
      >>> import jax.numpy as jnp
      >>> from compressjax.graph.trace import trace
      >>> graph = trace(lambda v, x: x * v + jnp.sin(jnp.arange(3.0)), 2.0, jnp.ones(3))
      >>> sorted(op.kind for op in fixed(graph))
      ['iota', 'sin']
    """
    found = follow(graph.ops, graph.constants)
    ops = {
        op
        for op in graph.ops
        if all(value in found for value in op.outputs)
        and not (op.kind == "broadcast_in_dim" and not op.inputs[0].shape)
    }
    bodies = (fixed(op.body) for op in graph.ops if op.body is not None and op not in ops)
    return frozenset(ops).union(*bodies)


def border(graph: Graph, ops: frozenset[Op]) -> tuple[Value, ...]:
    """Finds the values that fixed operations put out and others read.

    Args:
      graph: the graph.
      ops: its fixed operations.

    Returns:
      The values, in order.

    Example:
      >>> import jax.numpy as jnp
      >>> from compressjax.graph.trace import trace
      >>> graph = trace(lambda v, x: x * v + jnp.sin(jnp.arange(3.0)), 2.0, jnp.ones(3))
      >>> [graph.producers[value].kind for value in border(graph, fixed(graph))]
      ['sin']
    """
    made = {value for op in graph.ops if op in ops for value in op.outputs}
    read = [value for op in graph.ops if op not in ops for value in op.inputs]
    return tuple(dict.fromkeys(value for value in (*read, *graph.outputs) if value in made))


def compute(graph: Graph, values: Sequence[Value]) -> list[Any]:
    """Computes fixed values, once and for all.

    Args:
      graph: the graph.
      values: constants, and what fixed operations put out.

    Returns:
      NumPy arrays; where the function closed over what is being traced, traced ones.

    Example:
      >>> import jax.numpy as jnp
      >>> from compressjax.graph.trace import trace
      >>> graph = trace(lambda v, x: x * v + jnp.cos(jnp.zeros(2)), 2.0, jnp.ones(2))
      >>> compute(graph, border(graph, fixed(graph)))
      [array([1., 1.], dtype=float32)]
    """
    if any(isinstance(array, jax.core.Tracer) for array in graph.constants.values()):
        return evaluate(graph, values, {})
    with jax.ensure_compile_time_eval():
        return [np.asarray(array) for array in evaluate(graph, values, {})]


def sources(units: Units, value: Value) -> Axes:
    """Makes the units of a constant.

    Args:
      units: the units.
      value: the constant.

    Returns:
      New units, tied to nothing, labelled as known at cut positions.

    Example:
      >>> [axis.tolist() for axis in sources(Units(), Value((2, 1), 'float32'))]
      [[0, 1], [2]]
    """
    return tuple(units.fresh(size, units.label((value, i))) for i, size in enumerate(value.shape))


def couple(units: Units, op: Op, ins: Sequence[Axes]) -> Sequence[Axes]:
    """Makes the units of what a fixed operation puts out, tied to nothing.

    Args:
      units: the units.
      op: the operation.
      ins: the units of its operands.

    Returns:
      New units; zeros that are only moved are still zeros.

    Example:
      >>> import jax.numpy as jnp
      >>> from compressjax.graph.trace import trace
      >>> _, op, _ = trace(lambda v, x: x + jnp.zeros(2).reshape(2, 1), {}, jnp.ones((2, 1))).ops
      >>> units = Units()
      >>> ((rows, _),) = couple(units, op, [(units.fresh(2, ZERO),)])
      >>> bool((units.rest(rows) == ZERO).all())
      True
    """
    zero = op.kind in MOVES and all(
        is_zero(value) or (axes and all((units.rest(axis) == ZERO).all() for axis in axes))
        for value, axes in zip(op.inputs, ins, strict=True)
    )
    if zero and op.inputs:
        return [tuple(units.fresh(size, ZERO) for size in value.shape) for value in op.outputs]
    return [sources(units, value) for value in op.outputs]
