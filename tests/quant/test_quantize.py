"""A quantized function: calibrated, run, trained through, and frozen, always the same integers."""

import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import compressjax as cj
from compressjax import tree

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 6, 6, 3)).astype("float32")


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        y = nn.relu6(nn.Conv(6, (3, 3), feature_group_count=6)(x))
        x = nn.relu(x + nn.Conv(6, (1, 1))(y))
        return nn.Dense(3)(x.mean((1, 2)))


def spread(path, leaf):
    if leaf.ndim != 1:
        return leaf
    rng = np.random.default_rng(len(path))
    low, high = (0.5, 1.5) if path.endswith(("var", "scale")) else (-0.3, 0.3)
    return jnp.asarray(rng.uniform(low, high, leaf.shape), "float32")


FN = Network().apply
VARIABLES = tree.map_with_path(spread, jax.jit(Network().init)(jax.random.key(0), X))
Q = cj.quantize(FN, cj.quant.int8())
QV = Q.calibrate(VARIABLES, [X[:8], X[8:]], observer=cj.quant.min_max())


def codes_of(step, values):
    return np.round(np.asarray(values, "float64") / step.scale + step.zero_point)


def linear(v, x):
    return x @ v["params"]["kernel"] + v["params"]["bias"][None]


def linear_variables(kernel, bias):
    return {
        "params": {"kernel": jnp.asarray(kernel, "float32"), "bias": jnp.asarray(bias, "float32")}
    }


def test_calibration_adds_one_collection_and_changes_nothing_else():
    assert set(QV) == {*VARIABLES, "quant"}
    jax.tree.map(np.testing.assert_array_equal, {k: QV[k] for k in VARIABLES}, VARIABLES)
    names = {path.rpartition("/")[0] for path in tree.paths(QV["quant"])}
    assert names == set(Q.plan(VARIABLES, X).observed)


def test_ranges_are_what_the_float_network_shows():
    found = {}
    graph = cj.trace(FN, VARIABLES, X)

    def after(op, outputs):
        found[op.name] = outputs[0]
        return outputs

    from compressjax.graph import interpret

    interpret(graph, VARIABLES, X, after=after)
    quant = tree.paths(QV["quant"])
    for name, values in {"input_0": X, "params/Dense_0/kernel": FN(VARIABLES, X)}.items():
        np.testing.assert_allclose(quant[f"{name}/low"], values.min(), rtol=1e-4)
        np.testing.assert_allclose(quant[f"{name}/high"], values.max(), rtol=1e-4)
    relu = np.maximum(np.asarray(found["relu_0"]), 0)
    np.testing.assert_allclose(quant["params/Conv_0/kernel/high"], relu.max(), rtol=1e-4)


def test_calibrating_again_does_not_read_the_old_ranges():
    again = Q.calibrate(QV, [X[:8], X[8:]], observer=cj.quant.min_max())
    jax.tree.map(np.testing.assert_array_equal, again, QV)


def test_the_output_is_close_to_the_float_function():
    error = np.abs(Q.apply(QV, X) - FN(VARIABLES, X)).max()
    assert 0 < error < 0.05 * np.abs(FN(VARIABLES, X)).max()


def test_jit_equals_eager_to_the_bit():
    np.testing.assert_array_equal(jax.jit(Q.apply)(QV, X), Q.apply(QV, X))
    eager, jitted = Q.intermediates(QV, X), jax.jit(Q.intermediates)(QV, X)
    jax.tree.map(np.testing.assert_array_equal, jitted, eager)
    assert all(codes.dtype == jnp.int8 for codes in eager.values())


def test_jit_equals_eager_at_ties_of_the_input():
    # At this seed a compiler that simplifies 1 / (width / 255) moves one input by a code.
    x = np.random.default_rng(2).normal(size=(64, 8, 8, 4)).astype("float32") * 1e-3
    q = cj.quantize(lambda v, x: x * 2.0)
    qv = q.calibrate({}, [x[:32]])
    np.testing.assert_array_equal(jax.jit(q.apply)(qv, x), q.apply(qv, x))


def test_rows_do_not_depend_on_the_batch():
    whole = jax.jit(Q.apply)(QV, X)
    for size in (1, 3, 16):
        np.testing.assert_array_equal(jax.jit(Q.apply)(QV, X[:size]), whole[:size])


