"""What LiteRT's int8 operators compute, as calls of the lattice.

`operators.py` writes operators into files; this reads them. Each rule takes what an operator of a
file has, its codes, grids, constants and options, and gives the codes that LiteRT's default
kernels put out. `load.py` runs a whole file with them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from compressjax.quant import lattice
from compressjax.quant.lattice import Affine

Bounds = tuple[float | None, float | None]

# ActivationFunctionType and Padding of LiteRT's schema.
_CLAMPS: Mapping[int, Bounds] = {0: (None, None), 1: (0.0, None), 2: (-1.0, 1.0), 3: (0.0, 6.0)}
_PADDINGS: Mapping[int, str] = {0: "SAME", 1: "VALID"}


class Call(NamedTuple):
    """An operator with what it is given.

    Attributes:
        inputs: codes, integer-valued float32; real values where the tensor is float; `None` where
            an operand is left out.
        grids: of the inputs; a kernel's has one scale per channel, and no grid is `None`.
        fixed: data of the inputs that are constants of the file, else `None`.
        options: the operator's, as LiteRT's schema has them.
        shapes: of the outputs, at the batch size in the file.
        out: the grid of the first output, `None` if it is float.
    """

    inputs: Sequence[Any]
    grids: Sequence[Affine | None]
    fixed: Sequence[np.ndarray | None]
    options: Any
    shapes: Sequence[tuple[int, ...]]
    out: Affine | None

    def constant(self, position: int, what: str) -> np.ndarray:
        """Gives a constant operand, such as axes; one that is computed is refused."""
        value = self.fixed[position]
        if value is None:
            raise ValueError(f"its {what} are computed while the model runs, expected constants")
        return value

    def clamp(self) -> Bounds:
        """The bounds of the fused activation."""
        number = int(self.options.fusedActivationFunction) if self.options else 0
        if number not in _CLAMPS:
            raise ValueError(f"its fused activation has the number {number}, expected a clamp")
        return _CLAMPS[number]


Rule = Callable[[Call], Any]


def _conv(call: Call) -> jax.Array:
    x, kernel, options = call.inputs[0], call.inputs[1], call.options
    acc = lattice.conv_sum(
        x, kernel, _bias(call, 2), _grid(call, 0),
        window_strides=(options.strideH, options.strideW),
        padding=_padding(call),
        rhs_dilation=(options.dilationHFactor, options.dilationWFactor),
        dimension_numbers=("NHWC", "OHWI", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[-1],
    )  # fmt: skip
    return _rescaled(call, acc, 0)


def _depthwise(call: Call) -> jax.Array:
    x, kernel, options = call.inputs[0], call.inputs[1], call.options
    acc = lattice.conv_sum(
        x, jnp.transpose(kernel, (1, 2, 0, 3)), _bias(call, 2), _grid(call, 0),
        window_strides=(options.strideH, options.strideW),
        padding=_padding(call),
        rhs_dilation=(options.dilationHFactor, options.dilationWFactor),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )  # fmt: skip
    return _rescaled(call, acc, 0)


def _transpose_conv(call: Call) -> jax.Array:
    """LiteRT scatters the kernel; here it is turned around and slides over a dilated input."""
    (kernel, x), options = call.inputs[1:3], call.options
    strides, edges = (options.strideH, options.strideW), []
    for axis, stride in zip((1, 2), strides, strict=True):
        size, taps, wanted = x.shape[axis], kernel.shape[axis], call.shapes[0][axis]
        spread = (size - 1) * stride + 1
        cut = max(spread - 1 + taps - wanted, 0) if _padding(call) == "SAME" else 0
        low = taps - 1 - cut // 2
        edges.append((low, wanted - spread + taps - 1 - low))
    acc = lattice.conv_sum(
        x, jnp.flip(kernel, (1, 2)), _bias(call, 3), _grid(call, 2),
        window_strides=(1, 1), padding=edges, lhs_dilation=strides,
        dimension_numbers=("NHWC", "OHWI", "NHWC"),
    )  # fmt: skip
    return _rescaled(call, acc, 2)


def _dense(call: Call) -> jax.Array:
    kernel = call.inputs[1]
    x = call.inputs[0].reshape(-1, kernel.shape[-1])
    numbers = (((1,), (1,)), ((), ()))
    acc = lattice.dot_sum(x, kernel, _bias(call, 2), _grid(call, 0), dimension_numbers=numbers)
    return _rescaled(call, acc, 0).reshape(call.shapes[0])


def _padding(call: Call) -> str:
    number = int(call.options.padding)
    if number not in _PADDINGS:
        raise ValueError(f"its padding has the number {number}, expected 0 (SAME) or 1 (VALID)")
    return _PADDINGS[number]


def _bias(call: Call, position: int) -> jax.Array | None:
    return call.inputs[position] if len(call.inputs) > position else None


def _rescaled(call: Call, acc: jax.Array, source: int) -> jax.Array:
    call.constant(1, "kernels")
    (lo, hi), scale, axis = call.clamp(), _grid(call, 1).scale, acc.ndim - 1
    return lattice.rescale(acc, _grid(call, source), scale, _out(call), axis, lo=lo, hi=hi)


def _binary(function: Callable[..., jax.Array]) -> Rule:
    def rule(call: Call) -> jax.Array:
        lo, hi = call.clamp()
        grids = _grid(call, 0), _grid(call, 1), _out(call)
        return function(call.inputs[0], call.inputs[1], *grids, lo=lo, hi=hi)

    return rule


def _compared(function: Callable[..., jax.Array]) -> Rule:
    def rule(call: Call) -> jax.Array:
        return function(call.inputs[0], call.inputs[1])

    return rule


def _matmul(call: Call) -> jax.Array:
    left, right = call.inputs
    left = jnp.swapaxes(left, -1, -2) if call.options.adjX else left
    right = jnp.swapaxes(right, -1, -2) if call.options.adjY else right
    lead = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    left, right = (jnp.broadcast_to(x, (*lead, *x.shape[-2:])) for x in (left, right))
    sums = lattice.matmul_sum(left, right, _grid(call, 0), _grid(call, 1))
    return lattice.matmul_rescale(sums, _grid(call, 0), _grid(call, 1), _out(call))


def _pool(function: Callable[..., jax.Array]) -> Rule:
    def rule(call: Call) -> jax.Array:
        options, (lo, hi) = call.options, call.clamp()
        return function(
            call.inputs[0], _grid(call, 0),
            window_dimensions=(1, options.filterHeight, options.filterWidth, 1),
            window_strides=(1, options.strideH, options.strideW, 1),
            padding=_padding(call), lo=lo, hi=hi,
        )  # fmt: skip

    return rule


def _axes(call: Call) -> tuple[int, ...]:
    rank = call.inputs[0].ndim
    return tuple(int(axis) % rank for axis in call.constant(1, "axes").ravel())


def _total(function: Callable[..., jax.Array]) -> Rule:
    def rule(call: Call) -> jax.Array:
        keep = bool(call.options.keepDims)
        return function(call.inputs[0], _grid(call, 0), _out(call), _axes(call), keep)

    return rule


def _extreme(function: Callable[..., jax.Array]) -> Rule:
    def rule(call: Call) -> jax.Array:
        return function(call.inputs[0], axis=_axes(call), keepdims=bool(call.options.keepDims))

    return rule


def _table(function: Callable[..., jax.Array]) -> Rule:
    def rule(call: Call) -> jax.Array:
        return function(call.inputs[0], _grid(call, 0), _out(call))

    return rule


def _on_fixed_grid(function: Callable[..., jax.Array]) -> Rule:
    """Functions whose output has the grid that LiteRT's specification fixes."""

    def rule(call: Call) -> jax.Array:
        if getattr(call.options, "beta", 1.0) != 1.0:
            raise ValueError(f"its beta is {call.options.beta}, expected 1")
        return function(call.inputs[0], _grid(call, 0))

    return rule


