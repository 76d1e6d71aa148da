"""MobileNetV1: a plain chain of depthwise-separable convolutions, without shortcuts.

Half of its layers are depthwise, as in `mobilenet`, but nothing is added: every pair's width is its
own, so that it is the simplest network in which cutting a channel also cuts a depthwise filter.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax

from compressjax.models._layers import conv_norm, resolve, round_to_8, scaled
from compressjax.models.blocks import DepthwiseSeparable
from compressjax.models.resize import Shapes

# Howard et al. (2017), table 1: outputs of the stem and of each pair.
_WIDTHS = (32, 64, 128, 128, 256, 256, *(512,) * 6, 1024, 1024)


class MobileNetV1(nn.Module):
    """MobileNetV1 of any width and for any resolution.

    From Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision
    Applications" (2017), table 1, whose last stride of 2 is taken as 1, so that the image ends at
    7x7 as the table says.

    Called with `x: [B, H, W, C]` float, of any size; returns logits `[B, num_classes]`. With
    `train=True` batch norm uses the batch's own statistics and the collection `batch_stats` must be
    mutable.

    Attributes:
      num_classes: number of logits.
      multiplier: scales the paper's widths (32 to 1024), rounded to multiples of 8.
      strides: strides of the stem and of each of the thirteen pairs. For 32x32 images,
        `(1, 1, 2, 1, 2, *(1,) * 7, 2, 1)` ends at 4x4.
      widths: outputs of the stem and of each pair, as they are; the paper's times the multiplier if
        None.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = MobileNetV1(num_classes=1000)
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros([1, 224, 224, 3]))
      >>> sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
      4231976
    """

    num_classes: int
    multiplier: float = 1.0
    strides: Sequence[int] = (2, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
    widths: Sequence[int] | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits `[B, num_classes]` of `x: [B, H, W, C]`."""
        widths = self._widths()
        if not len(widths) == len(self.strides) == len(_WIDTHS):
            raise ValueError(
                f"MobileNetV1: widths and strides must have {len(_WIDTHS)} entries, the stem's and"
                f" each pair's, found {tuple(widths)} and {tuple(self.strides)}"
            )
        x = conv_norm(x, widths[0], 3, self.strides[0], activation=nn.relu, train=train)
        for width, stride in zip(widths[1:], self.strides[1:], strict=True):
            x = DepthwiseSeparable(width, stride=stride)(x, train)
        return nn.Dense(self.num_classes)(x.mean(axis=(1, 2)))

    @nn.nowrap
    def resized(self, shapes: Shapes) -> tuple["MobileNetV1", tuple[int, ...]]:
        """Returns this network with the widths of variables, and the shape of an input for it."""
        pairs = (f"DepthwiseSeparable_{i}/Conv_1" for i in range(len(_WIDTHS) - 1))
        widths = shapes.outputs("Conv_0", *pairs)
        return self.clone(multiplier=1.0, widths=widths), shapes.image("Conv_0")

    @nn.nowrap
    def _widths(self) -> Sequence[int]:
        return resolve("MobileNetV1", self.widths, self.multiplier, scaled(_WIDTHS, round_to_8))
