"""Says before any training what an exported file could not hold.

`tflite` finds out by converting, one error at a time and with arrays in hand. `check` reads the
graph alone: shapes are enough, and everything that is wrong is listed, with the usual fix. Float
functions are held against what the converters were seen to do (`conversions.py`), quantized ones
against the rules that placement follows anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from compressjax import graph as graphs
from compressjax.export import conversions
from compressjax.graph import Graph, Op
from compressjax.quant import placement
from compressjax.quant.plan import Plan
from compressjax.quant.quantize import Quantized
from compressjax.quant.spec import Spec, layout


class Problem(NamedTuple):
    """One operation that would not come out as it should.

    Attributes:
        name: of the operation in the graph (`params/Conv_0/kernel`, `sort_0`), or `input_0`,
            `output_0`, or of a tensor or kernel that the spec does not fit.
        kind: of the operation, such as `sort`; `input`, `output` or `spec`.
        problem: what would come of it.
        fix: what usually helps.
        source: the line of the function that it comes from; empty where that is not known.
    """

    name: str
    kind: str
    problem: str
    fix: str
    source: str = ""


class Report(NamedTuple):
    """What `check` found: true where there is nothing to change.

    Attributes:
        problems: in the order of the operations.
        operations: how many operations were looked at.
        via: the converter.
        form: what was asked for: `float`, or `int8` for a spec with static activations.
    """

    problems: tuple[Problem, ...]
    operations: int
    via: str
    form: str

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.problems

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        if self.ok:
            return f"{self.operations} operations, all of them {self.form} builtins of LiteRT"
        count = len(self.problems)
        lines = [
            f"{count} problem{'s'[: count > 1]} in {self.operations} operations "
            f"(via {self.via}, {self.form}):"
        ]
        for row in self.problems:
            line = f"  {row.name} ({row.kind})" if row.kind != row.name else f"  {row.name}"
            lines.append(f"{line}  {row.source}".rstrip())
            lines.append(f"    {row.problem}")
            if row.fix:
                lines.append(f"    fix: {row.fix}")
        return "\n".join(lines)


def check(
    fn_or_q: Callable[..., Any] | Quantized,
    variables: Any,
    *args: Any,
    via: Literal["jax2tf", "litert"] = "jax2tf",
    spec: Spec | None = None,
) -> Report:
    """Lists the operations that would not become builtins of LiteRT, or not int8 ones.

    Nothing is trained, converted or allocated: `jax.ShapeDtypeStruct`s do for all arrays.

    Args:
        fn_or_q: `fn(variables, *args) -> array(s)`, or what `compressjax.quantize` returns.
        variables: its variables, or their shapes; ranges are not needed.
        *args: example inputs, or their shapes.
        via: the converter, as in `tflite`.
        spec: how the function is going to be quantized; by default that of a quantized function,
            and none of another one. With static activations every operation has to be an integer
            one; otherwise the arithmetic is float.

    Returns:
        The report. Where it is true, `tflite` makes a file of builtin operations alone.

    Raises:
        ValueError: `via` is unknown, or there is no example input.
        Exception: what the function itself raises where the shapes do not fit it.

    Example:
        >>> def fn(variables, x):
        ...     return jnp.sort(jnp.tanh(x @ variables['kernel']))
        >>> variables = {'kernel': jax.ShapeDtypeStruct((3, 4), jnp.float32)}
        >>> report = check(fn, variables, jax.ShapeDtypeStruct((1, 3), jnp.float32))
        >>> bool(report), [(row.name, row.problem) for row in report.problems]
        (False, [('sort_0', 'becomes STABLEHLO_SORT, for which LiteRT has no kernel')])
    """
    if via not in conversions.BOTH:
        raise ValueError(f"via={via!r} is unknown: choose one of {list(conversions.BOTH)}")
    if not args:
        raise ValueError("check needs an example input, or its shape: check(fn, variables, x)")
    shapes, inputs = graphs.template(variables), graphs.template(args)
    effects = False  # what prints has no result, and is no part of a graph
    if isinstance(fn_or_q, Quantized):
        spec = fn_or_q.spec if spec is None else spec
        graph = fn_or_q.graph(shapes, *inputs)
    else:
        graph = graphs.trace(fn_or_q, shapes, *inputs, keep_custom=False)
        effects = bool(jax.make_jaxpr(fn_or_q)(shapes, *inputs).effects)
    if spec is not None and isinstance(spec.activations, tuple):
        form, problems = "int8", list(_integer(graph, spec))
    else:
        form, problems = "float", list(_float(graph, via))
        if effects:
            problems.append(_CALLBACK)
    return Report(tuple(problems), len(graph.ops), via, form)


def _float(graph: Graph, via: str) -> Iterator[Problem]:
    """What does not become float builtins."""
    for name, value in graph.inputs.items():
        if value.dtype != jnp.float32:
            yield Problem(
                name, "input", f"is {value.dtype}, expected float32", "cast it before the call"
            )
    yield from _operations(graph, via)
    for number, value in enumerate(graph.outputs):
        name = f"output_{number}"
        if value.dtype != jnp.float32:
            fix = "return the values before argmax or casts"
            yield Problem(name, "output", f"is {value.dtype}, expected float32", fix)
        elif 0 in value.shape:
            yield Problem(name, "output", f"of shape {value.shape} holds nothing", "leave it out")


def _operations(graph: Graph, via: str) -> Iterator[Problem]:
    for op in graph.ops:
        yield from _of(graph, op, via)
        if op.body is not None and conversions.is_unrolled(op):
            yield from _operations(op.body, via)


def _of(graph: Graph, op: Op, via: str) -> Iterator[Problem]:
    rows = [
        row
        for row in conversions.rows().get(op.kind, ())
        if via in row.vias and row.when(graph, op)
    ]
    for row in rows:
        yield Problem(op.name, op.kind, row.problem, row.fix, op.source)
    if rows:
        return
    if op.kind not in conversions.BUILTIN and op.kind not in conversions.rows():
        problem = "is not among the operations that were measured"
        yield Problem(op.name, op.kind, problem, "convert it alone and see", op.source)
    elif (
        not graph.is_static(op.outputs[0]) and (found := conversions.of_types(op, via)) is not None
    ):
        yield Problem(op.name, op.kind, *found, op.source)


def _integer(graph: Graph, spec: Spec) -> Iterator[Problem]:
    """What would stay float in an int8 file, or what the spec asks for that no file holds."""
    refusals = placement.refusals(graph)
    for refusal in refusals:
        yield Problem(
            refusal.name, refusal.kind, refusal.why, refusal.advice or _INSTEAD, refusal.source
        )
    if not refusals:
        plan = placement.place(graph)
        yield from _limits(plan)
        yield from _formats(plan, spec)


def _limits(plan: Plan) -> Iterator[Problem]:
    """What LiteRT's operations take no more of, though they are int8."""
    for step in plan.steps:
        most = 5 if step.kind in ("pad", "relu", "clamp", "maximum", "minimum") else 6
        if len(step.shape) > most:
            problem = f"has values of {len(step.shape)} axes, LiteRT takes at most {most} here"
            fix = "reshape: merge axes that lie beside each other"
            yield Problem(step.name, step.kind, problem, fix)
        if 0 in step.shape:
            problem = f"of shape {step.shape} holds nothing"
            yield Problem(step.name, step.kind, problem, "leave it out")
    for number, name in enumerate(plan.outputs):
        if name in plan.outputs[:number]:
            problem = f"is {name!r}, which is an output already"
            yield Problem(f"output_{number}", "output", problem, "return each value once")


