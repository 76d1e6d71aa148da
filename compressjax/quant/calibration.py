"""Finding ranges: from batches before training, from each forward pass during training.

Both leave the ends of every range in the collection `quant`, widened where LiteRT's kernels could
not run the grids they give. Ranges that learn by gradients are not moved here.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from compressjax import tree
from compressjax.quant import forward, ranges, steps
from compressjax.quant.forward import Variables
from compressjax.quant.grids import fit_at
from compressjax.quant.observers import Observer
from compressjax.quant.plan import Plan
from compressjax.quant.spec import Layout, Spec, layout

States = dict[str, Any]


def real_tensors(plan: Plan, variables: Variables, args: tuple[Any, ...]) -> dict[str, jax.Array]:
    """Runs the steps of a plan on real values.

    Args:
      plan: the plan.
      variables: the function's variables.
      args: the function's arguments after the variables.

    Returns:
      Every tensor, float32, by name.

    Example:
      >>> from compressjax import quant
      >>> q = quant.quantize(lambda v, x: x @ v['kernel'], quant.int8())
      >>> variables, x = {'kernel': 2.0 * jnp.eye(2)}, jnp.ones((1, 2))
      >>> real_tensors(q.plan(variables, x), variables, (x,))['kernel'].tolist()
      [[2.0, 2.0]]
    """
    arrays = forward.input_arrays(plan, args)
    real = {name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()}
    constants = steps.operands(plan, variables)
    for step in plan.steps:
        own = [part for part in constants.get(step.name, ()) if part is not None]
        real[step.name] = steps.real_step(step, [real[name] for name in step.inputs], own)
    return real


def calibrate(
    plan: Callable[..., Plan],
    spec: Spec,
    observer: Observer,
    variables: Variables,
    batches: Iterable[Any],
) -> dict[str, Any]:
    """Shows every tensor of the float network to an observer.

    Args:
      plan: `plan(variables, *args)`.
      spec: with static activations.
      observer: estimates each range.
      variables: the function's variables, without a collection `quant`.
      batches: arrays, or tuples of arguments.

    Returns:
      The collection `quant`.

    Raises:
      ValueError: if there are no batches, or a range is not finite.
    """
    if hasattr(batches, "shape"):
        raise ValueError(
            f"calibrate was given one array of shape {batches.shape}, expected an iterable of "
            "batches, such as [images]"
        )

    @jax.jit
    def update(states: States, variables: Variables, args: tuple[Any, ...]) -> States:
        made = plan(variables, *args)
        real = real_tensors(made, variables, args)
        return {
            name: observer.update(states[name], jnp.concatenate([real[t].ravel() for t in tensors]))
            for name, tensors in _members(made).items()
        }

    shown: Plan | None = None
    states: States = {}
    for args in map(as_tuple, batches):
        if shown is None:
            shown = plan(variables, *args)
            states = {name: observer.init() for name in shown.observed}
        states = update(states, variables, args)
    if shown is None:
        raise ValueError(
            "calibrate was given no batches: pass an iterable of at least one batch, such as "
            "[images]"
        )
    made, found = shown, layout(spec, shown)
    ends = {name: observer.find(state) for name, state in states.items()}
    ranges.check_finite(jax.device_get(ends))
    fitted = jax.jit(lambda v: learned_params(made, found, v))(variables)
    widened = jax.jit(lambda v, ends: _feasible(made, found, v, ends))(variables, ends)
    return ranges.collection(widened, fitted)


def as_tuple(batch: Any) -> tuple[Any, ...]:
    """The arguments that a batch stands for.

    Example:
      >>> as_tuple(1.0), as_tuple((1.0, 2.0))
      ((1.0,), (1.0, 2.0))
    """
    return tuple(batch) if isinstance(batch, tuple | list) else (batch,)


def _members(plan: Plan) -> dict[str, list[str]]:
    """The tensors of each range that is observed."""
    members: dict[str, list[str]] = {name: [] for name in plan.observed}
    for tensor, key in plan.ranges.items():
        if key in members:
            members[key].append(tensor)
    return members


def learned_params(plan: Plan, found: Layout, variables: Variables) -> dict[str, Any]:
    """Fits the grids that learn to the kernels.

    Args:
      plan: the plan.
      found: what its kernels are stored in.
      variables: the function's variables.

    Returns:
      The params of each such grid, by kernel name.
    """
    learning = {name: g for name, g in found.weights.items() if g is not None and g.learned}
    if not learning:
        return {}
    operands = steps.operands(plan, variables)
    return {name: fit_at(name, grid, operands[name].value) for name, grid in learning.items()}


def moved(
    plan: Plan,
    spec: Spec,
    qv: Variables,
    ends: Mapping[str, ranges.Range],
    scales: Mapping[str, jax.Array] | None = None,
) -> dict[str, Any]:
    """Moves stored ranges towards what a forward pass met.

    Args:
      plan: the plan.
      spec: with static activations.
      qv: calibrated variables.
      ends: of tensors, by name.
      scales: the largest scale of each exact contraction's kernel, by step name, if it is known.

    Returns:
      The collection `quant`; ranges that learn, and params of grids, as they were.

    Raises:
      ValueError: see `ranges.stored`.
    """
    found, old, members = layout(spec, plan), ranges.stored(plan, qv), _members(plan)
    met = {
        name: [ends[tensor] for tensor in members[name] if tensor in ends]
        for name in old
        if found.activations[name].learning is None
    }
    lows = {name: [low for low, _ in pairs] for name, pairs in met.items() if pairs}
    highs = {name: [high for _, high in pairs] for name, pairs in met.items() if pairs}
    if not lows:
        return dict(qv["quant"])
    new = (
        jnp.stack([functools.reduce(jnp.minimum, values) for values in lows.values()]),
        jnp.stack([functools.reduce(jnp.maximum, values) for values in highs.values()]),
    )
    before = ranges.stacked({name: old[name] for name in lows})
    after = [
        spec.decay * was + (1.0 - spec.decay) * lax.stop_gradient(now)
        for was, now in zip(before, new, strict=True)
    ]
    shifted = {**old, **ranges.unstacked(lows, (after[0], after[1]))}
    widened = _feasible(plan, found, qv, shifted, scales)
    return tree.replace(qv["quant"], tree.paths(ranges.collection(widened)))


def _feasible(
    plan: Plan,
    found: Layout,
    variables: Variables,
    ends: Mapping[str, ranges.Range],
    scales: Mapping[str, jax.Array] | None = None,
) -> dict[str, ranges.Range]:
    """Widens the ranges of a network that LiteRT runs."""
    if not found.exact:
        return dict(ends)
    if scales is None:
        operands, scales = steps.operands(plan, variables), {}
        for name, grid in found.weights.items():
            if grid is not None and grid.codes is not None:
                kernel = lax.stop_gradient(operands[name].value)
                fitted = fit_at(name, grid, kernel)
                scales[name] = grid.codes(kernel, fitted, jnp.float32(0.0))[1].max()
    return ranges.feasible(plan, ends, scales)
