"""VGG-16 is configuration D of the paper."""

import jax
import jax.numpy as jnp

from compressjax.models import VGG16


def test_parameters_are_the_published_ones():
    images = jnp.zeros([1, 224, 224, 3])
    model = VGG16(num_classes=1000, hidden=(4096, 4096))
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    norms = sum(
        leaf.size for path, layer in params.items() if "Norm" in path for leaf in layer.values()
    )
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    # The paper's network has a bias in each of the 4,224 channels where this one has a batch norm
    # with two parameters; Keras and torchvision count 138,357,544 for it.
    assert norms == 2 * 4224
    assert total - norms // 2 == 138_357_544


def test_pools_halve_rounding_up_and_never_empty_the_image():
    model = VGG16(num_classes=3, widths=(2,) * 13)
    images = jnp.zeros([1, 3, 9, 1])
    _, state = jax.eval_shape(
        lambda rng: model.init_with_output(rng, images, capture_intermediates=True),
        jax.random.key(0),
    )
    shapes = [state["intermediates"][f"Conv_{i}"]["__call__"][0].shape[1:3] for i in (1, 3, 6, 9)]
    assert shapes == [(3, 9), (2, 5), (1, 3), (1, 2)]
    assert state["params"]["Dense_0"]["kernel"].shape == (2, 3)
