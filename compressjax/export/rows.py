"""Runs a model of a fixed batch on any number of rows, slice by slice.

That is exact because the rows of a batch do not touch each other. LiteRT's session (`runtime.py`)
and the other runtimes (`onnx/`, `mnn/`) check and cut their inputs here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np


class Taken(NamedTuple):
    """What a model takes as one input.

    Attributes:
        shape: with the batch that it was exported with.
        dtype: of what is given.
        codes: whether the runtime quantizes it, so that reals are given for integers.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any] = np.dtype(np.float32)
    codes: bool = False


def checked(inputs: Sequence[Any], taken: Sequence[Taken]) -> list[np.ndarray]:
    """Checks the inputs of a model.

    Args:
        inputs: arrays `[N, ...]`.
        taken: what the model takes.

    Returns:
        The arrays, in the types that the model takes.

    Raises:
        TypeError: an input is not of the type that the model takes.
        ValueError: an input has the wrong shape, or there are too few or too many.

    Example:
        >>> checked([np.zeros((3, 2))], [Taken((1, 2))])[0].dtype
        dtype('float32')
        >>> checked([np.zeros((3, 4))], [Taken((1, 2))])
        Traceback (most recent call last):
        ...
        ValueError: input 0 has shape [3, 4], the model takes ['N', 2] (exported with N = 1)
    """
    if len(inputs) != len(taken):
        raise ValueError(f"the model takes {len(taken)} inputs, found {len(inputs)} arrays")
    arrays = []
    for position, (value, (shape, dtype, codes)) in enumerate(zip(inputs, taken, strict=True)):
        array = np.asarray(value)
        if array.dtype != dtype and not array.dtype.kind == dtype.kind == "f":
            quantized = " (integer inputs are quantized here)" if codes else ""
            raise TypeError(f"input {position} is {array.dtype}, expected {dtype}{quantized}")
        if array.ndim != len(shape) or array.shape[1:] != tuple(shape[1:]):
            raise ValueError(
                f"input {position} has shape {list(array.shape)}, the model takes "
                f"{['N', *shape[1:]]} (exported with N = {shape[0] if shape else 1})"
            )
        arrays.append(array.astype(dtype))
    counts = {len(x) / entry.shape[0] for x, entry in zip(arrays, taken, strict=True) if x.ndim}
    if len(counts) > 1 or 0 in counts:
        raise ValueError(
            f"the inputs have {[len(x) if x.ndim else 1 for x in arrays]} rows: expected the same "
            "number of rows, at least one"
        )
    return arrays


def slices(
    arrays: Sequence[np.ndarray], taken: Sequence[Taken]
) -> Iterator[tuple[list[np.ndarray], int]]:
    """Cuts checked inputs into slices of exactly the model's batch.

    Args:
        arrays: from `checked`.
        taken: what the model takes.

    Yields:
        The arrays of a slice, the last row repeated where rows are missing, and how many rows of
        the first one count.

    Example:
        >>> [(x.tolist(), n) for (x,), n in slices([np.arange(3)], [Taken((2,))])]
        [([0, 1], 2), ([2, 2], 1)]
    """
    if not arrays[0].ndim:
        yield list(arrays), 1
        return
    total, size = len(arrays[0]), taken[0].shape[0]
    for number in range(-(-total // size)):
        parts = []
        for array, (shape, _, _) in zip(arrays, taken, strict=True):
            places = np.arange(number * shape[0], (number + 1) * shape[0])
            parts.append(array[np.minimum(places, len(array) - 1)])
        yield parts, min(size, total - number * size)


class Session(Protocol):
    """A loaded model of a fixed batch, of whatever runtime."""

    @property
    def taken(self) -> Sequence[Taken]:
        """What the model takes."""

    def call(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """Runs the model once, on arrays of exactly the shapes that it takes."""


def run(session: Session, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Runs a model on a batch of any size.

    Args:
        session: the model.
        inputs: arrays `[N, ...]`.

    Returns:
        The outputs, `[N, ...]`; the rows that fill up the last slice are cut.

    Raises:
        TypeError: an input is not of the type that the model takes.
        ValueError: an input has the wrong shape, or there are too few or too many.
    """
    parts = [
        [cut(x, count, arrays[0]) for x in session.call(arrays)]
        for arrays, count in slices(checked(inputs, session.taken), session.taken)
    ]
    return joined(parts)


def cut(output: np.ndarray, count: int, given: np.ndarray) -> np.ndarray:
    """Drops from an output what was computed for rows that do not count.

    Args:
        output: of one slice; its first axis is that of the batch, or has it merged into it.
        count: how many rows count.
        given: the slice's first input.

    Returns:
        The part for these rows; all of an output that does not follow the batch.

    Example:
        >>> cut(np.arange(4), 1, np.zeros((2, 3)))
        array([0, 1])
    """
    if not given.ndim or not output.ndim or len(output) % len(given):
        return output
    return output[: len(output) // len(given) * count]


def joined(parts: Sequence[Sequence[np.ndarray]]) -> tuple[np.ndarray, ...]:
    """Joins the outputs of slices; those of several scalars become a vector.

    Args:
        parts: the outputs of each slice.

    Returns:
        The outputs.

    Example:
        >>> joined([[np.ones(2), np.float32(1)], [np.zeros(1), np.float32(2)]])
        (array([1., 1., 0.]), array([1., 2.], dtype=float32))
    """
    if len(parts) == 1:
        return tuple(parts[0])
    return tuple(np.concatenate([*map(np.atleast_1d, x)]) for x in zip(*parts, strict=True))
