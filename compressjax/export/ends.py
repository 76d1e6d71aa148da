"""What goes before and behind a model, inside its file: images in, probabilities or classes out.

Whoever ships a model then passes the camera's bytes and reads classes, and cannot normalise them in
another way than the training did. Each function builds a small float file, operation by operation,
and `join.chain` puts it in front of the model or behind it. The model itself stays as it is, so an
int8 model keeps its codes; its QUANTIZE follows the normalisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from compressjax.export import flatbuffer
from compressjax.export._require import require
from compressjax.export.join import chain
from compressjax.export.litert import SIGNATURE

_TYPES = {"float32": "FLOAT32", "int32": "INT32", "uint8": "UINT8"}


def with_image_input(
    model: bytes,
    *,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 255.0,
    size: tuple[int, int] | None = None,
) -> bytes:
    """Makes a model take images as they are: uint8, of another size if need be.

    Computes `(resize(x) - mean) / std` in float32; the resize is bilinear between centers of
    pixels, as `jax.image.resize(x, shape, 'linear', antialias=False)`.

    Args:
        model: a .tflite with one float input `[N, H, W, C]`.
        mean: of pixels from 0 to 255, one number or one for each of the C channels.
        std: of pixels, likewise; 255 alone gives values from 0 to 1.
        size: height and width of the images; those of the model if `None`.

    Returns:
        The file with one uint8 input.

    Raises:
        ValueError: the file is damaged, takes no float image, or the numbers do not fit its
            channels.

    Example:
        >>> import jax.numpy as jnp
        >>> from compressjax.export import run
        >>> from compressjax.export.tflite import tflite
        >>> mean = tflite(lambda v, x: x.mean((1, 2)), {}, jnp.ones((1, 2, 2, 1)), via='litert')
        >>> run(with_image_input(mean), np.full((1, 2, 2, 1), 51, np.uint8))
        array([[0.2]], dtype=float32)
    """
    shape = _float_end(model, "input")
    if len(shape) != 4:
        raise ValueError(f"the model takes {list(shape)}, expected an image [N, H, W, C]")
    channels = shape[-1]
    for name, value in (("mean", mean), ("std", std)):
        count = np.size(value)
        if count not in (1, channels) or not np.isfinite(value).all():
            raise ValueError(
                f"{name} is {value}, expected one finite number or one for each of {channels} "
                "channels"
            )
    if not np.all(np.asarray(std) > 0):
        raise ValueError(f"std is {std}, expected positive numbers")
    made = _File()
    given = shape if size is None else (shape[0], *size, channels)
    if min(given) < 1:
        raise ValueError(f"images of {list(given)} are empty: size is {size}")
    pixels = made.tensor("image", given, "uint8")
    x = made.op("CAST", [pixels], "pixels", given, options="CastOptions", **made.cast())
    if given != shape:
        target = made.constant("size", np.asarray(shape[1:3], np.int32))
        x = made.op(
            "RESIZE_BILINEAR", [x, target], "resized", shape, version=3,
            options="ResizeBilinearOptions", halfPixelCenters=True,
        )  # fmt: skip
    for kind, value, name in (("SUB", mean, "centered"), ("DIV", std, "normalised")):
        constant = np.broadcast_to(np.asarray(value, np.float32), (channels,))
        operand = made.constant(f"{name}/constant", constant.reshape(1, 1, 1, channels))
        x = made.op(kind, [x, operand], name, shape, options=f"{kind.capitalize()}Options")
    return chain(made.write([pixels], [x]), model)


def with_softmax(model: bytes) -> bytes:
    """Makes a model put out probabilities in place of logits.

    Args:
        model: a .tflite with one float output `[N, classes]`.

    Returns:
        The file with the softmax over the last axis behind it.

    Raises:
        ValueError: the file is damaged, or has no such output.

    Example:
        >>> import jax.numpy as jnp
        >>> from compressjax.export import run
        >>> from compressjax.export.tflite import tflite
        >>> logits = tflite(lambda v, x: 0 * x, {}, jnp.ones((1, 2)), via='litert')
        >>> run(with_softmax(logits), np.ones((1, 2), np.float32))
        array([[0.5, 0.5]], dtype=float32)
    """
    shape = _float_end(model, "output")
    made = _File()
    logits = made.tensor("logits", shape, "float32")
    probabilities = made.op(
        "SOFTMAX", [logits], "probabilities", shape, options="SoftmaxOptions", beta=1.0
    )
    return chain(model, made.write([logits], [probabilities]))


def with_top_k(model: bytes, k: int) -> bytes:
    """Makes a model put out its k largest scores and their classes.

    Args:
        model: a .tflite with one float output `[N, classes]`.
        k: how many.

    Returns:
        The file; its outputs are the scores, float32 `[N, k]`, largest first, and the classes,
        int32 `[N, k]`. Of equal scores the smaller class comes first.

    Raises:
        ValueError: the file is damaged, has no such output, or has fewer classes.

    Example:
        >>> import jax.numpy as jnp
        >>> from compressjax.export import run
        >>> from compressjax.export.tflite import tflite
        >>> same = tflite(lambda v, x: 2 * x, {}, jnp.ones((1, 3)), via='litert')
        >>> run(with_top_k(same, 2), np.array([[1, 3, 2]], np.float32))[1]
        array([[1, 2]], dtype=int32)
    """
    shape = _float_end(model, "output")
    if not 1 <= k <= shape[-1]:
        raise ValueError(f"k is {k}, expected 1 to the {shape[-1]} classes of the model")
    made = _File()
    scores = made.tensor("scores", shape, "float32")
    count = made.constant("k", np.asarray(k, np.int32))
    top = (*shape[:-1], k)
    largest = made.op("TOPK_V2", [scores, count], "largest", top, options="TopKV2Options")
    classes = made.tensor("classes", top, "int32")
    made.graph.operators[-1].outputs = [largest, classes]
    return chain(model, made.write([scores], [largest, classes]))


def _float_end(model: bytes, end: str) -> tuple[int, ...]:
    """The shape of a file's only input or output, which must be float32."""
    graph = flatbuffer.read(model).subgraphs[0]
    tensors = [graph.tensors[int(i)] for i in (graph.inputs if end == "input" else graph.outputs)]
    found = [f"{flatbuffer.dtype(tensor)} {[int(n) for n in tensor.shape]}" for tensor in tensors]
    if len(tensors) != 1 or flatbuffer.dtype(tensors[0]) != np.float32:
        raise ValueError(
            f"the model's {end}s are {', '.join(found)}, expected one of float32: export it with "
            "float ends (int8_io=False)"
        )
    return tuple(int(n) for n in tensors[0].shape)


