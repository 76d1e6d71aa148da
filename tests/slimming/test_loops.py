"""Cutting channels inside scans equals zeroing every variable at its cut positions."""

import json

import flax.linen as nn
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from jax import lax

import compressjax as cj
from compressjax import slimming, tree
from tests.support.reference import draw, widths

IMAGE = np.random.default_rng(7).normal(size=(2, 6, 6, 3)).astype(np.float32)
TOKENS = np.random.default_rng(8).normal(size=(2, 5, 16)).astype(np.float32)


def zero_where_cut(shrunk, variables):
    """What is gone is found by cutting variables whose entries are their own positions."""
    whole = tree.paths(variables)
    numbered = tree.map_with_path(lambda _, x: np.arange(x.size).reshape(x.shape), variables)
    small = tree.paths(shrunk.cut(numbered))

    def zero(path, x):
        mask = np.zeros(whole[path].size, bool)
        mask[small[path].reshape(-1)] = True
        return np.where(mask.reshape(x.shape), x, 0).astype(x.dtype)

    return tree.map_with_path(zero, variables)


def check(fn, variables, *args, rtol=1e-5, **options):
    """Shrinks, compares with the whole function, and gives the result back."""
    shrunk = slimming.shrink(fn, variables, *args, **{"round_to": 1, **options})
    masked = zero_where_cut(shrunk, variables)
    run = jax.jit(fn)
    expected, whole = (jax.tree.leaves(run(v, *args)) for v in (masked, variables))
    found = jax.tree.leaves(jax.jit(shrunk.apply)(shrunk.variables, *args))
    for x, y, z in zip(found, expected, whole, strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * np.abs(y).max())
        assert np.abs(y - z).max() > 1e-3 * np.abs(z).max(), "the cut changed nothing"
    before, after = cj.trace(fn, variables, *args), cj.trace(shrunk.apply, shrunk.variables, *args)
    assert after.macs < before.macs
    return shrunk


def linen(module, x):
    return module.apply, draw(jax.eval_shape(module.init, jax.random.key(0), x))


def stacked(block, length=3, **options):
    axes = {"params": 0, "batch_stats": 0}
    return nn.scan(block, variable_axes=axes, split_rngs={"params": True}, length=length, **options)


class Attention(nn.Module):
    """A pre-norm transformer block."""

    @nn.compact
    def __call__(self, x, _):
        x = x + nn.MultiHeadDotProductAttention(4, qkv_features=16)(nn.LayerNorm()(x))
        return x + nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(24)(nn.LayerNorm()(x)))), None


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, x):
        x, _ = stacked(nn.remat(Attention), unroll=2)(name="blocks")(nn.Dense(16)(x), None)
        return nn.Dense(4)(nn.LayerNorm()(x).mean(1))


class Gated(nn.Module):
    """A block with fused queries, keys and values, and a gated unit; it puts out its mean."""

    @nn.compact
    def __call__(self, x, _):
        width = x.shape[-1]
        x = nn.RMSNorm()(x)
        fused = nn.Dense(3 * width)(x).reshape(*x.shape[:2], 4, -1)
        query, key, value = jnp.split(fused, 3, axis=-1)
        weights = nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", query, key))
        x = x + nn.DenseGeneral(width, (-2, -1))(jnp.einsum("bhqk,bkhd->bqhd", weights, value))
        return x + nn.Dense(width)(nn.glu(nn.Dense(40)(nn.RMSNorm()(x)))), x.mean(-1)


class Decoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        x, means = stacked(Gated, reverse=True)(name="blocks")(nn.Dense(16)(x), None)
        return nn.Dense(4)(x.mean(1)), means


class Residual(nn.Module):
    hidden: int
    train: bool

    @nn.compact
    def __call__(self, x, _):
        norm = lambda: nn.BatchNorm(use_running_average=not self.train, momentum=0.9)  # noqa: E731
        y = nn.relu(norm()(nn.Conv(self.hidden, (3, 3), use_bias=False)(x)))
        return nn.relu(x + norm()(nn.Conv(x.shape[-1], (3, 3))(y))), None


class Convolutional(nn.Module):
    width: int = 8
    hidden: int = 12
    train: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (3, 3))(x)
        x, _ = stacked(Residual)(self.hidden, self.train, name="blocks")(x, None)
        return nn.Dense(4)(x.mean((1, 2)))


class Recurrent(nn.Module):
    cell: type
    widths: tuple[int, int] = (12, 8)

    @nn.compact
    def __call__(self, x):
        x = nn.RNN(self.cell(self.widths[0], name="first"))(x)
        x = nn.RNN(self.cell(self.widths[1], name="second"), reverse=True, keep_order=True)(x)
        return nn.Dense(4)(x[:, 0])


