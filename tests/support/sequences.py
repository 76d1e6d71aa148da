"""Small networks on tokens and vectors, one for each way in which layers are tied together.

`topologies` is the neighbour with networks on images.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tests.support.topologies import IMAGE, TOKENS, param

IDS = np.random.default_rng(11).integers(0, 10, (2, 5))
MEMORY = np.random.default_rng(12).normal(size=(2, 7, 6)).astype(np.float32)


def project(x, name, heads, width):
    return nn.DenseGeneral((heads, width), name=name)(x)


def attend_by_head(query, key, value, bias=0.0):
    """Attention over tokens: all are `[B, T, H, D]`."""
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1]) + bias
    return jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(logits), value)


def attend(query, key, value):
    """The same with heads beside each other, `[B, T, H * D]`: heads then stay, not their widths."""
    y = attend_by_head(query, key, value)
    return y.reshape(*y.shape[:2], -1)


def transformer(x):
    """Vaswani et al. (2017), with norms in front: every width is cut, the residual stream's too."""
    x = nn.Dense(12, name="stem")(x)
    y = nn.MultiHeadDotProductAttention(num_heads=4, qkv_features=32, name="att")(nn.LayerNorm()(x))
    x = x + y
    x = x + nn.Dense(12, name="down")(nn.gelu(nn.Dense(24, name="up")(nn.LayerNorm()(x))))
    return nn.Dense(4, name="head")(nn.LayerNorm()(x)[:, 0])


def stem_and_post_norm(x):
    x = nn.LayerNorm()(nn.Dense(8, name="stem")(x))
    y = attend(*(project(x, name, 2, 6) for name in "qkv"))
    x = nn.LayerNorm()(x + nn.Dense(8, name="out")(y))
    x = nn.LayerNorm()(x + nn.Dense(8, name="down")(nn.relu(nn.Dense(12, name="up")(x))))
    return nn.Dense(4, name="head")(x)


def vision_transformer(x):
    """Dosovitskiy et al. (2021): patches, a class token, embeddings of positions."""
    x = nn.Conv(8, (4, 4), strides=4, padding="VALID", name="patches")(x).reshape(2, 4, 8)
    x = jnp.concatenate([jnp.broadcast_to(param("token", 1, 1, 8), (2, 1, 8)), x], axis=1)
    x = x + param("positions", 1, 5, 8)
    y = nn.MultiHeadDotProductAttention(num_heads=2, name="att")(nn.LayerNorm()(x))
    x = x + y * param("scale_1", 1, 1, 8)
    y = nn.Dense(8, name="down")(nn.gelu(nn.Dense(16, name="up")(nn.LayerNorm()(x))))
    x = x + y * param("scale_2", 1, 1, 8)
    return nn.Dense(4, name="head")(nn.LayerNorm()(x)[:, 0])


def fused_heads_first(x):
    """One kernel for queries, keys and values, as `[3, heads, width]`."""
    x = nn.Dense(8, name="stem")(x)
    q, k, v = jnp.moveaxis(nn.Dense(3 * 2 * 8, name="qkv")(x).reshape(2, 5, 3, 2, 8), 2, 0)
    return nn.Dense(4, name="head")(nn.LayerNorm()(x + nn.Dense(8, name="out")(attend(q, k, v))))


def fused_thirds(x):
    """One kernel whose thirds are split off before heads are made."""
    x = nn.Dense(8, name="stem")(x)
    thirds = jnp.split(nn.Dense(36, use_bias=False, name="qkv")(nn.LayerNorm()(x)), 3, axis=-1)
    y = attend(*(third.reshape(2, 5, 3, 4) for third in thirds))
    return nn.Dense(4, name="head")(x + nn.Dense(8, name="out")(y))


