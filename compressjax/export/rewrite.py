"""Writes the exact numbers of a frozen plan into the file that a converter made of its labels.

`match.py` says which tensor is which; here every activation gets its name, scale and zero point,
every weight its codes in the layout that the converter chose, every bias its int32 codes. So both
converters give the same integers, and nothing is left to a recomputed scale.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from compressjax.export import clamps, flatbuffer, int16, operators
from compressjax.export._require import require
from compressjax.export.match import Matched, match, same_layout
from compressjax.quant.frozen import Codes, Frozen, FrozenStep

_CHANNEL_AXIS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0, "TRANSPOSE_CONV": 0}
# Operands: input, weight, bias; but output shape, weight, input, bias.
_BIAS = {"TRANSPOSE_CONV": 3}


def rewrite(raw: bytes, plan: Frozen, labelled: Frozen, *, int8_io: bool) -> bytes:
    """Puts the numbers of a plan into a converted file.

    Args:
        raw: what a converter made of `labelled`.
        plan: the frozen plan with the real numbers.
        labelled: `provisional.label(plan)`.
        int8_io: leave out the QUANTIZE of each input and the DEQUANTIZE of each output.

    Returns:
        The finished .tflite.

    Raises:
        ValueError: an operation of the file has no step, or a step no operation.
    """
    model = flatbuffer.read(raw)
    operators.quantize_transposed(model)
    matched = match(model, labelled)
    if plan.wide:
        int16.widen_activations(model)
    grids = plan.quantization()
    steps = {step.name: step for step in plan.steps}
    labels = {step.name: step for step in labelled.steps}
    graph = model.subgraphs[0]
    for tensor, (name, value) in matched.names.items():
        graph.tensors[tensor].name = name
        scale, zero_point = grids[value]
        _set_grid(graph.tensors[tensor], scale, zero_point, 0)
    for tensor, name in matched.constants.items():
        _fill(model, graph.tensors[tensor], steps[name].constants[0], labels[name].constants[0])
    for operator, name in matched.steps:
        operators.correct(model, operator, steps[name])
        writer = _Constants(model, operator, steps[name], labels[name])
        writer.write(grids[steps[name].inputs[0]][0], matched)
    _name_ends(graph, model.signatureDefs[0], matched, plan)
    _requantize(model, plan, matched)
    clamps.compare(model, [(operator, steps[name]) for operator, name in matched.steps])
    if plan.wide:
        int16.set_versions(model)
    if int8_io:
        _strip_float(graph, model.signatureDefs[0], matched)
    drop_unused(model)
    return flatbuffer.write(model)


def _set_grid(tensor: Any, scale: np.ndarray | float, zero_point: int, axis: int) -> None:
    schema = require("ai_edge_litert.schema_py_generated")
    scales = np.asarray(scale, np.float32).reshape(-1)
    points = np.full(scales.shape, zero_point, np.int64)
    tensor.quantization = schema.QuantizationParametersT(
        scale=scales, zeroPoint=points, quantizedDimension=axis
    )


def _fill(model: Any, tensor: Any, codes: Codes, label: Codes) -> None:
    """Writes the codes of a constant that is a tensor of its own."""
    schema = require("ai_edge_litert.schema_py_generated")
    old = flatbuffer.constant(model, tensor)
    data = None if old is None else same_layout(label.codes, old, codes.codes)
    assert data is not None  # as it was recognised
    model.buffers.append(schema.BufferT(np.frombuffer(data.tobytes(), np.uint8)))
    tensor.buffer = len(model.buffers) - 1
    tensor.type = getattr(schema.TensorType, str(data.dtype).upper())


class _Constants:
    """Writes the constant operands of one operation."""

    def __init__(self, model: Any, operator: Any, step: FrozenStep, label: FrozenStep) -> None:
        self.model = model
        self.graph = model.subgraphs[0]
        self.operator = operator
        self.step = step
        self.label = label
        self.op = flatbuffer.op_name(model, operator)

    def write(self, input_scale: float, matched: Matched) -> None:
        weights = self.op in _CHANNEL_AXIS
        slot = 0
        for place, index in enumerate(list(self.operator.inputs)):
            if index < 0 or index in matched.names:
                continue
            tensor = self.graph.tensors[index]
            old = flatbuffer.constant(self.model, tensor)
            if old is None:
                raise ValueError(
                    f"operation {self.op} of step {self.step.name!r} reads tensor {index}, "
                    "which is neither a value of the plan nor a constant"
                )
            if tensor.quantization is None or tensor.quantization.scale is None:
                self._own(place, old, f"{self.step.name}/operand_{place}")
                continue
            if weights and place == _BIAS.get(self.op, 2):
                continue
            if self.op == "PADV2":
                self._pad_value(place)
                continue
            if slot >= len(self.step.constants):
                raise ValueError(
                    f"operation {self.op} of step {self.step.name!r} has a constant operand "
                    f"{place} that the step has not: found {len(self.step.constants)} constants"
                )
            self._weight(place, old, slot, weights)
            slot += 1
        if weights:
            self._bias(input_scale)
        lowest = self.step.params.get("lowest") and self.step.zero_point != -128
        if self.op == "PAD" and lowest:
            raise ValueError(
                f"step {self.step.name!r} pads with the lowest code, but became PAD, which pads "
                "with the zero point: its `apply` must pad with a value below 0"
            )

    def _own(self, place: int, data: np.ndarray, name: str) -> Any:
        """Gives the operand a tensor and a buffer that no other operation shares."""
        schema = require("ai_edge_litert.schema_py_generated")
        types = {np.dtype(np.int8): "INT8", np.dtype(np.int32): "INT32"}
        kind = getattr(schema.TensorType, types.get(data.dtype, str(data.dtype).upper()))
        self.model.buffers.append(schema.BufferT(np.frombuffer(data.tobytes(), np.uint8)))
        tensor = schema.TensorT(
            shape=list(data.shape), type=kind, buffer=len(self.model.buffers) - 1, name=name,
            hasRank=True,
        )  # fmt: skip
        self.graph.tensors.append(tensor)
        operands = list(self.operator.inputs)
        operands += [-1] * (place + 1 - len(operands))
        operands[place] = len(self.graph.tensors) - 1
        self.operator.inputs = operands
        return tensor

    def _weight(self, place: int, old: np.ndarray, slot: int, weights: bool) -> None:
        codes, pattern = self.step.constants[slot], self.label.constants[slot].codes
        turned = (slice(None, None, -1),) * 2 if self.op == "TRANSPOSE_CONV" else ()
        data = same_layout(pattern[turned], old, codes.codes[turned])
        if data is None:
            raise ValueError(
                f"operation {self.op}: its constant of shape {list(old.shape)} is not a layout of "
                f"the constant {list(codes.codes.shape)} of step {self.step.name!r}"
            )
        name = f"{self.step.name}/weight" if weights else f"{self.step.name}/constant"
        tensor = self._own(place, data, name)
        axis = _CHANNEL_AXIS[self.op] if weights and codes.axis is not None else 0
        if codes.axis is not None and data.shape[axis] != codes.codes.shape[codes.axis]:
            raise ValueError(
                f"step {self.step.name!r} has scales along axis {codes.axis} of its constant "
                f"{list(codes.codes.shape)}; {self.op} takes one per output channel"
            )
        _set_grid(tensor, codes.scale, codes.zero_point, axis)

    def _pad_value(self, place: int) -> None:
        kind = flatbuffer.dtype(self.graph.tensors[self.operator.outputs[0]])
        code = np.iinfo(kind).min if self.step.params.get("lowest") else self.step.zero_point
        tensor = self._own(place, np.asarray(code, kind), f"{self.step.name}/constant")
        _set_grid(tensor, self.step.scale, self.step.zero_point, 0)

    def _bias(self, input_scale: float) -> None:
        output = self.graph.tensors[self.operator.outputs[0]]
        weight, *biases = self.step.constants
        if biases:
            bias = biases[0]
        else:
            scale = np.float32(input_scale) * np.asarray(weight.scale, np.float32)
            kind = np.int32 if flatbuffer.dtype(output) == np.int8 else np.int64
            bias = Codes(np.zeros(output.shape[-1], kind), scale, None)
        data = np.ascontiguousarray(bias.codes.reshape(-1))
        tensor = self._own(_BIAS.get(self.op, 2), data, f"{self.step.name}/bias")
        _set_grid(tensor, bias.scale, 0, 0)


def _name_ends(graph: Any, signature: Any, matched: Matched, plan: Frozen) -> None:
    """Names the float ends of the graph and puts the signature in the plan's order."""
    schema = require("ai_edge_litert.schema_py_generated")
    graph.name = "main"
    signature.inputs, signature.outputs = [], []
    for tensor, (name, *_) in zip(matched.inputs, plan.inputs, strict=True):
        graph.tensors[tensor].name = f"serving_default_{name}:0"
        signature.inputs.append(schema.TensorMapT(name, tensor))
    for i, tensor in enumerate(matched.outputs):
        graph.tensors[tensor].name = f"output_{i}"
        signature.outputs.append(schema.TensorMapT(f"output_{i}", tensor))
    graph.inputs, graph.outputs = list(matched.inputs), list(matched.outputs)


