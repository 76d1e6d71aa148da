"""MobileNetV2: inverted residuals of pointwise and depthwise convolutions.

The deep network of the zoo (52 convolutions and a dense layer), and the one whose depthwise layers
and linear bottlenecks are hard to quantize.
"""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax

from compressjax.models._layers import conv_norm, resolve, round_to_8
from compressjax.models.blocks import InvertedResidual
from compressjax.models.resize import Shapes

# Sandler et al. (2018), table 2: expansion, output channels and number of blocks of each stage.
_STAGES = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))


class Widths(NamedTuple):
    """Channels of every layer of a `MobileNetV2`, as a shrunk one needs them.

    Attributes:
      stem: outputs of the first convolution.
      hidden: of each block, the channels its depthwise convolution works on.
      out: of each block, the channels it puts out; equal within a stage.
      head: outputs of the last convolution.

    Example:
      >>> mobilenet_widths(1.0)._replace(head=640)[-1]
      640
    """

    stem: int
    hidden: tuple[int, ...]
    out: tuple[int, ...]
    head: int


def mobilenet_widths(multiplier: float) -> Widths:
    """Gives the channels of a standard MobileNetV2.

    Args:
      multiplier: scales all widths, rounded to multiples of 8; the head never goes under 1280.

    Returns:
      The channels of every layer.

    Raises:
      ValueError: the multiplier is not positive.

    Example:
      >>> mobilenet_widths(0.5).out[:4], mobilenet_widths(0.5).head
      ((8, 16, 16, 16), 1280)
    """
    if multiplier <= 0:
        raise ValueError(f"mobilenet_widths: the multiplier must be positive, found {multiplier}")
    stem = round_to_8(32 * multiplier)
    hidden, out, last = [], [], stem
    for expansion, width, blocks in _STAGES:
        for _ in range(blocks):
            hidden.append(expansion * last)
            out.append(round_to_8(width * multiplier))
            last = out[-1]
    return Widths(stem, tuple(hidden), tuple(out), round_to_8(1280 * max(1.0, multiplier)))


class MobileNetV2(nn.Module):
    """MobileNetV2 of any width and for any resolution.

    From Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (2018), table 2.
    A block adds its input where it is not the first of its stage.

    Called with `x: [B, H, W, C]` float, of any size; returns logits `[B, num_classes]`. With
    `train=True` batch norm uses the batch's own statistics and the collection `batch_stats` must be
    mutable.

    Attributes:
      num_classes: number of logits.
      multiplier: width multiplier of a standard network.
      strides: strides of the stem and of the first block of each of the seven stages. For small
        images, put ones in front: `(1, 1, 1, 2, 2, 1, 2, 1)` ends at 4x4 for 32x32 images.
      widths: the channels of every layer, as they are; `mobilenet_widths(multiplier)` if None.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = MobileNetV2(num_classes=1000)
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros([1, 224, 224, 3]))
      >>> sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
      3504872
    """

    num_classes: int
    multiplier: float = 1.0
    strides: Sequence[int] = (2, 1, 2, 2, 2, 1, 2, 1)
    widths: Widths | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits `[B, num_classes]` of `x: [B, H, W, C]`."""
        widths = self._widths()
        total = sum(blocks for _, _, blocks in _STAGES)
        if len(self.strides) != 1 + len(_STAGES):
            raise ValueError(
                f"MobileNetV2: strides must have {1 + len(_STAGES)} entries, the stem's and each"
                f" stage's, found {tuple(self.strides)}"
            )
        if not len(widths.hidden) == len(widths.out) == total:
            raise ValueError(
                f"MobileNetV2: widths must list {total} blocks, found {len(widths.hidden)} hidden"
                f" and {len(widths.out)} out"
            )
        x = conv_norm(x, widths.stem, 3, self.strides[0], activation=nn.relu6, train=train)
        channels = zip(widths.hidden, widths.out, strict=True)
        for (expansion, _, blocks), stride in zip(_STAGES, self.strides[1:], strict=True):
            for block in range(blocks):
                hidden, out = next(channels)
                first = block == 0
                x = InvertedResidual(
                    hidden, out, stride if first else 1, expansion > 1, residual=not first
                )(x, train)
        x = conv_norm(x, widths.head, activation=nn.relu6, train=train)
        return nn.Dense(self.num_classes)(x.mean(axis=(1, 2)))

    @nn.nowrap
    def resized(self, shapes: Shapes) -> tuple["MobileNetV2", tuple[int, ...]]:
        """Returns this network with the widths of variables, and the shape of an input for it."""
        out: list[str] = []
        hidden = ["Conv_0"]  # the first block works on what the stem puts out
        for expansion, _, blocks in _STAGES:
            first = len(out)
            out += [f"InvertedResidual_{first}/Conv_{1 + (expansion > 1)}"] * blocks
            hidden += [f"InvertedResidual_{i}/Conv_0" for i in range(max(1, first), len(out))]
        stem, head = shapes.outputs("Conv_0", "Conv_1")
        widths = Widths(stem, shapes.outputs(*hidden), shapes.outputs(*out), head)
        return self.clone(multiplier=1.0, widths=widths), shapes.image("Conv_0")

    @nn.nowrap
    def _widths(self) -> Widths:
        return Widths(*resolve("MobileNetV2", self.widths, self.multiplier, mobilenet_widths))
