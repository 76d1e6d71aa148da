"""Constant operands: from the variables of a call to real values, and to codes.

Kernels take the affine operations behind them with them, so a batch norm in evaluation mode is part
of the kernel whether it was folded or not.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from compressjax import graph as graphs
from compressjax.quant import lattice
from compressjax.quant.grids import Grid
from compressjax.quant.lattice import Affine
from compressjax.quant.lattice.grid import CODE_MAX, CODE_MIN, ratio
from compressjax.quant.plan import Constant, Plan, Step
from compressjax.quant.ranges import WIDE_CODES, grid_of, widened
from compressjax.quant.steps.kind import Coded, Operand, ends_of

CONTRACTIONS = frozenset({"conv", "depthwise_conv", "transpose_conv", "dense"})
# A bias of at most this many codes keeps the sum of a contraction far from int32's end.
_LARGEST_BIAS = 2.0**22
# LiteRT takes a multiplier (input scale times weight scale over output scale) under 2^-31 for zero,
# and beside int16 activations a channel of almost no weights would lose its bias.
_LEAST_MULTIPLIER = 2.0**-30


def operands(plan: Plan, variables: Any) -> dict[str, Operand]:
    """Evaluates the constant operands of a plan from the variables; differentiable.

    Args:
      plan: the plan.
      variables: the function's variables.

    Returns:
      The operand of each step that has one, by step name.
    """
    graph = plan.graph
    known = graphs.bind_variables(graph, variables)
    constants: dict[str, Constant] = {
        step.name: step.constant for step in plan.steps if step.constant is not None
    }
    values = graphs.evaluate(graph, [constant.value for constant in constants.values()], known)
    found = {}
    for (name, constant), value in zip(constants.items(), values, strict=True):
        real = jnp.asarray(constant.layout(jnp.asarray(value)), jnp.float32)
        bias = None
        if constant.chain:
            scale, shift = graphs.affine_map(graph, constant.chain, constant.chain_axis, known)
            real = real * scale.astype(jnp.float32).reshape((1,) * (real.ndim - 1) + (-1,))
            bias = jnp.broadcast_to(shift.astype(jnp.float32), real.shape[-1:])
        found[name] = Operand(real, bias)
    return found


def code_kernel(
    operand: Operand,
    x_grid: Affine,
    grid: Grid,
    params: Any,
    dtype: Any,
    wide_grid: Affine | None = None,
) -> Coded:
    """Puts a kernel on its grid, and its bias on that of the sums.

    The scale is never so small that the bias needs more codes than it may have.

    Args:
      operand: the kernel and its bias.
      x_grid: grid of the step's input.
      grid: of the kernel; it has codes.
      params: of the grid.
      dtype: in which the codes enter the product; float32 and bfloat16 hold them exactly.
      wide_grid: grid of the step's output if activations are int16.

    Returns:
      The codes; straight-through gradients reach the operand.
    """
    code = grid.codes
    assert code is not None
    value, bias = operand
    largest_bias, least = _LARGEST_BIAS, jnp.float32(0.0)
    if wide_grid is not None:
        largest_bias = lattice.total.LARGEST_BIAS
        least = ratio(wide_grid.scale * _LEAST_MULTIPLIER, x_grid.scale)
    if bias is not None:
        fitting = ratio(jnp.abs(lax.stop_gradient(bias)), x_grid.scale * largest_bias)
        least = lax.stop_gradient(jnp.maximum(fitting, least))
        scale = jax.eval_shape(lambda w: code(w, params, jnp.float32(0.0))[1], value)
        least = least if scale.ndim else least.max()
    codes, scale = code(value, params, least)
    bias_codes = None if bias is None else lattice.bias_codes(bias, x_grid.scale, scale)
    return Coded(codes.astype(dtype), Affine(scale, jnp.float32(0.0)), bias_codes)


def code_constant(step: Step, operand: Operand, out_grid: Affine, *, wide: bool = False) -> Coded:
    """Puts the constant of an elementwise step on an affine grid, a `constant` on the step's own.

    The grid is never so fine that XNNPACK's fixed point would lose it.

    Args:
      step: the step.
      operand: its constant.
      out_grid: grid of the step's output.
      wide: whether it stands beside int16 activations, on a symmetric grid of 16 bits.

    Returns:
      The codes; straight-through gradients reach the operand.
    """
    value = operand.value
    codes = lattice.wide.CODES if wide else (CODE_MIN, CODE_MAX)
    if step.kind == "constant":
        return Coded(lattice.quantize(value, out_grid, codes), out_grid, None, ends_of(value))
    if wide:
        own = grid_of(value.min(), value.max(), WIDE_CODES, symmetric=True)
        own = jax.tree.map(lax.stop_gradient, own)
        return Coded(lattice.quantize(value, own, codes), own, None)
    least = out_grid.scale * jnp.float32(2.0**-8) if step.kind != "mul" else jnp.float32(0.0)
    grid = grid_of(*widened((value.min(), value.max()), least))
    grid = jax.tree.map(lax.stop_gradient, grid)
    return Coded(lattice.quantize(value, grid), grid, None)
