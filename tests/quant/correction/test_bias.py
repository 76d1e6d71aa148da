"""Bias correction: moments against NumPy, and errors of means that go away."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import compressjax as cj
from compressjax import quant, tree
from compressjax.quant.correction import moments as norms
from compressjax.quant.correction.moments import Moments
from compressjax.quant.plan import Step

RNG = np.random.default_rng(0)


def clipped_normal_oracle(mean, std, lo, hi):
    """Mean and deviation of clip(N(mean, std^2), lo, hi) by a fine sum in float64."""
    z = np.linspace(-12.0, 12.0, 40_001)
    density = np.exp(-z * z / 2)
    density /= density.sum()
    y = np.clip(mean + std * z, lo, hi)
    first = (y * density).sum()
    return first, math.sqrt(((y - first) ** 2 * density).sum())


@given(
    st.floats(-20, 20),
    st.floats(0.01, 10),
    st.sampled_from([(None, None), (0.0, None), (0.0, 6.0), (-1.0, 1.0)]),
)
def test_clipped_normal_is_the_integral(mean, std, bounds):
    lo, hi = bounds
    found = norms.clipped_normal(Moments(jnp.array([mean]), jnp.array([std])), lo, hi)
    wanted = clipped_normal_oracle(
        mean, std, -np.inf if lo is None else lo, np.inf if hi is None else hi
    )
    scale = abs(mean) + std
    np.testing.assert_allclose(found.mean[0], wanted[0], atol=2e-6 * scale)
    np.testing.assert_allclose(found.std[0], wanted[1], atol=2e-3 * std)


def test_a_constant_is_clamped_as_a_constant():
    found = norms.clipped_normal(Moments(jnp.array([-1.0, 3.0, 9.0]), jnp.zeros(3)), 0.0, 6.0)
    np.testing.assert_array_equal(found.mean, [0.0, 3.0, 6.0])
    np.testing.assert_array_equal(found.std, 0.0)


def network(v, x):
    """Convolution, depthwise convolution beside a shortcut, and a dense layer, all with biases."""
    layout = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, v["a"]["kernel"], (2, 2), "SAME", dimension_numbers=layout)
    x = jax.nn.relu(y + v["a"]["bias"].reshape(1, 1, 1, -1))
    y = jax.lax.conv_general_dilated(
        x, v["b"]["kernel"], (1, 1), "SAME", dimension_numbers=layout, feature_group_count=4
    )
    y = x + jax.nn.relu6(y + v["b"]["bias"].reshape(1, 1, 1, -1))
    return y.mean((1, 2)) @ v["c"]["kernel"] + v["c"]["bias"].reshape(1, -1)


def variables(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"a": (3, 3, 3, 4), "b": (3, 3, 1, 4), "c": (4, 5)}
    made = {}
    for name, shape in shapes.items():
        # Weights of one sign make large means; the outlier makes rounding coarse.
        kernel = rng.uniform(0, 0.4, shape)
        kernel[..., 0, 0] += 1.0
        made[name] = {
            "kernel": jnp.asarray(kernel, jnp.float32),
            "bias": jnp.asarray(rng.normal(size=shape[-1]) * 0.1, jnp.float32),
        }
    return made


BATCHES = [RNG.uniform(0, 1, (8, 6, 6, 3)).astype("float32") for _ in range(2)]
FLOAT = variables()


@pytest.fixture(scope="module")
def coarse():
    q = cj.quantize(network, quant.uniform(weights=3, activations=8, per_channel=False))
    qv = q.calibrate(FLOAT, BATCHES, observer=quant.min_max())
    return q, qv, quant.correct_bias(q, qv, BATCHES)


def mean_error(q, qv):
    x = np.concatenate(BATCHES)
    return np.abs(np.asarray(jax.jit(q.apply)(qv, x) - network(FLOAT, x)).mean(0))


def test_the_mean_error_of_the_outputs_goes_away(coarse):
    q, qv, corrected = coarse
    before, after = mean_error(q, qv), mean_error(q, corrected)
    # What is left is the rounding of activations, at most half a step of the output.
    assert before.max() > 0.1
    assert after.max() < 0.05 * before.max()


def test_only_biases_change(coarse):
    _, qv, corrected = coarse
    for path, leaf in tree.paths(corrected).items():
        same = np.array_equal(leaf, tree.paths(qv)[path])
        assert same is not (path.split("/")[-1] == "bias" and path.startswith(("a", "b", "c"))), (
            path
        )


def test_two_layers_by_hand():
    """The second layer is corrected on what the corrected first one gives."""
    rng = np.random.default_rng(3)
    w1, w2 = rng.normal(size=(5, 4)).astype("float32"), rng.normal(size=(4, 3)).astype("float32")
    x = rng.normal(size=(64, 5)).astype("float32")

    def fn(v, x):
        y = jax.nn.relu(x @ v["w1"] + v["b1"].reshape(1, -1))
        return y @ v["w2"] + v["b2"].reshape(1, -1)

    float_ = {"w1": w1, "b1": np.ones(4, "float32"), "w2": w2, "b2": np.zeros(3, "float32")}
    q = cj.quantize(fn, quant.uniform(weights=2, activations=16))
    qv = q.calibrate(float_, [x], observer=quant.min_max())
    found = quant.correct_bias(q, qv, [x])

    def rounded(w):
        scale = np.abs(w).max(0, keepdims=True)
        return np.rint(w / scale) * scale

    x64 = x.astype("float64")
    shift1 = (x64 @ (rounded(w1) - w1)).mean(0)
    h = np.maximum(x64 @ w1 + 1, 0)
    hq = np.clip(x64 @ rounded(w1) + 1 - shift1, 0, h.max())  # the range is the float one's
    shift2 = (hq @ rounded(w2) - h @ w2).mean(0)
    np.testing.assert_allclose(found["b1"], 1 - shift1, atol=2e-3)
    np.testing.assert_allclose(found["b2"], -shift2, atol=2e-3)


def test_batches_of_different_sizes_count_by_their_size():
    x = RNG.uniform(size=(12, 3)).astype("float32")
    v = {"kernel": jnp.asarray(RNG.normal(size=(3, 2)), jnp.float32), "bias": jnp.zeros(2)}
    q = cj.quantize(
        lambda v, x: x @ v["kernel"] + v["bias"].reshape(1, -1),
        quant.uniform(weights=2, activations=8),
    )
    qv = q.calibrate(v, [x], observer=quant.min_max())
    whole, apart = (quant.correct_bias(q, qv, each)["bias"] for each in ([x], [x[:3], x[3:]]))
    assert np.abs(whole).max() > 0.01
    np.testing.assert_allclose(whole, apart, atol=1e-5)


def norm_network(v, x):
    """Two dense layers with live batch norms."""
    y = x
    for name in ("a", "b"):
        p = v[name]
        y = (y @ p["kernel"] - p["mean"].reshape(1, -1)) * (
            p["gamma"] * jax.lax.rsqrt(p["var"] + 1e-5)
        ).reshape(1, -1) + p["beta"].reshape(1, -1)
        y = jax.nn.relu(y) if name == "a" else y
    return y


def norm_variables(x):
    """Statistics as training would have left them."""
    rng, made, y = np.random.default_rng(5), {}, x.astype("float64")
    for name, shape in {"a": (12, 16), "b": (16, 4)}.items():
        kernel, beta = rng.normal(size=shape), rng.normal(size=shape[1])
        gamma = rng.normal(size=shape[1])
        y = y @ kernel
        made[name] = {
            "kernel": kernel, "mean": y.mean(0), "var": y.var(0), "gamma": gamma, "beta": beta,
        }  # fmt: skip
        y = np.maximum((y - y.mean(0)) / y.std(0) * gamma + beta, 0)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), made)


def test_norm_moments_are_beta_and_gamma():
    x = RNG.normal(size=(256, 12)).astype("float32")
    v = norm_variables(x)
    found = norms.norm_moments(norm_network, v, x[:1])
    assert list(found) == ["a/kernel", "b/kernel"]
    for name in ("a", "b"):
        np.testing.assert_allclose(found[f"{name}/kernel"].mean, v[name]["beta"], atol=1e-6)
        np.testing.assert_allclose(found[f"{name}/kernel"].std, np.abs(v[name]["gamma"]), rtol=1e-5)


@pytest.mark.parametrize("fold", [False, True])
def test_without_data_most_of_the_mean_error_goes_away(fold):
    x = RNG.normal(size=(2048, 12)).astype("float32")
    v = norm_variables(x)
    moments = norms.norm_moments(norm_network, v, x[:1])
    fn, folded = cj.fold_batch_norm(norm_network, v, x[:1]) if fold else (norm_network, v)
    q = cj.quantize(fn, quant.uniform(weights=3, activations=8))
    qv = q.calibrate(folded, [x], observer=quant.min_max())
    moments["input_0"] = Moments(jnp.asarray(x.mean(0)), jnp.asarray(x.std(0)))
    corrected = quant.correct_bias_without_data(q, qv, moments, x[:1])
    wanted, apply = norm_network(v, x), jax.jit(q.apply)
    before, after = (
        np.abs(np.asarray(apply(each, x) - wanted).mean(0)).mean() for each in (qv, corrected)
    )
    assert after < 0.2 * before


def test_moments_pass_through_a_network():
    kernel = RNG.normal(size=(3, 3, 1, 4)).astype("float32")

    def fn(v, x):
        y = jax.nn.relu(
            jax.lax.conv_general_dilated(
                x, v, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=4,
            )
        )  # fmt: skip
        return jnp.concatenate([x[:, :4, :4] - y, y], axis=-1).mean((1, 2))

    v = {"kernel": jnp.asarray(kernel)}
    plan = cj.quantize(lambda v, x: fn(v["kernel"], x)).plan(v, jnp.ones((1, 6, 6, 4)))
    mean, std = np.array([1.0, -1.0, 0.5, 2.0]), np.array([0.1, 1.0, 2.0, 0.0])
    known = norms.expected(plan, v, {"input_0": Moments(jnp.array(mean), jnp.array(std))})
    pre = mean * kernel.sum((0, 1, 2)), std * np.sqrt((kernel**2).sum((0, 1, 2)))
    wanted = np.array(
        [clipped_normal_oracle(m, max(s, 1e-9), 0, np.inf) for m, s in zip(*pre, strict=True)]
    ).T
    np.testing.assert_allclose(known["kernel"].mean, wanted[0], atol=1e-4)
    np.testing.assert_allclose(known["kernel"].std, wanted[1], atol=1e-2)
    slice_name = next(step.name for step in plan.steps if step.kind == "slice")
    assert slice_name not in known
    assert plan.steps[-1].name not in known


def test_expected_outputs_of_groups():
    step = Step("c", "conv", ("x",), (1, 4, 4, 6), {"feature_group_count": 2})
    kernel = RNG.normal(size=(3, 3, 2, 6)).astype("float32")
    mean = RNG.normal(size=4).astype("float32")
    wanted = [
        (kernel[..., o].sum((0, 1)) * mean[2 * (o // 3) : 2 * (o // 3) + 2]).sum() for o in range(6)
    ]
    found = norms.expected_output(step, jnp.asarray(kernel), jnp.asarray(mean))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def shared_bias(v, x):
    y = jax.nn.relu(x @ v["kernel"] + v["bias"].reshape(1, -1))
    return y @ v["last"] + v["bias"].reshape(1, -1)


def test_a_layer_without_a_bias_of_its_own_is_named():
    v = {"kernel": jnp.eye(2), "last": jnp.eye(2), "bias": jnp.ones(2)}
    x = jnp.ones((2, 2))
    q = cj.quantize(shared_bias)
    qv = q.calibrate(v, [x])
    with pytest.raises(ValueError, match=r"no bias belongs to kernel, last alone.*fold_batch_norm"):
        quant.correct_bias(q, qv, [x])
    with pytest.raises(ValueError, match="select pattern 'nothing' matches none"):
        quant.correct_bias(q, qv, [x], select="nothing")
    with pytest.raises(ValueError, match="no layer has both a bias and an input"):
        quant.correct_bias_without_data(q, qv, {}, x)


def test_bad_batches_are_named(coarse):
    q, qv, _ = coarse
    with pytest.raises(ValueError, match="one array of shape"):
        quant.correct_bias(q, qv, BATCHES[0])
    with pytest.raises(ValueError, match="there are no batches"):
        quant.correct_bias(q, qv, [])
    with pytest.raises(ValueError, match="mean of the input of 'a/kernel' is not known"):
        quant.correct_bias_without_data(q, qv, {}, BATCHES[0], select="a/kernel")


def test_a_function_without_norms_says_so():
    with pytest.raises(ValueError, match="followed by a batch norm"):
        norms.norm_moments(network, FLOAT, BATCHES[0])
