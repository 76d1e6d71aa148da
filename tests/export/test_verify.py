"""Verification finds exactly the values that differ, and where they first do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.export import flatbuffer, run, tflite, verify
from compressjax.export.runtime import Session
from compressjax.export.verify import with_all_tensors
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
    with pytest.raises(ValueError, match="damaged"):
        verify(_file()[:-100], q, {}, _images(1))
    with pytest.raises(ValueError, match="puts out"):
        verify(_file(), lambda v, x: x[:, 0, 0], {}, _images(1))
    model = flatbuffer.read(_file())
    for tensor in model.subgraphs[0].tensors:
        tensor.name = "x"
    with pytest.raises(ValueError, match="no tensor of the file has a name of the model"):
        verify(flatbuffer.write(model), q, {}, _images(1))
