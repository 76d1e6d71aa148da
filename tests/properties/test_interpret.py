"""Without hooks, `interpret` is the function, to the bit, on networks drawn at random."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from compressjax.graph import interpret, trace

SHAPE = (2, 6, 6, 4)


@jax.custom_jvp
def leaky(x):
    return jnp.where(x > 0, x, 0.1 * x)


leaky.defjvp(lambda p, t: (leaky(*p), jnp.where(p[0] > 0, 1.0, 0.3) * t[0]))


@jax.custom_vjp
def clipped_gradient(x):
    return x * 1.5


clipped_gradient.defvjp(lambda x: (x * 1.5, None), lambda _, g: (jnp.clip(g, -0.5, 0.5),))


def norm(train):
    """Batch norm, also by the statistics of the batch."""
    return nn.BatchNorm(use_running_average=not train, momentum=0.9)


def attention(x):
    tokens = x.reshape(x.shape[0], -1, x.shape[-1])
    q, k = nn.Dense(4)(tokens), nn.Dense(4)(tokens)
    weights = jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", q, k))
    return jnp.einsum("bqk,bkd->bqd", weights, tokens).reshape(x.shape)


def halves(x):
    left, right = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([right, left * 2.0, right - left], axis=-1)


def shuffle(x):
    b, h, w, c = x.shape
    return x.reshape(b, h, w, 2, c // 2).transpose(0, 1, 2, 4, 3).reshape(b, h, w, c)


def squeeze_excite(x):
    gate = nn.sigmoid(nn.Dense(x.shape[-1])(x.mean((1, 2))))
    return x * gate[:, None, None]


def rolled(x):
    return lax.scan(lambda carry, _: (jnp.tanh(carry) * 1.1, None), x, None, length=2)[0]


# Each keeps `[B, H, W, C]` with an even number of channels.
PIECES = {
    "conv": lambda x, train: nn.Conv(6, (3, 3))(x),
    "pointwise": lambda x, train: nn.Conv(8, (1, 1), use_bias=False)(x),
    "strided": lambda x, train: nn.Conv(4, (3, 3), strides=2)(x),
    "dilated": lambda x, train: nn.Conv(4, (3, 3), kernel_dilation=2)(x),
    "grouped": lambda x, train: nn.Conv(4, (3, 3), feature_group_count=2)(x),
    "depthwise": lambda x, train: nn.Conv(x.shape[-1], (3, 3), feature_group_count=x.shape[-1])(x),
    "transposed": lambda x, train: nn.ConvTranspose(4, (2, 2), strides=(2, 2))(x)[:, :6, :6],
    "dense": lambda x, train: nn.Dense(4)(x),
    "norm": lambda x, train: norm(train)(x),
    "layer_norm": lambda x, train: nn.LayerNorm()(x),
    "relu": lambda x, train: nn.relu(x),
    "relu6": lambda x, train: nn.relu6(x),
    "silu": lambda x, train: nn.silu(x),
    "gelu": lambda x, train: nn.gelu(x),
    "softplus": lambda x, train: nn.softplus(x),
    "hard_swish": lambda x, train: nn.hard_swish(x),
    "softmax": lambda x, train: nn.softmax(x),
    "sine": lambda x, train: jnp.sin(x) / (1.0 + jnp.abs(x)),
    "max_pool": lambda x, train: nn.max_pool(x, (2, 2), padding="SAME"),
    "avg_pool": lambda x, train: nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False),
    "centered": lambda x, train: x - x.mean((1, 2), keepdims=True),
    "residual": lambda x, train: x + nn.Conv(x.shape[-1], (3, 3))(nn.relu(x)),
    "halves": lambda x, train: halves(x),
    "shuffle": lambda x, train: shuffle(x),
    "flip": lambda x, train: jnp.transpose(x, (0, 2, 1, 3))[:, ::-1],
    "pad": lambda x, train: jnp.pad(x, ((0, 0), (1, 0), (0, 1), (0, 0)))[:, :6, :6],
    "broadcast": lambda x, train: x * jnp.linspace(0.5, 1.5, x.shape[-1])[None, None, None],
    "excite": lambda x, train: squeeze_excite(x),
    "attention": lambda x, train: attention(x),
    "nested_jit": lambda x, train: jax.jit(lambda y: jax.jit(jnp.cos)(y) * y)(x),
    "remat": lambda x, train: jax.checkpoint(lambda y: jnp.tanh(y * 2.0) * y)(x),
    "custom_jvp": lambda x, train: leaky(x),
    "custom_vjp": lambda x, train: clipped_gradient(x),
    "scan": lambda x, train: rolled(x),
}


class Network(nn.Module):
    pieces: tuple[str, ...]
    train: bool

    @nn.compact
    def __call__(self, x):
        for piece in self.pieces:
            x = PIECES[piece](x, self.train)
        return nn.Dense(3)(x.mean((1, 2)))


def check(pieces, train, transform):
    model = Network(tuple(pieces), train)
    x = np.random.default_rng(0).normal(size=SHAPE).astype("float32")
    variables = jax.jit(model.init)(jax.random.key(1), x)

    def function(v, x):
        y, new = model.apply(v, x, mutable=["batch_stats"])
        return {"y": y, "statistics": new}

    def again(v, x):
        return interpret(trace(function, v, x), v, x)

    if transform == "grad":
        target = np.random.default_rng(2).normal(size=(2, 3)).astype("float32")

        def transformed(f):
            return jax.grad(lambda v, x: (f(v, x)["y"] * target).sum(), argnums=(0, 1))
    elif transform == "vmap":
        x = np.stack([x, 0.5 * x])

        def transformed(f):
            return jax.vmap(f, (None, 0))
    else:

        def transformed(f):
            return f

    found = jax.jit(transformed(again))(variables, x)
    expected = jax.jit(transformed(function))(variables, x)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


pieces = st.lists(st.sampled_from(sorted(PIECES)), min_size=1, max_size=4)


@settings(max_examples=14)
@given(pieces, st.booleans(), st.sampled_from(["jit", "grad", "vmap"]))
def test_interpreting_a_random_network_is_running_it(pieces, train, transform):
    check(pieces, train, transform)


def test_every_piece_in_one_network():
    check(sorted(PIECES), True, "jit")
