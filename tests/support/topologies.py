"""Small Linen networks, one for each way in which layers are tied together, and their widths.

These are of images, signals and volumes; those of tokens are in `sequences`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tests.support.reference import draw

IMAGE = np.random.default_rng(7).normal(size=(2, 8, 8, 3)).astype(np.float32)
SERIES = np.random.default_rng(9).normal(size=(2, 9, 3)).astype(np.float32)
VOLUME = np.random.default_rng(10).normal(size=(2, 4, 5, 4, 2)).astype(np.float32)
TOKENS = np.random.default_rng(8).normal(size=(2, 5, 16)).astype(np.float32)


def norm(train=False):
    return nn.BatchNorm(use_running_average=not train, momentum=0.9)


def linen(body, *inputs, seed=0):
    """A network from a function of its inputs (of an image unless given), and variables for it."""

    class Network(nn.Module):
        @nn.compact
        def __call__(self, *args):
            return body(*args)

    shapes = jax.eval_shape(Network().init, jax.random.key(0), *(inputs or [IMAGE]))
    return Network().apply, draw(shapes, seed)


def head(x):
    return nn.Dense(4)(x.mean(tuple(range(1, x.ndim - 1))))


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


def param(name, *shape):
    """A variable of the network that is being built."""
    module = nn.module._context.module_stack[-1]
    return module.param(name, nn.initializers.normal(), shape)


def transposed(x):
    x = nn.relu(nn.Conv(8, (3, 3), strides=2)(x))
    x = nn.relu(nn.ConvTranspose(6, (3, 3), strides=(2, 2), transpose_kernel=False)(x))
    return head(nn.ConvTranspose(8, (4, 4), strides=(2, 2), padding="VALID")(x))


def circular(x):
    x = nn.relu(nn.Conv(8, (3, 3), padding="CIRCULAR")(x))
    return head(nn.Conv(6, (3, 3), padding="REFLECT")(x))


def signal(x):
    """Gated causal convolutions, summed up at the end: van den Oord et al. (2016), "WaveNet"."""
    x, skips = nn.Conv(8, (2,), padding="CAUSAL")(x), []
    for dilation in (1, 2):
        y, gate = (nn.Conv(6, (2,), kernel_dilation=dilation, padding="CAUSAL")(x) for _ in "yg")
        y = nn.tanh(y) * nn.sigmoid(gate)
        skips.append(nn.Dense(5)(y))
        x = x + nn.Dense(8)(y)  # unused behind the last one
    return head(nn.relu(sum(skips)))


def convolved_in_three_dimensions(x):
    x = nn.relu(norm()(nn.Conv(8, (3, 3, 3), strides=(1, 2, 2))(x)))
    x = nn.avg_pool(nn.relu(nn.Conv(6, (1, 3, 1))(x)), (2, 1, 1), strides=(2, 1, 1))
    return nn.Dense(4)(x.reshape(x.shape[0], -1))


def grouped_and_shuffled(x):
    """ShuffleNet: Zhang et al. (2018), figure 2."""
    x = nn.relu(nn.Conv(12, (1, 1))(x))
    y = nn.relu(norm()(nn.Conv(16, (1, 1), feature_group_count=2)(x)))
    y = y.reshape(*y.shape[:3], 2, 8).swapaxes(-1, -2).reshape(y.shape)
    y = norm()(nn.Conv(16, (3, 3), feature_group_count=16)(y))
    return head(nn.relu(x + nn.Conv(12, (1, 1), feature_group_count=2)(y)))


def ghost(x):
    """Half of the channels made cheaply of the others: Han et al. (2020), "GhostNet"."""
    x = nn.relu(nn.Conv(8, (1, 1))(x))
    cheap = nn.relu(nn.Conv(8, (3, 3), feature_group_count=8)(x))
    return head(nn.Conv(6, (1, 1))(jnp.concatenate([x, cheap], axis=-1)))


def u_net(x):
    first = nn.relu(nn.Conv(6, (3, 3))(x))
    second = nn.relu(nn.Conv(8, (3, 3))(nn.max_pool(first, (2, 2), strides=(2, 2))))
    x = nn.relu(nn.Conv(10, (3, 3))(nn.max_pool(second, (2, 2), strides=(2, 2))))
    for skip, features in ((second, 8), (first, 6)):
        x = nn.ConvTranspose(features, (2, 2), strides=(2, 2))(x)
        x = nn.relu(nn.Conv(features, (3, 3))(jnp.concatenate([skip, x], axis=-1)))
    return nn.Conv(2, (1, 1))(x)


def pixel_shuffled(x):
    """Channels become positions, in both orders in use: Shi et al. (2016)."""
    x = nn.relu(nn.Conv(8, (3, 3), strides=4)(x))
    x = nn.relu(nn.Conv(24, (3, 3))(x)).reshape(2, 2, 2, 2, 2, 6).transpose(0, 1, 3, 2, 4, 5)
    x = nn.Conv(20, (3, 3))(x.reshape(2, 4, 4, 6)).reshape(2, 4, 4, 5, 2, 2)
    return head(nn.relu(x.transpose(0, 1, 4, 2, 5, 3).reshape(2, 8, 8, 5)))


def space_to_depth(x):
    x = nn.relu(nn.Conv(6, (3, 3))(x))
    batch, height, width, features = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, features).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(batch, height // 2, width // 2, 4 * features)
    return head(nn.Conv(8, (1, 1))(nn.LayerNorm()(x)))


def resized(x):
    x = nn.relu(nn.Conv(8, (3, 3), strides=2)(x))
    x = jax.image.resize(x, (x.shape[0], 8, 8, 8), "bilinear")
    return head(nn.relu(nn.Conv(6, (3, 3))(x)))


def pyramid(x):
    """Features of several scales, one head shared by all: Lin et al. (2017)."""
    fine = nn.relu(nn.Conv(8, (3, 3))(x))
    coarse = nn.relu(nn.Conv(12, (3, 3), strides=2)(fine))
    top = nn.Conv(6, (1, 1), name="top")(coarse)
    up = jnp.repeat(jnp.repeat(top, 2, axis=1), 2, axis=2)
    level = up + nn.Conv(6, (1, 1), name="lateral")(fine)
    shared = nn.Conv(10, (3, 3), name="shared")
    logits = nn.Conv(4, (1, 1), name="logits")
    return {"fine": logits(nn.relu(shared(level))), "coarse": logits(nn.relu(shared(top)))}


def norms(x):
    x = nn.relu(nn.InstanceNorm()(nn.Conv(8, (3, 3))(x)))
    x = nn.relu(nn.GroupNorm(num_groups=4)(nn.Conv(12, (3, 3))(x)))
    x = nn.relu(nn.LayerNorm()(nn.Conv(6, (1, 1))(x)))
    x = nn.relu(nn.RMSNorm()(nn.Conv(10, (1, 1))(x)))
    x = nn.relu(nn.LayerNorm(use_fast_variance=False)(nn.Conv(8, (1, 1))(x)))
    return head(x)


def one_group(x):
    x = nn.Conv(8, (3, 3))(x)
    x = x + nn.Conv(8, (3, 3))(nn.silu(nn.GroupNorm(num_groups=1)(x)))
    return head(nn.silu(nn.GroupNorm(num_groups=None, group_size=2)(x)))


def convnext(x):
    """Liu et al. (2022): depthwise, layer norm, two dense layers, a scale for each channel."""
    x = nn.LayerNorm()(nn.Conv(8, (2, 2), strides=2)(x))
    y = nn.LayerNorm()(nn.Conv(8, (3, 3), feature_group_count=8)(x))
    y = nn.Dense(8)(nn.gelu(nn.Dense(16)(y)))
    x = x + y * param("gamma", 1, 1, 1, 8)
    x = nn.Conv(12, (2, 2), strides=2)(nn.LayerNorm()(x))
    return nn.Dense(4)(nn.LayerNorm()(x.mean((1, 2))))


def two_inputs_and_outputs(x, y):
    conv = nn.Conv(8, (3, 3), name="both")
    left, right = nn.relu(conv(x)), nn.relu(conv(y))
    joined = jnp.concatenate([left - right, left * right], axis=-1)
    joined = nn.relu(nn.Conv(10, (1, 1))(joined))
    return head(joined), nn.Conv(2, (1, 1))(joined + joined.mean((1, 2), keepdims=True))


def one_beside_depthwise(x):
    """Convolutions with one output, or one input, are not depthwise."""
    x = nn.relu(nn.Conv(8, (1, 1))(x))
    x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=8)(x))
    single = nn.Conv(1, (3, 3), feature_group_count=1)(nn.Conv(1, (3, 3))(x))
    x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=8)(x * nn.sigmoid(single)))
    return head(x * nn.Conv(8, (3, 3))(single))


def cross_stage(x):
    """Uneven parts, pools of several sizes: Wang et al. (2020), "CSPNet"."""
    x = nn.relu(nn.Conv(16, (1, 1))(x))
    left, right = x[..., :6], x[..., 6:]
    right = right + nn.Conv(10, (3, 3))(nn.silu(nn.Conv(6, (1, 1))(right)))
    pools = [nn.max_pool(right, (k, k), strides=(1, 1), padding="SAME") for k in (1, 3, 5)]
    return head(nn.silu(nn.Conv(8, (1, 1))(jnp.concatenate([left, *pools], axis=-1))))


def non_local(x):
    """Attention between positions of an image: Wang et al. (2018)."""
    x = nn.relu(nn.Conv(8, (3, 3), strides=2)(x))
    query, key, value = (nn.Conv(6, (1, 1))(x).reshape(2, 16, 6) for _ in range(3))
    y = nn.softmax(jnp.einsum("bqc,bkc->bqk", query, key)) @ value
    return head(nn.relu(x + nn.Conv(8, (1, 1))(y.reshape(2, 4, 4, 6))))


def normalized_response(x):
    """Each channel over the mean of all channels' norms: Woo et al. (2023), "ConvNeXt V2"."""
    x = nn.gelu(nn.Conv(8, (3, 3), strides=2)(x))
    size = jnp.sqrt((x**2).sum((1, 2), keepdims=True) + 1e-6)
    response = size / (size.mean(-1, keepdims=True) + 1e-6)
    x = param("gamma", 1, 1, 1, 8) * (x * response) + param("beta", 1, 1, 1, 8) + x
    return head(nn.Conv(6, (1, 1))(x))


