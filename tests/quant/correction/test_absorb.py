"""Absorbing a bias takes the constant part off a channel and changes nothing else."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compressjax as cj
from compressjax import quant, tree
from compressjax.quant.correction.measure import joined, spread_of
from tests.support import equalize_oracles, topologies

X = np.random.default_rng(3).normal(size=(40, 6, 6, 3)).astype(np.float32)
BATCHES = [X[:16], X[16:32], X[32:]]


def network(body, lift=4.0):
    """A network whose first layers' biases are far above zero."""
    fn, variables = topologies.linen(body, X)

    def leaf(path, w):
        return jnp.asarray(w + (lift if path == "params/Conv_0/bias" else 0.0), w.dtype)

    return fn, tree.map_with_path(leaf, variables)


def first(x, **kwargs):
    return nn.relu(nn.Conv(5, (3, 3), **kwargs)(x))


def pointwise(x):
    x = first(x)
    return nn.Conv(4, (1, 1))(x)


def unpadded(x):
    x = nn.max_pool(first(x), (2, 2), padding="SAME")
    return nn.Conv(10, (2, 2), padding="VALID", feature_group_count=5)(x)


def flattened(x):
    x = first(x)
    return nn.Dense(4)(nn.avg_pool(x, (2, 2), strides=(2, 2)).reshape(x.shape[0], -1))


def averaged(x):
    return nn.DenseGeneral(4, axis=-1)(first(x).transpose(0, 3, 1, 2).mean((2, 3)))


def clipped(x):
    x = first(x)
    return nn.Conv(4, (1, 1))(jnp.minimum(x, 30.0))


EXACT = [pointwise, unpadded, flattened, averaged, clipped]


