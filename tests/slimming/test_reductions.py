"""Sums, maxima and products over channels: a cut is exact there, or the width stays and says why.

These are the places where a channel that is gone could differ from a channel of zeros: `exp(0)` is
one, and a maximum over channels sees their zeros.
"""

import flax.linen as nn
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from compressjax import slimming
from tests.support.reference import check

X = np.random.default_rng(5).normal(size=(2, 4, 3)).astype(np.float32)
SHAPES = {"a": (3, 8), "b": (3, 8), "bias": (8,), "v": (3, 6), "out": (8, 2), "of_v": (6, 2)}
PLACES = np.random.default_rng(6).normal(size=(1, 1, 8)).astype(np.float32)


def drawn(*names):
    rng = np.random.default_rng(0)
    variables = {n: rng.normal(size=s).astype(np.float32) for n, s in SHAPES.items()}
    return {name: variables[name] for name in names or SHAPES}


def linear_attention(kernel):
    """Katharopoulos et al., "Transformers are RNNs" (2020), equation 5."""

    def fn(v, x):
        q, k, u = kernel(x @ v["a"] + v["bias"][None, None]), kernel(x @ v["b"]), x @ v["v"]
        total = jnp.einsum("btc,bc->bt", q, k.sum(1))[..., None]
        return jnp.einsum("bqc,bkc,bkd->bqd", q, k, u) / (total + 1e-3) @ v["of_v"]

    return fn


def over(reduce):
    """`out` reads channels that a reduction over them has been through."""
    return lambda v, x: reduce(x @ v["a"] + v["bias"][None, None]) @ v["out"]


def unit(h):
    return h / jnp.sqrt((h * h).sum(-1, keepdims=True) + 1e-6)


def cosine_attention(v, x):
    q, k, u = unit(x @ v["a"]), unit(x @ v["b"]), x @ v["v"]
    return nn.softmax(10 * q @ k.swapaxes(1, 2)) @ u @ v["of_v"]


def distances(v, x):
    """Attention by distance: two groups that meet in a difference."""
    q, k = x @ v["a"] + v["bias"][None, None], x @ v["b"]
    far = ((q[:, :, None] - k[:, None]) ** 2).sum(-1)
    return nn.softmax(-far) @ x @ v["v"] @ v["of_v"]


def polynomial(v, x):
    return (1 + x @ v["a"] @ (x @ v["b"]).swapaxes(1, 2)) ** 3 @ x @ v["v"] @ v["of_v"]


def sum_of_pairs(v, x):
    """Both axes that are summed have channels, neither zero where it is cut: the longer one is."""
    h, g = jnp.exp(x @ v["a"]), jnp.exp(x @ v["v"])
    return (h[..., None] * g[..., None, :]).sum((2, 3))[..., None] * (x @ v["b"]) @ v["out"]


def outer_product(v, x):
    """Bilinear pooling: of two axes that become one, the longer is cut."""
    pooled = jnp.einsum("btc,btd->bcd", x @ v["a"], x @ v["v"]).reshape(2, -1)
    return pooled @ jnp.tile(v["out"], (6, 1)).reshape(6, 8, 2).swapaxes(0, 1).reshape(48, 2)