def grouped_queries(x):
    """Several queries to a key: Ainslie et al. (2023)."""
    x = nn.Dense(8, name="stem")(x)
    q = nn.DenseGeneral((2, 3, 4), name="q")(x)
    k, v = project(x, "k", 2, 4), project(x, "v", 2, 6)
    weights = nn.softmax(jnp.einsum("bqgrd,bkgd->bgrqk", q, k))
    y = jnp.einsum("bgrqk,bkgd->bqgrd", weights, v)
    return nn.Dense(4, name="head")(x + nn.DenseGeneral(8, axis=(-3, -2, -1), name="out")(y))


def repeated_keys(x):
    """Grouped queries, keys and values repeated for each of their queries, as many write it."""
    x = nn.Dense(8, name="stem")(x)
    k, v = (jnp.repeat(project(x, name, 2, 4), 3, axis=2) for name in "kv")
    y = attend(project(x, "q", 6, 4), k, v)
    return nn.Dense(4, name="head")(x + nn.Dense(8, name="out")(y))


def one_key_for_all(x):
    """Shazeer (2019): many heads ask, one answers."""
    x = nn.Dense(8, name="stem")(x)
    k, v = nn.Dense(4, name="k")(x), nn.Dense(6, name="v")(x)
    weights = nn.softmax(jnp.einsum("bqhd,bkd->bhqk", project(x, "q", 4, 4), k))
    y = jnp.einsum("bhqk,bkd->bqhd", weights, v).reshape(2, 5, -1)
    return nn.Dense(4, name="head")(x + nn.Dense(8, name="out")(y))


def cross_attention(x, memory):
    x = nn.Dense(8, name="stem")(x)
    memory = nn.gelu(nn.Dense(10, name="memory")(memory))
    y = attend(project(nn.LayerNorm()(x), "q", 2, 4), *(project(memory, n, 2, 4) for n in "kv"))
    return nn.Dense(4, name="head")(x + nn.Dense(8, name="out")(y))


def learned_queries(x):
    """A fixed number of learned vectors ask: Jaegle et al. (2021), "Perceiver"."""
    latent = jnp.broadcast_to(param("latent", 1, 3, 8), (2, 3, 8))
    y = attend(project(latent, "q", 2, 4), project(x, "k", 2, 4), project(x, "v", 2, 4))
    latent = latent + nn.Dense(8, name="out")(y)
    return nn.Dense(4, name="head")(nn.LayerNorm()(latent).mean(1))


def relative_bias(x):
    """A learned bias for each head and distance, looked up in a table: Liu et al. (2021), Swin."""
    x = nn.Dense(8, name="stem")(x)
    distances = np.arange(5)[:, None] - np.arange(5)[None] + 4
    bias = param("table", 9, 4)[distances.reshape(-1)].reshape(5, 5, 4).transpose(2, 0, 1)
    y = attend_by_head(*(project(nn.LayerNorm()(x), n, 4, 6) for n in "qkv"), bias=bias[None])
    return nn.Dense(4, name="head")(x + nn.DenseGeneral(8, axis=(-2, -1), name="out")(y))


def sloped(x):
    """A constant slope for each head: Press et al. (2022), ALiBi; causal."""
    x = nn.Dense(8, name="stem")(x)
    slopes = np.float32(2.0 ** -np.arange(1.0, 5)).reshape(4, 1, 1)
    bias = slopes * np.float32(np.arange(5)[None] - np.arange(5)[:, None])
    bias = np.where(np.tri(5, dtype=bool)[None], bias, np.float32(-1e9))
    y = attend_by_head(*(project(x, n, 4, 6) for n in "qkv"), bias=bias[None])
    return nn.Dense(4, name="head")(x + nn.DenseGeneral(8, axis=(-2, -1), name="out")(y))


def talking_heads(x):
    """Heads mixed before and after softmax: Shazeer et al. (2020)."""
    x = nn.Dense(8, name="stem")(x)
    q, k, v = (project(x, name, 4, 4) for name in "qkv")
    logits = jnp.einsum("bqhd,bkhd->bqkh", q, k)
    weights = nn.softmax(nn.Dense(6, use_bias=False, name="before")(logits), axis=2)
    weights = nn.Dense(4, use_bias=False, name="after")(weights)
    y = jnp.einsum("bqkh,bkhd->bqhd", weights, v).reshape(2, 5, -1)
    return nn.Dense(4, name="head")(x + nn.Dense(8, name="out")(y))


