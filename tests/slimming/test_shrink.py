"""`shrink` equals the whole network with cut channels' readers zeroed, on every topology."""

import json

import flax.linen as nn
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import strategies as st

import compressjax.models as models
from compressjax import slimming, tree
from compressjax.nnx import from_nnx
from tests.support.reference import check, draw, positions, widths, zeroed

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


@pytest.mark.parametrize("body", TOPOLOGIES, ids=lambda body: body.__name__)
def test_equals_the_network_with_cut_channels_zeroed(body):
    fn, variables = linen(body)
    shrunk = check(fn, variables, IMAGE)
    assert widths(shrunk) == TOPOLOGIES[body]
    assert tree.size(shrunk.variables) < 0.75 * tree.size(variables)
    assert jax.tree.structure(shrunk.variables) == jax.tree.structure(variables)


def transformer(x):
    y = nn.MultiHeadDotProductAttention(num_heads=4, qkv_features=32, name="att")(nn.LayerNorm()(x))
    x = x + y
    x = x + nn.Dense(16, name="down")(nn.gelu(nn.Dense(24, name="up")(nn.LayerNorm()(x))))
    return nn.Dense(4, name="head")(x[:, 0])


def test_attention_cuts_heads_and_widths_and_keeps_what_layer_norm_reads():
    fn, variables = linen(transformer, TOKENS)
    inputs = {
        "params/att/out/kernel": (0, 1),
        "params/att/query/kernel": (2,),
        "params/att/query/bias": (1,),
        "params/att/key/kernel": (),
        "params/att/value/kernel": (),
    }
    shrunk = check(fn, variables, TOKENS, inputs=inputs)
    assert widths(shrunk) == {
        "att/query": "2/4",
        "att/query/kernel#1": "4/8",
        "att/value": "4/8",
        "up": "12/24",
    }
    assert shrunk.variables["params"]["att"]["out"]["kernel"].shape == (2, 4, 16)
    assert "reduce_sum goes over" in shrunk.report.frozen["params/down/kernel[1]"]


