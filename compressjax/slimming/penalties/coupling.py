"""Which weights make up each channel of several groups, as flat arrays of integers.

Groups list their members one variable axis at a time. Here the channels of all groups are numbered
through, and the positions along all members' axes laid end to end, so that the norm of every
channel is one segment sum over positions, and its way back to the weights one gather, whatever the
number of groups. `graph.channels` is what finds the groups.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from compressjax import tree
from compressjax.graph.channels import Group, Member
from compressjax.slimming.penalties import base
from compressjax.slimming.penalties.base import Strength


@dataclasses.dataclass(frozen=True, eq=False)
class Place:
    """One axis of one variable, and its positions in the flat order.

    Attributes:
      group: the name of the group that it is a member of.
      path: the variable's path below the collection.
      axis: the axis.
      start: its first position.
      stop: the position after its last.
    """

    group: str
    path: str
    axis: int
    start: int
    stop: int


@dataclasses.dataclass(frozen=True, eq=False)
class Coupling:
    """The channels of some groups, `K` in all, and the weights of each.

    Attributes:
      names: the groups' names, `G` of them.
      makers: for each group, its name and the paths of the variables that make its channels.
      places: the members' axes.
      channel: `[P]` int32, the channel that each position is part of; `K` for none.
      group: `[K]` int32, the group of each channel.
    """

    names: tuple[str, ...]
    makers: tuple[tuple[str, ...], ...]
    places: tuple[Place, ...]
    channel: np.ndarray
    group: np.ndarray


def made(member: Member) -> bool:
    """Whether a member makes the channels: kernels, biases, scales and biases of norms.

    Args:
      member: of a group.

    Returns:
      Whether it does.
    """
    return member.makes


def kernels(member: Member) -> bool:
    """Whether a member is a kernel that makes the channels.

    Args:
      member: of a group.

    Returns:
      Whether it is.
    """
    return member.kernel


def everything(member: Member) -> bool:
    """Whatever has the channels: what makes them, and the kernels that read them.

    Args:
      member: of a group.

    Returns:
      True.
    """
    return True


def of_groups(
    groups: Iterable[Group],
    *,
    members: Callable[[Member], bool],
    select: str | Iterable[str],
    protect: str | Iterable[str],
    collection: str,
) -> Coupling:
    """Lays out the weights of the channels of some groups.

    Args:
      groups: as `slimming.find_groups` returns them.
      members: which of a group's members count: `made`, `kernels` or `everything`.
      select: globs of the paths of the variables that count.
      protect: globs of the paths of those that do not.
      collection: the part of the variables that is trained, `'params'` with Flax; variables outside
        do not count. `''` if all is.

    Returns:
      The layout.

    Raises:
      ValueError: if there are no groups, a glob matches nothing, or no variable is left.

    Example:
      >>> kernel = Member('params/w', 1, np.array([0, 1, 0]), makes=True, kernel=True)
      >>> found = of_groups([Group('params/w', (kernel,), np.arange(2))], members=made,
      ...                   select='*', protect=(), collection='params')
      >>> found.places[0].path, found.channel, found.group
      ('w', array([0, 1, 0], dtype=int32), array([0, 0], dtype=int32))
    """
    listed = list(groups)
    if not listed:
        raise ValueError(
            "there are no groups; give those of slimming.find_groups(fn, variables, *args), and "
            "see the report of slimming.shrink for why a network has none"
        )
    paths = dict.fromkeys(member.path for group in listed for member in group.members)
    prefix = f"{collection}/" if collection else ""
    wanted = {path for path in base.choose(paths, select, protect) if path.startswith(prefix)}
    counts = np.array([group.size for group in listed])
    first, total = np.cumsum(counts) - counts, counts.sum()
    places: list[Place] = []
    channel: list[np.ndarray] = []
    stop = 0
    for group, offset in zip(listed, first.tolist(), strict=True):
        for member in filter(members, group.members):
            if member.path in wanted:
                start, stop = stop, stop + len(member.channel)
                path = member.path.removeprefix(prefix)
                places.append(Place(group.name, path, member.axis, start, stop))
                mine = member.channel
                channel.append(np.where(mine >= 0, mine + offset, total))
    if not places:
        raise ValueError(
            f"no group has a variable in collection {collection!r} that is selected; the groups' "
            f"variables are {', '.join(list(paths)[:4])}. Give the collection that is trained, or "
            "'' if params is the whole tree of variables"
        )
    return Coupling(
        names=tuple(group.name for group in listed),
        makers=tuple(
            (group.name, *(member.path for member in group.members if member.makes))
            for group in listed
        ),
        places=tuple(places),
        channel=np.concatenate(channel).astype(np.int32),
        group=np.repeat(np.arange(len(listed)), counts).astype(np.int32),
    )


def by_group(
    coupled: Coupling, rules: Mapping[str, Strength], *, what: str = "strength"
) -> tuple[Strength, ...]:
    """Gives every group the strength of the first rule that matches it.

    Args:
      coupled: the layout.
      rules: strengths by globs of the groups' names and of the variables that make the channels.
      what: what the rules are, for the error message.

    Returns:
      `G` strengths, 0 for groups that no rule matches.

    Raises:
      ValueError: if a glob matches nothing.
    """
    paths = dict.fromkeys(path for makers in coupled.makers for path in makers)
    matched = [(set(tree.match(glob, paths, what=what)), rules[glob]) for glob in rules]
    return tuple(
        next((value for found, value in matched if found.intersection(makers)), 0.0)
        for makers in coupled.makers
    )


def per_channel(coupled: Coupling, strengths: Sequence[Strength], step: jax.Array) -> jax.Array:
    """Evaluates the strengths of all channels.

    Args:
      coupled: the layout.
      strengths: of the groups.
      step: int32 [].

    Returns:
      float [K].
    """
    return jnp.stack([base.at(strength, step) for strength in strengths])[coupled.group]


def leaves_of(coupled: Coupling, params: Any) -> dict[str, Any]:
    """Finds the variables of a layout in the parameters.

    Args:
      coupled: the layout.
      params: pytree of arrays.

    Returns:
      The variables by path.

    Raises:
      ValueError: if one is missing or has another shape.
    """
    known = tree.paths(params)
    for place in coupled.places:
        length = place.stop - place.start
        shape = np.shape(known[place.path]) if place.path in known else None
        if shape is None or len(shape) <= place.axis or shape[place.axis] != length:
            found = "no such path" if shape is None else f"shape {shape}"
            raise ValueError(
                f"group {place.group!r} does not fit the parameters: expected {place.path!r} with "
                f"{length} positions along axis {place.axis}, found {found}; give the groups of "
                "this very model (slimming.find_groups), the collection that is trained, and put "
                "the penalty outside of optax.masked"
            )
    return {place.path: known[place.path] for place in coupled.places}


def sizes(coupled: Coupling, leaves: Mapping[str, Any]) -> np.ndarray:
    """Counts the weights of every channel.

    Args:
      coupled: the layout.
      leaves: arrays by path.

    Returns:
      `[K]` float64.
    """
    rows = [
        np.full(place.stop - place.start, leaves[place.path].size / (place.stop - place.start))
        for place in coupled.places
    ]
    number = len(coupled.group)
    return np.bincount(coupled.channel, np.concatenate(rows), minlength=number + 1)[:number]


def squared_norms(coupled: Coupling, leaves: Mapping[str, jax.Array]) -> jax.Array:
    """Adds up the squares of the weights of every channel.

    Args:
      coupled: the layout.
      leaves: arrays by path.

    Returns:
      `[K]`, in float32 or wider.

    Example:
      >>> kernel = Member('w', 1, np.array([0, 1, 0]), makes=True, kernel=True)
      >>> coupled = of_groups([Group('w', (kernel,), np.arange(2))], members=made, select='*',
      ...                     protect=(), collection='')
      >>> squared_norms(coupled, {'w': jnp.array([[1.0, 2.0, 3.0]])})
      Array([10.,  4.], dtype=float32)
    """
    rows = []
    for place in coupled.places:
        leaf = _wide(leaves[place.path])
        rows.append(jnp.sum(leaf**2, tuple(i for i in range(leaf.ndim) if i != place.axis)))
    number = len(coupled.group)
    return jax.ops.segment_sum(jnp.concatenate(rows), coupled.channel, number + 1)[:number]


def spread(
    coupled: Coupling, factors: jax.Array, leaves: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """Gives every weight the sum of the factors of the channels it is part of.

    Args:
      coupled: the layout.
      factors: float [K].
      leaves: arrays by path.

    Returns:
      For each path an array that broadcasts with the variable; 0 for weights in no channel.

    Example:
      >>> kernel = Member('w', 1, np.array([0, -1, 0]), makes=True, kernel=True)
      >>> coupled = of_groups([Group('w', (kernel,), np.arange(1))], members=made, select='*',
      ...                     protect=(), collection='')
      >>> spread(coupled, jnp.array([7.0]), {'w': jnp.ones((2, 3))})['w']
      Array([[7., 0., 7.]], dtype=float32)
    """
    each = jnp.append(factors, jnp.zeros(1, factors.dtype))[coupled.channel]
    found: dict[str, jax.Array] = {}
    for place in coupled.places:
        shape = [1] * leaves[place.path].ndim
        shape[place.axis] = -1
        mine = each[place.start : place.stop].reshape(shape)
        found[place.path] = found[place.path] + mine if place.path in found else mine
    return found


def check_disjoint(coupled: Coupling) -> None:
    """Refuses weights that are part of two channels.

    Args:
      coupled: the layout.

    Raises:
      ValueError: if a variable has channels along two axes.
    """
    axes: dict[str, Place] = {}
    for place in coupled.places:
        first = axes.setdefault(place.path, place)
        if first.axis != place.axis:
            raise ValueError(
                f"{place.path!r} has channels of {first.group!r} along axis {first.axis} and of "
                f"{place.group!r} along axis {place.axis}, expected one axis: no proximal step is "
                "exact for weights in two channels. Take members=made or kernels, or protect it"
            )


def penalised(
    coupled: Coupling, factors: Callable[[jax.Array, Mapping[str, jax.Array]], jax.Array]
) -> optax.GradientTransformation:
    """Makes the transformation that adds to every weight's gradient a multiple of the weight.

    Args:
      coupled: the layout.
      factors: `factors(step, leaves) -> float [K]`, the multiple for each channel.

    Returns:
      The transformation.
    """

    def change(leaves: Mapping[str, jax.Array], step: jax.Array, updates: Any, params: Any) -> Any:
        multiples = spread(coupled, factors(step, leaves), leaves)

        def added(path: str, update: jax.Array, leaf: jax.Array) -> jax.Array:
            if path not in multiples:
                return update
            return update + (multiples[path] * leaf).astype(update.dtype)

        return tree.map_with_path(added, updates, params)

    return base.transformation(lambda params: leaves_of(coupled, params), change)


def _wide(leaf: jax.Array) -> jax.Array:
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
