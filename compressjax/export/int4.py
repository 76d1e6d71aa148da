"""Stores weights of at most 4 bits in half a byte each, in files with int8 activations.

`rewrite.py` writes every weight as int8, also one whose grid has 4 bits or fewer; this file decides
which of them may take half the bytes without a change in any result. Measured with LiteRT 2.3.0:
its delegate (XNNPACK) runs an INT4 weight of FULLY_CONNECTED exactly as the same codes in int8,
if the layer has an even number of inputs. Of an odd number, and of CONV_2D and DEPTHWISE_CONV_2D,
it leaves an INT4 weight to the builtin kernels, which unpack it at every call (four times slower)
and round otherwise, so those stay int8. A convolution of one pixel and stride 1 is a
FULLY_CONNECTED for every pixel, to the bit, and becomes one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from compressjax.export import flatbuffer, nibbles
from compressjax.export._require import require
from compressjax.export.operators import opcode

_LARGEST = 7
# Since which version LiteRT takes such a layer: INT4 weights; 8, sparse ones, is not delegated.
_VERSION = 10


def pack_int4(model: bytes) -> bytes:
    """Stores weights whose codes fit 4 bits as INT4 where LiteRT computes the same with them.

    The results stay equal to the bit. On an x86 core such layers took 0.9 to 1.1 times the time.

    Args:
        model: the .tflite.

    Returns:
        The smaller file, or `model` itself where no weight fits.

    Raises:
        TypeError: `model` is not bytes.
        ValueError: the file is damaged.

    Example:
        >>> import jax.numpy as jnp
        >>> from compressjax import quant
        >>> from compressjax.export.tflite import tflite
        >>> q = quant.quantize(lambda v, x: x @ v['kernel'],
        ...                    quant.uniform(weights=4, activations=8))
        >>> x = jnp.ones((1, 64))
        >>> model = tflite(q, q.calibrate({'kernel': jnp.eye(64)}, [x]), x, via='litert')
        >>> len(model) - len(pack_int4(model)) > 2000
        True
    """
    unpacked = flatbuffer.read(model)
    found = [
        operator
        for graph in unpacked.subgraphs
        for operator in graph.operators
        if _fits(unpacked, graph, operator)
    ]
    if not found:
        return model
    for graph in unpacked.subgraphs:
        for operator in graph.operators:
            if any(operator is one for one in found):
                _store(unpacked, graph, operator)
    return flatbuffer.write(unpacked)


def _fits(model: Any, graph: Any, operator: Any) -> bool:
    """Whether an operation is a layer that LiteRT runs exactly with an INT4 weight."""
    schema = require("ai_edge_litert.schema_py_generated")
    kind = flatbuffer.op_name(model, operator)
    if kind not in ("FULLY_CONNECTED", "CONV_2D") or len(operator.inputs) < 2:
        return False
    x, weight = (graph.tensors[i] for i in operator.inputs[:2])
    int8 = schema.TensorType.INT8
    if x.type != int8 or weight.type != int8 or weight.sparsity is not None:
        return False
    if weight.quantization is None or np.any(weight.quantization.zeroPoint):
        return False
    if kind == "CONV_2D" and not _is_pointwise(operator, x, weight):
        return False
    codes = flatbuffer.constant(model, weight)
    if codes is None or _users(model, graph, int(operator.inputs[1])) != 1:
        return False
    even = codes.shape[-1] % 2 == 0
    return even and bool((np.abs(codes.astype(np.int16)) <= _LARGEST).all())


def _is_pointwise(operator: Any, x: Any, weight: Any) -> bool:
    options = operator.builtinOptions
    one = (*weight.shape[1:3], options.strideH, options.strideW)
    return one == (1, 1, 1, 1) and x.shape[-1] == weight.shape[-1]


def _users(model: Any, graph: Any, index: int) -> int:
    """How many operands hold the data of a tensor, which may share its buffer."""
    buffer = graph.tensors[index].buffer
    sharing = sum(tensor.buffer == buffer for other in model.subgraphs for tensor in other.tensors)
    readers = sum(int(i) == index for operator in graph.operators for i in operator.inputs)
    return max(sharing, readers)


def _store(model: Any, graph: Any, operator: Any) -> None:
    schema = require("ai_edge_litert.schema_py_generated")
    weight = graph.tensors[operator.inputs[1]]
    codes = flatbuffer.constant(model, weight)
    assert codes is not None
    if flatbuffer.op_name(model, operator) == "CONV_2D":
        operator.builtinOptions = schema.FullyConnectedOptionsT(
            fusedActivationFunction=operator.builtinOptions.fusedActivationFunction,
            keepNumDims=True,
        )
        operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
        weight.shape = [codes.shape[0], codes.shape[-1]]
    operator.opcodeIndex = opcode(model, "FULLY_CONNECTED", version=_VERSION)
    model.buffers[weight.buffer].data = nibbles.pack(codes)
    weight.type = schema.TensorType.INT4
