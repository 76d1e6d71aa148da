"""Which layers bear a lower rank: the score of a model with one of them factorized at a time.

Energy says how well a kernel is kept, not what the model loses by it. `sensitivity` measures that,
and `spend` chooses by it; `budget` is the neighbour that asks for no scores.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize

from compressjax.lowrank.budget import check_limit
from compressjax.lowrank.factorize import factorize
from compressjax.lowrank.methods.base import Method, Moments, Ranks
from compressjax.lowrank.rank import Problem, Rule, exact


class Scan(NamedTuple):
    """What a model loses by each layer.

    Attributes:
      parts: of the full ranks, falling.
      whole: score of the whole model.
      scores: float64 `[parts]` for each layer by its kernel's path: the score with this layer alone
        factorized.
      ranks: what each part is in ranks, by path.
    """

    parts: tuple[float, ...]
    whole: float
    scores: Mapping[str, np.ndarray]
    ranks: Mapping[str, tuple[Ranks, ...]]

    def __str__(self) -> str:
        wide = max(map(len, ("kernel", *self.scores)))
        head = f"{'kernel':<{wide}}" + "".join(f" {part:>9.3g}" for part in self.parts)
        lines = [
            f"{path:<{wide}}" + "".join(f" {score:>9.4g}" for score in scores)
            for path, scores in self.scores.items()
        ]
        return "\n".join([head, *lines, f"whole: {self.whole:.4g}"])


def sensitivity(
    fn: Callable[..., Any],
    variables: Any,
    *args: Any,
    evaluate: Callable[[Callable[..., Any], Any], float],
    parts: Sequence[float] = (0.75, 0.5, 0.25, 0.125),
    method: Method | Mapping[str, Method] | None = None,
    moments: Mapping[str, Moments] | None = None,
    select: str | Iterable[str] = "**",
) -> Scan:
    """Scores a model with each layer at each of some ranks, the others whole.

    Args:
      fn: a pure function, called as `fn(variables, *args)`.
      variables: nested dictionaries of arrays.
      *args: example inputs, or `jax.ShapeDtypeStruct`s.
      evaluate: `evaluate(apply, variables) -> score`, higher is better; called once for the whole
        model and once for each layer and part. The candidates' functions differ, so each compiles.
      parts: of the full ranks, in (0, 1], falling.
      method: as `factorize` takes it.
      moments: as `factorize` takes them.
      select: globs over paths of the kernels.

    Returns:
      The scores.

    Raises:
      ValueError: if there are no parts, they do not fall, or `factorize` refuses what it is given.

    Example:
      >>> fn = lambda v, x: x @ v['a'] @ v['b']
      >>> variables = {'a': np.diag([4.0, 0.0]).astype('f'), 'b': np.diag([2.0, 1.0]).astype('f')}
      >>> x = np.ones((1, 2), 'f')
      >>> score = lambda apply, v: round(float(apply(v, x).sum()), 4)
      >>> print(sensitivity(fn, variables, x, evaluate=score, parts=(1.0, 0.5)))
      kernel         1       0.5
      a              8         8
      b              8         8
      whole: 8
    """
    parts = tuple(parts)
    if not parts or any(a <= b for a, b in zip(parts, parts[1:], strict=False)):
        raise ValueError(f"parts is {parts}, expected at least one, each smaller than the last")
    found: list[Scan] = []

    def probe(problem: Problem) -> dict[str, Ranks | None]:
        nothing: dict[str, Ranks | None] = dict.fromkeys(problem.cases)
        ranks = {
            path: tuple(exact(case, float(part)) for part in parts)
            for path, case in problem.cases.items()
        }
        scores = {
            path: np.array(
                [evaluate(*problem.build({**nothing, path: own})) for own in mine], np.float64
            )
            for path, mine in ranks.items()
        }
        found.append(Scan(parts, float(evaluate(*problem.build(nothing))), scores, ranks))
        return nothing

    factorize(fn, variables, *args, rank=probe, method=method, moments=moments, select=select)
    return found[0]


def spend(scan: Scan, limit: float, *, relative: bool = True) -> Rule:
    """Comes down to a number of multiply-accumulates where that costs the least score.

    Losses of layers are taken to add up, and one rank is chosen for each layer, or none, so that
    their sum is smallest: an integer program, solved exactly. Scores above the whole model's count
    as no loss.

    Args:
      scan: from `sensitivity`, of the same layers and methods.
      limit: a part of the whole function's MACs, in (0, 1); or a number at the example inputs'
        shapes, batch included, if not `relative`.
      relative: which of the two.

    Returns:
      The rule; layers that are not in the scan stay whole. It raises ValueError if the limit cannot
      be reached.

    Raises:
      ValueError: if the limit is out of range.

    Example:
      >>> import compressjax as cj
      >>> fn = lambda v, x: x @ v['a'] @ v['b']
      >>> variables = {path: np.ones((8, 8), 'f') for path in 'ab'}
      >>> losses = {'a': np.array([0.1]), 'b': np.array([0.4])}
      >>> scan = Scan((0.25,), 0.5, losses, {'a': ((2,),), 'b': ((2,),)})
      >>> cj.factorize(fn, variables, np.ones((1, 8), 'f'), rank=spend(scan, 0.75)).ranks
      {'b': (2,)}
    """
    check_limit("MACs", limit, relative)

    def chosen(problem: Problem) -> dict[str, Ranks | None]:
        most = limit * problem.macs if relative else limit
        result: dict[str, Ranks | None] = dict.fromkeys(problem.cases)
        options: list[tuple[str, Ranks, float, int]] = []  # path, ranks, loss, MACs saved
        for path in scan.scores.keys() & problem.cases.keys():
            case = problem.cases[path]
            for ranks, score in zip(scan.ranks[path], scan.scores[path], strict=True):
                saved = case.macs(None) - case.macs(ranks)
                if saved > 0:
                    options.append((path, ranks, max(0.0, scan.whole - float(score)), saved))
        options.sort()
        needed = problem.macs - most
        best: dict[str, int] = {}
        for path, _, _, saved in options:
            best[path] = max(best.get(path, 0), saved)
        if sum(best.values()) < needed:
            raise ValueError(
                f"the target of at most {most:,.6g} MACs cannot be reached: "
                f"{problem.macs - sum(best.values()):,.6g} are left when each of {len(best)} "
                "layers has the smallest rank of the scan; scan smaller parts"
            )
        for index in _cheapest(options, needed) if options else ():
            path, ranks, _, _ = options[index]
            result[path] = ranks
        return result

    return chosen


def _cheapest(options: Sequence[tuple[str, Ranks, float, int]], needed: float) -> list[int]:
    """The options that save as much as needed at the smallest sum of losses, one a path."""
    paths = sorted({path for path, *_ in options})
    one = np.array([[path == mine for path, *_ in options] for mine in paths], np.float64)
    losses = np.array([loss for *_, loss, _ in options])
    saved = np.array([saved for *_, saved in options], np.float64)
    # Among equal losses the smaller saving is kept: nothing is cut that need not be.
    slight = 1e-9 * max(float(losses.max()), 1e-9) * saved / saved.max()
    found = scipy.optimize.milp(
        losses + slight,
        integrality=np.ones(len(options)),
        bounds=scipy.optimize.Bounds(0, 1),
        constraints=[
            scipy.optimize.LinearConstraint(one, -np.inf, 1),
            scipy.optimize.LinearConstraint(saved[None] / saved.max(), needed / saved.max()),
        ],
    )
    if found.x is None:
        raise ValueError(f"no ranks reach the target: {found.message}")
    return [int(i) for i in np.flatnonzero(found.x > 0.5)]
