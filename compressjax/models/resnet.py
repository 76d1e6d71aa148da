"""ResNet-8, the image classification network of the MLPerf Tiny benchmark.

Its additions couple the channels of several layers, which `small_cnn` does not have; its
convolutions are dense, where those of `mobilenet` are depthwise and pointwise.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax


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

        def conv_norm(x: jax.Array, width: int, stride: int = 1) -> jax.Array:
            x = nn.Conv(width, (3, 3), (stride, stride), use_bias=False)(x)
            return nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)

        x = nn.relu(conv_norm(x, self.widths[0]))
        for block, (inner, width) in enumerate(zip(hidden, self.widths, strict=True)):
            stride = 1 if block == 0 else 2
            y = conv_norm(nn.relu(conv_norm(x, inner, stride)), width)
            if block > 0:
                x = nn.Conv(width, (1, 1), (stride, stride))(x)
            x = nn.relu(x + y)
        return nn.Dense(self.num_classes)(x.mean(axis=(1, 2)))
