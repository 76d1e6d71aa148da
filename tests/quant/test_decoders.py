"""Networks that upsample, reduce or run along a line: LiteRT's codes by both converters."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compressjax as cj
from tests.quant.test_topologies import IMAGE, linen

LINE = (2, 12, 4)


def decoder(x):
    x = nn.relu(nn.Conv(6, (3, 3), strides=2)(x))
    a = nn.relu(nn.ConvTranspose(5, (3, 3), strides=(2, 2))(x))
    b = nn.ConvTranspose(5, (2, 2), strides=(2, 2), use_bias=False)(x)
    return nn.Conv(3, (1, 1))(a + b)


def odd_transposes(x):
    short = nn.ConvTranspose(3, (2, 2), strides=(3, 3))(x)
    cut = nn.relu6(nn.ConvTranspose(3, (4, 4), strides=(2, 2), padding=((1, 2), (0, 1)))(x))
    dilated = nn.ConvTranspose(3, (3, 2), strides=(2, 1), kernel_dilation=(1, 2))(x)
    turned = nn.ConvTranspose(3, (3, 3), strides=(2, 2), padding="VALID", transpose_kernel=True)(x)
    return [y.mean((1, 2)) for y in (short, cut, dilated, turned)]


def line(x):
    x = nn.relu(nn.Conv(6, (3,), strides=2)(x))
    x = nn.relu(nn.Conv(6, (3,), feature_group_count=6)(x))
    x = nn.ConvTranspose(4, (3,), strides=(2,))(x)
    return nn.Conv(3, (4,), padding=((3, 0),))(x)


def reductions(x):
    x = nn.Conv(6, (3, 3))(x)
    sums = x.sum((1, 2)) + x.sum(-1, keepdims=True).max((1, 2, 3))[:, None]
    return nn.Dense(3)(sums + x.max((1, 2)) - x.min((1, 2)))


def resized(x):
    x = nn.Conv(4, (1, 1))(x)
    nearest = jax.image.resize(x, (x.shape[0], 12, 20, 4), "nearest")
    repeated = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    tiled = jnp.tile(x, (1, 2, 1, 1))[:, :, jnp.array([0, 3, 3, 1])]
    return [nn.Conv(2, (3, 3))(y) for y in (nearest, repeated, tiled)]


def softmax_over_positions(x):
    x = nn.Conv(4, (1, 1))(x)
    return nn.softmax(x.reshape(x.shape[0], -1, 4), axis=1)


NETWORKS = [
    (decoder, IMAGE, "conv transpose_conv add"),
    (odd_transposes, IMAGE, "transpose_conv slice mean"),
    (line, LINE, "reshape conv depthwise_conv transpose_conv pad"),
    (reductions, IMAGE, "conv sum reduce_max reduce_min dense"),
    (resized, IMAGE, "resize_nearest concatenate gather"),
    (softmax_over_positions, IMAGE, "transpose softmax"),
]


@pytest.mark.parametrize(("body", "shape", "kinds"), NETWORKS)
def test_litert_gives_the_same_codes(body, shape, kinds):
    fn, variables, shape = linen(body, shape)
    batch = np.random.default_rng(2).normal(size=(24, *shape[1:])).astype("f")
    q = cj.quantize(fn, cj.quant.int8())
    qv = q.calibrate(variables, [batch], observer=cj.quant.min_max())
    found = [step.kind for step in q.plan(qv, batch[:1]).steps]
    assert set(kinds.split()) <= set(found), found
    for via in ("litert", "jax2tf"):
        model = cj.export.tflite(q, qv, batch[:1], via=via)
        parity = cj.export.verify(model, q, qv, batch)
        assert parity.max_lsb == 0 and parity.mismatch_fraction == 0, f"{via}: {parity}"
        compared = {layer.name for layer in parity.layers}
        steps = q.plan(qv, batch[:1]).steps
        missing = {step.kind for step in steps if step.name not in compared}
        assert missing <= {"reshape", "transpose", "pad", "gather"}, missing
