"""ResNet-8 is the MLPerf Tiny network, ResNet-18 the one of He et al. (2016)."""

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.models import ResNet8, ResNet18


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


def test_resnet18_halves_in_three_stages_and_shortcuts_have_norms():
    model = ResNet18(num_classes=3, widths=(2, 3, 4, 5), small_images=True)
    images = jnp.zeros([1, 33, 16, 3])
    _, state = jax.eval_shape(
        lambda rng: model.init_with_output(rng, images, capture_intermediates=True),
        jax.random.key(0),
    )
    found = state["intermediates"]
    convolutions = [name for name in found if name.startswith("Conv")]
    norms = [name for name in found if name.startswith("BatchNorm")]
    assert len(convolutions) == len(norms) == 1 + 2 * 8 + 3
    shapes = [found[f"Conv_{i}"]["__call__"][0].shape for i in range(20)]
    kernels = [state["params"][f"Conv_{i}"]["kernel"].shape[0] for i in range(20)]
    shortcuts = [i for i, size in enumerate(kernels) if size == 1]
    assert shortcuts == [7, 12, 17]
    assert [shapes[i] for i in shortcuts] == [(1, 17, 8, 3), (1, 9, 4, 4), (1, 5, 2, 5)]


def test_resnet18_blocks_add_their_input():
    """With every branch at zero, the stem and the three shortcuts are all that is left."""
    model = ResNet18(num_classes=3, widths=(3, 3, 3, 3), small_images=True)
    images = jnp.abs(jax.random.normal(jax.random.key(1), [2, 8, 8, 3]))
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])
    kernels = [layer["kernel"] for name, layer in variables["params"].items() if "Conv" in name]
    for name, layer in variables["params"].items():
        if name.startswith("Conv"):
            centre = layer["kernel"].shape[0] // 2
            layer["kernel"] = jnp.zeros_like(layer["kernel"]).at[centre, centre].set(jnp.eye(3))
    for block in range(8):  # the second norm of each branch; shortcuts come after the branch
        second = 2 + 2 * block + (block > 2) + (block > 4) + (block > 6)
        norm = variables["params"][f"BatchNorm_{second}"]
        norm["scale"] = jnp.zeros_like(norm["scale"])
    assert len(kernels) == 20
    features = np.asarray(images[:, ::8, ::8]).mean((1, 2)) * (1 + 1e-5) ** -2  # 4 norms passed
    expected = features @ np.asarray(variables["params"]["Dense_0"]["kernel"])
    np.testing.assert_allclose(jax.jit(model.apply)(variables, images), expected, rtol=1e-4)
