"""A stage that finds how far a trained network can be compressed: `cj.compress_until`, on the disk.

A killed search goes on in the middle of a round: every round trains in a directory of its own, and
finished rounds are checkpoints. `run.py` runs it for a config with a section `search`.
"""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import compressjax as cj
from compressjax import data as datasets
from compressjax import pruning, training
from compressjax.search import Cut, Masked, Round, Search, by_channels, by_masks
from experiments import fitting, networks, stages
from experiments.networks import Network, Variables
from experiments.pipeline import Figures, Results, Stage


class Kind(NamedTuple):
    """A way to compress a network; its models are pytrees of arrays with a field `variables`.

    Attributes:
      start: `variables -> model`, not compressed yet.
      compress: `(model, level) -> model`; the shapes depend on the level alone.
      network: `model -> network` over `model.variables`; training it keeps it compressed.
    """

    start: Callable[[Variables], Any]
    compress: Callable[[Any, float], Any]
    network: Callable[[Any], Network]


def masks(
    network: Network,
    variables: Variables,
    x: jax.Array,
    *,
    budget: Callable[[], pruning.Budget],
    select: str,
) -> Kind:
    """Compress by zeroing the smallest weights.

    Args:
      network: the dense network.
      variables: its variables.
      x: an example, [1, H, W, C].
      budget: makes the budget.
      select: globs of the leaves to prune.

    Returns:
      The kind; levels are the share of zeros.
    """
    del variables, x

    def masked(model: Masked) -> Network:
        def train(variables: Variables, x: jax.Array) -> tuple[jax.Array, Variables]:
            return network.train(cj.apply_masks(variables, model.keep), x)

        return Network(network.apply, network.train if model.keep is None else train)

    return Kind(
        lambda variables: Masked(variables, None),
        by_masks(budget=budget(), select=select),
        masked,
    )


def channels(network: Network, variables: Variables, x: jax.Array, *, round_to: int) -> Kind:
    """Compress by cutting channels out.

    Args:
      network: the dense network.
      variables: its variables.
      x: an example, [1, H, W, C].
      round_to: what is kept of a group is a multiple of this many channels.

    Returns:
      The kind; levels are the part of the channels that is cut.
    """

    @functools.cache
    def narrowed(kept: tuple[tuple[str, tuple[int, ...]], ...]) -> Network:
        cut = cj.shrink(network.apply, variables, x, kept=dict(kept))
        return Network(cut.apply, cut.transform(network.train))

    def of_model(model: Cut) -> Network:
        return narrowed(tuple((name, tuple(kept.tolist())) for name, kept in model.kept.items()))

    return Kind(
        lambda variables: Cut(variables, {}),
        by_channels(network.apply, variables, x, round_to=round_to),
        of_model,
    )


def search(config: Any, directory: pathlib.Path, inputs: Results) -> Figures:
    """Compress the dense network in rounds, until it loses more than it may.

    The section `search` says how: `kind` and its `options`, the `levels`, the `drop` in accuracy
    that is allowed on `config.data.test_split`, how each round trains, and the `final_split` that
    no decision looks at.
    """
    setup, settings = fitting.set_up(config), config.search
    data = setup.data
    variables = networks.load(inputs["train"].directory, setup.like)
    kind = settings.kind(setup.dense, variables, data.example, **settings.options)
    floor = inputs["train"].figures["accuracy"] - settings.drop

    def tune(model: Any, number: int) -> Any:
        network, name = kind.network(model), f"round_{number}"
        tuned = fitting.fit(
            settings,
            fitting.key(config, f"search/{name}"),
            directory / name,
            data,
            model.variables,
            network.apply,
            training.supervised(network.forward, label_smoothing=settings.label_smoothing),
        )
        return model._replace(variables=tuned)

    def evaluate(model: Any) -> float:
        return fitting.scored(data, kind.network(model).apply, model.variables).accuracy

    with training.Checkpoints(directory / "rounds", keep=2) as checkpoints:
        found: Search[Any] = cj.compress_until(
            kind.start(variables),
            compress=kind.compress,
            tune=tune,
            evaluate=evaluate,
            levels=settings.levels,
            floor=floor,
            found=_restored(checkpoints, kind, variables, settings.levels, floor),
            save=lambda found: checkpoints.save(found.rounds, _state(found.model, found.history)),
        )
    networks.save(directory, found.best)

    final = datasets.load(
        config.data.name, settings.final_split, data_dir=config.data.directory or None
    )
    unseen = data._replace(
        test_images=jnp.asarray(final.images), test_labels=jnp.asarray(final.labels)
    )

    def figures(model: Any) -> Figures:
        apply = kind.network(model).apply
        return {
            **networks.size_figures(apply, model.variables, data.example),
            "accuracy": evaluate(model),
            "final_accuracy": fitting.scored(unseen, apply, model.variables).accuracy,
        }

    return {
        "floor": floor,
        "level": found.level,
        "history": [list(entry) for entry in found.history],
        "dense": figures(kind.start(variables)),
        "best": figures(found.best),
    }


def _state(model: Any, history: tuple[Round, ...]) -> Any:
    """What is saved of a round; the best model is this one or that of the round before."""
    return {"model": model, "history": np.array(history)}


def _restored(
    checkpoints: training.Checkpoints,
    kind: Kind,
    variables: Variables,
    levels: tuple[float, ...],
    floor: float,
) -> Search[Any] | None:
    """The search after its newest round on the disk."""
    start = kind.start(variables)

    def restored(step: int) -> Any:
        like = _state(kind.compress(start, levels[step - 1]), (Round(0.0, 0.0),) * (step + 1))
        return checkpoints.restore(like, step=step)

    done = checkpoints.latest()
    if done is None:
        return None
    state = restored(done)
    model, history = state["model"], tuple(Round(*row) for row in state["history"].tolist())
    if history[-1].score >= floor:
        return Search(model, *history[-1], model, history)
    best = restored(done - 1)["model"] if done > 1 else start
    return Search(best, *history[-2], model, history)


STAGES = (
    stages.STAGES[0],
    Stage("search", search, ("seed", "data", "model", "search"), ("train",)),
)
