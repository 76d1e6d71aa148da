"""Checks the bytes of a .tflite before a C++ runtime is given them.

LiteRT trusts its input: an offset that points outside the file ends the process. `flatbuffer.py`
reads and writes models; this file only decides whether bytes are a model at all, in two passes:
`structure` walks every table and vector of the FlatBuffer within its bounds, `semantics` checks
that the numbers in it (indices, shapes, sizes) fit together.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np

from compressjax.export import operands
from compressjax.export._require import require

# Field number -> width of a scalar in bytes, "text", "bytes<width>", a table or [tables].
_MODEL: dict[str, dict[int, int | str]] = {
    "Model": {
        0: 4, 1: "[OperatorCode]", 2: "[SubGraph]", 3: "text", 4: "[Buffer]", 5: "bytes4",
        6: "[Metadata]", 7: "[SignatureDef]",
    },
    "OperatorCode": {0: 1, 1: "text", 2: 4, 3: 4},
    "SubGraph": {0: "[Tensor]", 1: "bytes4", 2: "bytes4", 3: "[Operator]", 4: "text", 5: 4},
    "Tensor": {
        0: "bytes4", 1: 1, 2: 4, 3: "text", 4: "Quantization", 5: 1, 6: "Sparsity", 7: "bytes4",
        8: 1, 10: 4,
    },
    "Sparsity": {0: "bytes4", 1: "bytes4", 2: "[Dimension]"},
    "Dimension": {0: 1, 1: 4, 2: 1, 3: "Indices", 4: 1, 5: "Indices"},
    "Int32Vector": {0: "bytes4"},
    "Uint16Vector": {0: "bytes2"},
    "Uint8Vector": {0: "bytes1"},
    "Quantization": {0: "bytes4", 1: "bytes4", 2: "bytes4", 3: "bytes8", 4: 1, 6: 4},
    "Operator": {
        0: 4, 1: "bytes4", 2: "bytes4", 3: 1, 4: "Options", 5: "bytes1", 6: 1, 7: "bytes1",
        8: "bytes4", 9: 8, 10: 8, 13: 4,
    },
    "Buffer": {0: "bytes1", 1: 8, 2: 8},
    "Metadata": {0: "text", 1: 4},
    "SignatureDef": {0: "[TensorMap]", 1: "[TensorMap]", 2: "text", 4: 4},
    "TensorMap": {0: "text", 1: 4},
    "Options": {},
    "ReshapeOptions": {0: "bytes4"},
    "SqueezeOptions": {0: "bytes4"},
    "FullyConnectedOptions": {5: "bytes1"},
}  # fmt: skip
_OUTSIDE = "Files of more than 2 GB keep data so: export a smaller model, or its parts."
_STABLEHLO = (
    "LiteRT runs it on slow reference kernels, if at all, and no delegate takes it: "
    "compressjax.export.check names the operation of the model and what to write instead."
)
# Parts of the format that no file for a phone's CPU kernels needs, and that cannot be checked;
# with what to do.
_REFUSED: dict[str, dict[int, tuple[str, str]]] = {
    "Model": {8: ("external buffer groups", _OUTSIDE), 9: ("external buffers", _OUTSIDE)},
    "Tensor": {9: ("a tensor of several types", "Convert the model without them.")},
    "Quantization": {5: ("custom quantization", "Quantize with scales and zero points.")},
    "Operator": {
        11: ("an operation of StableHLO", _STABLEHLO),
        12: ("an operation of StableHLO", _STABLEHLO),
    },
}
_INDEX_VECTORS = {1: "Int32Vector", 2: "Uint16Vector", 3: "Uint8Vector"}
_POINTS = {"INT8": (-128, 127), "UINT8": (0, 255), "INT4": (-8, 7)}  # 0 for the others
_MAX_RATIO = 2.0**18
_CONTROL_FLOW = {
    "IfOptions": "IF",
    "WhileOptions": "WHILE",
    "CallOptions": "CALL",
    "CallOnceOptions": "CALL_ONCE",
    "VarHandleOptions": "VAR_HANDLE",
}
_ITEM_BITS = {
    "FLOAT32": 32, "FLOAT16": 16, "INT32": 32, "UINT8": 8, "INT64": 64, "BOOL": 8, "INT16": 16,
    "INT8": 8, "FLOAT64": 64, "UINT64": 64, "UINT32": 32, "UINT16": 16, "INT4": 4,
}  # fmt: skip


class _Bytes:
    """Walks the tables of a FlatBuffer, refusing every step that leaves it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.tables_left = len(data) // 4  # a table takes 4 bytes or more

    def fail(self, where: str, what: str) -> ValueError:
        return ValueError(
            f"damaged .tflite: {where} {what} (file of {len(self.data)} bytes). "
            "Export or download the file again."
        )

    def unsupported(self, where: str, what: str, advice: str) -> ValueError:
        return ValueError(f"unsupported .tflite: {where} {what}. {advice}")

    def number(self, code: str, at: int, where: str) -> int:
        if at < 0 or at + struct.calcsize(code) > len(self.data):
            raise self.fail(where, f"is at byte {at}, outside the file")
        return struct.unpack_from("<" + code, self.data, at)[0]

    def table(self, at: int, kind: str, where: str) -> None:
        self.tables_left -= 1
        if self.tables_left < 0:
            raise self.fail(where, "belongs to more tables than the file can hold")
        fields, size = self.fields(at, where)
        for index, offset in enumerate(fields):
            if offset == 0:
                continue
            if index in _REFUSED.get(kind, {}):
                part, advice = _REFUSED[kind][index]
                raise self.unsupported(where, f"uses {part}, which is not supported", advice)
            form = _MODEL[kind].get(index, 1)
            width = form if isinstance(form, int) else 4
            if offset < 4 or offset + width > size:
                raise self.fail(f"{where}, field {index},", "lies outside its table")
            if form == "Options":
                self.options(at, at + offset, fields, where)
            elif form == "Indices":
                number = self.number("B", at + fields[index - 1], where) if fields[index - 1] else 0
                if number not in _INDEX_VECTORS:
                    raise self.fail(where, f"has indices of the unknown type {number}")
                self.follow(at + offset, _INDEX_VECTORS[number], f"{where}, field {index},")
            elif isinstance(form, str):
                self.follow(at + offset, form, f"{where}, field {index},")

    def fields(self, at: int, where: str) -> tuple[tuple[int, ...], int]:
        vtable = at - self.number("i", at, where)
        length = self.number("H", vtable, f"the layout of {where}")
        size = self.number("H", vtable + 2, f"the layout of {where}")
        if length < 4 or length % 2 or size < 4 or vtable + length > len(self.data):
            raise self.fail(f"the layout of {where}", "is not a FlatBuffer table")
        if at + size > len(self.data):
            raise self.fail(where, "runs past the end")
        return struct.unpack_from(f"<{length // 2 - 2}H", self.data, vtable + 4), size

    def follow(self, at: int, form: str, where: str) -> None:
        target = at + self.number("I", at, where)
        if form in _MODEL:
            self.table(target, form, where)
            return
        count = self.number("I", target, where)
        vector = form.startswith("[")
        width = 4 if vector else int(form.removeprefix("bytes")) if form != "text" else 1
        if target + 4 + count * width > len(self.data):
            raise self.fail(where, f"of {count} items runs past the end")
        if form == "text":
            self.text(target + 4, count, where)
        if vector:
            for i in range(count):
                entry = target + 4 + 4 * i
                child = entry + self.number("I", entry, where)
                self.table(child, form[1:-1], f"{form[1:-1]} {i}")

    def text(self, at: int, count: int, where: str) -> None:
        try:
            self.data[at : at + count].decode()
        except UnicodeDecodeError as error:
            raise self.fail(where, "is not UTF-8 text") from error

    def options(self, table: int, at: int, fields: tuple[int, ...], where: str) -> None:
        schema = require("ai_edge_litert.schema_py_generated")
        number = self.number("B", table + fields[3], where) if fields[3] else 0
        names = {value: name for name, value in vars(schema.BuiltinOptions).items()}
        name = names.get(number)
        if not isinstance(name, str) or number == 0:
            raise self.fail(where, f"has options of the unknown type {number}")
        reader = getattr(schema, name)
        vectors = any(method.endswith("Length") for method in vars(reader))
        if name in _CONTROL_FLOW:
            raise self.unsupported(
                where,
                f"is {_CONTROL_FLOW[name]}, and this reader does not follow control flow or state",
                "LiteRT may run the file all the same. To have it read here, write loops out "
                "(lax.scan with unroll=True, or a Python loop), choose with jnp.where in place of "
                "lax.cond, and export again.",
            )
        if vectors and name not in _MODEL:
            raise self.unsupported(
                where,
                f"has {name}, whose lists are not checked, which is not supported",
                "Replace the operation and export again.",
            )
        self.follow(at, name if name in _MODEL else "Options", f"the options of {where}")


