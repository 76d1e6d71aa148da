"""Widths go back into every network: shrink, then the same numbers from a plain module."""

import json

import flax.linen as nn
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from compressjax import models, slimming, tree
from tests.support.reference import draw

NETWORKS = {
    "mlp": (models.MLP(num_classes=5, widths=(12, 9)), (4, 4, 1)),
    "small_cnn": (models.SmallCNN(num_classes=5, widths=(4, 6, 8)), (8, 8, 1)),
    "resnet8": (models.ResNet8(num_classes=5, widths=(8, 12, 16), hidden=(5, 6, 7)), (8, 8, 3)),
    "resnet18": (models.ResNet18(num_classes=5, widths=(4, 6, 8, 10)), (16, 16, 3)),
    "resnet18_small": (
        models.ResNet18(num_classes=5, widths=(4, 6, 8, 10), small_images=True),
        (8, 8, 3),
    ),
    "vgg16": (models.VGG16(num_classes=5, widths=(*range(4, 17),), hidden=(9,)), (33, 8, 3)),
    "mobilenet": (models.MobileNetV2(num_classes=5, multiplier=0.1), (8, 8, 3)),
    "mobilenet_v1": (models.MobileNetV1(num_classes=5, multiplier=0.02), (8, 8, 3)),
    "mobilenet_v3": (models.MobileNetV3Small(num_classes=5, multiplier=0.1), (8, 8, 3)),
    "preact": (models.PreActResNet(num_classes=5, multiplier=0.5), (8, 8, 3)),
    "preact_bottleneck": (
        models.PreActResNet(num_classes=5, multiplier=0.25, blocks=(2, 1, 2), bottleneck=True),
        (8, 8, 3),
    ),
}


def prepared(name, batch=3):
    """A network, variables drawn by NumPy, and images."""
    module, shape = NETWORKS[name]
    x = np.random.default_rng(1).normal(size=(batch, *shape)).astype(np.float32)
    return module, draw(abstract(module, x)), x


def abstract(module, x):
    return jax.eval_shape(lambda x: module.init(jax.random.key(0), x), x)


def training(module):
    return lambda v, x: module.apply(v, x, train=True, mutable=["batch_stats"])


def close(found, expected):
    def same(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())

    jax.tree.map(same, found, expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_shrunk_network_is_a_plain_module(name):
    module, variables, x = prepared(name)
    shrunk = slimming.shrink(module.apply, variables, x, ratio=0.5, round_to=1)
    resized = models.resize(module, shrunk.variables, shrunk.kept)
    trained = shrunk.transform(training(module))
    mine = lambda v, x: (resized.apply(v, x), *training(resized)(v, x))  # noqa: E731
    theirs = lambda v, x: (shrunk.apply(v, x), *trained(v, x))  # noqa: E731
    both = jax.jit(lambda v, x: (mine(v, x), theirs(v, x)))(shrunk.variables, x)
    for found, expected in zip(*both, strict=True):  # logits, logits in training, statistics
        close(found, expected)
    drawn = abstract(resized, x)
    assert drawn == jax.eval_shape(lambda v: v, shrunk.variables)
    assert tree.size(shrunk.variables) < 0.75 * tree.size(variables)
    fields = {"widths", "hidden", "reads"}.intersection(vars(resized))
    config = json.dumps({field: getattr(resized, field) for field in sorted(fields)})
    again = module.clone(multiplier=1.0, **json.loads(config))
    assert abstract(again, x) == drawn


@hypothesis.settings(max_examples=3)
@hypothesis.given(data=st.data())
@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v3", "preact_bottleneck"])
def test_ratios_drawn_at_random_by_path(name, data):
    """Every shape must agree, or `resize` raises; that the numbers then do is shown above."""
    module, variables, x = prepared(name)
    kernels = [path for path in tree.paths(variables) if path.endswith("kernel")]
    kernels.remove(max(path for path in kernels if path.startswith("params/Dense")))  # the logits
    chosen = data.draw(st.lists(st.sampled_from(kernels), min_size=1, unique=True))
    ratios = {path: data.draw(st.sampled_from([0.2, 0.5, 0.8])) for path in chosen}
    round_to = data.draw(st.sampled_from([1, 4]))
    shrunk = slimming.shrink(module.apply, variables, x, ratio=ratios, round_to=round_to)
    resized = models.resize(module, shrunk.variables, shrunk.kept)
    assert jax.eval_shape(resized.apply, shrunk.variables, x).shape == (3, 5)


def test_wider_variables_resize_too():
    module = models.SmallCNN(num_classes=5, widths=(4, 6, 8))
    wide = models.SmallCNN(num_classes=5, multiplier=2)
    x = jnp.zeros([1, 8, 8, 3])
    assert models.resize(module, abstract(wide, x)).widths == (64, 128, 256)


def test_other_collections_do_not_matter():
    module, variables, _ = prepared("resnet8")
    resized = models.resize(module, {**variables, "quant": {"Conv_0": np.zeros(3)}})
    assert resized.widths == (8, 12, 16) and resized.hidden == (5, 6, 7)


def change(variables, path, shape):
    return tree.replace(variables, {path: np.zeros(shape, np.float32)})


@pytest.mark.parametrize(
    "name,path,shape,message",
    [
        (
            "resnet8",
            "params/Conv_1/kernel",
            (3, 3, 5, 5),
            r"params/Conv_1/kernel: expected \(3, 3, 8, 5\), found \(3, 3, 5, 5\).*`shrink`",
        ),
        (
            "mobilenet",
            "params/InvertedResidual_2/Conv_2/kernel",
            (1, 1, 48, 7),
            r"InvertedResidual_2/Conv_2/kernel: expected \(1, 1, 48, 8\), found",
        ),
        (
            "mobilenet_v3",
            "params/Conv_0/kernel",
            (3, 3, 3, 7),
            r"batch_stats/BatchNorm_0/mean: expected \(7,\), found \(8,\)",
        ),
        ("vgg16", "params/Dense_0/kernel", (17, 9), r"Dense_0/kernel: expected \(16, 9\), found"),
        ("mlp", "params/Dense_2/kernel", (9, 4), r"Dense_2/.*: expected \(9, 5\).*num_classes"),
        (
            "preact",
            "params/PreActBlock_1/BatchNorm_0/scale",
            (5,),
            r"PreActBlock_1/BatchNorm_0/scale: expected \(8,\), found \(5,\).*`kept`",
        ),
    ],
)
def test_variables_of_no_such_network_are_named(name, path, shape, message):
    module, variables, _ = prepared(name)
    with pytest.raises(ValueError, match=message):
        models.resize(module, change(variables, path, shape))


def test_missing_and_surplus_variables_are_named():
    module, variables, _ = prepared("small_cnn")
    less = {"params": variables["params"]}
    with pytest.raises(ValueError, match="batch_stats/BatchNorm_0/mean: expected .*found none"):
        models.resize(module, less)
    more = {**variables, "params": {**variables["params"], "Conv_3": {"kernel": np.zeros(3)}}}
    with pytest.raises(ValueError, match="params/Conv_3/kernel: expected no such variable"):
        models.resize(module, more)
    with pytest.raises(ValueError, match="params/Dense_0/kernel: expected a kernel, found none"):
        models.resize(NETWORKS["mlp"][0], {"params": {"w": np.zeros((3, 4))}})


def test_a_module_that_cannot_read_widths_is_refused():
    with pytest.raises(TypeError, match="Dense has no method `resized`"):
        models.resize(nn.Dense(3), {})
