"""Group lasso: the weights of a channel shrink together, until all of them are near zero.

The norm is not squared, so the pull on a channel does not fade with it, as that of weight decay
does. `scales` is the neighbour for networks with batch norm, whose scales say it in one number a
channel; there the norm of a kernel says little, since batch norm divides it out, and the group
lasso acts through the scale and bias of the norm, which are weights of the channel as well.
"""

from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from compressjax import tree
from compressjax.graph.channels import Group, Member
from compressjax.slimming.penalties import base, coupling
from compressjax.slimming.penalties.base import PyTree, Strength, Strengths


def group_lasso(
    groups: Iterable[Group],
    strength: Strengths,
    *,
    members: Callable[[Member], bool] = coupling.made,
    select: str | Iterable[str] = "*",
    protect: str | Iterable[str] = (),
    collection: str = "params",
) -> optax.GradientTransformation:
    """Adds the subgradient of the sum of the norms of all channels.

    Wen et al., "Learning Structured Sparsity in Deep Neural Networks" (2016), equations 3 to 5,
    over coupled layers, with the weight of Yuan and Lin, "Model Selection and Estimation in
    Regression with Grouped Variables" (2006), equation 2.1: for each channel

        strength * sqrt(number of its weights) * (Euclidean norm of its weights)

    is added to the loss. The subgradient is weight / norm, and 0 at 0. The weights of a channel are
    those that make it, over all layers that have to agree: slices of kernels along their output
    features, biases, and the scale and bias of norms; not the kernels that read it, unless
    `members` is `slimming.penalties.everything`. Put it in front of the optimizer. Subgradients
    leave channels near zero, at about the learning rate times the strength: `proximal_group_lasso`
    makes them exactly zero.

    Args:
      groups: as `slimming.find_groups` returns them.
      strength: of the penalty, at least 0, or a schedule `step -> strength`; or a mapping from
        globs of the groups' names and of the variables that make their channels to such: the first
        that matches counts, and a group that none matches has no penalty.
      members: which of a group's members count, `made`, `kernels` or `everything` of
        `slimming.penalties`.
      select: globs of the variables that count, by the paths that the groups have.
      protect: globs of variables that do not count and get no penalty.
      collection: the part of the variables that is trained: groups speak of
        `params/Conv_0/kernel`, the transformation sees `Conv_0/kernel`. `''` if it sees all.

    Returns:
      A gradient transformation; its state is a `PenaltyState`. `init` raises ValueError where the
      groups do not fit the parameters.

    Raises:
      ValueError: if a strength is negative, there are no groups, a glob matches nothing, or no
        variable is selected.

    Example:
      >>> kernel = Member('params/w', 1, np.array([0, 1]), makes=True, kernel=True)
      >>> tx = group_lasso([Group('params/w', (kernel,), np.arange(2))], 0.5)
      >>> params = {'w': jnp.array([[3.0, 0.0]] * 4)}
      >>> updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
      >>> updates['w'][0]
      Array([0.5, 0. ], dtype=float32)
    """
    found = coupling.of_groups(
        groups, members=members, select=select, protect=protect, collection=collection
    )
    strengths = coupling.by_group(found, base.rules(strength))

    def factors(step: jax.Array, leaves: Mapping[str, jax.Array]) -> jax.Array:
        squares = coupling.squared_norms(found, leaves)
        some = squares > 0
        inverse = jnp.where(some, jax.lax.rsqrt(jnp.where(some, squares, 1)), 0)
        weight = coupling.per_channel(found, strengths, step)
        return weight * np.sqrt(coupling.sizes(found, leaves)) * inverse

    return coupling.penalised(found, factors)


def proximal_group_lasso(
    groups: Iterable[Group],
    strength: Strengths,
    learning_rate: Strength,
    *,
    members: Callable[[Member], bool] = coupling.made,
    select: str | Iterable[str] = "*",
    protect: str | Iterable[str] = (),
    collection: str = "params",
) -> optax.GradientTransformation:
    """Takes the proximal step of the same penalty, so that whole channels become exactly zero.

    Alvarez and Salzmann, "Learning the Number of Neurons in Deep Networks" (2016), section 3: after
    each step of the optimizer the weights of every channel are scaled by

        max(0, 1 - learning_rate * strength * sqrt(number of its weights) / norm).

    A channel that is zero in all its members can be cut without any change. The penalty is
    decoupled from the gradient, so momentum does not gather it and an adaptive optimizer does not
    divide it away.

    Args:
      groups: as `slimming.find_groups` returns them.
      strength: as for `group_lasso`.
      learning_rate: of the optimizer, a number or a schedule; with momentum `m` its steps are
        `1 / (1 - m)` times longer in the end, and so must this rate be for the same penalty.
      members: which of a group's members count. The step is exact only where no weight is part of
        two channels, so `everything` is refused as soon as a kernel both makes and reads channels.
      select: globs of the variables that count, by the paths that the groups have.
      protect: globs of variables that do not count and get no penalty.
      collection: as for `group_lasso`.

    Returns:
      A gradient transformation, the last of a chain, behind the optimizer; its state is a
      `PenaltyState`. Updates come out in the parameters' dtype, or zeros would not be exact.

    Raises:
      ValueError: as `group_lasso` does, if the learning rate is negative, or if weights are part of
        two channels.

    Example:
      >>> kernel = Member('params/w', 1, np.array([0, 1]), makes=True, kernel=True)
      >>> penalty = proximal_group_lasso([Group('params/w', (kernel,), np.arange(2))], 1.0, 0.5)
      >>> tx = optax.chain(optax.sgd(0.5), penalty)
      >>> params = {'w': jnp.array([[2.0, 0.25]] * 4)}
      >>> gradients = jax.tree.map(jnp.zeros_like, params)
      >>> updates, _ = tx.update(gradients, tx.init(params), params)
      >>> optax.apply_updates(params, updates)['w'][0]
      Array([1.5, 0. ], dtype=float32)
    """
    base.rules(learning_rate, what="learning_rate")
    found = coupling.of_groups(
        groups, members=members, select=select, protect=protect, collection=collection
    )
    coupling.check_disjoint(found)
    strengths = coupling.by_group(found, base.rules(strength))

    def change(
        leaves: Mapping[str, jax.Array], step: jax.Array, updates: PyTree, params: PyTree
    ) -> PyTree:
        given = tree.paths(updates)
        moved = {path: leaf + given[path] for path, leaf in leaves.items()}
        norms = jnp.sqrt(coupling.squared_norms(found, moved))
        weight = base.at(learning_rate, step) * coupling.per_channel(found, strengths, step)
        threshold = weight * np.sqrt(coupling.sizes(found, leaves))
        some = ~(norms <= threshold)  # also where it is not a number
        cut = jnp.where(some, threshold / jnp.where(some, norms, 1), 1)
        parts = coupling.spread(found, cut, leaves)

        def shrunken(path: str, update: jax.Array, leaf: jax.Array) -> jax.Array:
            if path not in parts:
                return update
            left = (update - parts[path] * moved[path]).astype(leaf.dtype)
            return jnp.where(parts[path] == 1, -leaf, left)

        return tree.map_with_path(shrunken, updates, params)

    return base.transformation(lambda params: coupling.leaves_of(found, params), change)
