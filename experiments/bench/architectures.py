"""Well-known image networks rebuilt small: what ties their channels together is all there.

Each keeps the blocks, shortcuts, groupings, gates and norms of its paper at a few channels and
blocks, so that all of them are cut, run and compared within a minute. They run in inference mode.
The networks of `compressjax.models` stand for themselves.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from compressjax import models

Layer = Callable[[jax.Array], jax.Array]
CLASSES = 4


class Architecture(NamedTuple):
    """One network.

    Attributes:
      name: as in the literature.
      module: called on `x: [B, H, W, 3]`.
      size: height and width of an image that it takes.
    """

    name: str
    module: nn.Module
    size: int


class Body(nn.Module):
    """A network written as a function of its input.

    Attributes:
      body: the function; the layers it makes belong to this module.
    """

    body: Layer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns what the function gives."""
        return self.body(x)


class Learned(nn.Module):
    """An array that is learned, such as the embeddings of positions.

    Attributes:
      shape: its shape.
    """

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self) -> jax.Array:
        """Returns the array."""
        return self.param("value", nn.initializers.normal(1.0), self.shape)


def _norm(x: jax.Array) -> jax.Array:
    return nn.BatchNorm(use_running_average=True)(x)


def _conv(
    x: jax.Array,
    width: int,
    size: int = 3,
    stride: int = 1,
    groups: int = 1,
    act: Layer = nn.relu,
) -> jax.Array:
    x = nn.Conv(width, (size, size), stride, feature_group_count=groups, use_bias=False)(x)
    return act(_norm(x))


_linear = functools.partial(_conv, act=lambda x: x)


def _pool(x: jax.Array, size: int = 2, stride: int = 2) -> jax.Array:
    return nn.max_pool(x, (size, size), (stride, stride), "SAME")


def _head(x: jax.Array) -> jax.Array:
    return nn.Dense(CLASSES)(x.mean((1, 2)))


def alexnet(x: jax.Array) -> jax.Array:
    """Krizhevsky et al. (2012): local response norm, a grouped convolution, dense layers."""
    x = nn.relu(nn.Conv(16, (5, 5), 2)(x))
    squares = jnp.pad(x * x, ((0, 0), (0, 0), (0, 0), (2, 2)))
    near = sum(squares[..., i : i + 16] for i in range(5))
    x = _pool(x * (2.0 + 1e-4 * near) ** -0.75)
    for width in (24, 24):
        x = nn.relu(nn.Conv(width, (3, 3), feature_group_count=2)(x))
    x = _pool(x).reshape(x.shape[0], -1)
    for width in (32, 24):
        x = nn.relu(nn.Dense(width)(x))
    return nn.Dense(CLASSES)(x)


def resnet(x: jax.Array) -> jax.Array:
    """He et al. (2016): basic blocks, and a strided projection between stages."""
    x = _pool(_conv(x, 16, 7, 2), 3)
    for width, stride in ((16, 1), (24, 2), (24, 1)):
        y = _linear(_conv(x, width, 3, stride), width)
        x = nn.relu(y + (x if y.shape == x.shape else _linear(x, width, 1, stride)))
    return _head(x)


def bottlenecks(groups: int = 1, widen: int = 1, excite: bool = False) -> Layer:
    """Residual bottlenecks: ResNet-50's, wide, grouped as in ResNeXt, gated as in RegNetY."""

    def body(x: jax.Array) -> jax.Array:
        x = _conv(x, 16)
        for width, stride in ((8, 1), (16, 2), (16, 1)):
            y = _conv(_conv(x, width * widen, 1), width * widen, 3, stride, groups)
            y = _linear(_excite(y, 8) if excite else y, 2 * width, 1)
            x = nn.relu(y + (x if y.shape == x.shape else _linear(x, 2 * width, 1, stride)))
        return _head(x)

    return body


def wide_resnet(x: jax.Array) -> jax.Array:
    """Zagoruyko and Komodakis (2016): pre-activation, twice as wide."""
    x = nn.Conv(8, (3, 3), use_bias=False)(x)
    for width, stride in ((16, 1), (32, 2), (32, 1)):
        y = nn.relu(_norm(x))
        short = x if y.shape[-1] == width else nn.Conv(width, (1, 1), stride, use_bias=False)(y)
        y = nn.relu(_norm(nn.Conv(width, (3, 3), stride, use_bias=False)(y)))
        x = short + nn.Conv(width, (3, 3), use_bias=False)(y)
    return _head(nn.relu(_norm(x)))


