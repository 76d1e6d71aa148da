"""Operators that only move values: the same for codes, real values, integers and booleans.

LiteRT wants one grid for all the tensors of such an operator, so nothing is rounded.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from compressjax.export.meaning.call import Call, Rule


def _reshape(call: Call) -> jax.Array:
    known, shape = (call.fixed[1] if len(call.inputs) > 1 else None), call.shapes[0]
    if known is not None:
        return call.inputs[0].reshape(tuple(known.ravel().tolist()))
    if None in shape:
        raise ValueError("its shape is computed while the model runs, expected a constant")
    return call.inputs[0].reshape(shape)


def _squeeze(call: Call) -> jax.Array:
    axes = call.options.squeezeDims
    if axes is None or not len(axes):
        return jnp.squeeze(call.inputs[0])
    return jnp.squeeze(call.inputs[0], tuple(int(axis) for axis in axes))


def _expand(call: Call) -> jax.Array:
    return jnp.expand_dims(call.inputs[0], int(call.constant(1, "axis").item()))


def _transpose(call: Call) -> jax.Array:
    return jnp.transpose(call.inputs[0], call.constant(1, "axes").tolist())


def _pad(call: Call) -> jax.Array:
    x, grid = call.inputs[0], call.grids[0]
    widths = [(int(low), int(high), 0) for low, high in call.constant(1, "widths")]
    edge = jnp.zeros(()) if grid is None else grid.zero_point
    edge = call.inputs[2].reshape(()) if len(call.inputs) > 2 else edge
    return lax.pad(x, edge.astype(x.dtype), widths)


def _mirror_pad(call: Call) -> jax.Array:
    widths = [(int(low), int(high)) for low, high in call.constant(1, "widths")]
    return jnp.pad(call.inputs[0], widths, mode=("reflect", "symmetric")[call.options.mode])


def _slice(call: Call) -> jax.Array:
    starts, sizes = call.constant(1, "starts").tolist(), call.constant(2, "sizes").tolist()
    whole = call.inputs[0].shape
    sizes = [
        length - start if size == -1 else size
        for start, size, length in zip(starts, sizes, whole, strict=True)
    ]
    return lax.slice(call.inputs[0], starts, list(map(operator.add, starts, sizes)))


def _strided_slice(call: Call) -> jax.Array:
    options, ranges = call.options, list[Any]()
    starts, ends, steps = (call.constant(i, "ranges").tolist() for i in (1, 2, 3))
    if getattr(options, "offset", False):
        ends = list(map(operator.add, starts, ends))
    for place, (start, end, step) in enumerate(zip(starts, ends, steps, strict=True)):
        bit = 1 << place
        if options.ellipsisMask & bit:
            ranges.append(...)
        elif options.newAxisMask & bit:
            ranges.append(None)
        elif options.shrinkAxisMask & bit:
            ranges.append(start)
        else:
            begin = None if options.beginMask & bit else start
            ranges.append(slice(begin, None if options.endMask & bit else end, step))
    return call.inputs[0][tuple(ranges)]


def _concatenate(call: Call) -> jax.Array:
    return jnp.concatenate(call.inputs, axis=call.options.axis)


def _pack(call: Call) -> jax.Array:
    return jnp.stack(call.inputs, axis=call.options.axis)


def _unpack(call: Call) -> tuple[jax.Array, ...]:
    axis = call.options.axis
    parts = jnp.split(call.inputs[0], len(call.shapes), axis=axis)
    return tuple(jnp.squeeze(part, axis) for part in parts)


def _split(call: Call) -> tuple[jax.Array, ...]:
    axis = int(call.constant(0, "axis").item())
    return tuple(jnp.split(call.inputs[1], len(call.shapes), axis=axis))


def _split_v(call: Call) -> tuple[jax.Array, ...]:
    x, sizes = call.inputs[0], call.constant(1, "sizes").ravel()
    axis = call.axis(2, x.ndim)
    sizes = np.where(sizes < 0, x.shape[axis] - sizes[sizes >= 0].sum(), sizes)
    if sizes.sum() != x.shape[axis] or (sizes < 0).any():
        raise ValueError(f"it splits {x.shape[axis]} values into {sizes.tolist()}")
    return tuple(jnp.split(x, np.cumsum(sizes)[:-1].tolist(), axis=axis))


def _gather(call: Call) -> jax.Array:
    x, places = call.inputs[0], jnp.asarray(call.inputs[1])
    lead, axis = call.options.batchDims, call.options.axis % x.ndim

    def take(x: jax.Array, places: jax.Array) -> jax.Array:
        return jnp.take(x, places, axis=axis - lead, mode="clip")

    for _ in range(lead):
        take = jax.vmap(take)
    return take(x, places)


def _gather_nd(call: Call) -> jax.Array:
    places = jnp.asarray(call.inputs[1])
    return call.inputs[0][tuple(places[..., i] for i in range(places.shape[-1]))]


def _embedding(call: Call) -> jax.Array:
    return jnp.take(call.inputs[1], jnp.asarray(call.inputs[0]), axis=0, mode="clip")


def _resize_nearest(call: Call) -> jax.Array:
    """By LiteRT's GetNearestNeighbor (internal/reference/resize_nearest_neighbor.h)."""
    x, options = call.inputs[0], call.options
    shift = np.float32(0.5 if options.halfPixelCenters else 0.0)
    for axis, wanted in zip((1, 2), call.constant(1, "sizes").tolist(), strict=True):
        size, corners = x.shape[axis], options.alignCorners and wanted > 1
        scale = np.float32((size - 1) / (wanted - 1)) if corners else np.float32(size / wanted)
        at = (np.arange(wanted, dtype=np.float32) + shift) * scale
        at = np.floor(at + np.float32(0.5)) if options.alignCorners else np.floor(at)
        x = jnp.take(x, np.minimum(at.astype(int), size - 1), axis=axis)
    return x


