"""What each step of a plan is in ONNX (operator set 20).

One rule for each kind, for float and for quantized models alike: `writer.py` hides the difference.
Steps that only move values work on the codes themselves, so they are exact everywhere; the others
compute on real values between DequantizeLinear and QuantizeLinear.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from compressjax.export.onnx.writer import Writer, shifted
from compressjax.quant.frozen import Codes
from compressjax.quant.plan import Step

Constants = Sequence[Codes | np.ndarray]
Rule = Callable[[Writer, Step, Constants], None]
_PLACE = (0, 2, 3, 1)  # where the axes of [B, H, W, C] are when channels come first


def write(writer: Writer, step: Step, constants: Constants) -> None:
    """Writes a step.

    Args:
        writer: gets the nodes.
        step: the step; its inputs are written already.
        constants: weight and bias, or a constant operand: codes, or float arrays.

    Raises:
        ValueError: there is no rule for the kind of step.
    """
    if step.kind not in _RULES:
        raise ValueError(
            f"step {step.name!r} is a {step.kind}, which is not written to ONNX: export the model "
            f"as a .tflite, or write the layer with one of {', '.join(sorted(_RULES))}"
        )
    _RULES[step.kind](writer, step, constants)


def _window(step: Step, shape: Sequence[int], kernel: Sequence[int]) -> dict[str, Any]:
    """Size, strides and explicit padding of a window over height and width."""
    strides, padding = step.params["window_strides"], step.params["padding"]
    if isinstance(padding, str):
        dilation = step.params.get("rhs_dilation", (1, 1))
        reach = [(size - 1) * d + 1 for size, d in zip(kernel, dilation, strict=True)]
        padding = jax.lax.padtype_to_pads(tuple(shape[1:3]), reach, tuple(strides), padding)
    before, after = zip(*padding, strict=True)
    return {
        "kernel_shape": [int(size) for size in kernel],
        "strides": [int(stride) for stride in strides],
        "pads": [int(edge) for edge in (*before, *after)],
    }


def _conv(writer: Writer, step: Step, constants: Constants) -> None:
    weight, x = constants[0], step.inputs[0]
    shape = weight.codes.shape if isinstance(weight, Codes) else weight.shape
    attributes = _window(step, writer.shapes[x], shape[:2])
    attributes["dilations"] = [int(d) for d in step.params["rhs_dilation"]]
    attributes["group"] = int(step.params["feature_group_count"])
    operands = [writer.real(x, planar=True), *_kernel(writer, step, constants, (3, 2, 0, 1), 0)]
    real = writer.node("Conv", operands, f"{step.name}/result", attributes)
    writer.put_real(step, real, planar=True)


def _dense(writer: Writer, step: Step, constants: Constants) -> None:
    """A product with a matrix; of any rank, computed on rows."""
    x = step.inputs[0]
    tensor, shape = writer.tensor(x, planar=False), writer.shapes[x]
    if len(shape) != 2:
        tensor = _reshape(writer, step, tensor, (-1, shape[-1]), "rows")
    operands = [writer.dequantized(x, tensor), *_kernel(writer, step, constants, (0, 1), 1)]
    result = writer.rounded(step, writer.node("Gemm", operands, f"{step.name}/result"))
    if len(shape) != 2:
        result = _reshape(writer, step, result, step.shape, "shaped")
    writer.put(step, result, planar=False)


def _kernel(
    writer: Writer, step: Step, constants: Constants, order: tuple[int, ...], axis: int
) -> list[str]:
    weight = writer.weight(f"{step.name}/weight", constants[0], lambda w: w.transpose(order), axis)
    biases = [
        writer.weight(f"{step.name}/bias", bias, lambda b: b.reshape(-1)) for bias in constants[1:]
    ]
    return [weight, *biases]


def _reshape(writer: Writer, step: Step, tensor: str, shape: Sequence[int], suffix: str) -> str:
    sizes = writer.constant(f"{step.name}/{suffix}/shape", np.asarray(shape, np.int64))
    return writer.node("Reshape", [tensor, sizes], f"{step.name}/{suffix}")


def _batch_matmul(writer: Writer, step: Step, constants: Constants) -> None:
    del constants
    operands = [writer.real(name, planar=False) for name in step.inputs]
    writer.put_real(step, writer.node("MatMul", operands, f"{step.name}/result"), planar=False)


def _elementwise(op: str) -> Rule:
    """An operation of two operands; the second may be a constant."""

    def rule(writer: Writer, step: Step, constants: Constants) -> None:
        planar = _prefers_planar(writer, step)
        operands = [writer.real(name, planar=planar) for name in step.inputs]
        for constant in constants:
            place = f"{step.name}/constant"
            layout = _like_operand(step, planar=planar)
            operands.append(writer.weight(place, constant, layout, affine=True))
        if step.params.get("reversed"):
            operands.reverse()
        real = writer.node(op, operands, f"{step.name}/result")
        writer.put_real(step, real, planar=planar)

    return rule


def _prefers_planar(writer: Writer, step: Step) -> bool:
    return len(step.shape) == 4 and any(writer.planar(name) for name in step.inputs)


def _like_operand(step: Step, *, planar: bool) -> Callable[[np.ndarray], np.ndarray]:
    """Gives a constant the rank and the layout of the other operand."""

    def layout(array: np.ndarray) -> np.ndarray:
        array = array.reshape((1,) * (len(step.shape) - array.ndim) + array.shape)
        return array.transpose(0, 3, 1, 2) if planar else array

    return layout


def _function(*ops: str, attributes: Callable[[Step], Mapping[str, Any]] | None = None) -> Rule:
    """A function of one operand, as operations one after the other."""

    def rule(writer: Writer, step: Step, constants: Constants) -> None:
        del constants
        planar = step.kind != "softmax" and _prefers_planar(writer, step)
        tensor = writer.real(step.inputs[0], planar=planar)
        for op in ops:
            found = attributes(step) if attributes is not None else {}
            tensor = writer.node(op, [tensor], f"{step.name}/{op.lower()}", found)
        writer.put_real(step, tensor, planar=planar)

    return rule


def _regrid(writer: Writer, step: Step, constants: Constants) -> None:
    """A clamp of its own, or a second grid: on the input's grid only codes are compared."""
    del constants
    planar, x = _prefers_planar(writer, step), step.inputs[0]
    if writer.grids is None or writer.grids[x] == writer.grids[step.name]:
        same = writer.node("Identity", [writer.tensor(x, planar=planar)], f"{step.name}/same")
        writer.put(step, same, planar=planar)
    else:
        writer.put_real(step, writer.real(x, planar=planar), planar=planar)


