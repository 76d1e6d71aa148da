"""Where a correction is written: the variables behind a contraction's kernel and its bias.

A step's operand is computed from variables: moved into the layout of the step, cast, multiplied by
the norm behind it. Corrections are found on the operand and have to be written to the variables, so
this module goes the other way, from the wanted operand back to the leaf. `graph.kernels` knows the
layout of kernels without norms, before there is a plan.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from compressjax import graph as graphs
from compressjax import tree
from compressjax.graph import Graph
from compressjax.quant.plan import Plan, Step
from compressjax.quant.steps import Operand, operands


def bias_path(graph: Graph, step: Step) -> str | None:
    """Finds the variable that is added to each channel of a contraction, and to nothing else.

    Args:
      graph: the plan's graph.
      step: a contraction of the plan.

    Returns:
      The path of the last such variable before the activation, `None` where there is none.

    Example:
      >>> from compressjax.quant import quantize
      >>> variables = {'kernel': jnp.ones((3, 2)), 'bias': jnp.ones((1, 2))}
      >>> q = quantize(lambda v, x: x @ v['kernel'] + v['bias'])
      >>> plan = q.plan(variables, jnp.ones((1, 3)))
      >>> bias_path(plan.graph, plan.steps[0])
      'bias'
    """
    assert step.constant is not None
    for op, other in reversed(step.constant.chain):
        path = None if other is None else graph.links.get(other)
        if op.kind == "add" and path is not None and _belongs(graph, path, step.shape[-1]):
            return path
    return None


def kernel_path(graph: Graph, step: Step) -> str | None:
    """Finds the variable that is the kernel of a contraction, and of no other.

    Args:
      graph: the plan's graph.
      step: a contraction of the plan.

    Returns:
      Its path; `None` where the kernel is computed from variables, or used twice.

    Example:
      >>> from compressjax.quant import quantize
      >>> q = quantize(lambda v, x: x @ v['kernel'].T)
      >>> plan = q.plan({'kernel': jnp.ones((2, 3))}, jnp.ones((1, 3)))
      >>> kernel_path(plan.graph, plan.steps[0])
      'kernel'
    """
    assert step.constant is not None
    value = step.constant.value
    path = graph.links.get(value)
    return path if path is not None and _belongs(graph, path, math.prod(value.shape)) else None


def _belongs(graph: Graph, path: str, size: int) -> bool:
    value = graph.variables[path]
    return math.prod(value.shape) == size and graphs.readers(graph, value) == 1


def operand_of(plan: Plan, step: Step, variables: Any) -> Operand:
    """Evaluates the constant operand of one step.

    Args:
      plan: the plan.
      step: one of its steps that has a constant operand.
      variables: the function's variables.

    Returns:
      Its real values.
    """
    return operands(dataclasses.replace(plan, steps=(step,)), variables)[step.name]


def bias_leaf(plan: Plan, step: Step, variables: Any, path: str, shift: jax.Array) -> jax.Array:
    """Computes the variable that moves the bias of a contraction.

    Args:
      plan: the plan.
      step: one of its contractions.
      variables: the function's variables.
      path: from `bias_path`.
      shift: what to add to each channel's bias, `[O]`.

    Returns:
      The new leaf at `path`; a channel that a norm multiplies by zero keeps its bias.
    """
    leaf = tree.paths(variables)[path]

    def bias_of(leaf: jax.Array) -> jax.Array:
        found = operand_of(plan, step, tree.replace(variables, {path: leaf})).bias
        assert found is not None
        return found

    return (leaf + _preimage(bias_of, leaf, shift)).astype(leaf.dtype)


def kernel_leaf(plan: Plan, step: Step, variables: Any, path: str, kernel: jax.Array) -> jax.Array:
    """Computes the variable that gives a contraction a kernel.

    Args:
      plan: the plan.
      step: one of its contractions.
      variables: the function's variables.
      path: from `kernel_path`.
      kernel: the wanted kernel, in the layout of the step, norms included.

    Returns:
      The new leaf at `path`, equal to `kernel` bit for bit where no norm follows it; a channel that
      a norm multiplies by zero becomes zero.
    """
    leaf = tree.paths(variables)[path]

    def kernel_of(leaf: jax.Array) -> jax.Array:
        return operand_of(plan, step, tree.replace(variables, {path: leaf})).value

    return _preimage(kernel_of, leaf, kernel).astype(leaf.dtype)


def _preimage(
    function: Callable[[jax.Array], jax.Array], leaf: jax.Array, wanted: jax.Array
) -> jax.Array:
    """Finds what changes the value of an affine function by `wanted`.

    The function moves each element to a place of its own and multiplies it, so its matrix A has one
    entry in every row and column, and `A' (wanted / A A' 1)` is mapped to `wanted`.
    """
    value, pull = jax.vjp(function, leaf)
    _, squares = jax.jvp(function, (leaf,), pull(jnp.ones_like(value)))
    found: tuple[jax.Array] = pull(jnp.where(squares > 0, wanted / squares, 0.0))
    return found[0]