def _tile(call: Call) -> jax.Array:
    return jnp.tile(call.inputs[0], call.constant(1, "counts").tolist())


def _broadcast(call: Call) -> jax.Array:
    x, shape = call.inputs[0], tuple(call.constant(1, "sizes").tolist())
    return jnp.broadcast_to(x.reshape((1,) * (len(shape) - x.ndim) + x.shape), shape)


def _reverse(call: Call) -> jax.Array:
    return jnp.flip(call.inputs[0], tuple(call.constant(1, "axes").ravel().tolist()))


def _depth_to_space(call: Call) -> jax.Array:
    x, block = call.inputs[0], call.options.blockSize
    n, h, w, c = x.shape
    x = x.reshape(n, h, w, block, block, c // block**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, h * block, w * block, c // block**2)


def _space_to_depth(call: Call) -> jax.Array:
    x, block = call.inputs[0], call.options.blockSize
    n, h, w, c = x.shape
    x = x.reshape(n, h // block, block, w // block, block, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, h // block, w // block, c * block**2)


def _space_to_batch(call: Call) -> jax.Array:
    """The phases of each block go to the batch axis, the first block axis outermost."""
    x, grid = call.inputs[0], call.grids[0]
    blocks = call.constant(1, "blocks").ravel().tolist()
    widths = [(int(low), int(high), 0) for low, high in call.constant(2, "widths")]
    rest = x.ndim - 1 - len(blocks)
    edge = jnp.zeros(()) if grid is None else grid.zero_point
    x = lax.pad(x, edge.astype(x.dtype), [(0, 0, 0), *widths, *[(0, 0, 0)] * rest])
    split = [x.shape[0]]
    for size, block in zip(x.shape[1:], blocks, strict=False):
        split += [size // block, block]
    tail = x.shape[1 + len(blocks) :]
    phases = [2 + 2 * i for i in range(len(blocks))]
    order = [*phases, 0, *(1 + 2 * i for i in range(len(blocks)))]
    order += range(len(split), len(split) + len(tail))
    sizes = [size // block for size, block in zip(x.shape[1:], blocks, strict=False)]
    return x.reshape(*split, *tail).transpose(order).reshape(-1, *sizes, *tail)


def _batch_to_space(call: Call) -> jax.Array:
    x, blocks = call.inputs[0], call.constant(1, "blocks").ravel().tolist()
    count, rest = len(blocks), x.shape[1 + len(blocks) :]
    split = x.reshape(*blocks, -1, *x.shape[1:])
    order = [count]
    for place in range(count):
        order += [count + 1 + place, place]
    order += range(2 * count + 1, split.ndim)
    sizes = [size * block for size, block in zip(x.shape[1:], blocks, strict=False)]
    joined = split.transpose(order).reshape(-1, *sizes, *rest)
    ranges = [
        slice(int(low), size - int(high))
        for (low, high), size in zip(call.constant(2, "crops"), sizes, strict=True)
    ]
    return joined[(slice(None), *ranges)]


RULES: Mapping[str, Rule] = {
    "RESHAPE": _reshape, "SQUEEZE": _squeeze, "EXPAND_DIMS": _expand, "TRANSPOSE": _transpose,
    "PAD": _pad, "PADV2": _pad, "MIRROR_PAD": _mirror_pad, "SLICE": _slice,
    "STRIDED_SLICE": _strided_slice, "CONCATENATION": _concatenate, "PACK": _pack,
    "UNPACK": _unpack, "SPLIT": _split, "SPLIT_V": _split_v, "GATHER": _gather,
    "GATHER_ND": _gather_nd, "EMBEDDING_LOOKUP": _embedding, "TILE": _tile,
    "BROADCAST_TO": _broadcast, "REVERSE_V2": _reverse, "DEPTH_TO_SPACE": _depth_to_space,
    "SPACE_TO_DEPTH": _space_to_depth, "SPACE_TO_BATCH_ND": _space_to_batch,
    "BATCH_TO_SPACE_ND": _batch_to_space, "RESIZE_NEAREST_NEIGHBOR": _resize_nearest,
}  # fmt: skip