def in_haiku():
    hk = pytest.importorskip("haiku")

    def layer(x):
        return x + hk.Linear(8)(jax.nn.relu(hk.Linear(12)(hk.LayerNorm(-1, True, True)(x))))

    def network(x):
        core = hk.LSTM(10)
        x = hk.experimental.layer_stack(3)(layer)(hk.Linear(8)(x))
        x, _ = hk.dynamic_unroll(core, x, core.initial_state(5))
        return hk.Linear(3)(x[-1])

    init, apply = hk.without_apply_rng(hk.transform(network))
    return apply, draw(jax.eval_shape(init, jax.random.key(0), TOKENS))


def in_equinox():
    eqx = pytest.importorskip("equinox")
    make = eqx.filter_vmap(lambda key: eqx.nn.MLP(8, 8, 12, 1, key=key))
    model = eqx.filter_eval_shape(make, jax.ShapeDtypeStruct((3, 2), jnp.uint32))
    arrays, rest = eqx.partition(model, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))

    def fn(v, x):
        layer = lambda h, p: (h + jax.vmap(eqx.combine(p, rest))(h), None)  # noqa: E731
        return lax.scan(layer, x[0] @ v["a"], v["layers"])[0] @ v["b"]

    shapes = {"a": np.empty((16, 8)), "layers": arrays, "b": np.empty((8, 3))}
    return fn, draw(shapes)


def in_nnx():
    class Block(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.LayerNorm(8, rngs=rngs)
            self.up = nnx.Linear(8, 12, rngs=rngs)
            self.down = nnx.Linear(12, 8, rngs=rngs)

        def __call__(self, x):
            return x + self.down(jax.nn.relu(self.up(self.norm(x))))

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(16, 8, rngs=rngs)
            self.blocks = nnx.split_rngs(splits=3)(nnx.vmap(Block))(rngs)
            self.last = nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x):
            layer = nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
            return self.last(layer(self.first(x), self.blocks))

    fn, variables = cj.from_nnx(nnx.eval_shape(lambda: Network(nnx.Rngs(0))))
    return fn, draw(variables)