def selective(x):
    """Branches weighed against each other: Li et al. (2019), "Selective Kernel Networks"."""
    branches = [nn.relu(norm()(nn.Conv(8, (k, k))(x))) for k in (1, 3)]
    squeezed = nn.relu(nn.Dense(6)(sum(branches).mean((1, 2))))
    weights = nn.softmax(jnp.stack([nn.Dense(8)(squeezed) for _ in branches]), axis=0)
    weights = weights.reshape(2, -1, 1, 1, 8)
    return head(nn.relu((jnp.stack(branches) * weights).sum(0)))


def maxout(x):
    """The largest of every three neighbours: Goodfellow et al. (2013)."""
    x = nn.Conv(12, (3, 3))(x)
    return head(x.reshape(*x.shape[:3], 4, 3).max(-1))


def standardized(x):
    """Kernels are centred and scaled: Qiao et al. (2019), "Weight Standardization"."""

    def conv(x, name, features):
        kernel = param(name, 3, 3, x.shape[-1], features)
        kernel = kernel - kernel.mean((0, 1, 2), keepdims=True)
        kernel = kernel / jnp.sqrt(kernel.var((0, 1, 2), keepdims=True) + 1e-5)
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)

    return head(nn.relu(conv(nn.relu(conv(x, "one/kernel", 8)), "two/kernel", 6)))


