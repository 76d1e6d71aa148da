"""What a graph says about numbers: literals, and small computations with literals alone."""

import jax
import numpy as np

from compressjax.graph import Graph, Literal, Value

_VIEWS = frozenset({"broadcast_in_dim", "reshape", "squeeze", "expand_dims"})
_ARITHMETIC = frozenset("add sub mul div neg gt sqrt convert_element_type".split())


def number(graph: Graph, value: Value) -> float | None:
    """The one number that a value holds, if it is made of literals alone.

    Args:
      graph: the graph.
      value: a value of it, of any shape.

    Returns:
      The number; `None` where the value depends on an input or a variable.

    Example:
      >>> import jax.numpy as jnp
      >>> from compressjax.graph import trace
      >>> graph = trace(lambda v, x: x - jnp.full((1, 3), 2.0), {}, jnp.ones((1, 3)))
      >>> number(graph, graph.ops[-1].inputs[1])
      2.0
    """
    if isinstance(value, Literal):
        return float(value.value) if np.ndim(value.value) == 0 else None
    op = graph.producers.get(value) if graph.is_static(value) else None
    if op is None or len(op.outputs) != 1 or op.kind not in _VIEWS | _ARITHMETIC:
        return None
    inputs = []
    for operand in op.inputs:
        found = number(graph, operand)
        if found is None:
            return None
        inputs.append(found)
    if op.kind in _VIEWS:
        return inputs[0]
    with jax.ensure_compile_time_eval():
        pairs = zip(inputs, op.inputs, strict=True)
        operands = [np.asarray(x, operand.dtype) for x, operand in pairs]
        return float(op.bind(op.params, *operands)[0])


def source(graph: Graph, value: Value) -> Value:
    """The value that another one is a mere view of: axes of size one added or taken away.

    Args:
      graph: the graph.
      value: a value of it.

    Returns:
      Where the views start.

    Example:
      >>> import jax.numpy as jnp
      >>> from compressjax.graph import trace
      >>> graph = trace(lambda v, x: (2 * x)[:, None], {}, jnp.ones(3))
      >>> source(graph, graph.outputs[0]) is graph.ops[0].outputs[0]
      True
    """
    op = graph.producers.get(value)
    while op is not None and op.kind in _VIEWS and _sizes(op.inputs[0]) == _sizes(op.outputs[0]):
        value = op.inputs[0]
        op = graph.producers.get(value)
    return value


def _sizes(value: Value) -> list[int]:
    return [size for size in value.shape if size != 1]
