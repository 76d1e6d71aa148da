"""Placement: which LiteRT operations a graph becomes, and where a range is needed.

Follows the LiteRT int8 specification: a contraction takes its bias, the affine map behind it and a
ReLU with it; pooling, reshapes and concatenation share one scale and zero point between inputs and
output; softmax, logistic and tanh have fixed grids. Everything that depends on an input becomes a
step here or is an error: nothing falls back to float in silence.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compressjax import graph as graphs
from compressjax.graph import Graph, Literal, Op, Value
from compressjax.quant.plan import Constant, Plan, Step

# Bounds that LiteRT can fuse into the operation before: relu, relu6, relu_n1_to_1.
FUSED_BOUNDS = frozenset({(0.0, None), (0.0, 6.0), (-1.0, 1.0)})
FIXED_GRIDS = {
    "logistic": (1.0 / 256.0, -128),
    "softmax": (1.0 / 256.0, -128),
    "tanh": (1.0 / 128.0, 0),
}
_ALIASES = frozenset({"stop_gradient", "copy", "copy_p", "optimization_barrier"})


def place(graph: Graph) -> Plan:
    """Turns a graph into the steps that LiteRT runs in int8.

    Args:
      graph: from `trace(..., keep_custom=False)`; float inputs, float outputs.

    Returns:
      The plan.

    Raises:
      ValueError: for an operation that no int8 step stands for, an input or output that is not
        float, or an output that no step computes.

    Example:
      >>> def fn(v, x):
      ...     return jax.nn.relu(x @ v['kernel'] + v['bias'])
      >>> variables = {'kernel': jnp.ones((3, 2)), 'bias': jnp.zeros((1, 2))}
      >>> plan = place(graphs.trace(fn, variables, jnp.ones((1, 3)), keep_custom=False))
      >>> [(step.name, step.kind, step.lo) for step in plan.steps]
      [('kernel', 'dense', 0.0)]
    """
    placer = _Placer(graph)
    for op in graph.ops:
        if op not in placer.covered and not all(map(graph.is_static, op.outputs)):
            placer.place(op)
    return placer.plan()


class _Placer:
    """Walks a graph once, in order, and collects steps."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.covered: set[Op] = set()
        self.steps: list[Step] = []
        self.tensors: dict[Value, str] = {}
        self.ranges: dict[str, str] = {}
        self.fixed: dict[str, tuple[float, int]] = {}
        for name, value in graph.inputs.items():
            if not jnp.issubdtype(value.dtype, jnp.floating):
                raise ValueError(
                    f"{name} has dtype {value.dtype}; a quantized model takes float inputs: cast "
                    "before the call, outside the function"
                )
            self.tensors[value] = name
            self.ranges[name] = name

    def plan(self) -> Plan:
        outputs = []
        for i, value in enumerate(self.graph.outputs):
            if not jnp.issubdtype(value.dtype, jnp.floating):
                raise ValueError(
                    f"output {i} has dtype {value.dtype}, expected a float output: return the "
                    "logits, and take argmax outside the function"
                )
            if value not in self.tensors:
                raise ValueError(
                    f"output {i} does not depend on an input: there is nothing to quantize"
                )
            outputs.append(self.tensors[value])
        ranges = {name: self.range_of(name) for name in self.ranges}
        return Plan(
            self.graph, self.graph.inputs, tuple(self.steps), tuple(outputs), ranges, self.fixed
        )

    def place(self, op: Op) -> None:
        if op.kind in _ALIASES or _is_cast(op):
            self.tensors[op.outputs[0]] = self.tensors[op.inputs[0]]
            return
        rule = _RULES.get(op.kind)
        if rule is None:
            self.refuse(op, "no int8 operation of LiteRT stands for it")
        else:
            rule(self, op)

    def refuse(self, op: Op, why: str) -> None:
        raise ValueError(
            f"cannot quantize operation {op.name!r} ({op.kind}, output shape {op.out_shape}): "
            f"{why}. "
            "Rewrite it with convolutions, matrix products, add, sub, mul, pooling, means, "
            "reshapes, concatenation, relu, relu6, logistic, tanh or softmax, or leave it out of "
            "the function that is quantized."
        )

    def range_of(self, name: str) -> str:
        while self.ranges[name] != name:
            name = self.ranges[name]
        return name

    def share(self, first: str, second: str) -> None:
        """Makes two tensors share one range."""
        keep, drop = self.range_of(first), self.range_of(second)
        if keep == drop:
            return
        if drop in self.fixed:
            keep, drop = drop, keep
        self.ranges[drop] = keep

    def tensor(self, op: Op, value: Value) -> str:
        if value not in self.tensors:
            self.refuse(op, "one of its operands is a constant that LiteRT cannot take there")
        return self.tensors[value]

    def add(
        self,
        op: Op,
        kind: str,
        inputs: Sequence[str],
        output: Value | None,
        *,
        name: str | None = None,
        shape: tuple[int, ...] | None = None,
        params: Mapping[str, Any] | None = None,
        bounds: tuple[float | None, float | None] = (None, None),
        constant: Constant | None = None,
        same_range: bool = False,
    ) -> str:
        """Appends a step; `output` is the graph's value that it computes, if there is one."""
        name = name or op.name
        out_shape = shape if shape is not None else op.out_shape
        self.steps.append(
            Step(name, kind, tuple(inputs), out_shape, params or {}, *bounds, constant=constant)
        )
        self.ranges[name] = name
        if kind in FIXED_GRIDS:
            self.fixed[name] = FIXED_GRIDS[kind]
        if same_range:
            for other in inputs:
                self.share(other, name)
        if output is not None:
            self.tensors[output] = name
        return name

    def only_reader(self, value: Value) -> Op | None:
        """The one operation that reads a value, if there is just one and it is not an output."""
        readers = self.graph.consumers.get(value, ())
        return readers[0] if len(readers) == 1 and value not in self.graph.outputs else None

    def bounds(self, value: Value) -> tuple[tuple[float | None, float | None], Value]:
        """Follows a ReLU that can be fused into whatever computes a value."""
        best: tuple[float | None, float | None] = (None, None)
        end, lo, hi = value, None, None
        passed: list[Op] = []
        while (op := self.only_reader(end)) is not None and (step := _clamp(op, end)) is not None:
            lo = max((bound for bound in (lo, step[0]) if bound is not None), default=None)
            hi = min((bound for bound in (hi, step[1]) if bound is not None), default=None)
            passed.append(op)
            end = op.outputs[0]
            if (lo, hi) in FUSED_BOUNDS:
                best, value = (lo, hi), end
                self.covered.update(passed)
        return best, value


