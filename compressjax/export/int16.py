"""Turns a file of int8 activations into one of int16, where LiteRT has kernels for that.

Converters get labels of 8 bits for every plan (`provisional.py`), since what they fuse depends on
the structure alone. Here tensors get their real type before `rewrite.py` writes numbers into the
file, and operators the versions that say so afterwards.

What stands in the table was measured with LiteRT 2.3.0, whose builtin kernels run int16 (XNNPACK
does not). It has no ELU and no SQRT of 16 bits, and its RSQRT interpolates between 513 points,
which is off by thousands of codes near zero, where layer norms need it.
"""

from __future__ import annotations

from typing import Any

from compressjax.export import flatbuffer
from compressjax.export._require import require
from compressjax.export.operators import opcode

# Operations with kernels for int16, with the version that introduced it.
_VERSIONS = {
    "ADD": 3, "AVERAGE_POOL_2D": 3, "BATCH_MATMUL": 3, "CONCATENATION": 3, "CONV_2D": 4,
    "DEPTHWISE_CONV_2D": 5, "DEQUANTIZE": 3, "EXP": 2, "EXPAND_DIMS": 1, "FULLY_CONNECTED": 7,
    "GATHER": 4, "GATHER_ND": 3, "GELU": 2, "LEAKY_RELU": 2, "LOG": 2, "LOGISTIC": 3,
    "MAXIMUM": 4, "MAX_POOL_2D": 3, "MEAN": 3, "MINIMUM": 4, "MUL": 4, "PAD": 3, "PADV2": 3,
    "QUANTIZE": 2, "REDUCE_MAX": 3, "REDUCE_MIN": 3, "RELU": 3, "RELU6": 3, "RESHAPE": 1,
    "RESIZE_NEAREST_NEIGHBOR": 4, "SLICE": 4, "SOFTMAX": 3, "SQUEEZE": 1, "STRIDED_SLICE": 2,
    "SUB": 5, "SUM": 2, "TANH": 3, "TRANSPOSE": 5, "TRANSPOSE_CONV": 3,
}  # fmt: skip


def widen_activations(model: Any) -> None:
    """Makes every int8 tensor without data an int16 one.

    Args:
        model: the unpacked file; it is changed.
    """
    schema = require("ai_edge_litert.schema_py_generated")
    for tensor in model.subgraphs[0].tensors:
        data = model.buffers[tensor.buffer].data
        if tensor.type == schema.TensorType.INT8 and (data is None or not len(data)):
            tensor.type = schema.TensorType.INT16


def set_versions(model: Any) -> None:
    """Gives every operator a version that runs int16.

    Args:
        model: the unpacked file with its final operators and names; it is changed.

    Raises:
        ValueError: LiteRT has no such kernel, or none to be trusted.
    """
    graph = model.subgraphs[0]
    for operator in graph.operators:
        kind = flatbuffer.op_name(model, operator)
        if kind not in _VERSIONS:
            name = flatbuffer.text(graph.tensors[operator.outputs[0]].name)
            raise ValueError(
                f"step {name!r} becomes {kind}, for which LiteRT has no kernel of 16 bits (or, for "
                "RSQRT, none that is exact to a per cent): quantize with quant.int8(), or write "
                "the layer without it"
            )
        present = model.operatorCodes[operator.opcodeIndex].version
        operator.opcodeIndex = opcode(model, kind, max(present, _VERSIONS[kind]))
        if kind in ("ADD", "SUB"):
            operator.builtinOptions.potScaleInt16 = False
