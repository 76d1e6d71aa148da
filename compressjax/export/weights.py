"""Stores kernels as codes in a float file: weight-only, half-precision and dynamic-range forms.

`rewrite.py` makes files whose arithmetic is on integers; here it stays float, and only constants
change. A converter is given the function with its kernels on their grids already, so each constant
of its file that is one of them, in whatever layout the converter chose, is found by its values and
gives way to its codes. Where a converter multiplied a kernel, by a batch norm or by the divisor of
a mean, the factor goes to the scales. Two forms, as LiteRT 2.3.0 was measured to run them:

- behind a DEQUANTIZE, which XNNPACK folds when the model is loaded: int8 and float16. It does not
  fold that of int4, and leaves the layer behind to the builtin kernels: 3 to 40 times slower.
- as the operand of a CONV_2D, TRANSPOSE_CONV or FULLY_CONNECTED, which then quantizes its other
  operand at every call ("dynamic range"); of int4 only FULLY_CONNECTED, whose speed stays that of
  int8. The builtin kernel that DEPTHWISE_CONV_2D has for it is 6 to 8 times slower than float, and
  reads a scale for each channel whether there is one or not, so it gets the first form.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any, NamedTuple

import numpy as np

from compressjax.export import flatbuffer, nibbles
from compressjax.export._require import require
from compressjax.export.operators import opcode
from compressjax.export.rewrite import drop_unused
from compressjax.quant.kernels import FrozenKernels, Stored

_LARGEST_INT4 = 7
_ROUNDED = 4 * 2.0**-23  # what a product or two in float32 may lose
# Since which version these take a float input and an int8 weight with a scale for each channel.
_HYBRID_VERSION = {"CONV_2D": 5, "FULLY_CONNECTED": 12, "TRANSPOSE_CONV": 3}
_DEQUANTIZE_VERSION = {"INT4": 6, "INT8": 5, "FLOAT16": 3}


class _Constant(NamedTuple):
    """What takes the place of a float constant.

    Attributes:
      data: int8 codes, or float16.
      scale: `[O]` or `[1]`; `None` for floats.
      axis: of the scales.
    """

    data: np.ndarray
    scale: np.ndarray | None = None
    axis: int = 0


def store(model: bytes, frozen: FrozenKernels, *, int4: bool) -> bytes:
    """Stores the kernels of a converted function as codes.

    Args:
        model: what a converter made of `frozen.fn`.
        frozen: the function and its kernels.
        int4: store codes of at most 4 bits in half a byte each.

    Returns:
        The smaller .tflite.

    Raises:
        ValueError: a kernel is not in the file as it was given to the converter, or the model
            quantizes the other operand of a layer that LiteRT runs on floats.
    """
    unpacked = flatbuffer.read(model)
    graph = unpacked.subgraphs[0]
    places: dict[int, dict[str, _Constant]] = {}
    left = dict(frozen.kernels)
    for scaled in (False, True):  # as they are, then those that the converter multiplied
        for index, tensor in enumerate(graph.tensors):
            values = flatbuffer.constant(unpacked, tensor)
            if index in places or values is None or values.dtype != np.float32:
                continue
            found = {}  # several, where a kernel is read twice or two are equal
            for name, kernel in (left if scaled else frozen.kernels).items():
                constant = _laid_out(kernel, values, scaled=scaled)
                if constant is not None:
                    found[name] = constant
            if found:
                places[index] = found
            for name in found:
                left.pop(name, None)
    if left:
        name, kernel = next(iter(left.items()))
        raise ValueError(
            f"no constant of the converted file has the values of kernel {name!r} "
            f"{list(kernel.values.shape)}: the converter changed it. Export through the other "
            "converter, or leave this kernel float with a rule of the spec."
        )
    whole = not any(kernel.dynamic for kernel in frozen.kernels.values())
    for index, found in places.items():
        hybrid = _hybrid(unpacked, index, found, frozen)
        constant = next(iter(found.values()))
        _put(unpacked, index, constant, hybrid, int4=int4 and (whole or bool(hybrid)))
    drop_unused(unpacked)
    return flatbuffer.write(unpacked)


def _laid_out(kernel: Stored, values: np.ndarray, *, scaled: bool) -> _Constant | None:
    """A kernel in the layout of a constant that has its values; `None` where no layout fits."""
    if values.size != kernel.values.size:
        return None
    backwards = kernel.values.ndim == 4  # as transposed convolutions read their windows
    for turned, order in itertools.product(
        [(), (slice(None, None, -1),) * 2][: 1 + backwards],
        itertools.permutations(range(kernel.values.ndim)),
    ):
        moved = kernel.values[turned].transpose(order).reshape(values.shape)
        factor = _factor(moved, values) if scaled else _one(moved, values)
        if factor is None:
            continue
        if kernel.codes is None or kernel.scale is None:
            return _Constant(values.astype(np.float16))
        codes, scale = (
            x[turned].transpose(order).reshape(values.shape) for x in (kernel.codes, kernel.scale)
        )
        return _quantized(codes, scale * factor)
    return None


def _one(moved: np.ndarray, values: np.ndarray) -> np.ndarray | None:
    return np.ones((), np.float32) if np.array_equal(moved, values) else None


def _factor(moved: np.ndarray, values: np.ndarray) -> np.ndarray | None:
    """By what a kernel was multiplied, as one number or along one axis; `None` if it was not."""
    wide, target = moved.astype(np.float64), values.astype(np.float64)
    everything = tuple(range(values.ndim))
    for kept in [None, *everything]:
        axes = tuple(axis for axis in everything if axis != kept)
        if kept is not None and values.shape[kept] == values.size:
            continue  # any numbers are a multiple of any others then
        energy = (wide**2).sum(axes, keepdims=True)
        factor = (wide * target).sum(axes, keepdims=True) / np.where(energy == 0, 1, energy)
        if np.allclose(wide * factor, target, rtol=_ROUNDED, atol=0) and (factor != 0).any():
            return np.where(energy == 0, 1, factor).astype(np.float32)
    return None


def _quantized(codes: np.ndarray, scale: np.ndarray) -> _Constant | None:
    """Codes with one scale along one axis; `None` where the scales vary along several."""
    codes, scale = np.where(scale < 0, -codes, codes), np.abs(scale)
    for axis in range(codes.ndim):
        line = scale[tuple(slice(None) if i == axis else 0 for i in range(codes.ndim))]
        wide = line.reshape([-1 if i == axis else 1 for i in range(codes.ndim)])
        if (scale == wide).all():
            same = bool((line == line[0]).all())
            return _Constant(codes, line[:1] if same else line, 0 if same else axis)
    return None


def _hybrid(
    model: Any, index: int, found: dict[str, _Constant], frozen: FrozenKernels
) -> list[Any]:
    """The layers that take the codes of a constant themselves, all of its readers or none.

    Raises:
        ValueError: the model quantizes the other operand of a layer that LiteRT runs on floats.
    """
    if not any(frozen.kernels[name].dynamic for name in found):
        return []
    graph, constant = model.subgraphs[0], next(iter(found.values()))
    readers = [operator for operator in graph.operators if index in operator.inputs]
    if all(_takes(model, operator, index, constant) for operator in readers):
        return readers
    if all(frozen.kernels[name].dynamic for name in found):
        kinds = sorted({flatbuffer.op_name(model, operator) for operator in readers})
        raise ValueError(
            f"kernel {next(iter(found))!r} is multiplied by codes in the model, but in the file "
            f"{kinds} cannot take it so. It needs an integer grid with a scale for each output, "
            "and no other use: leave it float with a rule of the spec, or use quant.weight_only()."
        )
    return []


def _put(model: Any, index: int, constant: _Constant, hybrid: list[Any], *, int4: bool) -> None:
    """Adds the codes, and has them read in place of the floats."""
    graph = model.subgraphs[0]
    kinds = {flatbuffer.op_name(model, operator) for operator in hybrid}
    packed = int4 and constant.scale is not None and kinds <= {"FULLY_CONNECTED"}
    packed = packed and np.abs(constant.data.astype(np.int16)).max(initial=0) <= _LARGEST_INT4
    kind = "FLOAT16" if constant.scale is None else "INT4" if packed else "INT8"
    if hybrid and constant.scale is not None:  # a layer without a scale for each reads beyond them
        outputs = int(graph.tensors[index].shape[0])
        constant = constant._replace(scale=np.broadcast_to(constant.scale, outputs))
    codes = _add(model, graph.tensors[index], constant, kind)
    for operator in hybrid:
        operator.inputs = [codes if i == index else int(i) for i in operator.inputs]
        name = flatbuffer.op_name(model, operator)
        least = max(_HYBRID_VERSION[name], model.operatorCodes[operator.opcodeIndex].version)
        operator.opcodeIndex = opcode(model, name, version=least)
        if name == "FULLY_CONNECTED":
            operator.builtinOptions.asymmetricQuantizeInputs = True
    if not hybrid:
        graph.tensors[index].buffer = 0
        graph.tensors[codes].name = f"{flatbuffer.text(graph.tensors[index].name)}/codes"
        version = _DEQUANTIZE_VERSION[kind]
        schema = require("ai_edge_litert.schema_py_generated")
        unpack = schema.OperatorT(
            opcodeIndex=opcode(model, "DEQUANTIZE", version=version),
            inputs=[codes],
            outputs=[index],
        )
        graph.operators.insert(0, unpack)


def _add(model: Any, old: Any, constant: _Constant, kind: str) -> int:
    """Adds a constant tensor of the shape of another one, and gives its index."""
    schema = require("ai_edge_litert.schema_py_generated")
    data = nibbles.pack(constant.data) if kind == "INT4" else np.ascontiguousarray(constant.data)
    model.buffers.append(schema.BufferT(np.frombuffer(data.tobytes(), np.uint8)))
    tensor = copy.copy(old)
    tensor.buffer = len(model.buffers) - 1
    tensor.type = getattr(schema.TensorType, kind)
    if constant.scale is not None:
        tensor.quantization = schema.QuantizationParametersT(
            scale=np.ascontiguousarray(constant.scale, np.float32),
            zeroPoint=np.zeros(len(constant.scale), np.int64),
            quantizedDimension=constant.axis,
        )
    model.subgraphs[0].tensors.append(tensor)
    return len(model.subgraphs[0].tensors) - 1


def _takes(model: Any, operator: Any, index: int, constant: _Constant) -> bool:
    """Whether a layer takes the codes themselves as its weight."""
    if flatbuffer.op_name(model, operator) not in _HYBRID_VERSION or constant.scale is None:
        return False
    return [int(i) for i in operator.inputs[:2]].index(index) == 1 and constant.axis == 0
