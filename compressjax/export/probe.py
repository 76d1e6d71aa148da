"""Looks inside a file while it runs: copies that return the tensors that LiteRT would free.

LiteRT's option to keep inner tensors turns its fast kernels off; a copy of the file that returns
them runs on the same kernels. `verify.py` compares what comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from compressjax.export import flatbuffer
from compressjax.export._require import require
from compressjax.export.rows import joined
from compressjax.export.runtime import Session

_CONTRACTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_ALIKE = 0.9  # least cosine of two kernels that are taken for the same layer


class Probe:
    """A file that returns chosen tensors.

    Attributes:
        names: the tensors, in execution order; one that has another's name has its number too.
        shapes: of each, by name, in one slice.
        grids: scale and zero point of each; (0.0, 0) of float tensors.
    """

    def __init__(self, model: bytes, tensors: Sequence[int], *, reference: bool = False) -> None:
        """Loads a copy of a file.

        Args:
            model: the .tflite.
            tensors: which of the first subgraph's tensors to return.
            reference: run LiteRT's reference kernels.

        Raises:
            ValueError: the file is damaged, or LiteRT refuses it.
        """
        unpacked = flatbuffer.read(model)
        graph = unpacked.subgraphs[0]
        graph.outputs, unpacked.signatureDefs = list(tensors), None
        names = flatbuffer.tensor_names(graph)
        self.names = [names[i] for i in tensors]
        self._session = Session(flatbuffer.write(unpacked), reference=reference)
        details = [dict(entry) for entry in self._session.outputs]
        self.grids = [entry["quantization"] for entry in details]
        self.shapes = {
            name: tuple(int(size) for size in entry["shape"])
            for name, entry in zip(self.names, details, strict=True)
        }

    @property
    def batch(self) -> int:
        """Rows that the file takes at once."""
        shape = self._session.inputs[0]["shape"]
        return int(shape[0]) if len(shape) else 1

    def values(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Runs the file.

        Args:
            rows: float arrays `[N, ...]`, one per input.

        Returns:
            The tensors, as stored, in the order of `names`.
        """
        return list(joined(list(self._session.slices(rows))))


def integer_tensors(model: bytes) -> list[int]:
    """Lists the integer tensors that a file computes or is given.

    Args:
        model: the .tflite.

    Returns:
        Indices in the first subgraph of int8 and int16 tensors, in execution order.
    """
    schema = require("ai_edge_litert.schema_py_generated")
    graph = flatbuffer.read(model).subgraphs[0]
    made = [int(i) for i in graph.inputs]
    made += [int(i) for operator in graph.operators for i in operator.outputs]
    kinds = (schema.TensorType.INT8, schema.TensorType.INT16)
    return [i for i in made if graph.tensors[i].type in kinds]


def with_all_tensors(model: bytes) -> tuple[bytes, list[str]]:
    """Makes a copy of a file that returns every int8 and int16 tensor it computes.

    Args:
        model: the .tflite.

    Returns:
        The copy, and the names of its outputs in order.
    """
    unpacked, made = flatbuffer.read(model), integer_tensors(model)
    graph = unpacked.subgraphs[0]
    graph.outputs, unpacked.signatureDefs = made, None
    return flatbuffer.write(unpacked), [flatbuffer.text(graph.tensors[i].name) for i in made]


def same_layers(model: bytes, real: bytes) -> dict[str, int]:
    """Finds the layers of a float file in a quantized one, by their kernels.

    Converters name, order and fuse operations as they like, but a layer keeps its kernel: two
    convolutions or dense layers are the same if their outputs have one shape and their kernels
    one direction.

    Args:
        model: the quantized .tflite.
        real: a float .tflite of the same network.

    Returns:
        For each tensor of `model` that has one, by name, the tensor of `real`'s first subgraph.
    """
    candidates, found = _contractions(real), {}
    for tensor, shape, kernel in _contractions(model).values():
        best, alike = None, _ALIKE
        for index, (_, other_shape, other) in candidates.items():
            if (shape, kernel.shape) == (other_shape, other.shape):
                cosine = _cosine(kernel, other)
                if cosine > alike:
                    best, alike = index, cosine
        if best is not None:
            found[tensor] = best
            del candidates[best]
    return found


def _contractions(model: bytes) -> dict[int, tuple[str, tuple[int, ...], np.ndarray]]:
    """Output index -> its name, its shape and the real kernel, of layers with a plain kernel."""
    unpacked = flatbuffer.read(model)
    graph, found = unpacked.subgraphs[0], {}
    for operator in graph.operators:
        if flatbuffer.op_name(unpacked, operator) not in _CONTRACTIONS:
            continue
        kernel = _real_kernel(unpacked, graph.tensors[int(operator.inputs[1])])
        if kernel is not None:
            output = graph.tensors[int(operator.outputs[0])]
            shape = tuple(int(size) for size in output.shape)
            found[int(operator.outputs[0])] = flatbuffer.text(output.name), shape, kernel
    return found


def _real_kernel(model: Any, tensor: Any) -> np.ndarray | None:
    schema = require("ai_edge_litert.schema_py_generated")
    if tensor.type not in (schema.TensorType.FLOAT32, schema.TensorType.INT8) or tensor.sparsity:
        return None
    codes = flatbuffer.constant(model, tensor)
    if codes is None or tensor.type == schema.TensorType.FLOAT32:
        return codes
    scale = np.asarray(tensor.quantization.scale, np.float32)
    shape = [1] * codes.ndim
    shape[tensor.quantization.quantizedDimension] = len(scale)
    return codes * scale.reshape(shape)


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    norms = float(np.linalg.norm(one)) * float(np.linalg.norm(other))
    return float(np.vdot(one, other)) / norms if norms else 0.0
