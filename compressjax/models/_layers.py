"""What the networks of the zoo share: a layer, called inside `__call__`, and how widths scale."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import flax.linen as nn
import jax

Widths = TypeVar("Widths", bound=Sequence[object])


def conv_norm(
    x: jax.Array,
    width: int,
    size: int = 1,
    stride: int = 1,
    *,
    groups: int = 1,
    activation: Callable[[jax.Array], jax.Array] | None = None,
    train: bool,
) -> jax.Array:
    """Applies a convolution without bias, batch norm and, where there is one, an activation."""
    x = nn.Conv(width, (size, size), (stride, stride), feature_group_count=groups, use_bias=False)(
        x
    )
    x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
    return x if activation is None else activation(x)


def round_to_1(width: float) -> int:
    """Rounds to a whole number, at least 1: for networks that a multiple of 8 would hardly cut."""
    return max(1, round(width))


def round_to_8(width: float) -> int:
    """Rounds to a multiple of 8, at least 8, and never down by more than a tenth."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * width else rounded + 8


def scaled(
    widths: Sequence[int], rounded: Callable[[float], int]
) -> Callable[[float], tuple[int, ...]]:
    """Gives standard widths as a function of the multiplier."""
    return lambda multiplier: tuple(rounded(multiplier * width) for width in widths)


def resolve(
    model: str, given: Widths | None, multiplier: float, standard: Callable[[float], Widths]
) -> Widths:
    """Gives the widths of a network: the standard ones, scaled, or the explicit ones as they are.

    Args:
      model: the network's name, for errors.
      given: explicit widths, or None.
      multiplier: scales the standard widths.
      standard: the widths of the standard network at a multiplier.

    Returns:
      The widths.

    Raises:
      ValueError: the multiplier is not positive, or both ways are used at once.
    """
    if not 0 < multiplier < math.inf:
        raise ValueError(f"{model}: the multiplier must be positive, found {multiplier}")
    if given is None:
        return standard(multiplier)
    if multiplier != 1:
        raise ValueError(
            f"{model}: found the multiplier {multiplier} beside the explicit widths"
            f" {tuple(given)}; a multiplier scales the standard widths only, so leave one out"
        )
    return given
