"""Folding batch norm into the convolution or dense layer before it.

In evaluation mode a batch norm is an affine map per channel whose numbers depend on variables
alone. `fold_batch_norm` finds such maps after every contraction by reading the graph, whatever
framework wrote them, and multiplies them into the kernel. Phones run the result; training does not
need it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from compressjax import graph as graphs
from compressjax import tree
from compressjax.graph import Chain, Graph, Kernel, Op


@dataclasses.dataclass(frozen=True)
class _Site:
    """One kernel and the affine map that follows it.

    Attributes:
      kernel: the kernel.
      bias: path of the bias after folding.
      chain: the operations of the affine map, with the operand that is not the activation.
    """

    kernel: Kernel
    bias: str
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
    changed = jax.jit(lambda leaves: _changed(graph, sites, leaves))(leaves)
    dropped = _used(graph) - _used(folded)
    kept = {path: leaf for path, leaf in leaves.items() if path not in dropped}
    biases = {site.kernel.op.name: site for site in sites}

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
            shape[site.kernel.axis] = -1
            end = site.chain[-1][0].outputs[0]
            return ((outputs[0] + given[site.bias].reshape(shape)).astype(end.dtype),)

        return graphs.interpret(folded, variables, *args, after=add_bias)

    return apply, tree.from_paths({**kept, **changed})


def _changed(graph: Graph, sites: list[_Site], leaves: dict[str, Any]) -> dict[str, jax.Array]:
    """The new kernels and biases, by path."""
    known = {graph.variables[path]: leaf for path, leaf in leaves.items()}
    changed = {}
    for site in sites:
        kernel = site.kernel
        scale, shift = graphs.affine_map(graph, site.chain, kernel.axis, known)
        leaf = jnp.asarray(leaves[kernel.path])
        factors = jnp.broadcast_to(scale, (kernel.width,)).reshape((1, 1, kernel.groups, -1))
        changed[kernel.path] = kernel.put(kernel.take(leaf) * factors).astype(leaf.dtype)
        changed[site.bias] = jnp.broadcast_to(shift, (kernel.width,)).astype(leaf.dtype)
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
    rewired = {site.chain[-1][0].outputs[0]: site.kernel.op.outputs[0] for site in sites}
    folded = graphs.substitute(graph, rewired)
    # A path is free for a bias if nothing has it, or nothing needs it any more.
    dropped = _used(graph) - _used(folded)
    taken = [path for path in graph.variables if path not in dropped]
    for i, site in enumerate(sites):
        sites[i] = dataclasses.replace(site, bias=_bias_path(site.kernel.path, taken))
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
        kernel = graphs.kernel_of(graph, op)
        if kernel is None:
            continue
        chain = graphs.affine_chain(graph, op.outputs[0], kernel.axis)
        if any(step.kind in ("mul", "div") for step, _ in chain):
            found.append(_Site(kernel, "", chain))
    return found
