"""Folding batch norm into the convolution or dense layer before it.

In evaluation mode a batch norm is an affine map per channel whose numbers depend on variables
alone. `fold_batch_norm` finds such maps after every contraction by reading the graph, whatever
framework wrote them, and multiplies them into the kernel. Phones run the result; training does not
need it.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compressjax import graph as graphs
from compressjax import tree
from compressjax.graph import Chain, Graph, Op, Value


@dataclasses.dataclass(frozen=True)
class _Site:
    """One kernel and the affine map that follows it.

    Attributes:
      op: the contraction.
      kernel: path of its kernel.
      bias: path of the bias after folding.
      axis: the channel axis of the contraction's output.
      chain: the operations of the affine map, with the operand that is not the activation.
    """

    op: Op
    kernel: str
    bias: str
    axis: int
    chain: Chain


def fold_batch_norm(
    fn: Callable[..., Any], variables: Any, *args: Any
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Folds every batch norm that follows a kernel into it (Jacob et al., 2018, section 3.2).

    Every kernel stays at its path; the new bias stands beside it as `bias`; the norms and their
    statistics are dropped. A norm that cannot be folded (before a kernel, or after a kernel that is
    used twice) stays as it is. What is folded need not be a batch norm: any per-channel affine map
    of variables that follows a kernel is.

    Args:
      fn: pure function `fn(variables, *args)` in evaluation mode.
      variables: nested dictionaries of arrays.
      *args: example inputs; the result takes any batch size.

    Returns:
      The folded function and its variables. Outputs agree up to float rounding.

    Raises:
      ValueError: if the variables do not fit the function.

    Example:
      >>> def fn(v, x):
      ...     return (x @ v['params']['a']['kernel'] - v['stats']['mean']) * v['params']['scale']
      >>> variables = {
      ...     'params': {'a': {'kernel': jnp.ones((3, 2))}, 'scale': 2 * jnp.ones((1, 2))},
      ...     'stats': {'mean': jnp.ones((1, 2))},
      ... }
      >>> folded, new = fold_batch_norm(fn, variables, jnp.ones((1, 3)))
      >>> new['params']['a']['bias'], folded(new, jnp.ones((1, 3)))
      (Array([-2., -2.], dtype=float32), Array([[4., 4.]], dtype=float32))
    """
    retrace = graphs.Retrace(fn, _prepare)
    shapes = graphs.template(variables)
    graph, sites, folded = retrace(shapes, *args)
    leaves = tree.paths(variables)
    channels = {site.kernel: _channels_of(graph, site) for site in sites}
    changed = jax.jit(lambda *args: _changed(graph, sites, *args))(leaves, channels)
    dropped = _used(graph) - _used(folded)
    kept = {path: leaf for path, leaf in leaves.items() if path not in dropped}
    biases = {site.op.name: site for site in sites}

    def apply(variables: Any, *args: Any) -> Any:
        *_, folded = retrace(shapes, *args)
        given = tree.paths(variables)

        def add_bias(op: Op, outputs: tuple[Any, ...]) -> tuple[Any, ...]:
            site = biases.get(op.name)
            if site is None:
                return outputs
            if site.bias not in given:
                raise ValueError(
                    f"the variables do not fit the folded function: missing {site.bias}; "
                    "pass the variables that fold_batch_norm returned"
                )
            shape = [1] * outputs[0].ndim
            shape[site.axis] = -1
            end = site.chain[-1][0].outputs[0]
            return ((outputs[0] + given[site.bias].reshape(shape)).astype(end.dtype),)

        return graphs.interpret(folded, variables, *args, after=add_bias)

    return apply, tree.from_paths({**kept, **changed})


def _changed(
    graph: Graph, sites: list[_Site], leaves: dict[str, Any], channels: dict[str, Any]
) -> dict[str, jax.Array]:
    """The new kernels and biases, by path."""
    known = {graph.variables[path]: leaf for path, leaf in leaves.items()}
    changed = {}
    for site in sites:
        scale, shift = graphs.affine_map(graph, site.chain, site.axis, known)
        kernel = leaves[site.kernel]
        width = site.op.out_shape[site.axis]
        factors = jnp.broadcast_to(scale, (width,))[channels[site.kernel]]
        changed[site.kernel] = (kernel * factors).astype(kernel.dtype)
        changed[site.bias] = jnp.broadcast_to(shift, (width,)).astype(kernel.dtype)
    return changed


