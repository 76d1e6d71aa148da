"""Factorized functions: at full rank the function, at lower ranks that of the merged kernels."""

import functools
import json

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import compressjax as cj
from compressjax import lowrank, tree

RNG = np.random.default_rng(0)
IMAGE = RNG.normal(size=(2, 8, 8, 4)).astype("f")
SEQUENCE = RNG.normal(size=(2, 6, 8)).astype("f")


def normal(*shape):
    return RNG.normal(size=shape).astype("f")


def conv(kernel, *, x=IMAGE, strides=(1, 1), padding="SAME", numbers=("NHWC", "HWIO", "NHWC"),
         **how):  # fmt: skip
    def fn(v, x):
        return lax.conv_general_dilated(
            x, v["w"], strides, padding, dimension_numbers=numbers, **how
        )

    return fn, {"w": kernel}, x


def attention(v, x):
    q, k, u = (jnp.einsum("btd,dhk->bthk", x, v[name]) for name in "qkv")
    weights = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k))
    return jnp.einsum("bhts,bshk,hkd->btd", weights, u, v["o"])


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(6, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.relu(nn.Conv(8, (3, 3), strides=2)(x))
        return nn.Dense(5)(x.mean((1, 2)))


def linen():
    return Linen().apply, jax.jit(Linen().init)(jax.random.key(0), IMAGE), IMAGE


def from_nnx():
    return *cj.from_nnx(nnx.Linear(8, 6, rngs=nnx.Rngs(0))), SEQUENCE


def haiku():
    made = hk.without_apply_rng(hk.transform(lambda x: hk.Conv2D(6, 3)(x)))
    return made.apply, made.init(jax.random.key(0), IMAGE), IMAGE


def equinox():
    layer = eqx.nn.Conv2d(4, 6, 3, key=jax.random.key(0))
    fn = lambda v, x: jax.vmap(eqx.tree_at(lambda m: m.weight, layer, v["weight"]))(x)  # noqa: E731
    return fn, {"weight": layer.weight}, IMAGE.transpose(0, 3, 1, 2)


CASES = {
    "dense": lambda: (lambda v, x: x @ v["w"], {"w": normal(8, 5)}, SEQUENCE),
    "transposed dense": lambda: (lambda v, x: x @ v["w"].T, {"w": normal(5, 8)}, SEQUENCE),
    "kernel on the left": lambda: (
        lambda v, x: lax.dot_general(v["w"], x, (((0,), (2,)), ((), ()))),
        {"w": normal(8, 5)},
        SEQUENCE,
    ),
    "attention": lambda: (
        attention,
        {**{name: normal(8, 2, 3) for name in "qkv"}, "o": normal(2, 3, 8)},
        SEQUENCE,
    ),
    "used twice": lambda: (
        lambda v, x: jnp.tanh(x @ v["w"]) @ v["w"],
        {"w": normal(8, 8)},
        SEQUENCE,
    ),
    "conv": lambda: conv(normal(3, 3, 4, 6)),
    "1x1": lambda: conv(normal(1, 1, 4, 6)),
    "strided": lambda: conv(normal(3, 2, 4, 6), strides=(2, 1)),
    "valid": lambda: conv(normal(3, 3, 4, 6), padding="VALID"),
    "dilated": lambda: conv(normal(3, 3, 4, 6), rhs_dilation=(2, 1)),
    "grouped": lambda: conv(normal(3, 3, 2, 6), feature_group_count=2),
    "transposed conv": lambda: conv(normal(3, 3, 4, 6), padding=((1, 2), (1, 2)),
                                    lhs_dilation=(2, 2)),
    "channels first": lambda: conv(normal(6, 4, 3, 3), x=IMAGE.transpose(0, 3, 1, 2),
                                   numbers=("NCHW", "OIHW", "NCHW")),
    "1-D": lambda: conv(normal(3, 8, 6), x=SEQUENCE, strides=(1,), numbers=("NWC", "WIO", "NWC")),
    "linen": linen,
    "nnx": from_nnx,
    "haiku": haiku,
    "equinox": equinox,
}  # fmt: skip


def close(found, expected, tolerance=1e-4):
    found, expected = (np.asarray(x, "f") for x in (found, expected))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("name", CASES)
def test_full_rank_is_the_function_and_lower_ranks_that_of_merged_kernels(name):
    fn, variables, x = CASES[name]()
    full = cj.factorize(fn, variables, x, rank=1.0)
    assert full.ranks
    whole = jax.jit(fn)(variables, x)
    close(jax.jit(full.apply)(full.variables, x), whole)
    low = cj.factorize(fn, variables, x, rank=0.5)
    found = jax.jit(low.apply)(low.variables, x)
    merged = jax.jit(low.merged)(low.variables)
    assert jax.tree.map(jnp.shape, merged) == jax.tree.map(jnp.shape, variables)
    close(found, jax.jit(fn)(merged, x))
    assert np.abs(np.asarray(found) - np.asarray(whole)).max() > 1e-3
    graph = cj.trace(low.apply, low.variables, x)
    assert low.report.macs == (cj.trace(fn, variables, x).macs, graph.macs)
    for path, row in low.report.layers.items():
        kernels = [np.asarray(tree.paths(t)[path], np.float64) for t in (variables, merged)]
        error = np.linalg.norm(kernels[0] - kernels[1]) / np.linalg.norm(kernels[0])
        assert row.error == pytest.approx(error, abs=1e-4)
        assert f"{path}: {row.method}" in str(low.report)


@pytest.mark.parametrize("method", [lowrank.svd(), lowrank.spatial(), lowrank.cp(steps=5)])
@pytest.mark.parametrize("name", ["strided", "dilated", "grouped", "transposed conv", "valid"])
def test_every_method_runs_every_convolution(name, method):
    fn, variables, x = CASES[name]()
    low = cj.factorize(fn, variables, x, rank=3, method=method)
    found, expected = jax.jit(lambda v: (low.apply(v, x), fn(low.merged(v), x)))(low.variables)
    close(found, expected)


def test_other_batch_sizes_and_transformations():
    fn, variables, x = CASES["conv"]()
    low = cj.factorize(fn, variables, jax.ShapeDtypeStruct(x.shape, x.dtype), rank=0.5)
    merged = jax.jit(low.merged)(low.variables)
    more = np.concatenate([x, 2 * x, x[:1]])
    close(jax.jit(low.apply)(low.variables, more), jax.jit(fn)(merged, more))
    single = jax.jit(jax.vmap(lambda one: low.apply(low.variables, one[None])[0]))(x)
    close(single, jax.jit(fn)(merged, x))
    loss = lambda v: jnp.sum(jnp.square(low.apply(v, x)))  # noqa: E731
    through = lambda v: jnp.sum(jnp.square(fn(low.merged(v), x)))  # noqa: E731
    found, expected = jax.jit(lambda v: (jax.grad(loss)(v), jax.grad(through)(v)))(low.variables)
    jax.tree.map(functools.partial(close, tolerance=1e-3), found, expected)


def test_training_mode_gets_the_same_factors():
    fn, variables, x = linen()
    low = cj.factorize(fn, variables, x, rank=0.5)
    train = functools.partial(Linen().apply, train=True, mutable=["batch_stats"])
    found, stats = jax.jit(low.transform(train))(low.variables, x)
    expected, wanted = jax.jit(lambda v: train(low.merged(v), x))(low.variables)
    close(found, expected)
    jax.tree.map(close, stats, wanted)


def test_bfloat16_stays():
    fn, variables, x = conv(normal(3, 3, 4, 6).astype(jnp.bfloat16), x=IMAGE.astype(jnp.bfloat16))
    low = cj.factorize(fn, variables, x, rank=1.0)
    assert {leaf.dtype for leaf in jax.tree.leaves(low.variables)} == {jnp.dtype("bfloat16")}
    found = low.apply(low.variables, x)
    assert found.dtype == jnp.bfloat16
    close(found, fn(variables, x), 0.05)


def test_ranks_are_json_and_give_the_same_again():
    fn, variables, x = linen()
    low = cj.factorize(fn, variables, x, rank=lowrank.energy(0.7))
    again = cj.factorize(fn, variables, x, rank=json.loads(json.dumps(low.ranks)))
    assert again.ranks == low.ranks
    jax.tree.map(np.testing.assert_array_equal, again.variables, low.variables)


def test_a_kernel_in_a_scan_stays_and_the_report_says_why():
    def fn(v, x):
        return lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, v["layers"])[0] @ v["w"]

    variables = {"layers": normal(3, 8, 8), "w": normal(8, 8)}
    low = cj.factorize(fn, variables, SEQUENCE[0], rank=0.5)
    assert list(low.ranks) == ["w"]
    assert "scan" in low.report.stays["layers"]