def test_fused_projection_is_cut_inside_heads():
    def body(x):
        q, k, v = jnp.moveaxis(nn.Dense(3 * 2 * 8, name="qkv")(x).reshape(2, 5, 3, 2, 8), 2, 0)
        weights = nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(2, 5, 16)
        return nn.Dense(4, name="out")(y)

    fn, variables = linen(body, TOKENS)
    shrunk = slimming.shrink(fn, variables, TOKENS, round_to=1)
    assert widths(shrunk) == {"qkv": "4/8"}
    left = positions(fn, variables, shrunk.kept, TOKENS)
    whole = zeroed(variables, left, {"params/qkv/kernel": (1,), "params/qkv/bias": (0,)})
    np.testing.assert_allclose(
        shrunk.apply(shrunk.variables, TOKENS), fn(whole, TOKENS), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("model", ["ResNet8", "MobileNetV2", "SmallCNN", "MLP"])
def test_models_of_the_zoo(model):
    module = {
        "ResNet8": models.ResNet8(num_classes=4, widths=(8, 16, 16)),
        "MobileNetV2": models.MobileNetV2(num_classes=4, multiplier=0.35),
        "SmallCNN": models.SmallCNN(num_classes=4, widths=(8, 16, 16)),
        "MLP": models.MLP(num_classes=4, widths=(32, 16)),
    }[model]
    x = np.random.default_rng(3).normal(size=(2, 16, 16, 3)).astype(np.float32)
    variables = draw(jax.eval_shape(module.init, jax.random.key(0), x))
    shrunk = check(module.apply, variables, x, round_to=8, ratio=0.4)
    assert all(int(width.split("/")[0]) % 8 == 0 for width in widths(shrunk).values())
    assert any(new < old for new, old in (map(int, w.split("/")) for w in widths(shrunk).values()))


def test_nnx_module():
    class Block(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(8, rngs=rngs)
            self.head = nnx.Linear(8, 4, rngs=rngs)

        def __call__(self, x):
            return self.head(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))

    module = nnx.eval_shape(lambda: Block(nnx.Rngs(0)))
    module.eval()
    fn, variables = from_nnx(module)
    shrunk = check(fn, draw(variables), IMAGE)
    assert widths(shrunk) == {"conv": "4/8"}
    assert shrunk.variables["batch_stats"]["norm"]["mean"].shape == (4,)


def test_training_mode_takes_the_same_cut():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.relu(norm(train)(nn.Conv(8, (3, 3))(x)))
            return head(nn.relu(norm(train)(nn.Conv(12, (3, 3))(x)))), x

    shapes = jax.eval_shape(lambda x: Network().init(jax.random.key(0), x, False), IMAGE)
    variables = draw(shapes)
    infer = lambda v, x: Network().apply(v, x, False)[0]  # noqa: E731
    train = lambda v, x: Network().apply(v, x, True, mutable=["batch_stats"])  # noqa: E731
    shrunk = slimming.shrink(infer, variables, IMAGE, round_to=1)
    left = positions(infer, variables, shrunk.kept, IMAGE)
    (found, narrow), found_state = jax.jit(shrunk.transform(train))(shrunk.variables, IMAGE)
    (expected, wide), state = jax.jit(train)(zeroed(variables, left), IMAGE)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    first = left["params/Conv_0/kernel"][3]
    np.testing.assert_allclose(narrow, wide[..., first], rtol=1e-4, atol=1e-5)
    assert narrow.shape[-1] == 4
    for path, leaf in tree.paths(found_state).items():
        expected = tree.paths(state)[path][left[path][0]]
        np.testing.assert_allclose(leaf, expected, rtol=1e-4, atol=1e-5, err_msg=path)


def test_gradients_and_vmap_and_jit_agree():
    fn, variables = linen(plain)
    shrunk = slimming.shrink(fn, variables, IMAGE, round_to=1)
    left = positions(fn, variables, shrunk.kept, IMAGE)
    loss = lambda apply: lambda v: jnp.sum(apply(v, IMAGE) ** 2)  # noqa: E731
    found = jax.jit(jax.grad(loss(shrunk.apply)))(shrunk.variables)
    whole = jax.jit(jax.grad(loss(fn)))(zeroed(variables, left))
    for path, leaf in tree.paths(whole).items():
        if "kernel" in path:  # of biases and norms, cut channels have gradients of their own
            expected = np.asarray(leaf)[np.ix_(*left[path])]
            np.testing.assert_allclose(
                tree.paths(found)[path], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max()
            )
    one = jax.jit(jax.vmap(lambda x: shrunk.apply(shrunk.variables, x[None])[0]))
    expected = jax.jit(fn)(zeroed(variables, left), IMAGE)
    np.testing.assert_allclose(one(IMAGE), expected, rtol=1e-4, atol=1e-5)
    with jax.disable_jit():
        eager = shrunk.apply(shrunk.variables, IMAGE)
    np.testing.assert_allclose(eager, expected, rtol=1e-4, atol=1e-5)


def test_what_is_prepared_inside_one_jit_serves_another():
    constant = jnp.arange(8.0)[None]
    fn = lambda v, x: (x @ v["a"] * constant) @ v["b"]  # noqa: E731
    variables = {"a": np.ones((3, 8), np.float32), "b": np.ones((8, 2), np.float32)}
    shrunk = slimming.shrink(fn, variables, np.ones((1, 3), np.float32), round_to=1)
    x = np.ones((2, 3), np.float32)
    first = jax.jit(lambda v, x: shrunk.apply(v, x))(shrunk.variables, x)
    second = jax.jit(lambda v, x: shrunk.apply(v, x) + 0)(shrunk.variables, x)
    for found in (first, second, shrunk.apply(shrunk.variables, x)):
        np.testing.assert_allclose(found, 3.0 * sum(shrunk.kept["a"]) * np.ones((2, 2)))


def test_batch_and_image_sizes_are_free():
    fn, variables = linen(dense_blocks)
    example = jax.ShapeDtypeStruct((1, 8, 8, 3), "float32")
    shrunk = slimming.shrink(fn, variables, example, round_to=1)
    left = positions(fn, variables, shrunk.kept, IMAGE)
    for shape in ((5, 8, 8, 3), (1, 11, 9, 3)):
        x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
        np.testing.assert_allclose(
            jax.jit(shrunk.apply)(shrunk.variables, x),
            jax.jit(fn)(zeroed(variables, left), x),
            rtol=1e-4,
            atol=1e-5,
        )


def test_shrinking_again_cuts_further():
    for body in (residual, shuffled, grouped):
        fn, variables = linen(body)
        once = slimming.shrink(fn, variables, IMAGE, ratio=0.3, round_to=1)
        twice = check(once.apply, once.variables, IMAGE, ratio=0.4)
        assert list(twice.kept) == list(once.kept)
        for name in twice.kept:
            assert len(twice.kept[name]) < len(once.kept[name])


def test_kept_is_json_and_fits_a_fresh_checkpoint():
    fn, variables = linen(dense_blocks)
    shrunk = slimming.shrink(fn, variables, IMAGE, round_to=1)
    kept = json.loads(json.dumps(shrunk.kept))
    assert kept == shrunk.kept
    other = linen(dense_blocks, seed=1)[1]
    again = slimming.shrink(fn, other, IMAGE, kept=kept)
    assert again.kept == kept
    np.testing.assert_array_equal(
        again.variables["params"]["Conv_0"]["bias"],
        other["params"]["Conv_0"]["bias"][kept["params/Conv_0/kernel"]],
    )


def test_keeps_the_filters_with_the_largest_l1_norm():
    fn, variables = linen(plain)
    shrunk = slimming.shrink(fn, variables, IMAGE, ratio=0.5, round_to=1)
    norms = np.abs(variables["params"]["Conv_1"]["kernel"]).sum((0, 1, 2))
    assert shrunk.kept["params/Conv_1/kernel"] == sorted(np.argsort(-norms)[:6].tolist())
    kernel = shrunk.variables["params"]["Conv_1"]["kernel"]
    rows = shrunk.kept["params/Conv_0/kernel"]
    columns = shrunk.kept["params/Conv_1/kernel"]
    np.testing.assert_array_equal(
        kernel, variables["params"]["Conv_1"]["kernel"][:, :, rows][..., columns]
    )
    assert isinstance(kernel, np.ndarray)


@pytest.mark.parametrize(
    ("ratio", "round_to", "expected"),
    [(0.0, 8, 20), (0.5, 1, 10), (0.5, 4, 12), (0.5, 8, 8), (0.99, 8, 8), (0.99, 1, 1),
     (0.5, 16, 16), (0.5, 20, 20), (0.5, 64, 20)],
)  # fmt: skip
def test_kept_counts_are_multiples(ratio, round_to, expected):
    variables = {"a": np.ones((3, 20), np.float32), "b": np.ones((20, 2), np.float32)}
    fn = lambda v, x: nn.relu(x @ v["a"]) @ v["b"]  # noqa: E731
    shrunk = slimming.shrink(fn, variables, np.ones((1, 3)), ratio=ratio, round_to=round_to)
    assert len(shrunk.kept["a"]) == expected


def test_no_part_of_a_split_becomes_empty():
    def fn(v, x):
        left, right = jnp.split(x @ v["a"], 2, axis=-1)
        return left @ v["b"] + right @ v["c"]

    a = np.ones((3, 8), np.float32) * np.arange(8)
    variables = {"a": a, "b": np.ones((4, 2), np.float32), "c": np.ones((4, 2), np.float32)}
    shrunk = slimming.shrink(fn, variables, np.ones((1, 3), np.float32), round_to=1)
    assert shrunk.kept == {"a": [3, 4, 5, 6, 7]}
    assert shrunk.apply(shrunk.variables, np.ones((1, 3), np.float32)).shape == (1, 2)


def test_ratios_by_path_and_protection():
    fn, variables = linen(residual)
    ratios = {"params/Conv_1/*": 0.25, "**/Conv_[346]/kernel": 0.5}
    shrunk = slimming.shrink(fn, variables, IMAGE, ratio=ratios, round_to=1)
    assert widths(shrunk) == {
        "Conv_0": "8/8",
        "Conv_1": "6/8",
        "Conv_3": "8/16",
        "Conv_4": "8/16",
        "Conv_6": "8/16",
    }
    safe = slimming.shrink(fn, variables, IMAGE, protect="params/Conv_4/*", round_to=1)
    assert list(widths(safe)) == ["Conv_0", "Conv_1", "Conv_6"]
    assert safe.report.frozen["params/Conv_3/kernel[3]"] == "protected"
    assert safe.variables["params"]["Conv_4"]["kernel"].shape == (3, 3, 16, 16)


def test_loops_stay_whole_and_are_named():
    def fn(v, x):
        x = nn.relu(x @ v["a"])
        x, _ = jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x @ v["b"], v["loop"])
        return x @ v["c"]

    shapes = {"a": (3, 8), "b": (8, 6), "loop": (4, 6, 6), "c": (6, 2)}
    variables = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    shrunk = slimming.shrink(fn, variables, np.ones((1, 3), np.float32), round_to=1)
    assert {name: len(kept) for name, kept in shrunk.kept.items()} == {"a": 4}
    assert "no rule for scan" in shrunk.report.frozen["b[1]"]
    assert "scan" in str(shrunk.report)