def structure(data: bytes) -> None:
    """Checks that every table, vector and string of a .tflite lies inside the file.

    Args:
        data: the file.

    Raises:
        TypeError: `data` is not bytes.
        ValueError: the file is truncated or damaged, or uses a part of the format that cannot be
            checked (external buffers, control flow, StableHLO operations). What follows the
            FlatBuffer in the file, such as the ZIP of a model's associated files, is not looked at.

    Example:
        >>> structure(b'not a model')
        Traceback (most recent call last):
        ...
        ValueError: not a .tflite: the file has 11 bytes and no identifier TFL3 at byte 4...
    """
    if not isinstance(data, bytes):
        raise TypeError(f"a model is bytes (the content of a .tflite), found {type(data).__name__}")
    if len(data) < 16 or data[4:8] != b"TFL3":
        raise ValueError(
            f"not a .tflite: the file has {len(data)} bytes and no identifier TFL3 at byte 4. "
            "Give the bytes that compressjax.export.tflite returned."
        )
    walk = _Bytes(data)
    walk.table(walk.number("I", 0, "the root"), "Model", "the model")


def semantics(model: Any) -> None:
    """Checks that the indices, shapes, sizes and scales of an unpacked model fit together.

    Args:
        model: a `ModelT` of LiteRT's schema, whose bytes passed `structure`.

    Raises:
        ValueError: something does not fit; the message names it.
    """
    if model.version != 3:
        raise ValueError(f"the .tflite has version {model.version}; LiteRT reads version 3")
    if not model.subgraphs or not model.buffers:
        raise ValueError("damaged .tflite: it has no subgraph or no buffers")
    codes = model.operatorCodes or []
    for number, graph in enumerate(model.subgraphs):
        where = f"subgraph {number}"
        for index, tensor in enumerate(graph.tensors or []):
            _check_tensor(tensor, model.buffers, f"{where}, tensor {index} ({_text(tensor.name)})")
        _check_operators(graph, model.buffers, codes, where)
    for signature in model.signatureDefs or []:
        where = f"signature {_text(signature.signatureKey)}"
        _in_range([signature.subgraphIndex], len(model.subgraphs), f"{where}: subgraph")
        tensors = len(model.subgraphs[signature.subgraphIndex].tensors or [])
        maps = [*(signature.inputs or []), *(signature.outputs or [])]
        _in_range([m.tensorIndex for m in maps], tensors, f"{where}: tensor")
    for metadata in model.metadata or []:
        _in_range([metadata.buffer], len(model.buffers), f"metadata {_text(metadata.name)}: buffer")


