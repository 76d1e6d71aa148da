"""Placing convolutions and fully connected layers, with all that LiteRT runs in the same kernel."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from compressjax import graph as graphs
from compressjax.graph import Op, Value
from compressjax.quant.placement.moves import reshaped, transposed
from compressjax.quant.placement.placer import FUSED_BOUNDS, Placer
from compressjax.quant.placement.transposed import grow, spread
from compressjax.quant.placement.windows import named_padding, padded
from compressjax.quant.plan import Constant


class _Frame(NamedTuple):
    """A convolution as LiteRT has it: two spatial axes, channels last.

    Attributes:
      x: the input's name; [B, H, W, C].
      x_shape: its shape.
      kernel: the kernel's spatial sizes.
      layout: brings the kernel to [KH, KW, I, O].
      strides: of the window.
      padding: explicit.
      dilation: of the kernel.
      spread: dilation of the input.
    """

    x: str
    x_shape: tuple[int, ...]
    kernel: tuple[int, ...]
    layout: Callable[[jax.Array], jax.Array]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    spread: tuple[int, ...]


def conv(placer: Placer, op: Op) -> None:
    """A convolution over one or two axes, in any layout, with any padding; a transposed one."""
    params = op.params
    rank = len(op.out_shape)
    if not placer.graph.is_static(op.inputs[1]):
        placer.refuse(op, "its kernel depends on an input")
    if rank not in (3, 4):
        placer.refuse(op, f"it has {rank - 2} spatial dimensions, LiteRT convolves one or two")
    if params["batch_group_count"] != 1:
        placer.refuse(op, "it is grouped along the batch")
    frame = _frame(placer, op)
    if set(frame.spread) != {1}:
        _transposed_conv(placer, op, frame)
        return
    x, x_shape = frame.x, frame.x_shape
    padding = named_padding(
        frame.padding, x_shape[1:3], frame.kernel, frame.strides, frame.dilation
    )
    if not isinstance(padding, str):
        x, x_shape = padded(placer, op, x, x_shape, padding)
        padding = "VALID"
    groups = params["feature_group_count"]
    depthwise = groups == x_shape[3] and groups > 1
    name, value = _contraction(
        placer,
        op,
        "depthwise_conv" if depthwise else "conv",
        [x],
        Constant(op.inputs[1], 3, frame.layout),
        params["dimension_numbers"].out_spec[1],
        {
            "window_strides": frame.strides,
            "padding": padding,
            "rhs_dilation": frame.dilation,
            "feature_group_count": groups,
        },
        _framed_output(op),
    )
    placer.tensors[value] = _unframed(placer, op, name)


def _transposed_conv(placer: Placer, op: Op, frame: _Frame) -> None:
    if op.params["feature_group_count"] != 1 or set(frame.strides) != {1}:
        placer.refuse(op, "LiteRT's transposed convolution has no groups and no second stride")
    form = spread(frame.x_shape[1:3], frame.kernel, frame.spread, frame.padding, frame.dilation)
    shape = list(_framed_output(op))
    whole = [
        (size - 1) * stride + (k - 1) * d + 1 + sum(grown[:2])
        for size, stride, k, d, grown in zip(
            frame.x_shape[1:3], frame.spread, frame.kernel, frame.dilation, form.grown, strict=True
        )
    ]
    full = shape if form.window is None else [shape[0], *whole, shape[3]]
    name, value = _contraction(
        placer,
        op,
        "transpose_conv",
        [frame.x],
        Constant(op.inputs[1], 3, grow(frame.layout, form.grown)),
        op.params["dimension_numbers"].out_spec[1],
        {"window_strides": (1, 1), "padding": form.padding, "lhs_dilation": frame.spread},
        tuple(full),
    )
    if form.window is not None:
        starts = (0, *(start for start, _ in form.window), 0)
        limits = (shape[0], *(stop for _, stop in form.window), shape[3])
        kept = {"starts": starts, "limits": limits, "strides": (1, 1, 1, 1)}
        name = placer.add(
            op, "slice", [name], None, name=f"{op.name}/kept", shape=tuple(shape), params=kept,
            same_range=True,
        )  # fmt: skip
    placer.tensors[value] = _unframed(placer, op, name)


def _frame(placer: Placer, op: Op) -> _Frame:
    """Brings the operands of a convolution to LiteRT's layout; a line becomes a row."""
    numbers, params = op.params["dimension_numbers"], op.params
    order = _channels_last(numbers.lhs_spec)
    x = transposed(placer, op, placer.tensor(op, op.inputs[0]), order, "channels_last")
    to_hwio = (*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0])
    row = (1,) * (4 - len(order))
    shape = tuple(op.inputs[0].shape[axis] for axis in order)
    shape = (shape[0], *row, *shape[1:])
    kernel_shape = (*row, *(op.inputs[1].shape[axis] for axis in to_hwio))
    return _Frame(
        reshaped(placer, op, x, shape, "row"),
        shape,
        kernel_shape[:2],
        lambda w: jnp.transpose(w, to_hwio).reshape(kernel_shape),
        (*row, *params["window_strides"]),
        (*((0, 0) for _ in row), *((int(low), int(high)) for low, high in params["padding"])),
        (*row, *params["rhs_dilation"]),
        (*row, *params["lhs_dilation"]),
    )


def _framed_output(op: Op) -> tuple[int, ...]:
    shape = [op.out_shape[axis] for axis in _channels_last(op.params["dimension_numbers"].out_spec)]
    return (shape[0], *(1,) * (4 - len(shape)), *shape[1:])


