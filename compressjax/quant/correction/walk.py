"""The float and the quantized network side by side, one step at a time over all the batches.

Corrections are made layer by layer, each on what the corrected layers before it give. Running the
network again for every layer would cost as many passes as there are layers; here every step runs
once on every batch, and a tensor is kept only until its last reader has run. The forward pass is
`forward`'s own, so what is corrected is what runs.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from compressjax.quant import forward, steps
from compressjax.quant.calibration import as_tuple
from compressjax.quant.grids import Grid
from compressjax.quant.lattice import Affine, dequantize
from compressjax.quant.plan import Plan, Step
from compressjax.quant.quantize import Quantized
from compressjax.quant.spec import Layout, layout
from compressjax.quant.steps.kind import clamped

Tensors = dict[str, jax.Array]


class Layer(NamedTuple):
    """A contraction that a walk has come to.

    Attributes:
      plan: the plan it is in.
      step: the contraction.
      grid: of its kernel; `None` where the kernel is not quantized.
      inputs: what the quantized network gives it, real values, one array for each batch.
      outputs: what the float network puts out there, before the activation, for each batch.
      stored: `stored(qv) -> Operand`, real values of kernel and bias as they run, rounded; to be
        called inside jit.
    """

    plan: Plan
    step: Step
    grid: Grid | None
    inputs: list[jax.Array]
    outputs: list[jax.Array]
    stored: Callable[[Any], steps.Operand]


def calls(batches: Iterable[Any]) -> list[tuple[Any, ...]]:
    """The arguments of every batch.

    Args:
      batches: arrays, or tuples of arguments.

    Returns:
      A tuple of arguments for each batch.

    Raises:
      ValueError: if there are none, or one array was given instead of several.

    Example:
      >>> calls([1.0, (2.0, 3.0)])
      [(1.0,), (2.0, 3.0)]
    """
    if hasattr(batches, "shape"):
        raise ValueError(
            f"batches is one array of shape {batches.shape}, expected an iterable of batches, such "
            "as [images]"
        )
    found = [as_tuple(batch) for batch in batches]
    if not found:
        raise ValueError("there are no batches: pass at least one, such as [images]")
    return found


def contractions(q: Quantized, qv: Any, args: tuple[Any, ...]) -> tuple[Plan, dict[str, Step]]:
    """The plan of a call, and its steps that have a kernel.

    Args:
      q: with static activations.
      qv: calibrated variables.
      args: arguments of the function.

    Returns:
      The plan, and the steps by name.

    Raises:
      ValueError: if activations are not static.
    """
    plan = q.plan(qv, *args)
    return plan, {step.name: step for step in plan.steps if step.kind in steps.CONTRACTIONS}


def without_activation(step: Step) -> Step:
    """The step without its fused activation.

    Example:
      >>> without_activation(Step('a', 'conv', (), (1,), lo=0.0)).lo is None
      True
    """
    return dataclasses.replace(step, lo=None, hi=None)


def constants(operand: steps.Operand) -> list[jax.Array]:
    """An operand as `real_step` takes it.

    Example:
      >>> len(constants(steps.Operand(jnp.ones((2, 2)), None)))
      1
    """
    return [part for part in operand if part is not None]


def stored_operands(q: Quantized, plan: Plan, qv: Any) -> dict[str, steps.Operand]:
    """Kernels and biases of all contractions as they run, rounded, as real values.

    Args:
      q: the quantized function.
      plan: its plan.
      qv: calibrated variables.

    Returns:
      By name of the kernel.
    """
    found = layout(q.spec, plan)
    kernels = tuple(step for step in plan.steps if step.kind in steps.CONTRACTIONS)
    alone = dataclasses.replace(plan, steps=kernels)

    @jax.jit
    def run(qv: Any) -> dict[str, steps.Operand]:
        grids = forward.tensor_grids(plan, found, qv)
        coded = forward.coded(alone, q.spec, found, qv, grids)
        return {step.name: _real_operand(coded[step.name], step, grids) for step in kernels}

    return run(qv)


def walk(
    q: Quantized,
    qv: Any,
    reference: Any,
    batches: list[tuple[Any, ...]],
    correct: Callable[[Layer, Any], Any],
) -> Any:
    """Corrects the layers of a quantized function in the order they run.

    Args:
      q: the quantized function, with static activations.
      qv: calibrated variables.
      reference: variables of the float network.
      batches: from `calls`.
      correct: `correct(layer, qv) -> qv`, called for every contraction.

    Returns:
      The variables after the last correction.
    """
    plans = [q.plan(qv, *args) for args in batches]
    plan, found = plans[0], layout(q.spec, plans[0])
    grids = jax.jit(lambda qv: forward.tensor_grids(plan, found, qv))(qv)
    encode = jax.jit(lambda grids, arrays: forward.encode_inputs(plan, found, grids, arrays))
    decode = jax.jit(dequantize)
    arrays = [forward.input_arrays(made, args) for made, args in zip(plans, batches, strict=True)]
    real = [{name: jnp.asarray(x, jnp.float32) for name, x in each.items()} for each in arrays]
    codes = [encode(grids, each) for each in arrays]
    last_reader = {name: i for i, step in enumerate(plan.steps) for name in step.inputs}
    for i, step in enumerate(plan.steps):
        near = {name: grids[name] for name in (*step.inputs, step.name)}
        runs = {made: _both(q, made, found, made.steps[i]) for made in plans}
        before: list[jax.Array | None] = [None] * len(plans)
        if step.kind in steps.CONTRACTIONS:
            run = jax.jit(functools.partial(_real, plan, without_activation(step)))
            outputs = [run(reference, _near(step, tensors)) for tensors in real]
            before = [*outputs]
            source = step.inputs[0]
            inputs = [decode(tensors[source], grids[source]) for tensors in codes]
            stored = functools.partial(_stored, q, plan, found, step, near)
            qv = correct(Layer(plan, step, found.weights[step.name], inputs, outputs, stored), qv)
        for made, output, left, right in zip(plans, before, real, codes, strict=True):
            left[step.name], right[step.name] = runs[made](
                near, reference, qv, output, _near(step, left), _near(step, right)
            )
            for name in set(step.inputs):
                if last_reader[name] == i:
                    del left[name], right[name]
    return qv


def _near(step: Step, tensors: Tensors) -> Tensors:
    return {name: tensors[name] for name in step.inputs}


def _real(plan: Plan, step: Step, variables: Any, tensors: Tensors) -> jax.Array:
    """A step of the float network."""
    alone = dataclasses.replace(plan, steps=(step,))
    own = steps.operands(alone, variables).get(step.name)
    inputs = [tensors[name] for name in step.inputs]
    return steps.real_step(step, inputs, constants(own) if own else [])


def _both(q: Quantized, plan: Plan, found: Layout, step: Step) -> Callable[..., Any]:
    """A step of both networks; of the float one only the activation where `before` is given."""
    alone = dataclasses.replace(plan, steps=(step,))

    @jax.jit
    def run(
        grids: Mapping[str, Affine],
        reference: Any,
        qv: Any,
        before: jax.Array | None,
        left: Tensors,
        right: Tensors,
    ) -> tuple[jax.Array, jax.Array]:
        real = _real(plan, step, reference, left) if before is None else clamped(step, before)
        constant = forward.coded(alone, q.spec, found, qv, grids).get(step.name)
        return real, forward.run_step(plan, found, qv, step, right, grids, constant).codes

    return run


def _stored(
    q: Quantized, plan: Plan, found: Layout, step: Step, grids: Mapping[str, Affine], qv: Any
) -> steps.Operand:
    alone = dataclasses.replace(plan, steps=(step,))
    coded = forward.coded(alone, q.spec, found, qv, grids)
    return _real_operand(coded[step.name], step, grids)


def _real_operand(
    coded: steps.Coded | steps.Operand, step: Step, grids: Mapping[str, Affine]
) -> steps.Operand:
    """Kernel and bias of a contraction after rounding, as real values."""
    if isinstance(coded, steps.Operand):
        return coded
    scale = coded.grid.scale
    wide = scale.reshape((1,) * (coded.codes.ndim - scale.ndim) + scale.shape)
    bias = None if coded.bias is None else coded.bias * (grids[step.inputs[0]].scale * scale)
    return steps.Operand(coded.codes.astype(jnp.float32) * wide, bias)
