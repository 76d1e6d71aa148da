"""Placing pools and means, and the padding that windows and convolutions share."""

import math
from collections.abc import Sequence

import jax

from compressjax.graph import Graph, Op, Value
from compressjax.quant.placement.placer import Placer, literal


def reduce_sum(placer: Placer, op: Op) -> None:
    """A sum; one that is divided by the number of its terms is a mean."""
    x = placer.tensor(op, op.inputs[0])
    axes = tuple(int(axis) for axis in op.params["axes"])
    count = math.prod(op.inputs[0].shape[axis] for axis in axes)
    value, keep = op.outputs[0], False
    passed: list[Op] = []
    reader = placer.only_reader(value)
    if reader is not None and reader.kind in ("broadcast_in_dim", "reshape"):
        kept = tuple(1 if axis in axes else n for axis, n in enumerate(op.inputs[0].shape))
        if reader.out_shape == kept:
            passed, value, keep = [reader], reader.outputs[0], True
            reader = placer.only_reader(value)
    divisor = _divisor(reader, value) if reader is not None else None
    if count == 1:  # nothing is added: only the axes go
        if reader is not None and divisor == 1.0:
            passed, value = [*passed, reader], reader.outputs[0]
        placer.covered.update(passed)
        placer.add(op, "reshape", [x], value, shape=value.shape, same_range=True)
        return
    params = {"axes": axes, "keepdims": keep}
    if reader is None or divisor is None or not math.isclose(divisor, count, rel_tol=1e-5):
        placer.covered.update(passed)
        placer.add(op, "sum", [x], value, shape=value.shape, params=params)
        return
    placer.covered.update([*passed, reader])
    placer.add(op, "mean", [x], reader.outputs[0], shape=reader.out_shape, params=params)


def extreme(placer: Placer, op: Op) -> None:
    """The largest or the smallest value along axes."""
    params = {"axes": tuple(int(axis) for axis in op.params["axes"])}
    x = placer.tensor(op, op.inputs[0])
    placer.add(op, op.kind, [x], op.outputs[0], params=params, same_range=True)


def _divisor(op: Op, value: Value) -> float | None:
    """What an operation divides a value by, if that is a number."""
    if op.kind == "div" and op.inputs[0] is value:
        return literal(op.inputs[1])
    if op.kind == "mul":
        factor = literal(op.inputs[1 if op.inputs[0] is value else 0])
        return 1.0 / factor if factor else None
    return None


def pool(placer: Placer, op: Op) -> None:
    """Max and average pooling over height and width."""
    params = op.params
    x_shape = op.inputs[0].shape
    window, strides = params["window_dimensions"], params["window_strides"]
    dilated = set(params["base_dilation"]) | set(params["window_dilation"]) != {1}
    plain = len(window) == 4 and window[0] == window[3] == 1 and strides[0] == strides[3] == 1
    if not plain or dilated or any(params["padding"][0]) or any(params["padding"][3]):
        placer.refuse(op, "LiteRT pools over height and width of [B, H, W, C] alone")
    x = placer.tensor(op, op.inputs[0])
    pads = params["padding"][1:3]
    padding = named_padding(pads, x_shape[1:3], window[1:3], strides[1:3], (1, 1))
    is_max = op.kind == "reduce_window_max"
    end = op.outputs[0]
    if not is_max:
        end, counted = _average(placer, op)
        if counted and padding != "VALID":
            x, x_shape = padded(placer, op, x, x_shape, pads)
            padding = "VALID"
        elif not isinstance(padding, str):
            placer.refuse(op, f"LiteRT averages with SAME or VALID padding, found {pads}")
    elif not isinstance(padding, str):
        x, x_shape = padded(placer, op, x, x_shape, pads, lowest=True)
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


def _average(placer: Placer, op: Op) -> tuple[Value, bool]:
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
        and literal(source.inputs[0]) == 1.0
    )


def named_padding(
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


def padded(
    placer: Placer,
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
