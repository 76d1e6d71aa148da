"""What sparse training keeps of a network's accuracy, method beside method.

    python -m experiments.bench.sparse_training --config=experiments/configs/cifar10.py \
        --workdir=runs/cifar10 --tune_epochs=2 --scratch_epochs=4 --seeds=0

loads (or trains) the config's dense network, and trains each row of the table with the same data
and batches: AdamW at the learning rate of the section `prune` fine-tunes, SGD with momentum trains
rows `from scratch`, which start from the same untrained weights. One epoch of ResNet-8 on CIFAR-10
takes about 100 s on two idle CPU cores.
"""

import fnmatch
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from absl import app, flags, logging

import compressjax as cj
from compressjax import pruning, training
from experiments import run
from experiments.bench import options, timing, trained

_ROWS = flags.DEFINE_multi_string("rows", ["*"], "Globs of the rows to train.")
_TUNE = flags.DEFINE_integer("tune_epochs", 2, "Epochs of rows that fine-tune.", lower_bound=1)
_SCRATCH = flags.DEFINE_integer(
    "scratch_epochs", 4, "Epochs of rows that train from scratch.", lower_bound=1
)
_RATE = flags.DEFINE_float("sgd_rate", 0.1, "Highest learning rate of rows from scratch.")
_HIGH = flags.DEFINE_float(
    "high", 0.8, "Sparsity at which one-shot and gradual pruning are compared.", 0.0, 0.999
)
_HIGHER = flags.DEFINE_float("higher", 0.9, "Sparsity of all other rows.", 0.0, 0.999)
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds to train every row with.")

Wrap = Callable[[optax.GradientTransformation, int], optax.GradientTransformation]


class Row(NamedTuple):
    """One way to a sparse network.

    Attributes:
      name: of the row.
      scratch: whether it starts from untrained weights.
      wrap: `(optimizer, steps) -> optimizer` that prunes.
    """

    name: str
    scratch: bool
    wrap: Wrap


class Settings(NamedTuple):
    """How rows are trained.

    Attributes:
      epochs: of training.
      batch: images in a batch.
      rate: highest learning rate, reached after a tenth of the steps, cosine after it.
      optimizer: `schedule of the learning rate -> optimizer`.
    """

    epochs: int
    batch: int
    rate: float
    optimizer: Callable[[optax.Schedule], optax.GradientTransformation]


def sgd(rate: optax.Schedule) -> optax.GradientTransformation:
    """The optimizer of the papers on sparse training: momentum 0.9, weight decay 1e-4."""
    return optax.chain(
        optax.add_decayed_weights(1e-4), optax.sgd(rate, momentum=0.9, nesterov=True)
    )


