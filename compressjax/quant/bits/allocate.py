"""Bits for every layer: the allocation that hurts least within budgets, by integer programming.

Sensitivities and costs are tables `{layer: {bits: number}}`; the bits that a layer may have are
those it has a sensitivity for. `sensitivity` and `costs` make the tables, and any other will do:
a cost may be the seconds that were measured on a phone. Unlike `front`, which finds every good
trade against one cost, this answers one question and takes several budgets at once.
"""

import glob
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from compressjax import tree

Table = Mapping[str, Mapping[int, Any]]
Allocation = dict[str, int]
T = TypeVar("T")


class Budget(NamedTuple):
    """A limit on what all layers cost together.

    Attributes:
      name: what is limited, with its unit, for errors: `bytes`, `bit operations`, `seconds`.
      cost: the cost of each layer at each number of bits.
      limit: the most that the sum may be.
    """

    name: str
    cost: Table
    limit: float


def total(table: Table, allocation: Mapping[str, int]) -> float:
    """Adds up what an allocation costs, or what it hurts; rounded once, whatever the order.

    Args:
      table: a number for each layer at each number of bits.
      allocation: the bits of each layer.

    Returns:
      The sum over the allocation's layers.

    Raises:
      ValueError: if the table lacks a layer or its bits, or has a number that is not finite.

    Example:
      >>> total({'a': {2: 10, 4: 20}, 'b': {2: 1, 4: 2}}, {'a': 2, 'b': 4})
      12.0
    """
    needed = {layer: (bits,) for layer, bits in allocation.items()}
    rows = numbers(table, needed, what="the table")
    return math.fsum(value for row in rows for value in row)


def fix(
    scores: Table, rules: Mapping[str, int] | Sequence[tuple[str, int]]
) -> dict[str, dict[int, Any]]:
    """Fixes the bits of some layers: the usual 8 for the first and the last.

    Args:
      scores: the sensitivity of each layer at each number of bits.
      rules: globs on the layers' paths with their bits, in order; the first that matches decides.

    Returns:
      The table with one number of bits left for each layer that a rule matches.

    Raises:
      ValueError: if a glob matches no layer, or a layer has no sensitivity at the bits it is fixed
        to.

    Example:
      >>> fix({'a': {4: 0.5, 8: 0.1}, 'b': {4: 0.7, 8: 0.2}}, {'a': 8})
      {'a': {8: 0.1}, 'b': {4: 0.7, 8: 0.2}}
    """
    fixed = tree.assign(rules, scores, what="fix")
    for layer, bits in fixed.items():
        if bits is not None:
            _require(scores[layer], bits, layer, "the sensitivities")
    return {
        layer: dict(row) if fixed[layer] is None else {fixed[layer]: row[fixed[layer]]}
        for layer, row in scores.items()
    }


def rules(allocation: Mapping[str, int], grids: Mapping[int, T]) -> dict[str, T]:
    """Turns an allocation into the weight rules of a quantization spec.

    Args:
      allocation: the bits of each layer, by the path of its kernel.
      grids: the grid for each number of bits.

    Returns:
      A glob for each layer, which matches that layer alone, with its grid: the `weights` of
      `quant.int8`, or the `rules` of `quant.uniform`.

    Raises:
      ValueError: if there is no grid for some layer's bits.

    Example:
      >>> from compressjax.quant.grids import integer
      >>> found = rules({'params/a/kernel': 4}, {b: integer(b) for b in (4, 8)})
      >>> {glob: grid.name for glob, grid in found.items()}
      {'params/a/kernel': 'int4 per channel'}
    """
    for layer, bits in allocation.items():
        _require(grids, bits, layer, "the grids")
    return {glob.escape(layer): grids[bits] for layer, bits in allocation.items()}


def allocate(scores: Table, *budgets: Budget) -> Allocation:
    """Chooses the bits of every layer: the least total sensitivity that meets all budgets.

    Integer programming over one binary variable for each layer and number of bits, as in Yao et
    al. 2021, "HAWQ-V3: Dyadic Neural Network Quantization", section 3.4, solved to the optimum by
    `scipy.optimize.milp`. Where several allocations are best, it is not said which one comes.

    Args:
      scores: the sensitivity of each layer at each number of bits it may have.
      *budgets: limits that must all hold.

    Returns:
      The bits of each layer, in the order of `scores`.

    Raises:
      ValueError: if no allocation meets the budgets, a cost is missing, or a number is not finite.

    Example:
      >>> scores = {'a': {4: 0.9, 8: 0.1}, 'b': {4: 0.3, 8: 0.2}}
      >>> cost = {'a': {4: 50, 8: 100}, 'b': {4: 50, 8: 100}}
      >>> allocate(scores, Budget('bytes', cost, 150))
      {'a': 8, 'b': 4}
    """
    layers = {layer: tuple(row) for layer, row in scores.items()}
    score = numbers(scores, layers, what="the sensitivities")
    costs = [numbers(budget.cost, layers, what=f"the {budget.name}") for budget in budgets]
    for budget, cost in zip(budgets, costs, strict=True):
        cheapest = math.fsum(min(row) for row in cost)
        if not cheapest <= budget.limit:
            raise ValueError(
                f"no allocation meets the budget of {budget.limit:,} {budget.name}: the cheapest "
                f"bits of all {len(layers)} layers cost {cheapest:,}; raise the budget, measure "
                "fewer bits, or fix fewer layers"
            )
    chosen = _solve(score, costs, [budget.limit for budget in budgets])
    if chosen is None:
        names = ", ".join(f"{budget.limit:,} {budget.name}" for budget in budgets)
        raise ValueError(
            f"no allocation of {len(layers)} layers meets all budgets at once ({names}), though "
            "each can be met alone; raise one"
        )
    return {layer: row[pick] for (layer, row), pick in zip(layers.items(), chosen, strict=True)}