def _is_cast(op: Op) -> bool:
    return op.kind in ("convert_element_type", "reduce_precision") and all(
        jnp.issubdtype(value.dtype, jnp.floating) for value in (op.inputs[0], op.outputs[0])
    )


def _literal(value: Value) -> float | None:
    if isinstance(value, Literal) and np.ndim(value.value) == 0:
        return float(value.value)
    return None


def _clamp(op: Op, value: Value) -> tuple[float | None, float | None] | None:
    """The bounds that an operation clamps a value to, if it is a clamp."""
    if op.kind == "relu":
        return 0.0, None
    if op.kind == "relu6":
        return 0.0, 6.0
    if op.kind == "clamp":
        low, high = _literal(op.inputs[0]), _literal(op.inputs[2])
        return (low, high) if op.inputs[1] is value and None not in (low, high) else None
    if op.kind in ("max", "min"):
        bound = _literal(op.inputs[1 if op.inputs[0] is value else 0])
        if bound is not None:
            return (bound, None) if op.kind == "max" else (None, bound)
    return None


def _identity(x: jax.Array) -> jax.Array:
    return x


def _contraction(
    placer: _Placer,
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


def _conv(placer: _Placer, op: Op) -> None:
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
    x = _transposed(placer, op, placer.tensor(op, op.inputs[0]), _channels_last(numbers.lhs_spec))
    to_hwio = (*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0])
    x_shape = tuple(op.inputs[0].shape[axis] for axis in _channels_last(numbers.lhs_spec))
    kernel = tuple(op.inputs[1].shape[axis] for axis in to_hwio)
    strides, dilation = params["window_strides"], params["rhs_dilation"]
    padding = _padding(params["padding"], x_shape[1:3], kernel[:2], strides, dilation)
    if not isinstance(padding, str):
        x, x_shape = _padded(placer, op, x, x_shape, padding)
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
    placer.tensors[value] = _transposed(placer, op, name, back, suffix="channels_back")


def _channels_last(spec: Sequence[int]) -> tuple[int, ...]:
    """The permutation that brings a (batch, channel, *spatial) spec to batch, *spatial, channel."""
    return (spec[0], *spec[2:], spec[1])