def _gradual(sparsity: float, steps: int) -> pruning.Schedule:
    end = max(1, steps // 2)
    return pruning.polynomial(sparsity, begin=0, end=end, every=max(1, end // 10))


def rows(high: float, higher: float) -> list[Row]:
    """Lists the ways that are compared.

    Args:
      high: sparsity at which one-shot and gradual pruning are compared.
      higher: sparsity of all other rows.

    Returns:
      The rows; those to be compared with each other stand together.
    """

    def one_shot(tx: optax.GradientTransformation, steps: int) -> optax.GradientTransformation:
        del steps
        return cj.prune(tx, schedule=pruning.one_shot(high))

    def gradual(tx: optax.GradientTransformation, steps: int) -> optax.GradientTransformation:
        return cj.prune(tx, schedule=_gradual(high, steps))

    def budgeted(budget: pruning.Budget) -> Wrap:
        return lambda tx, steps: cj.prune(tx, schedule=_gradual(higher, steps), budget=budget)

    def fixed(tx: optax.GradientTransformation, steps: int) -> optax.GradientTransformation:
        del steps
        schedule = pruning.one_shot(higher)
        return cj.prune(tx, schedule=schedule, score=pruning.random(), budget=pruning.erk())

    def regrowing(regrow: Callable[..., pruning.Regrow]) -> Wrap:
        def wrap(tx: optax.GradientTransformation, steps: int) -> optax.GradientTransformation:
            end = max(1, 3 * steps // 4)
            # Every 100 steps as Evci et al. do; more often where there are few.
            every = min(100, max(1, steps // 16))
            schedule = pruning.constant(higher, end=end, every=every)
            return cj.prune(tx, schedule=schedule, budget=pruning.erk(), regrow=regrow(0.3, end))

        return wrap

    def latent(method: pruning.Latent) -> Wrap:
        schedule = pruning.constant(higher, every=1)
        return lambda tx, steps: cj.prune(
            tx, schedule=schedule, budget=pruning.erk(), latent=method
        )

    percent, more = f"{100 * high:g} %", f"{100 * higher:g} %"
    return [
        Row(f"one-shot, uniform, {percent}", False, one_shot),
        Row(f"gradual, uniform, {percent}", False, gradual),
        Row(f"gradual, uniform, {more}", False, budgeted(pruning.uniform())),
        Row(f"gradual, ERK, {more}", False, budgeted(pruning.erk())),
        Row(f"gradual, global, {more}", False, budgeted(pruning.global_())),
        Row(f"static, ERK, {more}, from scratch", True, fixed),
        Row(f"SET, ERK, {more}, from scratch", True, regrowing(pruning.set_)),
        Row(f"RigL, ERK, {more}, from scratch", True, regrowing(pruning.rigl)),
        Row(
            f"straight-through, ERK, {more}, from scratch",
            True,
            latent(pruning.straight_through(2e-4)),
        ),
        Row(
            f"Top-KAST, ERK, {more}, from scratch",
            True,
            latent(pruning.top_kast(backward=max(0.0, 2 * higher - 1), decay=1e-4)),
        ),
    ]


def accuracy(row: Row, start: trained.Dense, settings: Settings, seed: int) -> dict[str, Any]:
    """Trains a row and counts.

    Args:
      row: how.
      start: the trained network, its data, and how an untrained one is made.
      settings: how long, and how fast.
      seed: of the batches, the augmentation, and the untrained weights.

    Returns:
      `accuracy` on the whole test split, and `sparsity` of the pruned leaves.
    """
    data = start.data
    steps = settings.epochs * training.steps_per_epoch(data.train_images.shape[0], settings.batch)
    rate = optax.warmup_cosine_decay_schedule(
        0.1 * settings.rate, settings.rate, max(1, steps // 10), steps
    )
    tx = row.wrap(settings.optimizer(rate), steps)
    loss_fn = training.supervised(start.network.forward)
    epoch = training.make_epoch(loss_fn, tx, batch_size=settings.batch, augment=data.augment)
    key = jax.random.key(seed)
    variables = start.variables
    if row.scratch:
        variables = jax.jit(start.init)(jax.random.fold_in(key, 1), data.example)
    state = training.init_state(variables, tx, key)
    for number in range(settings.epochs):
        state, metrics = epoch(state, data.train_images, data.train_labels)
        logging.info("%s: epoch %d, loss %.4f", row.name, number + 1, metrics["loss"])
    keep = jax.tree.leaves(cj.masks(state.opt_state))
    pruned = jax.tree.map(lambda mask: int(mask.size - np.sum(mask)), keep)
    score = training.evaluate(
        start.network.apply,
        state.variables,
        data.test_images,
        data.test_labels,
        prepare=data.prepare,
    )
    return {
        "accuracy": score.accuracy,
        "sparsity": sum(pruned) / sum(mask.size for mask in keep),
    }


def main(argv: Sequence[str]) -> None:
    """Measures and prints."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    config = run.CONFIG.value
    start = trained.dense(config, run.WORKDIR.value)
    batch = options.BATCH.value or config.train.batch_size
    decay = config.prune.weight_decay
    adamw = functools.partial(optax.adamw, weight_decay=decay)
    tune = Settings(_TUNE.value, batch, config.prune.learning_rate, adamw)
    scratch = Settings(_SCRATCH.value, batch, _RATE.value, sgd)
    chosen = [
        row
        for row in rows(_HIGH.value, _HIGHER.value)
        if any(fnmatch.fnmatchcase(row.name, glob) for glob in _ROWS.value)
    ]
    found: dict[str, list[dict[str, Any]]] = {row.name: [] for row in chosen}
    for seed in map(int, _SEEDS.value):
        for row in chosen:
            figures = accuracy(row, start, scratch if row.scratch else tune, seed)
            found[row.name].append({"seed": seed, **figures})
            logging.info("%s: seed %d, %s", row.name, seed, figures)
    if options.JSON.value:
        print(timing.document({"rows": found}))
        return
    print(f"{_TUNE.value} epochs, {_SCRATCH.value} from scratch; accuracy by seed")
    for name, runs in found.items():
        shown = "  ".join(f"{100 * figures['accuracy']:6.2f} %" for figures in runs)
        print(f"{name:<46} {100 * runs[0]['sparsity']:5.1f} % sparse  {shown}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=run.parse)
