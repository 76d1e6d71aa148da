"""Residual networks with pre-activation, for small images: norm and ReLU in front of a convolution.

The stream that blocks add to is never normalised itself, where the blocks of `resnet` put norm and
ReLU behind the addition. So the norm at a block's start may read some channels of the stream while
other blocks read others: `reads` says which.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from compressjax.models._layers import resolve, round_to_1
from compressjax.models.resize import Shapes

_WIDTHS = (16, 32, 64)
_EXPANSION = 4  # of a bottleneck's output over its 3x3 convolution

Reads = Sequence[Sequence[int] | None]


class PreActWidths(NamedTuple):
    """Channels of every layer of a `PreActResNet`, as a shrunk one needs them.

    Attributes:
      stem: outputs of the first convolution.
      out: of each stage, the channels of the stream.
      hidden: of each block, the channels behind each of its convolutions but the last.

    Example:
      >>> preact_widths(1.0, blocks=(1, 1, 1), bottleneck=True)._replace(stem=12)
      PreActWidths(stem=12, out=(64, 128, 256), hidden=((16, 16), (32, 32), (64, 64)))
    """

    stem: int
    out: tuple[int, ...]
    hidden: tuple[tuple[int, ...], ...]


def preact_widths(multiplier: float, *, blocks: Sequence[int], bottleneck: bool) -> PreActWidths:
    """Gives the channels of a standard pre-activation ResNet for CIFAR.

    Args:
      multiplier: scales all widths, rounded to whole numbers.
      blocks: blocks of each of the three stages.
      bottleneck: whether blocks are bottlenecks.

    Returns:
      The channels of every layer.

    Raises:
      ValueError: the multiplier is not positive, or there are not three stages with blocks.

    Example:
      >>> preact_widths(0.5, blocks=(1, 1, 1), bottleneck=False)
      PreActWidths(stem=8, out=(8, 16, 32), hidden=((8,), (16,), (32,)))
    """
    if not multiplier > 0:
        raise ValueError(f"preact_widths: the multiplier must be positive, found {multiplier}")
    if len(blocks) != len(_WIDTHS) or min(blocks) < 1:
        raise ValueError(
            f"preact_widths: blocks must be {len(_WIDTHS)} positive numbers, one per stage, found"
            f" {tuple(blocks)}"
        )
    widths = [round_to_1(multiplier * width) for width in _WIDTHS]
    expansion, inner = (_EXPANSION, 2) if bottleneck else (1, 1)
    hidden = [(w,) * inner for w, number in zip(widths, blocks, strict=True) for _ in range(number)]
    return PreActWidths(widths[0], tuple(expansion * w for w in widths), tuple(hidden))


class PreActBlock(nn.Module):
    """Adds to the stream what its convolutions make of it; each has a norm and ReLU in front.

    Called with `x: [B, H, W, C]`; returns `[B, ceil(H / stride), ceil(W / stride), out]`.

    Attributes:
      hidden: channels behind each convolution but the last: one number for two 3x3 convolutions,
        two for a bottleneck of 1x1, 3x3 and 1x1.
      out: output channels.
      stride: stride of the first 3x3 convolution.
      project: whether a 1x1 convolution brings the stream to the output's shape.
      reads: channels of the stream that the first norm reads; all if None.
    """

    hidden: tuple[int, ...]
    out: int
    stride: int
    project: bool
    reads: Sequence[int] | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns `[B, H', W', out]` of `x: [B, H, W, C]`."""
        bottleneck = len(self.hidden) == 2
        y = _read(x, self.reads)
        for i, width in enumerate((*self.hidden, self.out)):
            size = 1 if bottleneck and i != 1 else 3
            stride = self.stride if i == bottleneck else 1
            y = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(y))
            y = nn.Conv(width, (size, size), (stride, stride), use_bias=False)(y)
        if self.project:
            x = nn.Conv(self.out, (1, 1), (self.stride, self.stride), use_bias=False)(x)
        return x + y


