"""A damaged file is an error with a name, never a crash."""

import functools
import struct

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from compressjax.export import flatbuffer, ops, tflite, validate
from tests.support import plans


@functools.cache
def _file() -> bytes:
    model = plans.Model(plans.pools())
    return tflite(model, {}, *model.example(), via="litert")


def _changed(change) -> bytes:
    model = flatbuffer.read(_file())
    change(model, model.subgraphs[0])
    return flatbuffer.write(model)


def test_reads_back_what_it_wrote():
    model = flatbuffer.read(_file())
    assert flatbuffer.write(model) == _file()
    assert flatbuffer.write(flatbuffer.read(flatbuffer.write(model))) == _file()


def test_buffers_are_aligned_for_the_kernels():
    for buffer in flatbuffer.read(_file()).buffers:
        if buffer.data is not None:
            content = bytes(buffer.data)
            places = [i for i in range(0, len(_file()), 16) if _file().startswith(content, i)]
            assert places, "no copy of the buffer starts on a multiple of 16 bytes"


@pytest.mark.parametrize("keep", [0, 3, 8, 15, 16, 40, 0.1, 0.5, 0.9, 0.99])
def test_truncated(keep):
    size = keep if isinstance(keep, int) else int(len(_file()) * keep)
    with pytest.raises(ValueError, match="tflite"):
        validate(_file()[:size])


def test_wrong_identifier_and_type():
    with pytest.raises(ValueError, match="no identifier TFL3"):
        validate(b"\x1c\0\0\0TFL2" + _file()[8:])
    with pytest.raises(TypeError, match="str"):
        validate("model.tflite")


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=300)
def test_no_change_of_bytes_escapes_as_another_error(data):
    damaged = bytearray(_file())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(damaged) - 1))
        damaged[place] = data.draw(st.integers(0, 255))
    try:
        validate(bytes(damaged))
    except ValueError as error:
        assert "tflite" in str(error) or "not supported" in str(error)


@hypothesis.given(st.integers(0, 400), st.sampled_from([0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]))
@hypothesis.settings(max_examples=300)
def test_hostile_offsets(word, value):
    damaged = bytearray(_file())
    struct.pack_into("<I", damaged, 4 * word if word != 1 else 0, value)
    try:
        validate(bytes(damaged))
    except ValueError as error:
        assert "tflite" in str(error) or "not supported" in str(error)


def _bad_operand(model, graph):
    graph.operators[2].inputs = [999, *graph.operators[2].inputs[1:]]


def _reads_later(model, graph):
    graph.operators[1].inputs = [graph.operators[5].outputs[0], *graph.operators[1].inputs[1:]]


def _writes_constant(model, graph):
    graph.operators[1].outputs = [graph.operators[1].inputs[1]]


def _bad_code(model, graph):
    graph.operators[1].opcodeIndex = 77


def _bad_output(model, graph):
    graph.outputs = [len(graph.tensors)]


def _bad_signature(model, graph):
    model.signatureDefs[0].inputs[0].tensorIndex = 10_000


def _small_buffer(model, graph):
    weight = graph.tensors[graph.operators[1].inputs[1]]
    model.buffers[weight.buffer].data = model.buffers[weight.buffer].data[:-1]


def _bad_buffer(model, graph):
    graph.tensors[3].buffer = 400


def _negative_shape(model, graph):
    graph.tensors[graph.operators[1].outputs[0]].shape = np.array([1, -16, 16, 8], np.int32)


def _zero_scale(model, graph):
    graph.tensors[graph.operators[1].outputs[0]].quantization.scale = np.zeros(1, np.float32)


def _bad_point(model, graph):
    graph.tensors[graph.operators[1].outputs[0]].quantization.zeroPoint = np.array([-269])


def _far_scales(model, graph):
    add = next(op for op in graph.operators if flatbuffer.op_name(model, op) == "ADD")
    graph.tensors[add.inputs[0]].quantization.scale = np.array([5e33], np.float32)


def _bad_channel_axis(model, graph):
    graph.tensors[graph.operators[1].inputs[1]].quantization.quantizedDimension = 1


def _version(model, graph):
    model.version = 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_bad_operand, "operator 2: input tensor 999"),
        (_reads_later, "operator 1 reads tensor .* before it exists"),
        (_writes_constant, "operator 1 writes a constant"),
        (_bad_code, "operator 1: operator code 77"),
        (_bad_output, "output tensor"),
        (_bad_signature, "signature serving_default: tensor 10000"),
        (_small_buffer, "pad_0|conv_0/weight.*needs .* bytes"),
        (_bad_buffer, "buffer 400"),
        (_negative_shape, r"shape \[1, -16, 16, 8\]"),
        (_zero_scale, "scale that is not positive"),
        (_bad_point, "zero point -269"),
        (_far_scales, "too far apart"),
        (_bad_channel_axis, "8 scales on axis 1"),
        (_version, "version 4"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        validate(_changed(change))


def test_large_model_is_not_refused():
    """The limit on tables must not refuse honest files with many tensors."""
    b = plans.Builder()
    x = b.input(1, 4)
    for _ in range(60):
        x = b.dense(x, 4)
    model = plans.Model(b.plan([x]))
    data = tflite(model, {}, *model.example(), via="litert")
    validate(data)
    assert ops(data).count("FULLY_CONNECTED") == 60