def _transposed(
    placer: _Placer, op: Op, tensor: str, order: tuple[int, ...], suffix: str = "channels_last"
) -> str:
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


def _shape(placer: _Placer, tensor: str) -> tuple[int, ...]:
    if tensor in placer.graph.inputs:
        return placer.graph.inputs[tensor].shape
    return next(step.shape for step in placer.steps if step.name == tensor)


def _padding(
    pads: Sequence[tuple[int, int]],
    sizes: Sequence[int],
    window: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
) -> str | tuple[tuple[int, int], ...]:
    """Names a padding as LiteRT does, or gives it back where LiteRT has no name for it."""
    pads = tuple((int(low), int(high)) for low, high in pads)
    if not any(map(any, pads)):
        return "VALID"
    reach = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
    same = jax.lax.padtype_to_pads(tuple(sizes), reach, tuple(strides), "SAME")
    return "SAME" if pads == tuple(same) else pads


def _padded(
    placer: _Placer,
    op: Op,
    x: str,
    shape: tuple[int, ...],
    pads: Sequence[tuple[int, int]],
    *,
    lowest: bool = False,
) -> tuple[str, tuple[int, ...]]:
    """Adds an explicit padding of height and width before an operation."""
    if any(edge < 0 for pair in pads for edge in pair):
        placer.refuse(op, f"its padding {tuple(pads)} is negative")
    config = ((0, 0), *pads, (0, 0))
    padded = tuple(n + low + high for n, (low, high) in zip(shape, config, strict=True))
    params = {"padding": config, "lowest": lowest}
    name = f"{op.name}/pad"
    placer.add(op, "pad", [x], None, name=name, shape=padded, params=params, same_range=True)
    return name, padded


def _dot(placer: _Placer, op: Op) -> None:
    (x_contract, w_contract), (x_batch, _) = op.params["dimension_numbers"]
    x_value, w_value = op.inputs
    if not placer.graph.is_static(w_value) or placer.graph.is_static(x_value):
        placer.refuse(op, "only an input times a kernel is a fully connected layer")
    rank = len(x_value.shape)
    if x_batch or sorted(x_contract) != list(range(rank - len(x_contract), rank)):
        placer.refuse(op, "it contracts other than the last axes of its input")
    order = sorted(range(len(x_contract)), key=lambda i: x_contract[i])
    contract = [w_contract[i] for i in order]
    free = [axis for axis in range(len(w_value.shape)) if axis not in contract]
    fan_in = math.prod(w_value.shape[axis] for axis in contract)
    fan_out = math.prod(w_value.shape[axis] for axis in free)
    lead = x_value.shape[: rank - len(contract)]
    x = placer.tensor(op, x_value)
    if len(contract) > 1:
        x = _reshaped(placer, op, x, (*lead, fan_in), "merge")
    w_order = (*contract, *free)
    name, value = _contraction(
        placer,
        op,
        "dense",
        [x],
        Constant(w_value, 1, lambda w: jnp.transpose(w, w_order).reshape(fan_in, fan_out)),
        len(op.out_shape) - 1 if len(free) == 1 else None,
        {},
        (*lead, fan_out),
    )
    if len(free) != 1:
        name = _reshaped(placer, op, name, op.out_shape, "split")
    placer.tensors[value] = name


def _reshaped(placer: _Placer, op: Op, x: str, shape: tuple[int, ...], suffix: str) -> str:
    return placer.add(
        op, "reshape", [x], None, name=f"{op.name}/{suffix}", shape=shape, same_range=True
    )


def _elementwise(placer: _Placer, op: Op) -> None:
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


def _relu(placer: _Placer, op: Op) -> None:
    """A ReLU that could not be fused: its input is read elsewhere too, or is no fusing step."""
    source = next((value for value in op.inputs if not placer.graph.is_static(value)), None)
    bounds = _clamp(op, source) if source is not None else None
    if source is None or bounds not in FUSED_BOUNDS:
        placer.refuse(op, "LiteRT clamps only as relu, relu6 or relu_n1_to_1")
    x = placer.tensor(op, source)
    placer.add(op, "relu", [x], op.outputs[0], bounds=bounds, same_range=True)