def language_model(ids):
    """A table looked up by tokens, positions, and the same table again as the last layer."""
    table = param("table", 10, 8)
    x = table[ids] + param("positions", 1, 5, 8)
    x = x + nn.Dense(8, name="down")(nn.gelu(nn.Dense(12, name="up")(nn.LayerNorm()(x))))
    return nn.LayerNorm()(x) @ table.T


def rotate(x):
    """Su et al. (2021): the halves of each head turned by an angle that grows with position."""
    width = x.shape[-1] // 2
    angles = np.arange(x.shape[1])[:, None] * 100.0 ** -(np.arange(width) / width)
    cos, sin = (f(angles).astype(np.float32)[None, :, None] for f in (np.cos, np.sin))
    left, right = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


def llama(ids):
    """Touvron et al. (2023): RMS norm, rotary grouped attention, SwiGLU, no biases."""
    x = param("table", 10, 8)[ids]
    y = nn.RMSNorm()(x)
    q, k = (rotate(project(y, name, heads, 8)) for name, heads in (("q", 4), ("k", 2)))
    k, v = (jnp.repeat(heads, 2, axis=2) for heads in (k, project(y, "v", 2, 6)))
    x = x + nn.Dense(8, use_bias=False, name="out")(attend(q, k, v))
    y = nn.RMSNorm()(x)
    y = nn.silu(nn.Dense(12, use_bias=False, name="gate")(y)) * nn.Dense(
        12, use_bias=False, name="up"
    )(y)
    x = x + nn.Dense(8, use_bias=False, name="down")(y)
    return nn.Dense(10, use_bias=False, name="head")(nn.RMSNorm()(x))


def normed_queries(x):
    """Queries and keys normalised over their width, with a scale: Dehghani et al. (2023)."""
    x = nn.Dense(8, name="stem")(x)
    q, k = (nn.RMSNorm(name=f"norm_{name}")(project(x, name, 2, 6)) for name in "qk")
    return nn.Dense(4, name="head")(
        x + nn.Dense(8, name="out")(attend(q, k, project(x, "v", 2, 4)))
    )


def parallel(x):
    """Attention and dense layers side by side, made by one kernel: Wang and Komatsuzaki (2021)."""
    x = nn.Dense(8, name="stem")(x)
    *parts, up = jnp.split(nn.Dense(36, name="all")(nn.LayerNorm()(x)), (8, 16, 24), axis=-1)
    y = attend(*(part.reshape(2, 5, 2, 4) for part in parts))
    y = jnp.concatenate([y, nn.gelu(up)], axis=-1)
    return nn.Dense(4, name="head")(x + nn.Dense(8, name="out")(y))


def one_layer_twice(x):
    """Lan et al. (2020), "ALBERT"."""
    x = nn.Dense(8, name="stem")(x)
    attention = nn.MultiHeadDotProductAttention(num_heads=2, name="att")
    before, up, down = nn.LayerNorm(), nn.Dense(12, name="up"), nn.Dense(8, name="down")
    for _ in range(2):
        x = x + attention(before(x))
        x = x + down(nn.gelu(up(x)))
    return nn.Dense(4, name="head")(x)


def mixer(x):
    """Dense layers over tokens and over channels in turn: Tolstikhin et al. (2021)."""
    x = nn.Dense(8, name="stem")(x)
    y = nn.LayerNorm()(x).swapaxes(1, 2)
    x = x + nn.Dense(5, name="tokens")(nn.gelu(nn.Dense(6, name="mixed")(y))).swapaxes(1, 2)
    x = x + nn.Dense(8, name="down")(nn.gelu(nn.Dense(12, name="up")(nn.LayerNorm()(x))))
    return nn.Dense(4, name="head")(x.mean(1))