def densenet(x: jax.Array) -> jax.Array:
    """Huang et al. (2017): each layer reads all before it; transitions halve the channels."""
    x = _conv(x, 16, 3, 2)
    for block in range(2):
        for _ in range(3):
            y = nn.Conv(24, (1, 1), use_bias=False)(nn.relu(_norm(x)))
            y = nn.Conv(8, (3, 3), use_bias=False)(nn.relu(_norm(y)))
            x = jnp.concatenate([x, y], axis=-1)
        if block == 0:
            x = nn.Conv(x.shape[-1] // 2, (1, 1), use_bias=False)(nn.relu(_norm(x)))
            x = nn.avg_pool(x, (2, 2), (2, 2))
    return _head(nn.relu(_norm(x)))


def inception(x: jax.Array) -> jax.Array:
    """Szegedy et al. (2015), GoogLeNet: four branches, concatenated, one of them pooled."""
    x = _pool(_conv(x, 16, 5, 2))
    for _ in range(2):
        pooled = _conv(nn.max_pool(x, (3, 3), (1, 1), "SAME"), 8, 1)
        branches = [_conv(x, 8, 1), _conv(_conv(x, 8, 1), 16), _conv(_conv(x, 8, 1), 8, 5), pooled]
        x = jnp.concatenate(branches, axis=-1)
    return _head(x)


def squeezenet(x: jax.Array) -> jax.Array:
    """Iandola et al. (2016): fire modules; the last convolution gives the classes."""
    x = _pool(nn.relu(nn.Conv(16, (3, 3), 2)(x)))
    for squeeze, expand in ((8, 16), (8, 24)):
        x = nn.relu(nn.Conv(squeeze, (1, 1))(x))
        wide = [nn.relu(nn.Conv(expand, (size, size))(x)) for size in (1, 3)]
        x = jnp.concatenate(wide, axis=-1)
    return nn.relu(nn.Conv(CLASSES, (1, 1))(x)).mean((1, 2))


def mobilenet_v1(x: jax.Array) -> jax.Array:
    """Howard et al. (2017): depthwise and pointwise convolutions in turn."""
    x = _conv(x, 16, 3, 2)
    for width, stride in ((24, 1), (32, 2), (48, 1)):
        x = _conv(_conv(x, x.shape[-1], 3, stride, x.shape[-1]), width, 1)
    return _head(x)


def _excite(x: jax.Array, width: int) -> jax.Array:
    gate = nn.relu(nn.Conv(width, (1, 1))(x.mean((1, 2), keepdims=True)))
    return x * nn.sigmoid(nn.Conv(x.shape[-1], (1, 1))(gate))


def inverted(sizes: Sequence[int], excite: bool) -> Layer:
    """Inverted residuals: EfficientNet (Tan and Le 2019), MNASNet (Tan et al. 2019)."""

    def body(x: jax.Array) -> jax.Array:
        act = nn.silu if excite else nn.relu
        x = _conv(x, 16, 3, 2, act=act)
        for width, size in zip((16, 24, 24), sizes, strict=True):
            y = _conv(x, 3 * x.shape[-1], 1, act=act)
            y = _conv(y, y.shape[-1], size, 1, y.shape[-1], act)
            y = _linear(_excite(y, 8) if excite else y, width, 1)
            x = x + y if x.shape == y.shape else y
        return _head(_conv(x, 48, 1, act=act))

    return body


def shufflenet_v2(x: jax.Array) -> jax.Array:
    """Ma et al. (2018): half of the channels pass by; then they are shuffled."""
    x = _pool(_conv(x, 16, 3, 2))
    for stride, width in ((2, 32), (1, 32), (1, 32)):
        half = width // 2
        passed, y = (x, x) if stride == 2 else jnp.split(x, 2, axis=-1)
        if stride == 2:
            passed = _conv(_linear(passed, x.shape[-1], 3, 2, x.shape[-1]), half, 1)
        y = _conv(y, half, 1)
        y = _conv(_linear(y, half, 3, stride, half), half, 1)
        x = jnp.concatenate([passed, y], axis=-1)
        x = x.reshape(*x.shape[:3], 2, half).swapaxes(-1, -2).reshape(x.shape)
    return _head(_conv(x, 48, 1))


def convnext(x: jax.Array) -> jax.Array:
    """Liu et al. (2022): layer norms, 7x7 depthwise, inverted MLPs with a scale."""
    x = nn.LayerNorm()(nn.Conv(16, (4, 4), 4)(x))
    for stage, width in enumerate((16, 32)):
        if stage:
            x = nn.Conv(width, (2, 2), 2)(nn.LayerNorm()(x))
        for _ in range(2):
            y = nn.LayerNorm()(nn.Conv(width, (7, 7), feature_group_count=width)(x))
            y = nn.Dense(width)(nn.gelu(nn.Dense(4 * width)(y)))
            x = x + Learned((1, 1, 1, width))() * y
    return nn.Dense(CLASSES)(nn.LayerNorm()(x.mean((1, 2))))


def vit(x: jax.Array) -> jax.Array:
    """Dosovitskiy et al. (2021): patches, a class token, positions, attention and MLPs."""
    x = nn.Conv(32, (8, 8), 8)(x).reshape(x.shape[0], -1, 32)
    token = jnp.broadcast_to(Learned((1, 1, 32))(), (x.shape[0], 1, 32))
    x = jnp.concatenate([token, x], axis=1)
    x = x + Learned((1, x.shape[1], 32))()
    for _ in range(2):
        x = x + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x))
        x = x + nn.Dense(32)(nn.gelu(nn.Dense(64)(nn.LayerNorm()(x))))
    return nn.Dense(CLASSES)(nn.LayerNorm()(x)[:, 0])