def _text(name: bytes | str | None) -> str:
    return name.decode() if isinstance(name, bytes) else name or ""


def _in_range(indices: Any, count: int, where: str, *, lowest: int = 0) -> None:
    for index in [] if indices is None else indices:
        if not lowest <= index < count:
            raise ValueError(f"damaged .tflite: {where} {index} is not one of the {count}")


def _check_operators(graph: Any, buffers: list[Any], codes: list[Any], where: str) -> None:
    """Every operation reads constants, inputs or earlier results, and writes new tensors."""
    names = [operands.name(code) for code in codes]
    tensors = graph.tensors or []
    constants = {i for i, t in enumerate(tensors) if _data(buffers, t) is not None or t.isVariable}
    # What has no elements, such as the shape of a scalar, may be a constant without data.
    empty = {i for i, t in enumerate(tensors) if t.shape is not None and 0 in t.shape}
    ready = constants | empty
    _in_range(graph.inputs, len(tensors), f"{where}: input tensor")
    _in_range(graph.outputs, len(tensors), f"{where}: output tensor")
    ready.update(int(i) for i in ([] if graph.inputs is None else graph.inputs))
    for index, operator in enumerate(graph.operators or []):
        here = f"{where}, operator {index}"
        _in_range([operator.opcodeIndex], len(codes), f"{here}: operator code")
        _in_range(operator.inputs, len(tensors), f"{here}: input tensor", lowest=-1)
        _in_range(operator.outputs, len(tensors), f"{here}: output tensor")
        _in_range(operator.intermediates, len(tensors), f"{here}: intermediate tensor")
        name = names[operator.opcodeIndex]
        operands.check(name, operator, here)
        reads = [int(i) for i in ([] if operator.inputs is None else operator.inputs) if i >= 0]
        for read in reads:
            if read not in ready:
                raise ValueError(f"damaged .tflite: {here} reads tensor {read} before it exists")
            if tensors[read].sparsity is not None and name != "DENSIFY":
                raise ValueError(
                    f"{here} reads the sparse tensor {read} without a DENSIFY, which LiteRT's "
                    "delegate would take for a dense one: not supported"
                )
        written = {int(i) for i in ([] if operator.outputs is None else operator.outputs)}
        if written & constants:
            raise ValueError(f"damaged .tflite: {here} writes a constant tensor")
        ready |= written
        if name == "DENSIFY" and _forms(tensors, {*reads} | written) != 1:
            raise ValueError(f"damaged .tflite: {here} unpacks to another type or shape")
        _check_ratio(tensors, reads, written, here)
    for output in [] if graph.outputs is None else graph.outputs:
        if tensors[int(output)].sparsity is not None:
            raise ValueError(f"damaged .tflite: {where}: output tensor {output} is sparse")
        if int(output) not in ready:
            raise ValueError(f"damaged .tflite: {where}: nothing writes output tensor {output}")