def _unframed(placer: Placer, op: Op, name: str) -> str:
    """Gives a convolution's output the shape and the layout that the graph has."""
    to_last = _channels_last(op.params["dimension_numbers"].out_spec)
    name = reshaped(placer, op, name, tuple(op.out_shape[axis] for axis in to_last), "line")
    back = tuple(int(i) for i in np.argsort(to_last))
    return transposed(placer, op, name, back, "channels_back")


def dot(placer: Placer, op: Op) -> None:
    """An input times a kernel, on either side and over any axes; or a product of two inputs."""
    (lhs_contract, rhs_contract), batch = op.params["dimension_numbers"]
    lhs, rhs = op.inputs
    if any(batch) or not (placer.graph.is_static(lhs) or placer.graph.is_static(rhs)):
        product(placer, op)
        return
    kernel_first = placer.graph.is_static(lhs)
    x_value, w_value = (rhs, lhs) if kernel_first else (lhs, rhs)
    x_contract, w_contract = lhs_contract, rhs_contract
    if kernel_first:
        x_contract, w_contract = rhs_contract, lhs_contract
    order = sorted(range(len(x_contract)), key=lambda i: x_contract[i])
    contract = [w_contract[i] for i in order]
    free = [axis for axis in range(len(w_value.shape)) if axis not in contract]
    x_free = [axis for axis in range(len(x_value.shape)) if axis not in x_contract]
    fan_in = math.prod(w_value.shape[axis] for axis in contract)
    fan_out = math.prod(w_value.shape[axis] for axis in free)
    lead = tuple(x_value.shape[axis] for axis in x_free)
    x = transposed(
        placer, op, placer.tensor(op, x_value), (*x_free, *sorted(x_contract)), "contracted_last"
    )
    if len(contract) > 1:
        x = reshaped(placer, op, x, (*lead, fan_in), "merge")
    w_order = (*contract, *free)
    channels = 0 if kernel_first else len(op.out_shape) - 1
    name, value = _contraction(
        placer,
        op,
        "dense",
        [x],
        Constant(w_value, 1, lambda w: jnp.transpose(w, w_order).reshape(fan_in, fan_out)),
        channels if len(free) == 1 else None,
        {},
        (*lead, fan_out),
    )
    w_free = tuple(w_value.shape[axis] for axis in free)
    if len(free) != 1:
        name = reshaped(placer, op, name, (*lead, *w_free), "split")
    if kernel_first:
        back = (*range(len(lead), len(lead) + len(free)), *range(len(lead)))
        name = transposed(placer, op, name, back, "kernel_axes_first")
    placer.tensors[value] = name


def product(placer: Placer, op: Op) -> None:
    """Two inputs, or a kernel for each index of the batch axes: as many matrix products."""
    contracts, batches = op.params["dimension_numbers"]
    shapes = [value.shape for value in op.inputs]
    free = [
        [axis for axis in range(len(shape)) if axis not in (*contract, *batch)]
        for shape, contract, batch in zip(shapes, contracts, batches, strict=True)
    ]
    lead = tuple(shapes[0][axis] for axis in batches[0]) or (1,)
    if len(lead) > 3:  # LiteRT takes matrices of rank 5
        lead = (math.prod(lead),)
    rows, columns = (math.prod(s[axis] for axis in f) for s, f in zip(shapes, free, strict=True))
    terms = math.prod(shapes[0][axis] for axis in contracts[0])
    orders = ((*batches[0], *free[0], *contracts[0]), (*batches[1], *contracts[1], *free[1]))
    sizes = ((*lead, rows, terms), (*lead, terms, columns))
    operands = []
    for value, order, size, side in zip(op.inputs, orders, sizes, ("left", "right"), strict=True):
        x = transposed(placer, op, placer.tensor(op, value), order, f"{side}_order")
        operands.append(reshaped(placer, op, x, size, f"{side}_matrices"))
    shape = (*lead, rows, columns)
    name = placer.add(op, "batch_matmul", operands, None, shape=shape)
    placer.tensors[op.outputs[0]] = reshaped(placer, op, name, op.out_shape, "split")


def _contraction(
    placer: Placer,
    op: Op,
    kind: str,
    inputs: Sequence[str],
    constant: Constant,
    channel_axis: int | None,
    params: Mapping[str, Any],
    shape: tuple[int, ...],
) -> tuple[str, Value]:
    """Adds a conv or dense step with the affine map and the ReLU that follow it."""
    value = op.outputs[0]
    if channel_axis is not None:
        chain = graphs.affine_chain(placer.graph, value, channel_axis)
        placer.covered.update(step for step, _ in chain)
        value = chain[-1][0].outputs[0] if chain else value
        constant = Constant(constant.value, constant.axis, constant.layout, chain, channel_axis)
    # The converters fuse a relu alone into a transposed convolution.
    fused = {(0.0, None)} if kind == "transpose_conv" else FUSED_BOUNDS
    bounds, value = placer.bounds(value, fused)
    name = placer.add(
        op, kind, inputs, None, shape=shape, params=params, bounds=bounds, constant=constant
    )
    return name, value


def _channels_last(spec: Sequence[int]) -> tuple[int, ...]:
    """The permutation that brings a (batch, channel, *spatial) spec to batch, *spatial, channel."""
    return (spec[0], *spec[2:], spec[1])
