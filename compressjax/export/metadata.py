"""Says in the file what the model is: name, author, licence, labels, how images are normalised.

The form is that of LiteRT's tools (MediaPipe Tasks, the TFLite Support library, Android Studio): a
FlatBuffer of their schema `metadata_schema.fbs`, identifier M001, in the buffer `TFLITE_METADATA`,
and the labels as `labels.txt` in an archive behind the model (`associated.py`). Their packages are
not needed for it. What runs is unchanged: `ends.py` puts a normalisation into the graph, this
only tells an app that it has to do one.

Source: https://github.com/google-ai-edge/mediapipe/blob/master/mediapipe/tasks/metadata/metadata_schema.fbs
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from compressjax.export import flatbuffer
from compressjax.export._require import require
from compressjax.export.associated import NAME

_IDENTIFIER = b"M001"
_PARSER = "1.0.0"  # the oldest reader that knows all fields used here
_LABELS = "labels.txt"
# Places of the fields in the tables of the schema.
_MODEL_TEXT = {"name": 0, "description": 1, "version": 2, "author": 4, "license": 5}
_SUBGRAPHS, _MIN_PARSER = 3, 7
_INPUTS, _OUTPUTS = 2, 3
_TENSOR_NAME, _CONTENT, _UNITS, _FILES = 0, 3, 4, 6
_FILE_NAME, _FILE_TYPE = 0, 2
_UNION_TYPE, _UNION = 0, 1
_MEAN, _STD = 0, 1
# Values of its enumerations.
_NORMALIZATION, _IMAGE = 1, 2
_COLORS = {3: 1, 1: 2}  # channels -> RGB, GRAYSCALE
_AXIS_LABELS, _VALUE_LABELS = 2, 3


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What a file says about its model; empty where it says nothing.

    Attributes:
        name: of the model.
        description: what it does.
        version: of the model.
        author: who made it.
        license: its name (SPDX) or its text.
        labels: the names of the classes, in the order of the output.
        mean: what to subtract from the first input before it is given to the model, in the units of
            the pixels (0 to 255 as a rule); one number, or one a channel.
        std: what to divide by afterwards; as many numbers as `mean`.
    """

    name: str = ""
    description: str = ""
    version: str = ""
    author: str = ""
    license: str = ""
    labels: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


def with_metadata(model: bytes, metadata: Metadata) -> bytes:
    """Writes metadata into a file; what it had before is replaced.

    Labels belong to the output of integers where there is one (`ends.with_top_k`), else to the
    last axis of the first output that is as long. In a file of several signatures the metadata
    describes the first.

    Args:
        model: the .tflite.
        metadata: what to say.

    Returns:
        The file; it computes the same, and the same arguments give the same bytes.

    Raises:
        TypeError: a text is not a string, or the labels are one string.
        ValueError: the file is damaged, no output has as many entries as there are labels, a label
            has several lines, or `mean` and `std` do not fit the first input.

    Example:
        >>> import jax.numpy as jnp
        >>> from compressjax.export.tflite import tflite
        >>> file = tflite(lambda v, x: x @ v, jnp.eye(2), jnp.ones((1, 2)), via='litert')
        >>> said = Metadata(name='pets', license='Apache-2.0', labels=('cat', 'dog'))
        >>> metadata(with_metadata(file, said)) == said
        True
    """
    unpacked = flatbuffer.read(model)
    _check_text(metadata)
    graph = unpacked.subgraphs[0]
    names = _names(unpacked)
    inputs, outputs = (
        [graph.tensors[int(i)] for i in end] for end in (graph.inputs, graph.outputs)
    )
    described: list[list[dict[int, Any]]] = [
        [
            {_TENSOR_NAME: names.get(int(i), flatbuffer.text(graph.tensors[int(i)].name))}
            for i in end
        ]
        for end in (graph.inputs, graph.outputs)
    ]
    if metadata.mean or metadata.std:
        described[0][0] |= _normalization(metadata, inputs[0])
    if metadata.labels:
        place, kind = _labelled(metadata.labels, outputs)
        described[1][place][_FILES] = [{_FILE_NAME: _LABELS, _FILE_TYPE: kind}]
    fields: dict[int, Any] = {
        number: text for key, number in _MODEL_TEXT.items() if (text := getattr(metadata, key))
    }
    fields[_SUBGRAPHS] = [{_INPUTS: described[0], _OUTPUTS: described[1]}]
    fields[_MIN_PARSER] = _PARSER
    _store(unpacked, _packed(fields))
    labels = "".join(f"{label}\n" for label in metadata.labels).encode()
    unpacked.associated = {_LABELS: labels} if labels else {}
    return flatbuffer.write(unpacked)


