"""How far a model can be compressed: rounds of compressing, tuning and scoring, down to a floor.

`pruning.prune` and `slimming.shrink` are told how sparse; `compress_until` finds out. It knows no
trainer and no disk: what a round does is the caller's functions, and where it stands is a value,
handed out after every round and taken in again. `by_masks` and `by_channels` are two ways to
compress that build every round on what tuning made of the one before.
"""

import glob
import math
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from compressjax import tree
from compressjax.pruning.budgets import Budget
from compressjax.pruning.choose import UNIFORM, UNSTRUCTURED, choose_leaves, selected_leaves
from compressjax.pruning.masks import apply_masks
from compressjax.pruning.patterns import Pattern
from compressjax.pruning.schedules import check_sparsity
from compressjax.pruning.sensitivity import check_levels
from compressjax.slimming.importance import Importance
from compressjax.slimming.shrink import shrink

PyTree = Any
Model = TypeVar("Model")


class Round(NamedTuple):
    """One round of a search.

    Attributes:
      level: how far the model was compressed; 0.0 for the model the search started from.
      score: what it reached after tuning.
    """

    level: float
    score: float


class Search(NamedTuple, Generic[Model]):
    """Where a search stands.

    Attributes:
      best: the last model that met the floor.
      level: its level.
      score: its score.
      model: the model of the last round, from which the next one goes on.
      history: every round, first the model that the search started from.
    """

    best: Model
    level: float
    score: float
    model: Model
    history: tuple[Round, ...]

    @property
    def rounds(self) -> int:
        """Rounds done."""
        return len(self.history) - 1


def compress_until(
    model: Model,
    *,
    compress: Callable[[Model, float], Model],
    tune: Callable[[Model, int], Model],
    evaluate: Callable[[Model], Any],
    levels: Sequence[float],
    floor: float,
    found: Search[Model] | None = None,
    save: Callable[[Search[Model]], None] = lambda found: None,
) -> Search[Model]:
    """Compresses in rounds until a score falls under a floor, or the last level is reached.

    Every round compresses the model of the round before to the next level, tunes it and scores it.
    This is the iterative pruning and retraining of Li et al. 2017, "Pruning Filters for Efficient
    ConvNets", section 3.4, with the stopping rule turned round from NetAdapt (Yang et al. 2018,
    algorithm 1), which goes on until a resource is met.

    Args:
      model: to start from; anything.
      compress: `(model, level) -> model`, for instance `by_masks(...)` or `by_channels(...)`.
      tune: `(model, round) -> model`, trains it and leaves it compressed; rounds count from 1.
      evaluate: `model -> score`, for instance the accuracy on held-out examples.
      levels: rising sparsities, or parts of the channels, in [0, 1).
      floor: the lowest score that is good enough.
      found: a search to go on with: what `save` was given, with the same functions and levels, and
        possibly further levels. `model` then does not matter. With deterministic functions the
        result is that of a search that never stopped, bit for bit.
      save: called after every round.

    Returns:
      The search after its last round: the first under the floor, or that of the last level.

    Raises:
      ValueError: if the levels do not rise inside [0, 1), the floor is no number, the model to
        start from is under the floor, or `found` does not fit the levels or the floor.

    Example:
      >>> found = compress_until(1.0, compress=lambda model, level: 1 - level,
      ...                        tune=lambda model, round: model, evaluate=lambda model: model,
      ...                        levels=[0.25, 0.5, 0.75], floor=0.5)
      >>> found.best, found.level, found.rounds
      (0.5, 0.5, 3)
    """
    steps = check_levels(levels)
    if math.isnan(floor):
        raise ValueError("floor is NaN, expected the lowest score that is good enough")
    if found is None:
        score = float(evaluate(model))
        if not score >= floor:
            raise ValueError(
                f"the model to start from scores {score}, under the floor of {floor}: there is "
                "nothing to give up; lower the floor or train the model first"
            )
        found = Search(model, 0.0, score, model, (Round(0.0, score),))
    else:
        _check(found, steps, floor)
    for level in steps[found.rounds :]:
        if not found.history[-1].score >= floor:
            break
        current = tune(compress(found.model, level), found.rounds + 1)
        score = float(evaluate(current))
        history = (*found.history, Round(level, score))
        if score >= floor:
            found = Search(current, level, score, current, history)
        else:
            found = found._replace(model=current, history=history)
        save(found)
    return found


def _check(found: Search[Any], levels: tuple[float, ...], floor: float) -> None:
    """Refuses a search that these levels and this floor would not have led to."""
    done = tuple(level for level, _ in found.history[1:])
    if done != levels[: len(done)]:
        raise ValueError(
            f"found does not fit levels: it went through {list(done)}, and levels begins with "
            f"{list(levels[: len(done)])}; go on with the levels it was made with, or start over"
        )
    met = [score >= floor for _, score in found.history]
    last = found.history[-1 if met[-1] else -2] if all(met[:-1]) and any(met) else None
    if last != (found.level, found.score):
        raise ValueError(
            f"found does not fit floor={floor}: its scores are "
            f"{[score for _, score in found.history]}, and the best it kept is that of level "
            f"{found.level}; go on with the floor it was made with, or start over"
        )


