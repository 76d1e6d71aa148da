"""Values inside a function come out as they are, in one pass, at any batch size."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compressjax as cj
from compressjax import graph as graphs

RNG = np.random.default_rng(0)
VARIABLES = {"a": RNG.normal(size=(3, 4)).astype("f"), "b": RNG.normal(size=(4, 2)).astype("f")}
X = RNG.normal(size=(5, 3)).astype("f")


def fn(v, x):
    return {"out": jax.nn.relu(x @ v["a"]) @ v["b"]}


def hidden(v, x):
    return np.maximum(np.asarray(x) @ np.asarray(v["a"]), 0)


def test_values_by_name_and_glob_in_graph_order():
    found = cj.capture(fn, VARIABLES, X, at=["relu_*", "a"])
    assert list(found) == ["a", "relu_0"]
    np.testing.assert_allclose(found["a"], X @ VARIABLES["a"], rtol=1e-5)
    np.testing.assert_allclose(found["relu_0"], hidden(VARIABLES, X), rtol=1e-5)


def test_only_what_is_needed_runs():
    found = cj.capture(fn, {"a": VARIABLES["a"], "b": np.full((4, 2), np.nan, "f")}, X, at="relu_0")
    assert np.isfinite(found["relu_0"]).all()


def test_outputs_and_values_in_one_pass_at_any_batch_size():
    both = jax.jit(graphs.capturing(fn, ["relu_0"]))
    for x in (X, X[:2]):
        outputs, inside = both(VARIABLES, x)
        np.testing.assert_allclose(outputs["out"], fn(VARIABLES, x)["out"], rtol=1e-5)
        np.testing.assert_allclose(inside["relu_0"], hidden(VARIABLES, x), rtol=1e-5)


def test_gradients_flow_through_values():
    both = graphs.capturing(fn, "relu_0")
    found = jax.grad(lambda v: jnp.sum(both(v, X)[1]["relu_0"]))(VARIABLES)
    expected = X.T @ (X @ VARIABLES["a"] > 0).astype("f")
    np.testing.assert_allclose(found["a"], expected, rtol=1e-5, atol=1e-6)
    assert not np.asarray(found["b"]).any()


def test_a_module_needs_no_edit():
    model = nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)])
    variables = model.init(jax.random.key(0), X)
    found = cj.capture(model.apply, variables, X, at="relu_0")["relu_0"]
    assert found.shape == (5, 4)
    assert (np.asarray(found) >= 0).all()


def test_a_glob_that_matches_nothing():
    with pytest.raises(ValueError, match="nothing"):
        cj.capture(fn, VARIABLES, X, at="nothing")
    with pytest.raises(ValueError, match="nothing"):
        graphs.capturing(fn, "nothing")(VARIABLES, X)
