"""Placing operations that move codes: change shape or order, cut, repeat, pad and join."""

import math
from typing import Any

import jax
import numpy as np

from compressjax.graph import Graph, Op, Value, evaluate
from compressjax.quant.placement.placer import Placer, literal


def shareable(placer: Placer, op: Op) -> list[str]:
    """The tensors that an operation reads, ready to share one range; empty ones are left out."""
    inputs = []
    for i, value in enumerate(op.inputs):
        if 0 in value.shape:
            continue
        name = placer.tensor(op, value)
        if placer.range_of(name) in placer.fixed:
            # A fixed grid cannot be shared with the other parts: store the part on theirs.
            name = placer.add(
                op, "requantize", [name], None, name=f"{op.name}/part_{i}", shape=value.shape
            )
        inputs.append(name)
    return inputs


def concatenate(placer: Placer, op: Op) -> None:
    """Concatenation: all parts share one range."""
    inputs = shareable(placer, op)
    if len(inputs) == 1:
        placer.tensors[op.outputs[0]] = inputs[0]
        return
    params = {"axis": int(op.params["dimension"])}
    placer.add(op, "concatenate", inputs, op.outputs[0], params=params, same_range=True)


def pad(placer: Placer, op: Op) -> None:
    """Padding with zeros."""
    config = op.params["padding_config"]
    if literal(op.inputs[1]) != 0.0 or any(inner for *_, inner in config):
        placer.refuse(op, "LiteRT pads int8 with zeros, at the edges")
    if any(low < 0 or high < 0 for low, high, _ in config):
        placer.refuse(op, "its padding is negative: slice instead")
    params = {"padding": tuple((int(lo), int(hi)) for lo, hi, _ in config), "lowest": False}
    x = placer.tensor(op, op.inputs[0])
    placer.add(op, "pad", [x], op.outputs[0], params=params, same_range=True)


def reshape(placer: Placer, op: Op) -> None:
    """Reshapes, and broadcasts that only add axes of size one."""
    x_value, out = op.inputs[0], op.outputs[0]
    shape = op.out_shape
    x = placer.tensor(op, x_value)
    if op.kind == "broadcast_in_dim" and math.prod(shape) != math.prod(x_value.shape):
        if _repetition(placer, op):
            return
        dims = op.params["broadcast_dimensions"]
        sizes = {d: x_value.shape[i] for i, d in enumerate(dims)}
        shape = tuple(sizes.get(axis, 1) for axis in range(len(shape)))
        if not _broadcasts(placer.graph, op):
            x = reshaped(placer, op, x, shape, "expanded")
            _repeat_axes(placer, op, x, shape)
            return
    if shape == x_value.shape:
        placer.tensors[out] = x
        return
    placer.add(op, "reshape", [x], out, shape=shape, same_range=True)


def transpose(placer: Placer, op: Op) -> None:
    """A permutation of axes."""
    x = placer.tensor(op, op.inputs[0])
    params = {"permutation": tuple(int(axis) for axis in op.params["permutation"])}
    placer.add(op, "transpose", [x], op.outputs[0], params=params, same_range=True)


def stack(placer: Placer, op: Op) -> None:
    """A concatenation along a new axis."""
    axis, parts = int(op.params["axis"]), shareable(placer, op)
    shape = tuple(1 if i == axis else size for i, size in enumerate(op.out_shape))
    parts = [reshaped(placer, op, x, shape, f"expanded_{i}") for i, x in enumerate(parts)]
    params = {"axis": axis}
    placer.add(op, "concatenate", parts, op.outputs[0], params=params, same_range=True)


def reverse(placer: Placer, op: Op) -> None:
    """A reversal is a choice of positions, the last one first."""
    axes = [axis for axis in op.params["dimensions"] if op.out_shape[axis] > 1]
    x = placer.tensor(op, op.inputs[0])
    if not axes:
        placer.tensors[op.outputs[0]] = x
    for i, axis in enumerate(axes):
        params = {"axis": int(axis), "indices": tuple(reversed(range(op.out_shape[axis])))}
        last = i == len(axes) - 1
        x = placer.add(
            op, "gather", [x], op.outputs[0] if last else None,
            name=op.name if last else f"{op.name}/axis_{axis}", params=params, same_range=True,
        )  # fmt: skip


