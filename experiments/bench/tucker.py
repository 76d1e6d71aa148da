"""What a network loses when its convolutions are factorized, what training brings back, and speed.

    python -m experiments.bench.tucker --config=experiments/configs/cifar10_vgg16.py \
        --workdir=runs/cifar10_vgg16

trains the config's network and fine-tunes it (the folders are those of `network_slimming`, which
may be done already), comes down to a third of the MACs by Tucker-2, and trains the factors on what
the dense network says and on the labels. Then the .tflite of both are timed side by side, as floats
and as int8. A run that was stopped goes on. One epoch of VGG16 x0.25 on CIFAR-10 takes about 110 s
on two idle CPU cores, of its factors about 80 s.
"""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import app, flags

import compressjax as cj
from compressjax import lowrank, training
from experiments import fitting, networks, run
from experiments.bench import options, timing, trained
from experiments.bench.slim_latency import files
from experiments.bench.sparse_export import caller

_KEEP = flags.DEFINE_float("keep_macs", 1 / 3, "Part of the MACs to come down to.", 0.01, 0.99)
_EPOCHS = flags.DEFINE_integer("factor_epochs", 6, "Epochs of the factors.", lower_bound=1)
_RATE = flags.DEFINE_float("factor_rate", 0.02, "Highest learning rate of the factors.")
_SEEN = flags.DEFINE_integer(
    "seen", 0, "Training images that say which directions matter; by weights alone if 0."
)


def measure(config: Any, workdir: pathlib.Path) -> dict[str, Any]:
    """Trains, factorizes, trains the factors, and times the files.

    Args:
      config: of an experiment.
      workdir: gets a folder for each training run.

    Returns:
      Accuracies by row, what is left of parameters and MACs, the ranks, and for each kind of file
      its sizes and timings.
    """
    data = networks.load_data(config.data)
    network, _, dense, _ = trained.tuned(config, workdir, data)
    seen = trained.batches(data, data.train_images, size=128, count=_SEEN.value)
    factored = cj.factorize(
        network.apply,
        dense,
        data.example,
        rank=lowrank.macs(_KEEP.value, round_to=options.ROUND_TO.value),
        moments=lowrank.observe(network.apply, dense, seen) if seen else None,
    )
    small = networks.Network(factored.apply, factored.transform(network.train))
    teacher = functools.partial(network.apply, dense)
    hinton = functools.partial(
        cj.distill.hinton, temperature=options.TEMPERATURE.value, alpha=options.ALPHA.value
    )
    losses = {
        "distilled": training.distilled(small.forward, teacher, hinton),
        "labels": training.supervised(small.forward),
    }
    score = functools.partial(fitting.scored, data)
    accuracies = {
        "dense": score(network.apply, dense).accuracy,
        "factorized": score(factored.apply, factored.variables).accuracy,
    }
    for name, loss_fn in losses.items():
        variables = trained.by_momentum(
            config,
            workdir / f"tucker_{100 * _KEEP.value:.0f}_{_SEEN.value}_{name}",
            data=data,
            loss_fn=loss_fn,
            variables=factored.variables,
            epochs=_EPOCHS.value,
            rate=_RATE.value,
        )
        accuracies[name] = score(factored.apply, variables).accuracy
    pairs = {"dense": (network.apply, dense), "factorized": (factored.apply, factored.variables)}
    graphs = {name: cj.trace(apply, v, data.example) for name, (apply, v) in pairs.items()}
    made = {name: files(apply, v, data.example) for name, (apply, v) in pairs.items()}
    x = np.asarray(data.example)
    return {
        "accuracies": accuracies,
        "macs": graphs["factorized"].macs / graphs["dense"].macs,
        "parameters": graphs["factorized"].num_params / graphs["dense"].num_params,
        "ranks": factored.ranks,
        "files": {
            kind: {
                "bytes": {name: len(kinds[kind]) for name, kinds in made.items()},
                "timings": timing.interleaved(
                    {name: caller(kinds[kind], x) for name, kinds in made.items()},
                    rounds=options.ROUNDS.value or 200,
                    warmup=5,
                    clock=options.CLOCK.value,
                ),
            }
            for kind in made["dense"]
        },
    }


def main(argv: Sequence[str]) -> None:
    """Measures and prints."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    found = measure(run.CONFIG.value, pathlib.Path(run.WORKDIR.value))
    if options.JSON.value:
        print(timing.document(found))
        return
    print(
        f"MACs {found['macs']:.3f}, parameters {found['parameters']:.3f}, {_EPOCHS.value} epochs "
        f"of the factors; goal: a third of the MACs, at most 0.5 points lost"
    )
    for name, accuracy in found["accuracies"].items():
        print(f"{name:<12} {100 * accuracy:.2f} %")
    for kind, row in found["files"].items():
        timed, sizes = row["timings"]["factorized"], row["bytes"]
        print(
            f"{kind:<6} latency {timed.ratio:.3f} ({timed.ratio_low:.3f} to "
            f"{timed.ratio_high:.3f}), bytes {sizes['factorized'] / sizes['dense']:.3f}"
        )
    for path, ranks in found["ranks"].items():
        print(f"  {path}: {' and '.join(map(str, ranks))}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=run.parse)