def _requantize(model: Any, plan: Frozen, matched: Matched) -> None:
    """Adds the int8 to int8 QUANTIZE of each requantization that the converter did not make."""
    schema = require("ai_edge_litert.schema_py_generated")
    graph, steps = model.subgraphs[0], {step.name: step for step in plan.steps}
    tensors = {name: tensor for tensor, (name, _) in matched.names.items()}

    def source(name: str) -> str:
        while name not in tensors:
            name = steps[name].inputs[0]
        return name

    readers = [(operator, steps[name].inputs) for operator, name in matched.steps]
    for operator in matched.exits:
        position = matched.outputs.index(int(operator.outputs[0]))
        readers.append((operator, (plan.outputs[position],)))
    for step in plan.steps:
        if step.kind != "requantize" or step.name in tensors:
            continue
        old = tensors[source(step.inputs[0])]
        graph.tensors.append(copy.copy(graph.tensors[old]))
        new = tensors[step.name] = len(graph.tensors) - 1
        graph.tensors[new].name = step.name
        _set_grid(graph.tensors[new], step.scale, step.zero_point, 0)
        op = schema.OperatorT(opcodeIndex=matched.entry[0].opcodeIndex, inputs=[old], outputs=[new])
        op.builtinOptionsType = schema.BuiltinOptions.QuantizeOptions
        op.builtinOptions = schema.QuantizeOptionsT()
        maker = next(i for i, maker in enumerate(graph.operators) if old in list(maker.outputs))
        graph.operators.insert(maker + 1, op)
        for reader, names in readers:
            operands = list(reader.inputs)
            for place, name in enumerate(names):
                if source(name) == step.name:
                    if operands[place] != old:
                        raise ValueError(f"{step.name!r} does not feed the operation of {names}")
                    operands[place] = new
            reader.inputs = operands


