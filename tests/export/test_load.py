"""A network rebuilt from a file computes what LiteRT computes for it, whoever wrote the file."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compressjax as cj
from compressjax.export import flatbuffer, load, run, tflite, verify
from tests.support import plans


def _images(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, *shape)).astype(np.float32)


@functools.cache
def _plan_file(name: str, **how) -> bytes:
    model = plans.Model({"resnet": plans.resnet, "pools": plans.pools}[name]())
    return tflite(model, {}, *model.example(), via="litert", **how)


def _many(variables, x):
    """Most of what the lattice has, in one network."""
    v, numbers = variables, ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(
        x, v["a"], (1, 1), [(1, 1), (1, 1)], rhs_dilation=(1, 1), dimension_numbers=numbers
    )
    x = jax.nn.relu6(x)
    x = jax.lax.conv_general_dilated(
        x, v["b"], (2, 2), "SAME", dimension_numbers=numbers, feature_group_count=4
    )
    gate = jax.nn.sigmoid(x.mean((1, 2)) @ v["c"])
    x = x * gate[:, None, None, :] - 0.5 * jnp.tanh(x)
    x = jnp.concatenate([x[:, 1:3], jnp.pad(x[:, :1], ((0, 0), (0, 1), (0, 0), (0, 0)))], 1)
    x = jax.image.resize(x, (x.shape[0], 8, 8, 4), "nearest")
    x = jax.nn.leaky_relu(x, 0.1) + jax.nn.gelu(x)
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    x = jax.nn.softmax(x.transpose(0, 3, 1, 2).reshape(x.shape[0], 4, 16))
    return x.reshape(x.shape[0], 64)[:, ::2] @ v["d"], x.max(-1)


@functools.cache
def _many_variables() -> dict:
    draw = np.random.default_rng(2).normal
    shapes = {"a": (3, 3, 2, 4), "b": (3, 3, 1, 4), "c": (4, 4), "d": (32, 5)}
    return {name: jnp.asarray(draw(size=shape), jnp.float32) for name, shape in shapes.items()}


@functools.cache
def _many_file() -> tuple:
    q = cj.quantize(_many)
    qv = q.calibrate(_many_variables(), [_images(8, 8, 8, 2)])
    return q, qv, tflite(q, qv, _images(1, 8, 8, 2), via="litert")


@pytest.mark.parametrize(("name", "int8_io"), [("resnet", True), ("pools", False)])
def test_equals_litert(name, int8_io):
    data = _plan_file(name, int8_io=int8_io)
    network = load(data)
    parity = verify(data, network, network.variables, _images(5, 16, 16, 3), slice_size=3)
    assert parity.differing == 0
    names = {layer.name for layer in parity.layers}
    steps = {"resnet": plans.resnet, "pools": plans.pools}[name]().steps
    missing = {step.name for step in steps} - names
    assert missing <= {"pad_0"}, "every tensor is compared, but the pad that a pool takes in"


def test_equals_the_quantized_function():
    q, qv, data = _many_file()
    network, x = load(data), _images(5, 8, 8, 2)
    parity = verify(data, network, network.variables, x[:4], slice_size=4)
    assert parity.differing == 0
    found, wanted = jax.jit(network.apply)(network.variables, x), jax.jit(q.apply)(qv, x)
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_it_is_a_pure_function():
    network = load(_plan_file("resnet"))
    x = _images(3, 16, 16, 3)
    apply = jax.jit(network.apply)
    once = apply(network.variables, x)
    np.testing.assert_array_equal(once, run(_plan_file("resnet"), x))
    other = jax.tree.map(lambda w: w, network.variables)
    other["params"] = {k: w * 0 if k.startswith("dense") else w for k, w in other["params"].items()}
    assert not np.array_equal(apply(other, x), once), "weights come from the variables"
    kernels = [leaf for leaf in jax.tree.leaves(network.variables["params"]) if leaf.ndim > 1]
    assert {kernel.dtype for kernel in kernels} == {jnp.dtype(jnp.int8)}


@pytest.mark.parametrize("ends", ["float32", "uint8"])
def test_a_file_of_the_converter_itself(ends, tmp_path):
    tf = pytest.importorskip("tensorflow")
    draw = np.random.default_rng(3).normal
    kernel, dense = (tf.constant(draw(size=s), tf.float32) for s in ((3, 3, 2, 8), (8, 4)))

    @tf.function(input_signature=[tf.TensorSpec([1, 8, 8, 2], tf.float32)])
    def network(x):
        y = tf.nn.relu(tf.nn.conv2d(x, kernel, 2, "SAME"))
        y = y + tf.nn.avg_pool2d(y, 3, 1, "SAME")
        mean = tf.reduce_mean(y, -1, keepdims=True)
        y = (y - mean) / (tf.abs(y) + 1.0) + tf.math.squared_difference(y, mean)
        y = tf.stack(tf.unstack(tf.image.resize(y, (7, 5)), axis=1)[::2], 1)
        y = tf.where(y > 0.5, y, tf.tile(tf.reverse(y, [1])[:, :1], [1, 4, 1, 1]))
        return tf.nn.softmax(tf.reduce_mean(y, [1, 2]) @ dense)

    module = tf.Module()
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [network.get_concrete_function()], module
    )
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([x[None]] for x in _images(20, 8, 8, 2))
    converter.inference_input_type = converter.inference_output_type = getattr(tf, ends)
    path = tmp_path / "theirs.tflite"
    path.write_bytes(converter.convert())
    loaded = load(path)
    parity = verify(path, loaded, loaded.variables, _images(20, 8, 8, 2))
    assert parity.differing == 0
    assert len(parity.layers) > 6
    np.testing.assert_array_equal(
        run(path.read_bytes(), _images(20, 8, 8, 2)),
        loaded.apply(loaded.variables, _images(20, 8, 8, 2)),
    )


def test_sparse_and_narrow_weights():
    """In files of three rows, that are given four."""
    kernel = _images(64, 64) * (np.random.default_rng(0).uniform(size=(64, 64)) < 0.1)
    variables, x = {"a": jnp.asarray(kernel), "b": jnp.asarray(kernel.T)}, _images(4, 64)
    for bits in (8, 4):
        spec = cj.quant.int8(weights={"**": cj.quant.grids.integer(bits)})
        q = cj.quantize(lambda v, x: jax.nn.relu(x @ v["a"]) @ v["b"], spec)
        qv = q.calibrate(variables, [x])
        data = tflite(q, qv, x[:3], via="litert", sparse=bits == 8, int4=bits == 4)
        network = load(data)
        assert verify(data, network, network.variables, x[:3]).differing == 0
        ours, theirs = jax.jit(network.apply)(network.variables, x), jax.jit(q.apply)(qv, x)
        np.testing.assert_array_equal(ours, theirs)


def test_a_file_of_16_bits():
    def network(variables, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, variables["a"], (1, 1), "SAME", None, None, numbers)
        y = (jax.nn.relu(y) * 0.5 + x)[:, 1:]
        y = jax.nn.sigmoid(y) - jnp.tanh(y)
        return jnp.concatenate([y, 2 * y], -1).mean((1, 2)) @ variables["b"] + 3.0

    draw, x = np.random.default_rng(4).normal, _images(6, 5, 5, 4)
    variables = {"a": jnp.float32(draw(size=(3, 3, 4, 4))), "b": jnp.float32(draw(size=(8, 3)))}
    q = cj.quantize(network, cj.quant.int16x8())
    qv = q.calibrate(variables, [x])
    data = tflite(q, qv, x[:2], via="litert", int8_io=True)
    loaded = load(data)
    parity = verify(data, loaded, loaded.variables, x)
    assert parity.differing == 0
    assert len(parity.layers) > 9
    assert loaded.tolerance == 0


def _changed(data: bytes, change) -> bytes:
    model = flatbuffer.read(data)
    change(model, {flatbuffer.text(t.name): t for t in model.subgraphs[0].tensors})
    return flatbuffer.write(model)


def _softmax_grid(model, tensors):
    for op in model.subgraphs[0].operators:
        if flatbuffer.op_name(model, op) == "SOFTMAX":
            grid = model.subgraphs[0].tensors[op.outputs[0]].quantization
            grid.scale = 2 * grid.scale


def _reshape_grid(model, tensors):
    grid = tensors["reshape_0"].quantization
    grid.scale = 2 * grid.scale


def _padding(model, tensors):
    model.subgraphs[0].operators[1].builtinOptions.padding = 7


def _strides(model, tensors):
    model.subgraphs[0].operators[1].builtinOptions.strideW = 2


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="damaged"):
        load(_plan_file("resnet")[:-100])
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "missing.tflite")
    with pytest.raises(ValueError, match="LiteRT fixes it"):
        load(_changed(_many_file()[2], _softmax_grid))
    with pytest.raises(ValueError, match="RESHAPE of 'reshape_0' has the grids"):
        load(_changed(_plan_file("pools"), _reshape_grid))
    with pytest.raises(ValueError, match="CONV_2D of 'conv_0' cannot be rebuilt: its padding has"):
        load(_changed(_plan_file("resnet"), _padding))
    with pytest.raises(ValueError, match=r"CONV_2D of 'conv_0' puts out .*, the file says"):
        load(_changed(_plan_file("resnet"), _strides))
    network = load(_plan_file("resnet"))
    with pytest.raises(ValueError, match=r"input 0 has shape \[3, 16, 16\], the model takes"):
        network.apply(network.variables, _images(3, 16, 16))
    with pytest.raises(ValueError, match="takes 1 inputs, found 2"):
        network.apply(network.variables, _images(1, 16, 16, 3), _images(1, 16, 16, 3))
