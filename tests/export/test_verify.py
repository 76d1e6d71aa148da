"""Verification finds exactly the values that differ, and where they first do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compressjax as cj
from compressjax.export import Layer, Parity, flatbuffer, run, tflite, verify
from compressjax.export.probe import same_layers, with_all_tensors
from compressjax.export.runtime import Session
from tests.support import plans

PLAN = plans.resnet()


@functools.cache
def _file() -> bytes:
    model = plans.Model(PLAN)
    return tflite(model, {}, *model.example(), via="litert")


def _images(count: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, 16, 16, 3)).astype(np.float32)


class Recorded:
    """A quantized model that answers with what LiteRT computed, changed at chosen places."""

    def __init__(self, changes=()):
        self.changes = dict(changes)
        probe, self.names = with_all_tensors(_file())
        self.session = Session(probe)

    def intermediates(self, variables, x):
        shapes = [
            jax.ShapeDtypeStruct((len(x), *d["shape"][1:]), jnp.int8) for d in self.session.outputs
        ]

        def compute(x):
            found = map(np.concatenate, zip(*self.session.slices([np.asarray(x)]), strict=True))
            codes = dict(zip(self.names, found, strict=True))
            for name, change in self.changes.items():
                codes[name] = codes[name].copy()
                codes[name].flat[0] ^= change
            return [codes[name] for name in self.names]

        return dict(zip(self.names, jax.pure_callback(compute, shapes, x), strict=True))

    def apply(self, variables, x):
        shape = jax.ShapeDtypeStruct((len(x), 10), jnp.float32)
        return jax.pure_callback(lambda x: run(_file(), np.asarray(x)), shape, x)


def test_equal():
    parity = verify(_file(), Recorded(), {}, _images(5), slice_size=2)
    assert parity.mismatch_fraction == 0
    assert parity.max_lsb == 0
    assert parity.first_divergence is None
    assert parity.top1_agreement == 1
    assert parity.samples == 5
    values = {layer.name: layer.values for layer in parity.layers}
    assert values["conv_0"] == 5 * 16 * 16 * 8, "rows that fill the last slice must not count"
    assert {step.name for step in PLAN.steps} < set(values)
    assert parity.layers[-1].name == "output_0"


def test_finds_the_first_difference():
    q = Recorded({"add_0": 4, "conv_4": 1})
    parity = verify(_file(), q, {}, _images(4), slice_size=2)
    assert parity.first_divergence == "add_0"
    assert parity.max_lsb == 4
    assert {x.name: x.differing for x in parity.layers if x.differing} == {"add_0": 2, "conv_4": 2}
    assert "first in add_0" in str(parity)


def test_the_copy_that_returns_everything_computes_the_same():
    x = _images(6)
    probe, names = with_all_tensors(_file())
    session = Session(probe)
    codes = dict(
        zip(names, map(np.concatenate, zip(*session.slices([x]), strict=True)), strict=True)
    )
    scale, zero_point = PLAN.quantization()[PLAN.outputs[0]]
    last = np.float32(scale) * (codes[PLAN.outputs[0]].astype(np.float32) - zero_point)
    np.testing.assert_array_equal(last, run(_file(), x))
    kinds = [node["op_name"] for node in session.interpreter._get_ops_details()]
    assert "DELEGATE" in kinds, "the copy must run on the kernels that the file runs on"


def test_a_float_function():
    def fn(variables, x):
        return x @ variables["w"]

    variables = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)}
    x = np.random.default_rng(1).normal(size=(10, 4)).astype(np.float32)
    data = tflite(fn, variables, x[:1], via="litert")
    parity = verify(data, fn, variables, x)
    assert parity.max_relative < 1e-6
    assert parity.top1_agreement == 1
    other = verify(data, fn, {"w": -variables["w"]}, x)
    assert other.top1_agreement < 0.5
    assert other.first_divergence == "output_0"
    np.testing.assert_allclose(other.max_abs, 2 * np.abs(fn(variables, x)).max(), rtol=1e-5)


def test_bad_arguments():
    q = Recorded()
    with pytest.raises(ValueError, match="empty batch"):
        verify(_file(), q, {}, _images(0))
    with pytest.raises(ValueError, match="reference=-1"):
        verify(_file(), q, {}, _images(1), reference=-1)
    with pytest.raises(FileNotFoundError, match=r"missing\.tflite"):
        verify("missing.tflite", q, {}, _images(1))
    with pytest.raises(ValueError, match="damaged"):
        verify(_file()[:-100], q, {}, _images(1))
    with pytest.raises(ValueError, match="puts out"):
        verify(_file(), lambda v, x: x[:, 0, 0], {}, _images(1))
    model = flatbuffer.read(_file())
    for tensor in model.subgraphs[0].tensors:
        tensor.name = "x"
    with pytest.raises(ValueError, match="no tensor of the file has a name of the model"):
        verify(flatbuffer.write(model), q, {}, _images(1))


def _fn(variables, x):
    y = jax.lax.conv_general_dilated(
        x, variables["conv"]["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    y = jax.nn.relu(y + variables["conv"]["bias"])
    return y.mean((1, 2)) @ variables["dense"]["kernel"]


def _variables() -> dict:
    draw = np.random.default_rng(2).normal
    return jax.tree.map(
        lambda shape: jnp.asarray(draw(size=shape), jnp.float32),
        {"conv": {"kernel": (3, 3, 3, 8), "bias": (1, 1, 1, 8)}, "dense": {"kernel": (8, 4)}},
        is_leaf=lambda shape: isinstance(shape, tuple),
    )


@functools.cache
def _trained() -> tuple:
    """A quantized function, its variables, and its files: int8, float."""
    q = cj.quantize(_fn, cj.quant.int8())
    qv = q.calibrate(_variables(), [_images(16)])
    one = _images(1)
    return q, qv, tflite(q, qv, one, via="litert"), tflite(_fn, _variables(), one, via="litert")


def test_reference_kernels():
    q = Recorded()
    parity = verify(_file(), q, {}, _images(5), slice_size=2, reference=3)
    assert parity.differing == 0, "the default kernels are not disturbed"
    slow = parity.reference
    assert slow.samples == 3
    assert [layer.name for layer in slow.layers] == [layer.name for layer in parity.layers]
    assert 0 < slow.mismatch_fraction < 0.5
    assert slow.first_divergence.startswith("conv_")
    assert {x.name: x.values for x in slow.layers}["conv_0"] == 3 * 16 * 16 * 8
    assert f"on the reference kernels: {slow.differing:,} values differ" in str(parity)
    assert verify(_file(), q, {}, _images(3), slice_size=2, reference=9).reference == slow


def test_error_against_the_float_function():
    q, qv, model, _ = _trained()
    x = _images(5)
    parity = verify(model, q, qv, x, real=(_fn, _variables()), slice_size=2)
    assert parity.max_lsb == 0
    ratios = {layer.name: layer.sqnr_db for layer in parity.layers}
    real, file = np.asarray(_fn(_variables(), x)), np.asarray(q.apply(qv, x))
    expected = 10 * np.log10(np.square(real).sum() / np.square(real - file).sum())
    np.testing.assert_allclose(ratios["output_0"], expected, rtol=1e-4)
    assert parity.real.sqnr_db == ratios["output_0"]
    scale = model_grid(model, "input_0")[0]
    codes = np.asarray(q.intermediates(qv, x)["input_0"], np.float32)
    error = x - scale * (codes - np.float32(model_grid(model, "input_0")[1]))
    expected = 10 * np.log10(np.square(x).sum() / np.square(error).sum())
    np.testing.assert_allclose(ratios["input_0"], expected, rtol=1e-4)
    assert all(20 < ratio < 70 for ratio in ratios.values()), "every tensor of the plan has one"
    np.testing.assert_allclose(parity.real.max_abs, np.abs(real - file).max(), rtol=1e-5)
    assert parity.real.top1_agreement == np.mean(real.argmax(-1) == file.argmax(-1))


def model_grid(model: bytes, name: str) -> tuple[float, int]:
    (tensor,) = [
        t for t in flatbuffer.read(model).subgraphs[0].tensors if flatbuffer.text(t.name) == name
    ]
    return np.float32(tensor.quantization.scale[0]), int(tensor.quantization.zeroPoint[0])


def test_error_against_a_float_file(tmp_path):
    q, qv, model, real = _trained()
    for name, data in {"int8": model, "float": real}.items():
        (tmp_path / name).write_bytes(data)
    x = _images(5)
    parity = verify(tmp_path / "int8", q, qv, x, real=str(tmp_path / "float"), slice_size=2)
    same = verify(model, q, qv, x, real=(_fn, _variables()))
    ratios = {layer.name: layer.sqnr_db for layer in parity.layers}
    assert [name for name in ratios if ratios[name] is not None] == [
        "conv/kernel", "dense/kernel", "output_0",
    ]  # fmt: skip
    for layer in same.layers:
        if ratios[layer.name] is not None:
            np.testing.assert_allclose(ratios[layer.name], layer.sqnr_db, rtol=1e-3)
    assert same_layers(model, _file()) == {}, "another network has no layer of this one"
    assert "against the float model: top-1 agreement" in str(parity)


def test_only_kernels_quantized():
    q = cj.quantize(_fn, cj.quant.weight_only())
    qv = q.calibrate(_variables(), [_images(1)])
    parity = verify(_trained()[3], q, qv, _images(4))
    assert [layer.name for layer in parity.layers] == ["output_0"]
    assert 0 < parity.max_relative < 0.05, "the float file has the kernels before rounding"


def test_thresholds():
    layers = (Layer("conv", 1000, 2, 1),)
    slow = Parity(2, 0.01, (Layer("conv", 100, 1, 2),), "conv", 1.0, 0.1, 0.1, 1)
    real = cj.export.Distance(top1_agreement=0.9, max_abs=0.1, sqnr_db=30.0)
    parity = Parity(1, 0.002, layers, "conv", 1.0, 0.1, 0.1, 10, reference=slow, real=real)
    limits = {"max_lsb": 1, "mismatch_fraction": 0.002}
    assert parity.check(**limits) == ()
    assert parity.check(**limits, reference_mismatch_fraction=0.01, sqnr_db=30.0) == ()
    assert len(parity.check()) == 2
    (sentence,) = parity.check(**limits, reference_mismatch_fraction=0.009)
    assert "1.0000% of the values differ on the reference kernels" in sentence
    (sentence,) = parity.check(**limits, top1_agreement=0.91)
    assert "top-1 agreement with the float model is 90.00%" in sentence
    (sentence,) = parity.check(**limits, sqnr_db=30.1)
    assert "30.0 dB" in sentence
    plain = Parity(1, 0.002, layers, "conv", 1.0, 0.1, 0.1, 10)
    with pytest.raises(ValueError, match="no float model was compared"):
        plain.check(top1_agreement=0.5)
    with pytest.raises(ValueError, match="reference kernels were not compared"):
        plain.check(reference_mismatch_fraction=0.5)


def test_json_has_no_infinities():
    layer = Layer("conv", 10, 0, 0, sqnr_db=float("inf"))
    value = Parity(0, 0.0, (layer,), None, 1.0, 0.0, 0.0, 1).to_json()
    assert value["layers"][0]["sqnr_db"] is None
    assert value["layers"][0]["values"] == 10
    assert value["reference"] is None


def test_a_batch_that_is_not_the_first_axis_inside():
    """The file computes its slices one by one, the model all of them beside each other."""

    def network(variables, x):  # [N, 5, 3]
        inner = jnp.tanh(x.transpose(1, 0, 2) @ variables["kernel"])  # [5, N, 4]
        return inner.transpose(1, 0, 2).mean(1)

    x = np.asarray(jax.random.normal(jax.random.key(0), (6, 5, 3)))
    q = cj.quantize(network)
    qv = q.calibrate({"kernel": jax.random.normal(jax.random.key(1), (3, 4))}, [x])
    for rows in (1, 2):
        parity = verify(tflite(q, qv, x[:rows], via="litert"), q, qv, x)
        assert parity.differing == 0
        assert len(parity.layers) > 4


def test_a_tolerance_is_for_real_values_alone():
    tally = cj.export.parity.Tally(tolerance=1e-3)
    tally.add("codes", np.array([[1, 2]], np.int8), np.array([[1, 3]], np.int8))
    tally.add("reals", np.array([[1.0, 100.05]]), np.array([[1.05, 100.0]]))
    tally.add("bad", np.array([[1.0, np.nan]]), np.array([[1.2, 100.0]]))
    tally.add_outputs([np.array([[1.0, 2.0]])], [np.array([[1.0, 2.001]])], 1)
    assert [layer.differing for layer in tally.result().layers] == [1, 0, 2, 0]
    with pytest.raises(ValueError, match="tolerance=-1"):
        cj.export.parity.Tally(tolerance=-1)