def _relu(lo: float, hi: float | None) -> Rule:
    def rule(call: Call) -> jax.Array:
        return lattice.relu(call.inputs[0], _grid(call, 0), _out(call), lo=lo, hi=hi)

    return rule


def _leaky(call: Call) -> jax.Array:
    return lattice.leaky_relu(call.inputs[0], _grid(call, 0), _out(call), call.options.alpha)


def _gelu(call: Call) -> jax.Array:
    approximate = bool(call.options.approximate)
    return lattice.gelu(call.inputs[0], _grid(call, 0), _out(call), approximate=approximate)


def _quantize(call: Call) -> jax.Array:
    source = call.grids[0]
    if source is None:
        return lattice.quantize(call.inputs[0], _out(call))
    return lattice.requantize(call.inputs[0], source, _out(call))


def _dequantize(call: Call) -> jax.Array:
    return lattice.dequantize(call.inputs[0], _grid(call, 0))


def _reshape(call: Call) -> jax.Array:
    return call.inputs[0].reshape(call.shapes[0])


def _transpose(call: Call) -> jax.Array:
    return jnp.transpose(call.inputs[0], call.constant(1, "axes").tolist())


def _pad(call: Call) -> jax.Array:
    widths = [(int(low), int(high), 0) for low, high in call.constant(1, "widths")]
    edge = call.inputs[2].reshape(()) if len(call.inputs) > 2 else _grid(call, 0).zero_point
    return lax.pad(call.inputs[0], edge.astype(jnp.float32), widths)


def _slice(call: Call) -> jax.Array:
    starts = call.constant(1, "starts").tolist()
    sizes = call.shapes[0]
    return lax.slice(call.inputs[0], starts, list(map(operator.add, starts, sizes)))