@pytest.mark.parametrize("body", EXACT, ids=lambda body: body.__name__)
def test_exact_on_the_batches_without_deviations(body):
    fn, variables = network(body)
    new = quant.absorb_bias(fn, variables, BATCHES, deviations=np.inf)
    taken = variables["params"]["Conv_0"]["bias"] - new["params"]["Conv_0"]["bias"]
    assert (np.asarray(taken) >= 0).all() and np.max(taken) > 0.5
    expected = np.asarray(fn(variables, X))
    np.testing.assert_allclose(fn(new, X), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    kernels = [path for path in tree.paths(new) if path.endswith("kernel")]
    for path in kernels:
        np.testing.assert_array_equal(tree.paths(new)[path], tree.paths(variables)[path])


def oracle(variables, x, deviations):
    """The biases of `pointwise` afterwards, and the part of the values that is not cut off."""
    p = jax.tree.map(lambda w: np.asarray(w, np.float64), variables["params"])
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    pre = p["Conv_0"]["bias"] + sum(
        padded[:, i : i + 6, j : j + 6] @ p["Conv_0"]["kernel"][i, j]
        for i, j in itertools.product(range(3), range(3))
    )
    c = equalize_oracles.absorbed(pre.reshape(-1, pre.shape[-1]), deviations)
    return (
        p["Conv_0"]["bias"] - c,
        p["Conv_1"]["bias"] + c @ p["Conv_1"]["kernel"][0, 0],
        (pre >= c).mean(),
    )


@pytest.mark.parametrize("deviations", [0.5, 2.0, 3.0])
def test_the_numbers_are_those_of_the_paper(deviations):
    fn, variables = network(pointwise)
    new = quant.absorb_bias(fn, variables, BATCHES, deviations=deviations)
    b1, b2, untouched = oracle(variables, X, deviations)
    np.testing.assert_allclose(new["params"]["Conv_0"]["bias"], b1, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(new["params"]["Conv_1"]["bias"], b2, rtol=1e-4, atol=1e-4)
    if deviations == 3.0:
        assert untouched > 0.99


def test_a_padded_kernel_is_skipped_unless_asked_for():
    def body(x):
        x = first(x)
        x = nn.relu(nn.Conv(5, (3, 3))(x))
        return nn.Conv(4, (1, 1))(x)

    fn, variables = network(body, lift=6.0)
    skipped = quant.absorb_bias(fn, variables, BATCHES)
    np.testing.assert_array_equal(
        skipped["params"]["Conv_0"]["bias"], variables["params"]["Conv_0"]["bias"]
    )
    everywhere = quant.absorb_bias(fn, variables, BATCHES, deviations=np.inf, padded=True)
    assert np.all(everywhere["params"]["Conv_0"]["bias"] <= variables["params"]["Conv_0"]["bias"])
    inside = np.s_[:, 1:-1, 1:-1]
    expected, found = fn(variables, X), fn(everywhere, X)
    np.testing.assert_allclose(found[inside], expected[inside], rtol=1e-4, atol=1e-3)
    assert np.abs(found - expected).max() > 0.1  # the border


def test_a_channel_that_was_seen_at_the_clip_loses_nothing():
    def body(x):
        x = nn.relu6(nn.Conv(5, (3, 3))(x))
        return nn.Conv(4, (1, 1))(x)

    fn, variables = network(body, lift=np.array([0.0, 1.0, 2.0, 4.0, 9.0]))
    new = quant.absorb_bias(fn, variables, BATCHES, deviations=np.inf)
    taken = variables["params"]["Conv_0"]["bias"] - new["params"]["Conv_0"]["bias"]
    assert taken[4] == 0.0
    np.testing.assert_allclose(fn(new, X), fn(variables, X), rtol=1e-4, atol=1e-4)


def test_per_tensor_activations_gain():
    """The paper's claim: what is constant costs the range of what varies."""
    fn, variables = network(pointwise, lift=np.array([0.0, 0.0, 60.0, 0.0, 0.0]))
    second = variables["params"]["Conv_1"]
    second["bias"] = second["bias"] - 60.0 * second["kernel"][0, 0, 2]
    expected = fn(variables, X)

    def error(variables):
        q = cj.quantize(fn, quant.int8())
        return np.abs(q.apply(q.calibrate(variables, BATCHES), X) - expected).mean()

    assert error(quant.absorb_bias(fn, variables, BATCHES)) < 0.3 * error(variables)


def test_spreads_join_to_the_spread_of_all():
    parts = [jnp.asarray(x) for x in (X[:1], X[1:9], X[9:])]
    found = spread_of(parts[0], 3)
    for part in parts[1:]:
        found = joined(found, spread_of(part, 3))
    flat = X.reshape(-1, 3).astype(np.float64)
    for name, value in (("low", flat.min(0)), ("high", flat.max(0)), ("mean", flat.mean(0)),
                        ("variance", flat.var(0)), ("number", len(flat))):  # fmt: skip
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-5, atol=1e-6)


def dense(v, x):
    return jax.nn.relu(x @ v["a"] + v["b"]) @ v["c"] + v["d"]


DENSE = {
    name: jnp.ones(s) for name, s in zip("abcd", [(2, 2), (1, 2), (2, 2), (1, 2)], strict=True)
}


def test_bad_input():
    x = jnp.ones((3, 2))
    with pytest.raises(ValueError, match="there are no batches"):
        quant.absorb_bias(dense, DENSE, [])
    with pytest.raises(ValueError, match=r"one array of shape \(3, 2\)"):
        quant.absorb_bias(dense, DENSE, x)
    with pytest.raises(ValueError, match="deviations is -1"):
        quant.absorb_bias(dense, DENSE, [x], deviations=-1.0)
    with pytest.raises(ValueError, match="a: some channels are not finite"):
        quant.absorb_bias(dense, DENSE, [x * jnp.nan])


NOWHERE = {
    "no relu": (lambda v, x: (x @ v["a"] + v["b"]) @ v["c"] + v["d"], "no ReLU follows"),
    "no first bias": (lambda v, x: jax.nn.relu(x @ v["a"]) @ v["c"] + v["d"], "a has no bias"),
    "no second bias": (lambda v, x: jax.nn.relu(x @ v["a"] + v["b"]) @ v["c"], "c has no bias"),
    "negative": (lambda v, x: jax.nn.relu(-(x @ v["a"] + v["b"])) @ v["c"] + v["d"], "neg between"),
    "two relus": (
        lambda v, x: jax.nn.relu(jax.nn.relu(x @ v["a"] + v["b"]) * 2.0) @ v["c"] + v["d"],
        "does not pass through relu",
    ),
    "no kernels": (lambda v, x: x, "there are no kernels"),
}  # fmt: skip


@pytest.mark.parametrize("name", NOWHERE)
def test_where_nothing_can_be_absorbed_the_error_says_why(name):
    fn, why = NOWHERE[name]
    with pytest.raises(ValueError, match=why):
        quant.absorb_bias(fn, DENSE, [jnp.ones((3, 2))])
