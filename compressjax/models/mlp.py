"""A multilayer perceptron: the smallest network that every transform must handle.

It flattens its input and has no batch norm, where `small_cnn` keeps the image and normalises.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax


class MLP(nn.Module):
    """Dense layers with ReLU between them, on the flattened input.

    Called with `x: [B, ...]` float; returns logits `[B, num_classes]`. The argument `train` changes
    nothing and is there so that all models are called alike.

    Attributes:
      num_classes: number of logits.
      widths: outputs of each hidden layer; LeNet-300-100 (LeCun et al. 1998) by default.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = MLP(num_classes=10)
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros([1, 28, 28, 1]))
      >>> sum(leaf.size for leaf in jax.tree.leaves(variables))
      266610
    """

    num_classes: int
    widths: Sequence[int] = (300, 100)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits `[B, num_classes]` of `x: [B, ...]`; `train` changes nothing."""
        del train
        x = x.reshape([x.shape[0], -1])
        for width in self.widths:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.num_classes)(x)
