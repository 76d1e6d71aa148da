"""Weights in half a byte give the results of the same codes in int8, to the bit."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compressjax as cj
from compressjax.export import flatbuffer, nibbles, ops, pack_int4, tflite, verify
from compressjax.export.benchmark import delegation
from compressjax.export.probe import with_all_tensors
from compressjax.export.runtime import Session
from tests.support import plans

INT4 = 17  # of LiteRT's TensorType


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 225])
def test_packing_and_unpacking(count):
    codes = np.random.default_rng(count).integers(-8, 8, count).astype(np.int8)
    packed = nibbles.pack(codes)
    assert packed.shape == ((count + 1) // 2,)
    np.testing.assert_array_equal(nibbles.unpack(packed, count), codes)


def test_the_first_code_is_in_the_low_half():
    assert nibbles.pack(np.array([[3, -2], [-8, 0]], np.int8)).tolist() == [0xE3, 0x08]


@pytest.mark.parametrize("code", [-9, 8])
def test_a_code_of_more_bits_cannot_be_packed(code):
    with pytest.raises(ValueError, match=rf"\[.*{code}.*expected \[-8, 7\].*at most 4 bits"):
        nibbles.pack(np.array([0, code], np.int8))


@functools.cache
def _plan():
    """Every sort of layer with 4-bit codes; two with 8-bit ones."""
    b = plans.Builder(5)
    x = b.conv(b.input(1, 8, 8, 3), 8, act=plans.relu, top=7)
    y = b.conv(x, 10, size=1, act=plans.relu6, top=7)  # conv_1: becomes FULLY_CONNECTED
    y = b.depthwise(y, act=plans.relu, top=7)
    y = b.conv(y, 8, size=1, top=7, bias=False)  # conv_2: so does this
    x = b.add(x, y)
    x = b.conv(b.conv(x, 7, size=1), 8, size=1, top=7)  # 8 bits; an odd number of inputs
    x = b.conv(x, 8, size=1, stride=2, top=7)
    x = b.dense(b.dense(b.mean(x), 5, top=7), 6, top=7)  # dense_1 has an odd number of inputs
    return b.plan([b.dense(x, 4, top=8)])  # a code too large


@functools.cache
def _export(int4: bool, via: str = "litert", sparse: bool = False) -> bytes:
    model = plans.Model(_plan())
    return tflite(model, {}, *model.example(), via=via, int4=int4, sparse=sparse)


def _weights(data: bytes):
    model = flatbuffer.read(data)
    tensors = {flatbuffer.text(t.name): t for t in model.subgraphs[0].tensors}
    return {
        name.removesuffix("/weight"): (tensor.type == INT4, flatbuffer.constant(model, tensor))
        for name, tensor in tensors.items()
        if name.endswith("/weight")
    }


def test_which_weights_are_packed():
    packed = _weights(_export(True))
    assert {name for name, (four, _) in packed.items() if four} == {"conv_1", "conv_2", "dense_0"}
    for name, (_, codes) in _weights(_export(False)).items():
        np.testing.assert_array_equal(packed[name][1].ravel(), codes.ravel())
    expected = ops(_export(False))
    assert expected[2] == expected[4] == "CONV_2D"
    expected[2] = expected[4] = "FULLY_CONNECTED"
    assert ops(_export(True)) == expected
    assert len(_export(False)) - len(_export(True)) >= (8 * 10 + 10 * 8 + 8 * 5) // 2 - 64


def test_both_converters_give_the_same_bytes():
    assert _export(True, "jax2tf") == _export(True, "litert")


def test_every_value_is_that_of_int8_and_the_delegate_takes_all():
    x = np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype(np.float32)
    values = []
    for int4 in (False, True):
        probe, names = with_all_tensors(_export(int4))
        columns = zip(*Session(probe).slices([3 * x]), strict=True)
        values.append(dict(zip(names, map(np.concatenate, columns), strict=True)))
    for name, codes in values[0].items():
        np.testing.assert_array_equal(values[1][name], codes, err_msg=name)
        assert np.unique(codes).size > 5, name
    assert delegation(Session(_export(True)))[1] == ()


class _Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(16, (3, 3), strides=2)(x))
        x = nn.relu(nn.Conv(64, (1, 1))(x))
        return nn.Dense(10)(nn.relu(nn.Dense(32)(x.mean((1, 2)))))


def test_mixed_precision_is_what_apply_computes():
    x = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype(np.float32)
    variables = _Net().init(jax.random.key(0), x[:1])
    four, three = cj.quant.grids.integer(4), cj.quant.grids.integer(3)
    rules = {"**/Conv_1/kernel": four, "**/Dense_0/kernel": three}
    q = cj.quantize(_Net().apply, cj.quant.uniform(weights=8, activations=8, rules=rules))
    qv = q.calibrate(variables, [x])
    data = tflite(q, qv, x[:1], via="litert", int4=True)
    assert [four for four, _ in _weights(data).values()].count(True) == 2
    parity = verify(data, q, qv, x)
    assert (parity.max_lsb, parity.mismatch_fraction) == (0, 0.0)


def test_with_pruned_weights_the_smaller_file_wins():
    sizes = [len(_export(int4, sparse=True)) for int4 in (False, True)]
    assert sizes[1] == len(_export(True)) < sizes[0]


def test_nothing_fits():
    rest = tflite(lambda v, x: x @ v, jnp.eye(4), jnp.ones((1, 4)), via="litert")
    assert pack_int4(rest) is rest
    assert pack_int4(_export(True)) is _export(True)


def test_a_constant_of_an_odd_number_of_codes():
    model = flatbuffer.read(_export(False))
    tensor = next(
        t for t in model.subgraphs[0].tensors if flatbuffer.text(t.name) == "dense_1/weight"
    )
    codes = np.random.default_rng(0).integers(-7, 8, (3, 5)).astype(np.int8)
    tensor.shape, tensor.type, tensor.quantization = [3, 5], INT4, None
    model.buffers[tensor.buffer].data = nibbles.pack(codes)
    again = flatbuffer.read(flatbuffer.write(model))
    np.testing.assert_array_equal(
        flatbuffer.constant(again, again.subgraphs[0].tensors[_index(again, tensor)]), codes
    )
    model.buffers[tensor.buffer].data = nibbles.pack(codes)[:-1]
    with pytest.raises(ValueError, match=r"dense_1/weight.*type INT4 needs 8 bytes, .* has 7"):
        flatbuffer.read(flatbuffer.write(model))


def _index(model, tensor) -> int:
    names = [flatbuffer.text(t.name) for t in model.subgraphs[0].tensors]
    return names.index(flatbuffer.text(tensor.name))


def test_a_float_model_has_no_codes():
    with pytest.raises(ValueError, match="int4=True needs a quantized model"):
        tflite(lambda v, x: x, {}, jnp.ones((1, 2)), int4=True)
    with pytest.raises(ValueError, match="int4 and sparse are forms of a .tflite"):
        tflite(lambda v, x: x, {}, jnp.ones((1, 2)), via="stablehlo", int4=True)
