"""Importance from gradients: what the loss would say if a channel went.

The evidence is made first, in one pass over some batches (`gradient_moments`, or a list of
gradients), and the importances are functions of it. `of_weights` takes any scores of single
weights, such as those of `pruning.scores`, and adds them up over each channel.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compressjax import tree
from compressjax.graph.channels import Group, Member
from compressjax.slimming.importance.base import Combine, Importance, combined, slice_sums

PyTree = Any


def gradient_moments(
    loss_fn: Callable[..., jax.Array], variables: PyTree, batches: Iterable[Sequence[Any]]
) -> tuple[PyTree, PyTree]:
    """Averages gradients and their squares over batches.

    Args:
      loss_fn: `loss_fn(variables, *batch) -> []`.
      variables: pytree of arrays; of a Flax dict, the collection `params` is differentiated.
      batches: the arguments of each call, all of the same shapes, or it is compiled again.

    Returns:
      Two trees of float32, like `params` or like the variables where there is no such collection.

    Raises:
      ValueError: if there are no batches.

    Example:
      >>> loss = lambda v, x: jnp.sum(v['w'] * x)
      >>> first, second = gradient_moments(loss, {'w': jnp.zeros(2)}, [(1.0,), (3.0,)])
      >>> first['w'].tolist(), second['w'].tolist()
      ([2.0, 2.0], [5.0, 5.0])
    """
    inside = isinstance(variables, Mapping) and "params" in variables
    params = variables["params"] if inside else variables

    def loss_of(params: PyTree, *batch: Any) -> jax.Array:
        return loss_fn({**variables, "params": params} if inside else params, *batch)

    @jax.jit
    def add(sums: tuple[PyTree, PyTree], *batch: Any) -> tuple[PyTree, PyTree]:
        gradients = jax.grad(loss_of)(params, *batch)
        wide = jax.tree.map(lambda g: g.astype(jnp.float32), gradients)
        first = jax.tree.map(jnp.add, sums[0], wide)
        second = jax.tree.map(lambda s, g: s + g * g, sums[1], wide)
        return first, second

    sums = jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), jnp.float32), (params, params))
    count = 0
    for batch in batches:
        sums, count = add(sums, *batch), count + 1
    if not count:
        raise ValueError("gradient_moments: there are no batches to take gradients of")
    first, second = jax.tree.map(lambda s: s / count, sums)
    return first, second


def of_weights(scores: PyTree, combine: Combine = np.sum) -> Importance:
    """Scores a channel by the sum of the scores of its weights.

    Args:
      scores: tree like the variables, or like their collection `params`, of real numbers; for
        instance `score.values(state, params)` of a `pruning.Score`.
      combine: over the kernels of a group: `np.sum`, `np.mean` or `np.max`.

    Returns:
      The importance. It raises ValueError where a variable has no scores or others' shapes.

    Example:
      >>> member = Member('params/w', 1, np.arange(2), makes=True, kernel=True)
      >>> group = Group('params/w', (member,), np.arange(2))
      >>> of_weights({'w': np.array([[1.0, 2.0], [3.0, 0.0]])})(group, {}).tolist()
      [4.0, 2.0]
    """
    evidence = _by_path(scores)
    return lambda group, variables: combined(
        group, evidence, lambda x, member: slice_sums(x, member.axis), combine
    )


def taylor(gradients: PyTree | Sequence[PyTree], combine: Combine = np.sum) -> Importance:
    """Scores a channel by the squared change of the loss without it, to first order.

    Molchanov et al., "Importance Estimation for Neural Network Pruning" (2019), equation 8:
    `(sum over the filter of g * w)^2`, averaged over batches; kernels that are cut together are
    combined before the square.

    Args:
      gradients: tree like the variables or like `params`; or a list of such trees, one a batch.
      combine: over the kernels of a group: `np.sum`, `np.mean` or `np.max`.

    Returns:
      The importance. It raises ValueError where a variable has no gradient or another shape.

    Example:
      >>> member = Member('w', 1, np.arange(2), makes=True, kernel=True)
      >>> group = Group('w', (member,), np.arange(2))
      >>> weights = {'w': np.array([[1.0, 2.0], [3.0, 1.0]])}
      >>> taylor({'w': np.array([[1.0, 1.0], [-1.0, 1.0]])})(group, weights).tolist()
      [4.0, 9.0]
    """
    trees = gradients if isinstance(gradients, (list, tuple)) else [gradients]
    evidence = [_by_path(gradient) for gradient in trees]

    def importance(group: Group, variables: Mapping[str, Any]) -> np.ndarray:
        def change(g: Any, member: Member) -> np.ndarray:
            return slice_sums(_product(g, variables[member.path], member.path), member.axis)

        changes = [combined(group, batch, change, combine) for batch in evidence]
        return np.mean(np.square(changes), axis=0)

    return importance


def diagonal_fisher(squared_gradients: PyTree, combine: Combine = np.sum) -> Importance:
    """Scores a channel by its squared weights times their squared gradients.

    Theis et al., "Faster gaze prediction with dense networks and Fisher pruning" (2018), for whole
    channels with a diagonal Fisher matrix: the sum of `w^2 F / 2`.

    Args:
      squared_gradients: averages over batches, tree like the variables or like `params`.
      combine: over the kernels of a group: `np.sum`, `np.mean` or `np.max`.

    Returns:
      The importance. It raises ValueError where a variable has no evidence or another shape.

    Example:
      >>> member = Member('w', 1, np.arange(2), makes=True, kernel=True)
      >>> group = Group('w', (member,), np.arange(2))
      >>> weights = {'w': np.array([[1.0, 2.0]])}
      >>> diagonal_fisher({'w': np.array([[4.0, 3.0]])})(group, weights).tolist()
      [2.0, 6.0]
    """
    return _curved(squared_gradients, combine)


def optimal_brain_damage(hessian_diagonal: PyTree, combine: Combine = np.sum) -> Importance:
    """Scores a channel by the loss that its removal adds, to second order.

    LeCun, Denker and Solla, "Optimal Brain Damage" (1990), equation 5, added up over the weights of
    the channel: the sum of `w^2 h / 2`.

    Args:
      hessian_diagonal: tree like the variables or like `params`; for instance the field `diagonal`
        of the state of `pruning.optimal_brain_damage()`.
      combine: over the kernels of a group: `np.sum`, `np.mean` or `np.max`.

    Returns:
      The importance. It raises ValueError where a variable has no evidence or another shape.

    Example:
      >>> member = Member('w', 1, np.arange(2), makes=True, kernel=True)
      >>> group = Group('w', (member,), np.arange(2))
      >>> weights = {'w': np.array([[1.0, 2.0]])}
      >>> optimal_brain_damage({'w': np.array([[-4.0, 3.0]])})(group, weights).tolist()
      [-2.0, 6.0]
    """
    return _curved(hessian_diagonal, combine)


def _curved(curvature: PyTree, combine: Combine) -> Importance:
    evidence = _by_path(curvature)

    def importance(group: Group, variables: Mapping[str, Any]) -> np.ndarray:
        def cost(h: Any, member: Member) -> np.ndarray:
            w = np.asarray(variables[member.path], np.float64)
            return slice_sums(_product(h, w * w, member.path), member.axis) / 2

        return combined(group, evidence, cost, combine)

    return importance


def _product(evidence: Any, weights: Any, path: str) -> np.ndarray:
    evidence, weights = np.asarray(evidence, np.float64), np.asarray(weights, np.float64)
    if evidence.shape != weights.shape:
        raise ValueError(
            f"the evidence for {path} has shape {evidence.shape}, the variable {weights.shape}; "
            "give gradients of the same model"
        )
    return evidence * weights


def _by_path(evidence: PyTree) -> dict[str, Any]:
    """Evidence by the variables' paths, also where it was given for `params` alone."""
    found = tree.paths(evidence)
    return {**{f"params/{path}": leaf for path, leaf in found.items()}, **found}
