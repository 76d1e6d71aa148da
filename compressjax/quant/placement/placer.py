"""The walk that placement makes: which values are tensors, and which tensors share a range.

The rules in the neighbouring modules say what an operation becomes; this is what they write into.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jax.numpy as jnp
import numpy as np

from compressjax.graph import Graph, Literal, Op, Value
from compressjax.quant import lattice
from compressjax.quant.plan import Constant, Plan, Step

# Bounds that LiteRT can fuse into the operation before: relu, relu6, relu_n1_to_1.
FUSED_BOUNDS = frozenset({(0.0, None), (0.0, 6.0), (-1.0, 1.0)})
# Scale and zero point that LiteRT's specification fixes.
FIXED_GRIDS = {
    "logistic": lattice.LOGISTIC_GRID,
    "softmax": lattice.SOFTMAX_GRID,
    "tanh": lattice.TANH_GRID,
}

# Steps that may stand in a plan twice: what their output shares its range with tells them apart.
_REPEATED = frozenset(
    "requantize concatenate pad reshape transpose slice relu clamp maximum minimum refused".split()
)


class Refusal(ValueError):
    """What cannot be placed, and why.

    Attributes:
      name: of the operation, or `input_0`, `output_1`.
      kind: of the operation; `input` or `output`.
      why: the reason, a phrase.
      advice: what to do, a sentence; where it is empty, only the operations that are placed help.
      source: the line that the operation comes from, if it is known.
    """

    def __init__(
        self, name: str, kind: str, why: str, message: str, advice: str = "", source: str = ""
    ):
        super().__init__(message)
        self.name = name
        self.kind = kind
        self.why = why
        self.advice = advice
        self.source = source


class Placer:
    """Walks a graph once, in order, and collects steps."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.covered: set[Op] = set()
        self.steps: list[Step] = []
        self.tensors: dict[Value, str] = {}
        self.ranges: dict[str, str] = {}
        self.fixed: dict[str, tuple[float, int]] = {}
        self.known: dict[Any, str] = {}
        for name, value in graph.inputs.items():
            self.tensors[value] = name
            self.ranges[name] = name

    def unfit_inputs(self) -> Iterator[Refusal]:
        """Refuses inputs that are not float."""
        for name, value in self.graph.inputs.items():
            if not jnp.issubdtype(value.dtype, jnp.floating):
                why = f"{name} has dtype {value.dtype}; a quantized model takes float inputs"
                advice = "cast before the call, outside the function"
                yield Refusal(name, "input", why, f"{why}: {advice}", advice)

    def unfit_outputs(self) -> Iterator[Refusal]:
        """Refuses outputs that are not float, that hold nothing, or that no step computes."""
        for i, value in enumerate(self.graph.outputs):
            if not jnp.issubdtype(value.dtype, jnp.floating):
                why = f"output {i} has dtype {value.dtype}, expected a float output"
                advice = "return the logits, and take argmax outside the function"
            elif 0 in value.shape:
                why, advice = f"output {i} of shape {value.shape} holds nothing", "leave it out"
            elif value not in self.tensors:
                why = f"output {i} does not depend on an input"
                advice = "there is nothing to quantize"
            else:
                continue
            yield Refusal(f"output_{i}", "output", why, f"{why}: {advice}", advice)

    def plan(self) -> Plan:
        """What was collected and is read, as a plan."""
        outputs = tuple(self.tensors[value] for value in self.graph.outputs)
        read, steps = set(outputs), []
        for step in reversed(self.steps):
            if step.name in read:
                steps.append(step)
                read.update(step.inputs)
        names = [*self.graph.inputs, *(step.name for step in reversed(steps))]
        keys: dict[str, str] = {}  # of a range whose tensor is gone, the first that has it
        for name in names:
            key = self.range_of(name)
            keys.setdefault(key, key if key in names else name)
        ranges = {name: keys[self.range_of(name)] for name in names}
        fixed = {keys[name]: grid for name, grid in self.fixed.items() if name in keys}
        steps.reverse()
        return Plan(self.graph, self.graph.inputs, tuple(steps), outputs, ranges, fixed)

    def assume(self, op: Op) -> None:
        """Goes on behind an operation that was refused, as if it were an input of its own."""
        for i, value in enumerate(op.outputs):
            if value not in self.tensors:
                name = f"{op.name}/refused_{i}"
                self.add(op, "refused", [], value, name=name, shape=value.shape)

    def refuse(self, op: Op, why: str) -> NoReturn:
        """Raises the error that names an operation and says what to do."""
        message = (
            f"cannot quantize operation {op.name!r} ({op.kind}, output shape {op.out_shape}): "
            f"{why}. "
            "Rewrite it with convolutions, matrix products, add, sub, mul, pooling, means, "
            "reshapes, concatenation, clamps, maximum, minimum, gelu, elu, leaky_relu, logistic, "
            "tanh, exp, log, rsqrt, whole powers, layer norms or softmax, or leave it out of the "
            "function that is quantized."
        )
        raise Refusal(op.name, op.kind, why, message, source=op.source)

    def range_of(self, name: str) -> str:
        """The tensor whose range a tensor has."""
        while self.ranges[name] != name:
            name = self.ranges[name]
        return name

    def share(self, first: str, second: str) -> None:
        """Makes two tensors share one range."""
        keep, drop = self.range_of(first), self.range_of(second)
        if keep == drop:
            return
        if drop in self.fixed:
            keep, drop = drop, keep
        self.ranges[drop] = keep

    def tensor(self, op: Op, value: Value) -> str:
        """The name of the tensor that a value is; what depends on no input becomes a constant."""
        if value in self.tensors:
            return self.tensors[value]
        if not self.graph.is_static(value) or 0 in value.shape:
            self.refuse(op, "one of its operands is empty, or was never computed")
        if not jnp.issubdtype(value.dtype, jnp.floating):
            self.refuse(op, f"one of its operands is a constant of {value.dtype}, not of floats")
        name = f"{op.name}/constant"
        count = sum(step.name.startswith(name) for step in self.steps)
        name = f"{name}_{count}" if count else name
        constant = Constant(value, None, lambda real: real)
        return self.add(op, "constant", [], None, name=name, shape=value.shape, constant=constant)

    def add(
        self,
        op: Op,
        kind: str,
        inputs: Sequence[str],
        output: Value | None,
        *,
        name: str | None = None,
        shape: tuple[int, ...] | None = None,
        params: Mapping[str, Any] | None = None,
        bounds: tuple[float | None, float | None] = (None, None),
        constant: Constant | None = None,
        same_range: bool = False,
    ) -> str:
        """Appends a step; `output` is the graph's value that it computes, if there is one.

        What an earlier step computes already is not computed again: converters would merge the two.
        """
        name = name or op.name
        out_shape = shape if shape is not None else op.out_shape
        if constant is None and kind not in _REPEATED:
            same = (kind, tuple(inputs), out_shape, tuple((params or {}).items()), bounds)
            if (known := self.known.setdefault(same, name)) != name:
                if output is not None:
                    self.tensors[output] = known
                return known
        self.steps.append(
            Step(name, kind, tuple(inputs), out_shape, params or {}, *bounds, constant=constant)
        )
        self.ranges[name] = name
        if kind in FIXED_GRIDS:
            self.fixed[name] = FIXED_GRIDS[kind]
        if same_range:
            for other in inputs:
                self.share(other, name)
        if output is not None:
            self.tensors[output] = name
        return name

    def drop(self, step: Step) -> None:
        """Takes back the last step, which shares the range of its input and which nothing reads."""
        self.steps.remove(step)
        del self.ranges[step.name]
        self.known = {same: name for same, name in self.known.items() if name != step.name}

    def only_reader(self, value: Value) -> Op | None:
        """The one operation that reads a value, if there is just one and it is not an output."""
        readers = self.graph.consumers.get(value, ())
        return readers[0] if len(readers) == 1 and value not in self.graph.outputs else None

    def bounds(
        self,
        value: Value,
        fused: Collection[tuple[float | None, float | None]] = FUSED_BOUNDS,
    ) -> tuple[tuple[float | None, float | None], Value]:
        """Follows a ReLU that can be fused into whatever computes a value."""
        best: tuple[float | None, float | None] = (None, None)
        end, lo, hi = value, None, None
        passed: list[Op] = []
        while (op := self.only_reader(end)) is not None and (
            step := clamp_bounds(op, end)
        ) is not None:
            lo = max((bound for bound in (lo, step[0]) if bound is not None), default=None)
            hi = min((bound for bound in (hi, step[1]) if bound is not None), default=None)
            passed.append(op)
            end = op.outputs[0]
            if (lo, hi) in fused:
                best, value = (lo, hi), end
                self.covered.update(passed)
        return best, value


def is_cast(op: Op) -> bool:
    """Tells whether an operation only changes the float type."""
    return op.kind in ("convert_element_type", "reduce_precision") and all(
        jnp.issubdtype(value.dtype, jnp.floating) for value in (op.inputs[0], op.outputs[0])
    )


def literal(value: Value) -> float | None:
    """The number that a value is, if the function wrote one down."""
    if isinstance(value, Literal) and np.ndim(value.value) == 0:
        return float(value.value)
    return None


def clamp_bounds(op: Op, value: Value) -> tuple[float | None, float | None] | None:
    """The bounds that an operation clamps a value to, if it is a clamp."""
    if op.kind == "relu":
        return 0.0, None
    if op.kind == "relu6":
        return 0.0, 6.0
    if op.kind == "clamp":
        low, high = literal(op.inputs[0]), literal(op.inputs[2])
        return (low, high) if op.inputs[1] is value and None not in (low, high) else None
    if op.kind in ("max", "min"):
        bound = literal(op.inputs[1 if op.inputs[0] is value else 0])
        if bound is not None:
            return (bound, None) if op.kind == "max" else (None, bound)
    return None
