"""Runs an MNN model with MNN on the CPU."""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from compressjax.export import rows
from compressjax.export._require import require


def run(model: bytes, *inputs: np.ndarray, threads: int = 1) -> Any:
    """Runs a model on a batch of any size: float in, float out, as `compressjax.export.run`.

    Args:
        model: the MNN model.
        *inputs: one float32 array `[N, ...]` per input.
        threads: CPU threads.

    Returns:
        The output, or a tuple of several.

    Raises:
        TypeError: an input is not a float array, or `model` is not bytes.
        ValueError: the model is damaged, or an input has the wrong shape.
    """
    session = Session(model, threads=threads)
    outputs = rows.run(session, inputs)
    return outputs[0] if len(outputs) == 1 else outputs


class Session:
    """A loaded model, a `rows.Session`.

    Attributes:
        taken: what each input takes.
    """

    def __init__(self, model: bytes, *, threads: int = 1) -> None:
        """Loads a model; MNN verifies it as a flatbuffer of its schema.

        Args:
            model: the MNN model.
            threads: CPU threads.

        Raises:
            TypeError: `model` is not bytes.
            ValueError: MNN refuses the model.
        """
        if not isinstance(model, bytes):
            raise TypeError(f"a model is bytes, found {type(model).__name__}: read the file first")
        if threads < 1:
            raise ValueError(f"threads={threads}: expected 1 or more")
        with _notes_to_stderr(), tempfile.TemporaryDirectory(prefix="compressjax-mnn-") as folder:
            self._mnn = require("MNN", extra="mnn")
            path = pathlib.Path(folder) / "model.mnn"
            path.write_bytes(model)
            try:
                self._net = self._mnn.Interpreter(str(path))
            except Exception as error:  # MNN raises nothing more specific
                raise ValueError(f"not an MNN model ({len(model)} bytes): {error}") from error
            self._session = self._net.createSession({"backend": "CPU", "numThread": threads})
        self._inputs = _in_order(self._net.getSessionInputAll(self._session), "input_")
        self._outputs = _in_order(self._net.getSessionOutputAll(self._session), "output_")
        self.taken = [rows.Taken(tuple(tensor.getShape())) for tensor in self._inputs]

    def call(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """Runs the model once, as `rows.Session` says.

        Raises:
            ValueError: MNN has no kernel for an operation of the model.
        """
        for tensor, array in zip(self._inputs, inputs, strict=True):
            tensor.copyFrom(self._host(tensor, np.ascontiguousarray(array)))
        code = self._net.runSession(self._session)
        if code:
            raise ValueError(f"MNN cannot run the model (error {code}): see its notes on stderr")
        results = []
        for tensor in self._outputs:
            host = self._host(tensor, np.zeros(tensor.getShape(), np.float32))
            tensor.copyToHostTensor(host)
            results.append(np.array(host.getNumpyData(), np.float32).reshape(tensor.getShape()))
        return results

    def _host(self, tensor: Any, array: np.ndarray) -> Any:
        return self._mnn.Tensor(
            tensor.getShape(),
            self._mnn.Halide_Type_Float,
            array,
            self._mnn.Tensor_DimensionType_Tensorflow,
        )


def _in_order(tensors: dict[str, Any], label: str) -> list[Any]:
    """Tensors by the number in their names, which `prepare` writes (`serving_input_1`)."""

    def number(name: str) -> int:
        digits = name.partition(label)[2]
        return int(digits) if digits.isdigit() else 0

    return [tensors[name] for name in sorted(tensors, key=number)]


@contextlib.contextmanager
def _notes_to_stderr() -> Iterator[None]:
    """MNN's own notes about the processor go to the error stream while it loads."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
