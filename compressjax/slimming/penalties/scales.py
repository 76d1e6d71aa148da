"""An L1 penalty on the scales of batch norm: whole channels fade while the network trains.

The penalty is one number a channel, so it costs nothing; `group_lasso` is the neighbour that looks
at all weights of a channel, for networks without batch norm.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from compressjax import tree

PyTree = Any
Strength = float | optax.Schedule


class PenaltyState(NamedTuple):
    """State of a penalty.

    Attributes:
      step: int32 [], updates so far; schedules of the strength are functions of it.
    """

    step: jax.Array


def network_slimming(
    strength: Strength | Mapping[str, Strength], *, select: str | Iterable[str] = "**/scale"
) -> optax.GradientTransformation:
    """Adds the subgradient of an L1 penalty on batch norm's scales.

    Liu et al., "Learning Efficient Convolutional Networks through Network Slimming" (2017),
    equation 1: `strength * sum |scale|` is added to the loss. Channels whose scale comes down to
    nearly zero can be cut, by `shrink(..., importance=slimming.batch_norm_scale())`. Put it in
    front of the optimizer, as in the paper; an adaptive optimizer divides the penalty away with the
    gradient, so behind `optax.scale_by_adam` and before the learning rate it is what the paper
    means.

    Args:
      strength: of the penalty, at least 0, or a schedule `step -> strength`; or a mapping from
        globs of paths to such: the first that matches counts, and a scale that none matches has no
        penalty.
      select: globs of the paths of the scales.

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
    rules = strength if isinstance(strength, Mapping) else {"*": strength}
    for where, value in rules.items():
        if not callable(value) and value < 0:
            raise ValueError(f"strength for {where!r} is {value}, expected a number of at least 0")

    def strengths(params: PyTree) -> dict[str, Strength]:
        selected = tree.match(select, tree.paths(params), what="select")
        return tree.assign(rules, selected, what="strength", default=0.0)

    def init(params: PyTree) -> PenaltyState:
        strengths(params)
        return PenaltyState(jnp.zeros((), jnp.int32))

    def update(
        updates: PyTree, state: PenaltyState, params: PyTree | None = None
    ) -> tuple[PyTree, PenaltyState]:
        if params is None:
            raise ValueError(optax.NO_PARAMS_MSG)
        chosen = strengths(params)

        def penalised(path: str, update: jax.Array, scale: jax.Array) -> jax.Array:
            if path not in chosen:
                return update
            value = chosen[path]
            now = value(state.step) if callable(value) else value
            return update + (now * jnp.sign(scale)).astype(update.dtype)

        return (
            tree.map_with_path(penalised, updates, params),
            PenaltyState(optax.safe_increment(state.step)),
        )

    return optax.GradientTransformation(init, update)
