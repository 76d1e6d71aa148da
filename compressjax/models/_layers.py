"""What the convolutional networks of the zoo share; called inside a module's `__call__`."""

from collections.abc import Callable

import flax.linen as nn
import jax


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


def round_to_8(width: float) -> int:
    """Rounds to a multiple of 8, at least 8, and never down by more than a tenth."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * width else rounded + 8