def metadata(model: bytes) -> Metadata:
    """Reads the metadata of a file, ours or anyone's.

    Args:
        model: the .tflite.

    Returns:
        What it says. Parts of the schema that `Metadata` has no place for are left out.

    Raises:
        ValueError: the file or its metadata is damaged, or it has none.
    """
    unpacked = flatbuffer.read(model)
    found = [entry for entry in unpacked.metadata or [] if flatbuffer.text(entry.name) == NAME]
    if not found:
        raise ValueError(
            f"the file has no metadata ({NAME}): add it with compressjax.export.with_metadata"
        )
    data = unpacked.buffers[found[0].buffer].data
    try:
        return _unpacked(b"" if data is None else bytes(data), unpacked.associated)
    except (struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"damaged .tflite: its metadata cannot be read ({error})") from error


def _check_text(metadata: Metadata) -> None:
    if isinstance(metadata.labels, str):
        raise TypeError(f"labels is one string, {metadata.labels!r}: expected a tuple of them")
    texts = {key: getattr(metadata, key) for key in _MODEL_TEXT}
    texts |= {f"labels[{i}]": label for i, label in enumerate(metadata.labels)}
    for where, text in texts.items():
        if not isinstance(text, str):
            raise TypeError(f"{where} is {text!r}, expected a string")
    for i, label in enumerate(metadata.labels):
        if "\n" in label or "\r" in label:
            raise ValueError(f"labels[{i}] is {label!r}: a label is one line of {_LABELS}")


def _normalization(metadata: Metadata, tensor: Any) -> dict[int, Any]:
    """The process unit of the input, and that it is an image where it has its form."""
    shape = [int(n) for n in tensor.shape]
    mean, std = (tuple(map(float, values)) for values in (metadata.mean, metadata.std))
    if len(mean) != len(std) or len(mean) not in (1, *shape[-1:]):
        raise ValueError(
            f"mean has {len(mean)} numbers and std {len(std)}: expected 1 of each, or one for each "
            f"channel of the first input of shape {shape}"
        )
    if not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        raise ValueError(f"mean={mean}, std={std}: expected finite numbers, std above 0")
    options = {_MEAN: mean, _STD: std}
    described: dict[int, Any] = {_UNITS: [{_UNION_TYPE: _NORMALIZATION, _UNION: options}]}
    if len(shape) == 4 and shape[-1] in _COLORS:
        described[_CONTENT] = {_UNION_TYPE: _IMAGE, _UNION: {0: _COLORS[shape[-1]]}}
    return described


def _labelled(labels: Sequence[str], outputs: list[Any]) -> tuple[int, int]:
    """Which output has the labels, and whether they name its values or the entries of its axis."""
    kinds = [flatbuffer.dtype(tensor) for tensor in outputs]
    for place, kind in enumerate(kinds):
        if kind in (np.int32, np.int64):
            return place, _VALUE_LABELS
    shapes = [[int(n) for n in tensor.shape] for tensor in outputs]
    for place, shape in enumerate(shapes):
        if shape and shape[-1] == len(labels):
            return place, _AXIS_LABELS
    raise ValueError(
        f"{len(labels)} labels, and outputs of shape {', '.join(map(str, shapes))}: expected as "
        "many labels as the last axis of an output has entries"
    )


def _names(model: Any) -> dict[int, str]:
    """The names of the ends of the first graph in its signature."""
    for signature in model.signatureDefs or []:
        if signature.subgraphIndex == 0:
            ends = [*(signature.inputs or []), *(signature.outputs or [])]
            return {int(end.tensorIndex): flatbuffer.text(end.name) for end in ends}
    return {}


def _store(model: Any, content: bytes) -> None:
    """Puts the bytes into the buffer of the metadata, which is made where there is none."""
    schema = require("ai_edge_litert.schema_py_generated")
    entries = model.metadata or []
    old = [entry.buffer for entry in entries if flatbuffer.text(entry.name) == NAME]
    used = {0, *(tensor.buffer for graph in model.subgraphs for tensor in graph.tensors)}
    if not old or old[0] in used:
        model.buffers.append(schema.BufferT())
        old = [len(model.buffers) - 1]
    model.buffers[old[0]] = schema.BufferT(np.frombuffer(content, np.uint8))
    others = [entry for entry in entries if flatbuffer.text(entry.name) != NAME]
    model.metadata = [*others, schema.MetadataT(NAME, old[0])]


