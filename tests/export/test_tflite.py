"""Both converters give the file that the frozen plan describes, to the byte."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.export import flatbuffer, ops, run, tflite
from compressjax.export.probe import with_all_tensors
from compressjax.export.runtime import Session
from compressjax.quant.frozen import Codes, Frozen
from tests.support import plans

VIAS = ("jax2tf", "litert")
CONV_BLOCK = ["CONV_2D", "CONV_2D", "CONV_2D", "ADD"]


def _small(make) -> Frozen:
    b = plans.Builder(7)
    x = b.conv(b.input(1, 8, 8, 3), 8, act=plans.relu)
    return b.plan([make(b, x)])


def _concat_of_two_grids(b, x):
    left, right = b.conv(x, 4, size=1), b.conv(x, 4, size=1)
    moved = b.step("requantize", [right], plans.linear, grid=b.grid(left))
    return b.concatenate(left, moved)


def _lowest_pad(b, x):
    def apply(a):
        return jnp.pad(a, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-9.0)

    x = b.conv(x, 8)
    return b.max_pool(b.step("pad", [x], apply, grid=b.grid(x), lowest=True))


def _scalar(b, x):
    constant = Codes(np.full((), 77, np.int8), np.float32(0.1), None, 0)
    return b.step("mul", [x], lambda a, c: a * c, [constant])


def _per_tensor(b, x):
    weight = Codes(b.rng.integers(-127, 128, (8, 8), np.int8), np.float32(0.1), None)
    return b.step("dense", [b.mean(x)], lambda a, w: a @ w, [weight])


def _clamp_after_pool(b, x):
    x = b.max_pool(b.conv(x, 8))
    return b.mean(b.step("relu", [x], plans.relu, grid=b.grid(x)))


def _clamp_beside(b, x):
    x = b.conv(x, 8)
    return b.add(x, b.step("relu", [x], plans.relu))


def _clamp_on_one_grid(clamp):
    def build(b, x):
        x = b.conv(x, 8)
        return b.add(x, b.step("relu", [x], clamp, grid=b.grid(x)))

    return build


CASES = {
    "no bias": (lambda b, x: b.conv(x, 8, bias=False), ["CONV_2D"]),
    "same kernel twice": (lambda b, x: b.concatenate(x, x), ["CONCATENATION"]),
    "folded pad": (lambda b, x: b.conv(b.pad(x), 8, padding="VALID"), ["CONV_2D"]),
    "kept pad": (
        lambda b, x: b.conv(b.pad(x, 3), 8, padding="VALID", stride=2),
        ["PAD", "CONV_2D"],
    ),
    "explicit padding": (
        lambda b, x: b.conv(x, 8, padding=((1, 1), (1, 1)), stride=2),
        ["PAD", "CONV_2D"],
    ),
    "dense of rank 3": (
        lambda b, x: b.dense(b.reshape(x, 1, 64, 8), 10),
        ["RESHAPE", "FULLY_CONNECTED"],
    ),
    "dense of unit dimensions": (
        lambda b, x: b.dense(b.mean(x, True), 10),
        ["MEAN", "CONV_2D"],
    ),
    "dense of rank 4": (lambda b, x: b.dense(x, 10), ["FULLY_CONNECTED"]),
    "tiny dense": (
        lambda b, x: b.dense(b.dense(b.dense(b.mean(x), 2), 2), 1),
        ["MEAN"] + 3 * ["FULLY_CONNECTED"],
    ),
    "gate": (
        lambda b, x: b.mul(x, b.logistic(b.conv(b.mean(x, True), 8, size=1))),
        ["MEAN", "CONV_2D", "LOGISTIC", "MUL"],
    ),
    "two with one fixed scale": (
        lambda b, x: b.add(b.logistic(x), b.logistic(b.conv(x, 8))),
        ["LOGISTIC", "CONV_2D", "LOGISTIC", "ADD"],
    ),
    "tanh": (lambda b, x: b.tanh(x), ["TANH"]),
    "softmax": (
        lambda b, x: b.softmax(b.dense(b.mean(x), 10)),
        ["MEAN", "FULLY_CONNECTED", "SOFTMAX"],
    ),
    "transpose": (lambda b, x: b.transpose(x, 0, 2, 1, 3), ["TRANSPOSE"]),
    "constant operand": (lambda b, x: b.add_constant(x), ["ADD"]),
    "scalar operand": (_scalar, ["MUL"]),
    "one weight scale": (_per_tensor, ["MEAN", "FULLY_CONNECTED"]),
    "requantize": (_concat_of_two_grids, ["CONV_2D", "CONV_2D", "QUANTIZE", "CONCATENATION"]),
    "lowest pad": (_lowest_pad, ["CONV_2D", "PADV2", "MAX_POOL_2D"]),
    "clamp after pool": (_clamp_after_pool, ["CONV_2D", "MAX_POOL_2D", "MEAN"]),
    "clamp beside": (_clamp_beside, ["CONV_2D", "RELU", "ADD"]),
    "clamp on one grid": (_clamp_on_one_grid(plans.relu), ["CONV_2D", "MAXIMUM", "ADD"]),
    "two-sided clamp": (
        _clamp_on_one_grid(plans.relu6),
        ["CONV_2D", "MAXIMUM", "MINIMUM", "ADD"],
    ),
}
NETWORKS = {
    "resnet": (plans.resnet, ["CONV_2D", *CONV_BLOCK[1:], *CONV_BLOCK, "MEAN", "FULLY_CONNECTED"]),
    "mobile": (plans.mobile, None),
    "pools": (plans.pools, None),
    "low resnet": (functools.partial(plans.resnet, 50), None),
    "low mobile": (functools.partial(plans.mobile, 50), None),
}


@functools.cache
def _export(name: str, via: str, int8_io: bool = False) -> bytes:
    plan = NETWORKS[name][0]() if name in NETWORKS else _small(CASES[name][0])
    model = plans.Model(plan)
    return tflite(model, {}, *model.example(), via=via, int8_io=int8_io)


@pytest.mark.parametrize("name", [*CASES, *NETWORKS])
def test_both_converters_give_the_same_bytes(name):
    assert _export(name, "jax2tf") == _export(name, "litert")


@pytest.mark.parametrize("name", CASES)
def test_operations(name):
    assert ops(_export(name, "litert")) == [
        "QUANTIZE", "CONV_2D", *CASES[name][1], "DEQUANTIZE"
    ]  # fmt: skip


@pytest.mark.parametrize("via", VIAS)
@pytest.mark.parametrize("name", ["resnet", "requantize"])
def test_int8_io_has_no_float(name, via):
    data = _export(name, via, True)
    assert ops(data) == ops(_export(name, via))[1:-1]
    model = flatbuffer.read(data)
    assert not any(flatbuffer.dtype(t) == np.float32 for t in model.subgraphs[0].tensors)
    session = Session(data)
    assert [d["name"] for d in session.inputs] == ["input_0"]


@pytest.mark.parametrize("via", VIAS)
def test_same_arguments_same_bytes(via):
    model = plans.Model(plans.resnet())
    again = tflite(model, {}, *model.example(), via=via)
    assert again == _export("resnet", via)


def _tensors(data: bytes):
    model = flatbuffer.read(data)
    graph = model.subgraphs[0]
    return {flatbuffer.text(t.name): (t, flatbuffer.constant(model, t)) for t in graph.tensors}


@pytest.mark.parametrize("name", ["low resnet", "low mobile", "pools"])
def test_every_number_is_the_plan_s(name):
    plan, tensors = NETWORKS[name][0](), _tensors(_export(name, "jax2tf"))
    for value, (scale, zero_point) in plan.quantization().items():
        if value in tensors:  # a pad may have become part of a convolution
            grid = tensors[value][0].quantization
            assert grid.scale.tolist() == [np.float32(scale)]
            assert grid.zeroPoint.tolist() == [zero_point]
    layouts = {"conv": (3, 0, 1, 2), "depthwise_conv": (2, 0, 1, 3), "dense": (1, 0)}
    for step in plan.steps:
        if step.kind in layouts:
            tensor, codes = tensors[f"{step.name}/weight"]
            np.testing.assert_array_equal(
                codes, step.constants[0].codes.transpose(layouts[step.kind])
            )
            np.testing.assert_array_equal(tensor.quantization.scale, step.constants[0].scale)
            tensor, bias = tensors[f"{step.name}/bias"]
            if len(step.constants) > 1:
                np.testing.assert_array_equal(bias, step.constants[1].codes)
                np.testing.assert_array_equal(tensor.quantization.scale, step.constants[1].scale)
            else:
                assert not bias.any()
    steps = {step.name for step in plan.steps if step.kind != "pad"}
    assert steps <= set(tensors)


def test_signature():
    model = flatbuffer.read(_export("resnet", "jax2tf"))
    signature = model.signatureDefs[0]
    assert signature.signatureKey == b"serving_default"
    assert [m.name for m in signature.inputs] == [b"input_0"]
    assert [m.name for m in signature.outputs] == [b"output_0"]
    assert model.signatureDefs[0].inputs[0].tensorIndex == model.subgraphs[0].inputs[0]


def _products(plan: Frozen, step, x: np.ndarray) -> np.ndarray:
    """Jacob et al. (2018) in NumPy: integer sums, one float32 multiplier, round half to even."""
    zero = plan.quantization()[step.inputs[0]][1]
    weight = step.constants[0].codes.astype(np.int64)
    x = x.astype(np.int64) - zero
    if step.kind == "dense":
        sums = x @ weight
    else:
        kernel, stride = weight.shape[0], x.shape[1] // step.out_shape[1]
        need = max((step.out_shape[1] - 1) * stride + kernel - x.shape[1], 0)
        x = np.pad(
            x, ((0, 0), (need // 2, need - need // 2), (need // 2, need - need // 2), (0, 0))
        )
        windows = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), (1, 2))
        windows = windows[:, ::stride, ::stride]  # [B, H, W, C, KH, KW]
        if step.kind == "conv":
            sums = np.einsum("bhwcij,ijco->bhwo", windows, weight)
        else:
            sums = np.einsum("bhwcij,ijc->bhwc", windows, weight[:, :, 0])
    sums = sums + (step.constants[1].codes if len(step.constants) > 1 else 0)
    scale_in = np.float32(plan.quantization()[step.inputs[0]][0])
    multiplier = scale_in * step.constants[0].scale / np.float32(step.scale)
    codes = np.rint(sums.astype(np.float32) * multiplier) + step.zero_point
    low, high = -128, 127
    if step.zero_point == -128 and np.isclose(step.scale, 6 / 255):
        high = min(high, -128 + int(np.rint(np.float32(6) / np.float32(step.scale))))
    return np.clip(codes, low, high).astype(np.int8)


@pytest.mark.parametrize("name", ["resnet", "mobile", "low mobile"])
def test_litert_computes_the_plan_s_integers(name):
    plan = NETWORKS[name][0]()
    probe, names = with_all_tensors(_export(name, "jax2tf"))
    x = np.random.default_rng(0).normal(size=(5, *plan.inputs[0][1][1:])).astype(np.float32)
    columns = zip(*Session(probe).slices([2 * x]), strict=True)
    codes = dict(zip(names, map(np.concatenate, columns), strict=True))
    products = [step for step in plan.steps if step.kind in ("conv", "depthwise_conv", "dense")]
    assert len(products) > 5
    for step in products:
        expected = _products(plan, step, codes[step.inputs[0]])
        np.testing.assert_array_equal(codes[step.name], expected, err_msg=step.name)


def test_a_clamp_on_a_grid_of_its_own_is_an_error():
    plan = _small(lambda b, x: b.step("relu", [b.add(x, x)], plans.relu))
    with pytest.raises(ValueError, match=r"operation 2 \(ADD\)"):
        tflite(plans.Model(plan), {}, *plans.Model(plan).example(), via="litert")


def test_an_operation_without_a_step_is_named():
    plan = _small(lambda b, x: b.step("mean", [x], lambda a: a.sum((1, 2)), axes=(1, 2)))
    with pytest.raises(ValueError, match=r"\(SUM\).*conv_0"):
        tflite(plans.Model(plan), {}, *plans.Model(plan).example(), via="litert")


def test_scales_that_must_be_one():
    b = plans.Builder()
    x = b.max_pool(b.input(1, 8, 8, 3))
    steps = tuple(dataclasses.replace(step, scale=0.7) for step in b.steps)
    plan = dataclasses.replace(b.plan([x]), steps=steps)
    with pytest.raises(ValueError, match=r"max_pool_0.*scale 0.7.*input_0"):
        tflite(plans.Model(plan), {}, np.zeros((1, 8, 8, 3), np.float32), via="litert")


class _Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.Conv(8, (3, 3), strides=2, use_bias=False)(x)
        y = nn.relu(nn.BatchNorm(use_running_average=True)(y))
        z = nn.Conv(8, (3, 3), feature_group_count=8, use_bias=False)(y)
        z = nn.relu6(nn.BatchNorm(use_running_average=True)(z))
        y = nn.max_pool(y + z, (2, 2), (2, 2))
        return nn.Dense(10)(y.reshape(y.shape[0], -1))


@pytest.mark.parametrize("via", VIAS)
def test_float_model_is_fused_and_right(via):
    x = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(np.float32)
    variables = _Net().init(jax.random.key(0), x)
    data = tflite(_Net().apply, variables, x[:1], via=via)
    assert ops(data) == [
        "CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "MAX_POOL_2D", "RESHAPE", "FULLY_CONNECTED"
    ]  # fmt: skip
    assert tflite(_Net().apply, variables, x[:1], via=via) == data
    np.testing.assert_allclose(run(data, x), _Net().apply(variables, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("via", VIAS)
def test_several_inputs_and_outputs_keep_their_order(via):
    def fn(variables, a, b):
        return {"difference": a - variables["w"] * b, "other": b[:, :1]}

    one, two = np.ones((1, 3), np.float32), np.full((1, 3), 5, np.float32)
    difference, other = run(tflite(fn, {"w": jnp.float32(2)}, one, two, via=via), one, two)
    np.testing.assert_array_equal(difference, np.full((1, 3), -9))
    np.testing.assert_array_equal(other, [[5]])


def test_bad_arguments():
    x = jnp.ones((1, 2))
    with pytest.raises(ValueError, match="via='onnx'"):
        tflite(lambda v, x: x, {}, x, via="onnx")
    with pytest.raises(ValueError, match="needs an example input"):
        tflite(lambda v: v, {})
    with pytest.raises(ValueError, match="int8_io=True needs a quantized model"):
        tflite(lambda v, x: x, {}, x, int8_io=True)
    with pytest.raises(TypeError, match="input 0 is int32"):
        tflite(lambda v, x: x, {}, jnp.ones((1, 2), jnp.int32))
    with pytest.raises(TypeError, match="output 0 of the model is int32"):
        tflite(lambda v, x: x.argmax(-1), {}, x)


def test_unsupported_operation_names_the_converter():
    with pytest.raises(ValueError, match="litert-converter refused"):
        tflite(lambda v, x: jnp.linalg.eigh(x)[0], {}, jnp.eye(3), via="litert")


def test_siblings_on_one_grid_keep_their_names():
    """Two slices of one value differ in nothing but where they start."""

    def halves(b, x):
        def part(start):
            def apply(a):
                return jax.lax.slice(a, (0, 0, 0, start), (1, 8, 8, start + 4))

            return b.step("slice", [x], apply, grid=b.grid(x), starts=(0, 0, 0, start))

        first, second = part(4), part(0)
        return b.add(b.logistic(second), b.tanh(first))

    plan = _small(halves)
    model = plans.Model(plan)
    data = tflite(model, {}, *model.example(), via="litert")
    assert data == tflite(model, {}, *model.example(), via="jax2tf")
    probe, names = with_all_tensors(data)
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype(np.float32)
    codes = dict(zip(names, next(iter(Session(probe).slices([x]))), strict=True))
    np.testing.assert_array_equal(codes["slice_0"], codes["conv_0"][..., 4:])
    np.testing.assert_array_equal(codes["slice_1"], codes["conv_0"][..., :4])


def test_two_pools_on_one_grid_keep_their_names():
    def both(b, x):
        def pool(size):
            def apply(a):
                window, strides = (1, size, size, 1), (1, 2, 2, 1)
                return jax.lax.reduce_window(a, -jnp.inf, jax.lax.max, window, strides, "SAME")

            window = (size, size)
            return b.step("max_pool", [x], apply, grid=b.grid(x), window_dimensions=window)

        large, small = pool(5), pool(2)
        return b.add(b.conv(small, 8), large)

    model = plans.Model(_small(both))
    probe, names = with_all_tensors(tflite(model, {}, *model.example(), via="litert"))
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype(np.float32)
    codes = dict(zip(names, next(iter(Session(probe).slices([x]))), strict=True))
    blocks = codes["conv_0"].reshape(1, 4, 2, 4, 2, 8).max((2, 4))
    np.testing.assert_array_equal(codes["max_pool_1"], blocks)
    assert (codes["max_pool_0"] >= blocks).all() and (codes["max_pool_0"] > blocks).any()


def test_a_value_returned_twice():
    b = plans.Builder()
    x = b.conv(b.input(1, 8, 8, 3), 4)
    model = plans.Model(b.plan([x, x]))
    with pytest.raises(ValueError, match="returns 'conv_0' twice"):
        tflite(model, {}, *model.example(), via="litert")


def test_several_int8_outputs():
    b = plans.Builder()
    x = b.conv(b.input(1, 8, 8, 3), 4, act=plans.relu)
    plan = b.plan([b.dense(b.mean(x), 5), x])
    model, image = plans.Model(plan), np.ones((1, 8, 8, 3), np.float32)
    float_io, int8_io = (
        run(tflite(model, {}, image, via="litert", int8_io=flag), image) for flag in (False, True)
    )
    assert [y.shape for y in float_io] == [(1, 5), (1, 8, 8, 4)]
    for ours, theirs in zip(float_io, int8_io, strict=True):
        np.testing.assert_array_equal(ours, theirs)
