"""How many bytes weights take: as they are, after gzip, and at their entropy.

A zero costs nothing only where something codes it. A .tflite gives every weight the same bits, gzip
finds most of what repeats, and the entropy is what no code of single values can beat: "Deep
Compression" (Han, Mao and Dally, 2016, section 4) codes pruned and quantized weights with Huffman's
code, which takes at most one bit a weight more; arithmetic coding comes as near as one likes.
`table.py` shows what a run measured; the figures here are about one file, or one tree of weights.
"""

from __future__ import annotations

import gzip
from typing import Any, NamedTuple

import jax
import numpy as np

from compressjax.export import flatbuffer, sparse


class CodedSize(NamedTuple):
    """What the constants of a model take.

    Attributes:
        weights: numbers in all, zeros included.
        nonzero: numbers that are not 0.
        file_bytes: bytes as they are stored.
        gzip_bytes: bytes after gzip at level 9.
        entropy_bytes: bytes of an ideal code for each array (`coded_bits`), and of all that is no
            number as it is. Gzip may take less where zeros stand in runs, which it also sees.
    """

    weights: int
    nonzero: int
    file_bytes: int
    gzip_bytes: int
    entropy_bytes: int


def entropy_bits(values: np.ndarray) -> float:
    """Bits of an ideal code for an array that codes each value by how often it occurs.

    The entropy of Shannon (1948) of the values, times their number: `-sum(n * log2(n / N))`.

    Args:
        values: any shape and type; what counts as one value is one pattern of bits.

    Returns:
        Bits for the whole array, 0 where all values are the same.

    Example:
        >>> entropy_bits(np.array([0, 0, 1, 2], np.int8))
        6.0
    """
    _, counts = np.unique(_patterns(values), return_counts=True)
    return float(np.sum(counts * np.log2(values.size / counts)))


def coded_bits(values: np.ndarray) -> float:
    """Bits of an ideal code for an array with all that is needed to read it.

    The better of two codes: each value by how often it occurs and the list of the values that
    occur, which suits codes of a few bits (the code book of Han et al.); or where the zeros are and
    the other values as they stand, which suits floats, where hardly any value occurs twice. How
    often each value occurs is not counted.

    Args:
        values: any shape, a type of numbers.

    Returns:
        Bits for the whole array, at most as many as it has in memory.

    Example:
        >>> round(coded_bits(np.array([0, 0, 0, 0, 0, 0, 1, 2], np.float32)))
        70
    """
    width = 8 * values.itemsize
    distinct = np.unique(_patterns(values)).size
    nonzero = values != 0
    listed = entropy_bits(values) + width * distinct
    return min(listed, entropy_bits(nonzero) + width * int(nonzero.sum()))


def tree_size(tree: Any) -> CodedSize:
    """Measures a tree of weights, float or quantized.

    Args:
        tree: arrays of any type, as `params` or as codes.

    Returns:
        The sizes; `file_bytes` is what the arrays take in memory.

    Raises:
        TypeError: a leaf is no array of numbers.

    Example:
        >>> tree_size({'kernel': np.array([[0, 0, 0, 3]] * 8, np.int8)})[:3]
        (32, 8, 32)
    """
    arrays = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        if array.dtype.kind not in "biufV" or array.itemsize > 8 or array.dtype.names:
            raise TypeError(
                f"{jax.tree_util.keystr(path)} is {array.dtype}, expected an array of numbers: "
                "leave out keys and text"
            )
        arrays.append(array)
    content = b"".join(array.tobytes() for array in arrays)
    return _size(arrays, content, rest=0)


def coded_size(model: bytes) -> CodedSize:
    """Measures a .tflite: its constants are coded by their values, the rest counts as it is.

    A weight that the file stores sparse is counted as the weight that it unpacks to.

    Args:
        model: the .tflite.

    Returns:
        The sizes. Biases, shapes and other constants of the graph are among the numbers.

    Raises:
        TypeError: `model` is not bytes.
        ValueError: the file is damaged.

    Example:
        >>> import jax.numpy as jnp
        >>> from compressjax.export import tflite
        >>> def apply(variables, x):
        ...     return x @ variables['kernel']
        >>> model = tflite(apply, {'kernel': jnp.eye(64)}, jnp.ones((1, 64)), via='litert')
        >>> size = coded_size(model)
        >>> size.nonzero, size.entropy_bytes < size.file_bytes / 4
        (64, True)
    """
    unpacked = flatbuffer.read(model)
    arrays: dict[int, np.ndarray] = {}
    places = 0
    for graph in unpacked.subgraphs:
        for tensor in graph.tensors:
            array = sparse.dense(unpacked, tensor)
            if array is not None and tensor.buffer not in arrays:
                arrays[tensor.buffer] = array
                places += sparse.place_bytes(tensor)
    held = sum(len(unpacked.buffers[buffer].data) for buffer in arrays) + places
    return _size(list(arrays.values()), model, rest=len(model) - held)


def _patterns(values: np.ndarray) -> np.ndarray:
    """The bits of each value as an unsigned integer, in one dimension."""
    return np.ascontiguousarray(values).reshape(-1).view(f"u{values.itemsize}")


def _size(arrays: list[np.ndarray], content: bytes, rest: int) -> CodedSize:
    bits = sum(coded_bits(array) for array in arrays)
    return CodedSize(
        weights=sum(array.size for array in arrays),
        nonzero=sum(int(np.count_nonzero(array)) for array in arrays),
        file_bytes=len(content),
        gzip_bytes=len(gzip.compress(content, compresslevel=9, mtime=0)),
        entropy_bytes=rest + int(np.ceil(bits / 8)),
    )
