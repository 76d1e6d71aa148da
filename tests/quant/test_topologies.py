"""LiteRT gives the codes of `q.apply` on small networks of every topology, to the last one."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import compressjax as cj

IMAGE = (2, 8, 8, 4)
TOKENS = (2, 5, 8)


def linen(body, shape=IMAGE):
    """A network from a function of its input, with random variables that have no zero biases."""

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            return body(x)

    rng = np.random.default_rng(0)
    variables = Network().init(jax.random.key(0), jnp.zeros(shape))
    variables = jax.tree.map(
        lambda x: x if x.ndim > 1 else x + 0.3 * np.abs(rng.normal(size=x.shape)).astype("f"),
        variables,
    )
    return Network().apply, variables, shape


def concatenated_pools(x):
    x = nn.relu(nn.Conv(8, (3, 3))(x))
    pooled = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    strided = nn.Conv(4, (3, 3), strides=2, padding=((1, 1), (1, 1)))(x)
    return nn.Dense(3)(jnp.concatenate([pooled, strided], -1).mean((1, 2)))


def max_pool_of_negatives(x):
    x = nn.Conv(4, (1, 1))(x) - 3.0
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 0), (0, 1)))


def average_pools(x):
    x = nn.Conv(8, (3, 3))(x)
    a = nn.avg_pool(x, (2, 2), strides=(2, 2))
    b = nn.avg_pool(x, (3, 3), strides=(2, 2), padding="SAME")
    c = nn.avg_pool(x, (3, 3), strides=(2, 2), padding="SAME", count_include_pad=False)
    return nn.Conv(4, (1, 1))(a + b * c)


def gated(x):
    x = nn.silu(nn.Conv(8, (3, 3))(x))
    gate = nn.sigmoid(nn.Dense(8)(nn.relu(nn.Dense(4)(x.mean((1, 2))))))
    return nn.Dense(3)((x * gate[:, None, None, :]).mean((1, 2)))


def squeeze_excite_keepdims(x):
    x = nn.hard_swish(nn.Conv(8, (3, 3))(x))
    gate = nn.Conv(8, (1, 1))(nn.relu(nn.Conv(4, (1, 1))(x.mean((1, 2), keepdims=True))))
    return nn.Conv(3, (1, 1))(x * nn.hard_sigmoid(gate))


def constants(x):
    per_channel = jnp.array([0.5, -1.0, 2.0, 0.25])
    x = (x * per_channel[None, None, None] + 0.7) / 1.3
    x = nn.relu(nn.Conv(4, (3, 3))(x)) - per_channel[None, None, None]
    return nn.relu(x * 0.8)


def channel_shuffle(x):
    x = nn.relu(nn.Conv(8, (1, 1))(x))
    left, right = jnp.split(x, 2, axis=-1)
    right = nn.relu(nn.Conv(4, (3, 3), feature_group_count=4)(right))
    x = jnp.concatenate([left, right], -1)
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, 2, c // 2).transpose(0, 1, 2, 4, 3).reshape(b, h, w, c)
    return nn.Conv(3, (1, 1))(x[:, ::2, 1:7, :6])


def sigmoid_beside_relu(x):
    x = nn.Conv(8, (3, 3))(x)
    return nn.Conv(3, (1, 1))(jnp.concatenate([nn.sigmoid(x), nn.relu(x), nn.tanh(x)], -1))


def residual(x):
    x = nn.relu6(nn.Conv(8, (3, 3))(x))
    y = nn.relu6(nn.Conv(8, (3, 3), feature_group_count=8)(x))
    y = nn.Conv(8, (3, 3), kernel_dilation=2)(y)
    return nn.softmax(nn.Dense(5)(nn.relu(x + y).mean((1, 2))))


def grouped(x):
    x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=2)(x))
    x = nn.relu(nn.Conv(16, (3, 3), feature_group_count=8, strides=2)(x))
    return nn.Conv(4, (4, 4), padding="VALID")(x).reshape(x.shape[0], 4)


def subtraction(x):
    a, b = nn.Conv(4, (1, 1))(x), nn.Conv(4, (3, 3))(x)
    return jnp.clip(a - b, -1.0, 1.0) * jnp.pad(b[:, 1:-1], ((0, 0), (1, 1), (0, 0), (0, 0)))


def tokens(x):
    y = nn.relu(nn.Dense(16)(x))
    return nn.softmax(nn.Dense(8)(y) + x)


def heads(x):
    y = nn.DenseGeneral((2, 4))(x)
    y = nn.DenseGeneral(6, axis=(-2, -1))(y)
    return nn.tanh(nn.Dense(3)(y.mean(1)))


def mobilenet_v3(x):
    def norm(x):
        return nn.BatchNorm(use_running_average=True)(x)

    x = nn.hard_swish(norm(nn.Conv(8, (3, 3), strides=2, use_bias=False)(x)))
    y = nn.hard_swish(norm(nn.Conv(24, (1, 1), use_bias=False)(x)))
    y = nn.hard_swish(norm(nn.Conv(24, (5, 5), feature_group_count=24, use_bias=False)(y)))
    gate = nn.relu(nn.Conv(8, (1, 1))(y.mean((1, 2), keepdims=True)))
    y = y * nn.hard_sigmoid(nn.Conv(24, (1, 1))(gate))
    x = x + norm(nn.Conv(8, (1, 1), use_bias=False)(y))
    x = nn.hard_swish(norm(nn.Conv(32, (1, 1), use_bias=False)(x)))
    return nn.Dense(3)(nn.hard_swish(nn.Dense(16)(x.mean((1, 2)))))


def clamps_beside_other_readers(x):
    bounds = ((0.0, None), (0.0, 6.0), (-1.0, 1.0), (0.1, 0.7), (None, 2.0))
    for bound in bounds:
        x = 4.0 * nn.Conv(4, (1, 1))(x)
        x = x - jnp.clip(x, *bound)
    return jnp.clip(nn.Conv(4, (1, 1))(x), 0.0, 0.3)


def transformer_mlp(x):
    for fast, approximate in ((True, True), (False, False)):
        y = nn.Dense(32)(nn.LayerNorm(use_fast_variance=fast)(x))
        x = x + nn.Dense(8)(nn.gelu(y, approximate=approximate))
    return nn.Dense(3)(nn.RMSNorm()(x).mean(1))


def transformer_block(x):
    y = nn.LayerNorm()(x)
    x = x + nn.MultiHeadDotProductAttention(num_heads=2, deterministic=True)(y)
    return x + nn.Dense(8)(nn.gelu(nn.Dense(32)(nn.LayerNorm()(x))))


def smooth_functions(x):
    x = nn.Dense(8)(x)
    steep = nn.relu(nn.Dense(8)(x)) + 0.5
    branches = [
        nn.elu(x),
        nn.leaky_relu(nn.Dense(8)(x), 0.2),
        nn.leaky_relu(nn.Dense(8)(x), 0.001),
        jnp.abs(nn.Dense(8)(x)),
        -jnp.exp(0.3 * x),
        1.0 - nn.sigmoid(x),
        x**3 - jnp.square(x),
        x / jnp.sqrt(steep),
        jnp.log(steep) * jnp.sqrt(steep),
        jnp.minimum(jnp.maximum(x, steep), nn.tanh(x)),
        nn.swish(x) * jax.nn.standardize(x),
    ]
    return sum(nn.Dense(4)(branch) for branch in branches)


def channels_first(v, x):
    numbers = ("NCHW", "OIHW", "NCHW")
    y = lax.conv_general_dilated(x, v["a"], (1, 1), "SAME", dimension_numbers=numbers)
    y = jax.nn.relu(y + v["b"][None, :, None, None])
    y = lax.conv_general_dilated(
        y, v["c"], (2, 2), ((1, 1), (1, 1)), dimension_numbers=numbers, feature_group_count=6
    )
    return y.mean((2, 3)) @ v["d"]


def _channels_first():
    rng = np.random.default_rng(1)
    shapes = {"a": (6, 4, 3, 3), "b": (6,), "c": (6, 1, 3, 3), "d": (6, 3)}
    variables = {k: rng.normal(size=s).astype("f") * 0.4 for k, s in shapes.items()}
    return channels_first, variables, (2, 4, 8, 8)


NETWORKS = {
    **{
        body.__name__: lambda body=body: linen(body)
        for body in (
            concatenated_pools,
            max_pool_of_negatives,
            average_pools,
            gated,
            squeeze_excite_keepdims,
            constants,
            channel_shuffle,
            sigmoid_beside_relu,
            residual,
            grouped,
            subtraction,
            mobilenet_v3,
            clamps_beside_other_readers,
        )
    },
    **{
        body.__name__: lambda body=body: linen(body, TOKENS)
        for body in (tokens, heads, transformer_mlp, transformer_block, smooth_functions)
    },
    "channels_first": _channels_first,
}


# Networks whose operations the converters see differently: these go through both.
BOTH = (
    "mobilenet_v3",
    "clamps_beside_other_readers",
    "transformer_mlp",
    "transformer_block",
    "smooth_functions",
)


@pytest.mark.parametrize(
    ("name", "via"), [*((n, "litert") for n in NETWORKS), *((n, "jax2tf") for n in BOTH)]
)
def test_litert_gives_the_same_codes(name, via):
    fn, variables, shape = NETWORKS[name]()
    rng = np.random.default_rng(2)
    batch = rng.normal(size=(64, *shape[1:])).astype("f")
    q = cj.quantize(fn, cj.quant.int8())
    qv = q.calibrate(variables, [batch[:32], batch[32:]], observer=cj.quant.min_max())
    model = cj.export.tflite(q, qv, batch[:1], via=via)
    parity = cj.export.verify(model, q, qv, batch)
    assert parity.max_lsb == 0 and parity.mismatch_fraction == 0, str(parity)
    compared = {layer.name for layer in parity.layers}
    missing = {s.name for s in q.plan(qv, batch[:1]).steps} - compared
    assert len(missing) <= 3, missing
