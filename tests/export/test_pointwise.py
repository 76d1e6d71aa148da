"""Dense layers on one pixel, as squeeze-and-excitation has them, export like any others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compressjax as cj

X = np.asarray(jax.random.normal(jax.random.key(0), (4, 5, 5, 6)))


def _excite(variables, x):
    y = jax.nn.relu(x.mean((1, 2), keepdims=True) @ variables["down"])
    return (x * jax.nn.sigmoid(y @ variables["up"] + variables["bias"])).mean((1, 2))


def _variables():
    keys = jax.random.split(jax.random.key(1))
    return {
        "down": jax.random.normal(keys[0], (6, 3)),
        "up": jax.random.normal(keys[1], (3, 6)),
        "bias": jnp.full((1, 1, 1, 6), 0.5),
    }


@pytest.mark.parametrize("via", ["jax2tf", "litert"])
def test_one_example_is_exported(via):
    file = cj.export.tflite(_excite, _variables(), X[:1], via=via)
    np.testing.assert_allclose(cj.export.run(file, X), _excite(_variables(), X), atol=1e-5)
    q = cj.quantize(_excite)
    qv = q.calibrate(_variables(), [X])
    file = cj.export.tflite(q, qv, X[:1], via=via)
    parity = cj.export.verify(file, q, qv, X)
    assert parity.max_lsb == 0 and len(parity.layers) >= 6


def test_kernels_are_stored_as_codes():
    q = cj.quantize(_excite, cj.quant.dynamic())
    qv = q.calibrate(_variables(), [X])
    file = cj.export.tflite(q, qv, X[:1], via="litert")
    np.testing.assert_allclose(cj.export.run(file, X), q.apply(qv, X), atol=1e-4)