BAD = {
    "above": (dict(rank=9), "rank of w .* is 9, expected at least 1 and at most 5"),
    "zero": (dict(rank=0), "rank of w .* is 0"),
    "part": (dict(rank=1.5), r"is 1.5, expected a part of the full rank in \(0, 1\]"),
    "numbers": (dict(rank=(2, 2)), "expected 1 numbers"),
    "glob": (dict(rank={"nothing": 2}), "nothing"),
    "select": (dict(select="nothing"), "nothing"),
    "moments": (dict(moments={"z": None}), "moments has 'z', which is no kernel"),
    "other moments": (
        dict(moments={"w": lowrank.Moments(np.ones((1, 3, 3)), np.ones((1, 5, 5)))}),
        r"moments of w have the shapes \(1, 3, 3\) and .* expected \(1, 8, 8\)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    how, message = BAD[name]
    fn, variables, x = CASES["dense"]()
    with pytest.raises(ValueError, match=message):
        cj.factorize(fn, variables, x, **how)


def test_kernels_that_are_not_finite():
    with pytest.raises(ValueError, match="w is not finite"):
        cj.factorize(lambda v, x: x @ v["w"], {"w": np.full((8, 5), np.nan, "f")}, SEQUENCE)


def test_fold_factorize_quantize_export_agree_bit_for_bit():
    fn, variables, x = linen()
    fn, variables = cj.fold_batch_norm(fn, variables, x)
    low = cj.factorize(fn, variables, x, rank=0.5)
    q = cj.quantize(low.apply, cj.quant.int8())
    quantized = q.calibrate(low.variables, [x], observer=cj.quant.min_max())
    model = cj.export.tflite(q, quantized, x[:1], via="litert")
    assert cj.export.verify(model, q, quantized, x).mismatch_fraction == 0


def test_factors_are_shrunk_and_pruned():
    def fn(v, x):
        return jax.nn.relu(x @ v["params"]["a"]["kernel"]) @ v["params"]["b"]["kernel"]

    variables = {"params": {"a": {"kernel": normal(8, 12)}, "b": {"kernel": normal(12, 5)}}}
    low = cj.factorize(fn, variables, SEQUENCE, rank=4)
    small = cj.shrink(low.apply, low.variables, SEQUENCE, ratio=0.5, round_to=1)
    assert jax.eval_shape(small.apply, small.variables, SEQUENCE).shape == (2, 6, 5)
    assert cj.trace(small.apply, small.variables, SEQUENCE).macs < low.report.macs[1]
    keep = cj.pruning.choose(low.variables["params"], 0.5, select="a/down/kernel")
    pruned = cj.apply_masks(low.variables["params"], keep)
    assert np.mean(np.asarray(pruned["a"]["down"]["kernel"]) == 0) == 0.5
    assert np.isfinite(low.apply({"params": pruned}, SEQUENCE)).all()
