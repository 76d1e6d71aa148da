"""Puts files together, and takes them apart: chains in one graph, several signatures in one file.

Pure functions on the bytes of .tflite files. What goes before a model (`image.py`) or behind it is
a small file of its own and is chained; variants of one model share their constants in one file.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from compressjax.export import flatbuffer
from compressjax.export._require import require
from compressjax.export.associated import NAME
from compressjax.export.litert import SIGNATURE

_VERSION = "min_runtime_version"


def chain(*models: bytes) -> bytes:
    """Connects the outputs of each file to the inputs of the next, in one graph.

    Args:
        *models: .tflite files of one signature; each puts out what the next takes, in order, with
            the same shapes and types.

    Returns:
        One file with the inputs of the first and the outputs of the last. A DEQUANTIZE that met a
        QUANTIZE of the same grid is gone with it.

    Raises:
        ValueError: a file is damaged, or has several signatures or metadata, there is none, or two
            neighbours do not fit; the message names both.

    Example:
        >>> import jax.numpy as jnp
        >>> from compressjax.export import run
        >>> from compressjax.export.tflite import tflite
        >>> double = tflite(lambda variables, x: 2 * x, {}, jnp.ones((1, 2)), via='litert')
        >>> run(chain(double, double), np.ones((1, 2), np.float32))
        array([[4., 4.]], dtype=float32)
    """
    if not models:
        raise ValueError("chain needs at least one file")
    whole, graph = _Whole(), None
    for position, model in enumerate(models):
        source = flatbuffer.read(model)
        inputs, outputs = _ends(source, f"file {position} of the chain")
        part, moved = whole.graph(source, source.subgraphs[0])
        inputs, outputs = [moved[i] for i in inputs], [moved[i] for i in outputs]
        if graph is None:
            graph, first, last = part, inputs, outputs
            continue
        offset = len(graph.tensors)
        part.tensors, taken = [*graph.tensors, *part.tensors], [i + offset for i in inputs]
        _move(part.operators, {i: i + offset for i in range(len(part.tensors) - offset)})
        _check_fit(part.tensors, last, taken, position)
        _move(part.operators, dict(zip(taken, last, strict=True)))
        part.operators = [*graph.operators, *part.operators]
        last = [dict(zip(taken, last, strict=True)).get(i + offset, i + offset) for i in outputs]
        graph = part
    assert graph is not None
    graph.inputs, graph.outputs = first, last
    _cancel(whole.model, graph)
    whole.sign(SIGNATURE, graph)
    return select(whole.write(), SIGNATURE)  # without the tensors between the files


def merge(signatures: Mapping[str, bytes]) -> bytes:
    """Puts several models into one file, each under its own signature; equal constants once.

    Args:
        signatures: .tflite files of one signature, by the name to give it. The first is what
            runtimes take that know nothing of signatures.

    Returns:
        The file.

    Raises:
        ValueError: a file is damaged, or has several signatures or metadata, or there is none.

    Example:
        >>> import jax.numpy as jnp
        >>> from compressjax.export import run
        >>> from compressjax.export.tflite import tflite
        >>> files = {name: tflite(lambda v, x: v * x, by, jnp.ones((1, 1)), via='litert')
        ...          for name, by in {'serve': 2.0, 'features': 3.0}.items()}
        >>> run(select(merge(files), 'features'), np.ones((1, 1), np.float32))
        array([[3.]], dtype=float32)
    """
    if not signatures:
        raise ValueError("merge needs at least one signature")
    whole = _Whole()
    for name, model in signatures.items():
        source = flatbuffer.read(model)
        _ends(source, f"the file of signature {name!r}")
        graph, moved = whole.graph(source, source.subgraphs[0])
        graph.name = name
        whole.keep(name, graph, source.signatureDefs[0], moved)
    return whole.write()


def select(model: bytes, signature: str) -> bytes:
    """Takes one signature of a file out, as a file of its own.

    Args:
        model: the .tflite.
        signature: its name.

    Returns:
        The smaller file, without metadata.

    Raises:
        ValueError: the file is damaged, or has no such signature.
    """
    source = flatbuffer.read(model)
    named = {flatbuffer.text(one.signatureKey): one for one in source.signatureDefs or []}
    if signature not in named:
        raise ValueError(f"the file has no signature {signature!r}, only {sorted(named)}")
    whole, found = _Whole(), named[signature]
    graph, moved = whole.graph(source, source.subgraphs[found.subgraphIndex])
    whole.keep(signature, graph, found, moved)
    return whole.write()


class _Whole:
    """A file in the making. Constants of equal bytes share a buffer, operators share codes."""

    def __init__(self) -> None:
        self.schema = require("ai_edge_litert.schema_py_generated")
        self.model = self.schema.ModelT(
            version=3, description="compressjax", operatorCodes=[], subgraphs=[],
            buffers=[self.schema.BufferT()], signatureDefs=[], metadata=[],
        )  # fmt: skip
        self.buffers: dict[bytes, int] = {}
        self.codes: dict[tuple[int, int, str], int] = {}
        self.version: tuple[int, ...] = (0,)

    def graph(self, source: Any, graph: Any) -> tuple[Any, dict[int, int]]:
        """Copies a graph; gives it with the new places of its tensors."""
        graph = copy.deepcopy(graph)
        used = [int(i) for i in graph.inputs]
        for operator in graph.operators:
            used += [int(i) for i in [*operator.inputs, *operator.outputs] if i >= 0]
        used = list(dict.fromkeys([*used, *(int(i) for i in graph.outputs)]))
        moved = {old: new for new, old in enumerate(used)}
        graph.tensors = [graph.tensors[i] for i in used]
        _move(graph.operators, moved)
        graph.inputs = [moved[int(i)] for i in graph.inputs]
        graph.outputs = [moved[int(i)] for i in graph.outputs]
        for tensor in graph.tensors:
            tensor.buffer = self._buffer(source.buffers[tensor.buffer].data)
        for operator in graph.operators:
            operator.opcodeIndex = self._code(source.operatorCodes[operator.opcodeIndex])
        for entry in source.metadata or []:
            if flatbuffer.text(entry.name) == _VERSION:
                data = (
                    bytes(source.buffers[entry.buffer].data)
                    .rstrip(b"\0")
                    .decode("ascii", "replace")
                )
                numbers = data.split(".")
                if all(map(str.isdecimal, numbers)):
                    self.version = max(self.version, tuple(map(int, numbers)))
        return graph, moved

    def _buffer(self, data: Any) -> int:
        if data is None or not len(data):
            return 0
        content = bytes(data)
        if content not in self.buffers:
            self.buffers[content] = len(self.model.buffers)
            self.model.buffers.append(self.schema.BufferT(data))
        return self.buffers[content]

    def _code(self, code: Any) -> int:
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        key = (number, code.version, flatbuffer.text(code.customCode))
        if key not in self.codes:
            self.codes[key] = len(self.model.operatorCodes)
            self.model.operatorCodes.append(code)
        return self.codes[key]

    def keep(self, name: str, graph: Any, signature: Any, moved: dict[int, int]) -> None:
        """Adds a graph with the ends that a signature names."""
        ends = [
            [self.schema.TensorMapT(flatbuffer.text(e.name), moved[e.tensorIndex]) for e in end]
            for end in (signature.inputs, signature.outputs)
        ]
        self._add(name, graph, ends)

    def sign(self, name: str, graph: Any) -> None:
        """Adds a graph, its ends numbered in their order."""
        ends = [
            [self.schema.TensorMapT(f"{prefix}_{i}", tensor) for i, tensor in enumerate(tensors)]
            for prefix, tensors in (("input", graph.inputs), ("output", graph.outputs))
        ]
        self._add(name, graph, ends)

    def _add(self, name: str, graph: Any, ends: list[list[Any]]) -> None:
        self.model.subgraphs.append(graph)
        place = len(self.model.subgraphs) - 1
        self.model.signatureDefs.append(self.schema.SignatureDefT(*ends, name, place))

    def write(self) -> bytes:
        """Packs the file, with the newest of the runtime versions that its parts need."""
        if self.version != (0,):
            text = ".".join(map(str, self.version)).encode().ljust(16, b"\0")
            buffer = self._buffer(np.frombuffer(text, np.uint8))
            self.model.metadata.append(self.schema.MetadataT(_VERSION, buffer))
        return flatbuffer.write(self.model)


def _ends(model: Any, where: str) -> tuple[list[int], list[int]]:
    """The inputs and outputs of a file of one graph, in the order of its signature's numbers."""
    if len(model.subgraphs) != 1 or len(model.signatureDefs or []) != 1:
        names = [flatbuffer.text(one.signatureKey) for one in model.signatureDefs or []]
        raise ValueError(
            f"{where} has {len(model.subgraphs)} graphs and the signatures {names}, expected one "
            "of each: take one out with compressjax.export.select"
        )
    if any(flatbuffer.text(entry.name) == NAME for entry in model.metadata or []):
        raise ValueError(
            f"{where} has metadata, which would not describe the whole: put the files together "
            "first, then add it with compressjax.export.with_metadata"
        )
    signature, ends = model.signatureDefs[0], []
    for entries, indices in (
        (signature.inputs, model.subgraphs[0].inputs),
        (signature.outputs, model.subgraphs[0].outputs),
    ):
        numbers = {e.tensorIndex: flatbuffer.text(e.name).rpartition("_")[2] for e in entries}
        order = [int(i) for i in indices]
        if all(numbers.get(i, "").isdecimal() for i in order):
            order.sort(key=lambda i: int(numbers[i]))
        ends.append(order)
    return ends[0], ends[1]


