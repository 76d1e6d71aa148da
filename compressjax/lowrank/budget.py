"""A cost to come down to: the highest level of energy, common to all layers, that reaches it.

`rank.energy` is the neighbour that is told the level; here it is looked for, so layers whose
energy is spread thin keep more ranks than those that are nearly of low rank. Layers that would not
cost less stay whole. Costs from shapes need no factors; a measured cost builds each candidate.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from compressjax.lowrank.methods.base import Ranks
from compressjax.lowrank.rank import Case, Problem, Rule, cheaper, check_multiple, holding

Chosen = Mapping[str, Ranks | None]


def macs(limit: float, *, relative: bool = True, round_to: int = 1) -> Rule:
    """Comes down to a number of multiply-accumulates of the whole function.

    Args:
      limit: a part of the whole function's, in (0, 1); or a number of MACs at the example inputs'
        shapes, batch included, if not `relative`. Layers that this rule does not choose for count
        as they are.
      relative: which of the two.
      round_to: ranks go up to a multiple of this, where the layer has as many.

    Returns:
      The rule; it raises ValueError if the limit cannot be reached.

    Raises:
      ValueError: if the limit is out of range, or `round_to` under 1.

    Example:
      >>> import jax.numpy as jnp
      >>> import compressjax as cj
      >>> variables = {'w': jnp.diag(1.0 / jnp.arange(1.0, 9.0))}
      >>> fn = lambda v, x: x @ v['w']
      >>> cj.factorize(fn, variables, jnp.ones((1, 8)), rank=cj.lowrank.macs(0.5)).ranks
      {'w': (2,)}
    """
    _check("MACs", limit, relative, round_to)

    def cost(problem: Problem, ranks: Chosen) -> float:
        cases = problem.cases.items()
        return problem.macs - sum(case.macs(None) - case.macs(ranks[p]) for p, case in cases)

    def chosen(problem: Problem) -> Chosen:
        return _level(problem, "MACs", limit, relative, cost, cheaper, round_to)

    return chosen


def params(limit: float, *, relative: bool = True, round_to: int = 1) -> Rule:
    """Comes down to a number of parameters of the whole function.

    Args:
      limit: a part of the whole function's, in (0, 1); or a number of elements if not `relative`.
        The collection `params` counts, or all variables where there is none.
      relative: which of the two.
      round_to: ranks go up to a multiple of this, where the layer has as many.

    Returns:
      The rule; it raises ValueError if the limit cannot be reached.

    Raises:
      ValueError: if the limit is out of range, or `round_to` under 1.

    Example:
      >>> import jax.numpy as jnp
      >>> import compressjax as cj
      >>> variables = {'w': jnp.diag(1.0 / jnp.arange(1.0, 9.0))}
      >>> fn = lambda v, x: x @ v['w']
      >>> rule = cj.lowrank.params(32, relative=False)
      >>> cj.factorize(fn, variables, jnp.ones((1, 8)), rank=rule).ranks
      {'w': (2,)}
    """
    _check("parameters", limit, relative, round_to)

    def cost(problem: Problem, ranks: Chosen) -> float:
        cases = problem.cases.items()
        return problem.params - sum(case.params(None) - case.params(ranks[p]) for p, case in cases)

    def smaller(case: Case, ranks: Ranks) -> Ranks | None:
        return ranks if case.params(ranks) < case.params(None) else None

    def chosen(problem: Problem) -> Chosen:
        return _level(problem, "parameters", limit, relative, cost, smaller, round_to)

    return chosen


def measured(
    measure: Callable[[Callable[..., Any], Any], float],
    limit: float,
    *,
    relative: bool = True,
    steps: int = 8,
    round_to: int = 1,
) -> Rule:
    """Comes down to a cost that is measured, such as the latency of the exported file.

    Yang et al., "NetAdapt: Platform-Aware Neural Network Adaptation for Mobile Applications"
    (2018), on why: latency does not follow MACs.

    Args:
      measure: `measure(apply, variables) -> cost`, called for the whole function and for each
        candidate.
      limit: a part of the whole function's, in (0, 1); or a cost if not `relative`.
      relative: which of the two.
      steps: how many candidates are measured, apart from the whole and the smallest.
      round_to: ranks go up to a multiple of this, where the layer has as many.

    Returns:
      The rule; it raises ValueError if the limit cannot be reached.

    Raises:
      ValueError: if the limit is out of range, or `steps` or `round_to` under 1.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import compressjax as cj
      >>> variables = {'w': jnp.diag(1.0 / jnp.arange(1.0, 9.0))}
      >>> fn = lambda v, x: x @ v['w']
      >>> weigh = lambda apply, variables: sum(leaf.size for leaf in jax.tree.leaves(variables))
      >>> cj.factorize(fn, variables, jnp.ones((1, 8)), rank=cj.lowrank.measured(weigh, 0.5)).ranks
      {'w': (2,)}
    """
    _check("measured cost", limit, relative, round_to)
    if steps < 1:
        raise ValueError(f"steps is {steps}, expected at least 1 candidate to measure")

    def cost(problem: Problem, ranks: Chosen) -> float:
        return float(measure(*problem.build(ranks)))

    def chosen(problem: Problem) -> Chosen:
        return _level(problem, "measured cost", limit, relative, cost, cheaper, round_to, steps)

    return chosen


def check_limit(name: str, limit: float, relative: bool) -> None:
    """Refuses costs that are none.

    Args:
      name: of the cost.
      limit: what it may be at most.
      relative: whether that is a part of the whole function's cost.

    Raises:
      ValueError: if it is out of range.

    Example:
      >>> check_limit('MACs', 0.5, relative=True)
    """
    if not (0 < limit < 1 if relative else 0 < limit < math.inf):
        expected = "a part of the whole in (0, 1)" if relative else "a positive number"
        raise ValueError(f"the limit of {name} is {limit}, expected {expected}")


def _check(name: str, limit: float, relative: bool, round_to: int) -> None:
    check_limit(name, limit, relative)
    check_multiple(round_to)


def _level(
    problem: Problem,
    name: str,
    limit: float,
    relative: bool,
    cost: Callable[[Problem, Chosen], float],
    keep: Callable[[Case, Ranks], Ranks | None],
    round_to: int,
    steps: int = 40,
) -> Chosen:
    """The ranks at the highest level of energy whose cost is within the limit."""

    def at(lost: float) -> Chosen:
        part = 1 - lost**2  # most of what there is to choose from lies close to the whole energy
        return {p: keep(c, holding(c, part, round_to)) for p, c in problem.cases.items()}

    whole: Chosen = dict.fromkeys(problem.cases)
    if relative:
        limit *= cost(problem, whole)
    found = at(1.0)
    least = cost(problem, found)
    if least > limit:
        raise ValueError(
            f"the target of at most {limit:,.6g} {name} cannot be reached: {least:,.6g} are left "
            f"when each of {len(problem.cases)} layers has its smallest rank; the rest is in "
            "layers that stay whole, which the report of a higher target lists"
        )
    low, high = 0.0, 1.0
    for _ in range(steps):
        middle = (low + high) / 2
        ranks = at(middle)
        if cost(problem, ranks) <= limit:
            high, found = middle, ranks
        else:
            low = middle
    return found