def test_vmap_over_rows_equals_the_batch():
    rows = jax.jit(jax.vmap(lambda x: Q.apply(QV, x[None])[0]))(X)
    np.testing.assert_array_equal(rows, jax.jit(Q.apply)(QV, X))


def test_vmap_over_variables():
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), QV)
    both = jax.vmap(Q.apply, (0, None))(stacked, X)
    np.testing.assert_array_equal(both[0], Q.apply(QV, X))
    np.testing.assert_array_equal(both[0], both[1])


def test_a_float_scalar_of_the_spec_does_not_leak_between_functions():
    other = cj.quantize(FN, cj.quant.int8(per_channel=False))
    per_tensor = other.apply(QV, X)
    assert (np.asarray(per_tensor) != np.asarray(Q.apply(QV, X))).any()
    np.testing.assert_array_equal(other.apply(QV, X), per_tensor)


def test_gradients_are_close_to_those_of_the_float_function():
    target = RNG.normal(size=(16, 3)).astype("float32")

    def loss(function):
        return lambda params, v: ((function({**v, "params": params}, X) - target) ** 2).mean()

    found = jax.jit(jax.grad(loss(Q.apply)))(QV["params"], QV)
    wanted = jax.jit(jax.grad(loss(FN)))(VARIABLES["params"], VARIABLES)
    for path, gradient in tree.paths(found).items():
        reference = np.asarray(tree.paths(wanted)[path]).ravel()
        gradient = np.asarray(gradient).ravel()
        cosine = gradient @ reference / np.linalg.norm(gradient) / np.linalg.norm(reference)
        assert cosine > 0.95, (path, cosine)
        assert 0.8 < np.linalg.norm(gradient) / np.linalg.norm(reference) < 1.25, path


def test_ranges_get_no_gradient():
    gradients = jax.grad(lambda qv: Q.apply(qv, X).sum())(QV)
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(gradients["quant"]))


def test_an_optimizer_trains_through_the_lattice():
    labels = np.asarray(X.mean((1, 2)).argmax(-1))
    tx = optax.adam(0.02)

    def loss(params, qv):
        logits, new = Q.observe({**qv, "params": params}, X)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new

    @jax.jit
    def step(qv, state):
        (value, new), gradients = jax.value_and_grad(loss, has_aux=True)(qv["params"], qv)
        updates, state = tx.update(gradients, state)
        return {**new, "params": optax.apply_updates(qv["params"], updates)}, state, value

    qv, state, losses = QV, tx.init(QV["params"]), []
    for _ in range(12):
        qv, state, value = step(qv, state)
        losses.append(float(value))
    assert losses[-1] < 0.7 * losses[0]
    assert jax.tree.structure(qv) == jax.tree.structure(QV)


def test_observe_gives_the_outputs_of_apply_and_moves_the_ranges():
    outputs, new = Q.observe(QV, 3.0 * X)
    np.testing.assert_array_equal(outputs, Q.apply(QV, 3.0 * X))
    old, moved = tree.paths(QV["quant"]), tree.paths(new["quant"])
    assert moved.keys() == old.keys()
    expected = 0.99 * old["input_0/high"] + 0.01 * 3.0 * X.max()
    assert old["input_0/high"] < moved["input_0/high"]
    np.testing.assert_allclose(moved["input_0/high"], expected, rtol=1e-2)
    jax.tree.map(np.testing.assert_array_equal, new["params"], QV["params"])


def test_frozen_numbers_are_those_of_the_forward():
    frozen = Q.freeze(QV, X)
    plan = Q.plan(QV, X)
    codes = {name: np.asarray(value) for name, value in Q.intermediates(QV, X).items()}
    grids = frozen.quantization()
    assert list(codes) == [*(name for name, *_ in frozen.inputs), *(s.name for s in frozen.steps)]
    scale, zero_point = grids[frozen.outputs[0]]
    real = np.float32(scale) * (codes[frozen.outputs[0]].astype("float32") - zero_point)
    np.testing.assert_array_equal(real, Q.apply(QV, X))
    scale, zero_point = grids["input_0"]
    wanted = np.clip(np.round(X / np.float32(scale)) + zero_point, -128, 127)
    assert np.abs(codes["input_0"] - wanted).max() <= 1
    assert [step.name for step in frozen.steps] == [step.name for step in plan.steps]


