"""A plain convolutional network for small images: the model of the digits demo.

One 3x3 convolution, batch norm and ReLU per stage: no shortcuts as in `resnet`, no depthwise
convolutions as in `mobilenet`, so it is the network to try a new transform on first.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax

from compressjax.models._layers import resolve, round_to_1, scaled
from compressjax.models.resize import Shapes

_WIDTHS = (32, 64, 128)


class SmallCNN(nn.Module):
    """Stages of 3x3 convolution, batch norm and ReLU, then a global mean and a dense head.

    Called with `x: [B, H, W, C]` float, of any size; returns logits `[B, num_classes]`. With
    `train=True` batch norm uses the batch's own statistics and the collection `batch_stats` must be
    mutable.

    Attributes:
      num_classes: number of logits.
      multiplier: scales the standard widths (32, 64, 128), rounded to whole numbers.
      widths: output channels of each stage, as they are; the standard ones times the multiplier if
        None.
      strides: stride of each stage, as many as widths. The default keeps the first stage at full
        resolution and halves after it, which leaves 2x2 positions of an 8x8 image.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = SmallCNN(num_classes=10)
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros([1, 8, 8, 1]))
      >>> sorted(variables)
      ['batch_stats', 'params']
      >>> variables['params']['Conv_2']['kernel'].shape
      (3, 3, 64, 128)
    """

    num_classes: int
    multiplier: float = 1.0
    widths: Sequence[int] | None = None
    strides: Sequence[int] = (1, 2, 2)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits `[B, num_classes]` of `x: [B, H, W, C]`."""
        widths = self._widths()
        if len(self.strides) != len(widths):
            raise ValueError(
                f"SmallCNN: strides {tuple(self.strides)} and widths {tuple(widths)} must have"
                f" the same length, one entry per stage"
            )
        for width, stride in zip(widths, self.strides, strict=True):
            x = nn.Conv(width, (3, 3), (stride, stride), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(self.num_classes)(x.mean(axis=(1, 2)))

    @nn.nowrap
    def resized(self, shapes: Shapes) -> tuple["SmallCNN", tuple[int, ...]]:
        """Returns this network with the widths of variables, and the shape of an input for it."""
        widths = shapes.outputs(*(f"Conv_{i}" for i in range(len(self.strides))))
        return self.clone(multiplier=1.0, widths=widths), shapes.image("Conv_0")

    @nn.nowrap
    def _widths(self) -> Sequence[int]:
        return resolve("SmallCNN", self.widths, self.multiplier, scaled(_WIDTHS, round_to_1))
