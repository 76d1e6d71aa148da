"""How many ranks each layer keeps: rules over all layers of a function.

A rule looks at a `Problem` and gives the ranks of each layer, or None for one that stays whole.
Which decomposition they are ranks of is the neighbours' business (`methods`).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from compressjax import tree
from compressjax.lowrank.layers import Layer
from compressjax.lowrank.methods.base import Method, Moments, Ranks


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One layer and the method that would decompose it.

    Attributes:
      layer: its shapes.
      method: the method.
      weights: `[groups, *window, inputs, outputs]`, float64.
      moments: what was seen of it on data, or None.
    """

    layer: Layer
    method: Method
    weights: np.ndarray
    moments: Moments | None

    @functools.cached_property
    def limits(self) -> Ranks:
        """The largest ranks that exist."""
        return self.method.limits(self.layer)

    @functools.cached_property
    def spectra(self) -> tuple[np.ndarray, ...]:
        """Falling singular values, one array for each rank.

        Raises:
          ValueError: if the method has none.
        """
        if self.method.spectra is None:
            raise ValueError(
                f"{self.layer.path}: {self.method.name} has no singular values to choose a rank "
                "by; give it a number or a part, as in rank={'**/kernel': 0.25}"
            )
        return self.method.spectra(self.layer, self.weights, self.moments)

    def macs(self, ranks: Ranks | None) -> int:
        """Multiply-accumulates at these ranks; of the layer as it is for None."""
        if ranks is None:
            return self.layer.macs([self.layer.whole])
        return self.layer.macs(self.method.plan(self.layer, ranks))

    def params(self, ranks: Ranks | None) -> int:
        """Elements of the kernel at these ranks; of the layer as it is for None."""
        plan = [self.layer.whole] if ranks is None else self.method.plan(self.layer, ranks)
        return self.layer.groups * sum(math.prod(factor.shape) for factor in plan)


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """What rules choose for.

    Attributes:
      cases: the layers by the path of their kernel.
      macs: multiply-accumulates of the whole function.
      params: elements of its collection `params`, or of all its variables where there is none.
      build: makes a candidate: `build(ranks by path) -> (apply, variables)`.
    """

    cases: Mapping[str, Case]
    macs: int
    params: int
    build: Callable[[Mapping[str, Ranks | None]], tuple[Callable[..., Any], Any]]


Rule = Callable[[Problem], Mapping[str, Ranks | None]]
Number = int | float | Sequence[int]
Rank = Number | None


def each(choose: Callable[[Case], Ranks | None]) -> Rule:
    """Makes a rule of one for a single layer.

    Args:
      choose: `choose(case) -> ranks`, or None.

    Returns:
      The rule.

    Example:
      >>> each(lambda case: (1,))(Problem({}, 0, 0, lambda ranks: (None, None)))
      {}
    """
    return lambda problem: {path: choose(case) for path, case in problem.cases.items()}


def of(rank: Rank | Rule | Mapping[str, Rank | Rule]) -> Rule:
    """Reads what `factorize` takes as `rank`.

    Args:
      rank: see `factorize`.

    Returns:
      The rule.

    Example:
      >>> of(lambda problem: {})(Problem({}, 0, 0, lambda ranks: (None, None)))
      {}
    """
    if isinstance(rank, Mapping):
        return _by_path(rank)
    if callable(rank):
        return rank
    return lambda problem: _everywhere(problem, rank)


def _by_path(rules: Mapping[str, Rank | Rule]) -> Rule:
    def chosen(problem: Problem) -> dict[str, Ranks | None]:
        ranks: dict[str, Ranks | None] = dict.fromkeys(problem.cases)
        numbers = {glob: number for number, glob in enumerate(rules)}
        first = tree.assign(numbers, problem.cases, what="rank")
        for number, rank in enumerate(rules.values()):
            mine = {p: case for p, case in problem.cases.items() if first[p] == number}
            if callable(rank):
                ranks.update(rank(dataclasses.replace(problem, cases=mine)))
            elif rank is not None:
                ranks.update({path: exact(case, rank) for path, case in mine.items()})
        return ranks

    return chosen


def _everywhere(problem: Problem, rank: Rank) -> dict[str, Ranks | None]:
    """One rank for all layers; those that do not have as many stay whole."""
    if rank is None:
        return dict.fromkeys(problem.cases)
    if isinstance(rank, float):
        return {path: exact(case, rank) for path, case in problem.cases.items()}
    ranks = {
        path: exact(case, rank) if _exists(case, rank) else None
        for path, case in problem.cases.items()
    }
    if problem.cases and all(chosen is None for chosen in ranks.values()):
        largest = max(problem.cases.values(), key=lambda case: max(case.limits))
        exact(largest, rank)  # says what is wrong
    return ranks


def _exists(case: Case, rank: Number) -> bool:
    wanted = rank if isinstance(rank, Sequence) else (rank,)
    return max(wanted) <= max(case.limits)


