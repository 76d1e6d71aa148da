"""Importance from activations: what is seen, and that each weight is told what it reads."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax import slimming
from compressjax.slimming.importance.activations import ranks
from tests.support import importance_oracles as oracles
from tests.support.topologies import IMAGE, TOKENS, flattened, grouped, linen, plain


def test_ranks_are_those_of_elimination():
    rng = np.random.default_rng(1)
    thin = rng.normal(size=(3, 5, 2, 4)), rng.normal(size=(3, 2, 6, 4))
    maps = np.einsum("bhrc,brwc->bhwc", *thin).astype(np.float32)
    maps[0, :, :, 1] = 0.0
    expected = [np.mean([oracles.rank(maps[b, :, :, c]) for b in range(3)]) for c in range(4)]
    np.testing.assert_allclose(ranks(maps), expected)
    assert ranks(np.array([[1.0, 0.0], [2.0, 0.0]])).tolist() == [1.0, 0.0]


def test_a_kernel_is_told_what_it_reads():
    fn, variables = linen(plain)
    seen = slimming.observe(fn, variables, [IMAGE, 2 * IMAGE], slimming.mean_magnitude())
    first = seen["params/Conv_0/kernel"]
    expected = 1.5 * np.abs(IMAGE).mean((0, 1, 2))
    np.testing.assert_allclose(first, np.broadcast_to(expected[:, None], (3, 3, 3, 8)), rtol=1e-5)
    assert seen["params/Dense_0/kernel"].shape == (12, 4)


def test_groups_of_a_convolution_read_their_own_channels():
    fn, variables = linen(grouped)
    seen = slimming.observe(fn, variables, [IMAGE], slimming.mean_magnitude())
    before = nn.relu(nn.Conv(16, (1, 1)).apply({"params": variables["params"]["Conv_0"]}, IMAGE))
    expected = np.asarray(jnp.abs(before).mean((0, 1, 2))).reshape(4, 1, 4, 1)
    found = seen["params/Conv_1/kernel"].reshape(3, 3, 4, 4, 6).transpose(3, 0, 2, 1, 4)
    # [group, tap, input of the group, tap, output of the group]
    np.testing.assert_allclose(found, np.broadcast_to(expected.reshape(4, 1, 4, 1, 1), found.shape),
                               rtol=1e-5)  # fmt: skip


def test_several_inputs():
    seen = slimming.observe(
        lambda v, x, scale: (x * scale) @ v,
        np.ones((3, 2), np.float32),
        [(np.ones((4, 3), np.float32), np.float32([1, 2, 3]).reshape(1, 3))],
        slimming.mean_magnitude(),
    )
    np.testing.assert_allclose(seen[""], np.outer([1, 2, 3], [1, 1]))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision(dtype):
    x = jnp.asarray(IMAGE, dtype)
    kernel = jnp.ones((3, 3, 3, 4), dtype)
    fn = lambda v, x: nn.relu(jax.lax.conv_general_dilated(  # noqa: E731
        x, v, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))  # fmt: skip
    found = slimming.observe(fn, kernel, [x], slimming.mean_magnitude())[""]
    expected = np.abs(np.asarray(x, np.float64)).mean((0, 1, 2))
    np.testing.assert_allclose(found[0, 0, :, 0], expected, rtol=1e-5)
    found = slimming.observe(fn, kernel, [x], slimming.mean_rank())[""]
    assert found.min() == found.max() == 8


@pytest.mark.parametrize("method", [slimming.activation_mean, slimming.feature_rank])
@pytest.mark.parametrize("body", [plain, flattened])
def test_silent_channels_go_first(method, body):
    fn, variables = linen(body)
    silent = [1, 4]
    layers = [layer for name, layer in variables["params"].items() if name.endswith("_0")]
    for layer in layers[:-1]:  # the convolution and, in `plain`, its norm; the head stays
        for name, leaf in layer.items():
            leaf = np.array(leaf)
            leaf[..., silent] = -1.0 if name == "bias" else 0.0
            layer[name] = leaf
    shrunk = slimming.shrink(
        fn,
        variables,
        IMAGE,
        importance=method(fn, variables, [IMAGE]),
        ratio={"params/Conv_0/*": 0.3},
        round_to=1,
    )
    assert not set(silent) & set(shrunk.kept["params/Conv_0/kernel"])


def test_attention_and_dense_layers_are_seen():
    def body(x):
        y = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=8, name="att")(x)
        return nn.Dense(4, name="head")(y[:, 0])

    fn, variables = linen(body, TOKENS)
    seen = slimming.observe(fn, variables, [TOKENS], slimming.mean_magnitude())
    assert seen["params/att/out/kernel"].shape == (2, 4, 16)
    shrunk = slimming.shrink(
        fn,
        variables,
        TOKENS,
        importance=slimming.of_inputs(seen, otherwise=slimming.l1()),
        round_to=1,
    )
    assert len(shrunk.kept["params/att/value/kernel"]) == 2
    with pytest.raises(ValueError, match=r"'params/att/query/kernel.*': no kernel was seen"):
        slimming.shrink(fn, variables, TOKENS, importance=slimming.of_inputs(seen))


def test_errors():
    fn, variables = linen(plain)
    with pytest.raises(ValueError, match=r"batches are one array of shape \(2, 8, 8, 3\)"):
        slimming.observe(fn, variables, IMAGE, slimming.mean_magnitude())
    with pytest.raises(
        ValueError, match=r"Conv_0/kernel reads has shape \(2, 8, 8, 3\), expected \(3"
    ):
        slimming.observe(fn, variables, [IMAGE], slimming.Statistic(lambda x: x))
    with pytest.raises(ValueError, match="no batches"):
        slimming.observe(fn, variables, [], slimming.mean_rank())
    with pytest.raises(ValueError, match=r"'params/Conv_0/kernel': no kernel was seen to read it"):
        slimming.shrink(fn, variables, IMAGE, importance=slimming.of_inputs({}))