def numbers(
    table: Table, layers: Mapping[str, Sequence[int]], *, what: str
) -> list[tuple[float, ...]]:
    """Reads a table as Python numbers.

    Args:
      table: a number, or an array of one, for each layer at each number of bits.
      layers: the bits wanted of each layer.
      what: what the table holds, for errors.

    Returns:
      For each layer its numbers, in the order of its bits.

    Raises:
      ValueError: if there are no layers, a layer has no bits, the table lacks a number, or a
        number is not finite.

    Example:
      >>> numbers({'a': {2: 3, 4: 5}}, {'a': (4, 2)}, what='the bytes')
      [(5.0, 3.0)]
    """
    if not layers or not all(layers.values()):
        empty = next((layer for layer, widths in layers.items() if not widths), "no layer at all")
        raise ValueError(f"{what} have no bits to choose from: found {empty}; measure some first")
    found = []
    for layer, widths in layers.items():
        for bits in widths:
            _require(table.get(layer, {}), bits, layer, what)
        row = tuple(float(x) for x in jax.device_get([table[layer][bits] for bits in widths]))
        for bits, value in zip(widths, row, strict=True):
            if not math.isfinite(value):
                raise ValueError(
                    f"{what} of {layer!r} at {bits} bits is {value}, expected a finite number; "
                    "leave these bits out of the table or measure them again"
                )
        found.append(row)
    return found


def _require(row: Mapping[int, Any], bits: int, layer: str, what: str) -> None:
    if bits not in row:
        known = ", ".join(map(str, sorted(row))) or "none"
        raise ValueError(
            f"{what} lack {bits} bits, which {layer!r} needs: found {known}; add an entry for "
            f"{bits}, or choose among those"
        )


def _solve(
    score: Sequence[Sequence[float]],
    costs: Sequence[Sequence[Sequence[float]]],
    limits: Sequence[float],
) -> list[int] | None:
    """Picks one entry for each layer; None where the limits exclude each other.

    The solver meets limits up to a tolerance only. A choice that is over a limit by less than that
    is cut off by a constraint of its own, and the rest is solved again.
    """
    from scipy import optimize

    sizes = [len(row) for row in score]
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    owner = np.repeat(np.arange(len(sizes)), sizes)
    one_each = (owner == np.arange(len(sizes)).reshape(-1, 1)).astype(float)

    def above_least(flat: np.ndarray) -> np.ndarray:
        return flat - np.minimum.reduceat(flat, starts)[owner]

    rows, allowed = [], np.ones(owner.size, bool)
    for cost, limit in zip(costs, limits, strict=True):
        extra = above_least(np.concatenate([np.asarray(row) for row in cost]))
        # In units of the room above the cheapest choice, so that tolerances are relative to it.
        room = limit - math.fsum(min(row) for row in cost) + 1e-9 * abs(limit)
        allowed &= extra <= room
        if 0 < room < math.inf:
            rows.append(np.where(allowed, extra / room, 0.0))
    if not np.logical_or.reduceat(allowed, starts).all():
        return None
    harm = np.where(allowed, np.concatenate([np.asarray(row) for row in score]), np.inf)
    harm = np.where(allowed, above_least(harm), 0.0)
    # HiGHS stops at a gap of 1e-6, which this makes 1e-12 of what is at stake.
    harm = 1e6 * (harm / max(float(np.max(harm)), np.finfo(float).tiny))
    constraints = [optimize.LinearConstraint(one_each, 1, 1)]
    if rows:
        constraints.append(optimize.LinearConstraint(np.stack(rows), -np.inf, 1))
    while True:
        found = optimize.milp(
            harm,
            integrality=1,
            bounds=optimize.Bounds(0, allowed.astype(float)),
            constraints=constraints,
            options={"mip_rel_gap": 0},
        )
        if found.x is None:
            if found.status != 2:
                raise RuntimeError(f"scipy.optimize.milp found no allocation: {found.message}")
            return None
        chosen = found.x > 0.5
        picks = [int(i) for i in np.flatnonzero(chosen) - starts]
        if all(
            math.fsum(row[i] for row, i in zip(cost, picks, strict=True)) <= limit
            for cost, limit in zip(costs, limits, strict=True)
        ):
            return picks
        same = chosen.astype(float).reshape(1, -1)
        constraints.append(optimize.LinearConstraint(same, -np.inf, len(picks) - 1))
