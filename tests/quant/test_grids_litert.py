"""Grids with codes against LiteRT itself: what is simulated is what the file computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compressjax as cj
from compressjax.quant import grids


def two_layers(variables, x):
    params = variables["params"]
    y = jax.lax.conv_general_dilated(
        x, params["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    y = jax.nn.relu(y + params["bias"].reshape((1, 1, 1, -1)))
    return y.mean((1, 2)) @ params["dense"]


@pytest.mark.parametrize(
    "grid",
    [
        grids.integer(4),
        grids.learned_step(3),
        grids.ternary(),
        grids.keep_zeros(grids.binary()),
        grids.power_of_two(4, granularity=grids.per_tensor()),
        grids.additive_power_of_two(6),
    ],
    ids=lambda grid: grid.name,
)
def test_litert_gives_the_same_codes(grid):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    pruned = draw(3, 3, 4, 8) * (rng.random((3, 3, 4, 8)) > 0.3)
    variables = {"params": {"conv": pruned, "bias": draw(8) * 0.1, "dense": draw(8, 5)}}
    x = draw(16, 6, 6, 4)
    q = cj.quantize(two_layers, cj.quant.int8(weights={"**": grid}))
    qv = q.calibrate(variables, [x])
    model = cj.export.tflite(q, qv, x[:1], via="litert")
    parity = cj.export.verify(model, q, qv, x)
    assert parity.max_lsb == 0 and parity.samples == 16
    codes = q.freeze(qv, x[:1]).steps[0].constants[0].codes
    assert np.unique(np.abs(codes)).size <= 2 ** max(grid.bits - 1, 1)


@pytest.mark.parametrize("grid", [grids.integer(2), grids.ternary()], ids=lambda grid: grid.name)
def test_outputs_far_smaller_than_the_weights_leave_a_file_that_runs(grid):
    """Few codes mean large scales, and XNNPACK multiplies a sum by less than 256."""
    rng = np.random.default_rng(0)
    half = rng.normal(size=(8, 1, 4)).astype("f")
    kernel = jnp.asarray(np.concatenate([half, -half], 1).reshape(16, 4)) * 1.0001
    x = jnp.repeat(jnp.asarray(rng.normal(size=(32, 8)) * 100, jnp.float32), 2, axis=1)
    q = cj.quantize(lambda v, x: x @ v["kernel"], cj.quant.int8(weights={"**": grid}))
    qv = q.calibrate({"kernel": kernel}, [x])
    model = cj.export.tflite(q, qv, x[:1], via="litert")
    assert cj.export.verify(model, q, qv, x).max_lsb == 0
