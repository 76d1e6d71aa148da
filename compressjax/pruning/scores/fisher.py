"""Second-order scores from the diagonal of the curvature.

What the loss gains when one weight goes, and no other moves: `w^2 * h / 2`. `diagonal_fisher` takes
`h` from squared gradients, which cost nothing more; `optimal_brain_damage` samples the Hessian
itself. Neither knows that weights can stand in for each other: `inverse_fisher` does.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from compressjax.pruning.schedules import check_count
from compressjax.pruning.scores.base import Score, none_yet, summed, wide
from compressjax.pruning.scores.flow import curvature_along

PyTree = Any


def diagonal_fisher(*, decay: float = 1.0) -> Score:
    """Scores a weight by its square times the squares of its gradients.

    Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning", equation
    for single parameters: `w^2 * F / 2` with `F` the sum over steps of `g^2`. The gradients are
    means over a batch, where the paper has one example at a time; the smaller the batch, the
    closer to the Fisher information.

    Args:
      decay: what the sum is multiplied by at every step, in (0, 1]; 1 counts all steps alike.

    Returns:
      A `Score`; its state is a float32 array for every parameter.

    Raises:
      ValueError: if `decay` is not in (0, 1].

    Example:
      >>> score, params = diagonal_fisher(), {'kernel': jnp.array([2.0, -1.0])}
      >>> state = score.update({'kernel': jnp.array([-1.0, 3.0])}, score.init(params), params)
      >>> score.values(state, params)
      {'kernel': Array([2. , 4.5], dtype=float32)}
    """
    return summed(
        lambda w, g: jnp.square(g), lambda evidence, w: jnp.square(w) * evidence / 2, decay
    )


class CurvatureState(NamedTuple):
    """State of `optimal_brain_damage`.

    Attributes:
      step: int32 [], steps seen; random numbers depend on it and on the seed only.
      diagonal: tree like params of float32, the mean of the samples so far.
    """

    step: jax.Array
    diagonal: PyTree


def optimal_brain_damage(*, every: int = 1, seed: int = 0) -> Score:
    """Scores a weight by the loss that its removal adds, to second order.

    LeCun, Denker and Solla 1990, "Optimal Brain Damage", equation 5: `w^2 * h / 2`, with `h` the
    diagonal of the Hessian. The paper propagates it back by rules for its own layers; here it is
    estimated for any network by Hutchinson's method (Bekas, Kokiopoulou and Saad 2007, "An
    estimator for the diagonal of a matrix"): the mean of `z * (H z)` over random signs `z`, which
    is exact where the Hessian is diagonal. At a point that is no minimum `h` may be negative; such
    weights go first.

    Args:
      every: a sample is taken on the first step and on each so many after it, at the cost of about
        two more gradients; the other steps cost nothing. XLA runs convolutions in a branch slowly
        on a CPU, so there a sample on every step can be cheaper than one on each of ten.
      seed: of the random signs.

    Returns:
      A `Score` whose update takes `obj_fn`, `params -> loss []` on the batch of the step; its
      state is a `CurvatureState`.

    Raises:
      ValueError: if `every` is under 1.
      TypeError: if it is not an int.

    Example:
      >>> score, w = optimal_brain_damage(), jnp.array([1.0, 2.0])
      >>> state = score.update(w, score.init(w), w, obj_fn=lambda w: jnp.sum(w**3))
      >>> score.values(state, w)
      Array([ 3., 24.], dtype=float32)
    """
    check_count(every, "every", 1)

    def update(
        gradients: PyTree,
        state: CurvatureState,
        params: PyTree,
        *,
        obj_fn: Callable[[PyTree], jax.Array],
    ) -> CurvatureState:
        def sampled() -> PyTree:
            key = jax.random.fold_in(jax.random.key(seed), state.step)
            signs = optax.tree.random_like(key, params, jax.random.rademacher, dtype=jnp.float32)
            curved = curvature_along(obj_fn, params, signs)
            share = 1.0 / (state.step // every + 1)
            return jax.tree.map(
                lambda h, z, c: h + share * (z * c - h), state.diagonal, signs, curved
            )

        if every == 1:
            diagonal = sampled()
        else:
            due = state.step % every == 0
            diagonal = jax.lax.cond(due, sampled, lambda: state.diagonal)
        return CurvatureState(optax.safe_increment(state.step), diagonal)

    return Score(
        init=lambda params: CurvatureState(jnp.zeros((), jnp.int32), none_yet(params)),
        update=update,
        values=lambda state, params: jax.tree.map(
            lambda h, w: jnp.square(wide(w)) * h / 2, state.diagonal, params
        ),
        extra=("obj_fn",),
    )
