"""Placing elementwise operations: arithmetic, clamps, functions of one tensor, and softmax."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.graph import Graph, Literal, Op, Value
from compressjax.quant.placement.moves import shareable, transposed
from compressjax.quant.placement.placer import FUSED_BOUNDS, Placer, clamp_bounds
from compressjax.quant.placement.recognition import Match
from compressjax.quant.placement.scalars import number, source
from compressjax.quant.placement.windows import extreme
from compressjax.quant.plan import Constant


def elementwise(placer: Placer, op: Op) -> None:
    """add, sub, mul and div, of two tensors or of a tensor and a constant."""
    graph = placer.graph
    first, second = op.inputs
    static = [graph.is_static(value) for value in op.inputs]
    if op.kind == "div" and not static[1]:
        _multiply_by_inverse(placer, op)
    elif not any(static):
        _arithmetic(placer, op, op.kind, [first, second])
    elif op.kind == "sub" and static[0]:
        constant = Constant(first, None, jnp.atleast_1d)
        _arithmetic(placer, op, "sub", [second], constant, {"reversed": True})
    else:
        operand, dynamic = (second, first) if static[1] else (first, second)
        neutral = 0.0 if op.kind in ("add", "sub") else 1.0
        if number(graph, operand) == neutral and dynamic.shape == op.out_shape:
            placer.tensors[op.outputs[0]] = placer.tensor(op, dynamic)
            return
        kind, layout = _LAYOUTS[op.kind]
        _arithmetic(placer, op, kind, [dynamic], Constant(operand, None, layout))


Bounds = tuple[float | None, float | None]

# As which kind an operation with a constant is placed, and how that takes the constant.
_LAYOUTS: Mapping[str, tuple[str, Callable[[jax.Array], jax.Array]]] = {
    "add": ("add", jnp.atleast_1d),
    "sub": ("add", lambda c: jnp.atleast_1d(-c)),
    "mul": ("mul", jnp.atleast_1d),
    "div": ("mul", lambda c: jnp.atleast_1d(1.0 / c)),
}


def _arithmetic(
    placer: Placer,
    op: Op,
    kind: str,
    operands: Sequence[Value],
    constant: Constant | None = None,
    params: Mapping[str, Any] | None = None,
) -> None:
    inputs = [placer.tensor(op, value) for value in operands]
    bounds, value = placer.bounds(op.outputs[0])
    placer.add(op, kind, inputs, value, bounds=bounds, constant=constant, params=params)


def _multiply_by_inverse(placer: Placer, op: Op) -> None:
    """A division by a square root, which `root` has placed as RSQRT."""
    first, second = op.inputs
    if not only_divides(placer.graph, placer.graph.producers.get(source(placer.graph, second))):
        placer.refuse(
            op,
            "it divides by a value that depends on an input, and LiteRT's int8 division fails at "
            "run time on a divisor that is zero on its grid. Only a square root is divided by",
        )
    if not placer.graph.is_static(first):
        _arithmetic(placer, op, "mul", [first, second])
    elif number(placer.graph, first) == 1.0:
        placer.tensors[op.outputs[0]] = placer.tensor(op, second)
    else:
        _arithmetic(placer, op, "mul", [second], Constant(first, None, jnp.atleast_1d))


def only_divides(graph: Graph, op: Op | None) -> bool:
    """Tells whether an operation is a square root that is read as a divisor alone.

    Example:
      >>> from compressjax.graph import trace
      >>> graph = trace(lambda v, x: 1.0 / jnp.sqrt(x), {}, 2.0)
      >>> [only_divides(graph, op) for op in graph.ops]
      [True, False]
    """
    if op is None or op.kind != "sqrt" or op.outputs[0] in graph.outputs:
        return False
    root = op.outputs[0]
    readers = [
        (reader, value)
        for value in graph.consumers
        if source(graph, value) is root
        for reader in graph.consumers[value]
        if reader.kind not in ("broadcast_in_dim", "reshape", "squeeze", "expand_dims")
    ]
    return bool(readers) and all(
        reader.kind == "div" and reader.inputs[1] is value and reader.inputs[0] is not value
        for reader, value in readers
    )


def root(placer: Placer, op: Op) -> None:
    """A square root, or its inverse where it is only divided by."""
    kind = "rsqrt" if only_divides(placer.graph, op) else "sqrt"
    placer.add(op, kind, [placer.tensor(op, op.inputs[0])], op.outputs[0])


def power(placer: Placer, op: Op) -> None:
    """A whole power is made of products."""
    exponent = 2 if op.kind == "square" else int(op.params["y"])
    if exponent < 2:
        placer.refuse(op, f"the power {exponent} is no product")
    x = result = placer.tensor(op, op.inputs[0])
    bits = f"{exponent:b}"[1:]
    products = [other for bit in bits for other in (("square", "x") if bit == "1" else ("square",))]
    bounds, value = placer.bounds(op.outputs[0])
    for i, other in enumerate(products):
        last = i == len(products) - 1
        result = placer.add(
            op,
            "mul",
            [result, result if other == "square" else x],
            value if last else None,
            name=op.name if last else f"{op.name}/product_{i}",
            bounds=bounds if last else (None, None),
        )


def negate(placer: Placer, op: Op) -> None:
    """The negative is zero minus the tensor: LiteRT's int8 NEG overlooks zero points."""
    zero = Constant(Literal(np.zeros((), op.inputs[0].dtype)), None, jnp.atleast_1d)
    _arithmetic(placer, op, "sub", [op.inputs[0]], zero, {"reversed": True})


