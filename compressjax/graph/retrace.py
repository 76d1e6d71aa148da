"""Tracing again for the shapes of each call, once for each shape.

A transformed function must not fix the batch size it was made with. `Retrace` traces the original
function for whatever inputs it is called with, with the shapes of the variables that *it* takes,
and keeps what a transform made of each graph.
"""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp

from compressjax.graph.ir import Graph
from compressjax.graph.trace import trace

T = TypeVar("T")


def template(tree: Any) -> Any:
    """Replaces arrays by their shapes and dtypes.

    Args:
      tree: a pytree of arrays or `jax.ShapeDtypeStruct`s.

    Returns:
      The same tree of `jax.ShapeDtypeStruct`s.

    Example:
      >>> template({'a': jnp.zeros((2, 3))})
      {'a': ShapeDtypeStruct(shape=(2, 3), dtype=float32)}
    """
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), tree)


class Retrace(Generic[T]):
    """Makes `prepare(graph)` for the shapes of each call, and remembers it.

    Example:
      >>> macs = Retrace(lambda v, x: x @ v, lambda graph: graph.macs)
      >>> macs(jnp.ones((3, 2)), jnp.ones((1, 3))), macs(jnp.ones((3, 2)), jnp.ones((5, 3)))
      (6, 30)
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        prepare: Callable[[Graph], T],
        *,
        keep_custom: bool = True,
    ):
        self._fn = fn
        self._prepare = prepare
        self._keep_custom = keep_custom
        self._made: dict[Any, T] = {}

    def __call__(self, variables: Any, *args: Any) -> T:
        """Prepares for the shapes of `variables` (arrays or their `template`) and `args`."""
        shapes = template((variables, args))
        leaves, structure = jax.tree.flatten(shapes)
        key = (structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves), _precision())
        if key in self._made:
            return self._made[key]
        graph = trace(self._fn, shapes[0], *shapes[1], keep_custom=self._keep_custom)
        with jax.ensure_compile_time_eval():  # what is kept must not belong to a caller's trace
            made = self._prepare(graph)
        if not any(isinstance(const, jax.core.Tracer) for const in graph.constants.values()):
            self._made[key] = made
        return made


def _precision() -> tuple[Any, ...]:
    """The settings that change what tracing gives."""
    return tuple(jax.config.values[k] for k in ("jax_enable_x64", "jax_default_matmul_precision"))
