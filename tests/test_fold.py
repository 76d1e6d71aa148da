"""Folded functions give the same values, with every norm that follows a kernel gone."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import compressjax as cj
from compressjax import models, tree

RNG = np.random.default_rng(0)
IMAGE = RNG.normal(size=(2, 8, 8, 4)).astype("float32")


def spread(variables, seed=0):
    """Gives norms statistics, scales and biases that are not ones and zeros."""
    rng = np.random.default_rng(seed)

    def leaf(path, x):
        if x.ndim != 1:
            return x
        low, high = (0.5, 2.0) if path.endswith(("var", "scale")) else (-0.5, 0.5)
        return jnp.asarray(rng.uniform(low, high, x.shape), x.dtype)

    return tree.map_with_path(leaf, variables)


def linen(body, x=IMAGE):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            return body(x)

    return Network().apply, spread(jax.jit(Network().init)(jax.random.key(0), x))


def norm(**kwargs):
    return nn.BatchNorm(use_running_average=True, **kwargs)


def check(fn, variables, x=IMAGE, *, rtol=1e-4):
    folded, new = cj.fold_batch_norm(fn, variables, x)
    expected, found = jax.jit(fn)(variables, x), jax.jit(folded)(new, x)
    assert found.dtype == expected.dtype
    size = np.abs(np.asarray(expected, "float32")).max()
    np.testing.assert_allclose(
        np.asarray(found, "float32"), np.asarray(expected, "float32"), rtol=rtol, atol=rtol * size
    )
    return folded, new


FOLDABLE = {
    "conv": lambda x: nn.relu(norm()(nn.Conv(6, (3, 3))(x))),
    "conv_without_bias": lambda x: nn.relu(norm()(nn.Conv(6, (3, 3), use_bias=False)(x))),
    "strided": lambda x: norm()(nn.Conv(6, (3, 3), strides=2, kernel_dilation=1)(x)),
    "grouped": lambda x: norm()(nn.Conv(8, (3, 3), feature_group_count=2)(x)),
    "depthwise": lambda x: norm()(nn.Conv(8, (3, 3), feature_group_count=4, use_bias=False)(x)),
    "transposed": lambda x: norm()(nn.ConvTranspose(6, (2, 2), strides=(2, 2))(x)),
    "dense": lambda x: nn.relu(norm()(nn.Dense(5)(x.reshape(x.shape[0], -1)))),
    "dense_on_images": lambda x: norm()(nn.Dense(5, use_bias=False)(x)),
    "dense_general": lambda x: norm()(nn.DenseGeneral(5, axis=(1, 2, 3))(x)),
    "without_scale": lambda x: norm(use_scale=False)(nn.Conv(6, (3, 3))(x)),
    "without_bias": lambda x: norm(use_bias=False)(nn.Conv(6, (3, 3), use_bias=False)(x)),
    "two_norms": lambda x: norm()(norm()(nn.Conv(6, (3, 3))(x))),
    "three_layers": lambda x: norm()(
        nn.Conv(3, (1, 1))(nn.relu6(norm()(nn.Conv(6, (3, 3))(nn.silu(norm()(nn.Dense(5)(x)))))))
    ),
}


@pytest.mark.parametrize("name", FOLDABLE)
def test_a_norm_after_a_kernel_is_folded(name):
    fn, variables = linen(FOLDABLE[name])
    _, new = check(fn, variables)
    assert list(new) == ["params"]
    kernels = {path for path in tree.paths(variables) if path.endswith("kernel")}
    assert set(tree.paths(new)) == kernels | {path.replace("kernel", "bias") for path in kernels}
    for path in kernels:
        assert tree.paths(new)[path].shape == tree.paths(variables)[path].shape


def test_the_numbers_are_those_of_the_paper():
    fn, variables = linen(FOLDABLE["conv"])
    _, new = cj.fold_batch_norm(fn, variables, IMAGE)
    old, stats = variables["params"], variables["batch_stats"]["BatchNorm_0"]
    gain = old["BatchNorm_0"]["scale"] / np.sqrt(stats["var"] + 1e-5)
    np.testing.assert_allclose(
        new["params"]["Conv_0"]["kernel"], old["Conv_0"]["kernel"] * gain[None, None, None], 1e-5
    )
    np.testing.assert_allclose(
        new["params"]["Conv_0"]["bias"],
        (old["Conv_0"]["bias"] - stats["mean"]) * gain + old["BatchNorm_0"]["bias"],
        rtol=1e-4,
        atol=1e-5,
    )


UNFOLDABLE = {
    "before_the_kernel": (lambda x: nn.Conv(6, (3, 3))(nn.relu(norm()(x))), 1),
    "after_relu": (lambda x: norm()(nn.relu(nn.Conv(6, (3, 3))(x))), 1),
    "after_pool": (lambda x: norm()(nn.max_pool(nn.Conv(6, (3, 3))(x), (2, 2))), 1),
    "output_read_twice": (lambda x: (lambda y: norm()(y) + y)(nn.Conv(6, (3, 3))(x)), 1),
    "some": (lambda x: norm()(nn.relu(norm()(nn.Conv(6, (3, 3))(x)))), 1),
    "several_features": (lambda x: norm()(nn.DenseGeneral((2, 3), axis=(1, 2, 3))(x)), 1),
    "other_axis": (lambda x: norm(axis=1)(nn.Conv(6, (3, 3))(x)), 1),
}


@pytest.mark.parametrize("name", UNFOLDABLE)
def test_a_norm_that_cannot_be_folded_stays(name):
    body, left = UNFOLDABLE[name]
    fn, variables = linen(body)
    _, new = check(fn, variables)
    assert len(new["batch_stats"]) == left


class _Tied(nn.Module):
    @nn.compact
    def __call__(self, x):
        conv = nn.Conv(4, (3, 3), use_bias=False)
        return norm()(conv(nn.relu(norm()(conv(x)))))


def test_a_kernel_that_is_used_twice_is_not_folded():
    variables = spread(_Tied().init(jax.random.key(0), IMAGE))
    _, new = check(_Tied().apply, variables)
    assert set(tree.paths(new)) == set(tree.paths(variables))


def test_a_kernel_that_is_also_returned_is_not_folded():
    def fn(v, x):
        return (x @ v["w"]) * v["scale"][None], v["w"]

    variables = {"w": jnp.ones((3, 2)), "scale": jnp.array([2.0, 3.0])}
    folded, new = cj.fold_batch_norm(fn, variables, jnp.ones((1, 3)))
    assert sorted(new) == ["scale", "w"]
    jax.tree.map(
        np.testing.assert_array_equal,
        folded(new, jnp.ones((1, 3))),
        fn(variables, jnp.ones((1, 3))),
    )


@pytest.mark.parametrize("groups", [1, 4])
def test_channels_first_convolutions(groups):
    def fn(v, x):
        y = lax.conv_general_dilated(
            x, v["w"], (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"),
            feature_group_count=groups,
        )  # fmt: skip
        return jax.nn.relu(y * v["scale"][None, :, None, None] - v["mean"][None, :, None, None])

    variables = {
        "w": jnp.asarray(RNG.normal(size=(8, 4 // groups, 3, 3)), "float32"),
        "scale": jnp.linspace(-1.0, 2.0, 8),
        "mean": jnp.linspace(-3.0, 1.0, 8),
    }
    _, new = check(fn, variables, IMAGE.transpose(0, 3, 1, 2))
    assert sorted(new) == ["bias", "w"]


@pytest.mark.parametrize(
    "move",
    [
        jnp.transpose,
        lambda w: w[::-1].T,
        lambda w: w.T.reshape(2, 2, 5).reshape(4, 5),
        lambda w: lax.stop_gradient(w.T),
        lambda w: w.T.astype(jnp.float16).astype(jnp.float32),
    ],
)
def test_a_moved_kernel_is_scaled_where_it_stands(move):
    def fn(v, x):
        return (x @ move(v["w"])) * v["scale"][None]

    w = jnp.asarray(RNG.integers(-9, 9, size=(5, 4)), "float32")
    variables = {"w": w, "scale": jnp.array([2.0, -0.5, 4.0, 1.0, 0.25])}
    _, new = check(fn, variables, IMAGE[:, 0, 0], rtol=1e-3)
    assert sorted(new) == ["bias", "w"]


def test_a_kernel_on_the_left():
    def fn(v, x):
        return (v["w"] @ x) * v["scale"][:, None] + 1.0

    variables = {
        "w": jnp.asarray(RNG.normal(size=(3, 8)), "float32"),
        "scale": jnp.arange(1.0, 4.0),
    }
    _, new = check(fn, variables, IMAGE[0, :, :, 0])
    assert sorted(new) == ["bias", "w"]


def test_several_kernels_beside_each_other():
    def fn(v, x):
        p = v["params"]
        y = jax.nn.relu((x @ p["w1"]) * p["scale"][None])
        return (y @ p["w2"]) / p["scale"][None] + (y @ p["w3"] + p["bias"][None])

    keys = ("w1", "w2", "w3")
    params = {name: jnp.asarray(RNG.normal(size=(4, 4)), "float32") for name in keys}
    params |= {"bias": jnp.ones(4), "scale": jnp.arange(1.0, 5.0)}
    _, new = check(fn, {"params": params}, IMAGE[:, 0, 0])
    assert "scale" not in new["params"]
    np.testing.assert_array_equal(new["params"]["bias"], np.ones(4))
    assert len(new["params"]) == 3 + 1 + 2


def test_what_the_function_never_used_stays():
    fn, variables = linen(FOLDABLE["conv"])
    _, new = cj.fold_batch_norm(fn, {**variables, "notes": {"a": jnp.ones(2)}}, IMAGE)
    np.testing.assert_array_equal(new["notes"]["a"], np.ones(2))


def test_any_batch_and_image_size():
    fn, variables = linen(lambda x: FOLDABLE["three_layers"](x).mean((1, 2)))
    folded, new = cj.fold_batch_norm(fn, variables, IMAGE[:1])
    for x in (IMAGE, IMAGE[:, :5, :7], np.tile(IMAGE, (3, 1, 1, 1))):
        np.testing.assert_allclose(folded(new, x), fn(variables, x), rtol=1e-3, atol=1e-4)


def test_folding_twice_changes_nothing_more():
    fn, variables = linen(FOLDABLE["three_layers"])
    folded, new = cj.fold_batch_norm(fn, variables, IMAGE)
    again, same = cj.fold_batch_norm(folded, new, IMAGE)
    jax.tree.map(np.testing.assert_array_equal, same, new)
    np.testing.assert_array_equal(again(same, IMAGE), folded(new, IMAGE))


def test_the_folded_function_under_jit_grad_and_vmap():
    fn, variables = linen(FOLDABLE["three_layers"])
    folded, new = cj.fold_batch_norm(fn, variables, IMAGE)
    expected = fn(variables, IMAGE)
    np.testing.assert_allclose(jax.jit(folded)(new, IMAGE), expected, rtol=1e-3, atol=1e-4)
    mapped = jax.vmap(folded, (None, 0))(new, IMAGE[:, None])
    np.testing.assert_allclose(mapped[:, 0], expected, rtol=1e-3, atol=1e-4)
    found = jax.grad(lambda x: folded(new, x).sum())(IMAGE)
    wanted = jax.grad(lambda x: fn(variables, x).sum())(IMAGE)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)
    gradients = jax.grad(lambda v: folded(v, IMAGE).sum())(new)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradients))


def test_folding_is_traceable():
    fn, variables = linen(FOLDABLE["conv"])
    _, new = cj.fold_batch_norm(fn, variables, IMAGE)
    inside = jax.jit(lambda v: cj.fold_batch_norm(fn, v, IMAGE)[1])(variables)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), inside, new)


@pytest.mark.parametrize("param_dtype", [jnp.bfloat16, jnp.float32])
def test_half_precision_is_folded_through_its_casts(param_dtype):
    def body(x):
        kinds = {"dtype": jnp.bfloat16, "param_dtype": param_dtype}
        y = nn.relu(norm(**kinds)(nn.Conv(6, (3, 3), use_bias=False, **kinds)(x)))
        return nn.Dense(3, **kinds)(y.mean((1, 2)))

    fn, variables = linen(body)
    _, new = check(fn, variables, rtol=0.05)
    assert "batch_stats" not in new
    assert new["params"]["Conv_0"]["kernel"].dtype == param_dtype
    assert new["params"]["Conv_0"]["bias"].dtype == param_dtype


def test_missing_biases_are_named():
    fn, variables = linen(FOLDABLE["conv_without_bias"])
    folded, _ = cj.fold_batch_norm(fn, variables, IMAGE)
    with pytest.raises(ValueError, match=r"missing params/Conv_0/bias.*fold_batch_norm returned"):
        folded(variables, IMAGE)


class _Nnx(nnx.Module):
    def __init__(self, rngs):
        self.convs = nnx.List(
            [
                nnx.Conv(4, 6, (3, 3), rngs=rngs),
                nnx.Conv(6, 6, (3, 3), feature_group_count=6, rngs=rngs),
            ]
        )
        self.norms = nnx.List([nnx.BatchNorm(6, rngs=rngs) for _ in range(2)])
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.relu(norm(conv(x)))
        return self.head(x.mean((1, 2)))


def test_nnx_modules():
    module = _Nnx(nnx.Rngs(0))
    module.eval()
    fn, variables = cj.from_nnx(module)
    _, new = check(fn, spread(variables))
    assert list(new) == ["params"] and sorted(new["params"]) == ["convs", "head"]


@pytest.mark.parametrize(
    ("model", "size"),
    [
        (models.SmallCNN(10), 8),
        (models.ResNet8(10), 16),
        (models.MobileNetV2(10, multiplier=0.35, strides=(2, 1, 2, 2, 1, 1, 1, 1)), 32),
    ],
    ids=["SmallCNN", "ResNet8", "MobileNetV2"],
)
def test_models_keep_no_statistics(model, size):
    x = RNG.normal(size=(2, size, size, 3)).astype("float32")
    variables = spread(jax.jit(model.init)(jax.random.key(0), x))
    folded, new = cj.fold_batch_norm(model.apply, variables, x)
    assert list(new) == ["params"]
    assert not any("BatchNorm" in path for path in tree.paths(new))
    expected, found = jax.jit(model.apply)(variables, x), jax.jit(folded)(new, x)
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(found / scale, expected / scale, rtol=1e-3, atol=1e-3)
