"""One multiplier for every network: widths scale, and parameters with about their square."""

import jax
import jax.numpy as jnp
import pytest

from compressjax import models

NETWORKS = [
    models.MLP,
    models.SmallCNN,
    models.ResNet8,
    models.ResNet18,
    models.VGG16,
    models.MobileNetV1,
    models.MobileNetV2,
    models.MobileNetV3Small,
    models.PreActResNet,
]


def kernels(model):
    """The shapes of all kernels, and the number of parameters."""
    images = jnp.zeros([1, 32, 32, 3])
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images)["params"]
    found = {
        jax.tree_util.keystr(path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
        if leaf.ndim > 1
    }
    return found, sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.fixture(scope="module", params=NETWORKS, ids=lambda network: network.__name__)
def scaled(request):
    """Kernels and parameters of a network at three multipliers, with one class."""
    return request.param, {m: kernels(request.param(1, multiplier=m)) for m in (1.0, 0.5, 0.25)}


@pytest.mark.parametrize("multiplier", [0.5, 0.25])
def test_widths_and_parameters_scale(scaled, multiplier):
    network, found = scaled
    whole, narrow = (found[m][0] for m in (1.0, multiplier))
    assert list(narrow) == list(whole)
    # Published: MobileNets round to multiples of 8, and their last layer is never narrower.
    fixed = {
        models.MobileNetV2: "['Conv_1']['kernel']",
        models.MobileNetV3Small: "['Dense_0']['kernel']",
    }.get(network)
    step = 1 if network in (models.MLP, models.SmallCNN, models.ResNet8, models.PreActResNet) else 8
    for path, shape in narrow.items():
        if whole[path][-1] == 1:  # the logits
            assert shape[-1] == 1
        elif path == fixed:
            assert shape[-1] == whole[path][-1]
        else:
            assert shape[-1] % step == 0
            off = step if network is models.MobileNetV3Small else step / 2
            if network is not models.MobileNetV2:  # whose hidden widths follow rounded ones
                assert abs(shape[-1] - max(multiplier * whole[path][-1], step)) <= off
    if network in (models.ResNet18, models.VGG16, models.ResNet8, models.PreActResNet):
        ratio = found[multiplier][1] / found[1.0][1]
        assert ratio == pytest.approx(multiplier**2, rel=0.05)
    else:
        assert found[multiplier][1] < (1 + multiplier) / 2 * found[1.0][1]


def test_any_positive_multiplier_keeps_a_channel():
    for network in NETWORKS:
        found, _ = kernels(network(1, multiplier=0.001))
        assert all(min(shape) >= 1 for shape in found.values())
    assert kernels(models.MLP(1, multiplier=1.5))[0]["['Dense_0']['kernel']"] == (3072, 450)


def test_a_quarter_of_vgg16_has_its_published_widths():
    quarter, _ = kernels(models.VGG16(10, multiplier=0.25))
    widths = [shape[-1] for shape in quarter.values() if len(shape) == 4]
    order = [int(path.split("_")[1].split("'")[0]) for path in quarter if "Conv" in path]
    assert [width for _, width in sorted(zip(order, widths, strict=True))] == [
        16, 16, 32, 32, *(64,) * 3, *(128,) * 6
    ]  # fmt: skip


EXPLICIT = {
    models.MLP: (4, 3),
    models.SmallCNN: (4, 5, 6),
    models.ResNet8: (4, 5, 6),
    models.ResNet18: (4, 5, 6, 7),
    models.VGG16: (4,) * 13,
    models.MobileNetV1: (4,) * 14,
    models.MobileNetV2: models.mobilenet_widths(0.5),
    models.MobileNetV3Small: models.mobilenet_v3_small_widths(0.5),
    models.PreActResNet: models.preact_widths(0.5, blocks=(3, 3, 3), bottleneck=False),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_explicit_widths_and_a_multiplier_do_not_go_together(network):
    model = network(1, multiplier=0.5, widths=EXPLICIT[network])
    with pytest.raises(ValueError, match=f"{network.__name__}: found the multiplier 0.5 beside"):
        kernels(model)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("multiplier", [0.0, -1.0, float("nan"), float("inf")])
def test_a_multiplier_is_positive(network, multiplier):
    with pytest.raises(ValueError, match=f"multiplier must be positive, found {multiplier}"):
        kernels(network(1, multiplier=multiplier))
