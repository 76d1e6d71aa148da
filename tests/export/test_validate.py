"""A damaged file is an error with a name, never a crash."""

import functools
import io
import struct
import zipfile

import flatbuffers
import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from jax import lax

from compressjax.export import flatbuffer, ops, run, tflite, validate
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


def _without_bias(model, graph):
    """LiteRT 2.3 reads past the operands of a depthwise convolution that has two of them."""
    code = next(
        i for i, c in enumerate(model.operatorCodes) if flatbuffer.operands.name(c) == "CONV_2D"
    )
    model.operatorCodes[code].builtinCode = model.operatorCodes[code].deprecatedBuiltinCode = 4
    operator = next(op for op in graph.operators if op.opcodeIndex == code)
    operator.inputs = operator.inputs[:2]


def _operator(model, graph, name):
    return next(op for op in graph.operators if flatbuffer.op_name(model, op) == name)


def _left_out(model, graph):
    add = _operator(model, graph, "ADD")
    add.inputs = [add.inputs[0], -1]


def _too_many(model, graph):
    add = _operator(model, graph, "ADD")
    add.inputs = [*add.inputs, add.inputs[0]]


def _another_operation(model, graph):
    pool = _operator(model, graph, "MAX_POOL_2D")
    pool.opcodeIndex = _operator(model, graph, "CONV_2D").opcodeIndex


def _no_options(model, graph):
    conv = _operator(model, graph, "CONV_2D")
    conv.builtinOptions, conv.builtinOptionsType = None, 0


def _other_options(model, graph):
    pool, conv = _operator(model, graph, "MAX_POOL_2D"), _operator(model, graph, "CONV_2D")
    pool.builtinOptions, pool.builtinOptionsType = conv.builtinOptions, conv.builtinOptionsType


def _hybrid(model, graph):
    """LiteRT 2.3 reads a scale for each channel there, however many there are."""
    _without_bias(model, graph)
    conv = _operator(model, graph, "DEPTHWISE_CONV_2D")
    x, weight = graph.tensors[conv.inputs[0]], graph.tensors[conv.inputs[1]]
    conv.inputs = [*conv.inputs, -1]
    options = conv.builtinOptions
    conv.builtinOptionsType = schema.BuiltinOptions.DepthwiseConv2DOptions
    conv.builtinOptions = schema.DepthwiseConv2DOptionsT(
        strideH=options.strideH, strideW=options.strideW
    )
    for tensor in (x, graph.tensors[conv.outputs[0]]):
        tensor.type, tensor.quantization = schema.TensorType.FLOAT32, None
    weight.quantization.scale = weight.quantization.scale[:1]
    weight.quantization.zeroPoint = weight.quantization.zeroPoint[:1]


def _smaller_items(model, graph):
    """LiteRT 2.3 writes float results into an int8 tensor and ruins its heap."""
    first, softmax = graph.operators[0], _operator(model, graph, "MAX_POOL_2D")
    softmax.opcodeIndex = len(model.operatorCodes)
    model.operatorCodes.append(schema.OperatorCodeT(builtinCode=25, deprecatedBuiltinCode=25))
    softmax.builtinOptionsType = schema.BuiltinOptions.SoftmaxOptions
    softmax.builtinOptions = schema.SoftmaxOptionsT(beta=1.0)
    softmax.inputs = [first.inputs[0]]


def _unknown_options(model, graph):
    add = _operator(model, graph, "ADD")
    add.builtinOptions, add.builtinOptionsType = None, 255


def _no_stride(model, graph):
    _operator(model, graph, "MAX_POOL_2D").builtinOptions.strideW = 0


def _two_results(model, graph):
    add = _operator(model, graph, "ADD")
    graph.tensors.append(graph.tensors[add.outputs[0]])
    add.outputs = [add.outputs[0], len(graph.tensors) - 1]


def _recurrent(model, graph):
    code = model.operatorCodes[_operator(model, graph, "ADD").opcodeIndex]
    code.builtinCode = code.deprecatedBuiltinCode = 44  # UNIDIRECTIONAL_SEQUENCE_LSTM


