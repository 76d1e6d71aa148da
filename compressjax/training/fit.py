"""A whole run: epochs with checkpoints, figures and a progress bar around the jitted loop.

`loop.py` knows nothing of the disk; this module is where a run that was killed goes on.
"""

import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import tqdm

from compressjax import _atomic
from compressjax.training.checkpoint import Checkpoints
from compressjax.training.loop import EpochFn, Metrics, TrainState, Variables
from compressjax.training.metrics import MetricsWriter


class Schedule(NamedTuple):
    """How long to train and how often to save.

    Attributes:
      epochs: epochs in total, also when the run was stopped in between.
      save_every: epochs between checkpoints; the last epoch is always saved.
      score_every: epochs between calls of `score`; the last epoch is always scored.
    """

    epochs: int
    save_every: int = 1
    score_every: int = 1


def fit(
    state: TrainState,
    epoch_fn: EpochFn,
    images: jax.Array,
    labels: Any,
    schedule: Schedule,
    *,
    directory: _atomic.PathLike,
    score: Callable[[Variables], Metrics] | None = None,
    label: str = "train",
) -> TrainState:
    """Train for `schedule.epochs` epochs, going on from the newest checkpoint in `directory`.

    A run that was stopped and started again ends with the same bits as one that was not, on the
    same machine and versions.

    Args:
      state: a fresh state (`init_state`); only its structure is used when there is a checkpoint.
      epoch_fn: from `make_epoch`.
      images: [N, ...] on the device.
      labels: [N] on the device, or whatever else `epoch_fn` takes for them.
      schedule: epochs and how often to save.
      directory: gets `checkpoints/`, `metrics.jsonl` and TensorBoard event files.
      score: `variables -> figures`, for instance the accuracy on held-out images.
      label: what the progress bar says; it shows on a terminal only.

    Returns:
      The state after the last epoch.

    Raises:
      DamagedCheckpointError: the newest checkpoint cannot be read.
      CheckpointMismatchError: the checkpoints are of another network or optimizer.
      ValueError: fewer than one epoch is asked for, or fewer than were trained already.

    Example:
      >>> import tempfile, jax.numpy as jnp, optax
      >>> from compressjax.training.loop import init_state, make_epoch
      >>> def loss_fn(variables, x, labels, rng):
      ...     return jnp.mean((x @ variables['params']['w'] - labels) ** 2), (variables, {})
      >>> tx = optax.sgd(0.1)
      >>> state = init_state({'params': {'w': jnp.zeros(2)}}, tx, jax.random.key(0))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     state = fit(state, make_epoch(loss_fn, tx, batch_size=4), jnp.ones((8, 2)),
      ...                 jnp.ones(8), Schedule(epochs=3), directory=folder)
      >>> int(state.step)
      6
    """
    if schedule.epochs < 1:
        raise ValueError(f"epochs is {schedule.epochs}; a run has at least one epoch.")
    directory = pathlib.Path(directory)
    with Checkpoints(directory / "checkpoints") as checkpoints:
        first = checkpoints.latest() or 0
        if first > schedule.epochs:
            raise ValueError(
                f"{checkpoints.directory} holds epoch {first} and only {schedule.epochs} are asked "
                "for. Ask for at least as many, or delete that directory to start over."
            )
        resume_step = None
        if first:
            state = checkpoints.restore(state)
            resume_step = int(state.step)
        with (
            MetricsWriter(directory, resume_step=resume_step) as metrics,
            tqdm.tqdm(
                total=schedule.epochs,
                initial=first,
                desc=label,
                unit="epoch",
                disable=not sys.stderr.isatty(),
            ) as bar,
        ):
            for epoch in range(first + 1, schedule.epochs + 1):
                state, figures = epoch_fn(state, images, labels)
                last = epoch == schedule.epochs
                if score is not None and (last or epoch % schedule.score_every == 0):
                    figures = {**figures, **score(state.variables)}
                values = {name: float(value) for name, value in figures.items()}
                metrics.write(int(state.step), values)
                bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()})
                bar.update()
                if last or epoch % schedule.save_every == 0:
                    checkpoints.save(epoch, state)
    return state