def _strip_float(graph: Any, signature: Any, matched: Matched) -> None:
    """Removes the QUANTIZE and DEQUANTIZE operations at the ends."""
    other = {op.inputs[0]: op.outputs[0] for op in matched.entry}
    other |= {op.outputs[0]: op.inputs[0] for op in matched.exits}
    ends = [*matched.entry, *matched.exits]
    graph.operators = [op for op in graph.operators if not any(op is end for end in ends)]
    graph.inputs = [other[i] for i in graph.inputs]
    graph.outputs = [other[i] for i in graph.outputs]
    for entry in [*signature.inputs, *signature.outputs]:
        entry.tensorIndex = other[entry.tensorIndex]


def drop_unused(model: Any) -> None:
    """Keeps the tensors, buffers and operator codes that are still referred to, in order.

    Args:
        model: the unpacked file, of one subgraph and one signature; it is changed.
    """
    schema = require("ai_edge_litert.schema_py_generated")
    graph, signature = model.subgraphs[0], model.signatureDefs[0]
    used = dict.fromkeys(int(i) for i in graph.inputs)
    for operator in graph.operators:
        operator.intermediates = None
        for index in [*operator.inputs, *operator.outputs]:
            if index >= 0:
                used[int(index)] = None
    place = {old: new for new, old in enumerate(used)} | {-1: -1}
    graph.tensors = [graph.tensors[i] for i in used]
    graph.inputs = [place[i] for i in graph.inputs]
    graph.outputs = [place[i] for i in graph.outputs]
    for operator in graph.operators:
        operator.inputs = [place[int(i)] for i in operator.inputs]
        operator.outputs = [place[int(i)] for i in operator.outputs]
    for entry in [*signature.inputs, *signature.outputs]:
        entry.tensorIndex = place[entry.tensorIndex]
    buffers = [schema.BufferT()]
    version = [m for m in model.metadata or [] if flatbuffer.text(m.name) == "min_runtime_version"]
    for holder in [*graph.tensors, *version]:
        data = model.buffers[holder.buffer].data
        holder.buffer = 0
        if data is not None and len(data):
            buffers.append(schema.BufferT(data))
            holder.buffer = len(buffers) - 1
    model.buffers, model.metadata, model.metadataBuffer = buffers, version, None
    codes = sorted({operator.opcodeIndex for operator in graph.operators})
    for operator in graph.operators:
        operator.opcodeIndex = codes.index(operator.opcodeIndex)
    model.operatorCodes = [model.operatorCodes[i] for i in codes]
    model.description = "compressjax"