def swin(x: jax.Array) -> jax.Array:
    """Liu et al. (2021): attention in shifted windows, with a bias of relative positions."""
    window, heads = 4, 2
    x = nn.LayerNorm()(nn.Conv(16, (4, 4), 4)(x))
    for stage, width in enumerate((16, 32)):
        if stage:  # patch merging
            parts = [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
            x = nn.Dense(width, use_bias=False)(nn.LayerNorm()(jnp.concatenate(parts, axis=-1)))
        for shift in (0, window // 2):
            y = jnp.roll(nn.LayerNorm()(x), (-shift, -shift), (1, 2))
            b, h, w, _ = y.shape
            y = y.reshape(b, h // window, window, w // window, window, width).swapaxes(2, 3)
            y = y.reshape(-1, window * window, width)
            qkv = nn.Dense(3 * width)(y).reshape(*y.shape[:2], 3, heads, width // heads)
            q, k, v = (qkv[:, :, i] for i in range(3))
            table = Learned(((2 * window - 1) ** 2, heads))()
            near = _relative(window)
            bias = jnp.take(table, near.ravel(), axis=0).reshape(*near.shape, heads)
            weights = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(width // heads)
            weights = nn.softmax(weights + bias.transpose(2, 0, 1)[None])
            y = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(*y.shape[:2], width)
            y = nn.Dense(width)(y)
            y = y.reshape(b, h // window, w // window, window, window, width).swapaxes(2, 3)
            x = x + jnp.roll(y.reshape(b, h, w, width), (shift, shift), (1, 2))
            x = x + nn.Dense(width)(nn.gelu(nn.Dense(4 * width)(nn.LayerNorm()(x))))
    return nn.Dense(CLASSES)(nn.LayerNorm()(x).mean((1, 2)))


def _relative(window: int) -> np.ndarray:
    """For each pair of positions in a window, which relative position it is."""
    places = np.stack(np.meshgrid(np.arange(window), np.arange(window), indexing="ij"), -1)
    places = places.reshape(-1, 2)
    apart = places[:, None] - places[None] + window - 1
    return apart[..., 0] * (2 * window - 1) + apart[..., 1]


def unet(x: jax.Array) -> jax.Array:
    """Ronneberger et al. (2015): down, up by transposed convolutions, with skips."""
    skips = []
    for width in (8, 16):
        x = _conv(_conv(x, width), width)
        skips.append(x)
        x = _pool(x)
    x = _conv(x, 24)
    for width, skip in zip((16, 8), reversed(skips), strict=True):
        x = nn.ConvTranspose(width, (2, 2), (2, 2))(x)
        x = _conv(_conv(jnp.concatenate([skip, x], axis=-1), width), width)
    return nn.Conv(CLASSES, (1, 1))(x)


def architectures() -> list[Architecture]:
    """Lists the networks.

    Returns:
      One of each family, smallest first within it.
    """
    resnet18 = models.ResNet18(CLASSES, multiplier=0.25, small_images=True)
    mobilenet = models.MobileNetV2(CLASSES, multiplier=0.35, strides=(1, 1, 2, 2, 1, 1, 1, 1))
    small = models.MobileNetV3Small(CLASSES, multiplier=0.35, strides=(1, 1, 2, 2, 1, 1))
    written = {
        "AlexNet": alexnet,
        "ResNet": resnet,
        "ResNet-50": bottlenecks(),
        "WideResNet": wide_resnet,
        "WideResNet-50": bottlenecks(widen=2),
        "ResNeXt": bottlenecks(groups=4),
        "RegNetY": bottlenecks(groups=2, excite=True),
        "DenseNet": densenet,
        "GoogLeNet": inception,
        "SqueezeNet": squeezenet,
        "MobileNetV1": mobilenet_v1,
        "EfficientNet": inverted((3, 5, 5), excite=True),
        "MNASNet": inverted((3, 5, 3), excite=False),
        "ShuffleNetV2": shufflenet_v2,
        "ConvNeXt": convnext,
        "ViT": vit,
        "Swin": swin,
        "U-Net": unet,
    }
    zoo = {
        "VGG-16": models.VGG16(CLASSES, multiplier=0.125),
        "ResNet-18": resnet18,
        "ResNet, pre-activation": models.PreActResNet(CLASSES, blocks=(1, 1, 1)),
        "MobileNetV2": mobilenet,
        "MobileNetV3-Small": small,
    }
    return [
        *(Architecture(name, module, 16) for name, module in zoo.items()),
        *(Architecture(name, Body(body), 32) for name, body in written.items()),
    ]
