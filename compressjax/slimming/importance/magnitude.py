"""Importance from the weights alone: no data, no gradients.

`l1` and `l2` ask how large a filter is, `batch_norm_scale` how loud the norm behind it lets it be,
`lamp` how large it is among those that would stay, `geometric_median` whether others can stand in
for it, `random` nothing.
"""

import fnmatch
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from compressjax.graph.channels import Group
from compressjax.slimming.importance.base import (
    Combine,
    Importance,
    combined,
    filter_norms,
    filters,
    known_of,
    makers,
    merged,
    slice_sums,
)


def l1(combine: Combine = np.sum) -> Importance:
    """Scores a channel by the sum of the absolute weights of the filters that make it.

    Li et al., "Pruning Filters for Efficient ConvNets" (2017), section 3.1; filters that a residual
    sum or a depthwise convolution ties together are combined, as in Fang et al., "DepGraph" (2023).

    Args:
      combine: over the kernels of a group: `np.sum`, `np.mean` or `np.max`.

    Returns:
      The importance.

    Example:
      >>> from compressjax.graph.channels import Member
      >>> member = Member('w', 1, np.array([0, 1]), makes=True, kernel=True)
      >>> l1()(Group('w', (member,), np.arange(2)), {'w': np.array([[1., -2.], [3., 1.]])}).tolist()
      [4.0, 3.0]
    """
    return lambda group, variables: combined(
        group, variables, lambda x, member: filter_norms(x, member.axis, 1), combine
    )


def l2(combine: Combine = np.sum) -> Importance:
    """Scores a channel by the Euclidean norm of the filters that make it.

    He et al., "Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks" (2018).

    Args:
      combine: over the kernels of a group: `np.sum`, `np.mean` or `np.max`.

    Returns:
      The importance.

    Example:
      >>> from compressjax.graph.channels import Member
      >>> member = Member('w', 1, np.array([0, 1]), makes=True, kernel=True)
      >>> l2()(Group('w', (member,), np.arange(2)), {'w': np.array([[3., 0.], [4., 2.]])}).tolist()
      [5.0, 2.0]
    """
    return lambda group, variables: combined(
        group, variables, lambda x, member: filter_norms(x, member.axis, 2), combine
    )


def batch_norm_scale(
    combine: Combine = np.sum,
    *,
    select: str = "**/scale",
    otherwise: Importance | None = None,
) -> Importance:
    """Scores a channel by the absolute scale of the norm behind it.

    Liu et al., "Learning Efficient Convolutional Networks through Network Slimming" (2017),
    section 3. It says something after training with `slimming.network_slimming`.

    Args:
      combine: over the norms of a group: `np.sum`, `np.mean` or `np.max`.
      select: glob of the paths of scales.
      otherwise: the importance of groups without a norm; an error unless given.

    Returns:
      The importance. It raises ValueError for a group without a norm, if there is no `otherwise`.

    Example:
      >>> from compressjax.graph.channels import Member
      >>> kernel = Member('conv/kernel', 3, np.arange(2), makes=True, kernel=True)
      >>> scale = Member('norm/scale', 0, np.arange(2), makes=True, kernel=False)
      >>> group = Group('conv/kernel', (kernel, scale), np.arange(2))
      >>> batch_norm_scale()(group, {'norm/scale': np.array([-2.0, 0.5])}).tolist()
      [2.0, 0.5]
    """
    forms = {select, select.removeprefix("**/")}

    def importance(group: Group, variables: Mapping[str, Any]) -> np.ndarray:
        scales = [
            member
            for member in group.members
            if member.makes
            and not member.kernel
            and any(fnmatch.fnmatchcase(member.path, form) for form in forms)
        ]
        if scales:
            return combined(
                group, variables, lambda x, m: slice_sums(np.abs(x), m.axis), combine, scales
            )
        if otherwise is not None:
            return otherwise(group, variables)
        raise ValueError(
            f"importance of group {group.name!r}: none of its members matches {select!r} (they are "
            f"{', '.join(member.path for member in group.members[:6])}); protect it, or say what "
            "counts there, as in batch_norm_scale(otherwise=slimming.l1())"
        )

    return importance


