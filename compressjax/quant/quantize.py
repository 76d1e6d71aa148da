"""Quantizing a function: calibrate it, run it on the lattice, train through it, freeze it.

`quantize` adds no layers and no state of its own. Ranges live in the collection `quant` of the
variables; weights stay float and are put on their grids at every call, so an optimizer moves them
as before. There is one forward pass, LiteRT's own arithmetic, with straight-through gradients.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from compressjax import graph as graphs
from compressjax.quant import lattice, observers, ranges, steps
from compressjax.quant.frozen import Codes, Frozen, FrozenStep
from compressjax.quant.lattice import Affine
from compressjax.quant.placement import place
from compressjax.quant.plan import Plan, Step

Variables = Mapping[str, Any]


class Spec(NamedTuple):
    """How to quantize.

    Attributes:
      per_channel: one weight scale for each output channel, or one for each kernel.
      decay: weight of the past when `observe` updates a range.
    """

    per_channel: bool
    decay: float


def int8(*, per_channel: bool = True, decay: float = 0.99) -> Spec:
    """Specifies LiteRT's int8: symmetric weights, affine activations (Jacob et al., 2018).

    Args:
      per_channel: one weight scale for each output channel; otherwise one for each kernel.
      decay: weight of the past when `observe` updates a range, in [0, 1).

    Raises:
      ValueError: if `decay` is outside [0, 1).

    Example:
      >>> int8()
      Spec(per_channel=True, decay=0.99)
    """
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"decay is {decay}, expected a number in [0, 1)")
    return Spec(per_channel, decay)


class Quantized(NamedTuple):
    """A quantized function, as pure functions. `qv` is `variables` plus the collection `quant`.

    Attributes:
      calibrate: `calibrate(variables, batches, observer=...) -> qv`; runs the float function on
        each batch (an array, or a tuple of arguments) and stores the range of every tensor.
      apply: `apply(qv, *args) -> outputs`; real values, exactly those that LiteRT puts out.
      observe: `observe(qv, *args) -> (outputs, qv)`; the same, with ranges moved towards what this
        batch shows.
      intermediates: `intermediates(qv, *args) -> {name: int8 codes}` of every tensor.
      freeze: `freeze(qv, *args) -> Frozen`; the plan as integers, for the exporters.
      plan: `plan(variables, *args) -> Plan`; which steps the function becomes.
    """

    calibrate: Callable[..., dict[str, Any]]
    apply: Callable[..., Any]
    observe: Callable[..., tuple[Any, dict[str, Any]]]
    intermediates: Callable[..., dict[str, jax.Array]]
    freeze: Callable[..., Frozen]
    plan: Callable[..., Plan]


def quantize(fn: Callable[..., Any], spec: Spec | None = None) -> Quantized:
    """Quantizes a function to what LiteRT's int8 kernels compute (Jacob et al., 2018).

    A batch norm in evaluation mode that follows a kernel is part of that kernel here. Fold it first
    (`fold_batch_norm`) where the exported variables should not hold it, or where the variables are
    constants of a jitted program: compilers evaluate its square root differently from processors.

    Args:
      fn: pure function `fn(variables, *args)`; float arguments, float outputs.
      spec: from `int8`.

    Returns:
      The quantized function. Its parts raise ValueError for an operation that no int8 step stands
      for, for variables without ranges, and for ranges that are not finite.

    Example:
      >>> q = quantize(lambda v, x: jax.nn.relu(x @ v['params']['kernel']), int8())
      >>> variables = {'params': {'kernel': jnp.array([[1.0, -1.0], [0.5, 2.0]])}}
      >>> x = jnp.array([[1.0, 2.0]])
      >>> qv = q.calibrate(variables, [x])
      >>> q.apply(qv, x).round(2)
      Array([[2., 3.]], dtype=float32)
      >>> jax.grad(lambda v: q.apply(v, x).sum())(qv)['params']['kernel'].round(2)
      Array([[1., 1.],
             [2., 2.]], dtype=float32)
    """
    spec = int8() if spec is None else spec
    plans = graphs.Retrace(fn, place, keep_custom=False)

    def plan(variables: Variables, *args: Any) -> Plan:
        return plans({k: v for k, v in variables.items() if k != "quant"}, *args)

    def calibrate(
        variables: Variables, batches: Iterable[Any], observer: observers.Observer | None = None
    ) -> dict[str, Any]:
        observer = observers.moving_average() if observer is None else observer
        variables = {k: v for k, v in variables.items() if k != "quant"}

        @jax.jit
        def update(states: Any, variables: Variables, args: tuple[Any, ...]) -> Any:
            return _observe(plan(variables, *args), observer, states, variables, args)

        if hasattr(batches, "shape"):
            raise ValueError(
                f"calibrate was given one array of shape {batches.shape}, expected an iterable of "
                "batches, such as [images]"
            )
        shown: Plan | None = None
        states: dict[str, observers.State] = {}
        for args in map(_as_tuple, batches):
            if shown is None:
                shown = plan(variables, *args)
                states = {name: observer.init() for name in shown.observed}
            states = update(states, variables, args)
        if shown is None:
            raise ValueError(
                "calibrate was given no batches: pass an iterable of at least one batch, such as "
                "[images]"
            )
        found = {name: observer.find(state) for name, state in states.items()}
        ranges.check_finite(found)
        widen = jax.jit(functools.partial(_feasible, shown))
        return {**variables, "quant": ranges.collection(widen(variables, found))}

    def apply(qv: Variables, *args: Any) -> Any:
        made = plan(qv, *args)
        return _outputs(made, _run(made, spec, qv, args))

    def observe(qv: Variables, *args: Any) -> tuple[Any, dict[str, Any]]:
        made = plan(qv, *args)
        run = _run(made, spec, qv, args)
        return _outputs(made, run), {**qv, "quant": _moved_ranges(made, spec, qv, run)}

    def intermediates(qv: Variables, *args: Any) -> dict[str, jax.Array]:
        run = _run(plan(qv, *args), spec, qv, args)
        return {name: codes.astype(jnp.int8) for name, codes in run.codes.items()}

    def freeze(qv: Variables, *args: Any) -> Frozen:
        return _freeze(plan(qv, *args), spec, qv)

    return Quantized(calibrate, apply, observe, intermediates, freeze, plan)


def _as_tuple(batch: Any) -> tuple[Any, ...]:
    return tuple(batch) if isinstance(batch, tuple | list) else (batch,)


def _input_arrays(plan: Plan, args: tuple[Any, ...]) -> dict[str, jax.Array]:
    return dict(zip(plan.inputs, jax.tree.leaves(args), strict=True))


def _observe(
    plan: Plan,
    observer: observers.Observer,
    states: dict[str, observers.State],
    variables: Variables,
    args: tuple[Any, ...],
) -> dict[str, observers.State]:
    """One calibration step: runs the float network and shows every tensor to the observer."""
    real = {name: jnp.asarray(x, jnp.float32) for name, x in _input_arrays(plan, args).items()}
    constants = steps.operands(plan, variables)
    for step in plan.steps:
        own = [c for c in constants.get(step.name, ()) if c is not None]
        real[step.name] = steps.real_step(step, [real[name] for name in step.inputs], own)
    states = dict(states)
    for name in plan.observed:
        members = [real[t].ravel() for t, key in plan.ranges.items() if key == name]
        states[name] = observer.update(states[name], jnp.concatenate(members))
    return states


def _coded(
    plan: Plan, spec: Spec, qv: Variables, grids: Mapping[str, Affine]
) -> dict[str, steps.Coded]:
    """The constant operand of every step on its grid."""
    constants = steps.operands(plan, qv)
    return {
        step.name: steps.code_operand(
            step,
            constants[step.name],
            grids[step.inputs[0]],
            grids[step.name],
            per_channel=spec.per_channel,
        )
        for step in plan.steps
        if step.constant is not None
    }


class _Run(NamedTuple):
    """One lattice forward: codes and grid of every tensor, ends of those with their own range."""

    codes: dict[str, jax.Array]
    grids: dict[str, Affine]
    ends: dict[str, ranges.Range]


def _run(plan: Plan, spec: Spec, qv: Variables, args: tuple[Any, ...]) -> _Run:
    grids = ranges.grids(plan, qv)
    constants = _coded(plan, spec, qv, grids)
    run = _Run({}, grids, {})
    for name, x in _input_arrays(plan, args).items():
        real = jnp.asarray(x, jnp.float32)
        run.codes[name] = lattice.quantize(real, grids[name])
        run.ends[name] = (real.min(), real.max())
    for step in plan.steps:
        stored = steps.lattice_step(
            step,
            [run.codes[name] for name in step.inputs],
            [grids[name] for name in step.inputs],
            constants.get(step.name),
            grids[step.name],
        )
        run.codes[step.name] = stored.codes
        if stored.ends is not None:
            run.ends[step.name] = stored.ends
    return run


def _outputs(plan: Plan, run: _Run) -> Any:
    real = [lattice.dequantize(run.codes[name], run.grids[name]) for name in plan.outputs]
    return jax.tree.unflatten(plan.graph.out_tree, real)


def _moved_ranges(plan: Plan, spec: Spec, qv: Variables, run: _Run) -> dict[str, Any]:
    """The stored ranges, moved towards the ends that a forward pass met."""
    moved = {}
    for name, old in ranges.stored(plan, qv).items():
        members = [ends for tensor, ends in run.ends.items() if plan.ranges[tensor] == name]
        low = jnp.stack([low for low, _ in members]).min()
        high = jnp.stack([high for _, high in members]).max()
        moved[name] = (
            spec.decay * old[0] + (1.0 - spec.decay) * jax.lax.stop_gradient(low),
            spec.decay * old[1] + (1.0 - spec.decay) * jax.lax.stop_gradient(high),
        )
    return ranges.collection(_feasible(plan, qv, moved))


def _feasible(
    plan: Plan, variables: Variables, found: Mapping[str, ranges.Range]
) -> dict[str, ranges.Range]:
    operands = steps.operands(plan, variables)
    reach = {
        step.name: jax.lax.stop_gradient(jnp.abs(operands[step.name].value).max())
        for step in plan.steps
        if step.kind in steps.CONTRACTIONS
    }
    return ranges.feasible(plan, found, reach)


def _freeze(plan: Plan, spec: Spec, qv: Variables) -> Frozen:
    ranges.check_finite(ranges.stored(plan, qv))
    grids, constants = jax.device_get(
        jax.jit(lambda qv: (grids := ranges.grids(plan, qv), _coded(plan, spec, qv, grids)))(qv)
    )
    frozen = []
    for step in plan.steps:
        grid = grids[step.name]
        frozen.append(
            FrozenStep(
                name=step.name,
                kind=step.kind,
                inputs=step.inputs,
                apply=_real_apply(step, grid),
                constants=_frozen_constants(step, constants.get(step.name), grids),
                scale=float(grid.scale),
                zero_point=int(grid.zero_point),
                out_shape=step.shape,
                params=step.params,
            )
        )
    inputs = tuple(
        (name, value.shape, float(grids[name].scale), int(grids[name].zero_point))
        for name, value in plan.inputs.items()
    )
    return Frozen(inputs, tuple(frozen), plan.outputs)


def _real_apply(step: Step, grid: Affine) -> Callable[..., jax.Array]:
    if step.params.get("lowest"):
        edge = float((np.float32(-128.0) - grid.zero_point) * grid.scale)
        step = Step(step.name, step.kind, step.inputs, step.shape, {**step.params, "value": edge})
    count = len(step.inputs)
    return lambda *arrays: steps.real_step(step, arrays[:count], arrays[count:])


def _frozen_constants(
    step: Step, coded: steps.Coded | None, grids: Mapping[str, Affine]
) -> tuple[Codes, ...]:
    if coded is None:
        return ()
    scale = np.asarray(coded.grid.scale, np.float32)
    axis = coded.codes.ndim - 1 if scale.ndim else None
    found = [Codes(np.asarray(coded.codes, np.int8), scale, axis, int(coded.grid.zero_point))]
    if coded.bias is not None:
        bias_scale = np.asarray(grids[step.inputs[0]].scale, np.float32) * scale
        found.append(Codes(np.asarray(coded.bias, np.int32), bias_scale, 0 if scale.ndim else None))
    return tuple(found)
