"""What a schedule is, and what all of them ask of their arguments."""

from collections.abc import Callable
from typing import NamedTuple

import jax


class Schedule(NamedTuple):
    """When to prune.

    Attributes:
      sparsity: `sparsity(step) -> float32 []` in [0, 1), the fraction of weights to prune.
      due: `due(step) -> bool []`, whether this step computes new masks.
      falls: whether the sparsity ever falls, so that pruned weights return.
    """

    sparsity: Callable[[jax.Array], jax.Array]
    due: Callable[[jax.Array], jax.Array]
    falls: bool = False


def check_sparsity(sparsity: float, name: str) -> None:
    """Refuses a sparsity outside [0, 1).

    Args:
      sparsity: fraction of weights to prune.
      name: of the argument, for the error message.

    Raises:
      ValueError: if it is outside [0, 1).

    Example:
      >>> check_sparsity(0.5, 'final')
    """
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(
            f"{name} must be in [0, 1), found {sparsity}; it is the fraction of weights set to 0"
        )


def check_count(count: int, name: str, least: int) -> None:
    """Refuses what is not a whole number, or too small a one.

    Args:
      count: of updates, rounds or anything else.
      name: of the argument, for the error message.
      least: the smallest that makes sense.

    Raises:
      TypeError: if it is not an int.
      ValueError: if it is under `least`.

    Example:
      >>> check_count(100, 'every', 1)
    """
    if isinstance(count, bool) or not isinstance(count, int):
        raise TypeError(f"{name} must be an int, found {count!r}; pass a whole number")
    if count < least:
        raise ValueError(f"{name} must be at least {least}, found {count}")
