"""Pruning patterns: which shapes a mask may take.

A pattern says what is kept or pruned as one, its units, and which units of a leaf may be kept
together; it neither ranks them (a score does) nor counts them (a budget does). It masks one leaf
at a time: couplings between layers are the business of `compressjax.slimming`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


def _any(ranks: jax.Array) -> jax.Array:
    return jnp.ones(ranks.shape, bool)


def _split(array: jax.Array, axis: int, size: int) -> jax.Array:
    """Makes two axes of one: groups of `size` neighbours, and their members."""
    before, length, after = array.shape[:axis], array.shape[axis], array.shape[axis + 1 :]
    return array.reshape(*before, length // size, size, *after)


def _repeat(array: jax.Array, axis: int, times: int) -> jax.Array:
    """Repeats each element along an axis; unlike `jnp.repeat` it needs to be told no sharding."""
    shape = array.shape
    kept = tuple(i for i in range(array.ndim + 1) if i != axis + 1)
    each = jax.lax.broadcast_in_dim(array, (*shape[: axis + 1], times, *shape[axis + 1 :]), kept)
    return each.reshape(*shape[:axis], shape[axis] * times, *shape[axis + 1 :])


class Pattern(NamedTuple):
    """The shape of a mask.

    Attributes:
      check: `check(path, shape)` raises where the pattern does not fit a leaf.
      allowed: `allowed(ranks) -> bool` of the same shape: which units of a leaf may be kept, where
        `ranks` are uint32, one a unit, and a larger one matters more.
      pool: `pool(values) -> array`, the mean value of every unit.
      spread: `spread(keep, shape) -> bool` of that shape: what is kept of a leaf, by unit before.
      free: whether units are single weights and any may be kept: nothing here changes anything.

    The defaults are those of units that are single weights and of which any may be kept.
    """

    check: Callable[[str, tuple[int, ...]], None]
    allowed: Callable[[jax.Array], jax.Array] = _any
    pool: Callable[[jax.Array], jax.Array] = lambda values: values
    spread: Callable[[jax.Array, tuple[int, ...]], jax.Array] = lambda keep, shape: keep
    free: bool = False


def unstructured() -> Pattern:
    """Allows any weight to be kept.

    Returns:
      A `Pattern`.

    Example:
      >>> unstructured().allowed(jnp.arange(3, dtype=jnp.uint32))
      Array([ True,  True,  True], dtype=bool)
    """
    return Pattern(check=lambda path, shape: None, free=True)


def n_m(n: int, m: int, axis: int = -2) -> Pattern:
    """Allows the `n` best of every `m` consecutive weights along the contraction axis.

    Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks" (2:4); Zhou et al. 2021,
    "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch". The pattern holds
    from the first mask update on: a sparsity above 0 and up to `1 - n/m` gives exactly `n` of `m`
    in every group, a higher one prunes further inside the groups; at sparsity 0 nothing is pruned.

    Args:
      n: most weights kept in a group, at least 1.
      m: size of a group, above `n`.
      axis: contraction axis; -2 is the input axis of dense `[I, O]` and conv `[KH, KW, I, O]`
        kernels.

    Returns:
      A `Pattern`.

    Raises:
      ValueError: if not `1 <= n < m`. The pattern's check raises ValueError for a leaf without
        that axis, or whose axis `m` does not divide.

    Example:
      >>> ranks = jnp.array([[4], [1], [3], [2]], jnp.uint32)
      >>> n_m(2, 4).allowed(ranks)[:, 0]
      Array([ True, False,  True, False], dtype=bool)
    """
    if not 1 <= n < m:
        raise ValueError(f"n_m keeps n of m weights with 1 <= n < m, found n={n}, m={m}")

    def check(path: str, shape: tuple[int, ...]) -> None:
        if not -len(shape) <= axis < len(shape):
            raise ValueError(
                f"{n}:{m} sparsity goes along axis {axis}, but {path} has shape {shape}; select "
                "only dense and conv kernels, or pass another axis"
            )
        if shape[axis] % m:
            raise ValueError(
                f"{n}:{m} sparsity needs axis {axis} to be a multiple of {m}, but {path} has "
                f"shape {shape} with {shape[axis]} there; leave it out of select"
            )

    def allowed(ranks: jax.Array) -> jax.Array:
        split = axis % ranks.ndim
        groups = _split(ranks, split, m)
        members = jnp.moveaxis(groups, split + 1, 0)
        # A member's place is the number of members before it: larger, or equal and earlier.
        places = [
            sum(
                ((other >= member) if j < i else (other > member)).astype(jnp.int32)
                for j, other in enumerate(members)
                if j != i
            )
            for i, member in enumerate(members)
        ]
        best = jnp.stack([place < n for place in places], axis=split + 1)
        return best.reshape(ranks.shape)

    return Pattern(check, allowed)


def block(rows: int, columns: int) -> Pattern:
    """Keeps or prunes blocks of neighbouring inputs and outputs as one.

    Narang et al. 2017, "Block-Sparse Recurrent Neural Networks", section 3.1; Elsen et al. 2020,
    "Fast Sparse ConvNets", for blocks of a few outputs. The weights of a block are averaged, while
    Narang et al. take the largest.

    Blocks lie along the last two axes, inputs I and outputs O, of dense `[I, O]` and conv
    `[KH, KW, I, O]` kernels. LiteRT stores the weights of FULLY_CONNECTED as `[O, I]`, so its
    blocks read the other way round: its float kernel for 1x4 blocks (4 inputs of one output) wants
    `block(4, 1)` here, its int8 kernel for 1x16 blocks `block(16, 1)`. XNNPACK's sparse 1x1
    convolutions are faster where 2 or 4 outputs share their inputs: `block(1, 2)`, `block(1, 4)`.

    Args:
      rows: inputs of a block, at least 1.
      columns: outputs of a block, at least 1.

    Returns:
      A `Pattern` whose units are blocks: budgets count them, exactly.

    Raises:
      ValueError: if `rows` or `columns` is under 1. The pattern's check raises ValueError for a
        leaf with fewer than two axes, or whose last two axes the block does not divide.

    Example:
      >>> pattern = block(2, 1)
      >>> pattern.pool(jnp.array([[1.0, 2.0], [3.0, 6.0]]))
      Array([[2., 4.]], dtype=float32)
      >>> pattern.spread(jnp.array([[False, True]]), (2, 2))
      Array([[False,  True],
             [False,  True]], dtype=bool)
    """
    if rows < 1 or columns < 1:
        raise ValueError(
            f"a block needs at least one input and one output, found rows={rows}, columns={columns}"
        )

    def check(path: str, shape: tuple[int, ...]) -> None:
        if len(shape) < 2:
            raise ValueError(
                f"blocks lie along the last two axes, but {path} has shape {shape}; select only "
                "dense and conv kernels"
            )
        if shape[-2] % rows or shape[-1] % columns:
            raise ValueError(
                f"blocks of {rows} inputs and {columns} outputs do not divide {path} with shape "
                f"{shape}, which has {shape[-2]} inputs and {shape[-1]} outputs; leave it out of "
                "select or use smaller blocks"
            )

    def pool(values: jax.Array) -> jax.Array:
        # One axis at a time, so that sharded leaves keep their sharding.
        across = jnp.sum(_split(values, values.ndim - 1, columns), axis=-1, dtype=jnp.float32)
        both = jnp.sum(_split(across, values.ndim - 2, rows), axis=-2)
        return both / (rows * columns)

    def spread(keep: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return _repeat(_repeat(keep, keep.ndim - 2, rows), keep.ndim - 1, columns)

    return Pattern(check, pool=pool, spread=spread)


def channels(axis: int = -1) -> Pattern:
    """Keeps or prunes whole channels as one.

    Li et al. 2017, "Pruning Filters for Efficient ConvNets", section 3.1: with the score
    `magnitude` the filters with the smallest sums of absolute weights go. Channels are ranked by
    their mean, so that a `global_` budget can compare filters of different sizes.

    It masks one kernel at a time: the bias and the batch norm after it, and the layers that read
    the channel, stay as they are, and nothing becomes smaller. `compressjax.slimming.shrink` cuts
    coupled channels out together.

    Args:
      axis: whose slices are the channels; -1 is the output axis of dense `[I, O]` and conv
        `[KH, KW, I, O]` kernels, -2 the input axis.

    Returns:
      A `Pattern` whose units are channels: budgets count them, exactly.

    Raises:
      ValueError: by the pattern's check, for a leaf without that axis or without weights.

    Example:
      >>> pattern = channels()
      >>> pattern.pool(jnp.array([[1.0, 2.0], [3.0, 6.0]]))
      Array([2., 4.], dtype=float32)
      >>> pattern.spread(jnp.array([False, True]), (2, 2))
      Array([[False,  True],
             [False,  True]], dtype=bool)
    """

    def check(path: str, shape: tuple[int, ...]) -> None:
        if not -len(shape) <= axis < len(shape):
            raise ValueError(
                f"channels lie along axis {axis}, but {path} has shape {shape}; select only dense "
                "and conv kernels, or pass another axis"
            )
        if not math.prod(shape):
            raise ValueError(
                f"channels need weights to be ranked by, but {path} has shape {shape}; leave it "
                "out of select"
            )

    def pool(values: jax.Array) -> jax.Array:
        others = tuple(i for i in range(values.ndim) if i != axis % values.ndim)
        return jnp.mean(values, axis=others, dtype=jnp.float32)

    def spread(keep: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return jax.lax.broadcast_in_dim(keep, shape, (axis % len(shape),))

    return Pattern(check, pool=pool, spread=spread)
