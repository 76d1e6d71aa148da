"""Exchanges operators of a converted file for those that its plan means.

A converter may take a step for another operation, or know no name for it and be given a stand-in
(`provisional.py`). Beside `rewrite.py`, which writes numbers, this changes kinds and options.
"""

from __future__ import annotations

import copy
from typing import Any

from compressjax.export import flatbuffer
from compressjax.export._require import require
from compressjax.quant.frozen import FrozenStep


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
