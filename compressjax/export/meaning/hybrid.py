"""Layers of real values whose kernels are codes: LiteRT's dynamic-range kernels.

The other operand is rounded to the range that each row or example has (`quant.kernels` rounds so
too, before there is a file), then the sum is one of real values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax

from compressjax.export.meaning import reals
from compressjax.export.meaning.call import Call, Rule
from compressjax.quant.kernels import rounded_by_range
from compressjax.quant.lattice import Affine


def dequantize(call: Call) -> jax.Array:
    """DEQUANTIZE: codes become real values; half-precision floats are such already."""
    return unpacked(call, 0)


def unpacked(call: Call, position: int) -> jax.Array:
    """The real values of an input, `scale * (code - zero_point)`, with one scale or many."""
    codes, grid = call.inputs[position], call.grids[position]
    if grid is None:
        return codes
    scale = _spread(grid, call.axes[position], codes.ndim)
    return (codes - grid.zero_point) * scale


def _spread(grid: Affine, axis: int, rank: int) -> jax.Array:
    if not grid.scale.ndim:
        return grid.scale
    return grid.scale.reshape([-1 if i == axis else 1 for i in range(rank)])


def _rows(x: jax.Array, kernel: jax.Array, call: Call) -> tuple[int, ...]:
    return (x.ndim - 1,)


def _examples(x: jax.Array, kernel: jax.Array, call: Call) -> tuple[int, ...]:
    """XNNPACK runs a convolution of one pixel without strides as a dense layer on each pixel."""
    one = (*kernel.shape[1:3], call.options.strideH, call.options.strideW)
    pointwise = set(one) == {1} and kernel.shape[-1] == x.shape[-1]
    return (3,) if pointwise else (1, 2, 3)


def _hybrid(rule: Rule, source: int, sharing: Callable[..., tuple[int, ...]]) -> Rule:
    def run(call: Call) -> jax.Array:
        x, kernel = call.inputs[source], unpacked(call, 1)
        inputs = list(call.inputs)
        inputs[source], inputs[1] = rounded_by_range(x, sharing(x, kernel, call)), kernel
        return rule(call._replace(inputs=inputs))

    return run


RULES: Mapping[str, Rule] = {
    "FULLY_CONNECTED": _hybrid(reals.RULES["FULLY_CONNECTED"], 0, _rows),
    "CONV_2D": _hybrid(reals.RULES["CONV_2D"], 0, _examples),
    "TRANSPOSE_CONV": _hybrid(reals.RULES["TRANSPOSE_CONV"], 2, _examples),
    "DEPTHWISE_CONV_2D": _hybrid(reals.RULES["DEPTHWISE_CONV_2D"], 0, _examples),
}