def test_a_frozen_step_computes_what_its_codes_say():
    frozen = Q.freeze(QV, X)
    codes = Q.intermediates(QV, X)
    grids = frozen.quantization()

    def real(name):
        scale, zero_point = grids[name]
        return np.float32(scale) * (np.asarray(codes[name], "float32") - zero_point)

    for step in frozen.steps:
        constants = [constant.dequantize() for constant in step.constants]
        exact = step.apply(*map(real, step.inputs), *constants)
        found = np.asarray(codes[step.name], "float64")
        wanted = np.clip(np.asarray(exact) / step.scale + step.zero_point, -128, 127)
        assert np.abs(found - wanted).max() <= 0.51, step.name


def test_frozen_weights_are_symmetric_codes_of_the_folded_kernels():
    folded, new = cj.fold_batch_norm(FN, VARIABLES, X)
    kernel = np.asarray(new["params"]["Conv_0"]["kernel"])
    weight, bias = Q.freeze(QV, X).steps[0].constants
    scale = np.abs(kernel).max((0, 1, 2)) / 127
    np.testing.assert_allclose(weight.scale, scale, rtol=1e-4)
    assert np.abs(weight.codes - kernel / scale).max() < 0.51
    assert weight.codes.dtype == np.int8 and np.abs(weight.codes.astype(int)).max() == 127
    assert bias.codes.dtype == np.int32
    np.testing.assert_allclose(bias.dequantize(), new["params"]["Conv_0"]["bias"], atol=1e-3)


def test_folding_first_gives_the_same_within_a_step():
    folded, new = cj.fold_batch_norm(FN, VARIABLES, X)
    q = cj.quantize(folded, cj.quant.int8())
    qv = {**new, "quant": QV["quant"]}
    before, after = Q.intermediates(QV, X), q.intermediates(qv, X)
    assert before.keys() == after.keys()
    for name in before:
        difference = np.abs(np.asarray(before[name], int) - np.asarray(after[name], int))
        assert difference.max() <= 1, name


def test_per_tensor_weights_have_one_scale():
    q = cj.quantize(FN, cj.quant.int8(per_channel=False))
    for step in q.freeze(QV, X).steps:
        for constant in step.constants:
            assert constant.scale.shape == () and constant.axis is None


def test_functions_with_several_inputs_and_outputs():
    def fn(v, x, y):
        h = jax.nn.relu(x["a"] @ v["params"]["w"]) + y
        return {"h": h, "gate": jax.nn.sigmoid(h)}

    variables = {"params": {"w": RNG.normal(size=(3, 4)).astype("float32")}}
    x, y = {"a": X[:, 0, 0]}, RNG.normal(size=(16, 4)).astype("float32")
    q = cj.quantize(fn)
    qv = q.calibrate(variables, [(x, y)])
    found, wanted = q.apply(qv, x, y), fn(variables, x, y)
    assert found.keys() == wanted.keys()
    for name in found:
        np.testing.assert_allclose(found[name], wanted[name], atol=0.1)


@pytest.mark.parametrize("bias", [0.0, 5.0, -5.0, 1e4])
def test_dead_channels_stay_finite(bias):
    kernel = RNG.normal(size=(3, 4)).astype("float32")
    kernel[:, 1] = 0.0
    kernel[:, 2] *= 1e-9
    variables = linear_variables(kernel, [0.1, bias, bias, -0.1])
    q = cj.quantize(linear)
    qv = q.calibrate(variables, [X[:, 0, 0]])
    outputs = q.apply(qv, X[:, 0, 0])
    assert np.isfinite(outputs).all()
    frozen = q.freeze(qv, X[:, 0, 0])
    weight, codes = frozen.steps[0].constants
    assert (weight.scale > 0).all() and np.isfinite(weight.scale).all()
    assert (np.abs(codes.codes.astype("int64")) <= 2**22 + 1).all()
    step = frozen.steps[0].scale
    np.testing.assert_allclose(outputs[:, 1], np.full(16, bias), atol=1.01 * step)


