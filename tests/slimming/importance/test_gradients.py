"""Importance from gradients, against NumPy and against what the loss really does."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import compressjax as cj
from compressjax import pruning, slimming
from compressjax.graph.channels import Group, Member
from tests.support import importance_oracles as oracles

RNG = np.random.default_rng(0)
KERNEL, FIRST, SECOND = RNG.normal(size=(3, 3, 3, 4, 6))
GROUP = Group(
    "params/k", (Member("params/k", 3, np.arange(6), makes=True, kernel=True),), np.arange(6)
)
WEIGHTS = {"params/k": KERNEL}


def test_taylor():
    found = slimming.taylor([{"k": FIRST}, {"k": SECOND}])(GROUP, WEIGHTS)
    np.testing.assert_allclose(found, oracles.taylor(KERNEL, [FIRST, SECOND]))
    whole = slimming.taylor({"params": {"k": FIRST}})(GROUP, WEIGHTS)
    np.testing.assert_allclose(whole, oracles.taylor(KERNEL, [FIRST]))


@pytest.mark.parametrize("method", [slimming.diagonal_fisher, slimming.optimal_brain_damage])
def test_second_order(method):
    np.testing.assert_allclose(
        method({"k": FIRST})(GROUP, WEIGHTS), oracles.second_order(KERNEL, FIRST)
    )


def test_scores_of_weights_are_added_up():
    params = {"k": jnp.asarray(KERNEL, jnp.float32)}
    score = pruning.saliency()
    state = score.update({"k": jnp.asarray(FIRST, jnp.float32)}, score.init(params), params)
    found = slimming.of_weights(score.values(state, params))(GROUP, WEIGHTS)
    np.testing.assert_allclose(found, np.abs(KERNEL * FIRST).sum((0, 1, 2)), rtol=1e-5)


def test_kernels_that_are_cut_together_are_added_before_the_square():
    pair = (
        Member("a", 1, np.arange(2), makes=True, kernel=True),
        Member("b", 1, np.arange(2), makes=True, kernel=True),
    )
    ones = {"a": np.ones((1, 2)), "b": np.ones((1, 2))}
    gradients = {"a": np.array([[3.0, 1.0]]), "b": np.array([[-3.0, 2.0]])}
    found = slimming.taylor(gradients)(Group("a", pair, np.arange(2)), ones)
    assert found.tolist() == [0.0, 9.0]


def test_the_largest_change_counts_whatever_its_sign():
    pair = (
        Member("a", 1, np.arange(2), makes=True, kernel=True),
        Member("b", 1, np.arange(2), makes=True, kernel=True),
    )
    ones = {"a": np.ones((1, 2)), "b": np.ones((1, 2))}
    gradients = {"a": np.array([[-5.0, 1.0]]), "b": np.array([[1.0, 2.0]])}
    found = slimming.taylor(gradients, np.max)(Group("a", pair, np.arange(2)), ones)
    assert found.tolist() == [25.0, 4.0]


class Layers(NamedTuple):
    first: Any
    second: Any


@pytest.mark.parametrize(
    "tree",
    [
        lambda a, b: [a, b],
        Layers,
        lambda a, b: {"params": {"a": a, "b": b}, "batch_stats": {"mean": np.float32(0)}},
        lambda a, b: {"a": a, "b": b, "step": np.int32(3)},
    ],
    ids=["list", "named-tuple", "flax", "with-an-integer"],
)
def test_any_pytree_of_variables(tree):
    a, b = (RNG.normal(size=shape).astype(np.float32) for shape in ((5, 6), (6, 2)))
    x = RNG.normal(size=(3, 8, 5)).astype(np.float32)

    def fn(v, x):
        a, b = [leaf for leaf in jax.tree.leaves(v) if jnp.ndim(leaf) == 2]
        return jnp.tanh(x @ a) @ b

    def loss(v, x):
        return jnp.mean(jnp.square(fn(v, x)))

    variables = tree(a, b)
    (group,) = slimming.find_groups(fn, variables, x[0])
    leaves = cj.tree.paths(variables)
    each = slimming.batch_gradients(loss, variables, list(x))
    mean, squares = slimming.gradient_moments(loss, variables, list(x))
    by_hand = [jax.grad(lambda a, x: loss([a, b], x))(jnp.asarray(a), row) for row in x]
    expected = oracles.taylor(a, by_hand)
    np.testing.assert_allclose(slimming.taylor(each)(group, leaves), expected, rtol=1e-4)
    expected = oracles.taylor(a, [np.mean(by_hand, axis=0)])
    np.testing.assert_allclose(slimming.taylor(mean)(group, leaves), expected, rtol=1e-4)
    expected = oracles.second_order(a, np.square(by_hand).mean(0))
    found = slimming.diagonal_fisher(squares)(group, leaves)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    activations = slimming.activation_mean(fn, variables, list(x))(group, leaves)
    np.testing.assert_allclose(activations, np.abs(np.tanh(x @ a)).mean((0, 1)), rtol=1e-5)


def test_double_precision_stays():
    with jax.enable_x64(True):
        found = slimming.gradient_moments(lambda v, x: v * x, np.float64(1), [1 / 3])
    assert [float(x) for x in found] == [1 / 3, 1 / 9]


def test_gradient_moments():
    x = RNG.normal(size=(5, 3)).astype(np.float32)
    variables = {"params": {"w": np.ones(3, np.float32)}, "other": {"c": np.float32(2)}}
    traces = []

    def loss(v, row):
        traces.append(1)
        return v["other"]["c"] * jnp.sum(jnp.square(v["params"]["w"]) * row) / 2

    first, second = slimming.gradient_moments(loss, variables, [(row,) for row in x])
    np.testing.assert_allclose(first["w"], 2 * x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(second["w"], (4 * x**2).mean(0), rtol=1e-5)
    assert len(traces) == 1
    with pytest.raises(ValueError, match="no batches"):
        slimming.gradient_moments(loss, variables, [])


def test_taylor_says_better_than_size_what_the_loss_loses():
    """Molchanov et al. (2019), figure 2: rank correlation with the true change of the loss."""
    x = RNG.normal(size=(256, 6)).astype(np.float32)
    y = np.sin(x[:, 0]) + 0.5 * x[:, 1] * x[:, 2]

    def fn(v, x):
        return (nn.tanh(x @ v["a"]) @ v["b"])[:, 0]

    def loss(v, x, y):
        return jnp.mean(jnp.square(fn(v, x) - y))

    keys = jax.random.split(jax.random.key(0), 2)
    variables = {
        "a": jax.random.normal(keys[0], (6, 24)) * jnp.linspace(0.3, 3.0, 24).reshape(1, 24),
        "b": 0.3 * jax.random.normal(keys[1], (24, 1)),
    }
    tx = optax.adam(1e-2)
    state = tx.init(variables)

    @jax.jit
    def step(v, s):
        updates, s = tx.update(jax.grad(loss)(v, x, y), s, v)
        return optax.apply_updates(v, updates), s

    for _ in range(60):
        variables, state = step(variables, state)
    (group,) = slimming.find_groups(fn, variables, x)
    leaves = cj.tree.paths(variables)
    lost = []
    for i in range(24):
        without = {"a": variables["a"].at[:, i].set(0), "b": variables["b"].at[i].set(0)}
        lost.append(float(abs(loss(without, x, y) - loss(variables, x, y))))
    gradients = slimming.batch_gradients(loss, variables, [(x[i::8], y[i::8]) for i in range(8)])
    agree = {
        name: stats.spearmanr(importance(group, leaves), lost).statistic
        for name, importance in (("taylor", slimming.taylor(gradients)), ("l1", slimming.l1()))
    }
    assert agree["taylor"] > agree["l1"] + 0.2, agree


def test_errors():
    with pytest.raises(ValueError, match="nothing is known of params/k; found params/z"):
        slimming.of_weights({"z": KERNEL})(GROUP, {})
    with pytest.raises(
        ValueError, match=r"evidence for params/k has shape \(1, 1, 1, 6\), the var"
    ):
        slimming.taylor({"k": np.ones((1, 1, 1, 6))})(GROUP, WEIGHTS)
    for method in (slimming.taylor, slimming.diagonal_fisher, slimming.optimal_brain_damage):
        with pytest.raises(ValueError, match=r"params/k has 6 positions along axis 3, .* \(2, 6\)"):
            method({"k": np.ones((2, 6))})(GROUP, WEIGHTS)
        with pytest.raises(ValueError, match="nothing is known of params/k; found k"):
            method({"k": FIRST})(GROUP, {"k": KERNEL})
    for make in (slimming.gradient_moments, slimming.batch_gradients):
        with pytest.raises(ValueError, match=r"batches are one array of shape \(3,\)"):
            make(lambda v, x: v * x, np.float32(1), np.ones(3))