NETWORKS = {
    "transformer": (lambda: linen(Transformer(), TOKENS), TOKENS, {
        "Dense_0": "8/16",
        "blocks/MultiHeadDotProductAttention_0/query": "2/4",  # heads
        "blocks/MultiHeadDotProductAttention_0/query/kernel#1": "2/4",  # features of each
        "blocks/MultiHeadDotProductAttention_0/value": "2/4",
        "blocks/Dense_1": "12/24",
    }),
    "decoder": (lambda: linen(Decoder(), TOKENS), TOKENS, {
        "Dense_0": "8/16",
        "blocks/Dense_0": "5/8",  # of queries and keys a half, but some of each third
        "blocks/Dense_2": "10/20",
    }),
    "convolutions": (lambda: linen(Convolutional(), IMAGE), IMAGE, {
        "Conv_0": "4/8", "blocks/Conv_0": "6/12",
    }),
    "GRU": (lambda: linen(Recurrent(nn.GRUCell), TOKENS), TOKENS, {
        "first/ir": "6/12", "second/ir": "4/8",
    }),
    "LSTM": (lambda: linen(Recurrent(nn.OptimizedLSTMCell), TOKENS), TOKENS, {
        "first/hi": "6/12", "second/hi": "4/8",
    }),
    "haiku": (in_haiku, TOKENS, {
        "linear/w": "4/8", "__layer_stack_no_per_layer/linear_1/w": "6/12",
        "lstm/linear/w": "5/10",
    }),
    "equinox": (in_equinox, TOKENS, {"a": "4/8", "layers/layers/0/weight": "6/12"}),
    "nnx": (in_nnx, TOKENS, {"first": "4/8", "blocks/up": "6/12"}),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_the_network_with_zeros(name):
    make, x, expected = NETWORKS[name]
    fn, variables = make()
    assert widths(check(fn, variables, x)) == expected


def elman(v, x):
    def step(h, x):
        h = jnp.tanh(h @ v["w"] + x @ v["a"] + v["bias"])
        return h, h

    start = jnp.zeros((5, 8), x.dtype)
    return lax.scan(step, start, x)[1].mean(0) @ v["b"]


def two_states(v, x):
    def step(states, w):
        left, right = states
        return (right, jnp.cos(left @ w) * right / (1 + right.mean() ** 2)), None

    left, right = lax.scan(step, (x[0] @ v["a"], x[1] @ v["a"]), v["stack"])[0]
    return (left + right) @ v["b"]


def in_chunks(v, x):
    layer = lambda h, w: (jnp.sin(h @ w) + v["bias"], h.sum(-1))  # noqa: E731
    chunk = lambda h, w: lax.scan(layer, h, w, reverse=True)  # noqa: E731
    h, sums = lax.scan(chunk, x[0] @ v["a"], v["stack"].reshape(2, 2, 8, 8))
    return h @ v["b"], sums


def same_layer(v, x):
    """A state that starts as zeros, and is no longer zero after a step."""

    def layer(i, h):
        return jax.nn.sigmoid(h @ v["w"]) * (i + 1) + x[0] @ v["a"]

    return lax.fori_loop(0, 3, layer, jnp.zeros((5, 8), x.dtype)) @ v["b"]


def one_by_one(v, x):
    return lax.map(lambda row: nn.softplus(row @ v["a"]) @ v["w"], x) @ v["b"]


def twice(v, x):
    """The same layers up and down, with what was collected on the way up."""
    layer = lambda h, w: (jnp.tanh(h @ w), h)  # noqa: E731
    h, ups = lax.scan(layer, x[0] @ v["a"], v["stack"])
    back = lambda h, s: (jnp.tanh(h @ s[0]) + s[1], None)  # noqa: E731
    return lax.scan(back, h, (v["stack"], ups), reverse=True)[0] @ v["b"]


SHAPES = {"a": (16, 8), "w": (8, 8), "stack": (4, 8, 8), "bias": (1, 8), "b": (8, 3)}
USES = {
    elman: "a w bias b",
    two_states: "a stack b",
    in_chunks: "a stack bias b",
    same_layer: "a w b",
    one_by_one: "a w b",
    twice: "a stack b",
}


def drawn(fn, dtype, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {name: SHAPES[name] for name in USES[fn].split()}
    return {n: (rng.normal(size=s) / np.sqrt(s[-2])).astype(dtype) for n, s in shapes.items()}


@pytest.mark.parametrize("fn", USES, ids=lambda fn: fn.__name__)
def test_equals_the_loop_with_zeros(fn):
    with jax.enable_x64(True):
        found = check(fn, drawn(fn, np.float64), TOKENS.astype(np.float64), rtol=1e-12)
    assert {len(kept) for kept in found.kept.values()} == {4}
    assert found.variables["a"].dtype == np.float64


@settings(max_examples=4, deadline=None)
@given(
    width=st.integers(2, 5),
    layers=st.integers(1, 3),
    residual=st.booleans(),
    reverse=st.booleans(),
    from_zero=st.booleans(),
    activation=st.sampled_from([jnp.tanh, jax.nn.sigmoid, jnp.cos]),
    normed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_stack_equals_itself_with_zeros(
    width, layers, residual, reverse, from_zero, activation, normed, seed
):
    rng = np.random.default_rng(seed)
    shapes = {"a": (16, width), "w": (layers, width, 6), "u": (layers, 6, width), "b": (width, 3)}
    variables = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}

    def fn(v, x):
        def layer(h, p):
            y = (h - h.mean(-1, keepdims=True)) / (1 + h.std(-1, keepdims=True)) if normed else h
            y = activation(y @ p[0]) @ p[1]
            return (h + y if residual else activation(y) + x @ v["a"]), h.sum(-1)

        start = jnp.zeros((5, width)) if from_zero else x @ v["a"]
        h, sums = lax.scan(layer, start, (v["w"], v["u"]), reverse=reverse)
        return h @ v["b"] + x[:, :3], sums

    shrunk = slimming.shrink(fn, variables, TOKENS[0], round_to=1)
    masked = zero_where_cut(shrunk, variables)
    for x, y in zip(
        jax.jit(shrunk.apply)(shrunk.variables, TOKENS[0]),
        jax.jit(fn)(masked, TOKENS[0]),
        strict=True,
    ):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5 * (1 + np.abs(y).max()))
    assert len(shrunk.kept["w"]) == 3


def test_a_smaller_module_takes_the_variables():
    """Networks that divide by no width are what a module of the smaller widths is."""
    for whole, small, x in (
        (Convolutional(), Convolutional(4, 6), IMAGE),
        (Recurrent(nn.MGUCell), Recurrent(nn.MGUCell, (6, 4)), TOKENS),
    ):
        fn, variables = linen(whole, x)
        shrunk = slimming.shrink(fn, variables, x, round_to=1)
        np.testing.assert_allclose(
            jax.jit(shrunk.apply)(shrunk.variables, x),
            jax.jit(small.apply)(shrunk.variables, x),
            rtol=1e-5,
            atol=1e-6,
        )
        macs = cj.trace(shrunk.apply, shrunk.variables, x).macs
        assert macs == cj.trace(small.apply, shrunk.variables, x).macs


def test_training_mode_gradients_and_vmap():
    fn, variables = linen(Convolutional(), IMAGE)
    shrunk = slimming.shrink(fn, variables, IMAGE, round_to=1)
    masked = zero_where_cut(shrunk, variables)
    train = lambda v, x: Convolutional(train=True).apply(v, x, mutable=["batch_stats"])  # noqa: E731

    def step(apply, v):
        def loss(params):
            y, state = apply({**v, "params": params}, IMAGE)
            return jnp.sum(y**2), state["batch_stats"]

        (value, stats), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(v["params"])
        return value, {"params": gradients, "batch_stats": stats}

    value, found = step(shrunk.transform(train), shrunk.variables)
    whole, expected = step(train, masked)
    np.testing.assert_allclose(value, whole, rtol=1e-4)
    expected = tree.paths(shrunk.cut(expected))
    scale = max(np.abs(leaf).max() for leaf in expected.values())
    for path, leaf in tree.paths(found).items():
        np.testing.assert_allclose(leaf, expected[path], rtol=1e-3, atol=1e-5 * scale, err_msg=path)
    one = jax.jit(jax.vmap(lambda x: shrunk.apply(shrunk.variables, x[None])[0]))(IMAGE)
    np.testing.assert_allclose(one, jax.jit(fn)(masked, IMAGE), rtol=1e-4, atol=1e-5)


def test_shrinking_again_and_kept():
    variables = drawn(in_chunks, np.float32)
    once = slimming.shrink(in_chunks, variables, TOKENS, ratio=0.25, round_to=1)
    twice = check(once.apply, once.variables, TOKENS, ratio=0.5)
    assert widths(twice) == {"a": "3/6"}
    fresh = drawn(in_chunks, np.float32, seed=1)
    again = slimming.shrink(in_chunks, fresh, TOKENS, kept=json.loads(json.dumps(once.kept)))
    assert again.kept == once.kept
    stayed = once.kept["a"]
    np.testing.assert_array_equal(again.variables["stack"], fresh["stack"][:, stayed][:, :, stayed])
    longer = np.concatenate([TOKENS, TOKENS[::-1]], 1)
    np.testing.assert_allclose(
        jax.jit(once.apply)(once.variables, longer)[0],
        jax.jit(in_chunks)(zero_where_cut(once, variables), longer)[0],
        rtol=1e-4,
        atol=1e-5,
    )


def test_the_norm_of_a_channel_is_over_all_layers():
    variables = drawn(twice, np.float32)
    variables["stack"][2, :, 5] = 9.0
    shrunk = slimming.shrink(twice, variables, TOKENS, round_to=1)
    norms = np.abs(variables["a"]).sum(0) + np.abs(variables["stack"]).sum((0, 1))
    assert shrunk.kept["a"] == sorted(np.argsort(-norms)[:4].tolist())


def test_a_target_counts_every_step():
    fn, variables = linen(Convolutional(), IMAGE)
    shrunk = slimming.shrink(fn, variables, IMAGE, round_to=1, target=slimming.targets.macs(0.5))
    whole = cj.trace(fn, variables, IMAGE).macs
    assert 0.4 < cj.trace(shrunk.apply, shrunk.variables, IMAGE).macs / whole <= 0.5


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"ratio": {"stack*": 1.0}}, r"ratio for 'stack\*' is 1.0"),
            ({"protect": "layers"}, "protect pattern 'layers' matches none"),
            ({"kept": {"stack": [0]}}, "kept names 'stack'.*its groups are a"),
            ({"kept": {"a": [8]}}, r"kept of group 'a'.*a\[1\], which has 8"),
        ],
    )
    def test_arguments(self, options, message):
        with pytest.raises(ValueError, match=message):
            slimming.shrink(twice, drawn(twice, np.float32), TOKENS, round_to=1, **options)

    def test_protected_layers_hold_what_they_are_tied_to(self):
        shrunk = slimming.shrink(twice, drawn(twice, np.float32), TOKENS, protect="stack")
        assert not shrunk.kept and shrunk.report.frozen["a[1]"] == "protected"

    def test_variables_that_do_not_fit(self):
        variables = drawn(twice, np.float32)
        shrunk = slimming.shrink(twice, variables, TOKENS, round_to=1)
        with pytest.raises(ValueError, match=r"has shape \(4, 8, 8\), expected \(4, 4, 4\)"):
            shrunk.apply({**shrunk.variables, "stack": variables["stack"]}, TOKENS)

    def test_another_function_that_does_not_allow_the_cut(self):
        shrunk = slimming.shrink(twice, drawn(twice, np.float32), TOKENS, round_to=1)

        def other(v, x):
            layer = lambda h, w: (nn.softmax(h @ w), None)  # noqa: E731
            return lax.scan(layer, x[0] @ v["a"], v["stack"])[0] @ v["b"]

        message = r"does not allow the cut of .*: scan\(stack\)/reduce_max_0"
        with pytest.raises(ValueError, match=message):
            shrunk.transform(other)(shrunk.variables, TOKENS)