def weight_norm(x):
    """Salimans and Kingma (2016)."""
    x = nn.relu(nn.WeightNorm(nn.Conv(8, (3, 3)))(x))
    return head(nn.relu(nn.WeightNorm(nn.Conv(6, (3, 3)))(x)))


def experts(x):
    """A soft mixture of dense layers, each weighed for each image."""
    x = nn.relu(nn.Conv(8, (3, 3))(x))
    gates = nn.softmax(nn.Dense(3, name="gates")(x.mean((1, 2))))
    y = jnp.einsum("bhwi,eio->behwo", x, param("up/kernel", 3, 8, 12))
    y = jnp.einsum("behwi,eio->behwo", nn.relu(y), param("down/kernel", 3, 12, 6))
    return head((y * gates.reshape(-1, 3, 1, 1, 1)).sum(1))


def made_of_weights(x):
    """Kernels weighed for each image: Yang et al. (2019), "CondConv"."""
    x = nn.relu(nn.Dense(8)(x))
    routes = nn.sigmoid(nn.Dense(3, name="routes")(x.mean((1, 2))))
    kernels = jnp.einsum("be,eio->bio", routes, param("bank/kernel", 3, 8, 6))
    return head(nn.relu(jnp.einsum("bhwi,bio->bhwo", x, kernels)))


