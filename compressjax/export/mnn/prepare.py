"""Writes a .tflite in the form that MNN's converter understands, and mends what comes out.

The converter (3.6.1) says nothing of what it cannot do. Measured on int8 files: FULLY_CONNECTED
gets its weights as if they were float, and DEPTHWISE_CONV_2D of one channel, which is how
converters write a convolution of gray images, loses its scales; a CONV_2D of the same numbers is
right. MAX_POOL_2D, LOGISTIC and TANH give codes that have nothing to do with theirs, so all but the
operations that were seen to work are refused. And it lets activations reach -127 only, so that
after a ReLU, whose zero is the code -128, each zero becomes one step: the logits of a ResNet-8 were
16 steps off, and 3 with the bound of -128 that MNN's format has as its default.
"""

from __future__ import annotations

import copy
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from compressjax.export import flatbuffer
from compressjax.export._require import require
from compressjax.export.operators import opcode

_WEIGHTED = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"})
# What was seen to give the codes of LiteRT, or neighbours of them.
_RIGHT = frozenset(
    "CONV_2D DEPTHWISE_CONV_2D ADD SUB MUL MAXIMUM MINIMUM MEAN PAD CONCATENATION RESHAPE "
    "TRANSPOSE SLICE SOFTMAX AVERAGE_POOL_2D RESIZE_NEAREST_NEIGHBOR QUANTIZE".split()
)
# Places of fields in MNN's schema: of Net, TensorDescribe and TensorQuantInfo.
_DESCRIBED, _QUANT_INFO, _LOWEST = 1, 4, 2


def prepare(model: bytes) -> bytes:
    """Makes the file that MNN's converter reads.

    Args:
        model: a .tflite, float or int8, with float inputs and outputs.

    Returns:
        A .tflite that computes the same with other operations, whose inputs and outputs have the
        names of its signature behind `serving_`.

    Raises:
        TypeError: `model` is not bytes.
        ValueError: the file is damaged, or of a format that the converter would get wrong.
    """
    unpacked = flatbuffer.read(model)
    graph = unpacked.subgraphs[0]
    for end in [*graph.inputs, *graph.outputs]:
        if flatbuffer.dtype(graph.tensors[end]) != np.float32:
            raise ValueError(
                f"{flatbuffer.text(graph.tensors[end].name)!r} is "
                f"{flatbuffer.dtype(graph.tensors[end])}, for MNN inputs and outputs are float32: "
                "export without int8_io"
            )
    for signature in (unpacked.signatureDefs or [])[:1]:
        for end in [*signature.inputs, *signature.outputs]:
            graph.tensors[end.tensorIndex].name = f"serving_{flatbuffer.text(end.name)}"
    graph.operators = [
        made for operator in graph.operators for made in _understood(unpacked, operator)
    ]
    return flatbuffer.write(unpacked)


def _understood(model: Any, operator: Any) -> list[Any]:
    """What stands for an operator."""
    tensors, op = model.subgraphs[0].tensors, flatbuffer.op_name(model, operator)
    name = flatbuffer.text(tensors[operator.outputs[0]].name)
    if op in _WEIGHTED:
        kinds = [flatbuffer.dtype(tensors[i]) for i in operator.inputs[:2]]
        if kinds not in ([np.float32] * 2, [np.int8] * 2):
            raise ValueError(
                f"{op} {name!r} takes {kinds[0]} times {kinds[1]}; MNN's converter reads float32 "
                "and full int8 files: quantize with int8()"
            )
    if flatbuffer.dtype(tensors[operator.outputs[0]]) != np.int8:
        return [operator]
    if op == "FULLY_CONNECTED":
        return _as_conv(model, operator)
    if op == "DEPTHWISE_CONV_2D" and operator.builtinOptions.depthMultiplier > 1:
        return [_of_one_channel(model, operator, name)]
    if op not in _RIGHT:
        raise ValueError(
            f"{op} {name!r} is not among the operations that MNN computes rightly in int8 "
            f"({', '.join(sorted(_RIGHT))}): convert the float file, or write the layer with those"
        )
    constants = [flatbuffer.constant(model, tensors[i]) for i in operator.inputs if i >= 0]
    if op not in _WEIGHTED and any(x is not None and x.dtype == np.int8 for x in constants):
        raise ValueError(
            f"{op} {name!r} has a constant operand in int8, which MNN does not run: convert the "
            "float file, or write the layer without it"
        )
    return [operator]


