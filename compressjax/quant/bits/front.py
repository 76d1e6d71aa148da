"""The Pareto front: every allocation of bits that no other one beats in both hurt and cost.

Where `allocate` solves one integer program for given budgets, this finds all answers for one cost
at once, exactly, by dynamic programming over the layers.
"""

import dataclasses
import math

import numpy as np

from compressjax.quant.bits.allocate import Allocation, Table, numbers


@dataclasses.dataclass(frozen=True, eq=False)
class Front:
    """Allocations that no other one beats, from the cheapest to the least harmful.

    Attributes:
      layers: the layers' paths.
      bits: int [P, L], the bits of each layer.
      score: float64 [P], the total sensitivity, falling.
      cost: float64 [P], the total cost, rising.
    """

    layers: tuple[str, ...]
    bits: np.ndarray
    score: np.ndarray
    cost: np.ndarray

    def __len__(self) -> int:
        """Returns the number of allocations."""
        return len(self.cost)

    def __getitem__(self, index: int) -> Allocation:
        """Returns an allocation, `{layer: bits}`."""
        return dict(zip(self.layers, self.bits[index].tolist(), strict=True))


def pareto(scores: Table, cost: Table) -> Front:
    """Finds every allocation of bits that is not dominated.

    Dong et al. 2020, "HAWQ-V2: Hessian Aware trace-Weighted Quantization of Neural Networks",
    chooses bits from this front. It is built layer by layer, keeping the allocations
    of the layers so far that none of the others beats (Nemhauser and Ullmann, 1969). Of equals one
    is kept. A network of 53 layers with 5 choices each has some 45,000 points and takes a second.

    Args:
      scores: the sensitivity of each layer at each number of bits it may have.
      cost: the cost of each layer at these bits.

    Returns:
      The front.

    Raises:
      ValueError: if there are no layers, a cost is missing, or a number is not finite.

    Example:
      >>> scores = {'a': {4: 0.9, 8: 0.1}, 'b': {4: 0.3, 8: 0.2}}
      >>> cost = {'a': {4: 50, 8: 100}, 'b': {4: 50, 8: 100}}
      >>> front = pareto(scores, cost)
      >>> [(c, front[i]) for i, c in enumerate(front.cost.tolist())]
      [(100.0, {'a': 4, 'b': 4}), (150.0, {'a': 8, 'b': 4}), (200.0, {'a': 8, 'b': 8})]
    """
    layers = {layer: tuple(row) for layer, row in scores.items()}
    score_rows = [np.array(row) for row in numbers(scores, layers, what="the sensitivities")]
    cost_rows = [np.array(row) for row in numbers(cost, layers, what="the costs")]

    score_sums = cost_sums = np.zeros(1)
    steps = []
    for score_row, cost_row in zip(score_rows, cost_rows, strict=True):
        all_scores = (score_sums.reshape(-1, 1) + score_row).ravel()
        all_costs = (cost_sums.reshape(-1, 1) + cost_row).ravel()
        kept = _undominated(all_scores, all_costs)
        score_sums, cost_sums = all_scores[kept], all_costs[kept]
        steps.append(np.divmod(kept, cost_row.size))

    picks = np.empty((len(cost_sums), len(layers)), int)
    point = np.arange(len(cost_sums))
    for column, (before, choice) in reversed(list(enumerate(steps))):
        picks[:, column] = choice[point]
        point = before[point]

    def sums(rows: list[np.ndarray]) -> np.ndarray:
        chosen = [row[picks[:, column]] for column, row in enumerate(rows)]
        return np.array([math.fsum(values) for values in zip(*chosen, strict=True)])

    # Sums rounded once, as `total` has them, may tie or change places by a last digit.
    score, spent = sums(score_rows), sums(cost_rows)
    kept = _undominated(score, spent)
    widths = [np.array(row)[picks[kept, column]] for column, row in enumerate(layers.values())]
    return Front(tuple(layers), np.stack(widths, axis=1), score[kept], spent[kept])


def _undominated(scores: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Indices of the points that no other one beats, by rising cost.

    Args:
      scores: float64 [P].
      costs: float64 [P].

    Returns:
      int [Q].
    """
    order = np.lexsort((scores, costs))
    best = np.minimum.accumulate(scores[order])
    return order[np.concatenate([[True], scores[order][1:] < best[:-1]])]
