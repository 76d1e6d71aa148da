"""Compact blocks: what takes the place of a plain 3x3 convolution in small networks.

Each is a module with its own batch norms, so that a network is a list of them: depthwise-separable
(MobileNetV1), grouped bottleneck (ResNeXt), inverted residual (MobileNetV2), and the same with
squeeze-and-excitation (MobileNetV3). What is only called inside a network is in `_layers.py`.
"""

import functools

import flax.linen as nn
import jax

from compressjax.models._layers import conv_norm


class DepthwiseSeparable(nn.Module):
    """Filters each channel by itself, then mixes them with a 1x1 convolution.

    From Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision
    Applications" (2017): a convolution of K x K and N outputs costs 1/N + 1/K^2 of what it did.
    Called with `x: [B, H, W, C]`; returns `[B, ceil(H / stride), ceil(W / stride), out]`.

    Attributes:
      out: output channels.
      size: height and width of the depthwise kernel.
      stride: stride of the depthwise convolution.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x = jnp.zeros([1, 8, 8, 4])
      >>> variables = jax.eval_shape(DepthwiseSeparable(6).init, jax.random.key(0), x)
      >>> [variables['params'][f'Conv_{i}']['kernel'].shape for i in (0, 1)]
      [(3, 3, 1, 4), (1, 1, 4, 6)]
    """

    out: int
    size: int = 3
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns `[B, H', W', out]` of `x: [B, H, W, C]`."""
        norm = functools.partial(conv_norm, activation=nn.relu, train=train)
        x = norm(x, x.shape[-1], self.size, self.stride, groups=x.shape[-1])
        return norm(x, self.out)


class GroupedBottleneck(nn.Module):
    """A residual bottleneck whose 3x3 convolution works on groups of channels.

    From Xie et al., "Aggregated Residual Transformations for Deep Neural Networks" (2017), the form
    with a grouped convolution; with one group it is the bottleneck of He et al. (2016), with the
    stride on the 3x3 convolution. A 1x1 convolution stands in the shortcut where the input has
    another shape than the output. Called with `x: [B, H, W, C]`; returns
    `[B, ceil(H / stride), ceil(W / stride), out]`.

    Attributes:
      hidden: channels of the grouped convolution, a multiple of `groups`.
      out: output channels.
      groups: groups of the 3x3 convolution (the paper's cardinality).
      stride: stride of the 3x3 convolution.

    Raises:
      ValueError: when called, `hidden` is no multiple of `groups`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> block = GroupedBottleneck(hidden=8, out=16, groups=4)
      >>> variables = jax.eval_shape(block.init, jax.random.key(0), jnp.zeros([1, 8, 8, 16]))
      >>> [variables['params'][f'Conv_{i}']['kernel'].shape for i in range(3)]
      [(1, 1, 16, 8), (3, 3, 2, 8), (1, 1, 8, 16)]
    """

    hidden: int
    out: int
    groups: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns `[B, H', W', out]` of `x: [B, H, W, C]`."""
        if self.groups < 1 or self.hidden % self.groups:
            raise ValueError(
                f"GroupedBottleneck: hidden must be a multiple of groups, found {self.hidden} and"
                f" {self.groups}"
            )
        norm = functools.partial(conv_norm, train=train)
        y = norm(x, self.hidden, activation=nn.relu)
        y = norm(y, self.hidden, 3, self.stride, groups=self.groups, activation=nn.relu)
        y = norm(y, self.out)
        short = x if x.shape == y.shape else norm(x, self.out, stride=self.stride)
        return nn.relu(y + short)


class InvertedResidual(nn.Module):
    """Expands with a 1x1 convolution, filters depthwise, projects back with a linear 1x1.

    Called with `x: [B, H, W, C]`; returns `[B, ceil(H / stride), ceil(W / stride), out]`.

    Attributes:
      hidden: channels of the depthwise convolution.
      out: output channels.
      stride: stride of the depthwise convolution.
      expand: whether the first 1x1 convolution is there; without it `hidden` is C.
      residual: whether the input is added to the output.
    """

    hidden: int
    out: int
    stride: int
    expand: bool
    residual: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns `[B, H', W', out]` of `x: [B, H, W, C]`."""
        norm = functools.partial(conv_norm, train=train)
        y = norm(x, self.hidden, activation=nn.relu6) if self.expand else x
        y = norm(y, self.hidden, 3, self.stride, groups=self.hidden, activation=nn.relu6)
        y = norm(y, self.out)
        return x + y if self.residual else y


class SqueezeExcite(nn.Module):
    """Scales each channel by a number in [0, 1] that the means of all channels decide.

    From Hu et al., "Squeeze-and-Excitation Networks" (2018), with the hard sigmoid of Howard et al.
    (2019), section 5.3. Called with `x: [B, H, W, C]`; returns the same shape.

    Attributes:
      width: channels between its two 1x1 convolutions.
    """

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[B, H, W, C]` of `x: [B, H, W, C]`."""
        y = x.mean(axis=(1, 2), keepdims=True)
        y = nn.relu(nn.Conv(self.width, (1, 1))(y))
        return x * nn.hard_sigmoid(nn.Conv(x.shape[-1], (1, 1))(y))


class V3Block(nn.Module):
    """An inverted residual with, possibly, squeeze-and-excitation after its depthwise convolution.

    Called with `x: [B, H, W, C]`; returns `[B, ceil(H / stride), ceil(W / stride), out]`.

    Attributes:
      hidden: channels of the depthwise convolution.
      squeeze: width of the squeeze-and-excitation; 0 for none.
      out: output channels.
      size: height and width of the depthwise kernel.
      stride: stride of the depthwise convolution.
      expand: whether the first 1x1 convolution is there; without it `hidden` is C.
      residual: whether the input is added to the output.
      hard_swish: which activation: hard-swish, or ReLU.
    """

    hidden: int
    squeeze: int
    out: int
    size: int
    stride: int
    expand: bool
    residual: bool
    hard_swish: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns `[B, H', W', out]` of `x: [B, H, W, C]`."""
        act = nn.hard_swish if self.hard_swish else nn.relu
        norm = functools.partial(conv_norm, train=train)
        y = norm(x, self.hidden, activation=act) if self.expand else x
        y = norm(y, self.hidden, self.size, self.stride, groups=self.hidden, activation=act)
        y = SqueezeExcite(self.squeeze)(y) if self.squeeze else y
        y = norm(y, self.out)
        return x + y if self.residual else y
