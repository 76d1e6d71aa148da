"""Placement: which LiteRT operations a graph becomes, and where a range is needed.

Follows the LiteRT int8 specification: a contraction takes its bias, the affine map behind it and a
ReLU with it; pooling, reshapes and concatenation share one scale and zero point between inputs and
output; softmax, logistic and tanh have fixed grids. Groups of operations that LiteRT has one for,
such as GELU, and variances are found first (`recognition`, `norms`). Everything that depends on an
input becomes a step here or is an error: nothing falls back to float in silence.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

from compressjax.graph import Graph, Op
from compressjax.quant.placement import (
    contractions,
    moves,
    norms,
    pointwise,
    recognition,
    windows,
)
from compressjax.quant.placement.placer import Placer, Refusal, is_cast
from compressjax.quant.plan import Plan

_ALIASES = frozenset({"stop_gradient", "copy", "copy_p", "optimization_barrier"})
_RULES: Mapping[str, Callable[[Placer, Op], None]] = {
    "conv_general_dilated": contractions.conv,
    "dot_general": contractions.dot,
    "add": pointwise.elementwise,
    "sub": pointwise.elementwise,
    "mul": pointwise.elementwise,
    "div": pointwise.elementwise,
    "relu": pointwise.relu,
    "relu6": pointwise.relu,
    "max": pointwise.relu,
    "min": pointwise.relu,
    "clamp": pointwise.relu,
    "reduce_sum": windows.reduce_sum,
    "reduce_max": pointwise.maximum_or_softmax,
    "reduce_min": windows.extreme,
    "reduce_window_sum": windows.pool,
    "reduce_window_max": windows.pool,
    "concatenate": moves.concatenate,
    "stack": moves.stack,
    "rev": moves.reverse,
    "pad": moves.pad,
    "reshape": moves.reshape,
    "squeeze": moves.reshape,
    "expand_dims": moves.reshape,
    "broadcast_in_dim": moves.reshape,
    "transpose": moves.transpose,
    "slice": moves.slice_,
    "gather": moves.gather,
    "tile": moves.tile,
    "split": moves.split,
    "logistic": pointwise.unary,
    "tanh": pointwise.unary,
    "exp": pointwise.unary,
    "log": pointwise.unary,
    "rsqrt": pointwise.unary,
    "sqrt": pointwise.root,
    "square": pointwise.power,
    "integer_pow": pointwise.power,
    "neg": pointwise.negate,
    "abs": pointwise.absolute,
    "select_n": pointwise.select,
}


def place(graph: Graph) -> Plan:
    """Turns a graph into the steps that LiteRT runs in int8.

    Args:
      graph: from `trace(..., keep_custom=False)`; float inputs, float outputs.

    Returns:
      The plan.

    Raises:
      ValueError: for an operation that no int8 step stands for, an input or output that is not
        float, or an output that no step computes: the first of `refusals`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from compressjax import graph as graphs
      >>> def fn(v, x):
      ...     return jax.nn.relu(x @ v['kernel'] + v['bias'])
      >>> variables = {'kernel': jnp.ones((3, 2)), 'bias': jnp.zeros((1, 2))}
      >>> plan = place(graphs.trace(fn, variables, jnp.ones((1, 3)), keep_custom=False))
      >>> [(step.name, step.kind, step.lo) for step in plan.steps]
      [('kernel', 'dense', 0.0)]
    """
    placer = Placer(graph)
    for refusal in _walk(placer):
        raise refusal
    return placer.plan()


def refusals(graph: Graph) -> tuple[Refusal, ...]:
    """Lists everything in a graph that `place` would refuse, not only the first of it.

    What follows a refused operation is judged as if that operation were an input.

    Args:
      graph: from `trace(..., keep_custom=False)`.

    Returns:
      The errors, in the order of the operations; none where the graph can be placed.

    Example:
      >>> import jax.numpy as jnp
      >>> from compressjax import graph as graphs
      >>> graph = graphs.trace(lambda v, x: jnp.sin(jnp.sort(x) + 1.0), {}, jnp.ones((1, 3)))
      >>> [refusal.name for refusal in refusals(graph)]
      ['sort_0', 'sin_0']
    """
    return tuple(_walk(Placer(graph)))


def _walk(placer: Placer) -> Iterator[Refusal]:
    """Places what can be placed, and yields the rest."""
    graph = placer.graph
    yield from placer.unfit_inputs()
    groups: dict[Op, tuple[Callable[[], None], Sequence[Op]]] = {}
    for match in recognition.functions(graph):
        groups[match.ops[-1]] = functools.partial(pointwise.function, placer, match), match.ops
        placer.covered.update(match.ops)
    for found in norms.variances(graph):
        if graph.is_static(found.x):
            continue
        groups[found.ops[0]] = functools.partial(norms.place_variance, placer, found), found.ops
        placer.covered.update(found.ops)
    for op in graph.ops:
        if op in placer.covered and op not in groups:
            continue
        if op not in groups and all(graph.is_static(v) or 0 in v.shape for v in op.outputs):
            continue
        place_group, ops = groups.get(op, (functools.partial(_place_op, placer, op), (op,)))
        try:
            place_group()
        except Refusal as refusal:
            yield refusal
            for refused in ops:
                placer.assume(refused)
    yield from placer.unfit_outputs()


def _place_op(placer: Placer, op: Op) -> None:
    if op.kind in _ALIASES or is_cast(op):
        placer.tensors[op.outputs[0]] = placer.tensor(op, op.inputs[0])
        return
    rule = _RULES.get(op.kind)
    if rule is None:
        placer.refuse(op, "no int8 operation of LiteRT stands for it")
    rule(placer, op)
