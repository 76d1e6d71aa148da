"""Importance from gradients: what the loss would say if a channel went.

The evidence is made first, in one compiled pass over some batches (`gradient_moments` for averages,
`batch_gradients` for one gradient a batch), and the importances are functions of it. `of_weights`
takes any scores of single weights, such as those of `pruning.scores`, and adds them up over each
channel.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compressjax import tree
from compressjax.graph.channels import Group, Member
from compressjax.slimming.importance.base import (
    Combine,
    Importance,
    arguments,
    combined,
    known_of,
    makers,
    slice_sums,
)

PyTree = Any
Evidence = Mapping[str, Any]


def gradient_moments(
    loss_fn: Callable[..., jax.Array], variables: PyTree, batches: Iterable[Any]
) -> tuple[PyTree, PyTree]:
    """Averages gradients and their squares over batches.

    The squares are of a whole batch's gradient: for the diagonal of the Fisher matrix, which is of
    single examples, give batches of one.

    Args:
      loss_fn: `loss_fn(variables, *batch) -> []`.
      variables: pytree of arrays; of a dictionary with a collection `params`, only that is
        differentiated.
      batches: arrays, or tuples of arguments; all of the same shapes, or it is compiled again.

    Returns:
      Two trees like `params`, or like the variables where there is no such collection, of float32
      (float64 for variables of float64), zero for leaves that are no real numbers.

    Raises:
      ValueError: if there are no batches.

    Example:
      >>> loss = lambda v, x: jnp.sum(v['w'] * x)
      >>> first, second = gradient_moments(loss, {'w': jnp.zeros(2)}, [1.0, 3.0])
      >>> first['w'].tolist(), second['w'].tolist()
      ([2.0, 2.0], [5.0, 5.0])
    """

    @jax.jit
    def add(sums: tuple[PyTree, PyTree], variables: PyTree, batch: tuple[Any, ...]) -> Any:
        gradient = _gradient(loss_fn, variables, batch)
        squares = jax.tree.map(jnp.square, gradient)
        return jax.tree.map(jnp.add, sums, (gradient, squares))

    zeros = jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), _wide(x)), _params(variables))
    sums, count = (zeros, zeros), 0
    for batch in arguments(batches, "gradient_moments"):
        sums, count = add(sums, variables, batch), count + 1
    first, second = jax.tree.map(lambda s: s / count, sums)
    return first, second


def batch_gradients(
    loss_fn: Callable[..., jax.Array], variables: PyTree, batches: Iterable[Any]
) -> list[PyTree]:
    """Takes the gradient of each batch: what `taylor` squares one by one.

    Args:
      loss_fn: `loss_fn(variables, *batch) -> []`.
      variables: pytree of arrays; of a dictionary with a collection `params`, only that is
        differentiated.
      batches: arrays, or tuples of arguments; all of the same shapes, or it is compiled again.

    Returns:
      For each batch a tree as of `gradient_moments`; all of them are in memory.

    Raises:
      ValueError: if there are no batches.

    Example:
      >>> loss = lambda v, x: jnp.sum(v['w'] * x)
      >>> [tree['w'].tolist() for tree in batch_gradients(loss, {'w': jnp.zeros(2)}, [1.0, 3.0])]
      [[1.0, 1.0], [3.0, 3.0]]
    """
    run = jax.jit(lambda variables, batch: _gradient(loss_fn, variables, batch))
    return [run(variables, batch) for batch in arguments(batches, "batch_gradients")]


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
    `(sum over the filter of g * w)^2`, averaged over batches. Kernels that are cut together are
    combined before the square, as their changes may cancel; `np.max` takes the largest, whatever
    its sign.

    Args:
      gradients: tree like the variables or like `params`; or a list of such trees, one a batch,
        from `batch_gradients`.
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
    whole = _by_path(gradients)
    one_each = [_by_path(g) for g in gradients] if isinstance(gradients, list | tuple) else []

    def either_sign(changes: np.ndarray, axis: int) -> np.ndarray:
        return np.maximum(combine(changes, axis=axis), combine(-changes, axis=axis))

    def importance(group: Group, variables: Mapping[str, Any]) -> np.ndarray:
        def change(g: Any, member: Member) -> np.ndarray:
            w = known_of(group, member, variables)
            return slice_sums(_product(g, w, member.path), member.axis)

        # Variables may be a list or a named tuple themselves: then their paths are in the whole.
        single = not one_each or all(member.path in whole for member in makers(group))
        changes = [
            combined(group, evidence, change, either_sign)
            for evidence in ([whole] if single else one_each)
        ]
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
            w = np.asarray(known_of(group, member, variables), np.float64)
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


def _by_path(evidence: PyTree) -> Evidence:
    """Evidence by the variables' paths, also where it was given for `params` alone."""
    found = tree.paths(evidence)
    return {**{f"params/{path}": leaf for path, leaf in found.items()}, **found}


def _params(variables: PyTree) -> PyTree:
    """What is differentiated."""
    inside = isinstance(variables, Mapping) and "params" in variables
    return variables["params"] if inside else variables


def _wide(x: Any) -> Any:
    return jnp.promote_types(jnp.result_type(x), jnp.float32)


def _gradient(loss_fn: Callable[..., jax.Array], variables: PyTree, batch: Sequence[Any]) -> PyTree:
    params = _params(variables)

    def loss_of(real: dict[str, jax.Array]) -> jax.Array:
        moved = tree.replace(params, real)
        whole = moved if params is variables else {**variables, "params": moved}
        return loss_fn(whole, *batch)

    leaves = tree.paths(params)
    real = {p: x for p, x in leaves.items() if jnp.issubdtype(jnp.result_type(x), jnp.floating)}
    gradients = jax.grad(loss_of)(real)
    return tree.map_with_path(
        lambda path, x: (
            gradients[path].astype(_wide(x)) if path in gradients else jnp.zeros(x.shape, _wide(x))
        ),
        params,
    )