def _call(model, graph):
    code = model.operatorCodes[_operator(model, graph, "ADD").opcodeIndex]
    code.builtinCode = code.deprecatedBuiltinCode = 31  # CALL


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
        (_without_bias, r"DEPTHWISE_CONV_2D with the inputs \[.*\], expected 3"),
        (_left_out, r"ADD with the inputs \[\d+, -1\], expected 2"),
        (_too_many, "ADD with the inputs .*, expected 2"),
        (_another_operation, "CONV_2D with the inputs .*, expected 2 to 3"),
        (_no_options, "CONV_2D with NONE, expected Conv2DOptions"),
        (_other_options, "MAX_POOL_2D with Conv2DOptions, expected Pool2DOptions"),
        (_smaller_items, "SOFTMAX of FLOAT32 and gives INT8, expected the same type"),
        (_hybrid, "integer weights of 3 channels with 1 scales; LiteRT would read past them"),
        (_unknown_options, "ADD with options of the unknown type 255, expected none"),
        (_no_stride, "MAX_POOL_2D with strideW = 0"),
        (_two_results, "ADD with 2 outputs, expected 1"),
        (_recurrent, "UNIDIRECTIONAL_SEQUENCE_LSTM, which this reader does not know"),
        (_call, "CALL: control flow is not followed"),
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


def _converted(fn) -> bytes:
    return tflite(lambda _, x: fn(x), {}, jnp.ones((2, 6)), via="litert")


def test_a_constant_without_elements_needs_no_data():
    """The shape of a scalar is such a constant."""
    data = _converted(lambda x: lax.dynamic_slice(x, (0, x[0, 0].astype(int)), (2, 3)))
    assert "RESHAPE" in ops(data)


def test_control_flow_is_not_called_damage():
    data = _converted(lambda x: lax.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, x))
    with pytest.raises(ValueError, match="unsupported .*is IF, .*control flow.*jnp.where"):
        validate(data)


def test_operations_of_stablehlo_are_named():
    data = _converted(lambda x: lax.cumsum(x, axis=1, reverse=True))
    with pytest.raises(ValueError, match="unsupported .*StableHLO.*check names the operation"):
        validate(data)


def test_what_is_appended_to_the_flatbuffer_is_left_alone():
    """Associated files of a model are a ZIP behind it."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("labels.txt", "cat\ndog")
    data = _file() + archive.getvalue()
    assert ops(data) == ops(_file())
    model = plans.Model(plans.pools())
    x = np.concatenate([model.example()[0]] * 2)
    np.testing.assert_array_equal(run(data, x), run(_file(), x))
    with pytest.raises(ValueError, match="tflite"):
        validate(_file()[: len(_file()) // 2] + archive.getvalue())


def _set_aside(shift=0) -> bytes:
    """The file with the data of its buffers behind the FlatBuffer, as tools keep large ones."""
    model = flatbuffer.read(_file())
    content = [None if b.data is None else bytes(b.data) for b in model.buffers]

    class Buffer(schema.BufferT):
        def Pack(self, builder):  # noqa: N802
            schema.BufferStart(builder)
            schema.BufferAddOffset(builder, self.offset)
            schema.BufferAddSize(builder, self.size)
            return schema.BufferEnd(builder)

    def packed(start):
        at, model.buffers = start, []
        for data in content:
            buffer = Buffer()
            if data:
                at = -(-at // 16) * 16
                buffer.offset, buffer.size = at + shift, len(data)
                at += len(data)
            model.buffers.append(buffer)
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())

    size = len(packed(1 << 20))  # numbers that are not 0 take the same space, however large
    file = bytearray(packed(size))
    assert len(file) == size
    for data in filter(None, content):
        file += bytes(-len(file) % 16) + data
    return bytes(file)


def test_data_may_lie_behind_the_flatbuffer():
    data = _set_aside()
    assert flatbuffer.write(flatbuffer.read(data)) == _file()
    x = plans.Model(plans.pools()).example()[0]
    np.testing.assert_array_equal(run(data, x), run(_file(), x))


@pytest.mark.parametrize("shift", [1, 1 << 20, 1 << 40])
def test_data_may_not_lie_outside_the_file(shift):
    with pytest.raises(ValueError, match=r"buffer \d+ has its data at bytes"):
        validate(_set_aside(shift))


def test_a_file_that_is_cut_in_its_data():
    with pytest.raises(ValueError, match=r"buffer \d+ has its data at bytes"):
        validate(_set_aside()[:-1])
