"""VGG-16 with batch norm: a long plain chain of wide 3x3 convolutions and maximum pools.

It has no shortcuts, as `small_cnn`, but is large: the network on which channel slimming is usually
shown. Its dense head reads a flattened image, where the other networks take a mean.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax

from compressjax.models._layers import conv_norm, resolve, round_to_8, scaled
from compressjax.models.resize import Shapes

# Simonyan and Zisserman (2015), table 1, configuration D: convolutions before each pool.
_STAGES = (2, 2, 3, 3, 3)
_WIDTHS = (64, 64, 128, 128, *(256,) * 3, *(512,) * 6)


class VGG16(nn.Module):
    """Thirteen 3x3 convolutions in five stages, each ended by a maximum pool, and a dense head.

    From Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
    Recognition" (2015), with batch norm after each convolution. The paper's dropout is left out. A
    pool halves the resolution rounding up, so images of any size will do; the first dense layer
    depends on that size.

    Called with `x: [B, H, W, C]` float; returns logits `[B, num_classes]`. With `train=True` batch
    norm uses the batch's own statistics and the collection `batch_stats` must be mutable.

    Attributes:
      num_classes: number of logits.
      multiplier: scales the paper's widths (64 to 512), rounded to multiples of 8.
      widths: output channels of each convolution, as they are; the paper's times the multiplier if
        None.
      hidden: outputs of the dense layers in front of the last: `(4096, 4096)` in the paper's
        network for 224x224 images, none in the usual one for 32x32. The multiplier does not scale
        them.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = VGG16(num_classes=10)
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros([1, 32, 32, 3]))
      >>> variables['params']['Dense_0']['kernel'].shape
      (512, 10)
    """

    num_classes: int
    multiplier: float = 1.0
    widths: Sequence[int] | None = None
    hidden: Sequence[int] = ()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits `[B, num_classes]` of `x: [B, H, W, C]`."""
        every = self._widths()
        if len(every) != sum(_STAGES):
            raise ValueError(
                f"VGG16: widths must have {sum(_STAGES)} entries, one per convolution, found"
                f" {tuple(every)}"
            )
        widths = iter(every)
        for convolutions in _STAGES:
            for _ in range(convolutions):
                x = conv_norm(x, next(widths), 3, activation=nn.relu, train=train)
            x = nn.max_pool(x, (2, 2), strides=(2, 2), padding="SAME")
        x = x.reshape([x.shape[0], -1])
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.num_classes)(x)

    @nn.nowrap
    def resized(self, shapes: Shapes) -> tuple["VGG16", tuple[int, ...]]:
        """Returns this network with the widths of variables, and the shape of an input for it."""
        widths = shapes.outputs(*(f"Conv_{i}" for i in range(sum(_STAGES))))
        hidden = shapes.outputs(*(f"Dense_{i}" for i in range(len(self.hidden))))
        positions = max(1, shapes.kernel("Dense_0")[0] // widths[-1])
        _, height, width, channels = shapes.image("Conv_0")
        shape = (1, height * positions, width, channels)  # each 32x32 leave one position
        return self.clone(multiplier=1.0, widths=widths, hidden=hidden), shape

    @nn.nowrap
    def _widths(self) -> Sequence[int]:
        return resolve("VGG16", self.widths, self.multiplier, scaled(_WIDTHS, round_to_8))
