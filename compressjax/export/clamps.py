"""Writes a clamp that no other operation could take in as MAXIMUM and MINIMUM with a constant.

On its input's own grid RELU only compares codes, but LiteRT's int8 kernel multiplies and rounds
each one, and XNNPACK declines it: 1631 us for [1, 56, 56, 64] on one x86 core, where MAXIMUM took 6
us. The codes are the same. Where input and output have two grids the operation stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from compressjax.export import flatbuffer
from compressjax.export._require import require
from compressjax.export.operators import opcode
from compressjax.quant.frozen import FrozenStep

Bounds = tuple[float | None, float | None]

_BOUNDS: Mapping[str, Bounds] = {
    "RELU": (0.0, None),
    "RELU6": (0.0, 6.0),
    "RELU_N1_TO_1": (-1.0, 1.0),
}
_NAMES = ("MAXIMUM", "MINIMUM")


def compare(model: Any, steps: Sequence[tuple[Any, FrozenStep]]) -> None:
    """Replaces every lone clamp on one grid in a model.

    Args:
        model: an unpacked model with its final grids, changed in place.
        steps: operators with their steps; a step of kind `clamp` says its bounds itself, and any
            operation of one operand may stand for it.
    """
    graph = model.subgraphs[0]
    own = {id(operator): step for operator, step in steps if step.kind == "clamp"}
    done: list[Any] = []
    for operator in graph.operators:
        if id(operator) in own:
            done += _comparisons(model, operator, own[id(operator)].params["bounds"])
        elif _on_one_grid(model, operator):
            done += _comparisons(model, operator, _BOUNDS[flatbuffer.op_name(model, operator)])
        else:
            done.append(operator)
    graph.operators = done


def _on_one_grid(model: Any, operator: Any) -> bool:
    """Tells whether an operation is a clamp whose output has its input's grid."""
    if flatbuffer.op_name(model, operator) not in _BOUNDS:
        return False
    tensors = model.subgraphs[0].tensors
    source, target = tensors[operator.inputs[0]], tensors[operator.outputs[0]]
    if flatbuffer.dtype(source) not in (np.int8, np.int16):
        return False
    first, second = source.quantization, target.quantization
    same_scale = np.array_equal(first.scale, second.scale)
    return same_scale and np.array_equal(first.zeroPoint, second.zeroPoint)


def _comparisons(model: Any, operator: Any, bounds: Any) -> list[Any]:
    """MAXIMUM with the code of the lower bound, MINIMUM with that of the upper one."""
    graph = model.subgraphs[0]
    source, output = operator.inputs[0], operator.outputs[0]
    target = graph.tensors[output]
    scale, zero = np.float32(target.quantization.scale[0]), int(target.quantization.zeroPoint[0])
    kind = flatbuffer.dtype(target)
    wanted = [
        (name, bound) for name, bound in zip(_NAMES, bounds, strict=True) if bound is not None
    ]
    made = []
    for i, (name, bound) in enumerate(wanted):
        last = i == len(wanted) - 1
        result = output if last else _tensor(model, target, list(target.shape), None, "clamped")
        code = np.array([_code(bound, scale, zero, kind)], kind)
        made.append(_comparison(model, name, source, result, code))
        source = result
    return made


def _code(bound: float, scale: np.float32, zero: int, kind: np.dtype[Any]) -> int:
    """The code of a bound, as the RELU kernels find it: halves away from zero."""
    limits = np.iinfo(kind)
    steps = np.float32(bound) / scale
    whole = np.trunc(steps)
    return int(np.clip(whole + np.trunc(2 * (steps - whole)) + zero, limits.min, limits.max))


def _comparison(model: Any, name: str, source: int, output: int, code: np.ndarray) -> Any:
    schema = require("ai_edge_litert.schema_py_generated")
    like = model.subgraphs[0].tensors[output]
    constant = _tensor(model, like, [1], code, name.lower())
    return schema.OperatorT(
        opcodeIndex=opcode(model, name, 2),
        inputs=[source, constant],
        outputs=[output],
        builtinOptionsType=schema.BuiltinOptions.MaximumMinimumOptions,
        builtinOptions=schema.MaximumMinimumOptionsT(),
    )


def _tensor(model: Any, like: Any, shape: list[int], data: np.ndarray | None, suffix: str) -> int:
    """Adds a tensor of the type and on the grid of another one."""
    schema = require("ai_edge_litert.schema_py_generated")
    buffer = 0
    if data is not None:
        model.buffers.append(schema.BufferT(np.frombuffer(data.tobytes(), np.uint8)))
        buffer = len(model.buffers) - 1
    tensors = model.subgraphs[0].tensors
    tensors.append(
        schema.TensorT(
            shape=shape,
            type=like.type,
            buffer=buffer,
            name=f"{flatbuffer.text(like.name)}/{suffix}",
            quantization=like.quantization,
            hasRank=True,
        )
    )
    return len(tensors) - 1
