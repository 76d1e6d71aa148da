"""Freezing: a plan with calibrated variables as plain integers.

`frozen` says what a frozen plan is; this makes one, or says which layers LiteRT's int8 or int16
tensors cannot hold.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from compressjax.quant import forward, ranges, steps
from compressjax.quant.forward import Variables
from compressjax.quant.frozen import Codes, Frozen, FrozenStep
from compressjax.quant.lattice import Affine
from compressjax.quant.plan import Plan, Step
from compressjax.quant.spec import Layout, Spec, layout


def freeze(plan: Plan, spec: Spec, qv: Variables) -> Frozen:
    """Makes a frozen plan.

    Args:
      plan: the plan.
      spec: with static activations.
      qv: calibrated variables.

    Returns:
      The plan as integers.

    Raises:
      ValueError: if ranges are missing or not finite, or LiteRT's int8 or int16 tensors do not hold
        the network; the message names the layers and their grids.
    """
    found = layout(spec, plan)
    wide = all(found.activations[key].wide for key in plan.ranges.values())
    _check_exact(plan, found, wide=wide)
    ranges.check_finite(jax.device_get(ranges.stored(plan, qv)))

    def numbers(qv: Variables) -> tuple[dict[str, Affine], Mapping[str, Any]]:
        grids = forward.tensor_grids(plan, found, qv)
        return grids, forward.coded(plan, spec, found, qv, grids)

    grids, constants = jax.device_get(jax.jit(numbers)(qv))
    frozen = [
        FrozenStep(
            name=step.name,
            kind=step.kind,
            inputs=step.inputs,
            apply=_real_apply(step, grids[step.name], -32768.0 if wide else -128.0),
            constants=_constants(step, constants.get(step.name), grids, wide=wide),
            scale=float(grids[step.name].scale),
            zero_point=int(grids[step.name].zero_point),
            out_shape=step.shape,
            params=step.params,
        )
        for step in plan.steps
    ]
    inputs = tuple(
        (name, value.shape, float(grids[name].scale), int(grids[name].zero_point))
        for name, value in plan.inputs.items()
    )
    return Frozen(inputs, tuple(frozen), plan.outputs, wide)


def _check_exact(plan: Plan, found: Layout, *, wide: bool) -> None:
    problems = []
    for name, grid in found.weights.items():
        if grid is None:
            problems.append(f"{name} is left float")
        elif grid.codes is None:
            problems.append(f"{name} has the grid {grid.name!r}")
    for name in dict.fromkeys(plan.ranges.values()):
        act = found.activations[name]
        if not act.litert and not wide:
            sort = "symmetric" if act.symmetric else "affine"
            problems.append(f"{name} is stored in {act.bits} bits, {sort}")
    if problems:
        shown = "; ".join(problems[:6]) + (
            f"; and {len(problems) - 6} more" if problems[6:] else ""
        )
        raise ValueError(
            "LiteRT's integer tensors cannot hold this network, it can only be simulated: "
            f"{shown}. Use integer, ternary, binary or power-of-two grids of at most 8 bits per "
            "channel or per tensor, and 8-bit affine activations, or 16-bit symmetric ones for all "
            "tensors."
        )


def _real_apply(step: Step, grid: Affine, lowest: float) -> Callable[..., jax.Array]:
    if step.params.get("lowest"):
        edge = float((np.float32(lowest) - grid.zero_point) * grid.scale)
        step = Step(step.name, step.kind, step.inputs, step.shape, {**step.params, "value": edge})
    count = len(step.inputs)
    return lambda *arrays: steps.real_step(step, arrays[:count], arrays[count:])


def _constants(
    step: Step,
    coded: steps.Coded | steps.Operand | None,
    grids: Mapping[str, Affine],
    *,
    wide: bool,
) -> tuple[Codes, ...]:
    if coded is None:
        return ()
    assert isinstance(coded, steps.Coded)
    scale = np.asarray(coded.grid.scale, np.float32)
    axis = coded.codes.ndim - 1 if scale.ndim else None
    elementwise = np.int16 if wide else np.int8
    kind = np.int8 if step.kind in steps.CONTRACTIONS else elementwise
    found = [Codes(np.asarray(coded.codes, kind), scale, axis, int(coded.grid.zero_point))]
    if coded.bias is not None:
        bias_scale = np.asarray(grids[step.inputs[0]].scale, np.float32) * scale
        bias = np.asarray(coded.bias, np.int64 if wide else np.int32)
        found.append(Codes(bias, bias_scale, 0 if scale.ndim else None))
    return tuple(found)
