"""TFLite's sparse constants and the entropy of values, from their definitions in plain Python.

`unpack` follows the levels of the format one by one, as its comments in the schema tell, and never
builds an index array; the library unpacks all levels at once.
"""

import collections
import math
from typing import Any

import numpy as np


def unpack(sparsity: Any, shape: tuple[int, ...], values: np.ndarray) -> np.ndarray:
    """Walks the tree of levels and puts each value where its path leads."""
    result = np.zeros(shape, values.dtype)
    stream = iter(values.ravel())
    levels, order = sparsity.dimMetadata, [int(axis) for axis in sparsity.traversalOrder]
    blocks = [] if sparsity.blockMap is None else [int(axis) for axis in sparsity.blockMap]

    def place(path: list[int]) -> tuple[int, ...]:
        at = dict(zip(order, path, strict=True))
        full = [at[axis] for axis in range(len(shape))]
        for number, axis in enumerate(blocks):
            size = levels[len(shape) + number].denseSize
            full[axis] = full[axis] * size + at[len(shape) + number]
        return tuple(full)

    def walk(depth: int, node: int, path: list[int]) -> None:
        if depth == len(levels):
            result[place(path)] = next(stream)
            return
        level = levels[depth]
        if level.format == 0:
            for i in range(level.denseSize):
                walk(depth + 1, node * level.denseSize + i, [*path, i])
        else:
            starts, places = level.arraySegments.values, level.arrayIndices.values
            for i in range(int(starts[node]), int(starts[node + 1])):
                walk(depth + 1, i, [*path, int(places[i])])

    walk(0, 0, [])
    assert next(stream, None) is None, "values are left over"
    return result


def entropy_bits(values: list[Any]) -> float:
    """`-sum over values of log2 of its frequency` (Shannon, 1948), one value after another."""
    counts = collections.Counter(values)
    return -math.fsum(math.log2(counts[value] / len(values)) for value in values)
