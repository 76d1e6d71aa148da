"""Stores the zeros of pruned weights once, as TFLite's sparse constants.

`rewrite.py` decides which numbers a file holds; this file decides only how they are stored. A
weight becomes the values that are not zero and the places they go to (TFLite's
`SparsityParameters`), and a DENSIFY in front of its layer unpacks it when the model is loaded. The
numbers stay the same and so do the results; the file is smaller, the memory of the loaded model
and its speed are not better: LiteRT computes with the unpacked weight.

LiteRT has sparse kernels for FULLY_CONNECTED, but its default delegate (XNNPACK) takes such a layer
and reads the packed values as if they were dense, so no file made here relies on them. The delegate
also refuses an int8 FULLY_CONNECTED behind a DENSIFY. What works, with the delegate and without, is
CONV_2D in float32 and int8 and FULLY_CONNECTED in float32; other weights stay dense.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np

from compressjax.export import flatbuffer
from compressjax.export._require import require
from compressjax.export.operators import opcode

_READERS = {"CONV_2D": (np.float32, np.int8), "FULLY_CONNECTED": (np.float32,)}
_BLOCKS = (1, 2, 4, 8, 16)
_OVERHEAD = 256  # bytes of the tables that a sparse constant adds to a file, about


class Form(NamedTuple):
    """How a weight is stored.

    Attributes:
        axis: the axis whose places are written down.
        block: values along `axis` that are kept or dropped together.
    """

    axis: int
    block: int


class Packed(NamedTuple):
    """A weight without its zeros, as a compressed sparse row matrix.

    The rows run over all axes but `form.axis`, in their order; the columns are the blocks of it.

    Attributes:
        form: how it is stored.
        values: `[N, block]`, the blocks that hold something else than zeros, row by row.
        segments: integers `[rows + 1]`, where each row starts in `values`.
        indices: integers `[N]`, the column of each block.
    """

    form: Form
    values: np.ndarray
    segments: np.ndarray
    indices: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes of the values and their places, in the narrowest integers that TFLite has."""
        places = _narrow(self.segments).nbytes + _narrow(self.indices).nbytes
        return self.values.nbytes + places


