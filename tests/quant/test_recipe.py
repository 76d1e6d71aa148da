"""`auto` gives the best of what it tried, judged on images it did not calibrate with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax import quant
from compressjax.quant import recipe

TWO = {"min-max": quant.min_max(), "percentile": quant.percentile(99.0)}


def fn(variables, x):
    hidden = jax.nn.relu(x @ variables["a"] + variables["b"].reshape(1, -1))
    return hidden @ variables["c"] + variables["d"].reshape(1, -1)


@pytest.fixture(scope="module")
def network():
    """Two layers whose channels have very different scales, and four batches of normal values."""
    rng = np.random.default_rng(0)
    scales = np.geomspace(0.01, 100.0, 16)
    drawn = {
        "a": rng.normal(size=(4, 16)) * scales,
        "b": 0.1 * rng.normal(size=16) * scales,
        "c": rng.normal(size=(16, 3)) / scales[:, None],
        "d": rng.normal(size=3),
    }
    variables = {name: jnp.asarray(x, jnp.float32) for name, x in drawn.items()}
    return variables, list(jnp.asarray(rng.normal(size=(4, 64, 4)), jnp.float32))


def oracle(real, found):
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in map(np.float64, (real, found)))
    return (p * np.log(p / q)).sum(-1).mean()


@pytest.fixture(scope="module")
def found(network):
    variables, batches = network
    spec = quant.int8(per_channel=False)
    return recipe.auto(fn, variables, batches, spec=spec, ways=TWO)


def test_what_is_given_is_the_best_that_was_tried(network, found):
    variables, batches = network
    errors = [tried.error for tried in found.report if tried.refused is None]
    assert found.chosen.error == min(errors)
    last = batches[-1]
    assert found.chosen.error == pytest.approx(
        oracle(fn(variables, last), found.q.apply(found.qv, last)), rel=0.05
    )
    assert [tried.name for tried in found.report][:2] == list(TWO)


def test_channels_of_different_scale_are_equalized(found):
    """Per tensor, small channels vanish behind large ones (Nagel et al., 2019, section 4.1)."""
    plain = min(tried.error for tried in found.report if tried.name in TWO)
    assert "equalize" in found.chosen.name
    assert found.chosen.error < 0.2 * plain


def test_the_first_batches_calibrate_and_the_last_ones_decide(network):
    """An outlier among the calibration images makes min-max bad; one held out would hide that."""
    variables, batches = network
    wild = [batches[0].at[0].set(1e3), *batches[1:]]
    found = recipe.auto(fn, variables, wild, ways=TWO, held_out=2)
    by_name = {tried.name: tried for tried in found.report}
    assert by_name["percentile"].error < by_name["min-max"].error
    assert found.chosen.name.startswith("percentile")


def test_a_correction_that_refuses_is_reported(network):
    def bare(variables, x):
        return x @ variables["a"] @ variables["c"]

    variables, batches = network
    found = recipe.auto(bare, variables, batches, ways=TWO)
    refused = {tried.name.split(" + ")[-1]: tried.refused for tried in found.report}
    assert "bias" in refused["bias"]
    assert found.chosen.refused is None and np.isfinite(found.chosen.error)


@pytest.mark.parametrize(
    "batches,options,message",
    [
        (jnp.ones((4, 4)), {}, r"one array of shape \(4, 4\)"),
        ([jnp.ones((4, 4))], {}, "given 1 batches and holds out 1"),
        ([jnp.ones((4, 4))] * 3, {"held_out": 3}, "given 3 batches and holds out 3"),
        ([jnp.ones((4, 4))] * 3, {"ways": {}}, "given no observers"),
    ],
)
def test_bad_input_is_named(network, batches, options, message):
    with pytest.raises(ValueError, match=message):
        recipe.auto(fn, network[0], batches, **options)