def modulated(x, condition):
    """Scales and shifts made of another input: Perez et al. (2018), and Peebles and Xie (2023)."""
    x = nn.Dense(8, name="stem")(x)
    condition = nn.silu(nn.Dense(6, name="condition")(condition.mean(1, keepdims=True)))
    shift, scale, gate = jnp.split(nn.Dense(24, name="six")(condition), 3, axis=-1)
    y = nn.LayerNorm(use_bias=False, use_scale=False)(x) * (1 + scale) + shift
    return nn.Dense(4, name="head")(x + gate * nn.Dense(8, name="out")(y))


def short_convolutions(x):
    """Causal depthwise convolutions between gates, as in state-space and recurrent blocks."""
    x = nn.Dense(8, name="stem")(x)
    inner, gate = jnp.split(nn.Dense(24, name="in")(nn.RMSNorm()(x)), 2, axis=-1)
    inner = nn.silu(nn.Conv(12, (3,), feature_group_count=12, padding="CAUSAL")(inner))
    decay = nn.sigmoid(param("decay", 1, 1, 12))
    memory = jnp.cumsum(inner * decay, axis=1)
    return nn.Dense(4, name="head")(x + nn.Dense(8, name="out")(memory * nn.silu(gate)))


def tied_autoencoder(x):
    kernel = param("tied/kernel", 16, 12)
    return nn.sigmoid(x @ kernel) @ kernel.T


def two_towers(x, y):
    """Cosine similarity of two embeddings: Radford et al. (2021)."""

    def tower(x, name):
        x = nn.Dense(8, name=f"{name}_out")(nn.relu(nn.Dense(12, name=name)(x.mean(1))))
        return x / jnp.sqrt((x * x).sum(-1, keepdims=True) + 1e-6)

    return tower(x, "left") @ tower(y, "right").T


def sinusoidal(x):
    """Constants along the channels in front of a norm: Vaswani et al. (2017), section 3.5."""
    angles = np.arange(5.0)[:, None] / 100.0 ** (np.arange(4) / 4)
    table = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)
    x = nn.Dense(8, name="stem")(x) + table[None]
    x = x + nn.Dense(8, name="down")(nn.gelu(nn.Dense(12, name="up")(nn.LayerNorm()(x))))
    return nn.Dense(4, name="head")(x)


def bag_of_words(ids):
    """A lookup written as a product with one-hot rows."""
    x = jax.nn.one_hot(ids, 10) @ param("table", 10, 8)
    return nn.Dense(4, name="head")(nn.tanh(nn.Dense(6, name="mid")(x.mean(1))))


def windows(x):
    """Attention inside windows of an image, then patches merged: Liu et al. (2021), Swin."""
    x = nn.Conv(8, (2, 2), strides=2, name="patches")(x)
    y = x.reshape(2, 2, 2, 2, 2, 8).transpose(0, 1, 3, 2, 4, 5).reshape(8, 4, 8)
    y = nn.MultiHeadDotProductAttention(num_heads=2, name="att")(y).reshape(2, 2, 2, 2, 2, 8)
    x = nn.LayerNorm()(x + y.transpose(0, 1, 3, 2, 4, 5).reshape(2, 4, 4, 8))
    x = jnp.concatenate([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], axis=-1)
    return nn.Dense(4, name="head")(nn.Dense(12, name="merge")(nn.LayerNorm()(x)))


def gated_by_tokens(x):
    """Half of the channels, mixed along the tokens, gates the other half: Liu et al. (2021)."""
    x = nn.Dense(8, name="stem")(x)
    left, right = jnp.split(nn.gelu(nn.Dense(16, name="up")(x)), 2, axis=-1)
    right = nn.Dense(5, name="mix")(nn.LayerNorm()(right).swapaxes(1, 2)).swapaxes(1, 2)
    return nn.Dense(4, name="head")(x + nn.Dense(8, name="down")(left * right))


