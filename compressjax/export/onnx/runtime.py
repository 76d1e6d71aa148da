"""Runs an ONNX model with ONNX Runtime on the CPU, and shows the codes inside it.

A model is parsed and checked first, and may not refer to other files.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from compressjax.export import rows
from compressjax.export._require import require
from compressjax.export.onnx.writer import OFFSET, PLANAR

_QUIET = 3  # of ONNX Runtime's severities: errors alone


def run(model: bytes, *inputs: np.ndarray, threads: int = 1) -> Any:
    """Runs a model on a batch of any size: float in, float out, as `compressjax.export.run`.

    Args:
        model: the ONNX model.
        *inputs: one float32 array `[N, ...]` per input.
        threads: CPU threads.

    Returns:
        The output, or a tuple of several.

    Raises:
        TypeError: an input is not a float array, or `model` is not bytes.
        ValueError: the model is damaged, ONNX Runtime refuses it, or an input has the wrong shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from compressjax.export.onnx.convert import convert
        >>> model = convert(lambda variables, x: x + x, {}, jnp.ones((1, 2)))
        >>> run(model, np.ones((3, 2), np.float32))
        array([[2., 2.],
               [2., 2.],
               [2., 2.]], dtype=float32)
    """
    session = Session(model, threads=threads)
    outputs = rows.run(session, inputs)
    return outputs[0] if len(outputs) == 1 else outputs


def ops(model: bytes) -> list[str]:
    """Lists the operations of a model in order.

    Args:
        model: the ONNX model.

    Returns:
        Their names in ONNX.

    Raises:
        TypeError: `model` is not bytes.
        ValueError: the model is damaged.
    """
    return [node.op_type for node in read(model).graph.node]


def read(model: bytes) -> Any:
    """Parses and checks a model.

    Args:
        model: the ONNX model.

    Returns:
        An `onnx.ModelProto`.

    Raises:
        TypeError: `model` is not bytes.
        ValueError: the bytes are damaged, or refer to other files.

    Example:
        >>> read(b'ONNX')
        Traceback (most recent call last):
        ...
        ValueError: not an ONNX model (4 bytes): ...
    """
    if not isinstance(model, bytes):
        raise TypeError(f"a model is bytes, found {type(model).__name__}: read the file first")
    onnx = require("onnx", extra="onnx")
    try:
        parsed = onnx.load_model_from_string(model)
        outside = [x.name for x in parsed.graph.initializer if x.data_location == x.EXTERNAL]
        if outside:
            raise ValueError(f"constant {outside[0]!r} is in another file: save the model as one")
        onnx.checker.check_model(parsed)
    except Exception as error:  # protobuf and ONNX raise types of their own
        raise ValueError(f"not an ONNX model ({len(model)} bytes): {error}") from error
    return parsed


def intermediates(model: bytes, *inputs: np.ndarray, threads: int = 1) -> dict[str, np.ndarray]:
    """Runs a quantized model and gives the codes of every step.

    Args:
        model: the ONNX model.
        *inputs: as for `run`.
        threads: CPU threads.

    Returns:
        The int8 codes by step, channels last: comparable with `q.intermediates`.

    Raises:
        TypeError: an input is not a float array.
        ValueError: as `run`; or the model has no tensor of codes.
    """
    parsed = read(model)
    onnx = require("onnx", extra="onnx")
    infer = require("onnx.shape_inference", extra="onnx").infer_shapes
    made = {output for node in parsed.graph.node for output in node.output}
    inner = [
        info
        for info in infer(parsed).graph.value_info
        if info.name in made and info.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    ]
    if not inner:
        raise ValueError("the model has no tensor of codes: it was exported from a float function")
    names = [info.name for info in inner]
    del parsed.graph.output[:]
    parsed.graph.output.extend(inner)
    session = Session(parsed.SerializeToString(), threads=threads)
    found: dict[str, np.ndarray] = {}
    for name, codes in zip(names, rows.run(session, inputs), strict=True):
        if name.endswith(PLANAR):
            codes = codes.transpose(0, 2, 3, 1)
        step = name.removesuffix(PLANAR).removesuffix("/codes")
        found.setdefault(step, (codes.astype(np.int16) - OFFSET).astype(np.int8))
    return found


class Session:
    """A loaded model, a `rows.Session`.

    Attributes:
        taken: what each input takes.
    """

    def __init__(self, model: bytes, *, threads: int = 1) -> None:
        """Checks and loads a model.

        Args:
            model: the ONNX model.
            threads: CPU threads.

        Raises:
            TypeError: `model` is not bytes.
            ValueError: the model is damaged, or ONNX Runtime refuses it.
        """
        if threads < 1:
            raise ValueError(f"threads={threads}: expected 1 or more")
        read(model)
        runtime = require("onnxruntime", extra="onnx")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _QUIET
        try:
            self._session = runtime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions have no common base but this
            raise ValueError(f"ONNX Runtime refuses the model: {error}") from error
        self._names = [entry.name for entry in self._session.get_inputs()]
        self.taken = [rows.Taken(tuple(x.shape)) for x in self._session.get_inputs()]

    def call(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """Runs the model once, as `rows.Session` says."""
        return list(self._session.run(None, dict(zip(self._names, inputs, strict=True))))
