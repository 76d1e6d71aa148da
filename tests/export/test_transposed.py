"""Float files of transposed convolutions give JAX's values whatever edges are cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compressjax as cj

CASES = {
    "both ends": ((4, 4), (2, 2), "SAME", False),
    "one end": ((3, 3), (2, 2), "SAME", True),
    "the other end": ((3, 3), (2, 2), ((1, 2), (1, 2)), True),
    "more than SAME": ((3, 3), (2, 2), ((1, 1), (1, 2)), True),
    "nothing": ((3, 3), (2, 2), "VALID", False),
    "a window shorter than its stride": ((2, 3), (3, 2), "SAME", True),
}


def _up(case):
    window, strides, padding, _ = CASES[case]
    kernel = jax.random.normal(jax.random.key(0), (*window, 4, 3))
    variables = {"kernel": kernel}
    x = np.asarray(jax.random.normal(jax.random.key(1), (2, 5, 6, 4)))

    def up(variables, x):
        return jax.lax.conv_transpose(x, variables["kernel"], strides, padding)

    return up, variables, x


@pytest.mark.parametrize("case", CASES)
def test_files_have_the_values_of_the_function(case):
    up, variables, x = _up(case)
    file = cj.export.tflite(up, variables, jnp.asarray(x), via="litert")
    assert cj.export.run(file, x).shape == up(variables, x).shape
    np.testing.assert_allclose(cj.export.run(file, x), up(variables, x), atol=1e-5)
    assert cj.export.ops(file) == ["TRANSPOSE_CONV", "SLICE"][: 1 + CASES[case][-1]]
    assert not cj.export.check(up, variables, jnp.asarray(x), via="litert").problems


def test_both_converters_and_dynamic_kernels():
    up, variables, x = _up("the other end")
    file = cj.export.tflite(up, variables, jnp.asarray(x), via="jax2tf")
    np.testing.assert_allclose(cj.export.run(file, x), up(variables, x), atol=1e-5)
    q = cj.quantize(up, cj.quant.dynamic())
    qv = q.calibrate(variables, [x])
    file = cj.export.tflite(q, qv, jnp.asarray(x), via="litert")
    np.testing.assert_allclose(cj.export.run(file, x), q.apply(qv, x), atol=1e-4)
    assert cj.export.ops(file) == ["TRANSPOSE_CONV", "SLICE"]