class _File:
    """A small file, built operation by operation."""

    def __init__(self) -> None:
        self.schema = require("ai_edge_litert.schema_py_generated")
        self.graph = self.schema.SubGraphT(tensors=[], operators=[], inputs=[], outputs=[])
        self.buffers = [self.schema.BufferT()]
        self.codes: list[Any] = []

    def tensor(self, name: str, shape: Sequence[int], dtype: str, buffer: int = 0) -> int:
        """Adds a tensor and gives its index."""
        kind = getattr(self.schema.TensorType, _TYPES[dtype])
        self.graph.tensors.append(
            self.schema.TensorT(
                shape=list(shape), type=kind, buffer=buffer, name=name, hasRank=True
            )
        )
        return len(self.graph.tensors) - 1

    def constant(self, name: str, value: np.ndarray) -> int:
        """Adds a constant and gives its index."""
        self.buffers.append(self.schema.BufferT(np.frombuffer(value.tobytes(), np.uint8)))
        return self.tensor(name, value.shape, str(value.dtype), len(self.buffers) - 1)

    def op(
        self, kind: str, inputs: list[int], name: str, shape: Sequence[int], *,
        options: str, version: int = 1, **fields: Any,
    ) -> int:  # fmt: skip
        """Adds an operation with one float output, whose index it gives."""
        number = getattr(self.schema.BuiltinOperator, kind)
        self.codes.append(self.schema.OperatorCodeT(min(number, 127), None, version, number))
        output = self.tensor(name, shape, "float32")
        operator = self.schema.OperatorT(
            opcodeIndex=len(self.codes) - 1, inputs=inputs, outputs=[output]
        )
        operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, options)
        operator.builtinOptions = getattr(self.schema, f"{options}T")()
        for field, value in fields.items():
            setattr(operator.builtinOptions, field, value)
        self.graph.operators.append(operator)
        return output

    def cast(self) -> dict[str, int]:
        """The options of a cast of bytes to floats."""
        types = self.schema.TensorType
        return {"inDataType": types.UINT8, "outDataType": types.FLOAT32}

    def write(self, inputs: list[int], outputs: list[int]) -> bytes:
        """Packs the file with its signature."""
        schema = self.schema
        self.graph.inputs, self.graph.outputs = inputs, outputs
        ends = [
            [schema.TensorMapT(f"{prefix}_{i}", tensor) for i, tensor in enumerate(tensors)]
            for prefix, tensors in (("input", inputs), ("output", outputs))
        ]
        model = schema.ModelT(
            version=3, operatorCodes=self.codes, subgraphs=[self.graph], buffers=self.buffers,
            signatureDefs=[schema.SignatureDefT(*ends, SIGNATURE, 0)],
        )  # fmt: skip
        return flatbuffer.write(model)
