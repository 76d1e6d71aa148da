"""Checks what the numbers in a .tflite mean, before a C++ runtime is given them.

LiteRT trusts its input: an index that points nowhere ends the process. `structure.py` has found the
tables to lie inside of the file, and `flatbuffer.py` has unpacked them; this checks that indices,
shapes, sizes and scales fit together, and `operands.py` that each operator has what it takes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from compressjax.export import operands
from compressjax.export._require import require

_POINTS = {"INT8": (-128, 127), "UINT8": (0, 255), "INT4": (-8, 7)}  # 0 for the others
_MAX_RATIO = 2.0**18
_ITEM_BITS = {
    "FLOAT32": 32, "FLOAT16": 16, "INT32": 32, "UINT8": 8, "INT64": 64, "BOOL": 8, "INT16": 16,
    "INT8": 8, "FLOAT64": 64, "UINT64": 64, "UINT32": 32, "UINT16": 16, "INT4": 4,
}  # fmt: skip


def bring_in(model: Any, data: bytes) -> None:
    """Gives buffers the data that lies behind the FlatBuffer, as large files keep it.

    Args:
        model: a `ModelT` of LiteRT's schema; it is changed.
        data: the file that it was unpacked from.

    Raises:
        ValueError: a buffer or an operator says that its data lies outside of the file.
    """
    for number, buffer in enumerate(model.buffers or []):
        if not buffer.offset and not buffer.size:
            continue
        end = buffer.offset + buffer.size
        if buffer.offset < 8 or end > len(data) or (buffer.data is not None and len(buffer.data)):
            raise ValueError(
                f"damaged .tflite: buffer {number} has its data at bytes {buffer.offset} to {end} "
                f"of a file of {len(data)} bytes"
            )
        buffer.data = np.frombuffer(data, np.uint8, buffer.size, buffer.offset)
        buffer.offset = buffer.size = 0
    for graph in model.subgraphs or []:
        for number, operator in enumerate(graph.operators or []):
            if operator.largeCustomOptionsOffset or operator.largeCustomOptionsSize:
                raise ValueError(
                    f"unsupported .tflite: operator {number} keeps options behind the FlatBuffer"
                )


def semantics(model: Any) -> None:
    """Checks that the indices, shapes, sizes and scales of an unpacked model fit together.

    Args:
        model: a `ModelT` of LiteRT's schema, whose bytes passed `structure.check`.

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
        operands.check_types(name, operator, tensors, here)
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
        if name == "DEPTHWISE_CONV_2D":
            _check_hybrid(tensors[reads[0]], tensors[reads[1]], here)
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


def _check_hybrid(x: Any, weight: Any, where: str) -> None:
    """LiteRT's float depthwise kernel for integer weights reads one scale for each channel."""
    schema = require("ai_edge_litert.schema_py_generated")
    kinds = schema.TensorType
    if x.type != kinds.FLOAT32 or weight.type not in (kinds.INT8, kinds.INT4, kinds.UINT8):
        return
    grid = weight.quantization
    scales = 0 if grid is None or grid.scale is None else len(grid.scale)
    channels = 0 if weight.shape is None else int(weight.shape[-1])
    if scales != channels:
        raise ValueError(
            f"damaged .tflite: {where} has float inputs and integer weights of {channels} channels "
            f"with {scales} scales; LiteRT would read past them"
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
