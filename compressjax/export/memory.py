"""How much memory the tensors of a model take while it runs.

LiteRT puts them into one block, the arena, and its Python interface does not tell how large that
is. So the block is planned here as LiteRT plans it: computed from the file, not measured.
"""

from __future__ import annotations

import collections
import math
from typing import Any

from compressjax.export import flatbuffer

_ALIGNMENT = 64  # bytes, of every tensor in LiteRT's arena
_VIEWS = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS")  # put out the memory that they read
_IN_PLACE = ("ADD", "SUB", "MUL", "DIV")  # write over an operand that nobody else reads


def arena_bytes(model: flatbuffer.File) -> int:
    """Plans the memory of a model's inputs, outputs and inner tensors.

    LiteRT's own planner (Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net
    Inference", 2020, greedy by size): the largest tensor first, each into the smallest gap that
    is free while it lives. Inputs live all the time, outputs from where they are made. Weights,
    and what kernels need for themselves (XNNPACK's packed weights, patches of convolutions), are
    not part of it.

    Args:
        model: the .tflite, as bytes or as a path.

    Returns:
        Bytes, of the first subgraph at the batch size in the file.

    Raises:
        OSError: the path cannot be read.
        ValueError: the file is damaged.

    Example:
        >>> import jax.numpy as jnp
        >>> from compressjax.export.tflite import tflite
        >>> double = lambda variables, x: x * 2
        >>> arena_bytes(tflite(double, {}, jnp.ones((1, 64)), via='litert'))
        512
    """
    unpacked = flatbuffer.read(flatbuffer.content(model))
    graph = unpacked.subgraphs[0]
    end = len(graph.operators or [])
    lives = {int(i): (0, end) for i in graph.inputs}
    homes = _homes(unpacked)
    for step, operator in enumerate(graph.operators or []):
        for tensor in (*operator.inputs, *operator.outputs):
            home = homes.get(int(tensor), int(tensor))
            if home >= 0 and not _constant(unpacked, graph.tensors[home]):
                first, last = lives.get(home, (step, step))
                lives[home] = (first, end if home in graph.outputs else max(last, step))
    sizes = {i: _bytes(graph.tensors[i]) for i in lives}
    order = sorted(lives, key=lambda i: (lives[i] != (0, end), -sizes[i], lives[i][0]))
    placed: list[tuple[int, int, tuple[int, int]]] = []  # start, end, life
    for tensor in order:
        first, last = lives[tensor]
        busy = sorted((a, b) for a, b, life in placed if life[0] <= last and first <= life[1])
        start = _gap(busy, sizes[tensor])
        placed.append((start, start + sizes[tensor], lives[tensor]))
    return _aligned(max((stop for _, stop, _ in placed), default=0))


def _homes(model: Any) -> dict[int, int]:
    """Tensor -> the earlier tensor whose memory it is given."""
    graph = model.subgraphs[0]
    inputs, outputs = {int(i) for i in graph.inputs}, {int(i) for i in graph.outputs}
    reads = collections.Counter(int(i) for op in graph.operators or [] for i in op.inputs)
    reads.update([*inputs, *outputs])
    homes: dict[int, int] = {}
    for operator in graph.operators or []:
        kind, made = flatbuffer.op_name(model, operator), int(operator.outputs[0])
        operands = 1 if kind in _VIEWS else 2 if kind in _IN_PLACE else 0
        for read in map(int, operator.inputs[:operands]):
            home, tensor = homes.get(read, read), graph.tensors[read]
            alone = max(reads[read], reads[home]) == 1
            same = 4 < _bytes(tensor) == _bytes(graph.tensors[made])
            if (
                read not in inputs
                and made not in outputs
                and not _constant(model, tensor)
                and (kind in _VIEWS or (alone and same))
            ):
                homes[made] = home
                break
    return homes


def _gap(busy: list[tuple[int, int]], size: int) -> int:
    """The smallest gap between sorted spans that holds `size` bytes, or the place behind them."""
    best, least, free = None, math.inf, 0
    for start, stop in busy:
        if size <= start - free < least:
            best, least = free, start - free
        free = max(free, _aligned(stop))
    return free if best is None else best


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _bytes(tensor: Any) -> int:
    shape = [] if tensor.shape is None else tensor.shape
    return math.prod(int(size) for size in shape) * flatbuffer.dtype(tensor).itemsize


def _constant(model: Any, tensor: Any) -> bool:
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0
