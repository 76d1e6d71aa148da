"""Exchanges operators of a converted file for those that its plan means.

A converter may take a step for another operation, or know no name for it and be given a stand-in
(`provisional.py`). Beside `rewrite.py`, which writes numbers, this changes kinds and options.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from compressjax.export import flatbuffer
from compressjax.export._require import require
from compressjax.quant.frozen import FrozenStep


def quantize_transposed(model: Any) -> None:
    """Makes int8 the transposed convolutions that a converter left in float.

    litert-converter turns their kernels around after their codes were marked, and then no longer
    sees the codes: it puts DEQUANTIZE before and QUANTIZE behind. Both go, and the codes turn.

    Args:
        model: the unpacked file; it is changed.
    """
    graph = model.subgraphs[0]
    makers = {int(op.outputs[0]): op for op in graph.operators}
    kinds = {id(op): flatbuffer.op_name(model, op) for op in graph.operators}
    gone: set[int] = set()
    for operator in graph.operators:
        if kinds[id(operator)] != "TRANSPOSE_CONV":
            continue
        _, weight, x, *_ = operator.inputs
        turn = makers.get(int(weight))
        if turn is None or kinds[id(turn)] != "REVERSE_V2":
            continue
        marked, entry = makers[int(turn.inputs[0])], makers[int(x)]
        leave = next(op for op in graph.operators if operator.outputs[0] in op.inputs)
        found = [kinds[id(op)] for op in (marked, entry, leave)]
        if found != ["DEQUANTIZE", "DEQUANTIZE", "QUANTIZE"]:
            raise ValueError(
                f"a transposed convolution stands between {found}, expected DEQUANTIZE for its "
                "kernel and its input and QUANTIZE for its result: export with via='jax2tf'"
            )
        codes = flatbuffer.constant(model, graph.tensors[marked.inputs[0]])
        assert codes is not None
        turned = np.ascontiguousarray(codes[:, ::-1, ::-1])
        graph.tensors.append(copy.copy(graph.tensors[marked.inputs[0]]))
        graph.tensors[-1].buffer = len(model.buffers)
        buffer = require("ai_edge_litert.schema_py_generated").BufferT(
            np.frombuffer(turned.tobytes(), np.uint8)
        )
        model.buffers.append(buffer)
        operator.inputs = list(operator.inputs)
        operator.inputs[1:3] = [len(graph.tensors) - 1, entry.inputs[0]]
        operator.outputs = list(leave.outputs)
        gone.update(map(id, (turn, marked, leave)))
    read = {int(i) for op in graph.operators if id(op) not in gone for i in op.inputs}
    read.update(int(i) for i in graph.outputs)
    graph.operators = [
        op
        for op in graph.operators
        if id(op) not in gone and (kinds[id(op)] != "DEQUANTIZE" or int(op.outputs[0]) in read)
    ]


def correct(model: Any, operator: Any, step: FrozenStep) -> None:
    """Makes an operator the one that its step means.

    Args:
        model: the unpacked file; it is changed.
        operator: an operator of its first subgraph.
        step: the step that `match.py` found for it.

    Raises:
        ValueError: the operator cannot be exchanged.
    """
    if step.kind == "gelu":
        operator.builtinOptions.approximate = bool(step.params["approximate"])
    elif step.kind == "leaky_relu":
        operator.builtinOptions.alpha = float(step.params["slope"])  # type: ignore[arg-type]
    elif step.kind == "elu":
        operator.opcodeIndex = opcode(model, "ELU", version=1)
        operator.builtinOptionsType, operator.builtinOptions = 0, None
    elif step.kind == "transpose_conv":
        schema = require("ai_edge_litert.schema_py_generated")
        kernel = step.constants[0].codes.shape[:2]
        edges: Any = step.params["padding"]
        whole = all(edge == (size - 1, size - 1) for size, edge in zip(kernel, edges, strict=True))
        operator.builtinOptions.padding = schema.Padding.VALID if whole else schema.Padding.SAME
    elif step.kind == "batch_matmul" and flatbuffer.op_name(model, operator) != "BATCH_MATMUL":
        _to_batch_matmul(model, operator, step.name)


def _to_batch_matmul(model: Any, operator: Any, name: str) -> None:
    """Undoes what the converters make of one pair of matrices: a layer with computed weights.

    LiteRT's FULLY_CONNECTED derives its multiplier in another way, so the same step would round
    differently for a batch of one. A clamp that was fused becomes an operation of its own.
    """
    schema = require("ai_edge_litert.schema_py_generated")
    graph, (left, right, *_) = model.subgraphs[0], operator.inputs
    output = operator.outputs[0]
    ranks = [len(graph.tensors[tensor].shape) for tensor in (left, output)]
    if ranks[0] != ranks[1]:
        raise ValueError(
            f"step {name!r} became FULLY_CONNECTED with an operand of rank {ranks[0]} and a result "
            f"of rank {ranks[1]}, expected the same: export with a batch of at least two"
        )
    clamp = operator.builtinOptions.fusedActivationFunction
    operator.opcodeIndex = opcode(model, "BATCH_MATMUL", version=2)
    operator.inputs = [left, right]
    operator.builtinOptionsType = schema.BuiltinOptions.BatchMatMulOptions
    operator.builtinOptions = schema.BatchMatMulOptionsT(adjX=False, adjY=True)
    if clamp != schema.ActivationFunctionType.NONE:
        names = {number: kind for kind, number in vars(schema.ActivationFunctionType).items()}
        graph.tensors.append(copy.copy(graph.tensors[output]))
        graph.tensors[-1].name = name
        if graph.tensors[output].name == name:
            graph.tensors[output].name = f"{name}/clamped"
        operator.outputs = [len(graph.tensors) - 1]
        code = opcode(model, names[clamp], version=2)
        own = schema.OperatorT(opcodeIndex=code, inputs=operator.outputs, outputs=[output])
        place = next(i for i, other in enumerate(graph.operators) if other is operator)
        graph.operators.insert(place + 1, own)


def opcode(model: Any, op: str, version: int) -> int:
    """Finds the operator code of a file, or adds it; those that nothing uses are dropped later.

    Args:
        model: the unpacked file; it may be changed.
        op: LiteRT's name of the operation.
        version: the version that is wanted.

    Returns:
        The index of the code.
    """
    schema = require("ai_edge_litert.schema_py_generated")
    number = getattr(schema.BuiltinOperator, op)
    for index, code in enumerate(model.operatorCodes):
        if (code.builtinCode, code.version) == (number, version):
            return index
    model.operatorCodes.append(schema.OperatorCodeT(min(number, 127), None, version, number))
    return len(model.operatorCodes) - 1
