"""MobileNetV3-Small is the paper's network, and its gates do what they should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.models import MobileNetV3Small, mobilenet_v3_small_widths
from compressjax.models.blocks import SqueezeExcite


def params_of(model, size=64):
    images = jnp.zeros([1, size, size, 3])
    return jax.eval_shape(model.init, jax.random.key(0), images)["params"]


@pytest.mark.parametrize(
    # With 1000 classes: torchvision reports 2,542,856 at 1, timm 2.04 million at 0.75.
    "multiplier,millions,within",
    [(1.0, 2.542856, 1e-9), (0.75, 2.04, 0.05)],
)
def test_parameters_are_the_published_ones(multiplier, millions, within):
    params = params_of(MobileNetV3Small(num_classes=1000, multiplier=multiplier))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count / 1e6 == pytest.approx(millions, abs=within)


def test_explicit_widths_are_the_shapes():
    widths = mobilenet_v3_small_widths(0.25)
    shrunk = widths._replace(hidden=(*widths.hidden[:-1], 5), dense=11)
    params = params_of(MobileNetV3Small(num_classes=4, widths=shrunk))
    assert params["V3Block_10"]["Conv_1"]["kernel"].shape == (5, 5, 1, 5)
    assert params["V3Block_10"]["SqueezeExcite_0"]["Conv_1"]["kernel"].shape[-1] == 5
    assert params["Dense_1"]["kernel"].shape == (11, 4)


def test_blocks_are_those_of_the_table():
    params = params_of(MobileNetV3Small(num_classes=4))
    blocks = [params[f"V3Block_{i}"] for i in range(11)]
    assert ["SqueezeExcite_0" in block for block in blocks] == [True, False, False] + [True] * 8
    sizes = [3] * 3 + [5] * 8
    depthwise = [block["Conv_0" if i == 0 else "Conv_1"] for i, block in enumerate(blocks)]
    assert [kernel["kernel"].shape[0] for kernel in depthwise] == sizes


def test_squeeze_and_excitation_scales_channels_by_the_gate():
    """Closed, half open and open gates, by the last bias alone (Howard et al., section 5.3)."""
    x = jax.random.normal(jax.random.key(0), [2, 3, 5, 3])
    gate = SqueezeExcite(4)
    variables = jax.tree.map(jnp.zeros_like, gate.init(jax.random.key(1), x))
    variables["params"]["Conv_1"]["bias"] = jnp.array([-3.0, 0.0, 3.0])
    expected = np.asarray(x) * np.array([0.0, 0.5, 1.0])
    np.testing.assert_allclose(gate.apply(variables, x), expected, rtol=1e-6)
