"""A multilayer perceptron: the smallest network that every transform must handle.

It flattens its input and has no batch norm, where `small_cnn` keeps the image and normalises.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax

from compressjax.models._layers import resolve, round_to_1, scaled
from compressjax.models.resize import Shapes

# LeCun et al. (1998), LeNet-300-100.
_WIDTHS = (300, 100)


class MLP(nn.Module):
    """Dense layers with ReLU between them, on the flattened input.

    Called with `x: [B, ...]` float; returns logits `[B, num_classes]`. The argument `train` changes
    nothing and is there so that all models are called alike.

    Attributes:
      num_classes: number of logits.
      multiplier: scales the widths of the standard network, rounded to whole numbers.
      widths: outputs of each hidden layer, as they are; if None, those of LeNet-300-100 (LeCun et
        al. 1998) times the multiplier.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = MLP(num_classes=10)
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros([1, 28, 28, 1]))
      >>> sum(leaf.size for leaf in jax.tree.leaves(variables))
      266610
    """

    num_classes: int
    multiplier: float = 1.0
    widths: Sequence[int] | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits `[B, num_classes]` of `x: [B, ...]`; `train` changes nothing."""
        del train
        x = x.reshape([x.shape[0], -1])
        for width in self._widths():
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.num_classes)(x)

    @nn.nowrap
    def resized(self, shapes: Shapes) -> tuple["MLP", tuple[int, ...]]:
        """Returns this network with the widths of variables, and the shape of an input for it."""
        widths = shapes.outputs(*(f"Dense_{i}" for i in range(len(self._widths()))))
        return self.clone(multiplier=1.0, widths=widths), (1, shapes.kernel("Dense_0")[0])

    @nn.nowrap
    def _widths(self) -> Sequence[int]:
        return resolve("MLP", self.widths, self.multiplier, scaled(_WIDTHS, round_to_1))
