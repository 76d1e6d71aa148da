"""ResNet-8, of the MLPerf Tiny benchmark, and ResNet-18.

Their additions couple the channels of several layers, which `small_cnn` does not have; their
convolutions are dense, where those of `mobilenet` are depthwise and pointwise.
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax

from compressjax.models._layers import conv_norm


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
      widths: output channels of each block; the stem has the first block's.
      hidden: channels between the two convolutions of each block; `widths` if None.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = ResNet8(num_classes=10)
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros([1, 32, 32, 3]))
      >>> sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
      77946
    """

    num_classes: int
    widths: Sequence[int] = (16, 32, 64)
    hidden: Sequence[int] | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits `[B, num_classes]` of `x: [B, H, W, C]`."""
        hidden = self.widths if self.hidden is None else self.hidden
        if len(hidden) != len(self.widths):
            raise ValueError(
                f"ResNet8: hidden {tuple(hidden)} and widths {tuple(self.widths)} must have the"
                " same length, one entry per block"
            )
        norm = functools.partial(conv_norm, size=3, train=train)
        x = norm(x, self.widths[0], activation=nn.relu)
        for block, (inner, width) in enumerate(zip(hidden, self.widths, strict=True)):
            stride = 1 if block == 0 else 2
            y = norm(norm(x, inner, stride=stride, activation=nn.relu), width)
            if block > 0:
                x = nn.Conv(width, (1, 1), (stride, stride))(x)
            x = nn.relu(x + y)
        return nn.Dense(self.num_classes)(x.mean(axis=(1, 2)))


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
      widths: output channels of each stage's blocks; the stem has the first stage's.
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
    widths: Sequence[int] = (64, 128, 256, 512)
    hidden: Sequence[int] | None = None
    small_images: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits `[B, num_classes]` of `x: [B, H, W, C]`."""
        out = [width for width in self.widths for _ in range(2)]
        hidden = out if self.hidden is None else self.hidden
        if len(self.widths) != 4 or len(hidden) != 8:
            raise ValueError(
                "ResNet18: widths must have 4 entries, one per stage, and hidden 8, one per block,"
                f" found widths {tuple(self.widths)} and hidden {tuple(hidden)}"
            )
        norm = functools.partial(conv_norm, train=train)
        if self.small_images:
            x = norm(x, self.widths[0], 3, activation=nn.relu)
        else:
            x = norm(x, self.widths[0], 7, 2, activation=nn.relu)
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for block, (inner, width) in enumerate(zip(hidden, out, strict=True)):
            halves = block in (2, 4, 6)
            stride = 2 if halves else 1
            y = norm(norm(x, inner, 3, stride, activation=nn.relu), width, 3)
            x = nn.relu((norm(x, width, stride=stride) if halves else x) + y)
        return nn.Dense(self.num_classes)(x.mean(axis=(1, 2)))