def _reduce_sum(placer: _Placer, op: Op) -> None:
    """A sum that is divided by the number of its terms is a mean."""
    x = placer.tensor(op, op.inputs[0])
    axes = tuple(int(axis) for axis in op.params["axes"])
    count = math.prod(op.inputs[0].shape[axis] for axis in axes)
    value, keep = op.outputs[0], False
    passed = []
    reader = placer.only_reader(value)
    if reader is not None and reader.kind in ("broadcast_in_dim", "reshape"):
        kept = tuple(1 if axis in axes else n for axis, n in enumerate(op.inputs[0].shape))
        if reader.out_shape == kept:
            passed, value, keep = [reader], reader.outputs[0], True
            reader = placer.only_reader(value)
    divisor = _divisor(reader, value) if reader is not None else None
    if divisor is None or not math.isclose(divisor, count, rel_tol=1e-5):
        placer.refuse(op, "a sum is int8 only as a mean: divide it by the number of its terms")
    placer.covered.update([*passed, reader])
    params = {"axes": axes, "keepdims": keep}
    placer.add(op, "mean", [x], reader.outputs[0], shape=reader.out_shape, params=params)


def _divisor(op: Op, value: Value) -> float | None:
    """What an operation divides a value by, if that is a number."""
    if op.kind == "div" and op.inputs[0] is value:
        return _literal(op.inputs[1])
    if op.kind == "mul":
        factor = _literal(op.inputs[1 if op.inputs[0] is value else 0])
        return 1.0 / factor if factor else None
    return None


def _pool(placer: _Placer, op: Op) -> None:
    params = op.params
    x_shape = op.inputs[0].shape
    window, strides = params["window_dimensions"], params["window_strides"]
    dilated = set(params["base_dilation"]) | set(params["window_dilation"]) != {1}
    plain = len(window) == 4 and window[0] == window[3] == 1 and strides[0] == strides[3] == 1
    if not plain or dilated or any(params["padding"][0]) or any(params["padding"][3]):
        placer.refuse(op, "LiteRT pools over height and width of [B, H, W, C] alone")
    x = placer.tensor(op, op.inputs[0])
    pads = params["padding"][1:3]
    padding = _padding(pads, x_shape[1:3], window[1:3], strides[1:3], (1, 1))
    is_max = op.kind == "reduce_window_max"
    end = op.outputs[0]
    if not is_max:
        end, counted = _average(placer, op)
        if counted and padding != "VALID":
            x, x_shape = _padded(placer, op, x, x_shape, pads)
            padding = "VALID"
        elif not isinstance(padding, str):
            placer.refuse(op, f"LiteRT averages with SAME or VALID padding, found {pads}")
    elif not isinstance(padding, str):
        x, x_shape = _padded(placer, op, x, x_shape, pads, lowest=True)
        padding = "VALID"
    placer.add(
        op,
        "max_pool" if is_max else "avg_pool",
        [x],
        end,
        params={
            "window_dimensions": window[1:3],
            "window_strides": strides[1:3],
            "padding": padding,
        },
        same_range=True,
    )


def _average(placer: _Placer, op: Op) -> tuple[Value, bool]:
    """What a window sum is divided by: its output, and whether padding counts as terms."""
    value = op.outputs[0]
    reader = placer.only_reader(value)
    size = math.prod(op.params["window_dimensions"])
    if reader is None or reader.kind not in ("div", "mul"):
        placer.refuse(op, "a window sum is int8 only as an average: divide it by the window size")
    divisor = _divisor(reader, value)
    placer.covered.add(reader)
    if divisor is not None and math.isclose(divisor, size, rel_tol=1e-5):
        return reader.outputs[0], True
    counts = reader.inputs[1]
    if reader.kind == "div" and _counts_terms(placer.graph, counts, op):
        return reader.outputs[0], False
    return placer.refuse(op, "it is divided by something else than the number of its terms")


def _counts_terms(graph: Graph, value: Value, pool: Op) -> bool:
    """Whether a value is the same window sum over ones."""
    op = graph.producers.get(value)
    while op is not None and op.kind == "broadcast_in_dim":
        op = graph.producers.get(op.inputs[0])
    if op is None or op.kind != "reduce_window_sum" or dict(op.params) != dict(pool.params):
        return False
    source = graph.producers.get(op.inputs[0])
    return (
        source is not None
        and source.kind == "broadcast_in_dim"
        and _literal(source.inputs[0]) == 1.0
    )


