"""What every network promises: one calling convention, logits, statistics that training moves."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax import models

NETWORKS = {
    "mlp": (models.MLP(num_classes=7, widths=(12, 9)), (8, 8, 1)),
    "small_cnn": (models.SmallCNN(num_classes=7, widths=(4, 6, 8)), (8, 8, 1)),
    "resnet8": (models.ResNet8(num_classes=7, widths=(4, 6, 8), hidden=(3, 5, 7)), (9, 7, 3)),
    "mobilenet": (
        models.MobileNetV2(num_classes=7, multiplier=0.1, strides=(1, 1, 1, 2, 2, 1, 2, 1)),
        (8, 8, 3),
    ),
    "mobilenet_v3": (
        models.MobileNetV3Small(num_classes=7, multiplier=0.1, strides=(1, 1, 2, 1, 1, 2)),
        (8, 8, 3),
    ),
    "resnet18": (
        models.ResNet18(num_classes=7, widths=(4, 5, 6, 8), hidden=(3,) * 8),
        (17, 16, 3),
    ),
    "resnet18_small": (
        models.ResNet18(num_classes=7, widths=(4, 5, 6, 8), small_images=True),
        (8, 7, 1),
    ),
    "preact_resnet": (
        models.PreActResNet(num_classes=7, multiplier=0.25, blocks=(1, 1, 1), bottleneck=True),
        (9, 7, 3),
    ),
    "vgg16": (models.VGG16(num_classes=7, widths=(*range(4, 17),), hidden=(9,)), (9, 8, 3)),
}


@pytest.fixture(params=NETWORKS, scope="module")
def network(request):
    """A model, variables drawn by NumPy (to compile an initializer takes longer), and images."""
    model, shape = NETWORKS[request.param]
    images = jax.random.normal(jax.random.key(1), [5, *shape])
    abstract = jax.eval_shape(model.init, jax.random.key(0), images)
    rng = np.random.default_rng(2)
    variables = jax.tree.map(
        lambda leaf: (
            jnp.asarray(rng.uniform(0.1, 1, leaf.shape), leaf.dtype)
            if len(leaf.shape) == 1
            else jnp.asarray(
                rng.normal(0, math.prod(leaf.shape[:-1]) ** -0.5, leaf.shape), leaf.dtype
            )
        ),
        abstract,
    )
    return model, variables, images


def test_gives_float_logits_for_each_image_alone(network):
    model, variables, images = network
    apply = jax.jit(model.apply)
    logits = apply(variables, images)
    assert logits.shape == (5, 7)
    assert logits.dtype == jnp.float32
    assert bool((jnp.abs(logits.sum(-1) - 1) > 1e-3).any()), "logits, not probabilities"
    np.testing.assert_allclose(apply(variables, images[2:3]), logits[2:3], rtol=1e-4, atol=1e-5)


def test_training_moves_every_statistic_and_needs_nothing_else(network):
    model, variables, images = network
    train = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))
    logits, moved = train(variables, images)
    assert logits.shape == (5, 7) and bool(jnp.isfinite(logits).all())
    before = jax.tree.leaves(variables.get("batch_stats", {}))
    after = jax.tree.leaves(moved.get("batch_stats", {}))
    assert len(after) == len(before)
    assert all(bool((a != b).any()) for a, b in zip(after, before, strict=True))


def macs(model, shape):
    """Counts multiply-adds of one image: each output of a convolution or product has its fan-in."""
    images = jax.ShapeDtypeStruct([1, *shape], jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    count = 0
    for eqn in jax.make_jaxpr(model.apply)(variables, images).eqns:
        if eqn.primitive.name in ("conv_general_dilated", "dot_general"):
            *fan_in, _ = eqn.invars[1].aval.shape
            count += eqn.outvars[0].aval.size * math.prod(fan_in)
    return count


@pytest.mark.parametrize(
    "model,shape,published",
    [
        # Banbury et al. (2021) and Sandler et al. (2018), multiply-adds of one image.
        (models.ResNet8(num_classes=10), (32, 32, 3), 12.5e6),
        (models.MobileNetV2(num_classes=1000), (224, 224, 3), 300e6),
        (models.MobileNetV2(num_classes=1000, multiplier=0.75), (160, 160, 3), 107e6),
        # Howard et al. (2019), table 3: 56 million; He et al. (2016), table 1: 1.8e9.
        (models.MobileNetV3Small(num_classes=1000), (224, 224, 3), 56.5e6),
        (models.ResNet18(num_classes=1000), (224, 224, 3), 1.81e9),
        # Slimming (Liu et al., 2017), table 1 counts 7.97e8 operations, two to a multiply-add, for
        # a VGG of 16 convolutions; with its 13 here 3.13e8 multiply-adds are usually reported.
        (models.VGG16(num_classes=10), (32, 32, 3), 3.13e8),
        (models.VGG16(num_classes=1000, hidden=(4096, 4096)), (224, 224, 3), 15.5e9),
    ],
)
def test_multiply_adds_are_the_published_ones(model, shape, published):
    assert macs(model, shape) == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize(
    "model,message",
    [
        (models.SmallCNN(num_classes=2, widths=(4, 4)), r"strides \(1, 2, 2\) and widths \(4, 4\)"),
        (models.ResNet8(num_classes=2, hidden=(4, 4)), r"hidden \(4, 4\) and widths"),
        (models.MobileNetV2(num_classes=2, strides=(1, 1)), r"8 entries.*found \(1, 1\)"),
        (models.MobileNetV2(num_classes=2, multiplier=0.0), "must be positive, found 0.0"),
        (
            models.MobileNetV2(num_classes=2, widths=models.Widths(8, (8,), (8,), 8)),
            "17 blocks, found 1 hidden and 1 out",
        ),
        (models.MobileNetV3Small(num_classes=2, strides=(1, 1)), r"6 entries.*found \(1, 1\)"),
        (models.MobileNetV3Small(num_classes=2, multiplier=-1.0), "must be positive, found -1.0"),
        (
            models.MobileNetV3Small(
                num_classes=2, widths=models.V3Widths(8, (8,), (0, 0), (8,), 8, 8)
            ),
            "11 blocks, found 1 hidden, 2 squeeze and 1 out",
        ),
        (models.ResNet18(num_classes=2, widths=(4, 4)), r"found widths \(4, 4\) and hidden"),
        (models.ResNet18(num_classes=2, hidden=(4, 4)), r"and hidden \(4, 4\)"),
        (models.VGG16(num_classes=2, widths=(4, 4)), r"13 entries.*found \(4, 4\)"),
    ],
)
def test_widths_that_do_not_fit_are_named(model, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros([1, 8, 8, 1]))
