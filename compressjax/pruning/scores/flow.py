"""Scores of how a signal flows through an untrained network: forwards, or gradients backwards.

Both are for pruning before training. `snip` asks what the loss would lose; `grasp` asks what the
gradient would lose, `synflow` what the paths from input to output would, without any data.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from compressjax.pruning.schedules import check_count
from compressjax.pruning.scores.base import Score, none_yet, wide

PyTree = Any


class GraspState(NamedTuple):
    """State of `grasp`.

    Attributes:
      step: int32 [], steps seen.
      evidence: tree like params of float32, `w * (H g)` summed over the first batches.
    """

    step: jax.Array
    evidence: PyTree


def curvature_along(
    obj_fn: Callable[[PyTree], jax.Array], params: PyTree, direction: PyTree
) -> PyTree:
    """Multiplies the Hessian of a loss by a direction, without forming it.

    Args:
      obj_fn: `params -> loss []`.
      params: tree of arrays, where the Hessian is taken.
      direction: tree like `params`; cast to its dtypes.

    Returns:
      A tree like `params` of float32. The cost is about that of two gradients.

    Example:
      >>> curvature_along(lambda w: jnp.sum(w**3), jnp.array([1.0, 2.0]), jnp.array([1.0, 1.0]))
      Array([ 6., 12.], dtype=float32)
    """
    along = jax.tree.map(lambda w, v: v.astype(w.dtype), params, direction)
    return jax.tree.map(wide, jax.jvp(jax.grad(obj_fn), (params,), (along,))[1])


def grasp(*, batches: int = 1) -> Score:
    """Scores a weight by how much of the gradient's norm it carries.

    Wang, Zhang and Grosse 2020, "Picking Winning Tickets Before Training by Preserving Gradient
    Flow" (GraSP), equation 8 and algorithm 1. The paper removes the weights with the highest
    `-w * (H g)`, those whose removal lets the squared norm of the gradient fall least, or grow.
    Here the highest are kept, so values are `w * (H g)`. Use `one_shot` before training.

    Args:
      batches: evidence is summed over this many first steps, about two more gradients each, on a
        CPU several times that where there are convolutions; later steps cost nothing.

    Returns:
      A `Score` whose update takes `obj_fn`, `params -> loss []` on the batch of the step; its
      state is a `GraspState`. `g` are the gradients that `update` is given.

    Raises:
      ValueError: if `batches` is under 1.
      TypeError: if it is not an int.

    Example:
      >>> score, w = grasp(), jnp.array([1.0, 2.0])
      >>> state = score.update(jnp.ones(2), score.init(w), w, obj_fn=lambda w: jnp.sum(w**3))
      >>> score.values(state, w)
      Array([ 6., 24.], dtype=float32)
    """
    check_count(batches, "batches", 1)

    def update(
        gradients: PyTree,
        state: GraspState,
        params: PyTree,
        *,
        obj_fn: Callable[[PyTree], jax.Array],
    ) -> GraspState:
        def gathered() -> PyTree:
            curved = curvature_along(obj_fn, params, gradients)
            return jax.tree.map(lambda e, w, c: e + wide(w) * c, state.evidence, params, curved)

        early = state.step < batches
        evidence = jax.lax.cond(early, gathered, lambda: state.evidence)
        return GraspState(jnp.minimum(state.step + 1, batches), evidence)

    return Score(
        init=lambda params: GraspState(jnp.zeros((), jnp.int32), none_yet(params)),
        update=update,
        values=lambda state, params: state.evidence,
        extra=("obj_fn",),
    )


def synflow(fn: Callable[..., PyTree], *example_inputs: Any) -> Score:
    """Scores a weight by what flows through it when all weights and inputs are positive.

    Tanaka et al. 2020, "Pruning neural networks without any data by iteratively conserving
    synaptic flow" (SynFlow), section 5 and algorithm 1: `|w * dR/dw|` at the absolute values of
    all parameters, where `R` is the sum of the outputs for inputs of ones. In a network without
    biases the scores of a layer sum to those of any other, so that no layer is emptied first. That
    takes many rounds: the paper uses 100, with `exponential` and the budget `global_()`.

    Values are computed from the parameters alone, one gradient of `fn` on each step that updates
    masks; pruned weights must be 0 by then, as `prune` leaves them. `R` is a product over layers
    and is computed in float32: in networks so deep and wide that it exceeds 3e38, scale the
    weights down in `fn`.

    Args:
      fn: `fn(params, *inputs) -> tree of arrays`. A batch norm should use its running statistics;
        those that `fn` closes over stay as they are.
      *example_inputs: what has the shapes and dtypes of one input (arrays or
        `jax.ShapeDtypeStruct`s); a batch of one is enough.

    Returns:
      A `Score` without state.

    Example:
      >>> score = synflow(lambda w, x: x @ w, jax.ShapeDtypeStruct((1, 2), jnp.float32))
      >>> score.values((), jnp.array([[1.0, -2.0], [3.0, 0.0]]))
      Array([[1., 2.],
             [3., 0.]], dtype=float32)
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), example_inputs)

    def flow(params: PyTree) -> jax.Array:
        ones = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes)
        outputs = jax.tree.leaves(fn(params, *ones))
        return sum((jnp.sum(wide(x)) for x in outputs), start=jnp.zeros((), jnp.float32))

    def values(state: PyTree, params: PyTree) -> PyTree:
        positive = jax.tree.map(lambda w: jnp.abs(wide(w)), params)
        return jax.tree.map(lambda w, g: jnp.abs(w * g), positive, jax.grad(flow)(positive))

    return Score(
        init=lambda params: (),
        update=lambda gradients, state, params: state,
        values=values,
    )