def slice_(placer: Placer, op: Op) -> None:
    """A strided slice."""
    x = placer.tensor(op, op.inputs[0])
    if op.out_shape == op.inputs[0].shape:  # all of it
        placer.tensors[op.outputs[0]] = x
        return
    starts, limits = op.params["start_indices"], op.params["limit_indices"]
    strides = op.params["strides"] or (1,) * len(starts)
    params = {"starts": tuple(starts), "limits": tuple(limits), "strides": tuple(strides)}
    placer.add(op, "slice", [x], op.outputs[0], params=params, same_range=True)


def split(placer: Placer, op: Op) -> None:
    """A split is one slice for each part that is read."""
    graph, x = placer.graph, placer.tensor(op, op.inputs[0])
    axis, start, shape = op.params["axis"], 0, op.inputs[0].shape
    for i, (size, value) in enumerate(zip(op.params["sizes"], op.outputs, strict=True)):
        if value not in graph.consumers and value not in graph.outputs:
            start += int(size)
            continue
        starts, limits = [0] * len(shape), list(shape)
        starts[axis], limits[axis] = start, start + int(size)
        params = {"starts": tuple(starts), "limits": tuple(limits), "strides": (1,) * len(shape)}
        placer.add(
            op,
            "slice",
            [x],
            value,
            name=f"{op.name}_{i}",
            shape=value.shape,
            params=params,
            same_range=True,
        )
        start += int(size)


def gather(placer: Placer, op: Op) -> None:
    """A choice of positions along one axis, known when the function is traced."""
    numbers, shape = op.params["dimension_numbers"], op.inputs[0].shape
    indices = _known_indices(placer.graph, op.inputs[1])
    axis = numbers.start_index_map[0]
    whole = tuple(1 if i == axis else size for i, size in enumerate(shape))
    plain = (
        tuple(numbers.start_index_map) == tuple(numbers.collapsed_slice_dims) == (axis,)
        and not numbers.operand_batching_dims
        and tuple(op.params["slice_sizes"]) == whole
        and tuple(numbers.offset_dims) == tuple(i for i in range(len(shape)) if i != axis)
    )
    if indices is None or not plain or indices.ndim != 2:
        placer.refuse(op, "LiteRT gathers in int8 along one axis, at positions that are constants")
    if indices.min() < 0 or indices.max() >= shape[axis]:
        placer.refuse(op, f"it gathers positions outside its axis of length {shape[axis]}")
    _take(placer, op, op.outputs[0], axis, indices.ravel())


def _known_indices(graph: Graph, value: Value) -> np.ndarray | None:
    """The integers that a value is, if it depends on no variable."""
    try:
        with jax.ensure_compile_time_eval():
            return np.asarray(evaluate(graph, [value], {})[0])
    except ValueError:  # variables or inputs are missing
        return None


def _take(placer: Placer, op: Op, value: Value, axis: int, indices: np.ndarray) -> None:
    """Chooses positions of an axis; an image enlarged along both of its axes is one step."""
    x, chosen = placer.tensor(op, op.inputs[0]), tuple(int(index) for index in indices)
    if chosen == tuple(range(_shape(placer, x)[axis])):  # each of them, in order
        placer.tensors[value] = x
        return
    before = placer.steps[-1] if placer.steps else None
    alone = placer.only_reader(op.inputs[0]) is op and [*placer.tensors.values()].count(x) == 1
    if before is not None and before.name == x and alone:
        source = _shape(placer, before.inputs[0])
        factor = _factor(chosen, source[axis]) if before.kind == "gather" else None
        other: Any = before.params.get("axis")
        if (
            factor is not None
            and (len(source), {axis, other}) == (4, {1, 2})
            and factor == _factor(before.params["indices"], source[other])
        ):
            placer.drop(before)
            placer.add(
                op, "resize_nearest", before.inputs, value, shape=value.shape, same_range=True
            )
            return
    params = {"axis": axis, "indices": chosen}
    placer.add(op, "gather", [x], value, shape=value.shape, params=params, same_range=True)


def _factor(indices: tuple[int, ...], size: int) -> int | None:
    """How often positions repeat each of an axis, as converters know it of resized images."""
    factor, rest = divmod(len(indices), size)
    whole = not rest and indices == tuple(np.repeat(np.arange(size), factor).tolist())
    return factor if whole else None


