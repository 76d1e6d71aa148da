"""What takes the place of one layer: a chain of thinner layers, and what their product is.

A decomposition says by `Factor`s what its layers do, before there are any weights: costs and shapes
follow from that alone.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import jax
import numpy as np

Array = TypeVar("Array", jax.Array, np.ndarray)


class Factor(NamedTuple):
    """One layer of a chain, for one group of the layer that the chain takes the place of.

    Attributes:
      name: says what it does in the chain; its variable gets a folder of this name.
      shape: of its weights, `[*window, inputs of one of its groups, outputs]`; a window has all
        spatial axes of the layer, with one tap along those that it does not slide along.
      axes: the spatial axes that it slides along: there it has the layer's strides, padding and
        dilation.
      groups: its own groups; as many as outputs for a depthwise convolution.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[int, ...] = ()
    groups: int = 1


def product(plan: Sequence[Factor], weights: Sequence[Array]) -> Array:
    """Multiplies a chain of layers into the one layer that computes the same.

    Args:
      plan: what each layer does; no two of them slide along one axis.
      weights: of each, `[..., *window, inputs of one of its groups, outputs]`.

    Returns:
      `[..., *window, inputs, outputs]`; of NumPy's arrays in NumPy.

    Raises:
      ValueError: if there are none.

    Example:
      >>> plan = [Factor('down', (1, 2, 1)), Factor('up', (3, 1, 2), axes=(0,))]
      >>> product(plan, [np.ones((1, 2, 1)), 2 * np.ones((3, 1, 2))]).shape
      (3, 2, 2)
    """
    whole: Array | None = None
    for factor, kernel in zip(plan, weights, strict=True):
        *lead, inputs, outputs = kernel.shape
        if factor.groups > 1:
            split = kernel.reshape(*lead, 1, inputs, factor.groups, outputs // factor.groups)
            eye = np.eye(factor.groups, dtype=kernel.dtype)
            blocks = split * eye.reshape(*(1 for _ in lead), factor.groups, 1, factor.groups, 1)
            kernel = blocks.reshape(*lead, factor.groups * inputs, outputs)
        whole = kernel if whole is None else whole @ kernel
    if whole is None:
        raise ValueError("a chain has at least one layer")
    return whole
