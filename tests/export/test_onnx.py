"""ONNX models compute what the model computes: float within rounding, int8 code by code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import compressjax as cj
from compressjax import models
from compressjax.export.onnx import convert, intermediates, ops, read, run, verify

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

_NHWC = ("NHWC", "HWIO", "NHWC")


def _conv(x, kernel, strides=(1, 1), padding="SAME", groups=1):
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=_NHWC, feature_group_count=groups
    )


def _many_steps(variables, x):
    """Every kind of step that can be in one network of images."""
    p = variables["params"]
    y = jax.nn.relu6(_conv(x, p["first"]) + p["bias"].reshape(1, 1, 1, -1))
    y = jax.nn.leaky_relu(_conv(y, p["depthwise"], (2, 2), groups=8), 0.1)
    left = jax.nn.elu(_conv(y, p["point"]))
    y = jnp.concatenate([jax.nn.gelu(y), left, jnp.maximum(y, left)], axis=-1)
    y = y * jax.nn.sigmoid(y.mean((1, 2), keepdims=True)) + p["shift"].reshape(1, 1, 1, -1)
    y = jnp.pad(y[:, 1:, :, :4], ((0, 0), (1, 0), (0, 2), (0, 0)))
    y = lax.reduce_window(
        y, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
    )
    y = lax.reduce_window(y, 0.0, lax.add, (1, 2, 2, 1), (1, 1, 1, 1), "VALID") / 4
    y = jax.image.resize(y, (y.shape[0], 2 * y.shape[1], 2 * y.shape[2], 4), "nearest")
    y = jnp.tanh(y - y.max((1, 2), keepdims=True))
    tokens = y.reshape(y.shape[0], -1, 4) @ p["dense"]
    mixed = jax.nn.softmax(tokens @ tokens.transpose(0, 2, 1)) @ tokens
    return mixed.sum(1), tokens[:, ::2]


def _drawn(shapes):
    draw = np.random.default_rng(3).normal
    kernels = {name: jnp.asarray(draw(size=shape), jnp.float32) for name, shape in shapes.items()}
    return {"params": kernels}


_VARIABLES = _drawn(
    {
        "first": (3, 3, 3, 8),
        "bias": (8,),
        "depthwise": (3, 3, 1, 8),
        "point": (1, 1, 8, 8),
        "shift": (24,),
        "dense": (4, 5),
    }
)
_X = np.random.default_rng(4).normal(size=(5, 12, 12, 3)).astype(np.float32)


@functools.cache
def _quantized():
    q = cj.quantize(_many_steps)
    qv = q.calibrate(_VARIABLES, [_X])
    return q, qv, convert(q, qv, _X[:2])


def test_float_is_the_function():
    model = convert(_many_steps, _VARIABLES, _X[:2])
    for found, expected in zip(run(model, _X), jax.jit(_many_steps)(_VARIABLES, _X), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_every_kind_of_step_is_near_its_codes():
    """Elementwise kernels are float here, fixed point or tables in LiteRT; what follows adds up."""
    q, qv, model = _quantized()
    kinds = {step.name: step.kind for step in q.plan(qv, _X).steps}
    found = intermediates(model, _X)
    assert len(set(kinds.values())) >= 20
    assert set(kinds) <= set(found), "every step has a tensor of its name"
    for name, codes in jax.jit(q.intermediates)(qv, _X).items():
        steps = np.abs(np.asarray(codes, int) - found[name])
        assert steps.mean() < 4, (name, kinds.get(name))  # 85 if they had nothing in common
        if name in ("input_0", "params/first", "params/depthwise"):
            assert not steps.any(), name


@pytest.mark.parametrize("name", ["conv", "deep"])
def test_layers_of_convolutions_are_exact(name, tmp_path):
    q, qv, x = _network(name)
    model = convert(q, qv, x[:3])
    parity = verify(model, q, qv, x)
    assert (parity.max_lsb, parity.differing, parity.samples) == (0, 0, 7)
    names = {layer.name for layer in parity.layers}
    assert names == {*jax.eval_shape(q.intermediates, qv, x), "output_0"}
    fused = _optimized(model, tmp_path)
    assert "Conv" not in fused and fused.count("DequantizeLinear") == 1, fused


def _network(name):
    module = models.SmallCNN(num_classes=10, widths=(8, 12), strides=(1, 2))
    if name == "deep":
        module = models.ResNet8(num_classes=10)
    x = np.random.default_rng(5).normal(size=(7, 16, 16, 3)).astype(np.float32)
    variables = jax.jit(module.init)(jax.random.key(0), x[:1])
    fn, variables = cj.fold_batch_norm(module.apply, variables, x[:1])
    q = cj.quantize(fn)
    return q, q.calibrate(variables, [x]), x


def _optimized(model, directory):
    """The operations that ONNX Runtime makes of a model before it runs it."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(directory / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(directory / "optimized.onnx").graph.node]


