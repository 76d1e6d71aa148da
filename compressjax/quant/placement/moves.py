"""Placing operations that move codes: reshape, transpose, slice, split, pad, concatenate."""

import math

from compressjax.graph import Op
from compressjax.quant.placement.placer import Placer, literal


def shareable(placer: Placer, op: Op) -> list[str]:
    """The tensors that an operation reads, ready to share one range."""
    inputs = []
    for i, value in enumerate(op.inputs):
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
    if op.kind == "broadcast_in_dim" and math.prod(shape) != math.prod(x_value.shape):
        # The reader broadcasts by itself: only the new axes of size one are needed.
        readers = placer.graph.consumers.get(out, ())
        if not readers or any(r.kind not in ("add", "sub", "mul") for r in readers):
            placer.refuse(op, "it repeats values for an operation that does not broadcast")
        dims = op.params["broadcast_dimensions"]
        sizes = {d: x_value.shape[i] for i, d in enumerate(dims)}
        shape = tuple(sizes.get(axis, 1) for axis in range(len(shape)))
    x = placer.tensor(op, x_value)
    if shape == x_value.shape:
        placer.tensors[out] = x
        return
    placer.add(op, "reshape", [x], out, shape=shape, same_range=True)


def transpose(placer: Placer, op: Op) -> None:
    """A permutation of axes."""
    x = placer.tensor(op, op.inputs[0])
    params = {"permutation": tuple(int(axis) for axis in op.params["permutation"])}
    placer.add(op, "transpose", [x], op.outputs[0], params=params, same_range=True)


def slice_(placer: Placer, op: Op) -> None:
    """A strided slice."""
    x = placer.tensor(op, op.inputs[0])
    starts, limits = op.params["start_indices"], op.params["limit_indices"]
    strides = op.params["strides"] or (1,) * len(starts)
    params = {"starts": tuple(starts), "limits": tuple(limits), "strides": tuple(strides)}
    placer.add(op, "slice", [x], op.outputs[0], params=params, same_range=True)


def split(placer: Placer, op: Op) -> None:
    """A split is one slice for each part."""
    x = placer.tensor(op, op.inputs[0])
    axis, start, shape = op.params["axis"], 0, op.inputs[0].shape
    for i, (size, value) in enumerate(zip(op.params["sizes"], op.outputs, strict=True)):
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
