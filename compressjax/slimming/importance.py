"""Which channels matter: a score for each channel of a group, the higher the more worth keeping.

An importance is a function of a group and the variables, so that a new one is one function. The
maths on arrays (`filter_norms`) is apart from the plumbing that adds up what a group's members say
(`group_sum`). `pruning.scores` is the neighbour that scores single weights.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from compressjax.graph.channels import Group, Member

Importance = Callable[[Group, Mapping[str, Any]], np.ndarray]


def filter_norms(kernel: Any, axis: int, order: float) -> np.ndarray:
    """Computes the norm of each slice of an array along one axis.

    Args:
      kernel: an array of any shape and float dtype.
      axis: the axis whose positions are scored, of length `D`.
      order: 1 for the sum of absolute values, 2 for the Euclidean norm.

    Returns:
      `[D]` float32.

    Example:
      >>> filter_norms(np.array([[3.0, 0.0], [-4.0, 1.0]]), axis=1, order=1)
      array([7., 1.], dtype=float32)
    """
    rows = np.moveaxis(np.asarray(kernel, np.float32), axis, 0)
    return np.linalg.norm(rows.reshape(rows.shape[0], -1), ord=order, axis=1)


def group_sum(
    group: Group, variables: Mapping[str, Any], score: Callable[[Any, Member], np.ndarray]
) -> np.ndarray:
    """Adds up, for each channel, the scores of all positions of the kernels that make it.

    Args:
      group: the group.
      variables: arrays by path.
      score: `score(array, member) -> [D]`, a score for each position along the member's axis.

    Returns:
      `[C]` float64, one score a channel. Where no kernel makes the channels, whatever does counts.

    Example:
      >>> member = Member('w', 0, np.array([0, 1, 0, -1]), makes=True, kernel=True)
      >>> group = Group('w', (member,), np.arange(2))
      >>> group_sum(group, {'w': np.array([1., 2., 3., 9.])}, lambda x, _: x)
      array([4., 2.])
    """
    makers = [member for member in group.members if member.makes]
    total = np.zeros(group.size)
    for member in [member for member in makers if member.kernel] or makers:
        mine = member.channel >= 0
        np.add.at(total, member.channel[mine], score(variables[member.path], member)[mine])
    return total


def l1() -> Importance:
    """Scores a channel by the sum of the absolute weights of the filters that make it.

    Li et al., "Pruning Filters for Efficient ConvNets" (2017), section 3.1; filters that a residual
    sum or a depthwise convolution ties together are added, as in Fang et al., "DepGraph" (2023).

    Returns:
      The importance.

    Example:
      >>> member = Member('w', 1, np.array([0, 1]), makes=True, kernel=True)
      >>> l1()(Group('w', (member,), np.arange(2)), {'w': np.array([[1., -2.], [3., 1.]])})
      array([4., 3.])
    """

    def importance(group: Group, variables: Mapping[str, Any]) -> np.ndarray:
        return group_sum(group, variables, lambda x, member: filter_norms(x, member.axis, 1))

    return importance


def l2() -> Importance:
    """Scores a channel by the Euclidean norm of the filters that make it, summed over its kernels.

    He et al., "Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks" (2018).

    Returns:
      The importance.

    Example:
      >>> member = Member('w', 1, np.array([0, 1]), makes=True, kernel=True)
      >>> l2()(Group('w', (member,), np.arange(2)), {'w': np.array([[3., 0.], [4., 2.]])})
      array([5., 2.])
    """

    def importance(group: Group, variables: Mapping[str, Any]) -> np.ndarray:
        return group_sum(group, variables, lambda x, member: filter_norms(x, member.axis, 2))

    return importance
