"""L1 penalties on the scales of batch norm: whole channels fade while the network trains.

The penalty is one number a channel, so it costs nothing; `lasso` is the neighbour that looks at all
weights of a channel, for networks without batch norm. A channel whose scale is 0 still gives the
bias of its norm, one constant for all inputs: give the biases to `select` as well if cutting such a
channel must change nothing.
"""

from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import optax

from compressjax import tree
from compressjax.slimming.penalties import base
from compressjax.slimming.penalties.base import PyTree, Strength, Strengths


def network_slimming(
    strength: Strengths,
    *,
    select: str | Iterable[str] = "**/scale",
    protect: str | Iterable[str] = (),
) -> optax.GradientTransformation:
    """Adds the subgradient of an L1 penalty on batch norm's scales.

    Liu et al., "Learning Efficient Convolutional Networks through Network Slimming" (2017),
    equation 1: `strength * sum |scale|` is added to the loss. Channels whose scale comes down to
    nearly zero can be cut. Put it in front of the optimizer, as in the paper; an adaptive optimizer
    divides the penalty away with the gradient, so behind `optax.scale_by_adam` and before the
    learning rate it is what the paper means. Subgradients leave scales near zero, not at it:
    `proximal_slimming` makes them exactly zero.

    Args:
      strength: of the penalty, at least 0, or a schedule `step -> strength`; or a mapping from
        globs of paths to such: the first that matches counts, and a scale that none matches has no
        penalty.
      select: globs of the paths of the scales.
      protect: globs of paths that get no penalty.

    Returns:
      A gradient transformation; its state is a `PenaltyState`. `init` raises ValueError where a
      glob matches nothing.

    Raises:
      ValueError: if a strength is negative.

    Example:
      >>> tx = network_slimming(0.1)
      >>> params = {'norm': {'scale': jnp.array([2.0, -1.0, 0.0])}}
      >>> updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
      >>> updates['norm']['scale']
      Array([ 0.1, -0.1,  0. ], dtype=float32)
    """

    def change(
        strengths: Mapping[str, Strength], step: jax.Array, updates: PyTree, params: PyTree
    ) -> PyTree:
        def penalised(path: str, update: jax.Array, scale: jax.Array) -> jax.Array:
            if path not in strengths:
                return update
            return update + (base.at(strengths[path], step) * jnp.sign(scale)).astype(update.dtype)

        return tree.map_with_path(penalised, updates, params)

    return base.transformation(_by_path(base.rules(strength), select, protect), change)


def proximal_slimming(
    strength: Strengths,
    learning_rate: Strength,
    *,
    select: str | Iterable[str] = "**/scale",
    protect: str | Iterable[str] = (),
) -> optax.GradientTransformation:
    """Takes the proximal step of the same L1 penalty, so that scales become exactly zero.

    Ye et al., "Rethinking the Smaller-Norm-Less-Informative Assumption in Channel Pruning of
    Convolution Layers" (2018), section 4: iterative shrinkage-thresholding (ISTA), after each step
    of the optimizer every scale goes towards 0 by `learning_rate * strength`, and stays at 0 where
    that is further than it has to go. The penalty is decoupled from the gradient, so momentum does
    not gather it and an adaptive optimizer does not divide it away. A scale that is 0 comes back
    once its gradient is larger than the strength.

    Args:
      strength: as for `network_slimming`.
      learning_rate: of the optimizer, a number or a schedule; with momentum `m` its steps are
        `1 / (1 - m)` times longer in the end, and so must this rate be for the same penalty.
      select: globs of the paths of the scales.
      protect: globs of paths that get no penalty.

    Returns:
      A gradient transformation, the last of a chain, behind the optimizer; its state is a
      `PenaltyState`. Updates of the scales come out in the parameters' dtype, or zeros would not be
      exact. `init` raises ValueError where a glob matches nothing.

    Raises:
      ValueError: if a strength or the learning rate is negative.

    Example:
      >>> tx = optax.chain(optax.sgd(0.5), proximal_slimming(1.0, 0.5))
      >>> params = {'norm': {'scale': jnp.array([2.0, -0.25, 0.0])}}
      >>> gradients = jax.tree.map(jnp.zeros_like, params)
      >>> updates, _ = tx.update(gradients, tx.init(params), params)
      >>> optax.apply_updates(params, updates)['norm']['scale']
      Array([1.5, 0. , 0. ], dtype=float32)
    """
    base.rules(learning_rate, what="learning_rate")

    def change(
        strengths: Mapping[str, Strength], step: jax.Array, updates: PyTree, params: PyTree
    ) -> PyTree:
        rate = base.at(learning_rate, step)

        def shrunken(path: str, update: jax.Array, scale: jax.Array) -> jax.Array:
            if path not in strengths:
                return update
            moved = scale + update
            threshold = (rate * base.at(strengths[path], step)).astype(moved.dtype)
            cut = jnp.clip(moved, -threshold, threshold)
            return jnp.where(cut == moved, -scale, update - cut).astype(scale.dtype)

        return tree.map_with_path(shrunken, updates, params)

    return base.transformation(_by_path(base.rules(strength), select, protect), change)


def _by_path(
    rules: Mapping[str, Strength], select: str | Iterable[str], protect: str | Iterable[str]
) -> Callable[[PyTree], dict[str, Strength]]:
    """What finds the strength of each selected path of parameters."""

    def strengths(params: PyTree) -> dict[str, Strength]:
        chosen = base.choose(tree.paths(params), select, protect)
        return tree.assign(rules, chosen, what="strength", default=0.0)

    return strengths