class PreActResNet(nn.Module):
    """A stem, three stages of pre-activation blocks, a last norm, a global mean and a dense head.

    From He et al., "Identity Mappings in Deep Residual Networks" (2016): basic blocks (`(3, 3, 3)`
    of them make a ResNet-20) or bottlenecks (`(18, 18, 18)` make the ResNet-164 on which Liu et
    al., "Learning Efficient Convolutional Networks through Network Slimming" (2017), cut channels).
    The first block of a later stage, and of every stage of bottlenecks, has a 1x1 convolution on
    its shortcut. It reads the stream itself, as that work has it, where He et al. share the
    activation of the block's first norm there and at the network's first block.

    Called with `x: [B, H, W, C]` float, of any size (32x32x3 in the papers); returns logits
    `[B, num_classes]`. With `train=True` batch norm uses the batch's own statistics and the
    collection `batch_stats` must be mutable.

    Attributes:
      num_classes: number of logits.
      blocks: blocks of each of the three stages.
      bottleneck: whether blocks are bottlenecks of 1x1, 3x3 and 1x1 convolutions, with outputs
        four times as wide, or two 3x3 convolutions.
      multiplier: scales the standard widths (16, 32, 64), rounded to whole numbers.
      widths: the channels of every layer, as they are; `preact_widths(multiplier)` if None.
      reads: of each block's first norm, then of the last norm, which channels of the stream it
        reads, in increasing order; all of them where it is None.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = PreActResNet(num_classes=10, blocks=(18, 18, 18), bottleneck=True)
      >>> widths = preact_widths(1.0, blocks=model.blocks, bottleneck=True)
      >>> len(widths.hidden), widths.out
      (54, (64, 128, 256))
      >>> model = PreActResNet(num_classes=10)
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros([1, 32, 32, 3]))
      >>> sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
      272282
    """

    num_classes: int
    blocks: Sequence[int] = (3, 3, 3)
    bottleneck: bool = False
    multiplier: float = 1.0
    widths: PreActWidths | None = None
    reads: Reads | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits `[B, num_classes]` of `x: [B, H, W, C]`."""
        widths = self._widths()
        stages = [stage for stage, number in enumerate(self.blocks) for _ in range(number)]
        reads = (None,) * (len(stages) + 1) if self.reads is None else self.reads
        convolutions = 2 if self.bottleneck else 1
        if not len(widths.hidden) == len(reads) - 1 == len(stages) or not (
            len(widths.out) == len(self.blocks)
            and all(len(hidden) == convolutions for hidden in widths.hidden)
        ):
            raise ValueError(
                f"PreActResNet: {tuple(self.blocks)} blocks take {len(self.blocks)} widths out, "
                f"{len(stages)} hidden of {convolutions} each and {len(stages) + 1} reads, found"
                f" {tuple(widths.out)}, {tuple(widths.hidden)} and {len(reads)}"
            )
        if not self.bottleneck and widths.stem != widths.out[0]:
            raise ValueError(
                f"PreActResNet: the stem is added to the first stage, whose width is"
                f" {widths.out[0]}, found {widths.stem}"
            )
        x = nn.Conv(widths.stem, (3, 3), use_bias=False)(x)
        for block, stage in enumerate(stages):
            first = block == 0 or stages[block - 1] != stage
            x = PreActBlock(
                tuple(widths.hidden[block]),
                widths.out[stage],
                stride=2 if first and stage > 0 else 1,
                project=first and (stage > 0 or self.bottleneck),
                reads=reads[block],
            )(x, train)
        x = _read(x, reads[-1])
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(self.num_classes)(x.mean(axis=(1, 2)))

    @nn.nowrap
    def resized(self, shapes: Shapes) -> tuple["PreActResNet", tuple[int, ...]]:
        """Returns this network with the widths of variables, and the shape of an input for it."""
        inner = [f"Conv_{i}" for i in range(2 if self.bottleneck else 1)]
        last = f"Conv_{len(inner)}"
        total = sum(self.blocks)
        ends = np.cumsum(self.blocks).tolist()
        out = shapes.outputs(*(f"PreActBlock_{end - 1}/{last}" for end in ends))
        widths = PreActWidths(
            shapes.outputs("Conv_0")[0] if self.bottleneck else out[0],
            out,
            tuple(
                shapes.outputs(*(f"PreActBlock_{block}/{name}" for name in inner))
                for block in range(total)
            ),
        )
        module = self.clone(multiplier=1.0, widths=widths, reads=self._reads(shapes.kept))
        return module, shapes.image("Conv_0")

    @nn.nowrap
    def _widths(self) -> PreActWidths:
        return PreActWidths(
            *resolve(
                "PreActResNet",
                self.widths,
                self.multiplier,
                lambda multiplier: preact_widths(
                    multiplier, blocks=self.blocks, bottleneck=self.bottleneck
                ),
            )
        )

    @nn.nowrap
    def _reads(self, kept: Mapping[str, Sequence[int]]) -> Reads | None:
        """What the norms read of the streams when both are cut: positions among those left."""
        norms = [*(f"PreActBlock_{i}/BatchNorm_0" for i in range(sum(self.blocks))), "BatchNorm_0"]
        streams = self._streams()
        found: list[tuple[int, ...] | None] = []
        reads = self.reads or (None,) * len(norms)
        for norm, read, (makers, width) in zip(norms, reads, streams, strict=True):
            left = np.asarray(next((kept[m] for m in makers if m in kept), range(width)))
            whole = np.arange(width) if read is None else np.asarray(read)
            path = f"params/{norm}/scale"
            mine = np.asarray(kept.get(path, np.flatnonzero(np.isin(whole, left))))
            if mine.max(initial=-1) >= len(whole) or not np.isin(whole[mine], left).all():
                raise ValueError(
                    f"resize: kept of {path}: expected positions under {len(whole)} of channels"
                    f" that {makers[0]} keeps, found {mine.tolist()}; give the `kept` of shrinking"
                    " this very network"
                )
            places = np.searchsorted(left, whole[mine])
            found.append(None if len(places) == len(left) else tuple(places.tolist()))
        return None if found == [None] * len(found) else tuple(found)

    @nn.nowrap
    def _streams(self) -> list[tuple[list[str], int]]:
        """Which kernels make the stream that each norm reads, and its width, in their order."""
        widths = self._widths()
        last, shortcut = (2, 3) if self.bottleneck else (1, 2)
        stream = (["params/Conv_0/kernel"], widths.stem)
        streams, block = [], 0
        for stage, number in enumerate(self.blocks):
            streams.append(stream)
            projected = stage > 0 or self.bottleneck
            first = [f"params/PreActBlock_{block}/Conv_{shortcut}/kernel"]
            added = [f"params/PreActBlock_{block + i}/Conv_{last}/kernel" for i in range(number)]
            stream = ([*(first if projected else stream[0]), *added], widths.out[stage])
            streams += [stream] * (number - 1)
            block += number
        return [*streams, stream]


def _read(x: jax.Array, channels: Sequence[int] | None) -> jax.Array:
    """Some channels of `x: [B, H, W, C]`."""
    return x if channels is None else jnp.take(x, np.asarray(channels), axis=-1, mode="clip")