def test_dropout_draws_what_the_whole_network_draws():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dropout(0.5, deterministic=False)(nn.Dense(16)(x))
            return nn.Dense(4)(x)

    x = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = draw(jax.eval_shape(Network().init, rngs, x))
    fn = lambda v, x: Network().apply(v, x, rngs={"dropout": jax.random.key(2)})  # noqa: E731
    assert widths(check(fn, variables, x)) == {"Dense_0": "8/16"}


def test_a_function_that_returns_its_statistics_holds_their_widths():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = norm(True)(nn.Conv(8, (3, 3), name="normed")(x))
            return head(nn.Conv(6, (1, 1), name="plain")(x))

    variables = draw(jax.eval_shape(Network().init, jax.random.key(0), IMAGE))
    train = lambda v, x: Network().apply(v, x, mutable=["batch_stats"])  # noqa: E731
    shrunk = slimming.shrink(train, variables, IMAGE, round_to=1)
    assert widths(shrunk) == {"plain": "3/6"}
    assert "output" in shrunk.report.frozen["params/normed/kernel[3]"]


def test_half_precision_variables():
    fn, variables = linen(plain)
    shrunk = slimming.shrink(fn, variables, IMAGE)
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), shrunk.variables)
    assert shrunk.apply(half, jnp.asarray(IMAGE, jnp.bfloat16)).dtype == jnp.bfloat16