def _formats(plan: Plan, spec: Spec) -> Iterator[Problem]:
    """What the spec asks for that LiteRT's integers do not hold."""
    try:
        found = layout(spec, plan)
    except ValueError as error:
        yield Problem("spec", "spec", str(error), "")
        return
    for name, grid in found.weights.items():
        if grid is None or grid.codes is None:
            what = "is left float" if grid is None else f"has the grid {grid.name!r}"
            fix = "use an integer, ternary, binary or power-of-two grid of at most 8 bits"
            yield Problem(name, "spec", f"{what}, which no int8 kernel takes", fix)
    formats = {name: found.activations[name] for name in dict.fromkeys(plan.ranges.values())}
    if all(form.wide for form in formats.values()):
        return
    for name, form in formats.items():
        if not form.litert:
            sort = "symmetric" if form.symmetric else "affine"
            problem = f"is stored in {form.bits} bits, {sort}, which can only be simulated"
            fix = "use 8-bit affine activations, or 16-bit symmetric ones for all tensors"
            yield Problem(name, "spec", problem, fix)


_CALLBACK = Problem(
    "debug_callback",
    "debug_callback",
    "the function prints or calls back to Python, which is not there on a phone",
    "leave jax.debug.print and the like out of what is exported",
)
_INSTEAD = (
    "write it with convolutions, matrix products, add, sub, mul, pooling, means, reshapes, "
    "concatenation, clamps, maximum, minimum, gelu, elu, leaky_relu, logistic, tanh, exp, log, "
    "rsqrt, whole powers, layer norms or softmax, or leave it out of the function"
)
