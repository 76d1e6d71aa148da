"""Files with float arithmetic hold the codes of the model's kernels, and compute what it does."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compressjax as cj
from compressjax import models
from compressjax.export import flatbuffer
from compressjax.quant import grids

VIAS = ("jax2tf", "litert")
FORMS = {
    "float16": lambda: cj.quant.weight_only(grids.float16()),
    "int8": cj.quant.weight_only,
    "int4": lambda: cj.quant.weight_only(grids.integer(4)),
    "dynamic": cj.quant.dynamic,
}


class Net(nn.Module):
    """Every kind of kernel: windows, groups, depthwise, backwards, a mean before a dense layer."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=8)(x))
        x = nn.relu(nn.Conv(8, (1, 1), feature_group_count=2)(x))
        x = nn.relu(nn.ConvTranspose(6, (2, 2), strides=(2, 2))(x))
        return nn.Dense(5)(x.mean((1, 2)))


@functools.cache
def _net():
    x = jax.random.normal(jax.random.key(0), (4, 6, 6, 3))
    variables = Net().init(jax.random.key(1), x)
    return Net().apply, variables, x


@functools.cache
def _exported(form, via, int4=False):
    fn, variables, x = _net()
    q = cj.quantize(fn, FORMS[form]())
    qv = q.calibrate(variables, [x])
    return q, qv, cj.export.tflite(q, qv, x[:1], via=via, int4=int4)


def _types(model):
    unpacked = flatbuffer.read(model)
    constants = [
        t for t in unpacked.subgraphs[0].tensors if unpacked.buffers[t.buffer].data is not None
    ]
    return [(flatbuffer.dtype(t).name, tuple(t.shape)) for t in constants]


@pytest.mark.parametrize("via", VIAS)
@pytest.mark.parametrize("form", FORMS)
def test_a_file_computes_what_the_model_does(form, via):
    q, qv, file = _exported(form, via)
    x = np.asarray(_net()[2])
    expected = np.asarray(jax.jit(q.apply)(qv, x))
    # Dynamic ranges come from values that differ in their last bits, so a code may flip; a half
    # that jax2tf multiplied (here by the divisor of the mean) is rounded again.
    rounded_again = form == "float16" and via == "jax2tf"
    tolerance = 2e-3 if form == "dynamic" else 5e-4 if rounded_again else 2e-6
    largest = np.abs(expected).max()
    np.testing.assert_allclose(cj.export.run(file, x), expected, atol=tolerance * largest)
    plain = np.asarray(_net()[0](_net()[1], x))
    if form in ("int8", "int4"):  # the tolerance tells the model from the float one
        assert np.abs(plain - expected).max() > 100 * tolerance * largest


@pytest.mark.parametrize("via", VIAS)
@pytest.mark.parametrize("form", FORMS)
def test_every_kernel_is_stored_and_biases_stay(form, via):
    kind = "float16" if form == "float16" else "int8"
    kernels = jax.tree.leaves(jax.tree.map(lambda p: p.size if p.ndim > 1 else 0, _net()[1]))
    stored = [shape for name, shape in _types(_exported(form, via)[2]) if name == kind]
    assert sum(map(np.prod, stored)) == sum(kernels)
    assert sorted(map(np.prod, stored)) == sorted(size for size in kernels if size)


def test_codes_are_those_of_the_model():
    q, qv, file = _exported("int8", "litert")
    found = q.freeze(qv, _net()[2]).kernels["params/Dense_0/kernel"]
    unpacked = flatbuffer.read(file)
    (dense,) = [
        t for t in unpacked.subgraphs[0].tensors if tuple(t.shape) == (5, 6) and t.type == 9
    ]
    np.testing.assert_array_equal(flatbuffer.constant(unpacked, dense), found.codes.T)
    np.testing.assert_array_equal(dense.quantization.scale, found.scale[0])
    np.testing.assert_array_equal(found.codes * found.scale, found.values)


