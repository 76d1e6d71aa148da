"""Quantizing a function: calibrate it, run it, train through it, freeze it.

`quantize` adds no layers and no state of its own. Ranges live in the collection `quant` of the
variables; weights stay float and are put on their grids at every call, so an optimizer moves them
as before. Where LiteRT's int8 holds what the spec asks for there is one forward pass, LiteRT's own
arithmetic, with straight-through gradients.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from compressjax import graph as graphs
from compressjax.quant import calibration, forward, freeze, kernels, observers, ranges
from compressjax.quant.calibration import as_tuple
from compressjax.quant.frozen import Frozen
from compressjax.quant.placement import place
from compressjax.quant.plan import Plan
from compressjax.quant.spec import Spec, int8, layout

Variables = Mapping[str, Any]


class Quantized(NamedTuple):
    """A quantized function, as pure functions. `qv` is `variables` plus the collection `quant`.

    Attributes:
      calibrate: `calibrate(variables, batches, observer=...) -> qv`; runs the float function on
        each batch (an array, or a tuple of arguments) and stores the range of every tensor.
      apply: `apply(qv, *args) -> outputs`; real values, exactly those that LiteRT puts out.
      observe: `observe(qv, *args) -> (outputs, qv)`; the same, with ranges moved towards what this
        batch shows.
      watch: `watch(qv, *args) -> (outputs, qv)`; the float function, with ranges moved as by
        `observe`: for training that quantizes later.
      intermediates: `intermediates(qv, *args) -> {name: codes}` of every tensor; int8, or int16
        where a tensor has more bits.
      freeze: `freeze(qv, *args) -> Frozen`; the plan as integers, for the exporters. Without static
        activations `FrozenKernels`: the float function, and the kernels as codes.
      plan: `plan(variables, *args) -> Plan`; which steps the function becomes.
      spec: what it was quantized with.
      graph: `graph(variables, *args) -> Graph`; what the function is made of, before any step.
    """

    calibrate: Callable[..., dict[str, Any]]
    apply: Callable[..., Any]
    observe: Callable[..., tuple[Any, dict[str, Any]]]
    watch: Callable[..., tuple[Any, dict[str, Any]]]
    intermediates: Callable[..., dict[str, jax.Array]]
    freeze: Callable[..., Frozen | kernels.FrozenKernels]
    plan: Callable[..., Plan]
    spec: Spec
    graph: Callable[..., graphs.Graph]


def quantize(fn: Callable[..., Any], spec: Spec | None = None) -> Quantized:
    """Quantizes a function; with `int8()`, to what LiteRT computes (Jacob et al., 2018).

    A batch norm in evaluation mode that follows a kernel is part of that kernel here. Fold it first
    (`fold_batch_norm`) where the exported variables should not hold it, or where the variables are
    constants of a jitted program: compilers evaluate its square root differently from processors.

    Args:
      fn: pure function `fn(variables, *args)`; float arguments, float outputs.
      spec: from `int8`, `uniform`, `int16x8`, `dynamic` or `weight_only`; `int8()` by default.

    Returns:
      The quantized function. Its parts raise ValueError for an operation that no int8 step stands
      for, for variables without ranges, for ranges that are not finite, and for rules that match
      nothing. Without static activations there are no steps: any function can be quantized, and
      `intermediates`, `plan`, `observe` and `watch` raise ValueError.

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
    return _placed(fn, spec) if isinstance(spec.activations, tuple) else _unplaced(fn, spec)


def _own(variables: Variables) -> dict[str, Any]:
    """The variables without what quantization put beside them."""
    return {name: collection for name, collection in variables.items() if name != "quant"}


def _tracer(fn: Callable[..., Any]) -> Callable[..., graphs.Graph]:
    def graph(variables: Variables, *args: Any) -> graphs.Graph:
        return graphs.trace(fn, _own(variables), *args, keep_custom=False)

    return graph


def _placed(fn: Callable[..., Any], spec: Spec) -> Quantized:
    """Quantizes weights and activations: the steps of a plan."""
    plans = graphs.Retrace(fn, place, keep_custom=False)

    def plan(variables: Variables, *args: Any) -> Plan:
        return plans(_own(variables), *args)

    def calibrate(
        variables: Variables,
        batches: Iterable[Any],
        observer: observers.Observer | None = None,
    ) -> dict[str, Any]:
        observer = observers.moving_average() if observer is None else observer
        variables = _own(variables)
        found = calibration.calibrate(plan, spec, observer, variables, batches)
        return {**variables, "quant": found}

    def apply(qv: Variables, *args: Any) -> Any:
        made = plan(qv, *args)
        return forward.run(made, spec, qv, args).outputs(made)

    def observe(qv: Variables, *args: Any) -> tuple[Any, dict[str, Any]]:
        made = plan(qv, *args)
        run = forward.run(made, spec, qv, args)
        moved = calibration.moved(made, spec, qv, run.ends, run.scales)
        return run.outputs(made), {**qv, "quant": moved}

    def watch(qv: Variables, *args: Any) -> tuple[Any, dict[str, Any]]:
        made = plan(qv, *args)
        real = calibration.real_tensors(made, qv, args)
        ends = {name: (x.min(), x.max()) for name, x in real.items()}
        outputs = jax.tree.unflatten(made.graph.out_tree, [real[name] for name in made.outputs])
        return outputs, {**qv, "quant": calibration.moved(made, spec, qv, ends)}

    def intermediates(qv: Variables, *args: Any) -> dict[str, jax.Array]:
        made = plan(qv, *args)
        run, found = forward.run(made, spec, qv, args), layout(spec, made)
        return {
            name: codes.astype(
                jnp.int8 if found.activations[made.ranges[name]].bits <= 8 else jnp.int16
            )
            for name, codes in run.codes.items()
        }

    def frozen(qv: Variables, *args: Any) -> Frozen:
        return freeze.freeze(plan(qv, *args), spec, qv)

    graph = _tracer(fn)
    return Quantized(calibrate, apply, observe, watch, intermediates, frozen, plan, spec, graph)


def _unplaced(fn: Callable[..., Any], spec: Spec) -> Quantized:
    """Quantizes kernels, with float arithmetic around them."""
    graph_of = graphs.Retrace(fn, lambda graph: graph, keep_custom=False)

    def calibrate(
        variables: Variables, batches: Iterable[Any], observer: observers.Observer | None = None
    ) -> dict[str, Any]:
        if observer is not None:
            raise ValueError("activations are not static here: there is nothing to observe")
        variables = _own(variables)
        for args in map(as_tuple, batches):
            fit = functools.partial(kernels.params, graph_of(variables, *args), spec)
            return {**variables, "quant": ranges.collection({}, jax.jit(fit)(variables))}
        raise ValueError("calibrate was given no batches: pass one, for its shapes")

    def apply(qv: Variables, *args: Any) -> Any:
        return kernels.run(graph_of(_own(qv), *args), spec, qv, args)

    def frozen(qv: Variables, *args: Any) -> kernels.FrozenKernels:
        return kernels.freeze(graph_of(_own(qv), *args), spec, qv)

    def refuse(*args: Any) -> Any:
        raise ValueError(
            "only kernels are quantized here, so there are no int8 steps and no ranges: quantize "
            "with int8() or another spec with static activations"
        )

    return Quantized(calibrate, apply, refuse, refuse, refuse, frozen, refuse, spec, _tracer(fn))