def _max_pool(writer: Writer, step: Step, constants: Constants) -> None:
    del constants
    x = step.inputs[0]
    attributes = _window(step, writer.shapes[x], step.params["window_dimensions"])
    codes = [writer.tensor(x, planar=True)]
    writer.put(step, writer.node("MaxPool", codes, f"{step.name}/result", attributes), planar=True)


def _avg_pool(writer: Writer, step: Step, constants: Constants) -> None:
    del constants
    x = step.inputs[0]
    attributes = _window(step, writer.shapes[x], step.params["window_dimensions"])
    reals = [writer.real(x, planar=True)]
    real = writer.node("AveragePool", reals, f"{step.name}/result", attributes)
    writer.put_real(step, real, planar=True)


def _mean(writer: Writer, step: Step, constants: Constants) -> None:
    """A mean; over height and width a pool, whose integer kernel rounds as LiteRT's does."""
    x, shape = step.inputs[0], writer.shapes[step.inputs[0]]
    if len(shape) != 4 or tuple(step.params["axes"]) != (1, 2):
        _reduction("ReduceMean")(writer, step, constants)
        return
    real = writer.node("GlobalAveragePool", [writer.real(x, planar=True)], f"{step.name}/result")
    codes = writer.rounded(step, real)
    if not step.params["keepdims"]:
        codes = _reshape(writer, step, codes, step.shape, "flat")
    writer.put(step, codes, planar=bool(step.params["keepdims"]))


def _reduction(op: str) -> Rule:
    """A mean, sum or extreme over axes."""

    def rule(writer: Writer, step: Step, constants: Constants) -> None:
        del constants
        x, axes, keep = step.inputs[0], step.params["axes"], bool(step.params.get("keepdims"))
        rest = [axis for axis in range(len(writer.shapes[x])) if axis not in axes]
        planar = writer.planar(x) and (keep or rest in ([0], [3], [0, 3]))
        places = writer.constant(f"{step.name}/axes", np.asarray(_places(axes, planar=planar)))
        operands = [writer.real(x, planar=planar), places]
        real = writer.node(op, operands, f"{step.name}/result", {"keepdims": int(keep)})
        writer.put_real(step, real, planar=planar and keep)

    return rule


def _places(axes: Sequence[int], *, planar: bool) -> list[int]:
    return [int(_PLACE[axis]) if planar else int(axis) for axis in axes]


