"""Reads and writes .tflite files as LiteRT's own schema objects.

`structure.py` and `validate.py` judge the bytes, `rewrite.py` changes what is in them; this file is
only the way in and out, and the few look-ups that everybody needs. What it writes is
byte-reproducible and has its buffers aligned as LiteRT requires (16 bytes), which the generated
packer does not do.
"""

from __future__ import annotations

import math
import os
import pathlib
from typing import Any

import numpy as np

from compressjax.export import associated, nibbles, operands, structure
from compressjax.export import validate as checks
from compressjax.export._require import require

File = bytes | str | os.PathLike[str]  # a model, or where it is on the disk
_DTYPES = {
    "FLOAT32": np.float32, "FLOAT16": np.float16, "INT32": np.int32, "UINT8": np.uint8,
    "INT64": np.int64, "BOOL": np.bool_, "INT16": np.int16, "INT8": np.int8,
    "INT4": np.int8,
}  # fmt: skip


def content(model: File) -> bytes:
    """Gives the bytes of a model that may be a file on the disk.

    Args:
        model: the bytes, or a path.

    Returns:
        The bytes, not checked.

    Raises:
        OSError: there is no such file, or it cannot be read.
        TypeError: `model` is neither bytes nor a path.
    """
    return model if isinstance(model, bytes) else pathlib.Path(model).read_bytes()


def read(data: bytes) -> Any:
    """Unpacks a .tflite after checking it.

    Args:
        data: the file.

    Returns:
        A `ModelT` of `ai_edge_litert.schema_py_generated`; in a file with metadata it also has
        `associated`, the contents of the files behind the model by name.

    Raises:
        TypeError: `data` is not bytes.
        ValueError: the file is truncated or damaged, or cannot be checked.

    Example:
        >>> read(b'TFL3')
        Traceback (most recent call last):
        ...
        ValueError: not a .tflite: the file has 4 bytes and no identifier TFL3 at byte 4...
    """
    structure.check(data)
    schema = require("ai_edge_litert.schema_py_generated")
    try:
        model = schema.ModelT.InitFromPackedBuf(data, 0)
        checks.bring_in(model, data)
        checks.semantics(model)
        if associated.NAME in [text(entry.name) for entry in model.metadata or []]:
            model.associated = associated.files(data)
    except (IndexError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(f"damaged .tflite: it cannot be unpacked ({error})") from error
    return model


def validate(data: bytes) -> None:
    """Refuses bytes that LiteRT could not load safely.

    Args:
        data: the file.

    Raises:
        TypeError: `data` is not bytes.
        ValueError: the file is truncated or damaged, or cannot be checked; the message says where.

    Example:
        >>> validate(b'')
        Traceback (most recent call last):
        ...
        ValueError: not a .tflite: the file has 0 bytes and no identifier TFL3 at byte 4...
    """
    read(data)


def write(model: Any) -> bytes:
    """Packs a model into the bytes of a .tflite, with the files that were read behind it.

    Args:
        model: a `ModelT`.

    Returns:
        The file; the same model gives the same bytes.
    """
    flatbuffers = require("flatbuffers")
    schema = require("ai_edge_litert.schema_py_generated")

    class AlignedBuffer(schema.BufferT):  # type: ignore[name-defined]
        """A buffer whose data starts on a multiple of 16 bytes."""

        def Pack(self, builder: Any) -> int:
            if self.data is not None and len(self.data):
                raw = np.ascontiguousarray(self.data, np.uint8).tobytes()
                builder.StartVector(1, len(raw), 16)
                builder.head -= len(raw)
                builder.Bytes[builder.head : builder.head + len(raw)] = raw
                vector = builder.EndVector()
            schema.BufferStart(builder)
            if self.data is not None and len(self.data):
                schema.BufferAddData(builder, vector)
            return schema.BufferEnd(builder)

    buffers = model.buffers
    builder = flatbuffers.Builder(1 << 16)
    model.buffers = [AlignedBuffer(buffer.data) for buffer in buffers]
    try:
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    finally:
        model.buffers = buffers
    return associated.attach(bytes(builder.Output()), getattr(model, "associated", {}))


def op_name(model: Any, operator: Any) -> str:
    """Names an operation as LiteRT does, such as `CONV_2D`."""
    return operands.name(model.operatorCodes[operator.opcodeIndex])


def ops(data: bytes) -> list[str]:
    """Lists the operations of the first subgraph of a file.

    Args:
        data: the file.

    Returns:
        LiteRT's names in execution order.
    """
    model = read(data)
    return [op_name(model, operator) for operator in model.subgraphs[0].operators or []]


def text(name: bytes | str | None) -> str:
    """Decodes a name of the schema, which may be missing."""
    return name.decode() if isinstance(name, bytes) else name or ""


def tensor_names(graph: Any) -> list[str]:
    """Gives every tensor of a graph a name: its own, or with its number if that is taken or empty.

    Args:
        graph: a `SubGraphT`.

    Returns:
        The names by tensor.
    """
    seen: set[str] = set()
    names = []
    for number, tensor in enumerate(graph.tensors):
        name = text(tensor.name)
        names.append(f"{name}:{number}" if name in seen or not name else name)
        seen.add(names[-1])
    return names


def dtype(tensor: Any) -> np.dtype[Any]:
    """Gives the NumPy type that holds the values of a tensor, int8 for codes of 4 bits.

    Raises:
        ValueError: NumPy has no such type.
    """
    schema = require("ai_edge_litert.schema_py_generated")
    for name, number in vars(schema.TensorType).items():
        if number == tensor.type and name in _DTYPES:
            return np.dtype(_DTYPES[name])
    raise ValueError(f"tensor {text(tensor.name)} has a type without a NumPy form: {tensor.type}")


def constant(model: Any, tensor: Any) -> np.ndarray | None:
    """Gives the data of a constant tensor in its shape, or `None` for an activation."""
    data = model.buffers[tensor.buffer].data
    if data is None or not len(data):
        return None
    shape = () if tensor.shape is None else tuple(int(size) for size in tensor.shape)
    raw = np.asarray(data, np.uint8)
    if tensor.type == require("ai_edge_litert.schema_py_generated").TensorType.INT4:
        return nibbles.unpack(raw, math.prod(shape)).reshape(shape)
    return raw.view(dtype(tensor)).reshape(shape)
