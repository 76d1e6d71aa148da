"""MNN runs converted files: float within rounding, int8 within a few steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compressjax as cj
from compressjax import models
from compressjax.export import flatbuffer
from compressjax.export.mnn import convert, run, verify
from compressjax.export.mnn.prepare import prepare

pytest.importorskip("MNN")

_X = np.random.default_rng(0).normal(size=(9, 16, 16, 3)).astype(np.float32)


@functools.cache
def _files():
    """A quantized network, its variables, and its two .tflite files."""
    module = models.ResNet8(num_classes=10)
    variables = jax.jit(module.init)(jax.random.key(0), _X[:1])
    fn, variables = cj.fold_batch_norm(module.apply, variables, _X[:1])
    q = cj.quantize(fn)
    qv = q.calibrate(variables, [_X], observer=cj.quant.min_max())
    real = cj.export.tflite(fn, variables, _X[:2], via="litert")
    return fn, variables, real, q, qv, cj.export.tflite(q, qv, _X[:2], via="litert")


def test_float_is_the_function():
    fn, variables, real, *_ = _files()
    parity = verify(convert(real), fn, variables, _X)
    assert parity.max_relative < 1e-5
    assert (parity.samples, parity.top1_agreement) == (9, 1.0)


def test_int8_is_near_the_codes():
    *_, q, qv, file = _files()
    model = convert(file)
    assert len(model) < 1.1 * len(file)
    parity = verify(model, q, qv, _X)
    (logits, outputs) = parity.layers
    assert logits.values == outputs.values == 90
    assert 0 < parity.max_lsb <= 6, "16 steps if a zero after a ReLU became one step"
    assert parity.top1_agreement >= 0.8


def test_prepared_files_compute_the_same():
    """A convolution of one pixel in place of a fully connected layer."""
    *_, q, qv, file = _files()
    prepared = prepare(file)
    assert "FULLY_CONNECTED" in flatbuffer.ops(file)
    assert "FULLY_CONNECTED" not in flatbuffer.ops(prepared)
    np.testing.assert_array_equal(cj.export.run(prepared, _X), cj.export.run(file, _X))
    assert cj.export.verify(prepared, q, qv, _X).max_lsb == 0


@pytest.mark.parametrize("via", ["litert", "jax2tf"])
def test_several_inputs_and_outputs(via):
    def fn(variables, x, y):
        return x + 2 * y, x * y, y - x

    arrays = [np.random.default_rng(i).normal(size=(5, 4)).astype(np.float32) for i in range(2)]
    file = cj.export.tflite(fn, {}, *(x[:2] for x in arrays), via=via)
    for found, expected in zip(run(convert(file), *arrays), fn({}, *arrays), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_what_mnn_gets_wrong_is_refused():
    *_, q, qv, _ = _files()
    with pytest.raises(ValueError, match="is int8, for MNN inputs and outputs are float32"):
        convert(cj.export.tflite(q, qv, _X[:1], via="litert", int8_io=True))
    x = jnp.ones((1, 8))
    kernels = cj.quantize(lambda v, x: x @ v["params"]["kernel"], cj.quant.dynamic())
    variables = {"params": {"kernel": jax.random.normal(jax.random.key(1), (8, 256))}}
    kv = kernels.calibrate(variables, [x])
    with pytest.raises(ValueError, match="reads float32 and full int8 files"):
        convert(cj.export.tflite(kernels, kv, x, via="litert"))
    with pytest.raises(ValueError, match="MNN's converter refuses the file"):
        convert(cj.export.tflite(lambda v, x: jnp.cumsum(x, 1), {}, x, via="litert"))


@pytest.mark.parametrize("channels", [1, 4])
def test_layers_that_mnn_computes_exactly(channels):
    """A convolution of one channel is depthwise in the file; the others are as they are."""

    def fn(variables, x):
        p = variables["params"]
        numbers = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, p["conv"], (2, 2), "SAME", dimension_numbers=numbers)
        return jax.nn.relu(y).reshape(x.shape[0], -1) @ p["dense"]

    draw = np.random.default_rng(1).normal
    kernels = {"conv": draw(size=(3, 3, channels, 8)), "dense": draw(size=(128, 5))}
    variables = {"params": {name: jnp.asarray(x, jnp.float32) for name, x in kernels.items()}}
    x = draw(size=(6, 8, 8, channels)).astype(np.float32)
    q = cj.quantize(fn)
    qv = q.calibrate(variables, [x])
    file = cj.export.tflite(q, qv, x[:1], via="litert")
    assert ("DEPTHWISE_CONV_2D" in flatbuffer.ops(file)) == (channels == 1)
    parity = verify(convert(file), q, qv, x)
    assert (parity.max_lsb, parity.mismatch_fraction) == (0, 0.0)


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda v, x: jnp.tanh(x @ jnp.eye(4)), "TANH .* is not among the operations"),
        (lambda v, x: (x * x) + v["shift"], "ADD .* has a constant operand in int8"),
    ],
)
def test_operations_that_mnn_gets_wrong_in_int8(fn, message):
    variables, x = {"shift": jnp.arange(4.0).reshape(1, 4)}, jnp.ones((2, 4))
    q = cj.quantize(fn)
    file = cj.export.tflite(q, q.calibrate(variables, [x]), x, via="litert")
    with pytest.raises(ValueError, match=message):
        convert(file)


def test_damaged_files(capfd):
    real = _files()[2]
    with pytest.raises(ValueError, match="damaged"):
        convert(real[:-100])
    model = convert(real)
    for bad in (b"", b"MNN", model[: len(model) // 2]):
        with pytest.raises(ValueError, match=rf"not an MNN model \({len(bad)} bytes\)"):
            run(bad, _X)
    with pytest.raises(TypeError, match="a model is bytes, found str"):
        run("model.mnn", _X)
    with pytest.raises(ValueError, match=r"the model takes \['N', 16, 16, 3\]"):
        run(model, _X[:, :8])
    with pytest.raises(ValueError, match="threads=0"):
        run(model, _X, threads=0)
    assert not capfd.readouterr().out, "what MNN prints goes to the error stream"
