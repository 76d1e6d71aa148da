"""The forward pass of a quantized plan: every tensor as codes, on the lattice where LiteRT has it.

There is one loop over the steps. A step whose inputs, output and kernel LiteRT's int8 tensors hold
is computed by `steps.lattice_step`, any other by `simulate.simulated_step`.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from compressjax import tree
from compressjax.quant import lattice, ranges, simulate, steps
from compressjax.quant.grids import Grid, fit_at
from compressjax.quant.lattice import Affine
from compressjax.quant.plan import Plan, Step
from compressjax.quant.spec import Activations, Layout, Spec, layout

Variables = Mapping[str, Any]
# What LiteRT fixes for int16 outputs of softmax, logistic and tanh.
WIDE_SCALE = 2.0**-15


class Run(NamedTuple):
    """One forward pass.

    Attributes:
      codes: of every tensor, integer-valued float32, by name.
      grids: of every tensor.
      ends: of the real values of every tensor that has its own range, before they were clamped.
      scales: the largest scale of every kernel that has codes, by step name.
    """

    codes: dict[str, jax.Array]
    grids: dict[str, Affine]
    ends: dict[str, ranges.Range]
    scales: dict[str, jax.Array]

    def outputs(self, plan: Plan) -> Any:
        """What the function returns, as real values."""
        real = [lattice.dequantize(self.codes[name], self.grids[name]) for name in plan.outputs]
        return jax.tree.unflatten(plan.graph.out_tree, real)


def run(plan: Plan, spec: Spec, qv: Variables, args: tuple[Any, ...]) -> Run:
    """Runs a plan.

    Args:
      plan: the plan.
      spec: with static activations.
      qv: calibrated variables.
      args: the function's arguments after the variables.

    Returns:
      Every tensor.

    Raises:
      ValueError: if ranges are missing, or a rule of the spec matches nothing.

    Example:
      >>> from compressjax import quant
      >>> q = quant.quantize(lambda v, x: x @ v['kernel'], quant.int8())
      >>> x = jnp.array([[1.0, 0.5]])
      >>> qv = q.calibrate({'kernel': jnp.eye(2)}, [x])
      >>> made = run(q.plan(qv, x), quant.int8(), qv, (x,))
      >>> made.codes['kernel'].tolist(), round(float(made.grids['kernel'].scale), 4)
      ([[127.0, -1.0]], 0.0039)
    """
    found = layout(spec, plan)
    grids = tensor_grids(plan, found, qv)
    constants = coded(plan, spec, found, qv, grids)
    arrays = input_arrays(plan, args)
    scales = {
        name: lax.stop_gradient(constant.grid.scale).max()
        for name, constant in constants.items()
        if isinstance(constant, steps.Coded) and name in found.weights
    }
    done = Run(encode_inputs(plan, found, grids, arrays), grids, {}, scales)
    done.ends.update({name: (x.min(), x.max()) for name, x in arrays.items()})
    for step in plan.steps:
        constant = constants.get(step.name)
        stored = run_step(plan, found, qv, step, done.codes, grids, constant)
        done.codes[step.name] = stored.codes
        if stored.ends is not None and plan.ranges[step.name] not in plan.fixed:
            done.ends[step.name] = stored.ends
    return done


def encode_inputs(
    plan: Plan, found: Layout, grids: Mapping[str, Affine], arrays: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """Puts the inputs of a plan on their grids.

    Args:
      plan: the plan.
      found: what its tensors are stored in.
      grids: of the tensors.
      arrays: the inputs by name, from `input_arrays`.

    Returns:
      Integer-valued float32 codes by name.
    """
    codes = {}
    for name, x in arrays.items():
        activations, real = found.activations[plan.ranges[name]], jnp.asarray(x, jnp.float32)
        if activations.litert:
            codes[name] = lattice.quantize(real, grids[name])
        elif activations.wide:
            codes[name] = lattice.quantize(real, grids[name], lattice.wide.CODES)
        else:
            codes[name] = simulate.encode(real, grids[name], activations.codes)
    return codes


def run_step(
    plan: Plan,
    found: Layout,
    qv: Variables,
    step: Step,
    tensors: Mapping[str, jax.Array],
    grids: Mapping[str, Affine],
    constant: steps.Coded | steps.Operand | None,
) -> steps.Stored:
    """Runs one step of a plan, on the lattice if it is exact there.

    Args:
      plan: the plan.
      found: what its tensors are stored in.
      qv: calibrated variables.
      step: one of the plan's steps.
      tensors: the codes of its inputs, by name.
      grids: of its inputs and its output, by name.
      constant: its constant operand, from `coded`.

    Returns:
      The codes of its output, and the ends of its range.
    """
    step = _clipped(plan, found, qv, step)
    inputs = [tensors[name] for name in step.inputs]
    from_grids, out = [grids[name] for name in step.inputs], grids[step.name]
    if step.name in found.exact:
        assert not isinstance(constant, steps.Operand)
        wide = found.activations[plan.ranges[step.name]].wide
        return steps.lattice_step(step, inputs, from_grids, constant, out, wide=wide)
    assert not isinstance(constant, steps.Coded)
    real = [part for part in constant or () if part is not None]
    limits = found.activations[plan.ranges[step.name]].codes
    return simulate.simulated_step(step, inputs, from_grids, real, out, limits)


def _clipped(plan: Plan, found: Layout, qv: Variables, step: Step) -> Step:
    """The step with the bound that a learned range is differentiated at."""
    key = plan.ranges[step.name]
    learning = found.activations[key].learning
    if learning is None or learning.clip is None or key in plan.fixed or key != step.name:
        return step
    high = learning.clip(ranges.stored(plan, qv)[key])
    bound: Any = high if step.hi is None else jnp.minimum(high, step.hi)
    return dataclasses.replace(step, hi=bound)


def input_arrays(plan: Plan, args: tuple[Any, ...]) -> dict[str, jax.Array]:
    """The arrays of a call by input name.

    Args:
      plan: the plan.
      args: the function's arguments after the variables.

    Returns:
      The leaves of `args` by the names that the plan has for them.

    Example:
      >>> from compressjax import quant
      >>> q = quant.quantize(lambda v, x: x @ v['kernel'], quant.int8())
      >>> x = jnp.ones((1, 2))
      >>> list(input_arrays(q.plan({'kernel': jnp.eye(2)}, x), (x,)))
      ['input_0']
    """
    return dict(zip(plan.inputs, jax.tree.leaves(args), strict=True))


def tensor_grids(plan: Plan, found: Layout, qv: Variables) -> dict[str, Affine]:
    """Gives every tensor of a plan its grid.

    Args:
      plan: the plan.
      found: what its tensors are stored in.
      qv: calibrated variables.

    Returns:
      The grids by tensor name; differentiable in the ends where these learn.

    Raises:
      ValueError: see `ranges.stored`.
    """
    sizes = {name: value.shape for name, value in plan.inputs.items()}
    sizes |= {step.name: step.shape for step in plan.steps}
    by_range: dict[str, Affine] = {}
    alike: dict[Activations, dict[str, ranges.Range]] = {}
    for name, ends in ranges.stored(plan, qv).items():
        act = found.activations[name]
        if act.learning is None:
            alike.setdefault(act, {})[name] = ends
        else:
            ends = act.learning.grid(ends, math.prod(sizes[name][1:]), act.codes[1])
            by_range[name] = ranges.grid_of(*ends, act.codes, symmetric=act.symmetric)
    for act, observed in alike.items():
        low, high = (lax.stop_gradient(end) for end in ranges.stacked(observed))
        grids = ranges.grid_of(low, high, act.codes, symmetric=act.symmetric)
        by_range |= {
            name: Affine(*parts)
            for name, parts in ranges.unstacked(observed, (grids.scale, grids.zero_point)).items()
        }
    for name, (scale, zero_point) in plan.fixed.items():
        by_range[name] = _fixed(found.activations[name], scale, zero_point)
    return {tensor: by_range[key] for tensor, key in plan.ranges.items()}


def _fixed(activations: Activations, scale: float, zero_point: int) -> Affine:
    """A grid that LiteRT fixes, or one of another width over the same ends."""
    if activations.litert:
        return Affine(jnp.float32(scale), jnp.float32(zero_point))
    if activations.wide:
        return Affine(jnp.float32(WIDE_SCALE), jnp.float32(0.0))
    low, high = ((code - zero_point) * scale for code in (-128, 127))
    ends = jnp.float32(low), jnp.float32(high)
    return ranges.grid_of(*ends, activations.codes, symmetric=activations.symmetric)


def coded(
    plan: Plan, spec: Spec, found: Layout, qv: Variables, grids: Mapping[str, Affine]
) -> dict[str, steps.Coded | steps.Operand]:
    """Puts the constant operand of every step on its grid.

    Args:
      plan: the plan.
      spec: the spec.
      found: the spec applied to the plan.
      qv: calibrated variables.
      grids: of the tensors.

    Returns:
      By step name, codes for the steps that are exact and real values for those simulated.

    Raises:
      ValueError: if params of a learned grid are missing.
    """
    operands = steps.operands(plan, qv)
    made: dict[str, steps.Coded | steps.Operand] = {}
    for step in plan.steps:
        if step.constant is None:
            continue
        operand, grid = operands[step.name], found.weights.get(step.name)
        exact, out = step.name in found.exact, grids[step.name]
        wide = found.activations[plan.ranges[step.name]].wide
        if step.kind not in steps.CONTRACTIONS:
            coded = steps.code_constant(step, operand, out, wide=wide) if exact else operand
            made[step.name] = coded
        elif grid is None:
            made[step.name] = operand
        else:
            params = grid_params(step.name, grid, operand.value, qv)
            if exact:
                made[step.name] = steps.code_kernel(
                    operand,
                    grids[step.inputs[0]],
                    grid,
                    params,
                    spec.operands,
                    out if wide else None,
                )
            else:
                made[step.name] = operand._replace(value=grid.project(operand.value, params))
    return made


def grid_params(name: str, grid: Grid, kernel: jax.Array, qv: Variables) -> Any:
    """The params of a kernel's grid: stored ones where the grid learns, fitted ones elsewhere.

    Args:
      name: of the kernel.
      grid: the grid.
      kernel: [..., O].
      qv: the variables.

    Returns:
      The grid's params.

    Raises:
      ValueError: if the grid learns and its params are not in the collection `quant`.

    Example:
      >>> from compressjax.quant.grids import integer
      >>> grid_params('kernel', integer(8), jnp.array([[127.0]]), {})
      Array([1.], dtype=float32)
    """
    if not grid.learned:
        return jax.tree.map(lax.stop_gradient, fit_at(name, grid, kernel))
    fitted = jax.eval_shape(grid.fit, kernel)
    stored = tree.paths(qv.get("quant", {}))
    prefix = f"{name}/{ranges.GRID}"
    leaves = {}
    for path, like in tree.paths(fitted).items():
        key = f"{prefix}/{path}" if path else prefix
        if key not in stored or jnp.shape(stored[key]) != like.shape:
            raise ValueError(
                f"the collection 'quant' has no {key!r} of shape {like.shape}, which the grid "
                f"{grid.name!r} of that kernel learns: calibrate first, as in "
                "qv = q.calibrate(variables, batches)"
            )
        leaves[path] = stored[key]
    return jax.tree.unflatten(jax.tree.structure(fitted), list(leaves.values()))