def _strided_slice(call: Call) -> jax.Array:
    options, x = call.options, call.inputs[0]
    if options.ellipsisMask or options.newAxisMask:
        raise ValueError("it has an ellipsis or new axes, expected one range per axis")
    starts, ends, steps = (call.constant(i, "ranges").tolist() for i in (1, 2, 3))
    ranges: list[Any] = []
    for axis, (start, end, step) in enumerate(zip(starts, ends, steps, strict=True)):
        bit = 1 << axis
        if options.shrinkAxisMask & bit:
            ranges.append(start)
        else:
            begin = None if options.beginMask & bit else start
            ranges.append(slice(begin, None if options.endMask & bit else end, step))
    return x[tuple(ranges)]


def _concatenate(call: Call) -> jax.Array:
    return jnp.concatenate(call.inputs, axis=call.options.axis)


def _split(call: Call) -> tuple[jax.Array, ...]:
    axis = int(call.constant(0, "axis").item())
    return tuple(jnp.split(call.inputs[1], len(call.shapes), axis=axis))


def _gather(call: Call) -> jax.Array:
    if call.options.batchDims:
        raise ValueError(f"it has {call.options.batchDims} batch axes, expected none")
    return jnp.take(call.inputs[0], call.constant(1, "places"), axis=call.options.axis)


def _gather_nd(call: Call) -> jax.Array:
    return call.inputs[0][tuple(np.moveaxis(call.constant(1, "places"), -1, 0))]


def _resize_nearest(call: Call) -> jax.Array:
    if call.options.alignCorners:
        raise ValueError("it aligns corners, expected centres or origins")
    x, shift = call.inputs[0], 0.5 if call.options.halfPixelCenters else 0.0
    for axis in (1, 2):
        size, wanted = x.shape[axis], call.shapes[0][axis]
        places = np.floor((np.arange(wanted) + shift) * np.float32(size / wanted)).astype(int)
        x = jnp.take(x, np.minimum(places, size - 1), axis=axis)
    return x


def _grid(call: Call, position: int) -> Affine:
    grid = call.grids[position]
    if grid is None:
        raise ValueError(f"its operand {position} is no int8 tensor with a scale")
    return grid


def _out(call: Call) -> Affine:
    if call.out is None:
        raise ValueError("its result is no int8 tensor with a scale")
    return call.out


# Operators whose inputs and output have one grid: they move codes or compare them.
MOVES: Mapping[str, Rule] = {
    "RESHAPE": _reshape, "SQUEEZE": _reshape, "EXPAND_DIMS": _reshape, "TRANSPOSE": _transpose,
    "PAD": _pad, "PADV2": _pad, "SLICE": _slice, "STRIDED_SLICE": _strided_slice,
    "CONCATENATION": _concatenate, "SPLIT": _split, "GATHER": _gather, "GATHER_ND": _gather_nd,
    "RESIZE_NEAREST_NEIGHBOR": _resize_nearest, "MAX_POOL_2D": _pool(lattice.max_pool),
    "AVERAGE_POOL_2D": _pool(lattice.avg_pool), "REDUCE_MAX": _extreme(jnp.max),
    "REDUCE_MIN": _extreme(jnp.min), "MAXIMUM": _compared(lattice.maximum),
    "MINIMUM": _compared(lattice.minimum),
}  # fmt: skip
# Operators whose output has a grid that LiteRT's specification fixes.
FIXED: Mapping[str, tuple[Rule, tuple[float, int]]] = {
    "SOFTMAX": (_on_fixed_grid(lattice.softmax), lattice.SOFTMAX_GRID),
    "LOGISTIC": (_on_fixed_grid(lattice.logistic), lattice.LOGISTIC_GRID),
    "TANH": (_on_fixed_grid(lattice.tanh), lattice.TANH_GRID),
}
RULES: Mapping[str, Rule] = {
    **MOVES,
    **{name: rule for name, (rule, _) in FIXED.items()},
    "QUANTIZE": _quantize, "DEQUANTIZE": _dequantize, "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise, "TRANSPOSE_CONV": _transpose_conv,
    "FULLY_CONNECTED": _dense, "BATCH_MATMUL": _matmul, "ADD": _binary(lattice.add),
    "SUB": _binary(lattice.sub), "MUL": _binary(lattice.mul), "MEAN": _total(lattice.mean),
    "SUM": _total(lattice.sum), "RELU": _relu(0.0, None), "RELU6": _relu(0.0, 6.0),
    "RELU_N1_TO_1": _relu(-1.0, 1.0), "HARD_SWISH": _table(lattice.hard_swish),
    "ELU": _table(lattice.elu), "EXP": _table(lattice.exp), "LOG": _table(lattice.log),
    "SQRT": _table(lattice.sqrt), "RSQRT": _table(lattice.rsqrt), "LEAKY_RELU": _leaky,
    "GELU": _gelu,
}  # fmt: skip