def test_the_file_holds_the_numbers_of_the_plan():
    q, qv, model = _quantized()
    frozen, graph = q.freeze(qv, _X[:2]), read(model).graph
    constants = {x.name: onnx.numpy_helper.to_array(x) for x in graph.initializer}
    step = next(step for step in frozen.steps if step.kind == "depthwise_conv")
    weight = constants[f"{step.name}/weight"]
    np.testing.assert_array_equal(weight, step.constants[0].codes.transpose(3, 2, 0, 1))
    np.testing.assert_array_equal(constants[f"{step.name}/weight/scale"], step.constants[0].scale)
    assert constants[f"{step.name}/scale"] == np.float32(step.scale)
    assert constants[f"{step.name}/zero_point"] == step.zero_point + 128
    first = next(step for step in frozen.steps if step.kind == "conv")
    np.testing.assert_array_equal(constants[f"{first.name}/bias"], first.constants[1].codes)
    assert model == convert(q, qv, _X[:2]), "the same bytes again"


def test_clamps_that_the_grid_does_not_make():
    """A range wider than the clamp: the codes themselves are clipped."""

    def fn(variables, x):
        y = jnp.clip(x @ variables["params"]["kernel"], -1, 1)
        return y, x - 2 * jax.nn.relu(y)

    variables = {"params": {"kernel": 2 * jnp.eye(3)}}
    x = np.random.default_rng(6).normal(size=(8, 3)).astype(np.float32)
    q = cj.quantize(fn)
    qv = q.calibrate(variables, [x])
    wide = jax.tree.map(lambda bound: 3 * bound, qv["quant"])
    qv = {**qv, "quant": wide}
    model = convert(q, qv, x)
    assert "Clip" in ops(model)
    for found, expected in zip(run(model, x), jax.jit(q.apply)(qv, x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_mlp_of_tokens():
    """Fully connected layers of rank 3, without a bias, and a mean that is not a pool."""

    def fn(variables, x):
        y = jax.nn.relu(x @ variables["params"]["up"])
        return (y + y.mean((0, 1), keepdims=True)) @ variables["params"]["down"]

    variables = _drawn({"up": (6, 8), "down": (8, 2)})
    x = np.random.default_rng(7).normal(size=(1, 5, 6)).astype(np.float32)
    np.testing.assert_allclose(
        run(convert(fn, variables, x), x), fn(variables, x), rtol=1e-4, atol=1e-5
    )
    q = cj.quantize(fn)
    qv = q.calibrate(variables, [x])
    error = np.abs(run(convert(q, qv, x), x) - jax.jit(q.apply)(qv, x))
    assert error.max() < 2.5 * q.freeze(qv, x).steps[-1].scale


def test_what_cannot_be_written():
    kernel = {"params": {"kernel": jnp.ones((2, 2, 3, 4))}}

    def grow(variables, x):
        return lax.conv_transpose(x, variables["params"]["kernel"], (2, 2), "SAME")

    with pytest.raises(ValueError, match="is a transpose_conv, which is not written to ONNX"):
        convert(grow, kernel, _X[:1])
    with pytest.raises(ValueError, match="cannot quantize operation 'sort_0'"):
        convert(lambda v, x: jnp.sort(x), {}, _X[:1])
    with pytest.raises(TypeError, match="input 0 is int32, expected float32"):
        convert(lambda v, x: x + 1, {}, jnp.ones((1, 2), jnp.int32))
    with pytest.raises(ValueError, match="needs an example input"):
        convert(lambda v: v, {})
    wide = cj.quantize(lambda v, x: x @ v["params"]["w"], cj.quant.int16x8())
    qv = wide.calibrate({"params": {"w": jnp.eye(3)}}, [jnp.ones((2, 3))])
    with pytest.raises(ValueError, match="activations are int16"):
        convert(wide, qv, jnp.ones((2, 3)))


def test_damaged_models():
    model = convert(lambda v, x: x + x, {}, jnp.ones((2, 3)))
    for bad in (b"", b"ONNX", model[: len(model) // 2]):
        with pytest.raises(ValueError, match=rf"not an ONNX model \({len(bad)} bytes\)"):
            run(bad, np.ones((2, 3), np.float32))
    with pytest.raises(TypeError, match="a model is bytes, found str"):
        run("model.onnx", np.ones((2, 3), np.float32))
    parsed = onnx.load_model_from_string(convert(lambda v, x: x + 1.5, {}, jnp.ones((2, 3))))
    parsed.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    with pytest.raises(ValueError, match="is in another file"):
        read(parsed.SerializeToString())
    with pytest.raises(ValueError, match="no tensor of codes"):
        intermediates(model, np.ones((2, 3), np.float32))


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        ([], ValueError, "takes 1 inputs, found 0"),
        ([np.ones((2, 3), np.int8)], TypeError, "input 0 is int8"),
        ([np.ones((2, 4), np.float32)], ValueError, r"shape \[2, 4\], the model takes \['N', 3\]"),
        ([np.ones((0, 3), np.float32)], ValueError, "at least one"),
    ],
)
def test_bad_inputs(arrays, error, message):
    model = convert(lambda v, x: x + x, {}, jnp.ones((2, 3)))
    with pytest.raises(error, match=message):
        run(model, *arrays)
    with pytest.raises(ValueError, match="threads=0"):
        run(model, np.ones((2, 3), np.float32), threads=0)