def adapter(x):
    """A product of two narrow kernels beside a wide one: Hu et al. (2022), LoRA."""
    y = nn.Dense(12, name="wide")(x) + nn.Dense(12, use_bias=False)(nn.Dense(3, name="low")(x))
    return nn.Dense(4, name="head")(nn.LayerNorm(use_bias=False)(nn.relu(y)))


SEQUENCES = {
    transformer: (
        (TOKENS,),
        {
            "stem": "6/12",
            "att/query": "2/4",
            "att/query/kernel#1": "4/8",
            "att/value": "4/8",
            "up": "12/24",
        },
    ),
    stem_and_post_norm: ((TOKENS,), {"stem": "4/8", "q": "3/6", "v": "3/6", "up": "6/12"}),
    vision_transformer: (
        (IMAGE,),
        {
            "patches": "4/8",
            "att/query": "1/2",
            "att/query/kernel#1": "2/4",
            "att/value": "2/4",
            "up": "8/16",
        },
    ),
    fused_heads_first: ((TOKENS,), {"stem": "4/8", "qkv": "4/8"}),
    fused_thirds: ((TOKENS,), {"stem": "4/8", "qkv": "5/8"}),
    grouped_queries: (
        (TOKENS,),
        {"stem": "4/8", "q": "1/2", "q/kernel#1": "2/3", "q/kernel#2": "2/4", "v": "3/6"},
    ),
    repeated_keys: ((TOKENS,), {"stem": "4/8", "k": "2/4", "q": "2/3"}),
    one_key_for_all: ((TOKENS,), {"stem": "4/8", "k": "2/4", "v": "3/6"}),
    cross_attention: ((TOKENS, MEMORY), {"stem": "4/8", "memory": "5/10", "q": "2/4", "v": "2/4"}),
    learned_queries: ((TOKENS,), {"k": "2/4", "v": "2/4", "out": "4/8"}),
    relative_bias: ((TOKENS,), {"stem": "4/8", "q": "2/4", "q/kernel#1": "3/6", "v": "3/6"}),
    sloped: ((TOKENS,), {"stem": "4/8", "q": "2/4", "q/kernel#1": "3/6", "v": "3/6"}),
    talking_heads: (
        (TOKENS,),
        {"stem": "4/8", "q": "2/4", "q/kernel#1": "2/4", "v": "2/4", "before": "3/6"},
    ),
    language_model: ((IDS,), {"up": "6/12", "down": "4/8"}),
    llama: ((IDS,), {"q": "2/4", "v": "3/6", "out": "4/8", "gate": "6/12"}),
    normed_queries: ((TOKENS,), {"stem": "4/8", "q": "3/6", "v": "2/4"}),
    parallel: ((TOKENS,), {"stem": "4/8", "all": "10/20"}),
    one_layer_twice: (
        (TOKENS,),
        {
            "stem": "4/8",
            "att/query": "1/2",
            "att/query/kernel#1": "2/4",
            "att/value": "2/4",
            "up": "6/12",
        },
    ),
    mixer: ((TOKENS,), {"stem": "4/8", "mixed": "3/6", "up": "6/12"}),
    modulated: ((TOKENS, MEMORY), {"stem": "4/8", "condition": "3/6"}),
    short_convolutions: ((TOKENS,), {"stem": "4/8", "in": "6/12"}),
    tied_autoencoder: ((TOKENS,), {"tied": "6/12"}),
    two_towers: ((TOKENS, MEMORY), {"left": "6/12", "left_out": "4/8", "right": "6/12"}),
    sinusoidal: ((TOKENS,), {"stem": "4/8", "up": "6/12"}),
    bag_of_words: ((IDS,), {"table": "4/8", "mid": "3/6"}),
    windows: (
        (IMAGE,),
        {
            "patches": "4/8",
            "att/query": "1/2",
            "att/query/kernel#1": "2/4",
            "att/value": "2/4",
            "merge": "6/12",
        },
    ),
    gated_by_tokens: ((TOKENS,), {"stem": "4/8", "up": "4/8"}),
    adapter: ((TOKENS,), {"wide": "6/12", "low": "2/3"}),
}
