"""Second-order scores that know that weights stand in for each other: blocks of the curvature.

`fisher` asks what a weight's removal costs while all others stay; here the others in its block may
move to make up for it, and `compensate` moves them.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from compressjax import tree
from compressjax.pruning.masks import fitting
from compressjax.pruning.schedules import check_count
from compressjax.pruning.scores.base import Score, check_decay, wide

PyTree = Any


class BlocksState(NamedTuple):
    """State of `optimal_brain_surgeon`.

    Attributes:
      weight: float32 [], the steps seen, less what was forgotten.
      damping: float32 [], what is added to the diagonal of every block.
      fisher: tree like params of float32 [blocks, size, size]: the mean over steps of `g g^T`
        within each block of consecutive weights.
    """

    weight: jax.Array
    damping: jax.Array
    fisher: PyTree


def _blocks(x: jax.Array, size: int) -> jax.Array:
    """Cuts a leaf in row-major order into blocks, float32 [blocks, size], 0 after its end."""
    flat = wide(x).ravel()
    return jnp.pad(flat, (0, -flat.size % size)).reshape(-(-flat.size // size), size)


def _damped(fisher: jax.Array, damping: jax.Array) -> jax.Array:
    """Adds the damping to the diagonal of every block, [blocks, size, size]; at least its rounding.

    A block of fewer gradients than weights is singular. Rounded to float32 it may have negative
    eigenvalues, of about its largest entry times this floor, and no Cholesky factor.
    """
    size, largest = fisher.shape[-1], jnp.max(fisher, axis=(-2, -1), keepdims=True, initial=0.0)
    floor = size * jnp.finfo(fisher.dtype).eps * largest
    eye = jnp.broadcast_to(jnp.eye(size, dtype=fisher.dtype), fisher.shape)
    return fisher + jnp.maximum(damping, floor) * eye


def inverse_factor(matrices: jax.Array) -> jax.Array:
    """Computes the inverses of the Cholesky factors of symmetric positive matrices.

    With `A = L L^T` it is `inv(L)`, so that `inv(A) = inv(L)^T inv(L)`. All blocks are eliminated
    together, a column at a time: LAPACK's batched calls wait for each other on XLA's CPU threads,
    and several of them in one program can wait for ever.

    Args:
      matrices: float32 [blocks, size, size].

    Returns:
      float32 [blocks, size, size], lower triangular.

    Example:
      >>> inverse_factor(jnp.array([[[4.0, 0.0], [0.0, 16.0]]]))
      Array([[[0.5 , 0.  ],
              [0.  , 0.25]]], dtype=float32)
    """
    size = matrices.shape[-1]
    rows = jnp.arange(size)

    def eliminate(k: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        left, right = carry
        pivot = jax.lax.dynamic_index_in_dim(left, k, 1)
        scale = 1 / jnp.sqrt(jax.lax.dynamic_index_in_dim(pivot, k, 2))
        pivot, other = pivot * scale, jax.lax.dynamic_index_in_dim(right, k, 1) * scale
        # What is left is symmetric, so the pivot's row is its column too.
        below = (rows > k).reshape(1, 1, size)
        factors = jnp.swapaxes(jnp.where(below, pivot, 0.0), 1, 2)
        here = (rows == k).reshape(1, size, 1)
        return left - factors * pivot, jnp.where(here, other, right - factors * other)

    eye = jnp.broadcast_to(jnp.eye(size, dtype=matrices.dtype), matrices.shape)
    return jax.lax.fori_loop(0, size, eliminate, (matrices, eye))[1]


def moved(matrices: jax.Array, weights: jax.Array, keep: jax.Array) -> jax.Array:
    """Moves the kept weights to where a quadratic loss is least while the others are 0.

    With `K` kept, `Q` pruned and `H` the matrix, the kept weights change by
    `inv(H[K, K]) H[K, Q] w[Q]`, which is `-inv(H) E (E^T inv(H) E)^-1 w[Q]` on `K`, with `E` the
    columns of the identity in `Q`, but needs no inverse of `H`.

    Args:
      matrices: float32 [blocks, size, size], symmetric and positive.
      weights: float32 [blocks, size].
      keep: boolean [blocks, size].

    Returns:
      float32 [blocks, size], exactly 0 where not kept.

    Example:
      >>> moved(jnp.array([[[2.0, 1.0], [1.0, 2.0]]]), jnp.ones((1, 2)), jnp.array([[True, False]]))
      Array([[1.5, 0. ]], dtype=float32)
    """
    both = keep[:, :, None] & keep[:, None, :]
    eye = jnp.broadcast_to(jnp.eye(keep.shape[-1], dtype=matrices.dtype), matrices.shape)
    # Pruned rows are those of the identity: their equations say 0 = 0.
    system = jnp.where(both, matrices, eye)
    pull = jnp.einsum("bij,bj->bi", matrices, jnp.where(keep, 0.0, weights))
    factor = inverse_factor(system)
    half = jnp.einsum("bij,bj->bi", factor, jnp.where(keep, pull, 0.0))
    change = jnp.einsum("bji,bj->bi", factor, half)
    return jnp.where(keep, weights + change, 0.0)


def optimal_brain_surgeon(
    *, block_size: int = 16, damping: float = 1e-5, decay: float = 1.0
) -> Score:
    """Scores a weight by the loss that its removal adds when others in its block make up for it.

    Hassibi and Stork 1993, "Second order derivatives for network pruning: Optimal Brain Surgeon",
    equation 5: `w[q]^2 / (2 inv(F)[q, q])`. As in Singh and Alistarh 2020, "WoodFisher: Efficient
    Second-Order Approximation for Neural Network Compression", `F` is the empirical Fisher matrix
    plus damping, `damping * I + mean over steps of g g^T`, within blocks of consecutive weights of
    each leaf in row-major order. They build the inverse step by step (equation 11); here the matrix
    itself is summed, which is cheaper and loses no digits to cancellation, and factored on the
    steps that update masks. Gather over at least `block_size` steps before: below, the
    damping alone decides some directions.

    The state takes `block_size` float32 numbers per weight, of all parameters. Factoring takes
    O(block_size^2) operations per weight. Under a mesh, a leaf whose shards are not runs of whole
    blocks is gathered at every step.

    Args:
      block_size: weights in a block.
      damping: added to the diagonal; positive. Compare it with the squares of the gradients. A
        block gets more where float32 needs it: `block_size * 1.2e-7` of its largest entry.
      decay: what past steps count for after each step, in (0, 1]; less than 1 follows weights that
        train on.

    Returns:
      A `Score`; its state is a `BlocksState`, which `compensate` takes.

    Raises:
      ValueError: if `block_size` is less than 1, `damping` is not positive or `decay` is not in
        (0, 1].

    Example:
      >>> score, w = optimal_brain_surgeon(block_size=2, damping=1.0), jnp.array([1.0, 2.0, 3.0])
      >>> state = score.update(jnp.array([1.0, 1.0, 0.0]), score.init(w), w)
      >>> [round(float(value), 3) for value in score.values(state, w)]
      [0.75, 3.0, 4.5]
    """
    check_count(block_size, "block_size", 1)
    check_decay(decay)
    if not damping > 0.0:
        raise ValueError(
            f"damping must be positive, found {damping}; without it the Fisher matrix of fewer "
            "steps than block_size has no inverse"
        )

    def init(params: PyTree) -> BlocksState:
        def zeros(x: jax.Array) -> jax.Array:
            return jnp.zeros((-(-x.size // block_size), block_size, block_size), jnp.float32)

        return BlocksState(
            jnp.zeros((), jnp.float32),
            jnp.asarray(damping, jnp.float32),
            jax.tree.map(zeros, params),
        )

    def update(gradients: PyTree, state: BlocksState, params: PyTree) -> BlocksState:
        weight = decay * state.weight + 1.0

        def mean(gradient: jax.Array, fisher: jax.Array) -> jax.Array:
            g = _blocks(gradient, block_size)
            return fisher + (g[:, :, None] * g[:, None, :] - fisher) / weight

        fisher = jax.tree.map(mean, gradients, state.fisher)
        return state._replace(weight=weight, fisher=fisher)

    def values(state: BlocksState, params: PyTree) -> PyTree:
        def one(fisher: jax.Array, w: jax.Array) -> jax.Array:
            factor = inverse_factor(_damped(fisher, state.damping))
            inverse = jnp.sum(jnp.square(factor), axis=-2)
            gain = jnp.square(_blocks(w, block_size)) / (2 * inverse)
            return gain.ravel()[: w.size].reshape(w.shape)

        return jax.tree.map(one, state.fisher, params)

    return Score(init, update, values)


def compensate(state: BlocksState, params: PyTree, keep: PyTree) -> PyTree:
    """Prunes weights and moves those that remain to make up for them.

    Kurtic et al. 2022, "The Optimal BERT Surgeon: Scalable and Accurate Second-Order Pruning for
    Large Language Models", equation for a set of weights: with `Q` the pruned weights of a block
    and `E` the columns of the identity in `Q`, `dw = -inv(F) E (E^T inv(F) E)^-1 E^T w`.

    Call it on the weights as they were before the step that pruned them, with the masks and the
    evidence after it (`masks(opt_state)` and the `score` of its `PruneState`).

    Args:
      state: of `optimal_brain_surgeon`.
      params: tree of arrays, before pruning.
      keep: tree like `params` of boolean masks, True = kept; None where a leaf is not pruned.

    Returns:
      A tree like `params`, of its dtypes; pruned weights are exactly 0, and leaves and blocks
      without pruned weights stay as they are.

    Raises:
      ValueError: if a mask has no parameter, or another shape than it, or `state` is not of these
        parameters.

    Example:
      >>> score, w = optimal_brain_surgeon(block_size=2, damping=1.0), {'kernel': jnp.ones(2)}
      >>> state = score.update({'kernel': jnp.ones(2)}, score.init(w), w)
      >>> compensate(state, w, {'kernel': jnp.array([True, False])})
      {'kernel': Array([1.5, 0. ], dtype=float32)}
    """
    kept, fishers = fitting(keep, params), tree.paths(state.fisher)
    size = max((blocks.shape[-1] for blocks in fishers.values()), default=1)

    def one(path: str, w: jax.Array) -> jax.Array:
        if path not in kept:
            return w
        if path not in fishers or fishers[path].shape[0] != -(-w.size // size):
            there = f"{fishers[path].shape[0]} blocks" if path in fishers else "nothing"
            raise ValueError(
                f"the evidence does not fit the parameters: {path} has {w.size} weights, "
                f"{-(-w.size // size)} blocks of {size}, and the evidence {there} for it; pass the "
                "state of the score that pruned this model"
            )
        matrices = _damped(fishers[path], state.damping)
        mask = _blocks(kept[path], size) > 0
        after = moved(matrices, _blocks(w, size), mask)
        return after.ravel()[: w.size].reshape(w.shape).astype(w.dtype)

    return tree.map_with_path(one, params)
