"""Learned step sizes and clips against the formulas of their papers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import compressjax as cj
from compressjax import quant

X = jnp.array([[-3.0, -0.9, -0.21, 0.0, 0.26, 0.7, 1.1, 5.0]])
OUT = jnp.array([[0.3, -1.0, 0.5, 2.0, -0.7, 1.3, 0.2, 0.9]])


def identity(variables, x):
    """One tensor, quantized once: the input's grid is the only one."""
    del variables
    return x.reshape(1, -1)


def with_range(q, low, high):
    qv = q.calibrate({}, [X])
    ends = {"low": jnp.float32(low), "high": jnp.float32(high)}
    return {"quant": jax.tree.map(lambda _: None, qv["quant"]) | {"input_0": ends}}


@pytest.mark.parametrize("bits", [8, 4, 3])
@pytest.mark.parametrize("zero", [0, 2])
def test_the_gradient_of_the_step_is_that_of_lsq(bits, zero):
    q = cj.quantize(identity, quant.uniform(weights=8, activations=bits, learning=quant.lsq()))
    lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    step = 2.0 / (highest - lowest)
    qv = with_range(q, (lowest - zero) * step, (highest - zero) * step)
    gradient = jax.grad(lambda qv: (q.apply(qv, X) * OUT).sum())(qv)["quant"]["input_0"]
    # The ends are (lowest - zero) and (highest - zero) times the step: the chain rule.
    found = gradient["low"] * (lowest - zero) + gradient["high"] * (highest - zero)
    v = np.asarray(X, np.float64) / step
    inside = np.rint(v) - v  # Esser et al. (2020), equation 3
    formula = np.where(
        v <= lowest - zero, lowest - zero, np.where(v >= highest - zero, highest - zero, inside)
    )
    expected = (formula * np.asarray(OUT)).sum() / np.sqrt(X.size * highest)
    np.testing.assert_allclose(found, expected, rtol=2e-4)


def test_the_gradient_of_the_offset_is_that_of_lsq_plus():
    q = cj.quantize(identity, quant.uniform(weights=8, activations=4, learning=quant.lsq()))
    qv = with_range(q, -0.8, 0.7)
    gradient = jax.grad(lambda qv: (q.apply(qv, X) * OUT).sum())(qv)["quant"]["input_0"]
    # Moving both ends moves the offset: one where a value is clipped, nothing inside
    # (Bhalgat et al., 2020, equation 6).
    clipped = (np.asarray(X) < -0.85) | (np.asarray(X) > 0.75)
    expected = (clipped * np.asarray(OUT)).sum() / np.sqrt(X.size * 7)
    np.testing.assert_allclose(gradient["low"] + gradient["high"], expected, rtol=1e-4)


@pytest.mark.parametrize("bits", [8, 4])
def test_the_gradient_of_the_clip_is_that_of_pact(bits):
    spec = quant.uniform(weights=8, activations=bits, learning=quant.pact())

    def fn(variables, x):
        return jax.nn.relu(x @ variables["kernel"])

    q = cj.quantize(fn, spec)
    variables = {"kernel": jnp.eye(8)}
    qv = q.calibrate(variables, [X], observer=quant.min_max())
    clip = 1.0
    qv["quant"]["kernel"]["high"] = jnp.float32(clip)
    gradient = jax.grad(lambda qv: (q.apply(qv, X) * OUT).sum())(qv)["quant"]
    real = np.asarray(q.apply(qv, X))
    assert real.max() == pytest.approx(clip)
    expected = ((np.asarray(X) >= 1.05) * np.asarray(OUT)).sum()  # Choi et al. (2018), equation 3
    np.testing.assert_allclose(gradient["kernel"]["high"], expected, rtol=1e-5)
    assert gradient["kernel"]["low"] == 0.0
    assert gradient["input_0"]["high"] == 0.0 or bits == 4


def test_a_tensor_that_starts_at_zero_stays_so_while_it_learns():
    q = cj.quantize(
        lambda v, x: jax.nn.relu(x @ v["kernel"]),
        quant.uniform(weights=4, activations=4, learning=quant.lsq()),
    )
    qv = q.calibrate({"kernel": jnp.eye(8)}, [X])
    assert qv["quant"]["kernel"]["low"] == 0.0
    gradient = jax.grad(lambda qv: (q.apply(qv, X) ** 2).sum())(qv)["quant"]["kernel"]
    assert gradient["low"] == 0.0
    assert gradient["grid"].shape == (8,)  # the kernel's own steps


def test_learned_ranges_are_not_moved_by_observing():
    spec = quant.uniform(weights=4, activations=4, learning=quant.lsq())
    q = cj.quantize(lambda v, x: x @ v["kernel"], spec)
    qv = q.calibrate({"kernel": jnp.eye(8)}, [X])
    _, moved = jax.jit(q.observe)(qv, 10.0 * X)
    assert jax.tree.structure(moved) == jax.tree.structure(qv)
    for path, leaf in cj.tree.paths(qv["quant"]).items():
        np.testing.assert_array_equal(cj.tree.paths(moved["quant"])[path], leaf, err_msg=path)


def test_params_of_learned_grids_that_are_missing_are_named():
    spec = quant.uniform(weights=4, activations=4, learning=quant.lsq())
    q = cj.quantize(lambda v, x: x @ v["kernel"], spec)
    other = cj.quantize(lambda v, x: x @ v["kernel"], quant.uniform(weights=4, activations=4))
    qv = other.calibrate({"kernel": jnp.eye(8)}, [X])
    with pytest.raises(ValueError, match=r"no 'kernel/grid' of shape \(8,\).*calibrate first"):
        q.apply(qv, X)


def test_learning_the_steps_lowers_the_error_of_three_bits():
    key = jax.random.key(0)
    w = jax.random.normal(key, (8, 8)) * jnp.logspace(-1, 0, 8)[None]
    x = jax.random.normal(jax.random.key(1), (256, 8)) ** 3

    def fn(variables, x):
        return jax.nn.relu(x @ variables["params"]["kernel"])

    variables = {"params": {"kernel": w}}
    q = cj.quantize(fn, quant.uniform(weights=3, activations=3, learning=quant.lsq()))
    qv = q.calibrate(variables, [x], observer=quant.min_max())
    tx = optax.adam(5e-2)

    def loss(trained, qv):
        return ((q.apply({**qv, **trained}, x) - fn(variables, x)) ** 2).mean()

    @jax.jit
    def step(trained, state):
        value, gradient = jax.value_and_grad(loss)(trained, qv)
        updates, state = tx.update(gradient, state)
        return optax.apply_updates(trained, updates), state, value

    trained = {"quant": qv["quant"]}  # the weights stay: only steps and ends learn
    state, losses = tx.init(trained), []
    for _ in range(60):
        trained, state, value = step(trained, state)
        losses.append(float(value))
    assert losses[-1] < 0.7 * losses[0]