def _move(operators: list[Any], places: Mapping[int, int]) -> None:
    for operator in operators:
        operator.inputs = [places.get(int(i), int(i)) for i in operator.inputs]
        operator.outputs = [places.get(int(i), int(i)) for i in operator.outputs]
        operator.intermediates = None


def _check_fit(tensors: list[Any], given: list[int], taken: list[int], position: int) -> None:
    """What a file puts out must be what the next one takes."""

    def said(indices: list[int]) -> list[str]:
        found = [tensors[i] for i in indices]
        return [f"{flatbuffer.dtype(t)} {[int(n) for n in t.shape]}{_grid(t)}" for t in found]

    if said(given) != said(taken):
        raise ValueError(
            f"file {position - 1} of the chain puts out {', '.join(said(given))}, file {position} "
            f"takes {', '.join(said(taken))}: they must be the same"
        )


def _grid(tensor: Any) -> str:
    quantization = tensor.quantization
    if quantization is None or quantization.scale is None or not len(quantization.scale):
        return ""
    points = [0] if quantization.zeroPoint is None else quantization.zeroPoint
    return f" (scale {float(quantization.scale[0]):.9g}, zero point {int(points[0])})"


def _cancel(model: Any, graph: Any) -> None:
    """Removes every DEQUANTIZE to a QUANTIZE of the same grid."""
    makers = {int(i): operator for operator in graph.operators for i in operator.outputs}
    gone: list[Any] = []
    for operator in graph.operators:
        maker = makers.get(int(operator.inputs[0])) if len(operator.inputs) else None
        if maker is None or flatbuffer.op_name(model, operator) != "QUANTIZE":
            continue
        before, after = graph.tensors[maker.inputs[0]], graph.tensors[operator.outputs[0]]
        if flatbuffer.op_name(model, maker) == "DEQUANTIZE" and before.type == after.type:
            if _grid(before) == _grid(after):
                _move(graph.operators, {int(operator.outputs[0]): int(maker.inputs[0])})
                gone.append(operator)
    read = {int(i) for op in graph.operators if op not in gone for i in op.inputs}
    read |= set(graph.outputs)
    graph.operators = [
        op
        for op in graph.operators
        if op not in gone
        and (flatbuffer.op_name(model, op) != "DEQUANTIZE" or int(op.outputs[0]) in read)
    ]