def absolute(placer: Placer, op: Op) -> None:
    """The absolute value is a leaky ReLU of slope -1: XNNPACK runs it, but not ABS."""
    x = placer.tensor(op, op.inputs[0])
    placer.add(op, "leaky_relu", [x], op.outputs[0], params={"slope": -1.0})


def function(placer: Placer, match: Match) -> None:
    """A group of operations that is one function."""
    op = match.ops[-1]
    x = placer.tensor(op, match.x)
    placer.add(op, match.kind, [x], op.outputs[0], params=match.params)


def select(placer: Placer, op: Op) -> None:
    """A choice that is made already."""
    which = number(placer.graph, op.inputs[0])
    if which is None:
        placer.refuse(op, "it chooses by a value that depends on an input")
    placer.tensors[op.outputs[0]] = placer.tensor(op, op.inputs[1 + int(which)])


def relu(placer: Placer, op: Op) -> None:
    """A ReLU that could not be fused, or the larger or smaller of two operands."""
    dynamic = next((value for value in op.inputs if not placer.graph.is_static(value)), None)
    bounds = clamp_bounds(op, dynamic) if dynamic is not None else None
    if op.kind in ("max", "min") and bounds is None:
        inputs = shareable(placer, op)
        kind = {"max": "maximum", "min": "minimum"}[op.kind]
        placer.add(op, kind, inputs, op.outputs[0], same_range=True)
        return
    if dynamic is None or bounds is None:
        placer.refuse(op, "a bound that is no number is no clamp of LiteRT")
    end = op.outputs[0]
    while (reader := placer.only_reader(end)) is not None:
        further = clamp_bounds(reader, end)
        if further is None:
            break
        bounds = _tighter(bounds, further)
        placer.covered.add(reader)
        end = reader.outputs[0]
    kind = "relu" if bounds in FUSED_BOUNDS else "clamp"
    params = {"bounds": bounds}
    x = placer.tensor(op, dynamic)
    placer.add(op, kind, [x], end, bounds=bounds, params=params, same_range=True)


def _tighter(bounds: Bounds, further: Bounds) -> Bounds:
    (lo, hi), (low, high) = bounds, further
    lows = [bound for bound in (lo, low) if bound is not None]
    highs = [bound for bound in (hi, high) if bound is not None]
    return max(lows, default=None), min(highs, default=None)


def unary(placer: Placer, op: Op) -> None:
    """An operation that LiteRT computes with a table."""
    x = placer.tensor(op, op.inputs[0])
    placer.add(op, op.kind, [x], op.outputs[0])


def maximum_or_softmax(placer: Placer, op: Op) -> None:
    """reduce_max; with subtract, exp and divide by the sum behind it, LiteRT's softmax."""
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

    peak = through(op.outputs[0], "max", "broadcast_in_dim", "reshape", "stop_gradient")
    shifted = follow(peak, "sub")
    powers = follow(shifted.outputs[0], "exp") if shifted and shifted.inputs[0] is x else None
    total = follow(powers.outputs[0], "reduce_sum") if powers else None
    result = None
    axes = tuple(int(axis) for axis in op.params["axes"])
    if total is not None and tuple(total.params["axes"]) == axes and len(axes) == 1:
        result = follow(through(total.outputs[0], "broadcast_in_dim", "reshape"), "div")
    if result is None:
        extreme(placer, op)
        return
    placer.covered.update(passed)
    last = len(x.shape) - 1
    order = (*(axis for axis in range(last + 1) if axis != axes[0]), axes[0])
    moved = transposed(placer, op, placer.tensor(op, x), order, "last")
    name = placer.add(
        op,
        "softmax",
        [moved],
        None,
        shape=tuple(result.out_shape[axis] for axis in order),
        params={"axis": last},
    )
    back = tuple(order.index(axis) for axis in range(last + 1))
    placer.tensors[result.outputs[0]] = transposed(placer, op, name, back, "back")