def _packed(fields: dict[int, Any]) -> bytes:
    builder = require("flatbuffers").Builder(0)
    builder.Finish(_pack(builder, fields), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


def _pack(builder: Any, fields: dict[int, Any]) -> int:
    """Writes a table: texts, lists of tables, tuples of float32, tables, and bytes as numbers."""
    placed = {}
    for number, value in fields.items():
        if isinstance(value, str):
            placed[number] = builder.CreateString(value)
        elif isinstance(value, dict):
            placed[number] = _pack(builder, value)
        elif isinstance(value, list):
            tables = [_pack(builder, table) for table in value]
            builder.StartVector(4, len(tables), 4)
            for table in reversed(tables):
                builder.PrependUOffsetTRelative(table)
            placed[number] = builder.EndVector()
        elif isinstance(value, tuple):
            builder.StartVector(4, len(value), 4)
            for item in reversed(value):
                builder.PrependFloat32(item)
            placed[number] = builder.EndVector()
    builder.StartObject(max(fields) + 1)
    for number, value in fields.items():
        if number in placed:
            builder.PrependUOffsetTRelativeSlot(number, placed[number], 0)
        else:
            builder.PrependUint8Slot(number, value, 0)
    return builder.EndObject()


def _unpacked(data: bytes, files: dict[str, bytes]) -> Metadata:
    if data[4:8] != _IDENTIFIER:
        raise ValueError(f"the metadata has the form {data[4:8]!r}, expected {_IDENTIFIER!r}")
    root = _Table(data, 0).follow(0)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()
    for subgraph in root.tables(_SUBGRAPHS)[:1]:
        for unit in [u for tensor in subgraph.tables(_INPUTS)[:1] for u in tensor.tables(_UNITS)]:
            options = unit.table(_UNION)
            if unit.byte(_UNION_TYPE) == _NORMALIZATION and options is not None:
                mean, std = options.floats(_MEAN), options.floats(_STD)
        named: list[_Table] = []
        for tensor in subgraph.tables(_OUTPUTS):
            named += tensor.tables(_FILES)
            if len(named) > len(data) // 4:  # a table takes 4 bytes or more
                raise struct.error("it names more files than it can hold")
        for file in named:
            if file.byte(_FILE_TYPE) in (_AXIS_LABELS, _VALUE_LABELS) and not labels:
                name = file.text(_FILE_NAME)
                if name not in files:
                    raise ValueError(
                        f"damaged .tflite: its metadata names the labels {name!r}, but behind the "
                        f"model are only the files {sorted(files)}"
                    )
                labels = tuple(_lines(files[name]))
    texts = {key: root.text(number) for key, number in _MODEL_TEXT.items()}
    return Metadata(**texts, labels=labels, mean=mean, std=std)


def _lines(content: bytes) -> list[str]:
    """The lines of a text file; other line ends than these are part of a label."""
    return content.decode().replace("\r\n", "\n").removesuffix("\n").split("\n")


class _Table:
    """A table of a FlatBuffer that nobody has checked; steps outside of it are `struct.error`."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    def number(self, form: str, at: int) -> int:
        if at < 0:
            raise struct.error(f"byte {at} is outside")
        return struct.unpack_from(f"<{form}", self.data, at)[0]

    def follow(self, at: int) -> _Table:
        return _Table(self.data, at + self.number("I", at))

    def field(self, number: int) -> int:
        """Where a field is, 0 if the table does not have it."""
        layout = self.at - self.number("i", self.at)
        if 4 + 2 * number >= self.number("H", layout):
            return 0
        offset = self.number("H", layout + 4 + 2 * number)
        return self.at + offset if offset else 0

    def byte(self, number: int) -> int:
        at = self.field(number)
        return self.number("B", at) if at else 0

    def table(self, number: int) -> _Table | None:
        at = self.field(number)
        return self.follow(at) if at else None

    def vector(self, number: int, width: int) -> tuple[int, int]:
        """Where the items of a vector start, and how many there are."""
        at = self.field(number)
        if not at:
            return 0, 0
        start = at + self.number("I", at)
        count = self.number("I", start)
        if start + 4 + count * width > len(self.data):
            raise struct.error(f"a list of {count} items leaves the {len(self.data)} bytes")
        return start + 4, count

    def text(self, number: int) -> str:
        start, count = self.vector(number, 1)
        return self.data[start : start + count].decode()

    def floats(self, number: int) -> tuple[float, ...]:
        """The numbers as they were written in decimals, not the digits of their float32."""
        start, count = self.vector(number, 4)
        values = np.frombuffer(self.data, "<f4", count, start)
        return tuple(float(str(value)) for value in values)

    def tables(self, number: int) -> list[_Table]:
        start, count = self.vector(number, 4)
        return [self.follow(start + 4 * i) for i in range(count)]
