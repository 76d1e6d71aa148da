"""PreActResNet is the network that slimming was shown on, and reads what it is told to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax import models, slimming, tree
from compressjax.graph import trace
from tests.support.reference import draw

SMALL = models.PreActResNet(num_classes=4, multiplier=0.25, blocks=(1, 2, 1))


def shapes(model, size=8):
    images = jnp.zeros([1, size, size, 3])
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images)


def test_resnet_164_has_the_published_parameters_and_operations():
    """Liu et al. (2017), table 1: 1.70 million parameters, 4.99e8 operations, two a product."""
    model = models.PreActResNet(num_classes=10, blocks=(18, 18, 18), bottleneck=True)
    images = jax.ShapeDtypeStruct([1, 32, 32, 3], jnp.float32)
    abstract = shapes(model, 32)
    assert tree.size(abstract["params"]) / 1e6 == pytest.approx(1.70, abs=0.01)
    convolutions = [path for path in tree.paths(abstract) if "Conv" in path]
    assert len(convolutions) == 163 + 3  # and a dense layer; three shortcuts have their own
    assert 2 * trace(model.apply, abstract, images).macs == pytest.approx(4.99e8, rel=0.02)


def batch_norm(x, norm, statistics):
    return (x - statistics["mean"]) / np.sqrt(statistics["var"] + 1e-5) * norm["scale"] + norm[
        "bias"
    ]


def test_first_norms_read_the_channels_they_are_told():
    """With 1x1 images only the middle of a kernel counts, so NumPy can do the whole network."""
    widths = models.PreActWidths(stem=5, out=(5, 6, 7), hidden=((3,), (4,), (2,), (3,)))
    reads = ((0, 2, 4), (1, 3), None, (5,), (0, 1, 6))
    model = models.PreActResNet(num_classes=4, blocks=(1, 2, 1), widths=widths, reads=reads)
    variables = draw(shapes(model, 1))
    params, statistics = variables["params"], variables["batch_stats"]
    assert [params[f"PreActBlock_{b}"]["BatchNorm_0"]["scale"].size for b in range(4)] == [
        3, 2, 6, 1
    ]  # fmt: skip

    def product(x, layer):
        kernel = np.asarray(layer["kernel"], np.float64)
        return x @ kernel[kernel.shape[0] // 2, kernel.shape[1] // 2]

    def active(x, where, norm):
        for key in where:
            x = batch_norm(x, params[key][norm], statistics[key][norm])
        return np.maximum(x, 0)

    x = np.random.default_rng(0).normal(size=(2, 1, 1, 3))
    stream = product(x.reshape(2, 3), params["Conv_0"])
    for block, channels in enumerate(reads[:-1]):
        layers, name = params[f"PreActBlock_{block}"], f"PreActBlock_{block}"
        y = stream if channels is None else stream[:, list(channels)]
        y = product(active(y, [name], "BatchNorm_0"), layers["Conv_0"])
        y = product(active(y, [name], "BatchNorm_1"), layers["Conv_1"])
        stream = y + (product(stream, layers["Conv_2"]) if "Conv_2" in layers else stream)
    last = batch_norm(stream[:, list(reads[-1])], params["BatchNorm_0"], statistics["BatchNorm_0"])
    expected = np.maximum(last, 0) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    found = jax.jit(model.apply)(variables, x.astype(np.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_reads_are_positions_among_the_channels_that_are_left():
    """A stream cut to 0, 2, 4, 5 of which a norm keeps 2 and 5."""
    variables = tree.paths(shapes(SMALL))
    kept = {
        "params/PreActBlock_1/Conv_1/kernel": [0, 2, 4, 5],
        "params/PreActBlock_2/BatchNorm_0/scale": [2, 5],
        "params/PreActBlock_3/BatchNorm_0/scale": [0, 2, 4, 5],
    }
    widths = SMALL._widths()._replace(out=(4, 4, 16))
    reads = (None, None, (1, 3), None, None)
    target = SMALL.clone(multiplier=1.0, widths=widths, reads=reads)
    resized = models.resize(SMALL, shapes(target), kept)
    assert resized.reads == reads and resized.widths == widths
    assert json_like(resized.reads)
    # A second cut counts positions of what the first left: channels 1 and 3 of 4, then 3 of 1, 3.
    kept = {
        "params/PreActBlock_1/Conv_1/kernel": [0, 1, 3],
        "params/PreActBlock_2/BatchNorm_0/scale": [1],
    }
    narrower = widths._replace(out=(4, 3, 16))
    reads = (None, None, (2,), None, None)
    target = SMALL.clone(multiplier=1.0, widths=narrower, reads=reads)
    assert models.resize(resized, shapes(target), kept).reads == reads
    assert variables.keys() == tree.paths(shapes(target)).keys()


def json_like(value):
    if isinstance(value, tuple):
        return all(map(json_like, value))
    return value is None or type(value) is int


@pytest.mark.parametrize("bottleneck", [False, True])
def test_norms_that_are_cut_apart_from_the_stream_become_reads(bottleneck):
    model = models.PreActResNet(
        num_classes=4, multiplier=0.375, blocks=(1, 3, 1), bottleneck=bottleneck
    )
    x = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype(np.float32)
    variables = draw(shapes(model))
    found = slimming.find_groups(model.apply, variables, x, gather=True)
    apart = [group.name for group in found if group.name.endswith("/scale")]
    ratios = {**dict.fromkeys(apart, 0.6), "**": 0.3}
    for options in ({"ratio": ratios, "gather": True}, {"ratio": 0.3}):  # then cut that once more
        shrunk = slimming.shrink(model.apply, variables, x, round_to=1, **options)
        assert len(shrunk.report.gathers) == (5 if "gather" in options else 0)
        model = models.resize(model, shrunk.variables, shrunk.kept)
        assert [read is None for read in model.reads] == [False] * 5 + [True]
        assert json_like(model.reads)
        variables = shrunk.variables
        both = jax.jit(lambda v, m=model, s=shrunk: (m.apply(v, x), s.apply(v, x)))(variables)
        np.testing.assert_allclose(*both, rtol=1e-5, atol=1e-5)


def test_kept_of_another_network_is_named():
    kept = {"params/PreActBlock_2/BatchNorm_0/scale": [0, 99]}
    with pytest.raises(ValueError, match=r"PreActBlock_2/BatchNorm_0/scale: expected positions"):
        models.resize(SMALL, shapes(SMALL), kept)


def test_a_network_that_reads_some_channels_shrinks_again():
    reads = ((0, 1), (0, 2, 3), None, (1, 2, 5, 7), None)
    model = SMALL.clone(reads=reads)
    x = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype(np.float32)
    variables = draw(shapes(model))
    shrunk = slimming.shrink(model.apply, variables, x, round_to=1)
    resized = models.resize(model, shrunk.variables, shrunk.kept)
    found, expected = (jax.jit(fn)(shrunk.variables, x) for fn in (resized.apply, shrunk.apply))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert tree.size(shrunk.variables) < 0.8 * tree.size(variables)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"blocks": (1, 1)}, r"blocks must be 3 positive numbers.*found \(1, 1\)"),
        ({"blocks": (1, 0, 1)}, r"found \(1, 0, 1\)"),
        ({"reads": (None, None)}, r"9 hidden of 1 each and 10 reads, found .* and 2"),
        (
            {"widths": models.PreActWidths(4, (4, 4, 4), ((4, 4),) * 9)},
            r"3 widths out, 9 hidden of 1 each",
        ),
        (
            {"widths": models.PreActWidths(3, (4, 4, 4), ((4,),) * 9)},
            "the stem is added to the first stage, whose width is 4, found 3",
        ),
    ],
)
def test_options_that_do_not_fit_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        shapes(models.PreActResNet(num_classes=4, **options))
