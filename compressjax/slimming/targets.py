"""A cost to come down to, in place of a ratio: the smallest cut that reaches it is looked for.

MACs, parameters and bytes follow from shapes alone, so no array is made on the way; a measured cost
builds each candidate. `selection` is the neighbour that says which channels go at a given ratio.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from compressjax.graph import Graph, cost
from compressjax.graph.channels import Channels
from compressjax.graph.ir import Op, Value


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """A cut that is considered.

    Attributes:
      graph: the whole function's graph.
      channels: its ties.
      cut: which classes of units are gone, booleans.
      build: makes the function and the variables of this cut: `build() -> (apply, variables)`.
    """

    graph: Graph
    channels: Channels
    cut: np.ndarray
    build: Callable[[], tuple[Callable[..., Any], Any]]

    def shape(self, value: Value) -> tuple[int, ...]:
        """The shape that is left of a value."""
        axes = self.channels.axes.get(value)
        if axes is None:
            return value.shape
        return tuple(int(np.sum(~self.cut[axis])) for axis in axes)


class Target(NamedTuple):
    """A cost to come down to.

    Attributes:
      name: of the cost, for messages.
      limit: what the cost may be at most.
      relative: whether the limit is a part of the whole function's cost.
      cost: `cost(candidate) -> cost`.
      steps: how many candidates may be tried.
    """

    name: str
    limit: float
    relative: bool
    cost: Callable[[Candidate], float]
    steps: int


def macs(limit: float, *, relative: bool = True) -> Target:
    """Comes down to a number of multiply-accumulates.

    Args:
      limit: a part of the whole function's, in (0, 1); or a number of MACs at the example inputs'
        shapes, batch included, if not `relative`.
      relative: which of the two.

    Returns:
      The target.

    Raises:
      ValueError: if the limit is out of range.

    Example:
      >>> macs(0.5).name
      'MACs'
    """
    return _target("MACs", limit, relative, _macs)


def params(limit: float, *, relative: bool = True) -> Target:
    """Comes down to a number of parameters.

    Args:
      limit: a part of the whole function's, in (0, 1); or a number of elements if not `relative`.
        The collection `params` counts, or all variables where there is none.
      relative: which of the two.

    Returns:
      The target.

    Raises:
      ValueError: if the limit is out of range.

    Example:
      >>> params(1e6, relative=False).limit
      1000000.0
    """
    return _target("parameters", limit, relative, _params)


def num_bytes(limit: float, *, relative: bool = True) -> Target:
    """Comes down to a number of bytes of all variables.

    Args:
      limit: a part of the whole function's, in (0, 1); or a number of bytes if not `relative`.
      relative: which of the two.

    Returns:
      The target.

    Raises:
      ValueError: if the limit is out of range.

    Example:
      >>> num_bytes(0.25).relative
      True
    """
    return _target("bytes", limit, relative, _bytes)


def measured(
    measure: Callable[[Callable[..., Any], Any], float],
    limit: float,
    *,
    relative: bool = True,
    steps: int = 8,
) -> Target:
    """Comes down to a cost that is measured, such as the latency of the exported file.

    Yang et al., "NetAdapt: Platform-Aware Neural Network Adaptation for Mobile Applications"
    (2018), on why: latency does not follow MACs. There layers are cut one by one; here one ratio
    for the whole network is bisected.

    Args:
      measure: `measure(apply, variables) -> cost`, called for the whole function and for each
        candidate.
      limit: a part of the whole function's, in (0, 1); or a cost if not `relative`.
      relative: which of the two.
      steps: how many candidates are measured.

    Returns:
      The target.

    Raises:
      ValueError: if the limit is out of range or `steps` under 1.

    Example:
      >>> seconds = lambda apply, variables: 0.001 * variables['a'].size
      >>> measured(seconds, 0.002, relative=False, steps=4).steps
      4
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}, expected at least 1 candidate to measure")
    return _target("measured cost", limit, relative, lambda c: float(measure(*c.build())), steps)


def _target(
    name: str,
    limit: float,
    relative: bool,
    of: Callable[[Candidate], float],
    steps: int = 24,
) -> Target:
    if not (0 < limit < 1 if relative else 0 < limit < math.inf):
        expected = "a part of the whole in (0, 1)" if relative else "a positive number"
        raise ValueError(f"the limit of {name} is {limit}, expected {expected}")
    return Target(name, limit, relative, of, steps)


def _macs(candidate: Candidate) -> float:
    return sum(_op_macs(candidate, op) for op in candidate.graph.ops if op.macs)


def _op_macs(candidate: Candidate, op: Op) -> int:
    if op.body is not None:
        return op.params["length"] * sum(_op_macs(candidate, inner) for inner in op.body.ops)
    ins, outs = (list(map(candidate.shape, values)) for values in (op.inputs, op.outputs))
    return cost.macs(op.kind, ins, outs, op.params)


def _params(candidate: Candidate) -> float:
    return sum(math.prod(candidate.shape(value)) for value in candidate.graph.params.values())


def _bytes(candidate: Candidate) -> float:
    return sum(
        math.prod(candidate.shape(value)) * np.dtype(value.dtype).itemsize
        for value in candidate.graph.variables.values()
    )


def level(
    target: Target,
    candidate: Callable[[float], Candidate],
    explain: Callable[[], str],
) -> float:
    """Finds the smallest cut that reaches a target, by bisection.

    Args:
      target: what to reach.
      candidate: `candidate(level)`: the cut at a level in [0, 1], which grows with it; at 0 nothing
        is cut.
      explain: says what stands in the way of more.

    Returns:
      The level.

    Raises:
      ValueError: if even the largest cut does not reach it.

    Example:
      >>> half = Target('width', 50, False, cost=lambda width: width, steps=24)
      >>> round(level(half, lambda level: 100 * (1 - level), lambda: ''), 4)
      0.5
    """
    limit = target.limit * target.cost(candidate(0.0)) if target.relative else target.limit
    most = target.cost(candidate(1.0))
    if most > limit:
        raise ValueError(
            f"the target of at most {limit:,.6g} {target.name} cannot be reached: {most:,.6g} are "
            f"left when all that may be cut is cut. {explain()}"
        )
    low, high = 0.0, 1.0
    for _ in range(target.steps):
        middle = (low + high) / 2
        if target.cost(candidate(middle)) <= limit:
            high = middle
        else:
            low = middle
    return high
