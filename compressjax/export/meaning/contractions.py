"""Which sums convolutions and dense layers take, whatever the numbers are.

LiteRT's layouts, strides and paddings are the same for codes and for real values; `codes.py` and
`reals.py` each say how such a sum is computed and brought to the output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from compressjax.export.meaning.call import Call, Rule


class Operands(NamedTuple):
    """What a layer multiplies.

    Attributes:
        x: the input.
        kernel: as the layer's layout has it.
        bias: `[O]`, int32 beside codes, or `None`.
        source: which operand of the operator `x` is; the kernel is always operand 1.
    """

    x: jax.Array
    kernel: jax.Array
    bias: jax.Array | None
    source: int


class Window(NamedTuple):
    """How a kernel slides, as `jax.lax.conv_general_dilated` takes it."""

    strides: tuple[int, int]
    padding: str | Sequence[tuple[int, int]]
    layout: tuple[str, str, str]
    groups: int = 1
    lhs_dilation: tuple[int, int] | None = None
    rhs_dilation: tuple[int, int] | None = None


class Arithmetic(NamedTuple):
    """How sums are computed.

    Attributes:
        conv: `(call, operands, window) -> [N, H, W, O]`, with bias and fused activation.
        dense: `(call, operands) -> [rows, O]` for `x [rows, I]` and `kernel [O, I]`.
    """

    conv: Callable[[Call, Operands, Window], jax.Array]
    dense: Callable[[Call, Operands], jax.Array]


def rules(arithmetic: Arithmetic) -> Mapping[str, Rule]:
    """Gives the layers' rules on an arithmetic.

    Args:
        arithmetic: how sums are computed.

    Returns:
        A rule for each operator.
    """

    def conv(call: Call) -> jax.Array:
        operands = _operands(call, 0, 2)
        groups = operands.x.shape[-1] // operands.kernel.shape[-1]
        window = _window(call, ("NHWC", "OHWI", "NHWC"), groups)
        return arithmetic.conv(call, operands, window)

    def depthwise(call: Call) -> jax.Array:
        operands = _operands(call, 0, 2)
        kernel = jnp.transpose(operands.kernel, (1, 2, 0, 3))
        window = _window(call, ("NHWC", "HWIO", "NHWC"), operands.x.shape[-1])
        return arithmetic.conv(call, operands._replace(kernel=kernel), window)

    def transposed(call: Call) -> jax.Array:
        """LiteRT scatters the kernel; here it is turned around and slides over a dilated input."""
        operands, options = _operands(call, 2, 3), call.options
        wanted = call.constant(0, "sizes").tolist()
        strides, edges = (options.strideH, options.strideW), []
        for axis, stride in zip((1, 2), strides, strict=True):
            size, taps = operands.x.shape[axis], operands.kernel.shape[axis]
            spread = (size - 1) * stride + 1
            same = call.padding() == "SAME"
            cut = max(spread - 1 + taps - wanted[axis], 0) if same else 0
            low = taps - 1 - cut // 2
            edges.append((low, wanted[axis] - spread + taps - 1 - low))
        kernel = jnp.flip(operands.kernel, (1, 2))
        window = Window((1, 1), edges, ("NHWC", "OHWI", "NHWC"), lhs_dilation=strides)
        return arithmetic.conv(call, operands._replace(kernel=kernel), window)

    def dense(call: Call) -> jax.Array:
        if call.options.weightsFormat:
            raise ValueError("its weights are shuffled, expected them in their order")
        operands = _operands(call, 0, 2)
        x, (count, width) = operands.x, operands.kernel.shape
        made = arithmetic.dense(call, operands._replace(x=x.reshape(-1, width)))
        lead = x.shape[:-1] if call.options.keepNumDims else (made.shape[0],)
        return made.reshape(*lead, count)

    return {
        "CONV_2D": conv, "DEPTHWISE_CONV_2D": depthwise, "TRANSPOSE_CONV": transposed,
        "FULLY_CONNECTED": dense,
    }  # fmt: skip


def matmul_operands(call: Call) -> tuple[jax.Array, jax.Array]:
    """The two sides of a BATCH_MATMUL, `[..., M, K]` and `[..., K, N]`, with the same lead."""
    left, right = call.inputs
    left = jnp.swapaxes(left, -1, -2) if call.options.adjX else left
    right = jnp.swapaxes(right, -1, -2) if call.options.adjY else right
    lead = jnp.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    return (
        jnp.broadcast_to(left, (*lead, *left.shape[-2:])),
        jnp.broadcast_to(right, (*lead, *right.shape[-2:])),
    )


def _operands(call: Call, source: int, bias: int) -> Operands:
    added = call.inputs[bias] if len(call.inputs) > bias else None
    added = None if added is None else jnp.asarray(added).ravel()
    return Operands(call.inputs[source], call.inputs[1], added, source)


def _window(call: Call, layout: tuple[str, str, str], groups: int) -> Window:
    options = call.options
    dilation = (options.dilationHFactor, options.dilationWFactor)
    strides = (options.strideH, options.strideW)
    return Window(strides, call.padding(), layout, groups, rhs_dilation=dilation)