def prelu(x):
    x = nn.Conv(8, (3, 3))(x)
    x = jnp.maximum(x, 0) + param("slope", 1, 1, 1, 8) * jnp.minimum(x, 0)
    return head(nn.Conv(6, (1, 1))(jnp.maximum(x, nn.Conv(8, (1, 1))(x))))


def with_coordinates(x):
    """Constants among the channels: Liu et al. (2018), "CoordConv"."""
    x = nn.relu(nn.Conv(8, (3, 3))(x))
    rows = jnp.broadcast_to(jnp.linspace(-1.0, 1.0, 8).reshape(1, 8, 1, 1), (*x.shape[:3], 1))
    return head(nn.relu(nn.Conv(6, (1, 1))(jnp.concatenate([rows, x, rows * rows], axis=-1))))


def recurrent(x):
    """Gates that are one kernel's quarters, three steps of a convolutional LSTM."""
    cell = nn.ConvLSTMCell(8, (3, 3))
    carry = (jnp.zeros((*x.shape[:3], 8), x.dtype),) * 2
    for _ in range(3):
        carry, y = cell(carry, x)
    return head(y)


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
    transposed: {"Conv_0": "4/8", "ConvTranspose_0": "3/6", "ConvTranspose_1": "4/8"},
    circular: {"Conv_0": "4/8", "Conv_1": "3/6"},
    one_beside_depthwise: {"Conv_0": "4/8", "Conv_3": "1/1"},
    cross_stage: {"Conv_0": "3/6", "Conv_0/kernel#1": "5/10", "Conv_2": "3/6", "Conv_3": "4/8"},
    non_local: {"Conv_0": "4/8", "Conv_1": "3/6", "Conv_3": "3/6"},
    normalized_response: {"Conv_0": "4/8", "Conv_1": "3/6"},
    grouped_and_shuffled: {"Conv_0": "3/6", "Conv_1": "2/4"},
    ghost: {"Conv_0": "4/8", "Conv_2": "3/6"},
    u_net: {"Conv_0": "3/6", "Conv_1": "4/8", "Conv_2": "5/10", "ConvTranspose_0": "4/8",
            "Conv_3": "4/8", "ConvTranspose_1": "3/6", "Conv_4": "3/6"},
    pixel_shuffled: {"Conv_0": "4/8", "Conv_1": "3/6", "Conv_2": "3/5"},
    space_to_depth: {"Conv_0": "3/6", "Conv_1": "4/8"},
    resized: {"Conv_0": "4/8", "Conv_1": "3/6"},
    pyramid: {"Conv_0": "4/8", "Conv_1": "6/12", "top": "3/6", "shared": "5/10"},
    norms: {"Conv_0": "4/8", "Conv_1": "2/4", "Conv_2": "3/6", "Conv_3": "5/10", "Conv_4": "4/8"},
    one_group: {"Conv_0": "2/4"},
    convnext: {"Conv_0": "4/8", "Dense_1": "8/16", "Conv_2": "6/12"},
    selective: {"Conv_0": "4/8", "Dense_0": "3/6"},
    maxout: {"Conv_0": "2/4"},
    standardized: {"one": "4/8", "two": "3/6"},
    weight_norm: {"Conv_0": "4/8", "Conv_1": "3/6"},
    experts: {"Conv_0": "4/8", "up": "6/12", "down": "3/6"},
    made_of_weights: {"Dense_0": "4/8", "routes": "2/3", "bank": "3/6"},
    prelu: {"Conv_0": "4/8", "Conv_1": "3/6"},
    with_coordinates: {"Conv_0": "4/8", "Conv_1": "3/6"},
    recurrent: {"ConvLSTMCell_0/ih": "4/8"},
}  # fmt: skip

# Networks of other inputs than an image.
OTHERS = {
    signal: ((SERIES,), {"Conv_0": "4/8", "Conv_1": "3/6", "Dense_0": "3/5", "Conv_3": "3/6"}),
    convolved_in_three_dimensions: ((VOLUME,), {"Conv_0": "4/8", "Conv_1": "3/6"}),
    two_inputs_and_outputs: ((IMAGE, IMAGE[:, ::-1]), {"both": "4/8", "Conv_0": "5/10"}),
}