def _used(graph: Graph) -> set[str]:
    outputs = set(graph.outputs)
    return {
        path
        for path, value in graph.variables.items()
        if value in outputs or graph.consumers.get(value)
    }


def _prepare(graph: Graph) -> tuple[Graph, list[_Site], Graph]:
    sites = _sites(graph)
    rewired = {site.chain[-1][0].outputs[0]: site.op.outputs[0] for site in sites}
    folded = graphs.substitute(graph, rewired)
    # A path is free for a bias if nothing has it, or nothing needs it any more.
    dropped = _used(graph) - _used(folded)
    taken = [path for path in graph.variables if path not in dropped]
    for i, site in enumerate(sites):
        sites[i] = dataclasses.replace(site, bias=_bias_path(site.kernel, taken))
        taken.append(sites[i].bias)
    return graph, sites, folded


def _bias_path(kernel: str, taken: list[str]) -> str:
    parent, _, leaf = kernel.rpartition("/")
    prefix = f"{parent}/" if parent else ""
    name = f"{prefix}bias"
    while any(path == name or path.startswith(f"{name}/") for path in taken):
        name = f"{prefix}{leaf}_{name.removeprefix(prefix)}"
    return name


def _sites(graph: Graph) -> list[_Site]:
    found = []
    for op in graph.ops:
        place = _kernel_operand(graph, op)
        if place is None:
            continue
        kernel, axis = place
        chain = graphs.affine_chain(graph, op.outputs[0], axis)
        if any(step.kind in ("mul", "div") for step, _ in chain):
            found.append(_Site(op, kernel, "", axis, chain))
    return found


def _kernel_operand(graph: Graph, op: Op) -> tuple[str, int] | None:
    """The path of a contraction's kernel and the channel axis of its output."""
    if op.kind == "conv_general_dilated":
        kernel, axis = op.inputs[1], op.params["dimension_numbers"].out_spec[1]
        if op.params["batch_group_count"] != 1:
            return None
    elif op.kind == "dot_general":
        contracting, batch = op.params["dimension_numbers"]
        side = 1 if op.inputs[1] in graph.links else 0
        kernel = op.inputs[side]
        free = len(kernel.shape) - len(contracting[side]) - len(batch[side])
        if free != 1 or batch[0]:
            return None
        axis = len(op.out_shape) - 1 if side else 0
    else:
        return None
    path = graph.links.get(kernel)
    if path is None or _readers(graph, graph.variables[path]) != 1:
        return None
    return None if _moved(graph, kernel, graph.variables[path]) is None else (path, axis)


def _readers(graph: Graph, value: Value) -> int:
    """How many operations compute with a variable, looking through casts and moves."""
    total = 0
    for op in graph.consumers.get(value, ()):
        moved = op.outputs[0] in graph.links
        total += _readers(graph, op.outputs[0]) if moved else 1
    return total + sum(value is output for output in graph.outputs)


def _channels_of(graph: Graph, site: _Site) -> np.ndarray:
    """The output channel that each element of a kernel's variable belongs to."""
    if site.op.kind == "conv_general_dilated":
        operand = site.op.inputs[1]
        out = site.op.params["dimension_numbers"].rhs_spec[0]
    else:
        side = 1 if site.op.inputs[1] in graph.links else 0
        operand = site.op.inputs[side]
        contracting, _ = site.op.params["dimension_numbers"]
        out = next(i for i in range(len(operand.shape)) if i not in contracting[side])
    where = _moved(graph, operand, graph.variables[site.kernel])
    assert where is not None  # or it were no site
    channels = np.zeros(where.size, np.int32)
    along = [-1 if axis == out else 1 for axis in range(where.ndim)]
    channels[where] = np.arange(where.shape[out], dtype=np.int32).reshape(along)
    return channels.reshape(graph.variables[site.kernel].shape)


def _moved(graph: Graph, value: Value, variable: Value) -> np.ndarray | None:
    """Where each element of a moved variable stands in the variable, flat; `None` if repeated."""
    if value is variable:
        return np.arange(math.prod(variable.shape)).reshape(variable.shape)
    op = graph.producers[value]
    where = _moved(graph, op.inputs[0], variable)
    if where is None or where.size != math.prod(op.out_shape):
        return None
    if op.kind == "transpose":
        return where.transpose(op.params["permutation"])
    if op.kind == "rev":
        return np.flip(where, op.params["dimensions"])
    return where.reshape(op.out_shape)