def waves():
    """Sines and cosines, of the place and of the channel."""
    angles = jnp.arange(4.0)[:, None] / jnp.arange(1.0, 5.0)[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(1, 4, 8)


EXACT = {
    "linear attention with relu": (linear_attention(nn.relu), {"a": 4, "v": 3}),
    "cosine attention": (cosine_attention, {"a": 4, "v": 3}),
    "distances": (distances, {"a": 4, "v": 3}),
    "a polynomial of a product": (polynomial, {"a": 4, "v": 3}),
    "an outer product": (outer_product, {"a": 4}),
    "length one": (over(unit), {"a": 4}),
    "a variance": (over(lambda h: h / (1 + h.var(-1, keepdims=True))), {"a": 4}),
    "a standard deviation": (over(lambda h: h * h.std(-1, keepdims=True)), {"a": 4}),
    "standardized": (over(jax.nn.standardize), {"a": 4}),
    "standardized twice": (
        over(lambda h: jax.nn.standardize(nn.softplus(jax.nn.standardize(h)))), {"a": 4}),
    "divided by the sum": (over(lambda h: h / (9 + h.sum(-1, keepdims=True))), {"a": 4}),
    "shares that are not zero": (
        over(lambda h: nn.softplus(h) / nn.softplus(h).sum(-1, keepdims=True)), {"a": 4}),
    "softmax as it is written": (
        over(lambda h: jnp.exp(h) / jnp.exp(h).sum(-1, keepdims=True)), {"a": 4}),
    "log of a mean": (
        over(lambda h: h - jnp.log(jnp.exp(h).mean(-1, keepdims=True))), {"a": 4}),
    "positions before a norm": (
        over(lambda h: jax.nn.standardize(h + np.sin(PLACES))), {"a": 4}),
    "positions computed on the way": (
        over(lambda h: jax.nn.standardize(h + waves())), {"a": 4}),
    "positions and what is alike": (
        over(lambda h: jax.nn.standardize(nn.softplus(h + waves()) + nn.softplus(h))), {"a": 4}),
    "positions of flattened tokens": (
        over(lambda h: jax.nn.standardize((h + waves()).reshape(8, 8)).reshape(2, 4, 8)), {"a": 4}),
    "positions and a token in front": (
        over(lambda h: jax.nn.standardize(
            jnp.concatenate([h[:, :1] * 2, h + waves()], axis=1))[:, 1:]), {"a": 4}),
    "positions and a mean over tokens": (
        over(lambda h: h + jax.nn.standardize((h + waves()).mean(1, keepdims=True))), {"a": 4}),
    "mixed over tokens": (
        over(lambda h: jax.nn.standardize(
            (nn.softplus(h).swapaxes(1, 2) @ X[0, :, :1]).swapaxes(1, 2) + h)), {"a": 4}),
    "a sum over the pairs of two groups": (sum_of_pairs, {"a": 4, "b": 4}),
    "the same for all channels": (
        over(lambda h: jax.nn.standardize(h + X[..., :1])), {"a": 4}),
}  # fmt: skip

STAYS = {
    "linear attention with elu": (
        linear_attention(lambda h: nn.elu(h) + 1), {"v": 3}, "neither factor would be zero"),
    "softmax": (over(nn.softmax), {}, "reduce_max goes over the channels"),
    "log of a softmax": (over(nn.log_softmax), {}, "reduce_max goes over the channels"),
    "logsumexp": (
        over(lambda h: h - jax.nn.logsumexp(h, axis=-1, keepdims=True)), {}, "reduce_max goes"),
    "the largest": (over(lambda h: h / (1 + jnp.abs(h).max(-1, keepdims=True))), {}, "reduce_max"),
    "a product": (over(lambda h: h * h.prod(-1, keepdims=True)), {}, "reduce_prod goes over"),
    "the place of the largest": (
        over(lambda h: h * h.argmax(-1)[..., None].astype(h.dtype)), {}, "argmax goes over"),
    "a median": (
        over(lambda h: h - jnp.median(h, -1, keepdims=True)), {}, "goes over the channels"),
    "zeros and ones in one sum": (
        over(lambda h: h * jnp.concatenate([h, jnp.exp(h)], -1).sum(-1, keepdims=True)), {},
        "reduce_sum goes over"),
    "a local norm": (
        over(lambda h: h / (1 + jax.lax.reduce_window(
            h * h, 0.0, jax.lax.add, (1, 1, 3), (1, 1, 1), "SAME"))), {}, "a window goes over"),
    "a convolution over channels": (
        over(lambda h: h * nn.sigmoid(jax.lax.conv_general_dilated(
            h.mean(1)[:, None], np.ones((1, 1, 3), np.float32), (1,), "SAME"))), {},
        "a window goes over"),
    "a fixed matrix": (
        over(lambda h: nn.sigmoid(h) @ np.ones((8, 8), np.float32)), {},
        "neither factor would be zero"),
    "products of what is not zero": (
        lambda v, x: (lambda h: h @ h.swapaxes(1, 2) @ x @ v["v"] @ v["of_v"])(
            nn.softplus(x @ v["a"])), {"v": 3}, "neither factor would be zero"),
}  # fmt: skip


def kept(shrunk):
    return {name: new for name, (_, new) in shrunk.report.groups.items()}


@pytest.mark.parametrize("name", EXACT)
def test_what_is_cut_counts_as_zeros(name):
    fn, expected = EXACT[name]
    assert kept(check(fn, drawn(), X)) == expected


@pytest.mark.parametrize("name", STAYS)
def test_what_zeros_would_change_stays_and_is_named(name):
    fn, expected, why = STAYS[name]
    variables = drawn()
    shrunk = slimming.shrink(fn, variables, X, round_to=1)
    assert kept(shrunk) == expected
    assert why in shrunk.report.frozen["a[1]"]
    if expected:
        check(fn, variables, X)


STEPS = {
    "exp": jnp.exp,
    "softplus": nn.softplus,
    "relu": nn.relu,
    "one more": lambda h: h + 1,
    "centred": lambda h: h - h.mean(-1, keepdims=True),
    "standardized": jax.nn.standardize,
    "unit": unit,
    "by its sum": lambda h: h / (1 + jnp.abs(h).sum(-1, keepdims=True)),
    "by its largest": lambda h: h / (1 + jnp.abs(h).max(-1, keepdims=True)),
    "softmax": nn.softmax,
    "by place": lambda h: h * PLACES,
    "shifted by place": lambda h: h + PLACES,
    "attended": lambda h: nn.softmax(h @ h.swapaxes(1, 2)) @ h,
    "its squares' mean": lambda h: h + (h**2).mean((1, 2), keepdims=True),
    "halves": lambda h: jnp.concatenate([h[..., :4] * h[..., 4:], h[..., 4:]], axis=-1),
    "turned": lambda h: (h.swapaxes(1, 2) * 2).swapaxes(1, 2),
    "in groups": lambda h: jax.nn.standardize(h.reshape(2, 4, 2, 4)).reshape(2, 4, 8),
    "masked": lambda h: jnp.where(h > 0.2, h, 0.1),
}


@hypothesis.settings(max_examples=15)
@hypothesis.given(steps=st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=4))
def test_reductions_drawn_at_random(steps):
    def fn(v, x):
        h = x @ v["a"] + v["bias"].reshape(1, 1, -1)
        for step in steps:
            h = STEPS[step](h)
        return h @ v["out"]

    variables = drawn("a", "bias", "out")
    if slimming.find_groups(fn, variables, X):
        check(fn, variables, X)
    else:
        why = slimming.shrink(fn, variables, X).report.frozen["a[1]"]
        assert "goes over the channels" in why or "neither factor" in why
