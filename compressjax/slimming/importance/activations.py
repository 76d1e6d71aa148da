"""Importance from activations: what a channel carries when data goes through.

What counts is what a reading kernel gets, behind norm and activation. `observe` runs batches and
keeps one statistic for each channel that each kernel reads; a group is scored by its readers.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from compressjax import graph as graphs
from compressjax.graph.channels import Group
from compressjax.slimming.importance import readings
from compressjax.slimming.importance.base import Combine, Importance, arguments, combined


class Statistic(NamedTuple):
    """What is kept of the data that a kernel reads.

    Attributes:
      compiled: `compiled(x) -> array`, of `x: [B, ..., I]`; runs with the network, so that what it
        reduces never leaves the device.
      after: `after(array) -> [I]`, in NumPy, of what `compiled` gave.
    """

    compiled: Callable[[jax.Array], jax.Array]
    after: Callable[[np.ndarray], np.ndarray] = np.asarray


def magnitudes(x: jax.Array) -> jax.Array:
    """Averages absolute activations.

    Args:
      x: `[B, ..., I]`, what a kernel reads.

    Returns:
      `[I]`, at least float32.

    Example:
      >>> magnitudes(jnp.array([[1.0, -2.0], [3.0, 0.0]])).tolist()
      [2.0, 1.0]
    """
    return jnp.abs(_wide(x)).mean(axis=tuple(range(x.ndim - 1)))


def ranks(x: np.ndarray) -> np.ndarray:
    """Averages the ranks of feature maps.

    Args:
      x: `[B, H, W, I]`, what a kernel reads; with fewer axes, maps are rows or single numbers, with
        more, the axes in the middle are one.

    Returns:
      `[I]` float64.

    Example:
      >>> maps = np.stack([np.eye(3), np.ones((3, 3))], axis=-1)
      >>> ranks(maps[None]).tolist()
      [3.0, 1.0]
    """
    height = x.shape[1] if x.ndim > 2 else 1
    maps = np.moveaxis(x.reshape(x.shape[0], height, -1, x.shape[-1]), -1, 1)
    return np.linalg.matrix_rank(maps).mean(axis=0, dtype=np.float64)


def mean_magnitude() -> Statistic:
    """Averages absolute activations, in the compiled pass: see `magnitudes`.

    Returns:
      The statistic.

    Example:
      >>> mean_magnitude().after(mean_magnitude().compiled(jnp.array([[-2.0]]))).tolist()
      [2.0]
    """
    return Statistic(magnitudes)


def mean_rank() -> Statistic:
    """Averages the ranks of feature maps, in NumPy on whole maps: see `ranks`.

    Several decompositions in one compiled program can wait for each other forever on a CPU with two
    threads, so they stay out of it.

    Returns:
      The statistic.

    Example:
      >>> mean_rank().after(np.ones((1, 3, 3, 1))).tolist()
      [1.0]
    """
    return Statistic(_wide, ranks)


def observe(
    fn: Callable[..., Any], variables: Any, batches: Iterable[Any], statistic: Statistic
) -> dict[str, np.ndarray]:
    """Runs batches, and takes a statistic of each channel that each kernel reads.

    Args:
      fn: the function, called as `fn(variables, *batch)`.
      variables: pytree of arrays.
      batches: arrays, or tuples of arguments; all of the same shapes, or it is compiled again.
      statistic: of what one kernel reads.

    Returns:
      For the path of each kernel, in `scan` too, an array of its shape, maybe a read-only view: for
      each weight, the statistic of what it is multiplied with, averaged over batches, which all
      count the same, and over uses if it is used several times. A kernel that is computed from
      variables (a standardised one) is not seen.

    Raises:
      ValueError: if there are no batches, or a statistic is not one number a feature.

    Example:
      >>> fn = lambda v, x: jax.nn.relu(x) @ v['w']
      >>> batch = np.array([[1.0, -2.0], [3.0, -4.0]], 'f')
      >>> observe(fn, {'w': np.ones((2, 1), 'f')}, [batch], mean_magnitude())['w'].tolist()
      [[2.0], [0.0]]
    """

    def prepare(graph: graphs.Graph) -> tuple[readings.Readings, Callable[..., Any]]:
        found = readings.find(graph)
        known = jax.jit(
            lambda variables, *args: readings.run(
                found, graphs.bind_arguments(graph, variables, *args), statistic.compiled
            )
        )
        return found, known

    prepared = graphs.Retrace(fn, prepare)
    totals: list[np.ndarray] = []
    count = 0
    for batch in arguments(batches, "observe"):
        found, run = prepared(variables, *batch)
        seen = [
            _finished(reading, statistic, np.asarray(x))
            for reading, x in zip(found, run(variables, *batch), strict=True)
        ]
        totals = [a + b for a, b in zip(totals, seen, strict=True)] if count else seen
        count += 1
    uses: dict[str, list[np.ndarray]] = {}
    for reading, total in zip(found, totals, strict=True):
        uses.setdefault(reading.path, []).append(reading.weights(total / count))
    return {path: x[0] if len(x) == 1 else np.mean(x, axis=0) for path, x in uses.items()}


def activation_mean(
    fn: Callable[..., Any],
    variables: Any,
    batches: Iterable[Any],
    combine: Combine = np.sum,
    *,
    otherwise: Importance | None = None,
) -> Importance:
    """Scores a channel by how large it is on data.

    Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference"
    (2017), section 2.2, with absolute activations.

    Args:
      fn: the function, called as `fn(variables, *batch)`.
      variables: pytree of arrays.
      batches: arrays, or tuples of arguments.
      combine: over the kernels that read a group: `np.sum`, `np.mean` or `np.max`.
      otherwise: the importance of groups that no kernel reads, such as queries; an error unless
        given.

    Returns:
      The importance, of these variables on these batches. It raises ValueError for a group that no
      kernel reads, if there is no `otherwise`.

    Example:
      >>> import compressjax as cj
      >>> fn = lambda v, x: jax.nn.relu(x @ v['a']) @ v['b']
      >>> variables = {'a': np.array([[1.0, -9.0, 2.0]], 'f'), 'b': np.ones((3, 1), 'f')}
      >>> x = np.ones((4, 1), 'f')
      >>> importance = activation_mean(fn, variables, [x])
      >>> cj.shrink(fn, variables, x, importance=importance, round_to=1, ratio=0.3).kept
      {'a': [0, 2]}
    """
    return of_inputs(
        observe(fn, variables, batches, mean_magnitude()), combine, otherwise=otherwise
    )


def feature_rank(
    fn: Callable[..., Any],
    variables: Any,
    batches: Iterable[Any],
    combine: Combine = np.sum,
    *,
    otherwise: Importance | None = None,
) -> Importance:
    """Scores a channel by the average rank of its feature maps.

    Lin et al., "HRank: Filter Pruning using High-Rank Feature Map" (2020), equation 6: maps of low
    rank carry little, and their average rank hardly depends on the images. A reader behind a global
    mean or a flatten gets single numbers, not maps: there the score says how often they are not 0.
    Channels of a sequence have no maps either, and all score alike: take `activation_mean` there.

    Args:
      fn: the function, called as `fn(variables, *batch)`.
      variables: pytree of arrays.
      batches: arrays, or tuples of arguments; some hundred images are enough.
      combine: over the kernels that read a group: `np.sum`, `np.mean` or `np.max`.
      otherwise: the importance of groups that no kernel reads; an error unless given.

    Returns:
      The importance, of these variables on these batches. It raises ValueError for a group that no
      kernel reads, if there is no `otherwise`.

    Example:
      >>> from compressjax.graph.channels import Member
      >>> maps = np.stack([np.eye(3, dtype='f'), np.ones((3, 3), 'f')], axis=-1)[None]
      >>> importance = feature_rank(lambda v, x: x @ v['w'], {'w': np.ones((2, 1), 'f')}, [maps])
      >>> reader = Member('w', 0, np.array([0, 1]), makes=False, kernel=False)
      >>> importance(Group('v', (reader,), np.arange(2)), {}).tolist()
      [3.0, 1.0]
    """
    return of_inputs(observe(fn, variables, batches, mean_rank()), combine, otherwise=otherwise)


def of_inputs(
    evidence: Mapping[str, Any], combine: Combine = np.sum, *, otherwise: Importance | None = None
) -> Importance:
    """Scores a channel by what its readers were seen to read.

    Args:
      evidence: from `observe`.
      combine: over the kernels that read a group: `np.sum`, `np.mean` or `np.max`.
      otherwise: the importance of groups that no observed kernel reads; an error unless given.

    Returns:
      The importance. It raises ValueError for a group that no observed kernel reads, if there is no
      `otherwise`.

    Example:
      >>> from compressjax.graph.channels import Member
      >>> reader = Member('w', 0, np.array([0, 1]), makes=False, kernel=False)
      >>> importance = of_inputs({'w': np.array([[1.0, 3.0], [5.0, 5.0]])})
      >>> importance(Group('v', (reader,), np.arange(2)), {}).tolist()
      [2.0, 5.0]
    """

    def importance(group: Group, variables: Mapping[str, Any]) -> np.ndarray:
        readers = [m for m in group.members if not m.makes and m.path in evidence]
        if not readers and otherwise is not None:
            return otherwise(group, variables)
        if not readers:
            raise ValueError(
                f"importance of group {group.name!r}: no kernel was seen to read it (its members "
                f"are {', '.join(member.path for member in group.members[:6])}); protect it, or "
                "say what counts there, as in otherwise=slimming.l1()"
            )
        return combined(
            group,
            evidence,
            lambda x, m: np.moveaxis(x, m.axis, 0).reshape(x.shape[m.axis], -1).mean(1),
            combine,
            readers,
        )

    return importance


def _finished(reading: readings.Reading, statistic: Statistic, x: np.ndarray) -> np.ndarray:
    """The statistic of each feature, `[*L, I]` float64, of the steps of loops one by one."""
    width = int(np.prod([reading.data.shape[axis] for axis in reading.features]))
    steps = x.shape[: reading.depth]
    each = [np.asarray(statistic.after(y)) for y in x.reshape(-1, *x.shape[reading.depth :])]
    if any(y.shape != (width,) for y in each):
        raise ValueError(
            f"observe: the statistic of what {reading.path} reads has shape {each[0].shape}, "
            f"expected ({width},); give one number for each feature, the last axis"
        )
    return np.asarray(each, np.float64).reshape(*steps, width)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