def _of_one_channel(model: Any, operator: Any, name: str) -> Any:
    """The convolution that a depthwise one is whose input has one channel."""
    schema = require("ai_edge_litert.schema_py_generated")
    tensors, weight = model.subgraphs[0].tensors, int(operator.inputs[1])
    if int(tensors[operator.inputs[0]].shape[3]) != 1:
        raise ValueError(
            f"DEPTHWISE_CONV_2D {name!r} puts out {operator.builtinOptions.depthMultiplier} "
            "channels for each of several, which MNN's converter gets wrong in int8: write it as "
            "depthwise layers that keep their channels"
        )
    codes = flatbuffer.constant(model, tensors[weight])
    assert codes is not None  # validated: a weight of a converted file is a constant
    codes = codes.transpose(3, 1, 2, 0)
    kernel = _like(model, weight, codes.shape, "kernel")
    tensors[kernel].buffer = _buffer(model, codes)
    tensors[kernel].quantization = copy.copy(tensors[weight].quantization)
    tensors[kernel].quantization.quantizedDimension = 0
    old = operator.builtinOptions
    made = copy.copy(operator)
    made.opcodeIndex = opcode(model, "CONV_2D", version=3)
    made.inputs = [int(operator.inputs[0]), kernel, *operator.inputs[2:]]
    made.builtinOptionsType = schema.BuiltinOptions.Conv2DOptions
    made.builtinOptions = schema.Conv2DOptionsT(
        padding=old.padding,
        strideW=old.strideW,
        strideH=old.strideH,
        dilationWFactor=old.dilationWFactor,
        dilationHFactor=old.dilationHFactor,
        fusedActivationFunction=old.fusedActivationFunction,
    )
    return made


def _buffer(model: Any, data: np.ndarray) -> int:
    schema = require("ai_edge_litert.schema_py_generated")
    model.buffers.append(schema.BufferT(np.frombuffer(data.tobytes(), np.uint8)))
    return len(model.buffers) - 1


def _as_conv(model: Any, operator: Any) -> list[Any]:
    """The operators of a convolution of one pixel, between two changes of shape."""
    schema = require("ai_edge_litert.schema_py_generated")
    tensors, (source, weight, *bias) = model.subgraphs[0].tensors, map(int, operator.inputs)
    output = int(operator.outputs[0])
    channels, depth = (int(size) for size in tensors[weight].shape)
    rows = int(np.prod(tensors[source].shape)) // depth
    kernel = _like(model, weight, [channels, 1, 1, depth], "kernel")
    tensors[kernel].buffer = tensors[weight].buffer
    pixels = _like(model, source, [rows, 1, 1, depth], "pixels")
    result = _like(model, output, [rows, 1, 1, channels], "pixels")
    conv = schema.OperatorT(
        opcodeIndex=opcode(model, "CONV_2D", version=3),
        inputs=[pixels, kernel, *bias],
        outputs=[result],
        builtinOptionsType=schema.BuiltinOptions.Conv2DOptions,
        builtinOptions=schema.Conv2DOptionsT(
            padding=schema.Padding.VALID,
            strideW=1,
            strideH=1,
            fusedActivationFunction=operator.builtinOptions.fusedActivationFunction,
        ),
    )
    return [_reshape(model, source, pixels), conv, _reshape(model, result, output)]


def _like(model: Any, tensor: int, shape: Sequence[int], suffix: str) -> int:
    """Adds a tensor on the grid of another one."""
    tensors = model.subgraphs[0].tensors
    made = copy.copy(tensors[tensor])
    made.name = f"{flatbuffer.text(made.name)}/{suffix}"
    made.shape, made.shapeSignature, made.buffer = list(shape), None, 0
    tensors.append(made)
    return len(tensors) - 1


def _reshape(model: Any, source: int, output: int) -> Any:
    schema = require("ai_edge_litert.schema_py_generated")
    tensors = model.subgraphs[0].tensors
    shape = [int(size) for size in tensors[output].shape]
    buffer = _buffer(model, np.asarray(shape, np.int32))
    tensors.append(
        schema.TensorT(
            shape=[len(shape)],
            type=schema.TensorType.INT32,
            buffer=buffer,
            name=f"{flatbuffer.text(tensors[output].name)}/shape_{len(tensors)}",
            hasRank=True,
        )
    )
    return schema.OperatorT(
        opcodeIndex=opcode(model, "RESHAPE", version=1),
        inputs=[source, len(tensors) - 1],
        outputs=[output],
        builtinOptionsType=schema.BuiltinOptions.ReshapeOptions,
        builtinOptions=schema.ReshapeOptionsT(newShape=shape),
    )


def widen(converted: bytes) -> bytes:
    """Lets the activations of an MNN model have the code -128.

    Args:
        converted: what MNN's converter has just written; a flatbuffer, trusted as such.

    Returns:
        The same with the bound -128 in place of -127.
    """
    data = bytearray(converted)
    described = _field(data, _followed(data, 0), _DESCRIBED)
    if described is None:
        return converted  # a float model
    vector = _followed(data, described)
    for i in range(struct.unpack_from("<I", data, vector)[0]):
        quantization = _field(data, _followed(data, vector + 4 + 4 * i), _QUANT_INFO)
        if quantization is None:
            continue
        lowest = _field(data, _followed(data, quantization), _LOWEST)
        if lowest is not None and struct.unpack_from("<f", data, lowest)[0] == -127.0:
            struct.pack_into("<f", data, lowest, -128.0)
    return bytes(data)


def _followed(data: bytearray, position: int) -> int:
    return position + int(struct.unpack_from("<I", data, position)[0])


def _field(data: bytearray, table: int, number: int) -> int | None:
    """Where a field of a flatbuffer's table is; `None` if it has its default."""
    names = table - int(struct.unpack_from("<i", data, table)[0])
    place = 4 + 2 * number
    if place >= struct.unpack_from("<H", data, names)[0]:
        return None
    offset = int(struct.unpack_from("<H", data, names + place)[0])
    return table + offset if offset else None
