"""Runs a .tflite with LiteRT, the way a phone does.

The bytes are validated first, so a damaged file is an error and not the end of the process.
Models keep the batch they were exported with; larger batches are run slice by slice, which is
exact because the rows of a batch do not touch each other. A file of `batch.py` takes them whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from compressjax.export import flatbuffer, rows
from compressjax.export._require import require
from compressjax.export.join import select


def run(model: bytes, *inputs: np.ndarray, threads: int = 1, signature: str | None = None) -> Any:
    """Runs a model on a batch of any size: float in, float out.

    Integer inputs and outputs that have a scale in the file are quantized and dequantized by it;
    others (bytes of images, indices) stay as they are.

    Args:
        model: the .tflite.
        *inputs: one float32 array `[N, ...]` per input, or uint8 or int32 where the file has that;
            all but the first axis as in the file.
        threads: CPU threads.
        signature: which one of the file; the first if `None`.

    Returns:
        An array `[N, ...]`, or a tuple of them when the model has several outputs.

    Raises:
        TypeError: an input is not of the type that the model takes.
        ValueError: the file is damaged, LiteRT refuses it, or an input has the wrong shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from compressjax.export.tflite import tflite
        >>> model = tflite(lambda variables, x: x + 1, {}, jnp.ones((1, 2)), via='litert')
        >>> run(model, np.zeros((3, 2), np.float32))
        array([[1., 1.],
               [1., 1.],
               [1., 1.]], dtype=float32)
    """
    session = Session(model if signature is None else select(model, signature), threads=threads)
    outputs = tuple(map(dequantize, rows.joined(list(session.slices(inputs))), session.outputs))
    return outputs[0] if len(outputs) == 1 else outputs


def quantize(
    values: np.ndarray, scale: float, zero_point: int, dtype: type[np.integer[Any]] = np.int8
) -> np.ndarray:
    """Rounds real values to codes as LiteRT's CPU kernels do.

    Args:
        values: float32, any shape.
        scale: the scale.
        zero_point: the code of 0.
        dtype: int8, uint8 or int16.

    Returns:
        The codes: multiplied by the float32 inverse of the scale, rounded half to even, clamped.
    """
    values, limits = np.asarray(values, np.float32), np.iinfo(dtype)
    codes = np.rint(values * (np.float32(1) / np.float32(scale)))
    return np.clip(codes + np.float32(zero_point), limits.min, limits.max).astype(dtype)


def dequantize(values: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    """Gives the real values of an output of the interpreter.

    Args:
        values: the output.
        details: its entry in `get_output_details`.

    Returns:
        float32, the same shape.
    """
    if not _has_grid(details):
        return values
    scale, zero_point = details["quantization"]
    return np.float32(scale) * (values.astype(np.float32) - np.float32(zero_point))


class Session:
    """A LiteRT interpreter with its inputs and outputs in the order of the exported function.

    Attributes:
        interpreter: the allocated LiteRT interpreter; its default kernels are XNNPACK's.
        inputs: `get_input_details` in the order of the arguments.
        outputs: `get_output_details` in the order of the results.
    """

    def __init__(self, model: bytes, *, threads: int = 1, reference: bool = False) -> None:
        """Validates and loads a model.

        Args:
            model: the .tflite.
            threads: CPU threads.
            reference: LiteRT's reference kernels, slow and plain, instead of its default ones.

        Raises:
            TypeError: `model` is not bytes.
            ValueError: the file is damaged, or LiteRT refuses it.
        """
        if threads < 1:
            raise ValueError(f"threads={threads}: expected 1 or more")
        unpacked = flatbuffer.read(model)
        litert = require("ai_edge_litert.interpreter")
        kernels = litert.OpResolverType.BUILTIN_REF if reference else litert.OpResolverType.AUTO
        try:
            self.interpreter = litert.Interpreter(
                model_content=model,
                num_threads=threads,
                experimental_op_resolver_type=kernels,
            )
            self.interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"LiteRT refuses the model (operations {flatbuffer.ops(model)}): {error}"
            ) from error
        order = {}
        for signature in (unpacked.signatureDefs or [])[:1]:
            for entry in [*(signature.inputs or []), *(signature.outputs or [])]:
                order[entry.tensorIndex] = flatbuffer.text(entry.name)
        self.inputs = _ordered(self.interpreter.get_input_details(), order)
        self.outputs = _ordered(self.interpreter.get_output_details(), order)

    def slices(self, inputs: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
        """Runs a batch in slices of the size that the file was exported with.

        Args:
            inputs: float arrays `[N, ...]`.

        Yields:
            The raw outputs (float32, int8 or int16) of each slice, the rows that pad the last one
            cut.

        Raises:
            TypeError: an input is not a float array.
            ValueError: an input has the wrong shape, or there are too few or too many.
        """
        arrays = rows.checked(inputs, self.taken)
        if all(tuple(details["shape_signature"][:1]) == (-1,) for details in self.inputs):
            self.resize(len(arrays[0]))
        for parts, count in rows.slices(arrays, self.taken):
            for part, details in zip(parts, self.inputs, strict=True):
                if _has_grid(details):
                    scale, zero_point = details["quantization"]
                    part = quantize(part, scale, zero_point, details["dtype"])
                self.interpreter.set_tensor(details["index"], part)
            self.interpreter.invoke()
            results = [self.interpreter.get_tensor(d["index"]) for d in self.outputs]
            yield [rows.cut(result, count, parts[0]) for result in results]

    @property
    def taken(self) -> list[rows.Taken]:
        """What each input takes, at the batch that it has now."""
        return [
            rows.Taken(
                tuple(int(size) for size in details["shape"]),
                np.dtype(np.float32 if _has_grid(details) else details["dtype"]),
                _has_grid(details),
            )
            for details in self.inputs
        ]

    def resize(self, batch: int) -> None:
        """Gives a file whose batch is open (`batch.py`) this one.

        Args:
            batch: the first axis of every input.

        Raises:
            RuntimeError: LiteRT finds an operation that cannot take them.
        """
        if int(self.inputs[0]["shape"][0]) == batch:
            return
        for details in self.inputs:
            shape = (batch, *details["shape"][1:])
            self.interpreter.resize_tensor_input(details["index"], shape)
            details["shape"] = np.asarray(shape)
        self.interpreter.allocate_tensors()


def _has_grid(details: dict[str, Any]) -> bool:
    """Whether an end of a file holds codes, which stand for real values."""
    return details["dtype"] in (np.int8, np.uint8, np.int16) and details["quantization"][0] > 0


def _ordered(details: list[dict[str, Any]], names: dict[int, str]) -> list[dict[str, Any]]:
    """Sorts by the number in the signature's names, `input_0`, `input_1`, where all have one."""
    numbers = [names.get(d["index"], "").rpartition("_")[2] for d in details]
    if not all(number.isdecimal() for number in numbers):
        return details
    return [d for _, d in sorted(zip(map(int, numbers), details, strict=True), key=lambda p: p[0])]