class Masked(NamedTuple):
    """A model with masks.

    Attributes:
      variables: pytree of arrays; what is pruned is 0.
      keep: tree like `variables` of boolean masks, True = kept, None where a leaf is not pruned;
        None before the first round.
    """

    variables: PyTree
    keep: PyTree


def _magnitudes(variables: PyTree) -> PyTree:
    return jax.tree.map(jnp.abs, variables)


def by_masks(
    *,
    values: Callable[[PyTree], PyTree] = _magnitudes,
    budget: Budget = UNIFORM,
    pattern: Pattern = UNSTRUCTURED,
    select: str | Sequence[str] = "**/kernel",
) -> Callable[[Masked, float], Masked]:
    """Makes the way to compress by zeroing weights; what was pruned stays pruned.

    Tuning has to leave pruned weights at 0: train `apply_masks(variables, model.keep)`, and they
    get no gradient.

    Args:
      values: `variables -> tree like variables` of real scores; the lowest are pruned first.
      budget: how many each leaf keeps.
      pattern: in which shape.
      select: globs of the leaves to prune.

    Returns:
      `(model, sparsity) -> model` for `compress_until`, to start from `Masked(variables, None)`.
      It raises ValueError where a glob matches nothing, the pattern does not fit a leaf or the
      sparsity is outside [0, 1), and TypeError for a selected leaf that is not floating.

    Example:
      >>> compress = by_masks()
      >>> model = compress(Masked({'kernel': jnp.array([4.0, 1.0, 3.0, 2.0])}, None), 0.25)
      >>> compress(model, 0.5).variables['kernel'].tolist()
      [4.0, 0.0, 3.0, 0.0]
    """

    @jax.jit
    def chosen(model: Masked, sparsity: jax.Array) -> Masked:
        scores = selected_leaves(values(model.variables), select, pattern)
        live = None if model.keep is None else tree.paths(model.keep)
        masks = choose_leaves(scores, sparsity, budget, pattern, live=live)
        keep = tree.map_with_path(lambda path, _: masks.get(path), model.variables)
        return Masked(apply_masks(model.variables, keep), keep)

    def compress(model: Masked, level: float) -> Masked:
        check_sparsity(level, "level")
        return chosen(model, jnp.float32(level))

    return compress


class Cut(NamedTuple):
    """A model with fewer channels, as data: `shrink(fn, whole, *args, kept=cut.kept)` runs it.

    Attributes:
      variables: pytree of arrays, narrowed and tuned.
      kept: int32 arrays, for each group the positions in the whole model; without a group: all.
    """

    variables: PyTree
    kept: dict[str, np.ndarray]


def by_channels(
    fn: Callable[..., Any],
    variables: PyTree,
    *args: Any,
    importance: Importance | None = None,
    round_to: int = 8,
    protect: str | Sequence[str] = (),
) -> Callable[[Cut, float], Cut]:
    """Makes the way to compress by cutting channels out.

    Every level is a part of the whole model's channels: each group comes down to as many as
    `shrink` keeps of the whole model at that ratio. Which ones, the tuned weights say, and a
    channel that is gone stays gone.

    Args:
      fn: the whole model, called as `fn(variables, *args)`, for inference.
      variables: its variables.
      *args: example inputs.
      importance: scores of channels, `slimming.l1()` unless given.
      round_to: what is kept of a group is a multiple of this many channels.
      protect: globs over paths of variables which must keep their shapes.

    Returns:
      `(model, ratio) -> model` for `compress_until`, to start from `Cut(variables, {})`. It raises
      ValueError as `shrink` does.

    Example:
      >>> fn = lambda v, x: jax.nn.relu(x @ v['a']) @ v['b']
      >>> whole = {'a': np.array([[1., 5., 2., 4.]]), 'b': np.ones((4, 3))}
      >>> compress = by_channels(fn, whole, np.ones((1, 1)), round_to=1)
      >>> model = compress(Cut(whole, {}), 0.25)
      >>> model.variables['a'] *= np.array([[1.0, 9.0, 1.0]])
      >>> compress(model, 0.5).kept['a'].tolist()
      [1, 2]
    """

    def compress(model: Cut, level: float) -> Cut:
        goal = shrink(fn, variables, *args, ratio=level, round_to=round_to, protect=protect)
        before = {name: positions.tolist() for name, positions in model.kept.items()}
        now = shrink(fn, variables, *args, kept=before, protect=protect)
        ratios = {
            glob.escape(name): max(0.0, 1 - len(positions) / len(now.kept[name]))
            for name, positions in goal.kept.items()
        }
        cut = shrink(
            now.apply,
            model.variables,
            *args,
            ratio=ratios,
            importance=importance,
            round_to=round_to,
            protect=protect,
        )
        kept = {
            name: np.asarray(now.kept[name], np.int32)[positions]
            for name, positions in cut.kept.items()
        }
        return Cut(cut.variables, kept)

    return compress