STEPS = ("conv", "depthwise", "grouped", "residual", "dense_block", "gate", "excite", "shuffle",
         "pool", "twice", "flip")  # fmt: skip


def apply_step(step, x):
    features = x.shape[-1]
    if step == "conv":
        return nn.relu(norm()(nn.Conv(12, (3, 3))(x)))
    if step == "depthwise":
        return nn.relu6(nn.Conv(2 * features, (3, 3), feature_group_count=features)(x))
    if step == "grouped":
        return nn.tanh(nn.Conv(8, (3, 3), feature_group_count=2)(nn.Conv(8, (1, 1))(x)))
    if step == "residual":
        return nn.relu(x + nn.Conv(features, (3, 3))(nn.sigmoid(nn.Conv(6, (1, 1))(x))))
    if step == "dense_block":
        return jnp.concatenate([x, nn.relu(nn.Conv(4, (3, 3))(norm()(x)))], axis=-1)
    if step == "gate":
        return nn.glu(nn.Conv(16, (1, 1))(x))
    if step == "excite":
        gate = nn.Dense(features)(nn.relu(nn.Dense(4)(x.mean((1, 2)))))
        return x * nn.sigmoid(gate)[:, None, None]
    if step == "shuffle":
        x = nn.relu(nn.Conv(8, (1, 1))(x))
        left, right = jnp.split(x, 2, axis=-1)
        x = jnp.concatenate([left, nn.Conv(4, (3, 3))(right)], axis=-1)
        return x.reshape(*x.shape[:3], 4, 2).transpose(0, 1, 2, 4, 3).reshape(x.shape)
    if step == "pool":
        return nn.max_pool(x, (2, 2), strides=(1, 1), padding="SAME")
    if step == "twice":
        return jnp.concatenate([x, -x], axis=-1)
    return x[..., ::-1] + x


