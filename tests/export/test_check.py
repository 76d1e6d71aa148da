"""What `check` lets pass converts, what it refuses does not; and it says why before training."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import compressjax as cj
from compressjax import models
from compressjax.export import Report, check, conversions, flatbuffer, tflite
from compressjax.quant import grids
from tests.support import conversions as measured

VIAS = ("jax2tf", "litert")
ZOO = {
    "mlp": (models.MLP(num_classes=10), (1, 28, 28, 1)),
    "small_cnn": (models.SmallCNN(num_classes=10), (1, 32, 32, 3)),
    "resnet18": (models.ResNet18(num_classes=1000), (1, 224, 224, 3)),
    "preact_resnet": (models.PreActResNet(num_classes=10), (1, 32, 32, 3)),
    "vgg16": (models.VGG16(num_classes=10), (1, 32, 32, 3)),
    "mobilenet_v3": (models.MobileNetV3Small(num_classes=1000), (1, 224, 224, 3)),
}


def shapes(*sizes, dtype="float32"):
    return jax.ShapeDtypeStruct(sizes, dtype)


def names(report: Report) -> list[str]:
    return [row.name for row in report.problems]


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_passes_at_full_size_without_an_array(name):
    model, shape = ZOO[name]
    x = shapes(*shape)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    for via in VIAS:
        assert check(model.apply, variables, x, via=via), via
    report = check(cj.quantize(model.apply), variables, x)
    assert report and report.form == "int8", str(report)


@pytest.mark.parametrize(
    ("model", "via"),
    [
        (
            models.MobileNetV3Small(num_classes=7, multiplier=0.1, strides=(1, 1, 2, 1, 1, 2)),
            "litert",
        ),
        (models.PreActResNet(num_classes=7, multiplier=0.25, blocks=(1, 1, 1)), "litert"),
        (models.SmallCNN(num_classes=7, widths=(4, 6, 8)), "jax2tf"),
    ],
)
def test_what_passes_becomes_builtins(model, via):
    x = jnp.ones((1, 9, 9, 3))
    variables = jax.tree.map(
        lambda leaf: jnp.full(leaf.shape, 0.1, leaf.dtype),
        jax.eval_shape(model.init, jax.random.key(0), x),
    )
    assert check(model.apply, variables, x, via=via)
    data = tflite(model.apply, variables, x, via=via)
    assert not any(kind.startswith("CUSTOM") for kind in flatbuffer.ops(data))


@pytest.mark.parametrize(
    ("name", "via"),
    [
        ("cbrt", "litert"),  # other values
        ("negative padding", "litert"),  # other values
        ("sort", "litert"),
        ("scatter add", "litert"),
        ("line pooled", "litert"),
        ("average by a product", "litert"),
        ("scan", "litert"),
        ("cond", "litert"),
        ("solve", "litert"),
        ("noise", "litert"),
        ("gather and clip", "litert"),
        ("abs in bfloat16", "litert"),
        ("seven axes", "litert"),
        ("print", "litert"),
        ("erf", "jax2tf"),
        ("loop", "jax2tf"),
        ("float16 product", "jax2tf"),
    ],
)
def test_what_is_refused_does_not_convert(name, via):
    assert not measured.report(name, via)
    assert not measured.converts(name, via)


@pytest.mark.parametrize(
    ("name", "via"),
    [
        ("erf", "litert"),
        ("floor division", "litert"),
        ("mod", "litert"),
        ("largest and where", "litert"),
        ("scatter of a constant", "litert"),
        ("spread 3 by 2 SAME", "litert"),
        ("spread 5 by 2 SAME", "litert"),
        ("average of what is there", "litert"),
        ("gather and fill", "litert"),
        ("negative in float16", "litert"),
        ("scan written out", "jax2tf"),
        ("dynamic slice", "jax2tf"),
    ],
)
def test_what_passes_converts(name, via):
    assert measured.report(name, via), measured.report(name, via)
    assert measured.converts(name, via)


def test_every_row_is_that_of_a_function_that_was_measured():
    reached = {
        row.kind
        for via in VIAS
        for name in measured.CASES
        for row in measured.report(name, via).problems
    }
    # What functions of the same families become on other ways than the cases go.
    rare = {
        *("conj", "imag", "eig", "schur", "hessenberg", "tridiagonal", "tridiagonal_solve"),
        *("householder_product", "geqrf", "igammac", "igamma_grad_a", "reduce_window"),
        *("select_and_gather_add", "scatter-sub", "io_callback", "rng_bit_generator"),
        *("random_wrap", "random_unwrap", "random_split", "random_gamma", "random_clone"),
        "threefry2x32",
    }
    missing = {row.kind for row in conversions.ROWS} - reached - rare
    assert missing == set()


def test_everything_is_listed_with_its_line_and_its_fix():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.ConvTranspose(4, (3, 3), (2, 2), kernel_dilation=(2, 2))(x)
            x = jnp.sort(x, axis=-1)
            x = lax.fori_loop(0, 3, lambda _, y: y * 2.0, x)
            return jnp.linalg.inv(x[0, :, :, 0]), x.argmax(-1)

    x = shapes(1, 4, 4, 3)
    report = check(Network().apply, jax.eval_shape(Network().init, jax.random.key(0), x), x)
    kinds = [row.kind for row in report.problems]
    assert not report and not report.ok
    assert names(report)[:3] == ["params/ConvTranspose_0/kernel", "sort_0", "scan_0"]
    assert {"lu", "custom_linear_solve"} <= set(kinds) and kinds[-1] == "output"
    for row in report.problems[:3]:
        assert "test_check.py" in row.source and row.problem and row.fix
    text = str(report)
    assert text.startswith(f"{len(kinds)} problems in") and "via jax2tf, float" in text
    for row in report.problems:
        assert row.name in text and row.problem in text and row.fix in text


def test_a_loop_that_is_written_out_is_looked_into():
    assert names(measured.report("sort in a scan", "litert")) == ["scan_0/sort_0"]


def test_int8_collects_every_refusal():
    def fn(variables, x):
        y = jnp.sin(x @ variables["kernel"])
        return jnp.sort(y) / y

    variables, x = {"kernel": shapes(6, 4)}, shapes(2, 6)
    assert names(check(fn, variables, x)) == ["sort_0"]
    report = check(fn, variables, x, spec=cj.quant.int8())
    assert names(report) == ["sin_0", "sort_0", "div_0"]
    assert all("test_check.py" in row.source for row in report.problems)
    assert "divides by a value that depends on an input" in report.problems[2].problem
    q = cj.quantize(fn)
    assert check(q, variables, x).problems == report.problems
    with pytest.raises(ValueError, match="sin_0"):
        q.calibrate({"kernel": jnp.ones((6, 4))}, [jnp.ones((2, 6))])


def test_int8_refuses_inputs_and_outputs_that_are_not_float():
    def fn(_, x, i):
        return x + 1.0, i

    report = check(fn, {}, shapes(2, 6), shapes(2, dtype="int32"), spec=cj.quant.int8())
    assert names(report) == ["input_1", "output_1"]
    assert names(check(fn, {}, shapes(2, 6), shapes(2, dtype="int32"))) == ["input_1", "output_1"]


def test_int8_knows_the_limits_of_litert():
    def fn(_, x):
        y = x * 2.0
        return y, jnp.pad(x, 1), y, jax.nn.relu(x)

    report = check(fn, {}, shapes(1, 2, 1, 2, 1, 2), spec=cj.quant.int8())
    assert [(row.kind, row.name) for row in report.problems] == [
        ("pad", "pad_0"),
        ("relu", "relu_0"),
        ("output", "output_2"),
    ]


def test_int8_refuses_outputs_that_hold_nothing():
    report = check(lambda _, x: (x * 2.0, x[:0] + 1.0), {}, shapes(1, 2), spec=cj.quant.int8())
    assert names(report) == ["output_1"]
    assert "holds nothing" in report.problems[0].problem


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (cj.quant.int8(weights={"a": None}), "is left float"),
        (cj.quant.int8(weights={"a": grids.codebook(3)}), "has the grid"),
        (cj.quant.int8(weights={"nothing": None}), "nothing"),
        (cj.quant.uniform(weights=8, activations=6), "6 bits, affine"),
    ],
)
def test_int8_refuses_a_spec_that_no_file_holds(spec, expected):
    def fn(variables, x):
        return jax.nn.relu(x @ variables["a"])

    report = check(fn, {"a": shapes(6, 4)}, shapes(2, 6), spec=spec)
    assert expected in str(report)
    assert {row.kind for row in report.problems} == {"spec"}


@pytest.mark.parametrize("spec", [cj.quant.dynamic(), cj.quant.weight_only(), cj.quant.int16x8()])
def test_other_specs(spec):
    def fn(variables, x):
        return jnp.tanh(x @ variables["a"])

    assert check(cj.quantize(fn, spec), {"a": shapes(6, 4)}, shapes(2, 6))


def test_arrays_do_as_well_as_shapes():
    def fn(variables, x):
        return x @ variables["a"]

    assert check(fn, {"a": np.ones((6, 4))}, jnp.ones((2, 6)))


def test_bad_arguments():
    with pytest.raises(ValueError, match="via='onnx' is unknown"):
        check(lambda v, x: x, {}, shapes(1, 2), via="onnx")
    with pytest.raises(ValueError, match="needs an example input"):
        check(lambda v: v, {})
    with pytest.raises(TypeError, match="dot_general"):
        check(lambda v, x: x @ v, shapes(3, 4), shapes(2, 6))
