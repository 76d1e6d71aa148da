"""MobileNetV1 is the paper's network, and compact blocks survive the way to the phone exactly."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compressjax as cj
from compressjax import models
from tests.support.reference import draw


@pytest.mark.parametrize(
    # Howard et al. (2017), table 6: millions of parameters; at 1.0 what Keras counts as trainable.
    ("multiplier", "millions"),
    [(1.0, 4.231976), (0.75, 2.6), (0.5, 1.3), (0.25, 0.5)],
)
def test_parameters_are_the_published_ones(multiplier, millions):
    model = models.MobileNetV1(num_classes=1000, multiplier=multiplier)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros([1, 64, 64, 3]))
    found = sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) / 1e6
    assert found == pytest.approx(millions, abs=0.05 if multiplier != 1 else 1e-9)


def test_multiply_accumulates_are_the_published_ones():
    """Howard et al. (2017), table 6: 569 million at 224 pixels, without batch norms."""
    model = models.MobileNetV1(num_classes=1000)
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    graph = cj.trace(model.apply, jax.eval_shape(model.init, jax.random.key(0), x), x)
    assert graph.macs == pytest.approx(569e6, rel=0.005)


def test_the_number_of_widths_is_checked():
    model = models.MobileNetV1(num_classes=2, widths=(8,) * 13)
    with pytest.raises(ValueError, match="widths and strides must have 14 entries"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros([1, 8, 8, 3]))


def test_groups_divide_the_hidden_channels():
    block = models.GroupedBottleneck(hidden=6, out=8, groups=4)
    with pytest.raises(ValueError, match="a multiple of groups, found 6 and 4"):
        jax.eval_shape(block.init, jax.random.key(0), jnp.zeros([1, 4, 4, 8]))


class Pair(nn.Module):
    """Every block once, at a few channels."""

    @nn.compact
    def __call__(self, x, train=False):
        """Logits [B, 3] of x [B, 6, 6, 4]."""
        x = models.DepthwiseSeparable(8, stride=2)(x, train)
        x = models.GroupedBottleneck(hidden=8, out=8, groups=2)(x, train)
        x = models.GroupedBottleneck(hidden=4, out=12, groups=4)(x, train)
        x = models.InvertedResidual(16, 12, stride=1, expand=True, residual=True)(x, train)
        x = models.SqueezeExcite(4)(x)
        return nn.Dense(3)(x.mean((1, 2)))


@pytest.mark.parametrize("via", ["litert", "jax2tf"])
@pytest.mark.parametrize("name", ["blocks", "mobilenet_v1"])
def test_int8_is_exact(name, via):
    if name == "blocks":
        module, shape = Pair(), (6, 6, 4)
    else:
        strides = (2, 2, *(1,) * 12)
        module, shape = models.MobileNetV1(3, widths=(8,) * 14, strides=strides), (6, 6, 3)
    x = np.random.default_rng(0).normal(size=(8, *shape)).astype(np.float32)
    variables = draw(jax.eval_shape(lambda x: module.init(jax.random.key(0), x), x))
    train = jax.jit(lambda v, x: module.apply(v, x, train=True, mutable=["batch_stats"])[1])
    for _ in range(40):  # the data's own statistics: without them nothing survives fourteen layers
        variables = {**variables, **train(variables, x)}
    apply, variables = cj.fold_batch_norm(module.apply, variables, x[:1])
    q = cj.quantize(apply, cj.quant.int8())
    qv = q.calibrate(variables, [x])
    model = cj.export.tflite(q, qv, x[:1], via=via)
    parity = cj.export.verify(model, q, qv, x)
    assert sum(layer.differing for layer in parity.layers) == 0
    assert len(np.unique(np.asarray(q.apply(qv, x)))) > 3
