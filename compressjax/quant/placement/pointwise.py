"""Placing elementwise operations: arithmetic, clamps, tables and softmax."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from compressjax.graph import Op, Value
from compressjax.quant.placement.placer import FUSED_BOUNDS, Placer, clamp_bounds
from compressjax.quant.plan import Constant


def elementwise(placer: Placer, op: Op) -> None:
    """add, sub, mul, and div by a constant, of two tensors or of a tensor and a constant."""
    graph = placer.graph
    kind = op.kind
    first, second = op.inputs
    constant = None
    if graph.is_static(second) or graph.is_static(first):
        static, dynamic = (second, first) if graph.is_static(second) else (first, second)
        layout: Callable[[jax.Array], jax.Array] = jnp.atleast_1d
        if kind == "div" and static is second:
            kind, layout = "mul", lambda c: jnp.atleast_1d(1.0 / c)
        if kind == "sub" and static is second:
            kind, layout = "add", lambda c: jnp.atleast_1d(-c)
        if kind in ("div", "sub"):
            placer.refuse(op, "a constant over or minus a tensor is no int8 operation")
        constant = Constant(static, None, layout)
        inputs = [placer.tensor(op, dynamic)]
    else:
        if kind == "div":
            placer.refuse(op, "it divides by a value that depends on an input")
        inputs = [placer.tensor(op, first), placer.tensor(op, second)]
    bounds, value = placer.bounds(op.outputs[0])
    placer.add(op, kind, inputs, value, bounds=bounds, constant=constant)


def relu(placer: Placer, op: Op) -> None:
    """A ReLU that could not be fused: its input is read elsewhere too, or is no fusing step."""
    source = next((value for value in op.inputs if not placer.graph.is_static(value)), None)
    bounds = clamp_bounds(op, source) if source is not None else None
    if source is None or bounds not in FUSED_BOUNDS:
        placer.refuse(op, "LiteRT clamps only as relu, relu6 or relu_n1_to_1")
    x = placer.tensor(op, source)
    placer.add(op, "relu", [x], op.outputs[0], bounds=bounds, same_range=True)


def unary(placer: Placer, op: Op) -> None:
    """An operation that LiteRT computes with a table."""
    x = placer.tensor(op, op.inputs[0])
    placer.add(op, op.kind, [x], op.outputs[0])


def softmax(placer: Placer, op: Op) -> None:
    """reduce_max, subtract, exp, divide by the sum: LiteRT's softmax over the last axis."""
    graph, x = placer.graph, op.inputs[0]
    passed = [op]

    def follow(value: Value, kind: str) -> Op | None:
        for reader in graph.consumers.get(value, ()):
            if reader.kind == kind:
                passed.append(reader)
                return reader
        return None

    def through(value: Value, *kinds: str) -> Value:
        while (reader := placer.only_reader(value)) is not None and reader.kind in kinds:
            passed.append(reader)
            value = reader.outputs[0]
        return value

    last = (len(x.shape) - 1,)
    peak = through(op.outputs[0], "max", "broadcast_in_dim", "reshape", "stop_gradient")
    shifted = follow(peak, "sub")
    powers = follow(shifted.outputs[0], "exp") if shifted and shifted.inputs[0] is x else None
    total = follow(powers.outputs[0], "reduce_sum") if powers else None
    result = None
    if total is not None and tuple(total.params["axes"]) == tuple(op.params["axes"]) == last:
        result = follow(through(total.outputs[0], "broadcast_in_dim", "reshape"), "div")
    if result is None:
        placer.refuse(op, "a maximum is int8 only inside a softmax over the last axis")
    placer.covered.update(passed)
    placer.add(
        op,
        "softmax",
        [placer.tensor(op, x)],
        result.outputs[0],
        shape=result.out_shape,
        params={"axis": last[0]},
    )