def _concatenate(placer: _Placer, op: Op) -> None:
    inputs = []
    for i, value in enumerate(op.inputs):
        name = placer.tensor(op, value)
        if placer.range_of(name) in placer.fixed:
            # A fixed grid cannot be shared with the other parts: store the part on theirs.
            name = placer.add(
                op, "requantize", [name], None, name=f"{op.name}/part_{i}", shape=value.shape
            )
        inputs.append(name)
    params = {"axis": int(op.params["dimension"])}
    placer.add(op, "concatenate", inputs, op.outputs[0], params=params, same_range=True)


def _pad(placer: _Placer, op: Op) -> None:
    config = op.params["padding_config"]
    if _literal(op.inputs[1]) != 0.0 or any(inner for *_, inner in config):
        placer.refuse(op, "LiteRT pads int8 with zeros, at the edges")
    if any(low < 0 or high < 0 for low, high, _ in config):
        placer.refuse(op, "its padding is negative: slice instead")
    params = {"padding": tuple((int(lo), int(hi)) for lo, hi, _ in config), "lowest": False}
    x = placer.tensor(op, op.inputs[0])
    placer.add(op, "pad", [x], op.outputs[0], params=params, same_range=True)


def _reshape(placer: _Placer, op: Op) -> None:
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


def _transpose(placer: _Placer, op: Op) -> None:
    x = placer.tensor(op, op.inputs[0])
    params = {"permutation": tuple(int(axis) for axis in op.params["permutation"])}
    placer.add(op, "transpose", [x], op.outputs[0], params=params, same_range=True)


def _slice(placer: _Placer, op: Op) -> None:
    x = placer.tensor(op, op.inputs[0])
    starts, limits = op.params["start_indices"], op.params["limit_indices"]
    strides = op.params["strides"] or (1,) * len(starts)
    params = {"starts": tuple(starts), "limits": tuple(limits), "strides": tuple(strides)}
    placer.add(op, "slice", [x], op.outputs[0], params=params, same_range=True)


def _split(placer: _Placer, op: Op) -> None:
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


def _unary(placer: _Placer, op: Op) -> None:
    x = placer.tensor(op, op.inputs[0])
    placer.add(op, op.kind, [x], op.outputs[0])


def _softmax(placer: _Placer, op: Op) -> None:
    """reduce_max, subtract, exp, divide by the sum: LiteRT's softmax over the last axis."""
    graph, x = placer.graph, op.inputs[0]
    passed = [op]

    def follow(value: Value, kinds: tuple[str, ...]) -> Op | None:
        for reader in graph.consumers.get(value, ()):
            if reader.kind in kinds:
                passed.append(reader)
                return reader
        return None

    def through(value: Value, *kinds: str) -> Value:
        while (reader := placer.only_reader(value)) is not None and reader.kind in kinds:
            passed.append(reader)
            value = reader.outputs[0]
        return value

    peak = through(op.outputs[0], "max", "broadcast_in_dim", "reshape", "stop_gradient")
    shifted = follow(peak, ("sub",))
    powers = follow(shifted.outputs[0], ("exp",)) if shifted and shifted.inputs[0] is x else None
    total = follow(powers.outputs[0], ("reduce_sum",)) if powers else None
    result = None
    if total is not None:
        result = follow(through(total.outputs[0], "broadcast_in_dim", "reshape"), ("div",))
    last = (len(x.shape) - 1,)
    if result is None or tuple(op.params["axes"]) != last or tuple(total.params["axes"]) != last:
        placer.refuse(op, "a maximum is int8 only inside a softmax over the last axis")
    placer.covered.update(passed)
    name = placer.tensor(op, x)
    placer.add(op, "softmax", [name], result.outputs[0], name=op.name, shape=result.out_shape)


_RULES: Mapping[str, Callable[[_Placer, Op], None]] = {
    "conv_general_dilated": _conv,
    "dot_general": _dot,
    "add": _elementwise,
    "sub": _elementwise,
    "mul": _elementwise,
    "div": _elementwise,
    "relu": _relu,
    "relu6": _relu,
    "max": _relu,
    "min": _relu,
    "clamp": _relu,
    "reduce_sum": _reduce_sum,
    "reduce_max": _softmax,
    "reduce_window_sum": _pool,
    "reduce_window_max": _pool,
    "concatenate": _concatenate,
    "pad": _pad,
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "broadcast_in_dim": _reshape,
    "transpose": _transpose,
    "slice": _slice,
    "split": _split,
    "logistic": _unary,
    "tanh": _unary,
}
