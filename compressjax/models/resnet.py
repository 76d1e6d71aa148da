"""ResNet-8, of the MLPerf Tiny benchmark, and ResNet-18.

Their additions couple the channels of several layers, which `small_cnn` does not have; their
convolutions are dense, where those of `mobilenet` are depthwise and pointwise.
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax

from compressjax.models._layers import conv_norm, resolve, round_to_1, round_to_8, scaled
from compressjax.models.resize import Shapes

_WIDTHS_8 = (16, 32, 64)
_WIDTHS_18 = (64, 128, 256, 512)
_HALVES_18 = (2, 4, 6)  # the first blocks of the later stages


class ResNet8(nn.Module):
    """A stem and three residual blocks of two 3x3 convolutions, a global mean and a dense head.

    From Banbury et al., "MLPerf Tiny Benchmark" (2021), after He et al. (2016): the first block has
    an identity shortcut, each later one halves the resolution and has a strided 1x1 convolution
    without batch norm as its shortcut. The reference network's convolutions in front of a batch
    norm carry biases too, which do nothing there and are left out here.

    Called with `x: [B, H, W, C]` float, of any size (32x32x3 in the benchmark); returns logits
    `[B, num_classes]`. With `train=True` batch norm uses the batch's own statistics and the
    collection `batch_stats` must be mutable.

    Attributes:
      num_classes: number of logits.
      multiplier: scales the benchmark's widths (16, 32, 64), rounded to whole numbers.
      widths: output channels of each block, as they are; the benchmark's times the multiplier if
        None. The stem has the first block's.
      hidden: channels between the two convolutions of each block; its output's if None.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = ResNet8(num_classes=10)
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros([1, 32, 32, 3]))
      >>> sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
      77946
    """

    num_classes: int
    multiplier: float = 1.0
    widths: Sequence[int] | None = None
    hidden: Sequence[int] | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits `[B, num_classes]` of `x: [B, H, W, C]`."""
        widths = self._widths()
        hidden = widths if self.hidden is None else self.hidden
        if len(hidden) != len(widths):
            raise ValueError(
                f"ResNet8: hidden {tuple(hidden)} and widths {tuple(widths)} must have the"
                " same length, one entry per block"
            )
        norm = functools.partial(conv_norm, size=3, train=train)
        x = norm(x, widths[0], activation=nn.relu)
        for block, (inner, width) in enumerate(zip(hidden, widths, strict=True)):
            stride = 1 if block == 0 else 2
            y = norm(norm(x, inner, stride=stride, activation=nn.relu), width)
            if block > 0:
                x = nn.Conv(width, (1, 1), (stride, stride))(x)
            x = nn.relu(x + y)
        return nn.Dense(self.num_classes)(x.mean(axis=(1, 2)))

    @nn.nowrap
    def resized(self, shapes: Shapes) -> tuple["ResNet8", tuple[int, ...]]:
        """Returns this network with the widths of variables, and the shape of an input for it."""
        first = [max(1, 3 * block) for block in range(len(self._widths()))]
        module = self.clone(
            multiplier=1.0,
            widths=shapes.outputs(*(f"Conv_{i + 1}" for i in first)),
            hidden=shapes.outputs(*(f"Conv_{i}" for i in first)),
        )
        return module, shapes.image("Conv_0")

    @nn.nowrap
    def _widths(self) -> Sequence[int]:
        return resolve("ResNet8", self.widths, self.multiplier, scaled(_WIDTHS_8, round_to_1))


class ResNet18(nn.Module):
    """A stem, four stages of two residual blocks, a global mean and a dense head.

    From He et al., "Deep Residual Learning for Image Recognition" (2016), table 1. Each block has
    two 3x3 convolutions; each stage but the first halves the resolution, with a strided 1x1
    convolution and batch norm as that block's shortcut.

    Called with `x: [B, H, W, C]` float, of any size; returns logits `[B, num_classes]`. With
    `train=True` batch norm uses the batch's own statistics and the collection `batch_stats` must be
    mutable.

    Attributes:
      num_classes: number of logits.
      multiplier: scales the paper's widths (64, 128, 256, 512), rounded to multiples of 8.
      widths: output channels of each stage's blocks, as they are; the paper's times the multiplier
        if None. The stem has the first stage's.
      hidden: channels between the two convolutions of each of the eight blocks; their stage's
        width if None.
      small_images: the stem is one 3x3 convolution, as usual for 32x32 images; otherwise the
        paper's 7x7 convolution and 3x3 maximum pool, each of which halves the resolution.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = ResNet18(num_classes=1000)
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros([1, 224, 224, 3]))
      >>> sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
      11689512
    """

    num_classes: int
    multiplier: float = 1.0
    widths: Sequence[int] | None = None
    hidden: Sequence[int] | None = None
    small_images: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits `[B, num_classes]` of `x: [B, H, W, C]`."""
        widths = self._widths()
        out = [width for width in widths for _ in range(2)]
        hidden = out if self.hidden is None else self.hidden
        if len(widths) != 4 or len(hidden) != 8:
            raise ValueError(
                "ResNet18: widths must have 4 entries, one per stage, and hidden 8, one per block,"
                f" found widths {tuple(widths)} and hidden {tuple(hidden)}"
            )
        norm = functools.partial(conv_norm, train=train)
        if self.small_images:
            x = norm(x, widths[0], 3, activation=nn.relu)
        else:
            x = norm(x, widths[0], 7, 2, activation=nn.relu)
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for block, (inner, width) in enumerate(zip(hidden, out, strict=True)):
            halves = block in _HALVES_18
            stride = 2 if halves else 1
            y = norm(norm(x, inner, 3, stride, activation=nn.relu), width, 3)
            x = nn.relu((norm(x, width, stride=stride) if halves else x) + y)
        return nn.Dense(self.num_classes)(x.mean(axis=(1, 2)))

    @nn.nowrap
    def resized(self, shapes: Shapes) -> tuple["ResNet18", tuple[int, ...]]:
        """Returns this network with the widths of variables, and the shape of an input for it."""
        first = [1 + 2 * b + sum(half < b for half in _HALVES_18) for b in range(8)]
        module = self.clone(
            multiplier=1.0,
            widths=shapes.outputs(*(f"Conv_{i + 1}" for i in first[::2])),
            hidden=shapes.outputs(*(f"Conv_{i}" for i in first)),
        )
        return module, shapes.image("Conv_0")

    @nn.nowrap
    def _widths(self) -> Sequence[int]:
        return resolve("ResNet18", self.widths, self.multiplier, scaled(_WIDTHS_18, round_to_8))
