"""Re-estimated statistics are those of all batches, whatever the layer's momentum is."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax import quant
from tests.support import equalize_oracles

X = np.random.default_rng(5).normal(2.0, 3.0, size=(48, 4, 4, 3)).astype(np.float32)
X += np.arange(48, dtype=np.float32).reshape(-1, 1, 1, 1) / 8  # batches have different means
BATCHES = [X[:16], X[16:32], X[32:40], X[40:]]


def network(momentum, dtype=jnp.float32, layers=1):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(layers):
                x = nn.BatchNorm(use_running_average=False, momentum=momentum, param_dtype=dtype)(x)
                x = nn.Conv(3, (1, 1))(nn.relu(x))
            return x

    def train(variables, x):
        return Network().apply(variables, x, mutable=["batch_stats"])

    return train, Network().init(jax.random.key(0), X[:2])


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99])
def test_the_first_norm_gets_the_moments_of_all_examples(momentum):
    train, variables = network(momentum)
    new = quant.reestimate_batch_norm(train, variables, BATCHES)
    flat = X.reshape(-1, 3).astype(np.float64)
    found = new["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(found["mean"], flat.mean(0), rtol=2e-5)
    np.testing.assert_allclose(found["var"], flat.var(0), rtol=5e-5)
    assert new["params"] is variables["params"] or jax.tree.all(
        jax.tree.map(np.array_equal, new["params"], variables["params"])
    )


def test_the_old_statistics_do_not_matter():
    train, variables = network(0.9, layers=2)
    other = {**variables, "batch_stats": jax.tree.map(lambda s: s + 7, variables["batch_stats"])}
    one, two = (quant.reestimate_batch_norm(train, v, BATCHES) for v in (variables, other))
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_deep_norms_follow_the_paper():
    """Wu and Johnson (2021): moments of batches, each normalised by itself, put together."""
    train, variables = network(0.9, layers=2)
    new = quant.reestimate_batch_norm(train, variables, BATCHES)
    conv = variables["params"]["Conv_0"]
    inputs = []
    for batch in BATCHES:
        y = np.float64(batch)
        y = (y - y.mean((0, 1, 2))) / np.sqrt(y.var((0, 1, 2)) + 1e-5)
        inputs.append(
            np.maximum(y, 0) @ np.float64(conv["kernel"][0, 0]) + np.float64(conv["bias"])
        )
    mean, var = equalize_oracles.population(inputs)
    found = new["batch_stats"]["BatchNorm_1"]
    np.testing.assert_allclose(found["mean"], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["var"], var, rtol=1e-4)


def test_a_pruned_network_recovers():
    """The claim of Li et al. (2020): statistics of the dense network do not fit the pruned one."""
    train, variables = network(0.9, layers=2)
    batches = [X[i::3] for i in range(3)]
    variables = quant.reestimate_batch_norm(train, variables, batches)
    kernel = variables["params"]["Conv_0"]["kernel"]
    pruned = jax.tree.map(lambda x: x, variables)
    pruned["params"]["Conv_0"]["kernel"] = kernel * jnp.array([1.0, 0.0, 1.0]).reshape(1, 1, 3, 1)

    def spread(v):
        """How far the second norm's input is from what its statistics say, in deviations."""
        y = jax.nn.relu(norm(X, v["batch_stats"]["BatchNorm_0"])) @ v["params"]["Conv_0"]["kernel"]
        y = norm(y + v["params"]["Conv_0"]["bias"], v["batch_stats"]["BatchNorm_1"])
        return np.abs(y.mean((0, 1, 2))).max() + np.abs(y.std((0, 1, 2)) - 1).max()

    def norm(x, stats):
        return (x - stats["mean"]) / jnp.sqrt(stats["var"] + 1e-5)

    with jax.numpy_rank_promotion("allow"):
        new = quant.reestimate_batch_norm(train, pruned, batches)
        assert spread(new) < 0.2 * spread(pruned)


def test_any_collection_and_any_names():
    def train(v, x, noise):
        level = 0.75 * v["state"]["level"] + 0.25 * (x + noise).max()
        return x, {"state": {"level": level, "steps": v["state"]["steps"] + 1}}

    variables = {"state": {"level": jnp.float32(9.0), "steps": jnp.int32(4)}}
    batches = [(jnp.array([1.0, 3.0]), 0.0), (jnp.array([5.0, 6.0]), 1.0)]
    new = quant.reestimate_batch_norm(train, variables, batches)
    np.testing.assert_allclose(new["state"]["level"], 5.0, rtol=1e-6)
    assert new["state"]["steps"] == 4


def test_types_stay():
    train, variables = network(0.9, dtype=jnp.bfloat16)
    new = quant.reestimate_batch_norm(train, variables, BATCHES)
    shape = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert shape(new) == shape(variables)


def stats(new):
    return lambda v, x: (x, {"stats": new(v["stats"]["mean"], x)})


BAD = {
    "frozen": (stats(lambda m, x: {"mean": m}), "stats/mean is not updated as"),
    "amplified": (stats(lambda m, x: {"mean": 2.0 * m + x.mean()}), "derivative is 2.0"),
    "unknown": (stats(lambda m, x: {"other": m}), "updates stats/other"),
    "another shape": (stats(lambda m, x: {"mean": m[None]}), r"to shape \(1,\), found shape \(\)"),
    "evaluation mode": (lambda v, x: (x, {}), "updates no statistics"),
    "no updates": (lambda v, x: x, "returns ShapeDtypeStruct, expected"),
    "not finite": (stats(lambda m, x: {"mean": 0.5 * m + jnp.log(-x).mean()}), "stats/mean: .*not"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_functions(name):
    fn, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        quant.reestimate_batch_norm(fn, {"stats": {"mean": jnp.float32(1.0)}}, [jnp.ones(3)])


def test_no_batches():
    train, variables = network(0.9)
    with pytest.raises(ValueError, match="there are no batches"):
        quant.reestimate_batch_norm(train, variables, [])
