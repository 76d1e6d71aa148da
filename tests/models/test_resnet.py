"""ResNet-8 is the MLPerf Tiny network."""

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.models import ResNet8


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_parameters_are_the_published_ones():
    images = jnp.zeros([1, 32, 32, 3])
    variables = jax.eval_shape(ResNet8(num_classes=10).init, jax.random.key(0), images)
    # The reference model's summary says 78,666, statistics included. It has a bias in each of the
    # seven convolutions in front of a batch norm, which cancels there.
    cancelled = 3 * 16 + 2 * 32 + 2 * 64
    assert count(variables) == 78_666 - cancelled == 78_426
    assert count(variables["batch_stats"]) == 2 * cancelled


def test_first_block_adds_its_input():
    """With the block's own branch at zero, what the stem put out must come through unchanged."""
    model = ResNet8(num_classes=3, widths=(4,))
    images = jax.random.normal(jax.random.key(1), [2, 8, 8, 3])
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])
    params = variables["params"]
    params["BatchNorm_2"]["scale"] = jnp.zeros_like(params["BatchNorm_2"]["scale"])
    stem = jax.lax.conv_general_dilated(
        images,
        params["Conv_0"]["kernel"],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    features = np.maximum(np.asarray(stem) / np.sqrt(1 + 1e-5), 0).mean((1, 2))
    expected = features @ np.asarray(params["Dense_0"]["kernel"])
    np.testing.assert_allclose(
        jax.jit(model.apply)(variables, images), expected, rtol=1e-4, atol=1e-5
    )


def test_later_blocks_halve_the_resolution_rounding_up():
    model = ResNet8(num_classes=3, widths=(2, 3, 4))
    images = jnp.zeros([1, 9, 8, 1])
    _, state = jax.eval_shape(
        lambda rng: model.init_with_output(rng, images, capture_intermediates=True),
        jax.random.key(0),
    )
    assert state["intermediates"]["Conv_1"]["__call__"][0].shape == (1, 9, 8, 2)
    assert state["intermediates"]["Conv_5"]["__call__"][0].shape == (1, 5, 4, 3)
    assert state["intermediates"]["Conv_8"]["__call__"][0].shape == (1, 3, 2, 4)