@hypothesis.settings(max_examples=12)
@hypothesis.given(
    steps=st.lists(st.sampled_from(STEPS), min_size=2, max_size=6),
    flatten=st.booleans(),
    ratio=st.sampled_from([0.3, 0.5, 0.8]),
)
def test_networks_drawn_at_random(steps, flatten, ratio):
    def body(x):
        x = nn.Conv(8, (3, 3))(x)
        for step in steps:
            x = apply_step(step, x)
        x = nn.relu(nn.Conv(6, (1, 1))(x))
        return nn.Dense(4)(x.reshape(x.shape[0], -1) if flatten else x.mean((1, 2)))

    x = IMAGE[:, :5, :5]
    fn, variables = linen(body, x)
    assert check(fn, variables, x, ratio=ratio).kept


class TestErrors:
    fn, variables = (
        staticmethod(lambda v, x: nn.relu(x @ v["a"]) @ v["b"]),
        {
            "a": np.ones((3, 8), np.float32),
            "b": np.ones((8, 2), np.float32),
        },
    )
    x = np.ones((1, 3), np.float32)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"ratio": 1.0}, r"ratio for 'all' is 1.0, expected a number in \[0, 1\)"),
            ({"ratio": {"a": -0.1}}, "ratio for 'a' is -0.1"),
            ({"ratio": {"kernel": 0.1}}, "ratio pattern 'kernel' matches none"),
            ({"round_to": 0}, "round_to is 0"),
            ({"protect": "c"}, "protect pattern 'c' matches none"),
            ({"kept": {"z": [1]}}, "kept names 'z'.*its groups are a"),
            ({"kept": {"a": []}}, "kept of group 'a'.*at least one position"),
            ({"kept": {"a": [8]}}, r"kept of group 'a'.*a\[1\], which has 8"),
        ],
    )
    def test_arguments(self, options, message):
        with pytest.raises(ValueError, match=message):
            slimming.shrink(self.fn, self.variables, self.x, **options)

    def test_scores_that_are_not_finite(self):
        broken = {**self.variables, "a": np.full((3, 8), np.nan, np.float32)}
        with pytest.raises(ValueError, match="importance of group 'a'.*0 finite"):
            slimming.shrink(self.fn, broken, self.x)

    def test_variables_that_do_not_fit(self):
        shrunk = slimming.shrink(self.fn, self.variables, self.x, round_to=1)
        with pytest.raises(ValueError, match=r"a has shape \(3, 8\), expected \(3, 4\)"):
            shrunk.apply(self.variables, self.x)
        with pytest.raises(ValueError, match="missing b"):
            shrunk.apply({"a": shrunk.variables["a"]}, self.x)

    def test_another_function_that_does_not_allow_the_cut(self):
        shrunk = slimming.shrink(self.fn, self.variables, self.x, round_to=1)
        other = shrunk.transform(lambda v, x: nn.softmax(x @ v["a"]) @ v["b"])
        with pytest.raises(
            ValueError, match=r"does not allow the cut of a\[1\], b\[0\]: reduce_max"
        ):
            other(shrunk.variables, self.x)

    def test_variables_that_the_function_does_not_take(self):
        broken = {**self.variables, "b": np.ones((7, 2), np.float32)}
        with pytest.raises(TypeError, match="contracting dimensions") as raised:
            slimming.shrink(self.fn, broken, self.x)
        assert "check that the variables fit it" in "".join(raised.value.__notes__)

    def test_output_that_is_no_array(self):
        with pytest.raises(TypeError, match="not a valid JAX type"):
            slimming.shrink(lambda v, x: "logits", self.variables, self.x)
