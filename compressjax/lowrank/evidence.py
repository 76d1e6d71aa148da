"""What layers do on data: the second moments that data-driven decompositions work with.

A kernel's own singular values treat all inputs alike, yet inputs of trained layers are strongly
correlated. Sums of products are all that least squares needs to know of the data, and their size
does not grow with it; `methods` are the neighbours that use them.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compressjax import graph as graphs
from compressjax import tree
from compressjax.graph import Graph
from compressjax.lowrank import layers
from compressjax.lowrank.layers import Use
from compressjax.lowrank.methods.base import Moments


def observe(
    fn: Callable[..., Any],
    variables: Any,
    batches: Iterable[Any],
    *,
    patches: bool = False,
    select: str | Iterable[str] = "**",
) -> dict[str, Moments]:
    """Runs batches and sums products of what layers read and of what they put out.

    Zhang et al., "Accelerating Very Deep Convolutional Networks for Classification and Detection"
    (2015), on why: the responses of a layer span far fewer directions than its kernel does.

    Args:
      fn: a pure function, called as `fn(variables, *args)`; from any framework.
      variables: pytree of arrays.
      batches: each is a tuple of the function's arguments, or its only argument.
      patches: whether to also sum products of whole patches, of `taps * inputs` elements each:
        exact for convolutions, and as many times larger as a window has positions squared.
      select: globs over paths of the kernels that are looked at.

    Returns:
      The moments by path of each kernel that can be factorized, float64: sums over examples,
      positions, batches and all uses of the kernel.

    Raises:
      ValueError: if there are no batches, a glob matches nothing, or a sum is not finite.

    Example:
      >>> fn = lambda v, x: x @ v['w']
      >>> variables = {'w': np.array([[1.0], [2.0]], 'f')}
      >>> seen = observe(fn, variables, [np.array([[1.0, 1.0]], 'f'), np.array([[0.0, 1.0]], 'f')])
      >>> seen['w'].inputs.tolist(), seen['w'].outputs.tolist()
      ([[[1.0, 1.0], [1.0, 2.0]]], [[[13.0]]])
    """

    def prepare(graph: Graph) -> Callable[..., dict[str, list[jax.Array]]]:
        uses, _ = layers.find(graph)
        chosen = tree.match(select, uses, what="select") if uses else []
        mine = [use for path in chosen for use in uses[path]]
        return jax.jit(functools.partial(_pass, graph, mine, patches))

    if hasattr(batches, "shape"):
        raise ValueError(
            f"observe was given one array of shape {batches.shape}, expected an iterable of "
            "batches, such as [images]"
        )
    retrace = graphs.Retrace(fn, prepare)
    total: dict[str, list[np.ndarray]] = {}
    number = 0
    for number, batch in enumerate(batches, 1):
        args = batch if isinstance(batch, tuple) else (batch,)
        for path, sums in retrace(variables, *args)(variables, *args).items():
            new = [np.asarray(x, np.float64) for x in sums]
            if not all(np.isfinite(x).all() for x in new):
                raise ValueError(
                    f"{path}: what it reads or puts out is not finite in batch {number}, expected "
                    "finite sums of products; check the data and the variables"
                )
            known = total.get(path)
            total[path] = new if known is None else [a + b for a, b in zip(known, new, strict=True)]
    if not number:
        raise ValueError("there are no batches, expected at least one to observe layers on")
    return {path: Moments(*sums) for path, sums in total.items()}


def _pass(
    graph: Graph, uses: list[Use], patches: bool, variables: Any, *args: Any
) -> dict[str, list[jax.Array]]:
    """The moments of one batch."""
    wanted = [value for use in uses for value in (use.data, use.op.outputs[0])]
    values = graphs.evaluate(graph, wanted, graphs.bind_arguments(graph, variables, *args))
    found: dict[str, list[jax.Array]] = {}
    for use, data, output in zip(uses, values[::2], values[1::2], strict=True):
        rows = [use.inputs(data), use.outputs(output), *([use.patches(data)] if patches else [])]
        sums = [_squared(x) for x in rows]
        known = found.get(use.path)
        found[use.path] = (
            sums if known is None else [a + b for a, b in zip(known, sums, strict=True)]
        )
    return found


def _squared(rows: jax.Array) -> jax.Array:
    """`[rows, G, C]` to sums of products `[G, C, C]`, float32."""
    rows = rows.astype(jnp.float32)
    return jnp.einsum("rgi,rgj->gij", rows, rows, precision=jax.lax.Precision.HIGHEST)