def tile(placer: Placer, op: Op) -> None:
    """A tensor side by side with itself."""
    repeated = [axis for axis, count in enumerate(op.params["reps"]) if count != 1]
    if len(repeated) != 1 or len(op.params["reps"]) != len(op.inputs[0].shape):
        placer.refuse(op, "it repeats along several axes: tile one after the other")
    _repeat_whole(placer, op, op.outputs[0], repeated[0], op.params["reps"][repeated[0]])


def _repeat_whole(placer: Placer, op: Op, value: Value, axis: int, count: int) -> None:
    inputs = [placer.tensor(op, op.inputs[0])] * count
    params = {"axis": axis}
    placer.add(op, "concatenate", inputs, value, shape=value.shape, params=params, same_range=True)


def _grown(op: Op) -> set[int]:
    """The axes along which a broadcast repeats values."""
    dims, shape = op.params["broadcast_dimensions"], op.inputs[0].shape
    sizes = {dim: shape[i] for i, dim in enumerate(dims)}
    return {axis for axis, size in enumerate(op.out_shape) if sizes.get(axis, 1) != size}


def _broadcasts(graph: Graph, op: Op) -> bool:
    """Whether all that read a broadcast repeat its values by themselves, beside a whole operand."""
    value, grown = op.outputs[0], _grown(op)
    readers = graph.consumers.get(value, ())
    for reader in readers:
        other = next((operand for operand in reader.inputs if operand is not value), None)
        if reader.kind not in ("add", "sub", "mul") or other is None:
            return False
        producer = graph.producers.get(other)
        alike = producer is not None and producer.kind == "broadcast_in_dim"
        if alike and producer is not None and not graph.is_static(other):
            if grown & _grown(producer):
                return False
    return bool(readers) and value not in graph.outputs


def _repeat_axes(placer: Placer, op: Op, x: str, shape: tuple[int, ...]) -> None:
    """Repeats what stands once along an axis."""
    axes = [axis for axis, size in enumerate(op.out_shape) if size != shape[axis]]
    for axis in axes:
        shape = (*shape[:axis], op.out_shape[axis], *shape[axis + 1 :])
        last = axis == axes[-1]
        params = {"axis": axis, "indices": (0,) * op.out_shape[axis]}
        x = placer.add(
            op, "gather", [x], op.outputs[0] if last else None, shape=shape,
            name=op.name if last else f"{op.name}/axis_{axis}", params=params, same_range=True,
        )  # fmt: skip


def _repetition(placer: Placer, op: Op) -> bool:
    """Places a broadcast to a new axis that a reshape merges with its neighbour: repeat, tile."""
    shape, dims = op.inputs[0].shape, tuple(op.params["broadcast_dimensions"])
    new = [axis for axis in range(len(op.out_shape)) if axis not in dims]
    reader = placer.only_reader(op.outputs[0])
    plain = tuple(op.out_shape[d] for d in dims) == shape and len(new) == 1
    if not plain or reader is None or reader.kind != "reshape":
        return False
    axis, count = new[0], op.out_shape[new[0]]
    for merged in (axis - 1, axis):
        wanted = [n * count if i == merged else n for i, n in enumerate(shape)]
        if merged < 0 or merged == len(shape) or list(reader.out_shape) != wanted:
            continue
        placer.covered.add(reader)
        if merged < axis:
            _take(placer, op, reader.outputs[0], merged, np.repeat(np.arange(shape[merged]), count))
        else:
            _repeat_whole(placer, op, reader.outputs[0], merged, count)
        return True
    return False


def transposed(placer: Placer, op: Op, tensor: str, order: tuple[int, ...], suffix: str) -> str:
    """Adds a permutation of a tensor's axes, where it changes anything."""
    if order == tuple(range(len(order))):
        return tensor
    before = _shape(placer, tensor)
    return placer.add(
        op,
        "transpose",
        [tensor],
        None,
        name=f"{op.name}/{suffix}",
        shape=tuple(before[axis] for axis in order),
        params={"permutation": order},
        same_range=True,
    )


def reshaped(placer: Placer, op: Op, x: str, shape: tuple[int, ...], suffix: str) -> str:
    """Adds a change of a tensor's shape, where it changes anything."""
    if shape == _shape(placer, x):
        return x
    return placer.add(
        op, "reshape", [x], None, name=f"{op.name}/{suffix}", shape=shape, same_range=True
    )


def _shape(placer: Placer, tensor: str) -> tuple[int, ...]:
    if tensor in placer.graph.inputs:
        return placer.graph.inputs[tensor].shape
    return next(step.shape for step in placer.steps if step.name == tensor)
