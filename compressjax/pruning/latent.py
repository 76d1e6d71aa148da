"""Latent weights: pruned weights that keep their values beside the parameters.

The optimizer trains dense weights that live in the state of `prune`, and the parameters are what
the mask leaves of them: exactly 0 where pruned, like everywhere in this package. The gradient at
the parameters is the straight-through gradient of the dense weights, so any weight may come back
with the value it has by then, and no forward pass has to know of masks. It costs one more copy of
the selected parameters. Methods whose pruned weights are lost are in `regrow.py`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from compressjax import tree
from compressjax.pruning.masker import Masker
from compressjax.pruning.masks import PruneState, apply_masks, checked
from compressjax.pruning.schedules import check_sparsity

PyTree = Any


class Latent(NamedTuple):
    """How latent weights are trained.

    Attributes:
      reach: `reach(sparsity) -> sparsity` of the weights that are trained, at most its argument;
        None trains all of them.
      pull: `pull(gradient, weight, keep, density) -> gradient` of one leaf, with what pulls latent
        weights to zero; `density` is the scheduled fraction that is kept.
    """

    reach: Callable[[jax.Array], jax.Array] | None
    pull: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def _check_decay(decay: float) -> None:
    if not decay >= 0:
        raise ValueError(f"decay must not be negative, found {decay}")


def straight_through(decay: float = 0.0) -> Latent:
    """Trains all weights with the gradients of the kept ones' places.

    Bengio et al. 2013, "Estimating or Propagating Gradients Through Stochastic Neurons for
    Conditional Computation" (the estimator); Zhou et al. 2021, "Learning N:M Fine-grained
    Structured Sparse Neural Networks From Scratch", equation 8 (SR-STE): the gradient of the
    pruned weights gets `decay * weight`, so that masks settle. The paper uses 2e-4 for N:M.

    Args:
      decay: of the pruned weights, not negative; 0 is the plain estimator.

    Returns:
      A `Latent` for `prune`; let its schedule update masks often (`constant(..., every=1)`).

    Raises:
      ValueError: if `decay` is negative.

    Example:
      >>> keep = jnp.array([True, False])
      >>> straight_through(0.1).pull(jnp.zeros(2), jnp.ones(2), keep, jnp.float32(0.5))
      Array([0. , 0.1], dtype=float32)
    """
    _check_decay(decay)

    def pull(
        gradient: jax.Array, weight: jax.Array, keep: jax.Array, density: jax.Array
    ) -> jax.Array:
        del density
        return gradient + decay * jnp.where(keep, jnp.zeros_like(weight), weight)

    return Latent(None, pull)


def top_kast(backward: float, decay: float = 0.0) -> Latent:
    """Trains the kept weights and a set of candidates around them.

    Jayakumar et al. 2020, "Top-KAST: Top-K Always Sparse Training", section 2: the forward pass
    uses the largest weights, the backward pass reaches a larger set of them, and all others stand
    still. Exploration is encouraged by pulling candidates harder than kept weights, by one over
    the density (section 2.2, with the L2 norm).

    Args:
      backward: sparsity of the weights that are trained, in [0, 1), under that of the schedule;
        where the schedule is less sparse, the trained weights are the kept ones.
      decay: weight of the L2 penalty, not negative.

    Returns:
      A `Latent` for `prune`.

    Raises:
      ValueError: if `backward` is outside [0, 1) or `decay` is negative.

    Example:
      >>> float(top_kast(backward=0.5).reach(jnp.float32(0.9)))
      0.5
    """
    check_sparsity(backward, "backward")
    _check_decay(decay)

    def pull(
        gradient: jax.Array, weight: jax.Array, keep: jax.Array, density: jax.Array
    ) -> jax.Array:
        strength = decay * jnp.where(keep, 1.0, 1 / density)
        return gradient + (strength * weight).astype(gradient.dtype)

    return Latent(lambda sparsity: jnp.minimum(sparsity, backward), pull)


class LatentWeights(NamedTuple):
    """Dense weights beside the parameters.

    Attributes:
      weights: tree like params; None where a leaf is not pruned.
      trained: masks of the weights that are trained, like those of the kept; () where all are.
    """

    weights: PyTree
    trained: PyTree


def with_latent(
    tx: optax.GradientTransformationExtraArgs, latent: Latent, keeps: Masker, trains: Masker | None
) -> optax.GradientTransformationExtraArgs:
    """Makes the optax transformation of latent weights.

    Args:
      tx: the optimizer of the dense weights.
      latent: how they are trained.
      keeps: says which weights the parameters keep.
      trains: says which weights are trained; None: all.

    Returns:
      The transformation that `prune` returns for `latent`.

    Example:
      >>> from compressjax import pruning
      >>> tx = pruning.prune(optax.sgd(0.1), schedule=pruning.constant(0.5, every=1),
      ...                    latent=straight_through())
      >>> params = {'kernel': jnp.array([[3.0, 1.0]])}
      >>> _, state = tx.update(params, tx.init(params), params)
      >>> [round(float(weight), 2) for weight in state.held.weights['kernel'][0]]
      [2.7, 0.9]
    """

    def init(params: PyTree) -> PruneState:
        keep, evidence = keeps.init(params)
        held = tree.paths(keep)
        weights = tree.map_with_path(lambda path, x: jnp.array(x) if path in held else None, params)
        trained = () if trains is None else keep
        return PruneState(
            jnp.zeros((), jnp.int32),
            keep,
            evidence,
            tx.init(params),
            LatentWeights(weights, trained),
        )

    def update(
        updates: PyTree, state: PruneState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, PruneState]:
        keep, params = tree.paths(state.keep), checked(state, params)
        step = optax.safe_increment(state.step)
        dense = tree.replace(params, tree.paths(state.held.weights))
        density = 1 - keeps.sparsity(step)
        pulled = tree.map_with_path(
            lambda path, gradient, weight: (
                latent.pull(gradient, weight, keep[path], density) if path in keep else gradient
            ),
            updates,
            dense,
        )
        evidence = keeps.gather(updates, state.score, dense, extra_args)
        trained = state.held.trained
        if trains is not None:
            pulled = apply_masks(pulled, trained)
        moves, inner_state = tx.update(pulled, state.inner, dense, **extra_args)
        if trains is not None:
            # Weight decay and momentum must not move what stands still.
            moves = apply_masks(moves, trained)
        moved = optax.apply_updates(dense, moves)
        new_keep = keeps.renew(step, state.keep, evidence, moved, ())
        if trains is not None:
            trained = trains.renew(step, trained, evidence, moved, ())
        target = tree.paths(apply_masks(moved, new_keep))
        updates = tree.map_with_path(
            lambda path, move, param: target[path] - param if path in keep else move, moves, params
        )
        weights = tree.map_with_path(lambda path, leaf: leaf if path in keep else None, moved)
        return updates, PruneState(
            step, new_keep, evidence, inner_state, LatentWeights(weights, trained)
        )

    return optax.GradientTransformationExtraArgs(init, update)