def test_four_bits_take_half_a_byte_on_request():
    _, _, wide = _exported("int4", "litert")
    q, qv, packed = _exported("int4", "litert", int4=True)
    kernels = sum(p.size for p in jax.tree.leaves(_net()[1]) if p.ndim > 1)
    assert len(wide) - len(packed) == pytest.approx(kernels / 2, abs=100)
    x = np.asarray(_net()[2])
    np.testing.assert_allclose(cj.export.run(wide, x), cj.export.run(packed, x), atol=1e-7)


def test_dynamic_layers_take_codes_and_the_others_floats():
    ops = cj.export.ops(_exported("dynamic", "litert")[2])
    assert ops.count("DEQUANTIZE") == 1  # the depthwise convolution's
    assert cj.export.ops(_exported("int8", "litert")[2]).count("DEQUANTIZE") == 5


def _conv(strides=1, groups=1):
    def fn(variables, x):
        return jax.lax.conv_general_dilated(
            x,
            variables["kernel"],
            (strides, strides),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    return fn


def _transposed(variables, x):
    return jax.lax.conv_transpose(x, variables["kernel"], (2, 2), "VALID")


LAYERS = {
    "window": (_conv(), (3, 3, 4, 6), (3, 8, 8, 4), "CONV_2D"),
    "pixel": (_conv(), (1, 1, 4, 6), (3, 8, 8, 4), "CONV_2D"),
    "strided pixel": (_conv(strides=2), (1, 1, 4, 6), (3, 8, 8, 4), "CONV_2D"),
    "grouped": (_conv(groups=2), (3, 3, 2, 6), (3, 8, 8, 4), "CONV_2D"),
    "one channel": (_conv(), (3, 3, 1, 6), (3, 8, 8, 1), "DEPTHWISE_CONV_2D"),
    "transposed": (_transposed, (3, 3, 4, 6), (3, 4, 4, 4), "TRANSPOSE_CONV"),
    "rows": (lambda v, x: x @ v["kernel"], (6, 5), (3, 4, 6), "FULLY_CONNECTED"),
    "left": (lambda v, x: v["kernel"] @ x, (4, 6), (3, 6, 5), "BATCH_MATMUL"),
}


@functools.cache
def _layer(name, granularity=grids.per_channel):
    fn, kernel, shape, _ = LAYERS[name]
    variables = {"kernel": jax.random.normal(jax.random.key(0), kernel)}
    # Halves of steps in some rows: ties are rounded as LiteRT rounds them.
    x = np.array(jax.random.normal(jax.random.key(1), shape))
    x[0] = np.clip(np.round(x[0] * 16) / 32, -1, 127 / 128)
    q = cj.quantize(fn, cj.quant.dynamic(grids.integer(8, granularity=granularity())))
    qv = q.calibrate(variables, [x])
    return q, qv, x, cj.export.tflite(q, qv, x, via="litert")


@pytest.mark.parametrize("name", LAYERS)
def test_dynamic_grids_are_those_of_the_file(name):
    q, qv, x, file = _layer(name)
    assert LAYERS[name][-1] in cj.export.ops(file)
    expected = np.asarray(jax.jit(q.apply)(qv, x))
    off = np.abs(cj.export.run(file, x) - expected).max() / np.abs(expected).max()
    assert off < 1e-6  # one flipped code would be a hundred times that


def test_gradients_pass_dynamic_grids():
    q, qv, x, _ = _layer("rows")
    kernel = q.freeze(qv, x).kernels["kernel"].values
    found = jax.grad(lambda x: q.apply(qv, x).sum())(jnp.asarray(x))
    np.testing.assert_allclose(found, np.broadcast_to(kernel.sum(1), x.shape), rtol=1e-5)


def test_one_scale_is_repeated_for_each_output():
    _, _, _, file = _layer("window", grids.per_tensor)
    (weight,) = [t for t in flatbuffer.read(file).subgraphs[0].tensors if t.type == 9]
    assert len(weight.quantization.scale) == 6 == weight.shape[0]


def test_versions_do_not_go_down():
    unpacked = flatbuffer.read(_layer("grouped")[-1])
    assert [code.version for code in unpacked.operatorCodes] == [6]


def test_a_kernel_of_halves_has_no_dynamic_layer():
    x = np.ones((1, 4), np.float32)
    q = cj.quantize(lambda v, x: x @ v["kernel"], cj.quant.dynamic(grids.float16()))
    variables = {"kernel": jax.random.normal(jax.random.key(0), (4, 4))}
    with pytest.raises(ValueError, match="kernel 'kernel' is multiplied by codes in the model"):
        cj.export.tflite(q, q.calibrate(variables, [x]), x, via="litert")


def test_other_widths_of_dynamic_codes_are_only_simulated():
    x = np.ones((1, 4), np.float32)
    spec = cj.quant.dynamic()._replace(activations=cj.quant.spec.Dynamic(bits=4))
    q = cj.quantize(lambda v, x: x @ v["kernel"], spec)
    with pytest.raises(ValueError, match="dynamic activations have 4 bits"):
        cj.export.tflite(q, {"kernel": jnp.eye(4)}, x, via="litert")


@pytest.mark.parametrize("via", VIAS)
def test_a_batch_norm_goes_to_the_scales(via):
    model = models.SmallCNN(num_classes=3, widths=(4,), strides=(1,))
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 1))
    variables = model.init(jax.random.key(1), x)
    norm = variables["params"]["BatchNorm_0"] | {"scale": jnp.array([1.0, -2.0, 0.5, 3.0])}
    variables["params"]["BatchNorm_0"] = norm
    q = cj.quantize(model.apply, cj.quant.weight_only())
    qv = q.calibrate(variables, [x])
    file = cj.export.tflite(q, qv, x[:1], via=via)
    expected = np.asarray(q.apply(qv, x))
    np.testing.assert_allclose(cj.export.run(file, np.asarray(x)), expected, atol=1e-5)
    assert [name for name, _ in _types(file)].count("int8") == 2


