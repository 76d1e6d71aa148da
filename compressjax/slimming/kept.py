"""What was kept of a group, as plain integers: the form that goes into JSON and comes back.

Along the axis that names the group a channel may have several positions (the heads of a fused
projection); the integers are positions, so that they can be read beside the variable's shape.
"""

from collections.abc import Sequence

import numpy as np

from compressjax.graph.channels import Group


def positions(group: Group, chosen: np.ndarray) -> list[int]:
    """Gives the positions that are kept along the axis that names a group.

    Args:
      group: the group.
      chosen: `[C]` booleans, True = kept.

    Returns:
      The positions, in order.

    Example:
      >>> from compressjax.graph.channels import Member
      >>> member = Member('w', 0, np.array([0, 1, 0, 1]), makes=True, kernel=True)
      >>> positions(Group('w', (member,), np.arange(2)), np.array([True, False]))
      [0, 2]
    """
    channel = group.members[0].channel
    return np.flatnonzero((channel >= 0) & chosen[channel]).tolist()


def channels(group: Group, places: Sequence[int] | None) -> np.ndarray:
    """Reads positions back: the inverse of `positions`.

    Args:
      group: the group.
      places: positions along the axis that names it; None for all.

    Returns:
      `[C]` booleans, True = kept.

    Raises:
      ValueError: if there are none, one is not the group's, or one of a channel is missing.

    Example:
      >>> from compressjax.graph.channels import Member
      >>> member = Member('w', 0, np.array([0, 1, 0, 1]), makes=True, kernel=True)
      >>> channels(Group('w', (member,), np.arange(2)), [0, 2])
      array([ True, False])
    """
    if places is None:
        return np.ones(group.size, bool)
    first = group.members[0]
    free = np.flatnonzero(first.channel >= 0)
    found = np.asarray(places, int)
    if not found.size or not np.isin(found, free).all():
        raise ValueError(
            f"kept of group {group.name!r} is {found.tolist()[:8]}: expected at least one "
            f"position, each of them one of the group's {len(free)} along {first.path}"
            f"[{first.axis}], which has {len(first.channel)}; give the kept of a cut of this very "
            "model"
        )
    chosen = np.isin(np.arange(group.size), first.channel[found])
    if len(found) != len(whole := positions(group, chosen)):
        raise ValueError(
            f"kept of group {group.name!r} splits positions that are tied together; keep all of "
            f"{whole[:16]}"
        )
    return chosen
