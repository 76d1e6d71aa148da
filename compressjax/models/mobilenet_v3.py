"""MobileNetV3-Small: inverted residuals with squeeze-and-excitation and hard activations.

What it has and `mobilenet` has not: products of two activations, of which one is broadcast, and
functions (hard-swish, hard-sigmoid) that no convolution absorbs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax

from compressjax.models._layers import conv_norm, resolve, round_to_8
from compressjax.models.blocks import V3Block
from compressjax.models.resize import Shapes


class _Stage(NamedTuple):
    """Blocks of one width: kernel size, output channels, and the expanded channels of each."""

    size: int
    out: int
    hidden: tuple[int, ...]
    squeeze: bool
    hard_swish: bool


# Howard et al. (2019), table 2.
_STAGES = (
    _Stage(3, 16, (16,), True, False),
    _Stage(3, 24, (72, 88), False, False),
    _Stage(5, 40, (96, 240, 240), True, True),
    _Stage(5, 48, (120, 144), True, True),
    _Stage(5, 96, (288, 576, 576), True, True),
)


class V3Widths(NamedTuple):
    """Channels of every layer of a `MobileNetV3Small`, as a shrunk one needs them.

    Attributes:
      stem: outputs of the first convolution.
      hidden: of each block, the channels its depthwise convolution works on.
      squeeze: of each block, the channels between the two layers of its squeeze-and-excitation; 0
        where it has none.
      out: of each block, the channels it puts out; equal within a stage.
      head: outputs of the last convolution.
      dense: outputs of the dense layer in front of the logits.

    Example:
      >>> mobilenet_v3_small_widths(1.0)._replace(dense=640)[-2:]
      (576, 640)
    """

    stem: int
    hidden: tuple[int, ...]
    squeeze: tuple[int, ...]
    out: tuple[int, ...]
    head: int
    dense: int


def mobilenet_v3_small_widths(multiplier: float) -> V3Widths:
    """Gives the channels of a standard MobileNetV3-Small.

    Args:
      multiplier: scales all widths, rounded to multiples of 8; the dense layer never goes under
        1024.

    Returns:
      The channels of every layer.

    Raises:
      ValueError: the multiplier is not positive.

    Example:
      >>> mobilenet_v3_small_widths(0.5).hidden[:4], mobilenet_v3_small_widths(0.5).squeeze[:4]
      ((8, 40, 48, 48), (8, 0, 0, 16))
    """
    if multiplier <= 0:
        raise ValueError(
            f"mobilenet_v3_small_widths: the multiplier must be positive, found {multiplier}"
        )
    hidden = [round_to_8(multiplier * width) for stage in _STAGES for width in stage.hidden]
    squeezed = [stage.squeeze for stage in _STAGES for _ in stage.hidden]
    out = [round_to_8(multiplier * stage.out) for stage in _STAGES for _ in stage.hidden]
    return V3Widths(
        stem=round_to_8(multiplier * 16),
        hidden=tuple(hidden),
        squeeze=tuple(
            round_to_8(width // 4) if there else 0
            for width, there in zip(hidden, squeezed, strict=True)
        ),
        out=tuple(out),
        head=6 * out[-1],
        dense=round_to_8(1024 * max(1.0, multiplier)),
    )


class MobileNetV3Small(nn.Module):
    """MobileNetV3-Small of any width and for any resolution.

    From Howard et al., "Searching for MobileNetV3" (2019), table 2. A block adds its input where it
    is not the first of its stage; a stage is the blocks of one width. The squeeze-and-excitation
    that the table puts after the last convolution is left out, as in the authors' own code.

    Called with `x: [B, H, W, C]` float, of any size; returns logits `[B, num_classes]`. With
    `train=True` batch norm uses the batch's own statistics and the collection `batch_stats` must be
    mutable.

    Attributes:
      num_classes: number of logits.
      multiplier: width multiplier of a standard network.
      strides: strides of the stem and of the first block of each of the five stages. For small
        images, put ones in front: `(1, 1, 2, 2, 1, 2)` ends at 4x4 for 32x32 images.
      widths: the channels of every layer, as they are; `mobilenet_v3_small_widths(multiplier)` if
        None.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = MobileNetV3Small(num_classes=1000)
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros([1, 224, 224, 3]))
      >>> sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
      2542856
    """

    num_classes: int
    multiplier: float = 1.0
    strides: Sequence[int] = (2, 2, 2, 2, 1, 2)
    widths: V3Widths | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits `[B, num_classes]` of `x: [B, H, W, C]`."""
        widths = self._widths()
        total = sum(len(stage.hidden) for stage in _STAGES)
        if len(self.strides) != 1 + len(_STAGES):
            raise ValueError(
                f"MobileNetV3Small: strides must have {1 + len(_STAGES)} entries, the stem's and"
                f" each stage's, found {tuple(self.strides)}"
            )
        if not len(widths.hidden) == len(widths.squeeze) == len(widths.out) == total:
            raise ValueError(
                f"MobileNetV3Small: widths must list {total} blocks, found {len(widths.hidden)}"
                f" hidden, {len(widths.squeeze)} squeeze and {len(widths.out)} out"
            )
        x = conv_norm(x, widths.stem, 3, self.strides[0], activation=nn.hard_swish, train=train)
        channels = zip(widths.hidden, widths.squeeze, widths.out, strict=True)
        for number, (stage, stride) in enumerate(zip(_STAGES, self.strides[1:], strict=True)):
            for block in range(len(stage.hidden)):
                first = block == 0
                x = V3Block(
                    *next(channels),
                    size=stage.size,
                    stride=stride if first else 1,
                    expand=number > 0,
                    residual=not first,
                    hard_swish=stage.hard_swish,
                )(x, train)
        x = conv_norm(x, widths.head, activation=nn.hard_swish, train=train)
        x = nn.hard_swish(nn.Dense(widths.dense)(x.mean(axis=(1, 2))))
        return nn.Dense(self.num_classes)(x)

    @nn.nowrap
    def resized(self, shapes: Shapes) -> tuple["MobileNetV3Small", tuple[int, ...]]:
        """Returns this network with the widths of variables, and the shape of an input for it."""
        stages = [stage for stage in _STAGES for _ in stage.hidden]
        blocks = [f"V3Block_{i}" for i in range(len(stages))]
        ends = [f"{blocks[stages.index(stage)]}/Conv_2" for stage in stages[1:]]
        stem, head, dense = shapes.outputs("Conv_0", "Conv_1", "Dense_0")
        widths = V3Widths(
            stem,
            hidden=(stem, *shapes.outputs(*(f"{block}/Conv_0" for block in blocks[1:]))),
            squeeze=tuple(
                shapes.outputs(f"{block}/SqueezeExcite_0/Conv_0")[0] if stage.squeeze else 0
                for block, stage in zip(blocks, stages, strict=True)
            ),
            out=shapes.outputs(f"{blocks[0]}/Conv_1", *ends),
            head=head,
            dense=dense,
        )
        return self.clone(multiplier=1.0, widths=widths), shapes.image("Conv_0")

    @nn.nowrap
    def _widths(self) -> V3Widths:
        return V3Widths(
            *resolve("MobileNetV3Small", self.widths, self.multiplier, mobilenet_v3_small_widths)
        )
