"""First-order scores: evidence from the gradients that training computes anyway.

All three multiply weights by gradients; they differ in where the absolute value and the sum over
steps stand. `saliency` sums absolute products: noise adds up. `movement` keeps the sign: weights
that move away from zero stay. `snip` sums gradients first, so that noise cancels, and takes the
product with the weights of the moment.
"""

import jax.numpy as jnp

from compressjax.pruning.scores.base import Score, summed


def saliency(*, decay: float = 1.0) -> Score:
    """Scores a weight by how much the loss would change without it, to first order.

    Molchanov et al. 2017, "Pruning Convolutional Neural Networks for Resource Efficient
    Inference", equations 6 and 7, for weights in place of feature maps: `sum over steps |w * g|`.

    Args:
      decay: what the sum is multiplied by at every step, in (0, 1]; 1 counts all steps alike.

    Returns:
      A `Score`; its state is a float32 array for every parameter.

    Raises:
      ValueError: if `decay` is not in (0, 1].

    Example:
      >>> score, params = saliency(), {'kernel': jnp.array([2.0, -1.0])}
      >>> state = score.update({'kernel': jnp.array([-1.0, 3.0])}, score.init(params), params)
      >>> score.values(state, params)
      {'kernel': Array([2., 3.], dtype=float32)}
    """
    return summed(lambda w, g: jnp.abs(w * g), lambda evidence, w: evidence, decay)


def movement(*, decay: float = 1.0) -> Score:
    """Scores a weight by how far training moves it away from zero.

    Sanh et al. 2020, "Movement Pruning: Adaptive Sparsity by Fine-Tuning", equations 5 to 7:
    `-sum over steps w * g`. A weight that descent drives towards zero scores below zero, however
    large it is. The paper trains pruned weights on, which is `latent=straight_through()` of
    `prune`; without it a weight that is pruned stays as it is scored then.

    Args:
      decay: what the sum is multiplied by at every step, in (0, 1]; 1 counts all steps alike.

    Returns:
      A `Score`; its state is a float32 array for every parameter.

    Raises:
      ValueError: if `decay` is not in (0, 1].

    Example:
      >>> score, params = movement(), {'kernel': jnp.array([2.0, -1.0])}
      >>> state = score.update({'kernel': jnp.array([1.0, 3.0])}, score.init(params), params)
      >>> score.values(state, params)
      {'kernel': Array([-2.,  3.], dtype=float32)}
    """
    return summed(lambda w, g: -w * g, lambda evidence, w: evidence, decay)


def snip(*, decay: float = 1.0) -> Score:
    """Scores a connection by how much the loss depends on whether it is there.

    Lee et al. 2019, "SNIP: Single-shot Network Pruning based on Connection Sensitivity",
    equations 4 to 6: `|w * sum of g|`. The paper prunes once, before training, on the gradients of
    one batch: `one_shot` with `at=1` and the budget `global_()`. Its division by the sum of all
    scores does not change their order and is left out.

    Args:
      decay: what the sum is multiplied by at every step, in (0, 1]; 1 counts all steps alike.

    Returns:
      A `Score`; its state is a float32 array for every parameter.

    Raises:
      ValueError: if `decay` is not in (0, 1].

    Example:
      >>> score, params = snip(), {'kernel': jnp.array([2.0, -1.0])}
      >>> state = score.update({'kernel': jnp.array([-1.0, 3.0])}, score.init(params), params)
      >>> score.update({'kernel': jnp.array([1.0, 3.0])}, state, params)
      {'kernel': Array([0., 6.], dtype=float32)}
    """
    return summed(lambda w, g: g, lambda evidence, w: jnp.abs(w * evidence), decay)
