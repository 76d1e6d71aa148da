"""Widths back into a module: what `shrink` cut becomes a plain Flax module with a config.

A shrunk function is an interpretation of the original's graph; a module with the widths of the
shrunk variables is the same network written down, to be stored, trained and read like any other.
Each network says by its method `resized` which of its layers show which of its widths; here is only
what they share: the shapes by path, and the check that the result has exactly these variables.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from compressjax import tree

Module = TypeVar("Module", bound=nn.Module, covariant=True)


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Shapes of variables, as networks read their widths from them.

    Attributes:
      by_path: the shape of each variable.
      kept: which positions were kept, by the path that names a group; empty if that is not known.
    """

    by_path: Mapping[str, tuple[int, ...]]
    kept: Mapping[str, Sequence[int]]

    def kernel(self, layer: str) -> tuple[int, ...]:
        """The shape of a layer's kernel, `[..., inputs, outputs]`.

        Args:
          layer: the layer's path in its network (`Dense_0`, `V3Block_1/Conv_0`).

        Returns:
          The shape.

        Raises:
          ValueError: the variables have no such kernel.
        """
        path = f"params/{layer}/kernel"
        if path not in self.by_path:
            raise ValueError(_message(path, "a kernel", "none", self.by_path))
        return self.by_path[path]

    def outputs(self, *layers: str) -> tuple[int, ...]:
        """The numbers of features that layers put out.

        Args:
          *layers: their paths in the network.

        Returns:
          One number a layer.

        Raises:
          ValueError: the variables do not have such a kernel.
        """
        return tuple(self.kernel(layer)[-1] for layer in layers)

    def image(self, layer: str) -> tuple[int, ...]:
        """The shape of an image that a network takes at any size.

        Args:
          layer: the path of its first convolution.

        Returns:
          The shape of one image of 32x32, `[1, 32, 32, C]`.

        Raises:
          ValueError: the variables have no such kernel.
        """
        return 1, 32, 32, self.kernel(layer)[-2]


class Resizable(Protocol[Module]):
    """A module that reads its widths from variables."""

    def resized(self, shapes: Shapes) -> tuple[Module, tuple[int, ...]]:
        """Returns the module with these widths, and the shape of an input it takes."""
        ...


def resize(
    module: Resizable[Module],
    variables: Any,
    kept: Mapping[str, Sequence[int]] | None = None,
) -> Module:
    """Gives a network of the zoo the widths that its variables have.

    For `shrunk = cj.shrink(module.apply, variables, x)`, the result's `apply` computes what
    `shrunk.apply` does, and what the shrunk training function does with `train=True`; its `init`
    draws new variables of the same shapes. Its widths are plain integers and tuples, for a config
    or JSON.

    Args:
      module: a network of the zoo, or any module with a method `resized`.
      variables: its variables with fewer (or more) channels, or their `jax.ShapeDtypeStruct`s;
        collections that the module does not have (`quant`) do not matter.
      kept: the `kept` of `shrink`, for networks in which layers read some channels of the same
        tensor and not all of them (`PreActResNet.reads`).

    Returns:
      A copy of the module that differs in its widths.

    Raises:
      ValueError: the variables are not those of such a network at any width.
      TypeError: the module has no method `resized`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from compressjax.models import SmallCNN
      >>> narrow = SmallCNN(num_classes=10, widths=(3, 5, 8))
      >>> variables = jax.eval_shape(narrow.init, jax.random.key(0), jnp.zeros([1, 8, 8, 1]))
      >>> resize(SmallCNN(num_classes=10), variables).widths
      (3, 5, 8)
    """
    if not hasattr(module, "resized"):
        raise TypeError(
            f"resize: {type(module).__name__} has no method `resized`; give a network of"
            " compressjax.models, or a module that has one as `Resizable` says"
        )
    found = {path: tuple(leaf.shape) for path, leaf in tree.paths(variables).items()}
    resized, shape = module.resized(Shapes(found, kept or {}))
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    abstract = jax.eval_shape(lambda x: resized.init(jax.random.key(0), x), x)
    expected = {path: leaf.shape for path, leaf in tree.paths(abstract).items()}
    for path in (path for path in found if path.split("/")[0] in abstract):
        if path not in expected:
            raise ValueError(_message(path, "no such variable", str(found[path]), expected))
    for path, shape in expected.items():
        if found.get(path) != shape:
            raise ValueError(_message(path, str(shape), str(found.get(path, "none")), found))
    return resized


def _message(path: str, expected: str, found: str, known: Mapping[str, Any]) -> str:
    return (
        f"resize: {path}: expected {expected}, found {found}, among {len(known)} variables; give"
        " the variables of this very network, as `shrink` returned them, with its num_classes and"
        " number of layers, and with `kept` where layers read a part of the channels"
    )
