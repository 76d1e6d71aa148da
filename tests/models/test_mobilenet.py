"""MobileNetV2 is the paper's network at every width."""

import jax
import jax.numpy as jnp
import pytest

from compressjax.models import MobileNetV2, mobilenet_widths


def num_params(model, size=96):
    images = jnp.zeros([1, size, size, 3])
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize(
    # Millions of trainable parameters with 1000 classes, as other implementations report them.
    "multiplier,millions",
    [(0.35, 1.68), (0.5, 1.97), (0.75, 2.64), (1.0, 3.504872), (1.4, 6.11)],
)
def test_parameters_are_the_published_ones(multiplier, millions):
    reported = num_params(MobileNetV2(num_classes=1000, multiplier=multiplier)) / 1e6
    assert reported == pytest.approx(millions, abs=0.005 if multiplier != 1 else 1e-9)


def test_resolution_does_not_change_the_parameters():
    model = MobileNetV2(num_classes=10)
    assert num_params(model, 33) == num_params(model, 224)


def test_explicit_widths_rebuild_the_same_network():
    images = jnp.zeros([2, 16, 16, 3])
    standard = MobileNetV2(num_classes=4, multiplier=0.5)
    explicit = MobileNetV2(num_classes=4, widths=mobilenet_widths(0.5))
    programs = [
        str(jax.make_jaxpr(model.init_with_output)(jax.random.key(0), images))
        for model in (standard, explicit)
    ]
    assert programs[0] == programs[1]


def test_shrunk_widths_are_the_shapes():
    widths = mobilenet_widths(0.1)
    shrunk = widths._replace(hidden=(*widths.hidden[:-1], 5), head=11)
    model = MobileNetV2(num_classes=4, widths=shrunk)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros([1, 16, 16, 3]))["params"]
    assert params["InvertedResidual_16"]["Conv_1"]["kernel"].shape == (3, 3, 1, 5)
    assert params["Dense_0"]["kernel"].shape == (11, 4)


def test_residuals_are_the_later_blocks_of_each_stage():
    model = MobileNetV2(num_classes=2, multiplier=0.1)  # Stem and first block are equally wide.
    images = jnp.zeros([1, 64, 64, 3])
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    convolutions, added_after = 0, []
    for eqn in jax.make_jaxpr(model.apply)(variables, images).eqns:
        convolutions += eqn.primitive.name == "conv_general_dilated"
        shapes = [v.aval.shape for v in (*eqn.invars, *eqn.outvars)]
        if eqn.primitive.name == "add" and len(shapes[0]) == 4 and len(set(shapes)) == 1:
            if shapes[0][1:3] != (1, 1):  # Not batch norm's arithmetic on channels.
                added_after.append(convolutions)
    # The first block has two convolutions, after the stem's one; every other block has three.
    assert added_after == [3 * block for block in (3, 5, 6, 8, 9, 10, 12, 13, 15, 16)]
