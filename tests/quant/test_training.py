"""Training by phases, and batch norm that lives while its network trains on the lattice."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import compressjax as cj
from compressjax import quant


class Net(nn.Module):
    """A convolution with batch norm, pooled."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(6, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.5)(x))
        return nn.Dense(3)(x.mean(axis=(1, 2)))


MODEL = Net()
X = jax.random.normal(jax.random.key(0), (16, 8, 8, 2)) + 0.5
LABELS = jax.random.randint(jax.random.key(1), (16,), 0, 3)
VARIABLES = MODEL.init(jax.random.key(2), X)


def train_mode(variables, x):
    return MODEL.apply(variables, x, train=True, mutable=["batch_stats"])


@pytest.fixture(scope="module")
def calibrated():
    q = cj.quantize(MODEL.apply)
    return q, q.calibrate(VARIABLES, [X])


def test_one_compilation_serves_all_phases(calibrated):
    q, qv = calibrated
    forward = quant.phased(q, start=1, freeze=2)
    traces = []

    @jax.jit
    def step(qv, count):
        traces.append(count)
        return forward(qv, count, 1.5 * X)

    outputs, moved = zip(*(step(qv, jnp.int32(count)) for count in range(3)), strict=True)
    assert len(traces) == 1
    np.testing.assert_allclose(outputs[0], MODEL.apply(VARIABLES, 1.5 * X), atol=1e-5)
    np.testing.assert_array_equal(outputs[1], q.apply(qv, 1.5 * X))
    np.testing.assert_array_equal(outputs[2], outputs[1])
    high = [float(m["quant"]["input_0"]["high"]) for m in moved]
    assert high[0] == high[1] > high[2] == float(qv["quant"]["input_0"]["high"])


def test_phases_out_of_order_are_refused(calibrated):
    with pytest.raises(ValueError, match="start is 5 and freeze 3"):
        quant.phased(calibrated[0], start=5, freeze=3)


def test_watching_gives_the_float_outputs_and_moves_ranges(calibrated):
    q, qv = calibrated
    outputs, moved = q.watch(qv, 2.0 * X)
    np.testing.assert_allclose(outputs, MODEL.apply(VARIABLES, 2.0 * X), rtol=1e-5, atol=1e-5)
    old, new = (float(v["quant"]["input_0"]["high"]) for v in (qv, moved))
    assert new == pytest.approx(0.99 * old + 0.01 * float(2.0 * X.max()), rel=1e-5)


def test_live_batch_norm_trains_and_ships_the_graph_it_simulated(calibrated):
    q, qv = calibrated
    observe = quant.live_batch_norm(q.observe, train_mode)
    tx = optax.adam(1e-2)

    def loss(params, qv):
        logits, new = observe({**qv, "params": params}, X)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, LABELS)
        return losses.mean(), new

    @jax.jit
    def step(qv, state):
        (value, new), gradient = jax.value_and_grad(loss, has_aux=True)(qv["params"], qv)
        updates, state = tx.update(gradient, state)
        return {**new, "params": optax.apply_updates(qv["params"], updates)}, state, value

    state, losses = tx.init(qv["params"]), []
    for _ in range(20):
        qv, state, value = step(qv, state)
        losses.append(float(value))
    assert losses[-1] < 0.9 * losses[0]
    seen = qv["batch_stats"]["BatchNorm_0"]["mean"]
    batch = nn.Conv(6, (3, 3), use_bias=False).apply({"params": qv["params"]["Conv_0"]}, X)
    np.testing.assert_allclose(seen, batch.mean((0, 1, 2)), atol=0.15)
    live = cj.export.tflite(q, qv, X[:1], via="litert")
    assert cj.export.verify(live, q, qv, X).max_lsb == 0

    fn, folded = cj.fold_batch_norm(MODEL.apply, {k: qv[k] for k in VARIABLES}, X)
    after = cj.quantize(fn)
    folded = {**folded, "quant": qv["quant"]}
    shipped = cj.export.tflite(after, folded, X[:1], via="litert")
    assert cj.export.verify(shipped, after, folded, X).max_lsb == 0
    np.testing.assert_allclose(
        cj.export.run(shipped, X), cj.export.run(live, X), atol=float(jnp.abs(X).max()) / 20
    )
