"""Masks as values: applying them to parameters, and finding them in an optimizer's state.

Making them is the business of `choose` and, over a training run, of `prune`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from compressjax import tree

PyTree = Any


class PruneState(NamedTuple):
    """State of `prune`.

    Attributes:
      step: int32 [], updates made so far.
      keep: tree like params: boolean masks, True = kept; None where a leaf is not pruned.
      score: the evidence the score has gathered.
      inner: state of the optimizer inside.
      held: the weights that a `Latent` trains beside the parameters; () without.
    """

    step: jax.Array
    keep: PyTree
    score: PyTree
    inner: PyTree
    held: PyTree = ()


def fitting(keep: PyTree, params: PyTree) -> dict[str, jax.Array]:
    """Lists masks by path after checking that each fits the parameter it masks.

    Args:
      keep: tree of masks, None where a leaf is not pruned.
      params: tree of arrays.

    Returns:
      The masks by path.

    Raises:
      ValueError: if a mask has no parameter, or another shape than it.

    Example:
      >>> sorted(fitting({'a': jnp.ones(2, bool), 'b': None}, {'a': jnp.ones(2), 'b': 1.0}))
      ['a']
    """
    kept, leaves = tree.paths(keep), tree.paths(params)
    for path, mask in kept.items():
        if path not in leaves:
            raise ValueError(
                f"masks do not fit the parameters: there is a mask for {path}, but no such "
                "parameter; use masks made for this model"
            )
        if jnp.shape(mask) != jnp.shape(leaves[path]):
            raise ValueError(
                f"masks do not fit the parameters: the mask of {path} has shape "
                f"{jnp.shape(mask)}, the parameter {jnp.shape(leaves[path])}; prune the model "
                "anew after changing its shapes"
            )
    return kept


def checked(state: PruneState, params: PyTree | None) -> PyTree:
    """Returns the parameters of an update after checking that they are those of the state.

    Args:
      state: of `prune`.
      params: what `update` was given.

    Returns:
      `params`.

    Raises:
      ValueError: if there are none, or they do not fit the masks.

    Example:
      >>> checked(PruneState(jnp.int32(0), {'a': None}, (), ()), {'a': 1.0})
      {'a': 1.0}
    """
    if params is None:
        raise ValueError("prune needs the parameters: call tx.update(gradients, state, params)")
    fitting(state.keep, params)
    return params


def apply_masks(params: PyTree, keep: PyTree) -> PyTree:
    """Sets pruned weights to zero.

    Args:
      params: tree of arrays.
      keep: tree like `params` of boolean masks, True = kept; None where a leaf is not pruned.

    Returns:
      A tree like `params`.

    Raises:
      ValueError: if a mask has no parameter, or another shape than it.

    Example:
      >>> apply_masks({'a': jnp.ones(2), 'b': 1.0}, {'a': jnp.array([True, False]), 'b': None})
      {'a': Array([1., 0.], dtype=float32), 'b': 1.0}
    """
    kept = fitting(keep, params)
    return tree.map_with_path(
        lambda path, x: jnp.where(kept[path], x, jnp.zeros_like(x)) if path in kept else x, params
    )


def _is_hole(node: Any) -> bool:
    return node is None or isinstance(node, optax.MaskedNode)


def _children(node: PyTree) -> tuple[list[PyTree], Any] | None:
    """Splits a tree one level down; None for a leaf."""
    children, structure = jax.tree.flatten(node, is_leaf=lambda child: child is not node)
    return None if children and children[0] is node else (children, structure)


def _join(first: PyTree, second: PyTree) -> PyTree:
    """Joins two trees of masks that may each have holes: kept means kept by both."""
    if _is_hole(first) or _is_hole(second):
        return second if _is_hole(first) else first
    ours, theirs = _children(first), _children(second)
    if ours is None or theirs is None:
        return first & second
    joined = [_join(a, b) for a, b in zip(ours[0], theirs[0], strict=True)]
    return jax.tree.unflatten(ours[1], joined)


def masks(opt_state: PyTree) -> PyTree:
    """Finds the masks of `prune` inside any nesting of optax states.

    Args:
      opt_state: state of an optimizer that contains `prune`, alone or inside `optax.chain`,
        `multi_transform`, `masked`, `inject_hyperparams`, `MultiSteps` and the like.

    Returns:
      A tree like params: boolean masks, True = kept; None where a leaf (or, under `masked`, a
      whole branch) is not pruned. Masks of several `prune`s are joined: kept means kept by all.

    Raises:
      ValueError: if the state contains no masks.

    Example:
      >>> from compressjax.pruning import one_shot, prune
      >>> tx = optax.chain(optax.clip(1.0), prune(optax.adam(1e-3), schedule=one_shot(0.5)))
      >>> masks(tx.init({'dense': {'kernel': jnp.zeros((1, 2)), 'bias': jnp.zeros(2)}}))
      {'dense': {'bias': None, 'kernel': Array([[ True,  True]], dtype=bool)}}
    """
    found: list[PyTree] = []

    def visit(node: PyTree) -> None:
        for leaf in jax.tree.leaves(node, is_leaf=lambda x: isinstance(x, PruneState)):
            if isinstance(leaf, PruneState):
                found.append(leaf.keep)
                visit(leaf.inner)

    visit(opt_state)
    if not found:
        raise ValueError(
            f"no masks in this {type(opt_state).__name__}: it comes from an optimizer without "
            "prune, or was restored from a checkpoint without its template (states come back as "
            "plain dictionaries then)"
        )
    joined = found[0]
    for keep in found[1:]:
        joined = _join(joined, keep)
    return jax.tree.map(lambda x: None if _is_hole(x) else x, joined, is_leaf=_is_hole)
