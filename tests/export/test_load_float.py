"""Files that compute on real values are rebuilt too: float, half-precision, weights as codes."""

import contextlib
import functools
import io
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import compressjax as cj
from compressjax.export import flatbuffer, load, run, tflite, verify
from compressjax.quant import grids

_ROUNDED = 1e-5  # of the largest value: sums of float32 in another order
SPECS = {
    "float32": None,
    "float16": lambda: cj.quant.weight_only(grids.float16()),
    "int8": cj.quant.weight_only,
    "int4": lambda: cj.quant.weight_only(grids.integer(4)),
    "dynamic": cj.quant.dynamic,
}
STORED = {"float32": jnp.float32, "float16": jnp.float16}


class Net(nn.Module):
    """Every kind of kernel."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=8)(x))
        x = nn.relu(nn.ConvTranspose(6, (2, 2), strides=(2, 2))(x))
        return nn.Dense(5)(x.mean((1, 2)))


@functools.cache
def _net():
    x = np.asarray(jax.random.normal(jax.random.key(0), (5, 6, 6, 3)))
    return Net().init(jax.random.key(1), x), x


@functools.cache
def _ours(form: str) -> bytes:
    variables, x = _net()
    if SPECS[form] is None:
        return tflite(Net().apply, variables, x[:2], via="litert")
    q = cj.quantize(Net().apply, SPECS[form]())
    qv = q.calibrate(variables, [x])
    return tflite(q, qv, x[:2], via="litert", int4=form == "int4")


def _close(data: bytes, *inputs: np.ndarray) -> cj.export.Loaded:
    network = load(data)
    found, wanted = jax.jit(network.apply)(network.variables, *inputs), run(data, *inputs)
    found, wanted = jax.tree.leaves(found), jax.tree.leaves(wanted)
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        limit = _ROUNDED * np.abs(theirs.astype(np.float32)).max()
        np.testing.assert_allclose(ours, theirs, atol=limit, rtol=0)
    return network


@pytest.mark.parametrize("form", SPECS)
def test_our_files(form):
    data, x = _ours(form), _net()[1]
    network = _close(data, x)
    kernels = [leaf for leaf in jax.tree.leaves(network.variables["params"]) if leaf.ndim > 1]
    assert len(kernels) == 4
    assert {kernel.dtype for kernel in kernels} == {jnp.dtype(STORED.get(form, jnp.int8))}
    assert network.tolerance == (0.02 if form == "dynamic" else 1e-5)
    assert network.codes == ()


def test_rounding_the_input_of_a_dynamic_layer_is_not_left_out():
    network, x = load(_ours("dynamic")), _net()[1]
    whole = load(_ours("int8")).apply(load(_ours("int8")).variables, x)
    assert np.abs(network.apply(network.variables, x) - whole).max() > 1e-4


def test_a_float_file_is_trained_on():
    network, x = load(_ours("float32")), _net()[1]
    labels = jnp.arange(len(x)) % 5

    def loss(params):
        logits = network.apply({**network.variables, "params": params}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    value, slopes = jax.jit(jax.value_and_grad(loss))(network.variables["params"])
    assert all(np.any(slope) for slope in jax.tree.leaves(slopes)), "every constant has a gradient"
    moved = jax.tree.map(lambda p, g: p - 0.1 * g, network.variables["params"], slopes)
    assert loss(moved) < value


def test_what_stands_before_and_behind_a_model():
    x = np.asarray(jax.random.normal(jax.random.key(2), (4, 4, 4, 2)))
    q = cj.quantize(lambda v, x: x.mean((1, 2)) @ v["kernel"])
    qv = q.calibrate({"kernel": jnp.array([[1.0, 2.0, 3.0, 4.0], [4.0, 1.0, 3.0, 2.0]])}, [x])
    app = cj.export.with_image_input(
        tflite(q, qv, x[:1], via="litert"), mean=99, std=50, size=(6, 5)
    )
    app = cj.export.with_top_k(cj.export.with_softmax(app), 2)
    images = np.random.default_rng(0).integers(0, 256, (3, 6, 5, 2)).astype(np.uint8)
    network = _close(app, images)
    assert network.apply(network.variables, images)[1].dtype == jnp.int32
    assert network.codes


def _everything(tf, draw):
    """Most of what a converter writes for vision and audio, on real values."""
    window, deep, wide = (
        tf.constant(draw(size=s), tf.float32) for s in ((3, 3, 8, 16), (3, 3, 16, 8), (64, 20))
    )
    slope = tf.constant([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])

    def network(x):  # [2, 8, 8, 8]
        y = tf.nn.relu6(tf.nn.conv2d(x, window, 2, "SAME", dilations=1))
        y = tf.nn.depthwise_conv2d(y, deep, [1, 1, 1, 1], "SAME")  # [2, 4, 4, 128]
        y = tf.add_n(tf.split(y, [8, 40, 40, 40], -1)[1:])
        y = tf.nn.depth_to_space(tf.nn.space_to_depth(y, 2), 2)[..., 2:34]
        y = tf.image.resize(y, (7, 5)) * tf.image.resize(y, (7, 5), method="nearest")
        y = tf.pad(y, [[0, 0], [1, 0], [2, 1], [0, 0]], "REFLECT")
        mean = tf.reduce_mean(y, -1, keepdims=True)
        spread = tf.reduce_mean(tf.math.squared_difference(y, mean), -1, keepdims=True)
        y = (y - mean) * tf.math.rsqrt(spread + 1e-3)
        z = tf.nn.leaky_relu(x, 0.3) / (1.0 + tf.abs(x)) - tf.nn.relu(x) + slope * tf.tanh(x)
        z = tf.nn.elu(-z) + tf.nn.gelu(z, approximate=True) + tf.exp(tf.minimum(z, 1.0))
        z = tf.stack(tf.unstack(z, axis=1)[::2], 1) + tf.cumsum(z, 2)[:, ::2]
        z = tf.where(z > 0.5, z, tf.broadcast_to(tf.math.sin(z[:, :1]), z.shape))
        z = tf.concat([tf.tile(z[:, :1], [1, 2, 1, 1]), tf.reverse(z, [1])], 1)
        z = tf.nn.l2_normalize(tf.reshape(z, [2, 6, 64]), -1) @ wide
        y = tf.nn.log_softmax(tf.matmul(z, z, transpose_b=True)), tf.nn.avg_pool2d(y, 3, 2, "SAME")
        return *y, tf.argmax(z, -1), tf.nn.max_pool2d(x, 3, 2, "SAME"), tf.gather(z, [3, 1], axis=1)

    return network


@functools.cache
def _theirs(form: str) -> bytes:
    tf = pytest.importorskip("tensorflow")
    network = _everything(tf, np.random.default_rng(3).normal)
    traced = tf.function(network, input_signature=[tf.TensorSpec([2, 8, 8, 8], tf.float32)])
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [traced.get_concrete_function()], tf.Module()
    )
    if form != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if form == "float16":
        converter.target_spec.supported_types = [tf.float16]
    return converter.convert()


@pytest.mark.parametrize(("form", "dtype"), [("float32", "float32"), ("float16", "float16"),
                                             ("dynamic", "int8")])  # fmt: skip
def test_files_of_the_converter_itself(form, dtype):
    data = _theirs(form)
    assert len(set(flatbuffer.ops(data))) > 30
    network = _close(data, np.random.default_rng(1).normal(size=(3, 8, 8, 8)).astype(np.float32))
    kernels = [leaf for leaf in jax.tree.leaves(network.variables["params"]) if leaf.size > 1000]
    assert dtype in {str(kernel.dtype) for kernel in kernels}


def test_sizes_that_are_computed():
    """With an open batch a converter asks for shapes while the model runs; here they are known."""
    tf = pytest.importorskip("tensorflow")
    kernel = tf.ones((2, 2, 3, 2))

    @tf.function(input_signature=[tf.TensorSpec([None, 4, 4, 2], tf.float32)])
    def network(x):
        y = tf.nn.conv2d_transpose(x, kernel, [tf.shape(x)[0], 8, 8, 3], 2, "SAME")
        return tf.reshape(y, [tf.shape(y)[0], -1, 6])

    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [network.get_concrete_function()], tf.Module()
    )
    data = converter.convert()
    assert {"SHAPE", "PACK"} <= set(flatbuffer.ops(data))
    _close(data, np.random.default_rng(1).normal(size=(3, 4, 4, 2)).astype(np.float32))


@pytest.mark.parametrize("form", ["float32", "dynamic"])
def test_verify_compares_every_layer_of_a_float_file(form):
    data, x = _ours(form), _net()[1]
    network = load(data)
    parity = verify(data, network, network.variables, x)
    assert parity.differing == 0
    assert len(parity.layers) > 4
    assert parity.layers[-1].name == "output_0"
    assert parity.top1_agreement == 1
    kernel = next(k for k, w in network.variables["params"].items() if w.shape == (5, 6))
    params = network.variables["params"] | {kernel: 1 + network.variables["params"][kernel]}
    parity = verify(data, network, {**network.variables, "params": params}, x)
    assert parity.first_divergence in (parity.layers[-2].name, "output_0"), "the last layer alone"


def test_refusals():
    unpacked = flatbuffer.read(tflite(lambda v, x: jnp.sin(x), {}, jnp.ones((1, 2)), via="litert"))
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    for code in unpacked.operatorCodes:
        code.builtinCode = schema.BuiltinOperator.MATRIX_DIAG
    with pytest.raises(ValueError, match="operator 0, MATRIX_DIAG of .* is not known here"):
        load(flatbuffer.write(unpacked))


@functools.cache
def _quantizer(recipe: str) -> bytes:
    """The float file after litert-quantizer."""
    recipes = pytest.importorskip("litert_quantizer.recipe")
    from litert_quantizer import quantizer

    x = _net()[1]
    samples = {"serving_default": [{"input_0": x[i : i + 2]} for i in (0, 2)]}
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the interpreter, that it keeps all tensors
        made = quantizer.Quantizer(bytearray(_ours("float32")), getattr(recipes, recipe)())
        ranges = made.calibrate(samples, num_threads=1) if made.need_calibration else None
        return bytes(made.quantize(ranges).quantized_model)


@pytest.mark.parametrize("recipe", ["static_wi8_ai8", "static_wi8_ai16", "dynamic_wi8_afp32",
                                    "dynamic_wi4_afp32", "weight_only_wi4_afp32"])  # fmt: skip
def test_files_of_litert_quantizer(recipe):
    data = _quantizer(recipe)
    network = load(data)
    parity = verify(data, network, network.variables, _net()[1])
    assert parity.differing == 0
    assert bool(network.codes) == recipe.startswith("static")
