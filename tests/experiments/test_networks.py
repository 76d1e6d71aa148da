"""The networks of a run: a cut that a config asks for, in both modes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compressjax as cj
from compressjax import models, slimming
from experiments import networks
from experiments.configs import digits


@pytest.fixture(scope="module")
def dense():
    config = digits.get_config()
    config.model.options = {"widths": (8, 16), "strides": (2, 2)}
    network, init = networks.dense(config.model, 10)
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
    return config.shrink, network, init(jax.random.key(1), x), x


def test_a_cut_by_ratio_in_both_modes(dense):
    settings, network, variables, x = dense
    settings = settings.copy_and_resolve_references()
    settings.update({"ratio": 0.25, "round_to": 2})
    small, cut = networks.shrunk(network, variables, x, settings)
    fitted = models.resize(models.SmallCNN(10, widths=(8, 16), strides=(2, 2)), cut)
    assert fitted.widths == (6, 12)
    np.testing.assert_allclose(small.apply(cut, x), fitted.apply(cut, x), rtol=1e-5, atol=1e-6)
    logits, statistics = small.train(cut, x)
    expected, _ = fitted.apply(cut, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    assert jax.tree.map(jnp.shape, statistics) == {
        "batch_stats": jax.tree.map(jnp.shape, cut["batch_stats"])
    }


def test_a_cut_to_a_part_of_the_macs_by_scales_of_the_whole_network(dense):
    settings, network, variables, x = dense
    settings = settings.copy_and_resolve_references()
    settings.update({"macs": 0.5, "round_to": 1})
    with settings.unlocked():
        settings.importance = slimming.batch_norm_scale
        settings.ranking = slimming.global_
    small, cut = networks.shrunk(network, variables, x, settings)
    whole = cj.trace(network.apply, variables, x).macs
    assert 0.3 * whole < cj.trace(small.apply, cut, x).macs <= 0.5 * whole


def test_factors_in_both_modes_where_the_config_asks(dense):
    _, network, variables, x = dense
    settings = digits.get_config().factorize
    same, kept = networks.factorized(network, variables, x, settings)
    assert same is network and kept is variables
    settings.update({"macs": 0.6, "round_to": 1})
    small, factors = networks.factorized(network, variables, x, settings)
    whole = cj.trace(network.apply, variables, x).macs
    assert 0.3 * whole < cj.trace(small.apply, factors, x).macs <= 0.6 * whole
    logits, statistics = small.train(factors, x)
    assert logits.shape == (4, 10)
    assert jax.tree.structure(statistics) == jax.tree.structure(
        {"batch_stats": variables["batch_stats"]}
    )