def _forms(tensors: list[Any], indices: set[int]) -> int:
    found = [tensors[i] for i in indices]
    return len({(t.type, None if t.shape is None else tuple(t.shape)) for t in found})


def _check_ratio(tensors: list[Any], reads: list[int], writes: set[int], where: str) -> None:
    """LiteRT's ADD ends the process where an operand's scale is 2**19 times its output's."""

    def scales(indices: Iterable[int]) -> list[float]:
        grids = [tensors[i].quantization for i in indices]
        return [float(q.scale.max()) for q in grids if q is not None and q.scale is not None]

    coarse, fine = max(scales(reads), default=0.0), min(scales(writes), default=math.inf)
    if coarse > _MAX_RATIO * fine or coarse > 2.0**100:
        raise ValueError(
            f"damaged .tflite: {where} takes values of scale {coarse:.3g} to scale {fine:.3g}, "
            "which are too far apart for LiteRT"
        )


def _data(buffers: list[Any], tensor: Any) -> Any:
    data = buffers[tensor.buffer].data
    return data if data is not None and len(data) else None


def _check_tensor(tensor: Any, buffers: list[Any], where: str) -> None:
    schema = require("ai_edge_litert.schema_py_generated")
    _in_range([tensor.buffer], len(buffers), f"{where}: buffer")
    shape = [] if tensor.shape is None else [int(size) for size in tensor.shape]
    if any(size < 0 for size in shape) or math.prod(shape) >= 1 << 31:
        raise ValueError(f"damaged .tflite: {where} has the shape {shape}")
    names = {value: name for name, value in vars(schema.TensorType).items()}
    kind = names.get(tensor.type)
    data = _data(buffers, tensor)
    if buffers[tensor.buffer].offset or buffers[tensor.buffer].size:
        raise ValueError(
            f"unsupported .tflite: {where} keeps its data outside the FlatBuffer. {_OUTSIDE}"
        )
    if data is not None:
        if kind not in _ITEM_BITS:
            raise ValueError(f"{where} is a constant of type {kind or tensor.type}: not supported")
        stored = math.prod(shape)
        if tensor.sparsity is not None:
            stored = _stored_values(tensor.sparsity, shape, where)
        expected = -(-stored * _ITEM_BITS[kind] // 8)
        if len(data) != expected:
            raise ValueError(
                f"damaged .tflite: {where} of shape {shape} and type {kind} needs {expected} "
                f"bytes, its buffer has {len(data)}"
            )
    elif tensor.sparsity is not None:
        raise ValueError(f"damaged .tflite: {where} is sparse, but has no data")
    _check_quantization(tensor.quantization, shape, _POINTS.get(kind or "", (0, 0)), where)


def _stored_values(sparsity: Any, shape: list[int], where: str) -> int:
    """Counts the values of a sparse constant, which LiteRT unpacks without looking at its indices.

    The levels are the axes in their order of traversal, then the axes of a block, which LiteRT can
    only unpack where they are dense.
    """
    rank, levels = len(shape), sparsity.dimMetadata or []
    order = [] if sparsity.traversalOrder is None else [int(i) for i in sparsity.traversalOrder]
    blocks = [] if sparsity.blockMap is None else [int(i) for i in sparsity.blockMap]
    sizes, inner = list(shape), list(range(rank, rank + len(blocks)))
    fits = sorted(order[:rank]) == list(range(rank)) and order[rank:] == inner
    if not fits or len(levels) != len(order) or len({*blocks} & {*range(rank)}) != len(blocks):
        raise ValueError(
            f"damaged .tflite: {where} of shape {shape} is sparse with {len(levels)} levels, "
            f"the order {order} and the blocked axes {blocks}"
        )
    for axis, level in zip(blocks, levels[rank:], strict=True):
        if level.format != 0 or level.denseSize < 1 or sizes[axis] % level.denseSize:
            raise ValueError(f"damaged .tflite: {where} has blocks that do not divide axis {axis}")
        sizes[axis] //= level.denseSize
    count = 1
    for axis, level in zip(order, levels, strict=True):
        if level.format == 0:
            if axis < rank and level.denseSize != sizes[axis]:
                raise ValueError(
                    f"damaged .tflite: {where} is sparse with {level.denseSize} entries on axis "
                    f"{axis}, expected {sizes[axis]}"
                )
            count *= level.denseSize
            continue
        segments, indices = _places(level.arraySegments), _places(level.arrayIndices)
        ends = len(segments) == count + 1 and segments[0] == 0 and segments[-1] == len(indices)
        inside = ((indices >= 0) & (indices < sizes[axis])).all()
        if not (ends and inside and (np.diff(segments) >= 0).all()):
            raise ValueError(
                f"damaged .tflite: {where} is sparse with indices that leave axis {axis}"
            )
        count = len(indices)
    return count


def _places(vector: Any) -> np.ndarray:
    values = None if vector is None else vector.values
    return np.asarray([] if values is None else values, np.int64)


def _check_quantization(
    quantization: Any, shape: list[int], bounds: tuple[int, int], where: str
) -> None:
    if quantization is None or quantization.scale is None:
        return
    scale = np.asarray(quantization.scale)
    points = [] if quantization.zeroPoint is None else quantization.zeroPoint
    if not (np.isfinite(scale) & (scale > 0)).all():
        raise ValueError(f"damaged .tflite: {where} has a scale that is not positive and finite")
    if len(points) not in (0, 1, len(scale)):
        raise ValueError(
            f"damaged .tflite: {where} has {len(scale)} scales and {len(points)} zero points"
        )
    for point in points:
        if not bounds[0] <= point <= bounds[1]:
            raise ValueError(f"damaged .tflite: {where} has the zero point {point}")
    if len(scale) > 1:
        axis = quantization.quantizedDimension
        if not 0 <= axis < len(shape) or shape[axis] != len(scale):
            raise ValueError(
                f"damaged .tflite: {where} has {len(scale)} scales on axis {axis} of {shape}"
            )
