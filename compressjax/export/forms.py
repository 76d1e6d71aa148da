"""Writes operations of a float function in another form, one that converters get right.

Which operations and which form is said by whoever knows the converters' mistake (`transposed.py`,
`pointwise.py`); here the function is read and run with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from compressjax import graph as graphs
from compressjax.graph import Op


def rewritten(
    fn: Callable[..., Any],
    specs: Sequence[jax.ShapeDtypeStruct],
    applies: Callable[[Op], bool],
    write: Callable[[Op, tuple[Any, ...]], jax.Array],
) -> Callable[..., Any]:
    """Replaces some operations of a function.

    Args:
        fn: pure function of arrays.
        specs: shape and dtype of each.
        applies: which operations give way.
        write: `write(op, inputs) -> output`, in the other form.

    Returns:
        A function with the same values; `fn` itself where it has no such operation.

    Example:
        >>> import jax.numpy as jnp
        >>> spec = jax.ShapeDtypeStruct((), jnp.float32)
        >>> fn = rewritten(jnp.sin, [spec], lambda op: op.kind == 'sin', lambda op, x: 2 * x[0])
        >>> float(fn(3.0)), rewritten(jnp.cos, [spec], lambda op: False, max) is jnp.cos
        (6.0, True)
    """
    graph = graphs.trace(lambda _, *args: fn(*args), {}, *specs)
    found = {op.name for op in graph.ops if applies(op)}
    if not found:
        return fn

    def rule(op: Op, inputs: tuple[Any, ...]) -> Sequence[Any] | None:
        return [write(op, inputs)] if op.name in found else None

    return lambda *args: graphs.interpret(graph, {}, *args, rule=rule)
