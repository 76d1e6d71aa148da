"""Constant operands: from the variables of a call to real values, and to codes.

Kernels take the affine operations behind them with them, so a batch norm in evaluation mode is part
of the kernel whether it was folded or not.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax

from compressjax import graph as graphs
from compressjax.quant import lattice
from compressjax.quant.lattice import Affine
from compressjax.quant.lattice.grid import ratio
from compressjax.quant.plan import Constant, Plan, Step
from compressjax.quant.ranges import grid_of, widened
from compressjax.quant.steps.kind import Coded, Operand

CONTRACTIONS = frozenset({"conv", "depthwise_conv", "dense"})
# A bias of at most this many codes keeps the sum of a contraction far from int32's end.
_LARGEST_BIAS = 2.0**22


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


def code_operand(
    step: Step, operand: Operand, x_grid: Affine, out_grid: Affine, *, per_channel: bool
) -> Coded:
    """Puts a constant operand on its grid.

    A kernel's scale is symmetric, `max|w| / 127` for each output channel or for the whole kernel,
    and never so small that its bias needs more than 2^22 codes. An elementwise constant has an
    affine grid, never so fine that XNNPACK's fixed point would lose it.

    Args:
      step: the step.
      operand: its constant.
      x_grid: grid of the step's input.
      out_grid: grid of the step's output.
      per_channel: one scale for each output channel of a kernel.

    Returns:
      The codes; straight-through gradients reach the operand.
    """
    value, bias = operand
    if step.kind not in CONTRACTIONS:
        least = out_grid.scale * jnp.float32(2.0**-8) if step.kind != "mul" else jnp.float32(0.0)
        grid = grid_of(*widened((value.min(), value.max()), least))
        return Coded(lattice.quantize(value, grid), grid, None)
    axes = tuple(range(value.ndim - 1)) if per_channel else None
    reach = lax.stop_gradient(jnp.abs(value).max(axes))
    scale = ratio(reach, jnp.float32(127.0))
    if bias is not None:
        least = ratio(jnp.abs(lax.stop_gradient(bias)), x_grid.scale * _LARGEST_BIAS)
        scale = jnp.maximum(scale, least if per_channel else least.max())
    # A channel of zeros has no scale of its own; any one gives zeros.
    scale = jnp.where(scale > 0, scale, jnp.float32(2.0**-7))
    codes = lattice.weight_codes(value, scale, value.ndim - 1 if per_channel else None)
    bias_codes = None if bias is None else lattice.bias_codes(bias, x_grid.scale, scale)
    return Coded(codes, Affine(scale, jnp.float32(0.0)), bias_codes)
