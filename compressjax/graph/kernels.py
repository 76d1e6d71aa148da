"""Kernels: which variable a contraction multiplies its input with, and where each weight stands.

Transforms that rescale weights need one layout for all of them, whatever the function does with a
variable before it is used. `kernel_of` finds the variable behind a convolution or matrix product;
`Kernel.take` and `Kernel.put` move it to `[taps, inputs, groups, outputs]` and back.
"""

import dataclasses
import functools
import math

import jax
import numpy as np

from compressjax.graph.ir import Graph, Op, Value


@dataclasses.dataclass(frozen=True, eq=False)
class Kernel:
    """The kernel of one contraction: a variable that nothing else is computed with.

    Attributes:
      op: the contraction.
      path: path of the variable.
      variable: the variable.
      where: the operand of `op` that the variable becomes by casts and moves.
      data: the other operand.
      axis: the channel axis of the contraction's output.
      features: the axes of `data` that are summed over.
      groups: groups of channels that are convolved apart; 1 for a matrix product.
      graph: the graph.
    """

    op: Op
    path: str
    variable: Value
    where: Value
    data: Value
    axis: int
    features: tuple[int, ...]
    groups: int
    graph: Graph

    @property
    def width(self) -> int:
        """Output channels."""
        return self.op.out_shape[self.axis]

    @functools.cached_property
    def _index(self) -> np.ndarray:
        """Where each weight of the common layout stands in the variable, flat."""
        operand = places(self.graph, self.where, self.variable)
        if self.op.kind == "conv_general_dilated":
            out, into, *taps = self.op.params["dimension_numbers"].rhs_spec
            order = (*taps, into, out)
            shape = (-1, operand.shape[into], self.groups, self.width // self.groups)
        else:
            side = self.op.inputs.index(self.where)
            contracting = self.op.params["dimension_numbers"][0][side]
            order = (*contracting, *(i for i in range(operand.ndim) if i not in contracting))
            shape = (1, -1, 1, self.width)
        return operand.transpose(order).reshape(shape)

    def take(self, variable: jax.Array) -> jax.Array:
        """Brings the variable into the common layout.

        Args:
          variable: the array at `path`.

        Returns:
          `[taps, inputs of a group, groups, outputs of a group]`; taps are the positions of a
          convolution's window. Output channels, and a convolution's input channels, count group
          by group; the inputs of a matrix product count along `features`, the last one fastest.
        """
        flat = variable.reshape(-1)
        index = self._index
        ordered = np.array_equal(index.ravel(), np.arange(index.size))
        return flat.reshape(index.shape) if ordered else flat[index]

    def put(self, weights: jax.Array) -> jax.Array:
        """Brings weights from the common layout back into the variable's: the inverse of `take`."""
        back = np.argsort(self._index.ravel(), kind="stable")
        ordered = np.array_equal(back, np.arange(back.size))
        flat = weights.reshape(-1)
        return (flat if ordered else flat[back]).reshape(self.variable.shape)


def kernel_of(graph: Graph, op: Op) -> Kernel | None:
    """Finds the variable that a contraction multiplies its input with.

    Args:
      graph: the graph.
      op: any operation.

    Returns:
      The kernel; `None` if the operation is no convolution or matrix product with one axis of
      output channels, or if its kernel is computed, used elsewhere too, or repeats a variable's
      elements.

    Example:
      >>> from compressjax.graph.trace import trace
      >>> graph = trace(lambda v, x: x @ v['w'].T, {'w': np.ones((2, 3))}, np.ones((1, 3)))
      >>> kernel = kernel_of(graph, graph.ops[-1])
      >>> kernel.path, kernel.take(np.ones((2, 3))).shape
      ('w', (1, 3, 1, 2))
    """
    groups = 1
    if op.kind == "conv_general_dilated":
        numbers = op.params["dimension_numbers"]
        if op.params["batch_group_count"] != 1:
            return None
        side, axis, groups = 1, numbers.out_spec[1], op.params["feature_group_count"]
        features: tuple[int, ...] = (numbers.lhs_spec[1],)
    elif op.kind == "dot_general":
        contracting, batch = op.params["dimension_numbers"]
        side = 1 if op.inputs[1] in graph.links else 0
        free = len(op.inputs[side].shape) - len(contracting[side]) - len(batch[side])
        if free != 1 or batch[0]:
            return None
        axis = len(op.out_shape) - 1 if side else 0
        features = tuple(contracting[1 - side])
    else:
        return None
    where, data = op.inputs[side], op.inputs[1 - side]
    path = graph.links.get(where)
    if path is None:
        return None
    variable = graph.variables[path]
    if readers(graph, variable) != 1 or not _one_to_one(graph, where, variable):
        return None
    return Kernel(op, path, variable, where, data, axis, features, groups, graph)


def readers(graph: Graph, value: Value) -> int:
    """Counts the operations that compute with a variable, looking through casts and moves.

    Args:
      graph: the graph.
      value: a variable, or what casts and moves made of one.

    Returns:
      How many; being an output of the function counts as well.

    Example:
      >>> from compressjax.graph.trace import trace
      >>> graph = trace(lambda v, x: x @ v.T @ v, np.ones((2, 3)), np.ones((1, 3)))
      >>> readers(graph, graph.variables[''])
      2
    """
    total = 0
    for op in graph.consumers.get(value, ()):
        moved = op.outputs[0] in graph.links
        total += readers(graph, op.outputs[0]) if moved else 1
    return total + sum(value is output for output in graph.outputs)


def places(graph: Graph, value: Value, variable: Value) -> np.ndarray:
    """Says where each element of a moved variable stands in the variable.

    Args:
      graph: the graph.
      value: what casts and moves, which repeat nothing, made of the variable.
      variable: the variable.

    Returns:
      Flat positions in the variable, int64, of the value's shape.

    Example:
      >>> from compressjax.graph.trace import trace
      >>> graph = trace(lambda v, x: x @ v.T, np.ones((2, 3)), np.ones((1, 3)))
      >>> places(graph, graph.ops[0].outputs[0], graph.variables['']).tolist()
      [[0, 3], [1, 4], [2, 5]]
    """
    if value is variable:
        return np.arange(math.prod(variable.shape)).reshape(variable.shape)
    op = graph.producers[value]
    where = places(graph, op.inputs[0], variable)
    if op.kind == "transpose":
        return where.transpose(op.params["permutation"])
    if op.kind == "rev":
        return np.flip(where, op.params["dimensions"])
    return where.reshape(op.out_shape)


def _one_to_one(graph: Graph, value: Value, variable: Value) -> bool:
    """Whether the moves between a variable and a value repeat no element."""
    while value is not variable:
        if math.prod(value.shape) != math.prod(variable.shape):
            return False
        value = graph.producers[value].inputs[0]
    return True