def exact(case: Case, rank: Number) -> Ranks:
    """Reads the rank that is asked of one layer.

    Args:
      case: the layer.
      rank: a whole number, a part of the full rank, or one number for each rank of the method.

    Returns:
      Its ranks.

    Raises:
      ValueError: if it is out of range.

    Example:
      >>> from compressjax.lowrank.methods import svd
      >>> layer = Layer('w', (), 8, 8, 1, (((1,), (1,)),))
      >>> exact(Case(layer, svd(), np.ones((1, 8, 8)), None), 0.25)
      (2,)
    """
    limits, where = case.limits, f"rank of {case.layer.path} ({case.method.name})"
    if isinstance(rank, float):
        if not 0 < rank <= 1:
            raise ValueError(f"{where} is {rank}, expected a part of the full rank in (0, 1]")
        return tuple(max(1, round(rank * limit)) for limit in limits)
    if isinstance(rank, int | np.integer):
        wanted = tuple(min(rank, limit) for limit in limits) if rank <= max(limits) else (rank,)
    else:
        wanted = tuple(rank)
        if len(wanted) != len(limits):
            raise ValueError(f"{where} is {rank}, expected {len(limits)} numbers, one each")
    if any(not 1 <= one <= limit for one, limit in zip(wanted, limits, strict=False)):
        most = " and ".join(map(str, limits))
        raise ValueError(f"{where} is {rank}, expected at least 1 and at most {most}")
    return wanted


def energy(part: float, *, round_to: int = 1) -> Rule:
    """Keeps the smallest ranks that hold a part of the energy of each layer.

    The energy is the sum of squared singular values: of the kernel, or, with moments, of what the
    layer puts out. A layer that would not cost less stays whole.

    Args:
      part: of the energy, in (0, 1].
      round_to: ranks go up to a multiple of this, where the layer has as many.

    Returns:
      The rule.

    Raises:
      ValueError: if the part is out of range, or `round_to` under 1.

    Example:
      >>> import jax.numpy as jnp
      >>> import compressjax as cj
      >>> variables = {'w': jnp.diag(jnp.array([3.0, 2.0, 0.1, 0.1, 0.1]))}
      >>> fn = lambda v, x: x @ v['w']
      >>> cj.factorize(fn, variables, jnp.ones((1, 5)), rank=cj.lowrank.energy(0.99)).ranks
      {'w': (2,)}
    """
    if not 0 < part <= 1:
        raise ValueError(f"energy is {part}, expected a part in (0, 1]")
    check_multiple(round_to)
    return each(lambda case: cheaper(case, holding(case, part, round_to)))


def cheaper(case: Case, ranks: Ranks) -> Ranks | None:
    """Keeps ranks that save multiply-accumulates or, at the same number, elements.

    Args:
      case: the layer.
      ranks: its ranks.

    Returns:
      The ranks, or None if the layer costs no more as it is.

    Example:
      >>> from compressjax.lowrank.methods import svd
      >>> layer = Layer('w', (), 8, 8, 1, (((1,), (1,)),))
      >>> case = Case(layer, svd(), np.ones((1, 8, 8)), None)
      >>> cheaper(case, (3,)), cheaper(case, (4,))
      ((3,), None)
    """
    costs = [(case.macs(chosen), case.params(chosen)) for chosen in (ranks, None)]
    return ranks if costs[0] < costs[1] else None


def holding(case: Case, part: float, round_to: int) -> Ranks:
    """Finds the smallest ranks that hold a part of a layer's energy.

    Args:
      case: the layer.
      part: of the energy, in [0, 1].
      round_to: ranks go up to a multiple of this, where the layer has as many.

    Returns:
      The ranks, at least 1.

    Example:
      >>> from compressjax.lowrank.methods import svd
      >>> layer = Layer('w', (), 3, 3, 1, (((1,), (1,)),))
      >>> case = Case(layer, svd(), np.diag([3.0, 2.0, 0.1])[None], None)
      >>> holding(case, 0.5, 1), holding(case, 0.99, 1), holding(case, 0.5, 8)
      ((1,), (2,), (3,))
    """
    ranks = []
    for values in case.spectra:
        held = np.cumsum(np.square(values))
        least = 1 + int(np.searchsorted(held, part * held[-1] * (1 - 1e-12)))
        ranks.append(rounded(least, len(values), round_to))
    return tuple(ranks)


def rounded(rank: int, limit: int, round_to: int) -> int:
    """Takes a rank up to a multiple, and down to what exists.

    Args:
      rank: the rank.
      limit: the largest one.
      round_to: the multiple.

    Returns:
      The rank.

    Example:
      >>> rounded(9, 64, 8), rounded(63, 62, 8)
      (16, 62)
    """
    return min(limit, -(-rank // round_to) * round_to)


def check_multiple(round_to: int) -> None:
    """Refuses multiples that are none.

    Args:
      round_to: what ranks are multiples of.

    Raises:
      ValueError: if it is under 1.

    Example:
      >>> check_multiple(8)
    """
    if round_to < 1:
        raise ValueError(f"round_to is {round_to}, expected at least 1")
