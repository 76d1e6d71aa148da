"""Groups written by hand, with every case that a penalty on channels has to bear.

A kernel whose channels take two positions each, the norm behind it with running statistics outside
the trained collection, kernels that make one group and read another, one whose output features
belong to two groups, positions in no group, and variables in no group.
"""

from typing import Any

import numpy as np

from compressjax.graph.channels import Group, Member
from tests.support import penalty_oracles

SHAPES = {
    "a/kernel": (2, 1, 2, 6),
    "a/norm/scale": (6,),
    "a/norm/bias": (6,),
    "b/kernel": (6, 5),
    "b/bias": (5,),
    "c/kernel": (5, 3),
    "c/bias": (3,),
    "d/kernel": (2, 4),
}
SIZES = (3, 4)
NAMES = ("params/a/kernel", "params/b/kernel")

_NONE = (-1, -1)
_PAIRS = tuple((0, i) for i in (0, 1, 2, 0, 1, 2))
_SHUFFLED = ((1, 1), (1, 0), _NONE, (1, 2), (1, 3))
MAKERS = {
    ("a/kernel", 3): _PAIRS,
    ("a/norm/scale", 0): _PAIRS,
    ("a/norm/bias", 0): _PAIRS,
    ("b/kernel", 1): _SHUFFLED,
    ("b/bias", 0): _SHUFFLED,
    ("d/kernel", 1): ((0, 1), (0, 2), (1, 0), (1, 3)),
}
READERS = {("b/kernel", 0): _PAIRS, ("c/kernel", 0): _SHUFFLED}

MADE = penalty_oracles.channels(SIZES, MAKERS)
EVERYTHING = penalty_oracles.channels(SIZES, {**MAKERS, **READERS})
KERNELS = penalty_oracles.channels(
    SIZES, {place: where for place, where in MAKERS.items() if "kernel" in place[0]}
)


def groups(collection: str = "params") -> tuple[Group, ...]:
    """The groups, as `graph.channels` would give them.

    Args:
      collection: what the paths begin with, `''` for nothing.

    Returns:
      Two groups, of 3 and 4 channels.
    """
    prefix = f"{collection}/" if collection else ""
    statistics = Member("batch_stats/a/norm/mean", 0, np.array([0, 1, 2] * 2), True, False)
    members: list[list[Member]] = [[], []]
    for places, makes in ((MAKERS, True), (READERS, False)):
        for (path, axis), where in places.items():
            for number in range(len(SIZES)):
                channel = np.array([i if group == number else -1 for group, i in where])
                if (channel >= 0).any():
                    kernel = makes and "kernel" in path
                    member = Member(prefix + path, axis, channel, makes, kernel)
                    members[number].append(member)
    members[0].append(statistics)
    return tuple(
        Group(name, tuple(mine), np.arange(size))
        for name, mine, size in zip(NAMES, members, SIZES, strict=True)
    )


def draw(seed: int, scale: float = 1.0) -> dict[str, Any]:
    """Draws parameters, or gradients, float32 by path; one channel of each group is all zero."""
    rng = np.random.default_rng(seed)
    drawn = {path: scale * rng.normal(size=shape) for path, shape in SHAPES.items()}
    for channel in (MADE[0][2], MADE[1][1]):
        for path, axis, position in channel:
            np.moveaxis(drawn[path], axis, 0)[position] = 0
    return {path: leaf.astype(np.float32) for path, leaf in drawn.items()}
