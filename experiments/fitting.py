"""What the stages that train share: what a config starts from, and one training run in a directory.

`stages.py` and `search.py` say what is trained; `compressjax.training` does it.
"""

import pathlib
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from compressjax import training
from experiments import networks
from experiments.networks import Data, Network, Variables

Wrap = Callable[[optax.GradientTransformation, int], optax.GradientTransformation]


class Setup(NamedTuple):
    """What every stage starts from.

    Attributes:
      data: both splits.
      dense: the network that the config starts from.
      init: `(rng, x) -> variables` of that network.
      like: shapes and dtypes of these variables.
    """

    data: Data
    dense: Network
    init: Callable[..., Variables]
    like: Variables


class Lesson(NamedTuple):
    """What is learned in place of the labels.

    Attributes:
      targets: over the whole training split, in place of its labels.
      draw: of `training.make_epoch`: makes batches, in place of the augmentation of the data.
    """

    targets: Any
    draw: Any


def set_up(config: Any) -> Setup:
    """Open the data set of a config and build its network.

    Args:
      config: the whole config.

    Returns:
      What every stage starts from.
    """
    data = networks.load_data(config.data)
    dense, init = networks.dense(config.model, data.num_classes)
    return Setup(data, dense, init, jax.eval_shape(init, jax.random.key(0), data.example))


def key(config: Any, name: str) -> jax.Array:
    """Make a key of its own for every use.

    Args:
      config: the whole config.
      name: of the use.

    Returns:
      A typed key, []; the same for the same seed and name.
    """
    return jax.random.fold_in(jax.random.key(config.seed), zlib.crc32(name.encode()))


def fit(
    settings: Any,
    rng: jax.Array,
    directory: pathlib.Path,
    data: Data,
    variables: Variables,
    apply: networks.Apply,
    loss_fn: Any,
    wrap: Wrap = lambda tx, steps: tx,
    lesson: Lesson | None = None,
) -> Variables:
    """Train variables as a section of a config says, going on where a killed run was.

    Args:
      settings: the section, with `epochs`, `batch_size`, `learning_rate`, `weight_decay` and
        `save_every`.
      rng: of the run.
      directory: gets checkpoints and metrics.
      data: both splits.
      variables: to start from.
      apply: `(variables, x) -> logits`, scored on the test split.
      loss_fn: for `training.make_epoch`.
      wrap: `(optimizer, steps) -> optimizer`.
      lesson: what to learn; the labels if `None`.

    Returns:
      The variables after the last epoch.
    """
    batches = training.steps_per_epoch(data.train_images.shape[0], settings.batch_size)
    steps = settings.epochs * batches
    rate = optax.warmup_cosine_decay_schedule(
        0.1 * settings.learning_rate, settings.learning_rate, max(1, steps // 10), steps
    )
    tx = wrap(optax.adamw(rate, weight_decay=settings.weight_decay), steps)
    targets, augment, draw = data.train_labels, data.augment, None
    if lesson is not None:
        targets, augment, draw = lesson.targets, None, lesson.draw
    epoch = training.make_epoch(
        loss_fn, tx, batch_size=settings.batch_size, augment=augment, draw=draw
    )

    def score(variables: Variables) -> dict[str, Any]:
        return {"test_accuracy": scored(data, apply, variables).accuracy}

    state = training.fit(
        training.init_state(variables, tx, rng),
        epoch,
        data.train_images,
        targets,
        training.Schedule(settings.epochs, settings.save_every, settings.save_every),
        directory=directory,
        score=score,
        label=directory.name,
    )
    return state.variables


def scored(data: Data, apply: networks.Apply, variables: Variables) -> training.Score:
    """Count right answers on the test split.

    Args:
      data: both splits.
      apply: `(variables, x) -> logits`.
      variables: its variables.

    Returns:
      The exact count.
    """
    return training.evaluate(
        apply, variables, data.test_images, data.test_labels, prepare=data.prepare
    )
