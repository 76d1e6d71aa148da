"""Values inside a function, by the names of the operations that put them out.

Hints, attention maps and probes need what a model computes on the way. Here nothing of the model is
edited and no module has to sow: the function is traced, and what is asked for comes out beside its
outputs.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax

from compressjax import tree
from compressjax.graph.interpret import bind_arguments, evaluate
from compressjax.graph.ir import Graph, Value
from compressjax.graph.retrace import Retrace
from compressjax.graph.trace import trace


def capture(
    fn: Callable[..., Any], variables: Any, *args: Any, at: str | Iterable[str]
) -> dict[str, jax.Array]:
    """Computes values inside a function; only the operations that they depend on run.

    Args:
      fn: a pure function, called as `fn(variables, *args)`; from any framework.
      variables: pytree of arrays.
      *args: its inputs.
      at: names of operations, or globs over them; `cj.trace(...).summary()` lists them.

    Returns:
      The first output of each of these operations, by name, in the order they run.

    Raises:
      ValueError: if a glob matches no operation.

    Example:
      >>> import numpy as np
      >>> fn = lambda v, x: jax.nn.relu(x @ v['a']) @ v['b']
      >>> variables = {'a': np.array([[1.0, -1.0]], 'f'), 'b': np.ones((2, 1), 'f')}
      >>> capture(fn, variables, np.ones((1, 1), 'f'), at='relu_0')
      {'relu_0': Array([[1., 0.]], dtype=float32)}
    """
    graph = trace(fn, variables, *args)
    places = _places(graph, at)
    values = evaluate(graph, list(places.values()), bind_arguments(graph, variables, *args))
    return dict(zip(places, values, strict=True))


def capturing(
    fn: Callable[..., Any], at: str | Iterable[str]
) -> Callable[..., tuple[Any, dict[str, jax.Array]]]:
    """Makes a function give values from inside it beside its outputs, in one pass.

    Args:
      fn: a pure function, called as `fn(variables, *args)`; from any framework.
      at: names of operations, or globs over them.

    Returns:
      `fn2(variables, *args) -> (outputs, captured)`, where `captured` is what `capture` gives. It
      is traced again for inputs of other shapes, and raises ValueError if a glob matches no
      operation.

    Example:
      >>> import numpy as np
      >>> fn = capturing(lambda v, x: jax.nn.relu(x @ v['a']).sum(), 'relu_*')
      >>> total, inside = fn({'a': np.array([[1.0, -1.0]], 'f')}, np.ones((1, 1), 'f'))
      >>> float(total), inside['relu_0'].shape
      (1.0, (1, 2))
    """
    names = [at] if isinstance(at, str) else list(at)
    retrace = Retrace(fn, lambda graph: (graph, _places(graph, names)))

    def captured(variables: Any, *args: Any) -> tuple[Any, dict[str, jax.Array]]:
        graph, places = retrace(variables, *args)
        known = bind_arguments(graph, variables, *args)
        values = evaluate(graph, [*graph.outputs, *places.values()], known)
        count = len(graph.outputs)
        outputs = jax.tree.unflatten(graph.out_tree, values[:count])
        return outputs, dict(zip(places, values[count:], strict=True))

    return captured


def _places(graph: Graph, at: str | Iterable[str]) -> dict[str, Value]:
    """The first outputs of the operations that are asked for, by name."""
    outputs = {op.name: op.outputs[0] for op in graph.ops if op.outputs}
    return {name: outputs[name] for name in tree.match(at, outputs, what="at")}
