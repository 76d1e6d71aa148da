"""Placing convolutions and fully connected layers, with all that LiteRT runs in the same kernel."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from compressjax import graph as graphs
from compressjax.graph import Op, Value
from compressjax.quant.placement.placer import Placer
from compressjax.quant.placement.windows import named_padding, padded
from compressjax.quant.plan import Constant


def conv(placer: Placer, op: Op) -> None:
    """A convolution over two spatial axes, in any layout, with any padding."""
    graph, params = placer.graph, op.params
    numbers = params["dimension_numbers"]
    rank = len(op.out_shape)
    if not graph.is_static(op.inputs[1]):
        placer.refuse(op, "its kernel depends on an input")
    if rank != 4:
        placer.refuse(op, f"it has {rank - 2} spatial dimensions, LiteRT convolves two")
    if params["batch_group_count"] != 1 or set(params["lhs_dilation"]) != {1}:
        placer.refuse(op, "it is transposed (dilated on the input) or batch-grouped")
    out_channel = numbers.out_spec[1]
    x = transposed(placer, op, placer.tensor(op, op.inputs[0]), _channels_last(numbers.lhs_spec))
    to_hwio = (*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0])
    x_shape = tuple(op.inputs[0].shape[axis] for axis in _channels_last(numbers.lhs_spec))
    kernel = tuple(op.inputs[1].shape[axis] for axis in to_hwio)
    strides, dilation = params["window_strides"], params["rhs_dilation"]
    padding = named_padding(params["padding"], x_shape[1:3], kernel[:2], strides, dilation)
    if not isinstance(padding, str):
        x, x_shape = padded(placer, op, x, x_shape, padding)
        padding = "VALID"
    groups = params["feature_group_count"]
    depthwise = groups == x_shape[3] and groups > 1
    to_last = _channels_last(numbers.out_spec)
    name, value = _contraction(
        placer,
        op,
        "depthwise_conv" if depthwise else "conv",
        [x],
        Constant(op.inputs[1], 3, lambda w: jnp.transpose(w, to_hwio)),
        out_channel,
        {
            "window_strides": strides,
            "padding": padding,
            "rhs_dilation": dilation,
            "feature_group_count": groups,
        },
        tuple(op.out_shape[axis] for axis in to_last),
    )
    back = tuple(int(i) for i in np.argsort(to_last))
    placer.tensors[value] = transposed(placer, op, name, back, suffix="channels_back")


def dot(placer: Placer, op: Op) -> None:
    """An input times a kernel, on either side and over any axes; or a product of two inputs."""
    (lhs_contract, rhs_contract), batch = op.params["dimension_numbers"]
    lhs, rhs = op.inputs
    if not (placer.graph.is_static(lhs) or placer.graph.is_static(rhs)):
        product(placer, op)
        return
    if any(batch):
        placer.refuse(op, "a kernel of its own for each index of a batch axis is no int8 operation")
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
    """Two inputs: a matrix product for each index of the batch axes."""
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
    bounds, value = placer.bounds(value)
    name = placer.add(
        op, kind, inputs, None, shape=shape, params=params, bounds=bounds, constant=constant
    )
    return name, value


def _channels_last(spec: Sequence[int]) -> tuple[int, ...]:
    """The permutation that brings a (batch, channel, *spatial) spec to batch, *spatial, channel."""
    return (spec[0], *spec[2:], spec[1])


def transposed(
    placer: Placer, op: Op, tensor: str, order: tuple[int, ...], suffix: str = "channels_last"
) -> str:
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