@pytest.mark.parametrize("value", [0.0, 1.0, -2.5])
def test_a_constant_input_has_a_grid(value):
    variables = linear_variables(RNG.normal(size=(3, 4)), np.zeros(4))
    x = np.full((4, 3), value, "float32")
    q = cj.quantize(linear)
    qv = q.calibrate(variables, [x])
    outputs = q.apply(qv, x)
    np.testing.assert_allclose(outputs, linear(variables, x), atol=0.05)
    assert q.freeze(qv, x).quantization()["input_0"][0] > 0


def test_values_out_of_range_saturate():
    outputs = Q.apply(QV, 100.0 * X)
    step = Q.freeze(QV, X).steps[-1]
    low, high = (step.scale * (code - step.zero_point) for code in (-128, 127))
    assert np.asarray(outputs).min() >= low - 1e-6 and np.asarray(outputs).max() <= high + 1e-6


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no batches"),
        (iter(()), "no batches"),
        ([np.full_like(X, np.nan)], r"range of '.*expected finite.*NaN or infinity"),
        ([np.full_like(X, np.inf)], "expected finite"),
        ([X, np.full_like(X, -np.inf)], "expected finite"),
        (X, "one array of shape"),
    ],
)
@pytest.mark.parametrize("observer", [cj.quant.min_max(), cj.quant.moving_average()])
def test_calibration_refuses_bad_batches(batches, message, observer):
    with pytest.raises(ValueError, match=message):
        Q.calibrate(VARIABLES, batches, observer=observer)


def test_nan_weights_are_refused():
    broken = tree.replace(VARIABLES, {"params/Dense_0/bias": jnp.full(3, jnp.nan)})
    with pytest.raises(ValueError, match=r"'params/Dense_0/kernel' is \[nan, nan\]"):
        Q.calibrate(broken, [X])


@pytest.mark.parametrize("use", ["apply", "observe", "intermediates", "freeze"])
def test_uncalibrated_variables_are_refused(use):
    with pytest.raises(ValueError, match="calibrate first"):
        getattr(Q, use)(VARIABLES, X)
    other = cj.quantize(lambda v, x: x * 2.0).calibrate({}, [X])
    with pytest.raises(ValueError, match=r"no range for .*params/Conv_0/kernel.*another function"):
        getattr(Q, use)({**VARIABLES, "quant": other["quant"]}, X)


def test_freezing_refuses_ranges_that_are_not_finite():
    quant = tree.replace(QV["quant"], {"input_0/high": jnp.float32(jnp.nan)})
    with pytest.raises(ValueError, match="'input_0'"):
        Q.freeze({**QV, "quant": quant}, X)


@pytest.mark.parametrize("decay", [-1.0, 1.0])
def test_a_decay_outside_its_interval_is_refused(decay):
    with pytest.raises(ValueError, match="decay"):
        cj.quant.int8(decay=decay)


SAME_CODES_IN_EVERY_FORM = """
import flax.linen as nn, jax, numpy as np, compressjax as cj

class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        for features in (32, 64, 64):
            x = nn.Conv(features, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        return nn.Dense(3)(x.mean((1, 2)))

rng = np.random.default_rng(0)
x = rng.normal(size=(16, 8, 8, 1)).astype("float32")
initial = jax.jit(Network().init)(jax.random.key(0), x)

def moved(path, leaf):
    noise = 0.2 * rng.normal(size=leaf.shape).astype("float32")
    return leaf + abs(noise) if "var" in str(path) else leaf + noise * (leaf.ndim == 1)

q = cj.quantize(Network().apply, cj.quant.int8())
ranges = q.calibrate(initial, [x])["quant"]
jitted = jax.jit(q.intermediates)
for _ in range(8):
    variables = jax.tree_util.tree_map_with_path(moved, initial)
    qv = {**variables, "quant": ranges}
    jax.tree.map(np.testing.assert_array_equal, q.intermediates(qv, x), jitted(qv, x))

fn, variables = cj.fold_batch_norm(Network().apply, variables, x)
q = cj.quantize(fn, cj.quant.int8())
qv = q.calibrate(variables, [x])
closed_over = jax.jit(lambda x: q.intermediates(qv, x))
jax.tree.map(np.testing.assert_array_equal, q.intermediates(qv, x), closed_over(x))
"""


def test_compilers_at_full_strength_change_no_code():
    """The compiler's own settings, not the suite's quick ones; batch norm unfolded, then folded."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-c", SAME_CODES_IN_EVERY_FORM]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
