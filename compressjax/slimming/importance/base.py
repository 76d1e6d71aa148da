"""What an importance is, and how the members of a group are heard.

An importance is a function of a group and the variables, so that a new one is one function. The
maths on arrays (`filter_norms`, `slice_sums`) is apart from the plumbing that finds what is known
of a group's members (`known_of`) and combines what they say (`combined`, `merged`).
`pruning.scores` is the neighbour that scores single weights.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from compressjax.graph.channels import Group, Member

Importance = Callable[[Group, Mapping[str, Any]], np.ndarray]
Combine = Callable[..., np.ndarray]  # np.sum, np.mean, np.max: called with axis=0


def slice_sums(array: Any, axis: int) -> np.ndarray:
    """Adds up each slice of an array along one axis.

    Args:
      array: an array of any shape and real dtype.
      axis: the axis whose positions are scored, of length `D`.

    Returns:
      `[D]` float64.

    Example:
      >>> slice_sums(np.array([[3.0, 0.0], [-4.0, 1.0]]), axis=1).tolist()
      [-1.0, 1.0]
    """
    array = np.asarray(array)
    others = tuple(i for i in range(array.ndim) if i != axis)
    return array.sum(axis=others, dtype=np.float64)


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


def filters(kernel: Any, member: Member, size: int) -> np.ndarray:
    """Lays out all that a member has of each channel as one row.

    Args:
      kernel: the member's array.
      member: the member.
      size: channels of its group, `C`.

    Returns:
      `[C, K]` float64; a channel with fewer positions than another is filled up with zeros.

    Example:
      >>> member = Member('w', 1, np.array([0, 1, 0, 1]), makes=True, kernel=True)
      >>> filters(np.array([[1, 2, 3, 4]]), member, 2).tolist()
      [[1.0, 3.0], [2.0, 4.0]]
    """
    rows = np.moveaxis(np.asarray(kernel, np.float64), member.axis, 0)
    rows = rows.reshape(rows.shape[0], -1)
    mine = np.flatnonzero(member.channel >= 0)
    order = mine[np.argsort(member.channel[mine], kind="stable")]
    channel = member.channel[order]
    first = np.searchsorted(channel, channel)
    most = int(np.bincount(channel).max(initial=0))
    out = np.zeros((size, most, rows.shape[1]))
    out[channel, np.arange(len(order)) - first] = rows[order]
    return out.reshape(size, -1)


def makers(group: Group) -> list[Member]:
    """Lists the members that speak for a group.

    Args:
      group: the group.

    Returns:
      The kernels that make its channels; where there are none (a norm cut apart from its stream),
      the kernels that read them; without those, whatever makes them.

    Example:
      >>> scale = Member('scale', 0, np.arange(2), makes=True, kernel=False)
      >>> reader = Member('w', 0, np.arange(2), makes=False, kernel=False)
      >>> [member.path for member in makers(Group('scale', (scale, reader), np.arange(2)))]
      ['w']
    """
    made = [member for member in group.members if member.makes]
    kernels = [member for member in made if member.kernel]
    return kernels or [member for member in group.members if not member.makes] or made


def combined(
    group: Group,
    arrays: Mapping[str, Any],
    score: Callable[[Any, Member], np.ndarray],
    combine: Combine = np.sum,
    members: Sequence[Member] | None = None,
) -> np.ndarray:
    """Scores a group's channels by what its members say.

    Args:
      group: the group.
      arrays: an array for the path of each member.
      score: `score(array, member) -> [D]`, a score for each position along the member's axis;
        positions of one channel are added.
      combine: how members are combined: called with their scores `[M, C]` and `axis=0`.
      members: which members; `makers(group)` unless given.

    Returns:
      `[C]` float64, one score a channel.

    Raises:
      ValueError: if a member has no array or one that does not fit, or if a score is not a number.

    Example:
      >>> member = Member('w', 0, np.array([0, 1, 0, -1]), makes=True, kernel=True)
      >>> group = Group('w', (member,), np.arange(2))
      >>> combined(group, {'w': np.array([1., 2., 3., 9.])}, lambda x, _: x).tolist()
      [4.0, 2.0]
    """
    rows = []
    for member in makers(group) if members is None else members:
        found = np.asarray(score(known_of(group, member, arrays), member))
        if found.shape != member.channel.shape:
            raise ValueError(
                f"importance of group {group.name!r}: {member.path} has {len(member.channel)} "
                f"positions along axis {member.axis}, its scores have shape {found.shape}; give "
                "one score a position"
            )
        mine = member.channel >= 0
        rows.append(np.bincount(member.channel[mine], found[mine], minlength=group.size))
    return merged(group, rows, combine)


def known_of(group: Group, member: Member, arrays: Mapping[str, Any]) -> Any:
    """Looks up what is known of a member of a group.

    Args:
      group: the group.
      member: one of its members.
      arrays: arrays of any shape by path.

    Returns:
      The array at the member's path.

    Raises:
      ValueError: if there is none, or one that does not have the member's axis and length.

    Example:
      >>> member = Member('w', 0, np.arange(2), makes=True, kernel=True)
      >>> known_of(Group('w', (member,), np.arange(2)), member, {'w': np.ones(2)}).tolist()
      [1.0, 1.0]
    """
    if member.path not in arrays:
        raise ValueError(
            f"importance of group {group.name!r}: nothing is known of {member.path}; found "
            f"{', '.join(list(arrays)[:4]) or 'nothing'}. Give evidence for all variables"
        )
    shape = np.shape(arrays[member.path])
    if member.axis >= len(shape) or shape[member.axis] != len(member.channel):
        raise ValueError(
            f"importance of group {group.name!r}: {member.path} has {len(member.channel)} "
            f"positions along axis {member.axis}, what is known of it has shape {shape}; give "
            "evidence of the same model"
        )
    return arrays[member.path]


def merged(group: Group, scores: Sequence[np.ndarray], combine: Combine) -> np.ndarray:
    """Combines the scores that the members of a group give.

    Args:
      group: the group.
      scores: `[C]` for each member.
      combine: called with all of them, `[M, C]`, and `axis=0`.

    Returns:
      `[C]` float64.

    Raises:
      ValueError: if a score is not a number, or `combine` does not give one a channel.

    Example:
      >>> merged(Group('w', (), np.arange(2)), [np.arange(2.0), np.ones(2)], np.max).tolist()
      [1.0, 1.0]
    """
    found = np.asarray(combine(np.stack(scores), axis=0), np.float64)
    if found.shape != (group.size,):
        raise ValueError(
            f"importance of group {group.name!r}: combine gave shape {found.shape}, expected "
            f"({group.size},); give a function like np.sum, called with scores [M, C] and axis=0"
        )
    if np.isnan(found).any():
        raise ValueError(
            f"importance of group {group.name!r}: channels {np.flatnonzero(np.isnan(found))[:4]} "
            "have a score that is not a number; look for NaN in the weights or the evidence"
        )
    return found


def arguments(batches: Iterable[Any], what: str) -> Iterator[tuple[Any, ...]]:
    """Gives batches as tuples of arguments.

    Args:
      batches: arrays or dictionaries, which are one argument, or tuples of arguments.
      what: who asks, for error messages.

    Yields:
      One tuple a batch.

    Raises:
      ValueError: if there are no batches, or one array instead of several batches.

    Example:
      >>> list(arguments([1, (2, 3)], 'observe'))
      [(1,), (2, 3)]
    """
    if hasattr(batches, "shape"):
        raise ValueError(
            f"{what}: batches are one array of shape {batches.shape}, expected an iterable of "
            "batches, such as [images]"
        )
    empty = True
    for batch in batches:
        empty = False
        yield tuple(batch) if isinstance(batch, tuple | list) else (batch,)
    if empty:
        raise ValueError(f"{what}: there are no batches, expected at least one, such as [images]")
