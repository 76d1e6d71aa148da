"""Importance from activations: what a channel carries when data goes through.

What counts is what a reading kernel gets, behind norm and activation. `observe` runs batches and
keeps one statistic for each channel that each kernel reads; a group is scored by its readers.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compressjax import graph as graphs
from compressjax.graph import kernels
from compressjax.graph.channels import Group
from compressjax.graph.interpret import interpret
from compressjax.slimming.importance.base import Combine, Importance, combined

Statistic = Callable[[np.ndarray], np.ndarray]


def mean_magnitude(x: np.ndarray) -> np.ndarray:
    """Averages absolute activations.

    Args:
      x: `[B, ..., I]`, what a kernel reads.

    Returns:
      `[I]` float64.

    Example:
      >>> mean_magnitude(np.array([[1.0, -2.0], [3.0, 0.0]])).tolist()
      [2.0, 1.0]
    """
    return np.abs(x).mean(axis=tuple(range(x.ndim - 1)), dtype=np.float64)


def mean_rank(x: np.ndarray) -> np.ndarray:
    """Averages the ranks of feature maps.

    Args:
      x: `[B, H, W, I]`, what a kernel reads; with fewer axes, maps are rows or single numbers, with
        more, the axes in the middle are one.

    Returns:
      `[I]` float64.

    Example:
      >>> maps = np.stack([np.eye(3), np.ones((3, 3))], axis=-1)
      >>> mean_rank(maps[None]).tolist()
      [3.0, 1.0]
    """
    height = x.shape[1] if x.ndim > 2 else 1
    maps = np.moveaxis(x.reshape(x.shape[0], height, -1, x.shape[-1]), -1, 1)
    return np.linalg.matrix_rank(maps).mean(axis=0, dtype=np.float64)


def observe(
    fn: Callable[..., Any], variables: Any, batches: Iterable[Any], statistic: Statistic
) -> dict[str, np.ndarray]:
    """Runs batches, and takes a statistic of each channel that each kernel reads.

    Args:
      fn: the function, called as `fn(variables, batch)`.
      variables: pytree of arrays.
      batches: its inputs, all of the same shape, or it is compiled again.
      statistic: `[B, ..., I] -> [I]`, of what one kernel reads, channels last.

    Returns:
      For the path of each kernel that is used once, an array of its shape: for each weight, the
      statistic of what it is multiplied with, averaged over batches.

    Raises:
      ValueError: if there are no batches.

    Example:
      >>> fn = lambda v, x: jax.nn.relu(x) @ v['w']
      >>> batch = np.array([[1.0, -2.0], [3.0, -4.0]], 'f')
      >>> observe(fn, {'w': np.ones((2, 1), 'f')}, [batch], mean_magnitude)['w'].tolist()
      [[2.0], [0.0]]
    """
    made: dict[str, np.ndarray] = {}
    count = 0
    read: dict[Any, tuple[list[kernels.Kernel], Callable[..., Any]]] = {}
    for batch in batches:
        shape = jax.tree.map(lambda x: (np.shape(x), np.result_type(x)), batch)
        if str(shape) not in read:
            read[str(shape)] = _reader(fn, variables, batch)
        found, run = read[str(shape)]
        for kernel, data in zip(found, run(variables, batch), strict=True):
            seen = _of_weights(kernel, np.asarray(statistic(np.asarray(data))))
            made[kernel.path] = made.get(kernel.path, 0.0) + seen
        count += 1
    if not count:
        raise ValueError("observe: there are no batches to run")
    return {path: total / count for path, total in made.items()}


def activation_mean(
    fn: Callable[..., Any], variables: Any, batches: Iterable[Any], combine: Combine = np.sum
) -> Importance:
    """Scores a channel by how large it is on data.

    Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference"
    (2017), section 2.2, with absolute activations.

    Args:
      fn: the function, called as `fn(variables, batch)`.
      variables: pytree of arrays.
      batches: its inputs.
      combine: over the kernels that read a group: `np.sum`, `np.mean` or `np.max`.

    Returns:
      The importance, of these variables on these batches. It raises ValueError for a group that no
      kernel reads.

    Example:
      >>> import compressjax as cj
      >>> fn = lambda v, x: jax.nn.relu(x @ v['a']) @ v['b']
      >>> variables = {'a': np.array([[1.0, -9.0, 2.0]], 'f'), 'b': np.ones((3, 1), 'f')}
      >>> x = np.ones((4, 1), 'f')
      >>> importance = activation_mean(fn, variables, [x])
      >>> cj.shrink(fn, variables, x, importance=importance, round_to=1, ratio=0.3).kept
      {'a': [0, 2]}
    """
    return of_inputs(observe(fn, variables, batches, mean_magnitude), combine)


def feature_rank(
    fn: Callable[..., Any], variables: Any, batches: Iterable[Any], combine: Combine = np.sum
) -> Importance:
    """Scores a channel by the average rank of its feature maps.

    Lin et al., "HRank: Filter Pruning using High-Rank Feature Map" (2020), equation 6: maps of low
    rank carry little, and their average rank hardly depends on the images.

    Args:
      fn: the function, called as `fn(variables, batch)`.
      variables: pytree of arrays.
      batches: its inputs; some hundred images are enough.
      combine: over the kernels that read a group: `np.sum`, `np.mean` or `np.max`.

    Returns:
      The importance, of these variables on these batches. It raises ValueError for a group that no
      kernel reads.

    Example:
      >>> from compressjax.graph.channels import Member
      >>> maps = np.stack([np.eye(3, dtype='f'), np.ones((3, 3), 'f')], axis=-1)[None]
      >>> importance = feature_rank(lambda v, x: x @ v['w'], {'w': np.ones((2, 1), 'f')}, [maps])
      >>> reader = Member('w', 0, np.array([0, 1]), makes=False, kernel=False)
      >>> importance(Group('v', (reader,), np.arange(2)), {}).tolist()
      [3.0, 1.0]
    """
    return of_inputs(observe(fn, variables, batches, mean_rank), combine)


def of_inputs(evidence: Mapping[str, Any], combine: Combine = np.sum) -> Importance:
    """Scores a channel by what its readers were seen to read.

    Args:
      evidence: from `observe`.
      combine: over the kernels that read a group: `np.sum`, `np.mean` or `np.max`.

    Returns:
      The importance. It raises ValueError for a group that no observed kernel reads.

    Example:
      >>> from compressjax.graph.channels import Member
      >>> reader = Member('w', 0, np.array([0, 1]), makes=False, kernel=False)
      >>> importance = of_inputs({'w': np.array([[1.0, 3.0], [5.0, 5.0]])})
      >>> importance(Group('v', (reader,), np.arange(2)), {}).tolist()
      [2.0, 5.0]
    """

    def importance(group: Group, variables: Mapping[str, Any]) -> np.ndarray:
        del variables
        readers = [m for m in group.members if not m.makes and m.path in evidence]
        if not readers:
            raise ValueError(
                f"importance of group {group.name!r}: no kernel was seen to read it (its members "
                f"are {', '.join(member.path for member in group.members[:6])}); protect it, or "
                "use an importance of the weights"
            )
        return combined(
            group,
            evidence,
            lambda x, m: np.moveaxis(x, m.axis, 0).reshape(x.shape[m.axis], -1).mean(1),
            combine,
            readers,
        )

    return importance


def _reader(
    fn: Callable[..., Any], variables: Any, batch: Any
) -> tuple[list[kernels.Kernel], Callable[..., Any]]:
    """The kernels of a function, and what gives the data that each of them reads."""
    shapes = graphs.template((variables, batch))
    graph = graphs.trace(fn, *shapes)
    found = [kernel for op in graph.ops if (kernel := kernels.kernel_of(graph, op)) is not None]

    @jax.jit
    def run(variables: Any, batch: Any) -> list[jax.Array]:
        seen: dict[str, jax.Array] = {}
        wanted = {kernel.op: kernel for kernel in found}

        def before(op: graphs.Op, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            if op in wanted:
                seen[op.name] = _features_last(wanted[op], inputs[op.inputs.index(wanted[op].data)])
            return inputs

        interpret(graph, variables, batch, before=before)
        return [seen[kernel.op.name] for kernel in found]

    return found, run


def _features_last(kernel: kernels.Kernel, data: jax.Array) -> jax.Array:
    others = [axis for axis in range(data.ndim) if axis not in kernel.features]
    moved = data.transpose(*others, *kernel.features)
    return moved.reshape(*moved.shape[: len(others)], -1)


def _of_weights(kernel: kernels.Kernel, statistic: np.ndarray) -> np.ndarray:
    """The statistic of what each weight reads, in the variable's shape."""
    shape = kernel.take(jnp.zeros(kernel.variable.shape, jnp.int8)).shape
    _, inputs, groups, _ = shape
    each = jnp.asarray(statistic.reshape(groups, inputs).T.reshape(1, inputs, groups, 1))
    return np.asarray(kernel.put(jnp.broadcast_to(each, shape)))
