"""Weight decay with a factor of its own for every channel, so that some fade and others stay.

`growing` is told which channels go and pulls ever harder at them; `importance_weighted` lets the
norms decide at every step, small channels being pulled hardest. `lasso` is the neighbour whose pull
does not depend on which channels are small.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from compressjax.graph.channels import Group, Member
from compressjax.slimming.kept import channels
from compressjax.slimming.penalties import base, coupling
from compressjax.slimming.penalties.base import Strengths


def staircase(delta: float, *, every: int, ceiling: float = 1.0, begin: int = 0) -> optax.Schedule:
    """Makes a strength that grows by the same amount every few steps, up to a ceiling.

    Wang et al., "Neural Pruning via Growing Regularization" (2021), section 3.1.

    Args:
      delta: what it grows by, and its first value; the paper takes 1e-4.
      every: steps between; the paper takes 10 on CIFAR and 5 on ImageNet.
      ceiling: where it stays; the paper takes 1.
      begin: the first step with a penalty.

    Returns:
      A schedule `step -> strength`.

    Raises:
      ValueError: if `delta`, `ceiling` or `begin` is negative, or `every` is under 1.

    Example:
      >>> strength = staircase(0.25, every=10, ceiling=0.6)
      >>> [float(strength(jnp.int32(step))) for step in (0, 9, 10)]
      [0.25, 0.25, 0.5]
    """
    for name, value, least in (
        ("delta", delta, 0),
        ("every", every, 1),
        ("ceiling", ceiling, 0),
        ("begin", begin, 0),
    ):
        if not value >= least:
            raise ValueError(f"{name} is {value}, expected at least {least}")

    def strength(step: jax.Array) -> jax.Array:
        risen = jnp.maximum((step - begin) // every + 1, 0)
        return jnp.minimum(delta * risen.astype(float), ceiling)

    return strength


def growing(
    groups: Iterable[Group],
    kept: Mapping[str, Sequence[int]],
    strength: Strengths,
    *,
    ordinary: Strengths = 0.0,
    members: Callable[[Member], bool] = coupling.made,
    select: str | Iterable[str] = "*",
    protect: str | Iterable[str] = (),
    collection: str = "params",
) -> optax.GradientTransformation:
    """Decays the channels that are to go ever harder, before they are cut.

    Wang et al., "Neural Pruning via Growing Regularization" (2021), section 3.1 (GReg-1):

        factor / 2 * (sum of the squares of a channel's weights)

    is added to the loss, where the factor of the channels that go grows, `staircase(1e-4,
    every=10)`, and that of the others is ordinary weight decay. The network has time to move what
    these channels do into the others. The paper decays kernels (`slimming.penalties.kernels`); here
    the other weights that make a channel fade with them, since a norm with a scale would blow up a
    faded kernel again. Put it in front of the optimizer, which the paper takes to be SGD: at a
    factor `f` and a learning rate `r` a channel loses the part `f * r` a step, which must stay well
    under 1.

    Args:
      groups: as `slimming.find_groups` returns them.
      kept: which channels stay, by group, as `shrink(...).kept` says it; all of a group that it
        does not name.
      strength: the factor of the channels that go, at least 0: `staircase(...)`, any other schedule
        `step -> factor`, a number, or a mapping from globs of groups' names and of the variables
        that make their channels to such.
      ordinary: the factor of the channels that stay, in the same forms.
      members: which of a group's members count, `made`, `kernels` or `everything` of
        `slimming.penalties`.
      select: globs of the variables that count, by the paths that the groups have.
      protect: globs of variables that do not count and get no penalty.
      collection: as for `group_lasso`.

    Returns:
      A gradient transformation; its state is a `PenaltyState`. `init` raises ValueError where the
      groups do not fit the parameters.

    Raises:
      ValueError: if a number is negative, `kept` does not fit the groups, a glob matches nothing,
        or no variable is selected.

    Example:
      >>> kernel = Member('params/w', 1, np.array([0, 1]), makes=True, kernel=True)
      >>> groups = [Group('params/w', (kernel,), np.arange(2))]
      >>> tx = growing(groups, {'params/w': [1]}, staircase(0.25, every=1))
      >>> params, state = {'w': jnp.ones((1, 2))}, base.PenaltyState(jnp.int32(1))
      >>> tx.update({'w': jnp.zeros((1, 2))}, state, params)[0]['w']
      Array([[0.5, 0. ]], dtype=float32)
    """
    listed = list(groups)
    found = coupling.of_groups(
        listed, members=members, select=select, protect=protect, collection=collection
    )
    stays = _stays(listed, kept)
    going = coupling.by_group(found, base.rules(strength))
    staying = coupling.by_group(found, base.rules(ordinary, what="ordinary"), what="ordinary")

    def factors(step: jax.Array, leaves: Mapping[str, jax.Array]) -> jax.Array:
        return jnp.where(
            stays,
            coupling.per_channel(found, staying, step),
            coupling.per_channel(found, going, step),
        )

    return coupling.penalised(found, factors)


def importance_weighted(
    groups: Iterable[Group],
    strength: Strengths,
    *,
    alpha: float = 4.0,
    members: Callable[[Member], bool] = coupling.everything,
    select: str | Iterable[str] = "*",
    protect: str | Iterable[str] = (),
    collection: str = "params",
) -> optax.GradientTransformation:
    """Decays every channel the harder, the smaller it is beside the others of its group.

    Fang et al., "DepGraph: Towards Any Structural Pruning" (2023), section 3.3:

        strength * sum over channels k of gamma_k * I_k,
        gamma_k = 2 ** (alpha * (I_max - I_k) / (I_max - I_min)),

    is added to the loss, where `I_k` is the sum of the squares of all weights of the channel, over
    all coupled layers: of those that make it and of those that read it. `gamma` is worked out anew
    at every step and taken for a constant, as the paper does; it is 1 for the largest channel and
    `2 ** alpha` for the smallest, and 1 for all where they are equal. Put it in front of the
    optimizer.

    Args:
      groups: as `slimming.find_groups` returns them.
      strength: of the penalty, at least 0, or a schedule `step -> strength`; or a mapping from
        globs of groups' names and of the variables that make their channels to such.
      alpha: at least 0, the paper's 4 unless given; with 0 it is plain weight decay.
      members: which of a group's members count, `everything`, `made` or `kernels` of
        `slimming.penalties`.
      select: globs of the variables that count, by the paths that the groups have.
      protect: globs of variables that do not count and get no penalty.
      collection: as for `group_lasso`.

    Returns:
      A gradient transformation; its state is a `PenaltyState`. `init` raises ValueError where the
      groups do not fit the parameters.

    Raises:
      ValueError: if a number is negative, there are no groups, a glob matches nothing, or no
        variable is selected.

    Example:
      >>> kernel = Member('params/w', 1, np.array([0, 1]), makes=True, kernel=True)
      >>> tx = importance_weighted([Group('params/w', (kernel,), np.arange(2))], 0.5, alpha=2)
      >>> params = {'w': jnp.array([[3.0, 1.0]])}
      >>> tx.update({'w': jnp.zeros((1, 2))}, tx.init(params), params)[0]['w']
      Array([[3., 4.]], dtype=float32)
    """
    if not alpha >= 0:
        raise ValueError(f"alpha is {alpha}, expected at least 0")
    found = coupling.of_groups(
        groups, members=members, select=select, protect=protect, collection=collection
    )
    strengths = coupling.by_group(found, base.rules(strength))

    def factors(step: jax.Array, leaves: Mapping[str, jax.Array]) -> jax.Array:
        squares = coupling.squared_norms(found, leaves)
        number = len(found.names)
        most = jax.ops.segment_max(squares, found.group, number)[found.group]
        least = jax.ops.segment_min(squares, found.group, number)[found.group]
        differ = most > least
        below = jnp.where(differ, (most - squares) / jnp.where(differ, most - least, 1), 0)
        return 2 * coupling.per_channel(found, strengths, step) * 2 ** (alpha * below)

    return coupling.penalised(found, factors)


def _stays(groups: Sequence[Group], kept: Mapping[str, Sequence[int]]) -> np.ndarray:
    """Which channels of all groups stay, `[K]` booleans, from positions along the naming axes."""
    named = [group.name for group in groups]
    if unknown := [name for name in kept if name not in named]:
        raise ValueError(
            f"kept names {unknown[0]!r}, which is none of the groups; these are "
            f"{', '.join(named[:8])}"
        )
    return np.concatenate([channels(group, kept.get(group.name)) for group in groups])
