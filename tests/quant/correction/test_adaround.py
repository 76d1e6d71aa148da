"""AdaRound: its functions against the paper's equations, its choices against nearest rounding."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

import compressjax as cj
from compressjax import quant, tree
from compressjax.quant.correction import patches
from compressjax.quant.correction.adaround import (
    Problem,
    annealed,
    choose,
    indecision,
    reconstruction,
    rectified_sigmoid,
    soft_variable,
)
from compressjax.quant.plan import Step

RNG = np.random.default_rng(0)
LAYOUT = ("NHWC", "HWIO", "NHWC")


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


@given(st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=8))
def test_rectified_sigmoid_is_equation_23(values):
    v = np.asarray(values, "float64")
    wanted = np.clip(sigmoid(v) * (1.1 + 0.1) - 0.1, 0, 1)
    found = rectified_sigmoid(jnp.asarray(v, jnp.float32))
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@given(st.floats(0, 1, width=32))
def test_soft_variables_start_where_the_weights_are(share):
    found = rectified_sigmoid(soft_variable(jnp.float32(share)))
    np.testing.assert_allclose(found, share, atol=1e-6)


@given(st.floats(0, 1, width=32), st.floats(2, 20, width=32))
def test_indecision_is_equation_24(h, beta):
    wanted = 1 - np.abs(2 * np.float64(h) - 1) ** np.float64(beta)
    np.testing.assert_allclose(indecision(jnp.float32(h), beta), wanted, atol=1e-5)


def test_the_exponent_falls_from_20_to_2_after_a_fifth_of_the_steps():
    progress = np.linspace(0, 1, 101)
    found = np.asarray(annealed(jnp.asarray(progress, jnp.float32)))
    np.testing.assert_allclose(found[:21], 20.0, rtol=1e-5)
    assert (np.diff(found[20:]) < 0).all()
    np.testing.assert_allclose(found[-1], 2.0, rtol=1e-5)


def conv(x, kernel, step):
    return lax.conv_general_dilated(x, kernel, dimension_numbers=LAYOUT, **step.params)


@pytest.mark.parametrize(
    ("groups", "strides", "padding", "dilation"),
    [(1, (1, 1), "SAME", (1, 1)), (2, (2, 1), "VALID", (1, 2)), (4, (2, 2), "SAME", (1, 1))],
)
def test_patches_times_the_matrix_are_the_convolution(groups, strides, padding, dilation):
    params = {
        "window_strides": strides, "padding": padding, "rhs_dilation": dilation,
        "feature_group_count": groups,
    }  # fmt: skip
    x = jnp.asarray(RNG.normal(size=(2, 7, 8, 4)), jnp.float32)
    kernel = jnp.asarray(RNG.normal(size=(3, 2, 4 // groups, 8)), jnp.float32)
    shape = jax.eval_shape(lambda: conv(x, kernel, Step("c", "conv", (), (), params))).shape
    step = Step("c", "conv", ("x",), shape, params)
    rows = jnp.asarray(RNG.permutation(shape[0] * shape[1] * shape[2])[:9])
    taken = patches.sample(step, x, kernel.shape, rows)
    found = jnp.matmul(taken, patches.to_matrix(step, kernel))
    wanted = patches.by_group(step, conv(x, kernel, step).reshape(-1, 8)[rows])
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    back = patches.from_matrix(patches.to_matrix(step, kernel), kernel.shape)
    np.testing.assert_array_equal(back, kernel)


def problem(seed, k=8, out=1):
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(1, k, out))
    x = np.maximum(rng.normal(size=(1, 256, k)) @ rng.normal(size=(1, k, k)) + 0.5, 0)
    below = np.floor(kernel)
    arrays = (x, np.maximum(x @ kernel, 0), below, below + 1, kernel - below, np.zeros((1, 1, out)))
    bounds = (np.float32(0), np.float32(np.inf))
    return Problem(*(jnp.asarray(a, jnp.float32) for a in (*arrays, *bounds)))


def error(p, up):
    kernel = np.where(up, p.above, p.below).astype("float64")
    y = np.clip(np.asarray(p.inputs, "float64") @ kernel, 0, None)
    return ((y - np.asarray(p.targets)) ** 2).sum((0, 2)).mean()


def test_choices_gain_most_of_what_the_best_of_all_choices_would():
    nearest, chosen, best = [], [], []
    for seed in range(8):
        p = problem(seed)
        up = np.asarray(choose(p, steps=500, rows=64, weight=64.0))
        every = itertools.product([False, True], repeat=8)
        best.append(min(error(p, np.reshape(choice, (1, 8, 1))) for choice in every))
        nearest.append(error(p, np.asarray(p.share) > 0.5))
        chosen.append(error(p, up))
        found = reconstruction(p, jnp.where(up, p.above, p.below))
        np.testing.assert_allclose(found, chosen[-1], rtol=1e-3)
    assert all(x <= y * (1 + 1e-6) for x, y in zip(chosen, nearest, strict=True))
    assert sum(nearest) - sum(chosen) > 0.6 * (sum(nearest) - sum(best))


def test_the_unit_of_outputs_does_not_matter():
    p = problem(0)
    large = p._replace(targets=8 * p.targets, below=8 * p.below, above=8 * p.above, bias=8 * p.bias)
    first, second = (choose(each, steps=500, rows=64, weight=64.0) for each in (p, large))
    np.testing.assert_array_equal(first, second)


def network(v, x):
    y = lax.conv_general_dilated(x, v["a"]["kernel"], (1, 1), "SAME", dimension_numbers=LAYOUT)
    y = jax.nn.relu(y + v["a"]["bias"].reshape(1, 1, 1, -1))
    y = lax.conv_general_dilated(
        y, v["b"]["kernel"], (2, 2), "SAME", dimension_numbers=LAYOUT, feature_group_count=8
    )
    return jax.nn.relu6(y).reshape(y.shape[0], -1) @ v["c"]["kernel"]


def variables():
    shapes = {"a": (3, 3, 4, 8), "b": (3, 3, 1, 8), "c": (72, 6)}
    made = {}
    for name, shape in shapes.items():
        kernel = RNG.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))
        kernel *= RNG.uniform(size=shape) > 0.3  # pruned
        made[name] = {"kernel": jnp.asarray(kernel, jnp.float32)}
    made["a"]["bias"] = jnp.asarray(RNG.normal(size=8) * 0.1, jnp.float32)
    return made


FLOAT = variables()
BATCHES = [RNG.normal(size=(n, 6, 6, 4)).cumsum(1).astype("float32") for n in (192, 64)]


@pytest.fixture(scope="module")
def rounded():
    q = cj.quantize(network, quant.uniform(weights=3, activations=8))
    qv = q.calibrate(FLOAT, BATCHES, observer=quant.min_max())
    return q, qv, quant.adaround(q, qv, BATCHES, steps=300, rng=jax.random.key(0))


def test_outputs_are_closer_than_those_of_nearest_rounding(rounded):
    q, qv, found = rounded
    x = np.random.default_rng(9).normal(size=(64, 6, 6, 4)).cumsum(1).astype("float32")
    wanted, apply = network(FLOAT, x), jax.jit(q.apply)
    nearest, chosen = (
        float(np.square(np.asarray(apply(each, x) - wanted)).mean()) for each in (qv, found)
    )
    assert chosen < 0.6 * nearest


def test_weights_lie_on_the_grid_of_before_next_to_where_they_were(rounded):
    q, qv, found = rounded
    plan, spec = q.plan(qv, BATCHES[0]), quant.spec.layout
    for name, grid in spec(q.spec, plan).weights.items():
        before, after = (np.asarray(tree.paths(each)[name]) for each in (qv, found))
        scale = np.asarray(grid.fit(jnp.asarray(before)))
        codes = after / scale
        np.testing.assert_allclose(codes, np.round(codes), atol=1e-4)
        assert np.abs(np.round(codes) - before / scale).max() < 1 + 1e-4
        assert (np.round(codes) != np.round(before / scale)).any(), name
        # Rounding what was chosen to the nearest value, at the scale it is fitted again, keeps it.
        again = grid.project(jnp.asarray(after), grid.fit(jnp.asarray(after)))
        np.testing.assert_allclose(again, after, rtol=1e-5)


def test_pruned_weights_stay_zero_and_only_kernels_change(rounded):
    _, qv, found = rounded
    for path, leaf in tree.paths(found).items():
        before = np.asarray(tree.paths(qv)[path])
        if path in ("a/kernel", "b/kernel", "c/kernel"):
            assert (before == 0).any()
            assert (np.asarray(leaf)[before == 0] == 0).all(), path
        else:
            np.testing.assert_array_equal(leaf, before)


def test_a_norm_behind_the_kernel_is_divided_out():
    def fn(v, x):
        return (x @ v["kernel"]) * v["gamma"].reshape(1, -1)

    v = {
        "kernel": jnp.asarray(RNG.normal(size=(8, 3)), jnp.float32),
        "gamma": jnp.array([2.0, -0.3, 0.0]),
    }
    x = np.maximum(RNG.normal(size=(64, 8)), 0).astype("float32")
    q = cj.quantize(fn, quant.uniform(weights=3, activations=8))
    qv = q.calibrate(v, [x])
    found = quant.adaround(q, qv, [x], steps=100, rng=jax.random.key(1))
    merged = np.asarray(v["kernel"] * v["gamma"].reshape(1, -1))
    codes = np.asarray(found["kernel"] * v["gamma"].reshape(1, -1)) * 3
    codes = codes[:, :2] / np.abs(merged).max(0)[:2]
    np.testing.assert_allclose(codes, np.round(codes), atol=1e-4)
    error = [np.square(np.asarray(q.apply(each, x) - fn(v, x))).mean() for each in (qv, found)]
    assert error[1] <= error[0]


def test_the_same_key_gives_the_same_choice_per_tensor():
    v = {"kernel": jnp.asarray(RNG.normal(size=(16, 4)), jnp.float32)}
    x = np.maximum(RNG.normal(size=(64, 16)), 0).astype("float32")
    q = cj.quantize(
        lambda v, x: x @ v["kernel"], quant.uniform(weights=3, activations=8, per_channel=False)
    )
    qv = q.calibrate(v, [x])
    keys = [jax.random.key(0), jax.random.key(0), jax.random.key(1)]
    first, second, other = (
        quant.adaround(q, qv, [x], steps=50, samples=16, rows=8, rng=key)["kernel"] for key in keys
    )
    np.testing.assert_array_equal(first, second)
    assert (np.asarray(first) != np.asarray(other)).any()
    codes = np.asarray(first) / np.abs(np.asarray(v["kernel"])).max() * 3
    np.testing.assert_allclose(codes, np.round(codes), atol=1e-4)


def test_layers_that_cannot_be_rounded_are_named():
    v = {"kernel": jnp.asarray(RNG.normal(size=(3, 3)), jnp.float32)}
    x = RNG.normal(size=(4, 3)).astype("float32")
    key = jax.random.key(0)

    twice = cj.quantize(lambda v, x: x @ v["kernel"] @ v["kernel"], quant.int8())
    with pytest.raises(
        ValueError, match="kernel of 'kernel' is computed from variables or used tw"
    ):
        quant.adaround(twice, twice.calibrate(v, [x]), [x], rng=key)

    grid = quant.grids.integer(4)._replace(fit=lambda w, keep=None: jnp.abs(w).mean(0) * 0.3)
    moving = cj.quantize(lambda v, x: x @ v["kernel"], quant.int8(weights={"**": grid}))
    with pytest.raises(ValueError, match=r"of 'kernel' moves when it is fitted"):
        quant.adaround(moving, moving.calibrate(v, [x]), [x], steps=5, rng=key)

    q = cj.quantize(lambda v, x: x @ v["kernel"], quant.int8())
    with pytest.raises(ValueError, match="select pattern 'other' matches none"):
        quant.adaround(q, q.calibrate(v, [x]), [x], select="other", rng=key)


def test_kernels_that_the_spec_leaves_stay_as_they_are():
    v = {name: jnp.asarray(RNG.normal(size=(8, 8)), jnp.float32) for name in ("a", "b")}
    x = np.maximum(RNG.normal(size=(32, 8)), 0).astype("float32")
    spec = quant.uniform(weights=3, activations=8, rules={"a": None})
    q = cj.quantize(lambda v, x: jax.nn.relu(x @ v["a"]) @ v["b"], spec)
    found = quant.adaround(q, q.calibrate(v, [x]), [x], steps=5, rng=jax.random.key(0))
    np.testing.assert_array_equal(found["a"], v["a"])
    assert (np.asarray(found["b"]) != np.asarray(v["b"])).any()