def _pad(writer: Writer, step: Step, constants: Constants) -> None:
    del constants
    x, p = step.inputs[0], step.params
    planar = _prefers_planar(writer, step)
    edges = [(0, 0)] * len(p["padding"])
    for place, pair in zip(_places(range(len(edges)), planar=planar), p["padding"], strict=True):
        edges[place] = pair
    before, after = zip(*edges, strict=True)
    if writer.grids is None:
        value = np.asarray(-np.inf if p["lowest"] else 0.0, np.float32)
    else:
        value = shifted(np.asarray(-128 if p["lowest"] else writer.grids[x][1], np.int8))
    operands = [
        writer.tensor(x, planar=planar),
        writer.constant(f"{step.name}/pads", np.asarray([*before, *after], np.int64)),
        writer.constant(f"{step.name}/value", value),
    ]
    writer.put(step, writer.node("Pad", operands, f"{step.name}/result"), planar=planar)


def _to_shape(writer: Writer, step: Step, constants: Constants) -> None:
    del constants
    tensor = writer.tensor(step.inputs[0], planar=False)
    writer.put(step, _reshape(writer, step, tensor, step.shape, "result"), planar=False)


def _transpose(writer: Writer, step: Step, constants: Constants) -> None:
    del constants
    order = {"perm": [int(axis) for axis in step.params["permutation"]]}
    codes = [writer.tensor(step.inputs[0], planar=False)]
    writer.put(step, writer.node("Transpose", codes, f"{step.name}/result", order), planar=False)


def _slice(writer: Writer, step: Step, constants: Constants) -> None:
    del constants
    planar, p = _prefers_planar(writer, step), step.params
    places = _places(range(len(step.shape)), planar=planar)
    parts = {"starts": p["starts"], "limits": p["limits"], "axes": places, "strides": p["strides"]}
    operands = [writer.tensor(step.inputs[0], planar=planar)]
    for name, numbers in parts.items():
        operands.append(writer.constant(f"{step.name}/{name}", np.asarray(numbers, np.int64)))
    writer.put(step, writer.node("Slice", operands, f"{step.name}/result"), planar=planar)


def _gather(writer: Writer, step: Step, constants: Constants) -> None:
    del constants
    planar, p = _prefers_planar(writer, step), step.params
    indices = writer.constant(f"{step.name}/indices", np.asarray(p["indices"], np.int64))
    operands = [writer.tensor(step.inputs[0], planar=planar), indices]
    axis = {"axis": _places([p["axis"]], planar=planar)[0]}
    writer.put(step, writer.node("Gather", operands, f"{step.name}/result", axis), planar=planar)


def _concatenate(writer: Writer, step: Step, constants: Constants) -> None:
    del constants
    planar = _prefers_planar(writer, step)
    parts = [writer.tensor(name, planar=planar) for name in step.inputs]
    axis = {"axis": _places([step.params["axis"]], planar=planar)[0]}
    writer.put(step, writer.node("Concat", parts, f"{step.name}/result", axis), planar=planar)


def _resize_nearest(writer: Writer, step: Step, constants: Constants) -> None:
    del constants
    batch, height, width, channels = step.shape
    sizes = np.asarray([batch, channels, height, width], np.int64)
    operands = [writer.tensor(step.inputs[0], planar=True), "", ""]
    operands.append(writer.constant(f"{step.name}/sizes", sizes))
    # The pixel whose square holds the middle of the new one, as jax.image.resize chooses.
    how = {
        "mode": "nearest",
        "coordinate_transformation_mode": "half_pixel",
        "nearest_mode": "round_prefer_ceil",
    }
    writer.put(step, writer.node("Resize", operands, f"{step.name}/result", how), planar=True)


_RULES: Mapping[str, Rule] = {
    "conv": _conv,
    "depthwise_conv": _conv,
    "dense": _dense,
    "batch_matmul": _batch_matmul,
    "add": _elementwise("Add"),
    "sub": _elementwise("Sub"),
    "mul": _elementwise("Mul"),
    "maximum": _elementwise("Max"),
    "minimum": _elementwise("Min"),
    "requantize": _regrid,
    "relu": _regrid,
    "clamp": _regrid,
    "softmax": _function("Softmax"),
    "logistic": _function("Sigmoid"),
    "tanh": _function("Tanh"),
    "gelu": _function(
        "Gelu",
        attributes=lambda step: {"approximate": "tanh" if step.params["approximate"] else "none"},
    ),
    "elu": _function("Elu"),
    "leaky_relu": _function(
        "LeakyRelu", attributes=lambda step: {"alpha": float(step.params["slope"])}
    ),
    "exp": _function("Exp"),
    "log": _function("Log"),
    "sqrt": _function("Sqrt"),
    "rsqrt": _function("Sqrt", "Reciprocal"),
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "mean": _mean,
    "sum": _reduction("ReduceSum"),
    "reduce_max": _reduction("ReduceMax"),
    "reduce_min": _reduction("ReduceMin"),
    "pad": _pad,
    "reshape": _to_shape,
    "transpose": _transpose,
    "slice": _slice,
    "gather": _gather,
    "concatenate": _concatenate,
    "resize_nearest": _resize_nearest,
}
