"""Runs a model of a fixed batch on any number of rows, slice by slice.

That is exact because the rows of a batch do not touch each other. `runtime.py` does the same for
LiteRT, whose inputs may be codes; the other runtimes share this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def in_slices(
    call: Callable[[list[np.ndarray]], list[np.ndarray]],
    inputs: Sequence[np.ndarray],
    shapes: Sequence[tuple[int, ...]],
) -> tuple[np.ndarray, ...]:
    """Runs a model on a batch.

    Args:
        call: runs arrays of exactly `shapes`.
        inputs: float arrays `[N, ...]`.
        shapes: of the model's inputs.

    Returns:
        The outputs, `[N, ...]`; the rows that fill up the last slice are cut.

    Raises:
        TypeError: an input is not a float array.
        ValueError: an input has the wrong shape, or there are too few or too many.

    Example:
        >>> double = lambda arrays: [2 * arrays[0]]
        >>> in_slices(double, [np.ones((3, 1), np.float32)], [(2, 1)])[0].ravel()
        array([2., 2., 2.], dtype=float32)
    """
    arrays = _checked(inputs, shapes)
    if not arrays[0].ndim:
        return tuple(call(arrays))
    size, total, parts = shapes[0][0], len(arrays[0]), []
    for i in range(-(-total // size)):
        slices = []
        for array, shape in zip(arrays, shapes, strict=True):
            places = np.arange(i * shape[0], (i + 1) * shape[0])
            slices.append(array[np.minimum(places, len(array) - 1)])
        parts.append(call(slices))
    rest = -total % size
    joined = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return tuple(array[: len(array) - rest] for array in joined)


def _checked(inputs: Sequence[np.ndarray], shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    if len(inputs) != len(shapes):
        raise ValueError(f"the model takes {len(shapes)} inputs, found {len(inputs)} arrays")
    arrays = [np.asarray(value) for value in inputs]
    for position, (array, shape) in enumerate(zip(arrays, shapes, strict=True)):
        if array.dtype.kind != "f":
            raise TypeError(f"input {position} is {array.dtype}, expected float32")
        if array.ndim != len(shape) or array.shape[1:] != tuple(shape[1:]):
            raise ValueError(
                f"input {position} has shape {list(array.shape)}, the model takes "
                f"{['N', *shape[1:]]} (exported with N = {shape[0] if shape else 1})"
            )
    counts = {len(a) / s[0] for a, s in zip(arrays, shapes, strict=True) if len(s)}
    if len(counts) > 1 or 0 in counts:
        raise ValueError(
            f"the inputs have {[len(array) for array in arrays]} rows: expected the same number "
            "of rows, at least one"
        )
    return [array.astype(np.float32) for array in arrays]
