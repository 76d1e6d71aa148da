"""Opens the batch of a file, so that LiteRT takes any number of rows in one call.

Exported files have the batch of their example, and `run` feeds them slice by slice. Where a
runtime should choose the batch itself (`resize_tensor_input`), nothing in the file may hold it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from compressjax.export import flatbuffer
from compressjax.export._require import require
from compressjax.export.runtime import Session

_ROWS = 3
_ROUNDED = 1e-4  # float kernels may add in another order for another batch


def dynamic_batch(model: bytes) -> bytes:
    """Opens the first axis of every input.

    Operations that name the batch (RESHAPE, SLICE, STRIDED_SLICE) are told to take what comes.
    Whether the rest follows is found out: the file is run with three rows, at once and one by one.

    Args:
        model: the .tflite, of one signature.

    Returns:
        The file with a shape signature of -1 in front, at the inputs and all that follows from
            them; its default stays the old batch.

    Raises:
        ValueError: the file is damaged, its inputs have no common first axis, or an operation holds
            the batch.

    Example:
        >>> import jax.numpy as jnp
        >>> from compressjax.export.tflite import tflite
        >>> model = tflite(lambda v, x: x.reshape(1, 4) @ v, jnp.eye(4), jnp.ones((1, 2, 2)),
        ...                via='litert')
        >>> Session(dynamic_batch(model)).inputs[0]['shape_signature'].tolist()
        [-1, 2, 2]
    """
    unpacked = flatbuffer.read(model)
    if len(unpacked.subgraphs) != 1:
        raise ValueError(f"the file has {len(unpacked.subgraphs)} graphs, expected one")
    graph = unpacked.subgraphs[0]
    inputs = [graph.tensors[int(i)] for i in graph.inputs]
    sizes = {int(tensor.shape[0]) if len(tensor.shape) else 0 for tensor in inputs}
    if len(sizes) != 1 or sizes == {0}:
        shapes = [[int(n) for n in tensor.shape] for tensor in inputs]
        raise ValueError(f"the inputs have the shapes {shapes}: no common first axis is the batch")
    (batch,) = sizes
    computed = [graph.tensors[int(i)] for operator in graph.operators for i in operator.outputs]
    for tensor in [*inputs, *computed]:
        if len(tensor.shape):
            tensor.shapeSignature = [-1, *tensor.shape[1:]]
    for operator in graph.operators:
        _open(unpacked, graph, operator, batch)
    _follow(graph, flatbuffer.write(unpacked), batch)
    opened = flatbuffer.write(unpacked)
    _check(model, opened, batch)
    return opened


def _open(model: Any, graph: Any, operator: Any, batch: int) -> None:
    """Takes the batch out of an operation's constants."""
    kind = flatbuffer.op_name(model, operator)
    if kind == "TRANSPOSE_CONV":  # XNNPACK works out the batch, the builtin kernel fails
        name = flatbuffer.text(graph.tensors[operator.outputs[0]].name)
        raise ValueError(
            f"TRANSPOSE_CONV ({name}) holds the batch of {batch} in its output shape. Export with "
            "the batch that is needed, or write a resize and a convolution in its place."
        )
    if kind == "RESHAPE" and len(operator.inputs) > 1:
        shape = _constant(model, graph, operator, 1)
        if shape is not None and len(shape) and (shape > 0).all():
            _replace(model, graph, operator, 1, [-1, *shape[1:]])
            operator.builtinOptions = None
            operator.builtinOptionsType = 0
    elif kind == "SLICE":
        begin, size = (_constant(model, graph, operator, place) for place in (1, 2))
        if begin is not None and size is not None and (begin[0], size[0]) == (0, batch):
            _replace(model, graph, operator, 2, [-1, *size[1:]])
    elif kind == "STRIDED_SLICE":
        operands = [_constant(model, graph, operator, place) for place in (1, 2, 3)]
        if all(x is not None and len(x) for x in operands):
            if tuple(int(x[0]) for x in operands if x is not None) == (0, batch, 1):
                operator.builtinOptions.beginMask |= 1
                operator.builtinOptions.endMask |= 1


def _constant(model: Any, graph: Any, operator: Any, place: int) -> np.ndarray | None:
    return flatbuffer.constant(model, graph.tensors[operator.inputs[place]])


def _replace(model: Any, graph: Any, operator: Any, place: int, values: list[int]) -> None:
    """Gives an operator a constant operand of its own."""
    schema = require("ai_edge_litert.schema_py_generated")
    data = np.asarray(values, np.int32)
    model.buffers.append(schema.BufferT(np.frombuffer(data.tobytes(), np.uint8)))
    tensor = schema.TensorT(
        shape=[len(values)], type=schema.TensorType.INT32, buffer=len(model.buffers) - 1,
        name=f"{flatbuffer.text(graph.tensors[operator.outputs[0]].name)}/operand_{place}",
        hasRank=True,
    )  # fmt: skip
    graph.tensors.append(tensor)
    operator.inputs = [int(i) for i in operator.inputs]
    operator.inputs[place] = len(graph.tensors) - 1


def _follow(graph: Any, opened: bytes, batch: int) -> None:
    """Marks the tensors whose first axis changes with that of the inputs."""
    session = Session(opened, reference=True)  # it names an operation that fails, delegates do not
    try:
        session.resize(_ROWS * batch)
    except (RuntimeError, ValueError) as error:
        raise _held(batch, error) from error
    shapes = {d["index"]: d["shape"] for d in session.interpreter.get_tensor_details()}
    for index, tensor in enumerate(graph.tensors):
        shape = shapes.get(index, ())
        if len(shape) == len(tensor.shape) > 0 and shape[0] != tensor.shape[0]:
            tensor.shapeSignature = [-1, *tensor.shape[1:]]


def _held(batch: int, error: Exception) -> ValueError:
    return ValueError(
        f"an operation of the file holds the batch of {batch}: {str(error).rstrip('. ')}. Export "
        "with the batch that is needed, or without this operation."
    )


def _check(model: bytes, opened: bytes, batch: int) -> None:
    """Compares rows computed at once with the same rows one batch after the other."""
    single, whole, total = Session(model), Session(opened), _ROWS * batch
    rng = np.random.default_rng(0)
    rows = [_random(rng, (total, *d["shape"][1:]), d["dtype"]) for d in single.inputs]
    expected = [np.concatenate(parts) for parts in zip(*single.slices(rows), strict=True)]
    try:
        (found,) = whole.slices(rows)
    except (RuntimeError, ValueError) as error:
        raise _held(batch, error) from error
    for position, (ours, theirs) in enumerate(zip(expected, found, strict=True)):
        exact = ours.dtype.kind != "f"
        close = ours.shape == theirs.shape and np.allclose(
            ours, theirs, rtol=0, atol=0 if exact else _ROUNDED * max(1.0, np.abs(ours).max())
        )
        if not close:
            raise ValueError(
                f"output {position} of {total} rows at once differs from that of the rows "
                f"one by one (operations {flatbuffer.ops(model)}): an operation moves rows of the "
                "batch, such as a TRANSPOSE behind a RESHAPE. Export with the batch that is needed."
            )


def _random(rng: np.random.Generator, shape: tuple[int, ...], dtype: type[Any]) -> np.ndarray:
    """Rows that differ: reals, pixels, or indices that every table has."""
    if dtype in (np.float32, np.int8, np.int16):
        return rng.standard_normal(shape).astype(np.float32)
    return rng.integers(0, 256 if dtype == np.uint8 else 2, shape).astype(dtype)
