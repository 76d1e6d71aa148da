"""The float networks that benchmarks start from, and how they train others.

`dense` and `load` give the first stage of an experiment's config, as `experiments.run
--until=train` leaves it: as it was trained for those that prune it, with batch norm folded for
those that quantize it. `by_momentum` is how tables of accuracies train, in a folder for each run.
"""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

import compressjax as cj
from compressjax import training
from compressjax.training.loop import LossFn
from experiments import fitting, networks, stages
from experiments.bench import options
from experiments.pipeline import run_stages


class Trained(NamedTuple):
    """A trained network, ready to be quantized.

    Attributes:
      apply: `(variables, x [B, H, W, C]) -> logits [B, K]`, batch norm folded.
      variables: its variables.
      data: both splits of the data set it was trained on.
    """

    apply: networks.Apply
    variables: networks.Variables
    data: networks.Data


class Dense(NamedTuple):
    """A trained network, ready to be trained on.

    Attributes:
      network: in both modes.
      init: `(rng, x [1, H, W, C]) -> variables` of an untrained one.
      variables: its variables.
      data: both splits of the data set it was trained on.
    """

    network: networks.Network
    init: Callable[..., networks.Variables]
    variables: networks.Variables
    data: networks.Data


def dense(config: Any, workdir: str | pathlib.Path) -> Dense:
    """Trains the dense network of a config, or loads it where that is done.

    Args:
      config: of an experiment.
      workdir: the experiment's; the stage `train` is in it or will be.

    Returns:
      The network as it was trained.
    """
    stage = run_stages(stages.STAGES[:1], config, workdir)["train"]
    data = networks.load_data(config.data)
    network, init = networks.dense(config.model, data.num_classes)
    like = jax.eval_shape(init, jax.random.key(0), data.example)
    return Dense(network, init, networks.load(stage.directory, like), data)


def load(config: Any, workdir: str | pathlib.Path) -> Trained:
    """Trains the dense network of a config and folds it, or loads it where that is done.

    Args:
      config: of an experiment.
      workdir: the experiment's; the stage `train` is in it or will be.

    Returns:
      The folded network.
    """
    network, _, variables, data = dense(config, workdir)
    folded, variables = cj.fold_batch_norm(network.apply, variables, data.example)
    return Trained(folded, variables, data)


def batches(data: networks.Data, images: jax.Array, *, size: int, count: int) -> list[jax.Array]:
    """Prepares the first images of a split in batches.

    Args:
      data: where they are from.
      images: uint8 [N, H, W, C].
      size: images in a batch; the last one may have less.
      count: how many images.

    Returns:
      float32 arrays, normalised.
    """
    prepare = jax.jit(data.prepare)
    images = images[:count]
    return [prepare(images[i : i + size]) for i in range(0, images.shape[0], size)]


def by_momentum(
    config: Any,
    directory: pathlib.Path,
    *,
    data: networks.Data,
    loss_fn: LossFn,
    variables: networks.Variables,
    epochs: int,
    rate: float,
    penalty: optax.GradientTransformation | None = None,
) -> networks.Variables:
    """Trains with momentum 0.9 and a weight decay of 1e-4, going on where a killed run was.

    These are the settings of Liu et al., "Learning Efficient Convolutional Networks through Network
    Slimming" (2017), with a learning rate that falls as a cosine.

    Args:
      config: of an experiment.
      directory: gets checkpoints and metrics.
      data: both splits.
      loss_fn: for `training.make_epoch`.
      variables: to start from.
      epochs: how long.
      rate: highest learning rate, reached after a tenth of the steps.
      penalty: applied in front of the optimizer.

    Returns:
      The trained variables.
    """
    batch = config.train.batch_size
    steps = epochs * training.steps_per_epoch(data.train_images.shape[0], batch)
    schedule = optax.warmup_cosine_decay_schedule(0.1 * rate, rate, max(1, steps // 10), steps)
    tx = optax.chain(
        penalty or optax.identity(),
        optax.add_decayed_weights(1e-4),
        optax.sgd(schedule, momentum=0.9, nesterov=True),
    )
    epoch = training.make_epoch(loss_fn, tx, batch_size=batch, augment=data.augment)
    state = training.fit(
        training.init_state(variables, tx, fitting.key(config, "slimming")),
        epoch,
        data.train_images,
        data.train_labels,
        training.Schedule(epochs),
        directory=directory,
        label=directory.name,
    )
    return state.variables


def tuned(config: Any, workdir: pathlib.Path, data: networks.Data) -> Dense:
    """Trains the network of a config and fine-tunes it, or loads it where that is done.

    Args:
      config: of an experiment.
      workdir: gets the folders `dense` and `dense_tuned`, which several benchmarks share.
      data: both splits.

    Returns:
      The network as it was fine-tuned.
    """
    network, init = networks.dense(config.model, data.num_classes)
    variables = jax.jit(init)(fitting.key(config, "init"), data.example)
    for folder, epochs, rate in (
        ("dense", options.TRAIN_EPOCHS, options.TRAIN_RATE),
        ("dense_tuned", options.FINETUNE_EPOCHS, options.FINETUNE_RATE),
    ):
        variables = by_momentum(
            config,
            workdir / folder,
            data=data,
            loss_fn=training.supervised(network.forward),
            variables=variables,
            epochs=epochs.value,
            rate=rate.value,
        )
    return Dense(network, init, variables, data)