def test_a_kernel_read_twice_is_stored_once():
    def fn(variables, x):
        return (x @ variables["kernel"]) @ variables["kernel"]

    variables = {"kernel": jax.random.normal(jax.random.key(0), (16, 16))}
    q = cj.quantize(fn, cj.quant.dynamic())
    x = jnp.ones((1, 16))
    file = cj.export.tflite(q, q.calibrate(variables, [x]), x, via="litert")
    assert [shape for name, shape in _types(file) if name == "int8"] == [(16, 16)]


def test_a_rule_leaves_a_kernel_float():
    fn, variables, x = _net()
    q = cj.quantize(fn, cj.quant.weight_only(rules={"**/Dense_0/kernel": None}))
    file = cj.export.tflite(q, q.calibrate(variables, [x]), x[:1], via="litert")
    assert [name for name, _ in _types(file)].count("int8") == 4


def test_the_same_bytes_again():
    fn, variables, x = _net()
    q, qv, file = _exported("dynamic", "litert")
    assert cj.export.tflite(q, qv, x[:1], via="litert") == file


def test_what_no_tensor_holds_is_named():
    fn, variables, x = _net()
    q = cj.quantize(fn, cj.quant.weight_only(grids.integer(12)))
    with pytest.raises(ValueError, match="params/Conv_0/kernel has the grid 'int12"):
        cj.export.tflite(q, q.calibrate(variables, [x]), x[:1], via="litert")
    q, qv, _ = _exported("int8", "litert")
    with pytest.raises(ValueError, match="int8_io=True needs integer activations"):
        cj.export.tflite(q, qv, x[:1], via="litert", int8_io=True)


def test_outputs_are_verified_as_reals():
    q, qv, file = _exported("int8", "litert")
    parity = cj.export.verify(file, q, qv, np.asarray(_net()[2]))
    assert parity.top1_agreement == 1.0 and parity.max_relative < 1e-5
