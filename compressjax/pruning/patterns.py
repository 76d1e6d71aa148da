"""Pruning patterns: which shapes a mask may take.

A pattern says what is kept or pruned as one, its units, and which units of a leaf may be kept
together; it neither ranks them (a score does) nor counts them (a budget does).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Pattern(NamedTuple):
    """The shape of a mask.

    Attributes:
      check: `check(path, shape)` raises where the pattern does not fit a leaf.
      allowed: `allowed(ranks) -> bool` of the same shape: which units of a leaf may be kept, where
        `ranks` are uint32, one a unit, and a larger one matters more.
      pool: `pool(values) -> array`, the mean value of every unit.
      spread: `spread(keep, shape) -> bool` of that shape: what is kept of a leaf, by unit before.
    """

    check: Callable[[str, tuple[int, ...]], None]
    allowed: Callable[[jax.Array], jax.Array]
    pool: Callable[[jax.Array], jax.Array] = lambda values: values
    spread: Callable[[jax.Array, tuple[int, ...]], jax.Array] = lambda keep, shape: keep


def unstructured() -> Pattern:
    """Allows any weight to be kept.

    Returns:
      A `Pattern`.

    Example:
      >>> unstructured().allowed(jnp.arange(3, dtype=jnp.uint32))
      Array([ True,  True,  True], dtype=bool)
    """
    return Pattern(
        check=lambda path, shape: None,
        allowed=lambda ranks: jnp.ones(ranks.shape, bool),
    )


def n_m(n: int, m: int, axis: int = -2) -> Pattern:
    """Allows the `n` best of every `m` consecutive weights along the contraction axis.

    Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks" (2:4); Zhou et al. 2021,
    "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch". The pattern holds
    from the first mask update on: a budget at or under sparsity `1 - n/m` gives exactly `n` of `m`
    in every group, a higher one prunes further inside the groups.

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
        groups = ranks.reshape(*ranks.shape[:split], -1, m, *ranks.shape[split + 1 :])
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