def lamp(combine: Combine = np.sum) -> Importance:
    """Scores a channel by its squared norm over that of all channels that would stay with it.

    Lee et al., "Layer-adaptive sparsity for the Magnitude-based Pruning" (2021), equation 4, with
    filters in place of weights. The largest channel of every group has score 1, so that a global
    ranking never empties a layer.

    Args:
      combine: over the kernels of a group: `np.sum`, `np.mean` or `np.max`.

    Returns:
      The importance.

    Example:
      >>> from compressjax.graph.channels import Member
      >>> member = Member('w', 1, np.arange(3), makes=True, kernel=True)
      >>> group = Group('w', (member,), np.arange(3))
      >>> lamp()(group, {'w': np.array([[3.0, 1.0, 2.0]])}).round(3).tolist()
      [1.0, 0.071, 0.308]
    """

    def importance(group: Group, variables: Mapping[str, Any]) -> np.ndarray:
        squares = combined(
            group, variables, lambda x, m: slice_sums(np.square(x, dtype=float), m.axis), combine
        )
        order = np.argsort(squares, kind="stable")
        above = np.cumsum(squares[order][::-1])[::-1]
        scores = np.zeros_like(squares)
        scores[order] = squares[order] / np.where(above > 0, above, 1.0)
        return scores

    return importance


def geometric_median(combine: Combine = np.sum) -> Importance:
    """Scores a channel by how far its filter is from all other filters of the layer.

    He et al., "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks
    Acceleration" (2019), equation 7: the filters nearest to all others are what others can stand in
    for, however large they are.

    Args:
      combine: over the kernels of a group: `np.sum`, `np.mean` or `np.max`.

    Returns:
      The importance; memory for one layer is quadratic in its channels.

    Example:
      >>> from compressjax.graph.channels import Member
      >>> member = Member('w', 1, np.arange(3), makes=True, kernel=True)
      >>> group = Group('w', (member,), np.arange(3))
      >>> geometric_median()(group, {'w': np.array([[1.0, 2.0, 9.0]])}).tolist()
      [9.0, 8.0, 15.0]
    """

    def importance(group: Group, variables: Mapping[str, Any]) -> np.ndarray:
        rows = []
        for member in makers(group):
            kernel = known_of(group, member, variables)
            has = np.unique(member.channel[member.channel >= 0])
            row = np.zeros(group.size)
            row[has] = distances(filters(kernel, member, group.size)[has]).sum(axis=1)
            rows.append(row)
        return merged(group, rows, combine)

    return importance


def distances(rows: np.ndarray) -> np.ndarray:
    """Measures how far every row is from every other.

    Args:
      rows: `[C, K]` float64.

    Returns:
      `[C, C]` Euclidean distances; memory is quadratic in rows, not in what is in between.

    Example:
      >>> distances(np.array([[0.0, 0.0], [3.0, 4.0]])).tolist()
      [[0.0, 5.0], [5.0, 0.0]]
    """
    squares = np.sum(rows**2, axis=1)
    between = squares[:, None] + squares[None, :] - 2 * (rows @ rows.T)
    return np.sqrt(np.maximum(between, 0.0))


def random(seed: int = 0) -> Importance:
    """Scores channels at random: what any other importance has to beat.

    Mittal et al., "Recovering from Random Pruning" (2018).

    Args:
      seed: of the scores; each group has its own, the same in every process.

    Returns:
      The importance.

    Example:
      >>> group = Group('w', (), np.arange(3))
      >>> bool((random(1)(group, {}) == random(1)(group, {})).all())
      True
    """

    def importance(group: Group, variables: Mapping[str, Any]) -> np.ndarray:
        del variables
        return np.random.default_rng([seed, zlib.crc32(group.name.encode())]).random(group.size)

    return importance
