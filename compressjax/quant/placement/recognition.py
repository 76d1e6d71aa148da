"""Recognises functions by what they compute, however they are written.

GELU is eight operations in JAX, ELU seven, leaky ReLU three, and hand-written ones differ. Instead
of matching each spelling, any group of elementwise operations with one input and one output is
evaluated on a few hundred numbers and compared with the functions that LiteRT has one operation
for. The group becomes that operation: one rounding in place of many.

Hard-swish is left in parts on purpose. LiteRT has HARD_SWISH, and `lattice.hard_swish` is exact,
but XNNPACK declines it for int8 and the builtin kernel took 804 us for [1, 56, 56, 64] on one x86
core where the parts took 114 us (ADD with a fused RELU6 21, MUL by 1/6 42, MUL 51), and it is
hardly more accurate: 0.28 steps root mean square from the real function, the parts 0.29. SiLU stays
LOGISTIC and MUL: LiteRT has no operation for it.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.graph import Graph, Op, Value
from compressjax.quant.placement.scalars import number

_ELEMENTWISE = frozenset(
    "add sub mul div max min neg abs exp log log1p expm1 tanh logistic erf erfc integer_pow square "
    "sqrt rsqrt pow select_n ge gt le lt relu relu6 copy clamp convert_element_type".split()
)
_LONGEST = 16  # operations of a group
# Where a group is evaluated: the first point tells a slope, the far ones a clamp.
_POINTS = np.concatenate(
    [[-1.0, -1e3, -50.0, 50.0, 1e3], np.linspace(-9, 9, 301), np.linspace(-0.5, 0.5, 101)]
).astype(np.float32)


class Match(NamedTuple):
    """A group of operations that is one function.

    Attributes:
      kind: the kind of step.
      params: its params.
      x: the value that the group reads.
      ops: the group, in order; the last one puts out its value.
    """

    kind: str
    params: Mapping[str, Any]
    x: Value
    ops: tuple[Op, ...]


def functions(graph: Graph) -> Iterator[Match]:
    """Finds the groups of operations in a graph that LiteRT has one operation for.

    Args:
      graph: from `trace(..., keep_custom=False)`.

    Yields:
      The groups; no two of them overlap.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from compressjax.graph import trace
      >>> graph = trace(lambda v, x: jax.nn.gelu(2.0 * x), {}, jnp.ones(3), keep_custom=False)
      >>> [(match.kind, dict(match.params), len(match.ops)) for match in functions(graph)]
      [('gelu', {'approximate': True}, 8)]
    """
    taken: set[Op] = set()
    for x, readers in graph.consumers.items():
        if graph.is_static(x) or not jnp.issubdtype(x.dtype, np.floating):
            continue
        if len(readers) < 2:
            continue
        for ops in _groups(graph, x):
            if taken.isdisjoint(ops) and (match := _recognise(graph, x, ops)) is not None:
                taken.update(ops)
                yield match


def _groups(graph: Graph, x: Value) -> Iterator[tuple[Op, ...]]:
    """Groups of elementwise operations that read one value twice or more, the longest first."""
    made: dict[Value, Op] = {}
    pending = [x]
    while pending:
        for op in graph.consumers.get(pending.pop(), ()):
            dynamic = [value for value in op.inputs if number(graph, value) is None]
            follows = all(value is x or value in made for value in dynamic)
            fits = op.kind in _ELEMENTWISE and op.out_shape == x.shape
            if follows and fits and op.outputs[0] not in made:
                made[op.outputs[0]] = op
                pending.append(op.outputs[0])
    for last in reversed(made.values()):
        group, wanted = [], {last.outputs[0]}
        for op in reversed(made.values()):
            if op.outputs[0] in wanted:
                group.append(op)
                wanted.update(value for value in op.inputs if value in made)
        inside = set(group)
        alone = all(
            inside.issuperset(graph.consumers.get(op.outputs[0], ()))
            and op.outputs[0] not in graph.outputs
            for op in group[1:]
        )
        reads = sum(x in op.inputs for op in group)
        floating = jnp.issubdtype(last.outputs[0].dtype, jnp.floating)
        if alone and floating and reads > 1 and len(group) <= _LONGEST:
            yield tuple(reversed(group))


def _recognise(graph: Graph, x: Value, ops: tuple[Op, ...]) -> Match | None:
    found = _evaluate(graph, x, ops)
    slope = -float(found[0])
    candidates: list[tuple[str, dict[str, Any], Callable[[jax.Array], jax.Array]]] = [
        ("gelu", {"approximate": True}, jax.nn.gelu),
        ("gelu", {"approximate": False}, lambda v: jax.nn.gelu(v, approximate=False)),
        ("elu", {}, jax.nn.elu),
    ]
    if abs(slope) > 1e-6 and slope != 1.0:
        leak = ("leaky_relu", {"slope": slope}, lambda v: jax.nn.leaky_relu(v, slope))
        candidates.append(leak)
    with jax.ensure_compile_time_eval():
        expected = np.stack(
            [np.asarray(function(jnp.asarray(_POINTS))) for *_, function in candidates]
        )
    errors = np.max(np.abs(found - expected) / (1.0 + np.abs(expected)), axis=1)
    best = int(np.argmin(errors))
    # The two forms of GELU are 5e-4 apart; half-precision constants are 4e-3 of themselves.
    if not errors[best] <= (1e-5 if x.dtype == np.float32 else 1e-2):
        return None
    kind, params, _ = candidates[best]
    return Match(kind, params, x, ops)


def _evaluate(graph: Graph, x: Value, ops: tuple[Op, ...]) -> np.ndarray:
    """Runs a group at the points, in single precision whatever its own type."""
    known: dict[Value, Any] = {x: _POINTS}

    def operand(value: Value) -> Any:
        if value in known:
            return known[value]
        kind = np.float32 if jnp.issubdtype(value.dtype, np.floating) else value.dtype
        return np.full(_POINTS.shape, number(graph, value), kind)

    with jax.ensure_compile_time_eval():
        for op in ops:
            inputs = [operand(value) for value in op.inputs]
            cast = op.kind == "convert_element_type"
            known[op.outputs[0]] = inputs[0] if cast else op.bind(op.params, *inputs)[0]
        return np.asarray(known[ops[-1].outputs[0]], np.float32)