def pack(weight: np.ndarray, form: Form) -> Packed:
    """Drops the blocks of a weight that are all zeros.

    Args:
        weight: any shape of at least one axis; `form.block` divides `form.axis`.
        form: how to store it.

    Returns:
        The packed weight. A negative zero, as a product with a mask leaves it, is a zero.

    Raises:
        ValueError: the weight has no such axis, or the block does not divide it.

    Example:
        >>> packed = pack(np.array([[0, 5, 0], [0, 0, 0], [7, 0, 9]], np.int8), Form(1, 1))
        >>> packed.values.ravel(), packed.segments, packed.indices
        (array([5, 7, 9], dtype=int8), array([0, 1, 1, 3]), array([1, 0, 2]))
    """
    axis, block = form
    if not 0 <= axis < weight.ndim or block < 1 or weight.shape[axis] % block:
        raise ValueError(
            f"a weight of shape {list(weight.shape)} has no blocks of {block} on axis {axis}: "
            "choose an axis it has and a block that divides it"
        )
    rows = np.moveaxis(weight, axis, -1)
    blocks = np.ascontiguousarray(rows).reshape(-1, weight.shape[axis] // block, block)
    keep = (blocks != 0).any(-1)
    segments = np.concatenate([[0], np.cumsum(keep.sum(-1))])
    return Packed(form, blocks[keep], segments, np.nonzero(keep)[1])


def smallest(weight: np.ndarray) -> Packed | None:
    """Packs a weight in the form that takes the fewest bytes.

    Args:
        weight: float or int8, any shape.

    Returns:
        The packed weight, or `None` where the dense one takes no more bytes.
    """
    if weight.ndim < 2 or not weight.size:
        return None
    forms = [
        Form(axis, block)
        for axis in (weight.ndim - 1, 0)
        for block in _BLOCKS
        if weight.shape[axis] % block == 0
    ]
    best = min((pack(weight, form) for form in forms), key=lambda packed: packed.nbytes)
    return best if best.nbytes + _OVERHEAD < weight.nbytes else None


def sparsify(model: bytes) -> bytes:
    """Stores the weights of a .tflite sparse where that makes the file smaller.

    The model computes the same: a DENSIFY unpacks each weight when the file is loaded, equal to
    the bit but for negative zeros, which become positive.
    LiteRT runs the unpacked weights, so neither latency nor memory gets better.

    Args:
        model: the .tflite.

    Returns:
        The smaller file, or `model` itself where nothing gains.

    Raises:
        TypeError: `model` is not bytes.
        ValueError: the file is damaged.

    Example:
        >>> import jax.numpy as jnp
        >>> from compressjax.export.tflite import tflite
        >>> def apply(variables, x):
        ...     return x @ variables['kernel']
        >>> model = tflite(apply, {'kernel': jnp.eye(64)}, jnp.ones((1, 64)), via='litert')
        >>> smaller = sparsify(model)
        >>> flatbuffer.ops(smaller), len(smaller) < len(model) / 4
        (['DENSIFY', 'FULLY_CONNECTED'], True)
    """
    unpacked = flatbuffer.read(model)
    for graph in unpacked.subgraphs:
        for index in _weights(unpacked, graph):
            weight = flatbuffer.constant(unpacked, graph.tensors[index])
            packed = None if weight is None else smallest(weight)
            if packed is not None:
                _store(unpacked, graph, index, packed)
    _drop_buffers(unpacked)
    smaller = flatbuffer.write(unpacked)
    return smaller if len(smaller) < len(model) else model


def dense(model: Any, tensor: Any) -> np.ndarray | None:
    """Gives the data of a constant tensor in its shape, unpacked where it is stored sparse.

    Args:
        model: a `ModelT` that passed `flatbuffer.read`.
        tensor: one of its tensors.

    Returns:
        The array, or `None` for an activation.
    """
    if tensor.sparsity is None:
        return flatbuffer.constant(model, tensor)
    schema = require("ai_edge_litert.schema_py_generated")
    shape, sparsity = tuple(map(int, tensor.shape)), tensor.sparsity
    rank, places = len(shape), np.zeros((1, 0), np.int64)
    for level in sparsity.dimMetadata:
        if level.format == schema.DimensionType.DENSE:
            counts = np.full(len(places), level.denseSize)
            last = np.tile(np.arange(level.denseSize), len(places))
        else:
            counts = np.diff(np.asarray(level.arraySegments.values, np.int64))
            last = np.asarray(level.arrayIndices.values, np.int64)
        places = np.column_stack([np.repeat(places, counts, axis=0), last])
    order = [int(axis) for axis in sparsity.traversalOrder]
    where = [places[:, order.index(axis)] for axis in range(rank)]
    for number, axis in enumerate([] if sparsity.blockMap is None else sparsity.blockMap):
        size = sparsity.dimMetadata[rank + number].denseSize
        where[axis] = where[axis] * size + places[:, rank + number]
    result = np.zeros(shape, flatbuffer.dtype(tensor))
    data = np.asarray(model.buffers[tensor.buffer].data, np.uint8)
    result[tuple(where)] = data.view(result.dtype)
    return result


def place_bytes(tensor: Any) -> int:
    """Counts the bytes that a sparse tensor's places take, 0 for a dense one."""
    levels = [] if tensor.sparsity is None else tensor.sparsity.dimMetadata
    vectors = [vector for level in levels for vector in (level.arraySegments, level.arrayIndices)]
    return sum(vector.values.nbytes for vector in vectors if vector is not None)


def _weights(model: Any, graph: Any) -> list[int]:
    """The constants that every reader takes as a weight it can have from a DENSIFY."""
    good: dict[int, bool] = {int(i): False for i in graph.outputs}
    for operator in graph.operators:
        types = _READERS.get(flatbuffer.op_name(model, operator), ())
        for place, index in enumerate(map(int, operator.inputs)):
            fits = place == 1 and index >= 0
            if fits:
                x, weight = graph.tensors[operator.inputs[0]], graph.tensors[index]
                same = x.type == weight.type and weight.sparsity is None
                fits = same and types != () and flatbuffer.dtype(weight) in types
            good[index] = good.get(index, True) and fits
    return [index for index, fits in good.items() if fits]


def _store(model: Any, graph: Any, index: int, packed: Packed) -> None:
    """Puts the packed weight into tensor `index` and a DENSIFY before its first reader."""
    schema = require("ai_edge_litert.schema_py_generated")
    stored, unpacked = graph.tensors[index], copy.copy(graph.tensors[index])
    data = np.frombuffer(packed.values.tobytes(), np.uint8)
    model.buffers.append(schema.BufferT(data))
    stored.buffer, unpacked.buffer = len(model.buffers) - 1, 0
    stored.sparsity = _parameters(tuple(map(int, stored.shape)), packed)
    stored.name = f"{flatbuffer.text(stored.name)}/sparse"
    graph.tensors.append(unpacked)
    made = len(graph.tensors) - 1
    first = next(i for i, op in enumerate(graph.operators) if index in list(op.inputs))
    for operator in graph.operators:
        operator.inputs = [made if int(i) == index else int(i) for i in operator.inputs]
    operator = schema.OperatorT(
        opcodeIndex=opcode(model, "DENSIFY", version=1), inputs=[index], outputs=[made]
    )
    operator.builtinOptionsType = schema.BuiltinOptions.DensifyOptions
    operator.builtinOptions = schema.DensifyOptionsT()
    graph.operators.insert(first, operator)


def _parameters(shape: tuple[int, ...], packed: Packed) -> Any:
    schema = require("ai_edge_litert.schema_py_generated")
    (axis, block), rank = packed.form, len(shape)
    order = [other for other in range(rank) if other != axis] + [axis]
    levels = [schema.DimensionMetadataT(denseSize=shape[other]) for other in order[:-1]]
    segments, indices = _narrow(packed.segments), _narrow(packed.indices)
    levels.append(
        schema.DimensionMetadataT(
            format=schema.DimensionType.SPARSE_CSR,
            arraySegmentsType=getattr(schema.SparseIndexVector, _vector_name(segments)),
            arraySegments=getattr(schema, f"{_vector_name(segments)}T")(segments),
            arrayIndicesType=getattr(schema.SparseIndexVector, _vector_name(indices)),
            arrayIndices=getattr(schema, f"{_vector_name(indices)}T")(indices),
        )
    )
    if block > 1:
        levels.append(schema.DimensionMetadataT(denseSize=block))
        order.append(rank)
    blocks = [axis] if block > 1 else []
    return schema.SparsityParametersT(traversalOrder=order, blockMap=blocks, dimMetadata=levels)


def _narrow(numbers: np.ndarray) -> np.ndarray:
    """The same numbers in the narrowest of TFLite's index types: uint8, uint16 or int32."""
    largest = int(numbers.max(initial=0))
    types = (np.uint8, np.uint16, np.int32)
    return numbers.astype(next(kind for kind in types if largest <= np.iinfo(kind).max))


def _vector_name(numbers: np.ndarray) -> str:
    return f"{numbers.dtype.name.capitalize()}Vector"


def _drop_buffers(model: Any) -> None:
    """Empties the buffers that nothing refers to any more; their numbers stay."""
    holders = [*(model.metadata or []), *(t for graph in model.subgraphs for t in graph.tensors)]
    used = {holder.buffer for holder in holders}
    for number, buffer in enumerate(model.buffers):
        if number not in used:
            buffer.data = None
