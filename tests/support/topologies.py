"""Small Linen networks, one for each way in which layers are tied together, and their widths."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tests.support.reference import draw

IMAGE = np.random.default_rng(7).normal(size=(2, 8, 8, 3)).astype(np.float32)
TOKENS = np.random.default_rng(8).normal(size=(2, 5, 16)).astype(np.float32)


def norm(train=False):
    return nn.BatchNorm(use_running_average=not train, momentum=0.9)


def linen(body, x=IMAGE, seed=0):
    """A network from a function of its input, and variables for it."""

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            return body(x)

    shapes = jax.eval_shape(Network().init, jax.random.key(0), x)
    return Network().apply, draw(shapes, seed)


def head(x):
    return nn.Dense(4)(x.mean((1, 2)))


def plain(x):
    for features in (8, 12):
        x = nn.relu(norm()(nn.Conv(features, (3, 3), use_bias=False)(x)))
    return head(x)


def strided_dilated(x):
    x = nn.sigmoid(nn.Conv(8, (3, 3), strides=2)(x))
    x = nn.max_pool(nn.tanh(nn.Conv(12, (3, 3), kernel_dilation=2)(x)), (2, 2), strides=(2, 2))
    x = nn.ConvTranspose(8, (2, 2), strides=(2, 2))(x)
    return head(nn.avg_pool(nn.softplus(x), (3, 3), padding="SAME"))


def grouped(x):
    x = nn.relu(nn.Conv(16, (1, 1))(x))
    x = nn.relu(norm()(nn.Conv(24, (3, 3), feature_group_count=4)(x)))
    return head(nn.Conv(8, (1, 1))(x))


def depthwise(x):
    x = nn.relu6(norm()(nn.Conv(12, (1, 1))(x)))
    x = nn.relu6(norm()(nn.Conv(12, (3, 3), feature_group_count=12, strides=2)(x)))
    return head(nn.silu(nn.Conv(8, (1, 1))(x)))


def channel_multiplier(x):
    x = nn.relu(nn.Conv(6, (1, 1))(x))
    x = nn.relu(nn.Conv(18, (3, 3), feature_group_count=6)(x))
    return head(nn.Conv(8, (1, 1))(x))


def residual(x):
    x = nn.relu(norm()(nn.Conv(8, (3, 3))(x)))
    for stride, features in ((1, 8), (2, 16), (1, 16)):
        y = nn.relu(norm()(nn.Conv(features, (3, 3), strides=stride)(x)))
        y = norm()(nn.Conv(features, (3, 3))(y))
        x = nn.relu(y + (x if stride == 1 else nn.Conv(features, (1, 1), strides=stride)(x)))
    return head(x)


def preactivation(x):
    x = nn.Conv(8, (3, 3))(x)
    for _ in range(2):
        y = nn.Conv(12, (3, 3))(nn.relu(norm()(x)))
        x = x + nn.Conv(8, (3, 3))(nn.relu(norm()(y)))
    return head(nn.relu(norm()(x)))


def padded_shortcut(x):
    x = nn.relu(nn.Conv(8, (3, 3))(x))
    y = nn.Conv(16, (3, 3), strides=2)(x)
    return head(nn.relu(y + jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (4, 4)))))


def dense_blocks(x):
    x = nn.Conv(6, (3, 3))(x)
    for _ in range(3):
        y = nn.Conv(4, (3, 3))(nn.relu(norm()(x)))
        x = jnp.concatenate([x, y], axis=-1)
    return head(nn.relu(x))


def same_twice(x):
    x = nn.relu(nn.Conv(6, (3, 3))(x))
    y = nn.Conv(5, (1, 1))(x)
    return head(nn.relu(nn.Conv(8, (1, 1))(jnp.concatenate([x, y, x], axis=-1))))


def shuffled(x):
    x = nn.relu(nn.Conv(16, (1, 1))(x))
    left, right = jnp.split(x, 2, axis=-1)
    x = jnp.concatenate([left, nn.relu(nn.Conv(8, (3, 3))(right))], axis=-1)
    x = x.reshape(*x.shape[:3], 2, 8).swapaxes(-1, -2).reshape(*x.shape[:3], 16)
    return head(nn.relu(nn.Conv(8, (1, 1))(x)))


def squeeze_excite(x):
    x = nn.relu(nn.Conv(12, (3, 3))(x))
    gate = nn.relu(nn.Dense(6)(x.mean((1, 2))))
    return head(nn.Conv(8, (1, 1))(x * nn.sigmoid(nn.Dense(12)(gate))[:, None, None, :]))


def flattened(x):
    x = nn.relu(nn.Conv(6, (3, 3), strides=2)(x))
    return nn.Dense(4)(nn.relu(nn.Dense(10)(x.reshape(x.shape[0], -1))))


def channels_first(x):
    x = nn.relu(nn.Conv(6, (3, 3), strides=2)(x)).transpose(0, 3, 1, 2)
    return nn.Dense(4)(jnp.ravel(x).reshape(x.shape[0], -1))


def one_channel(x):
    x = nn.relu(nn.Conv(8, (3, 3))(x.mean(-1, keepdims=True)))
    mask = nn.sigmoid(nn.Conv(1, (3, 3))(x))
    return head(nn.relu(nn.Conv(6, (3, 3))(x * mask)))


def gated(x):
    x = nn.relu(nn.Conv(8, (3, 3))(x))
    return head(nn.glu(nn.Conv(12, (3, 3))(x)) + nn.Conv(6, (1, 1))(nn.gelu(x)))


def shared(x):
    x = nn.Conv(8, (3, 3))(x)
    conv = nn.Conv(8, (3, 3))
    return head(nn.relu(conv(nn.relu(conv(x)))))


def inception(x):
    x = nn.relu(nn.Conv(8, (1, 1))(x))
    branches = [nn.relu(nn.Conv(n, (k, k))(x)) for n, k in ((4, 1), (6, 3), (4, 5))]
    branches.append(nn.max_pool(x, (3, 3), strides=(1, 1), padding="SAME"))
    return head(nn.Conv(8, (1, 1))(jnp.concatenate(branches, axis=-1)))


def upsampled(x):
    skip = nn.relu(nn.Conv(6, (3, 3))(x))
    x = nn.relu(nn.Conv(8, (3, 3))(nn.max_pool(skip, (2, 2), strides=(2, 2))))
    x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    return head(nn.Conv(6, (3, 3))(jnp.concatenate([x, skip], axis=-1)))


def masked(x):
    x = nn.relu(nn.Conv(8, (3, 3))(x)) * jnp.linspace(0.5, 1.5, 8).reshape(1, 1, 1, 8)
    x = x + jnp.arange(8.0)[None, None, None]
    return head(jnp.where(x > 0.7, x, jnp.asarray(IMAGE[:1, :, :, :1] * np.arange(8.0), x.dtype)))


TOPOLOGIES = {
    plain: {"Conv_0": "4/8", "Conv_1": "6/12"},
    strided_dilated: {"Conv_0": "4/8", "Conv_1": "6/12", "ConvTranspose_0": "4/8"},
    grouped: {"Conv_0": "2/4", "Conv_1": "3/6", "Conv_2": "4/8"},
    depthwise: {"Conv_0": "6/12", "Conv_2": "4/8"},
    channel_multiplier: {"Conv_0": "3/6", "Conv_2": "4/8"},
    residual: {"Conv_0": "4/8", "Conv_1": "4/8", "Conv_3": "8/16", "Conv_4": "8/16",
               "Conv_6": "8/16"},
    preactivation: {"Conv_0": "4/8", "Conv_1": "6/12", "Conv_3": "6/12"},
    padded_shortcut: {"Conv_0": "4/8", "Conv_1": "4/8"},
    dense_blocks: {"Conv_0": "3/6", "Conv_1": "2/4", "Conv_2": "2/4", "Conv_3": "2/4"},
    same_twice: {"Conv_0": "3/6", "Conv_1": "3/5", "Conv_2": "4/8"},
    shuffled: {"Conv_0": "8/16", "Conv_1": "4/8", "Conv_2": "4/8"},
    squeeze_excite: {"Conv_0": "6/12", "Dense_0": "3/6", "Conv_1": "4/8"},
    flattened: {"Conv_0": "3/6", "Dense_1": "5/10"},
    channels_first: {"Conv_0": "3/6"},
    one_channel: {"Conv_0": "4/8", "Conv_2": "3/6"},
    gated: {"Conv_0": "4/8", "Conv_1": "3/6"},
    shared: {"Conv_0": "4/8"},
    inception: {"Conv_0": "4/8", "Conv_1": "2/4", "Conv_2": "3/6", "Conv_3": "2/4",
                "Conv_4": "4/8"},
    upsampled: {"Conv_0": "3/6", "Conv_1": "4/8", "Conv_2": "3/6"},
    masked: {"Conv_0": "4/8"},
}  # fmt: skip
