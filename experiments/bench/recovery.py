"""How much of what a cut of channels loses comes back, by fine-tuning and by distillation.

    python -m experiments.bench.recovery --config=experiments/configs/cifar10_vgg16.py \
        --workdir=runs/cifar10_vgg16

trains the config's network and fine-tunes it (the folders are those of `network_slimming`, which
may be done already), cuts channels, and trains what is left twice for as long: on the labels, and
on what the dense network says. The channels with the smallest scales of batch norm go, of all
groups together; with `--cut_evenly` every group loses the same part, by the l1 norm. A run
that was stopped goes on. With 70 % cut from VGG16 x0.25 on CIFAR-10, the two take about 10 minutes
on two idle CPU cores, the dense network 25.
"""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import app, flags

import compressjax as cj
from compressjax import slimming, training
from experiments import fitting, networks, run
from experiments.bench import options, timing, trained

_CUT = flags.DEFINE_float("cut_ratio", 0.7, "Part of the channels that go.", 0.0, 0.99)
_EVENLY = flags.DEFINE_bool("cut_evenly", False, "Cut the same part of every group.")


def measure(config: Any, workdir: pathlib.Path) -> dict[str, Any]:
    """Trains, cuts, and trains what is left.

    Args:
      config: of an experiment.
      workdir: gets a folder for each training run.

    Returns:
      Accuracies by row, the part of the loss that each training brings back, and what is left of
      parameters and MACs.
    """
    data = networks.load_data(config.data)
    network, _, dense, _ = trained.tuned(config, workdir, data)
    evenly = _EVENLY.value
    cut = cj.shrink(
        network.apply,
        dense,
        data.example,
        ratio=_CUT.value,
        importance=slimming.l1() if evenly else slimming.batch_norm_scale(),
        ranking=slimming.per_group() if evenly else slimming.global_(),
        round_to=options.ROUND_TO.value,
    )
    small = networks.Network(cut.apply, cut.transform(network.train))
    hinton = functools.partial(
        cj.distill.hinton, temperature=options.TEMPERATURE.value, alpha=options.ALPHA.value
    )
    losses = {
        "labels": training.supervised(small.forward),
        "distilled": training.distilled(
            small.forward, functools.partial(network.apply, dense), hinton
        ),
    }
    score = functools.partial(fitting.scored, data)
    accuracies = {
        "dense": score(network.apply, dense).accuracy,
        "cut": score(cut.apply, cut.variables).accuracy,
    }
    for name, loss_fn in losses.items():
        folder = workdir / f"cut_{100 * _CUT.value:g}_{'evenly_' * evenly}{name}"
        variables = trained.by_momentum(
            config,
            folder,
            data=data,
            loss_fn=loss_fn,
            variables=cut.variables,
            epochs=options.FINETUNE_EPOCHS.value,
            rate=options.FINETUNE_RATE.value,
        )
        accuracies[name] = score(cut.apply, variables).accuracy
    lost = accuracies["dense"] - accuracies["cut"]
    graphs = [
        cj.trace(apply, variables, data.example)
        for apply, variables in ((cut.apply, cut.variables), (network.apply, dense))
    ]
    return {
        "accuracies": accuracies,
        "recovered": {name: (accuracies[name] - accuracies["cut"]) / lost for name in losses},
        "parameters": graphs[0].num_params / graphs[1].num_params,
        "macs": graphs[0].macs / graphs[1].macs,
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
        f"{100 * _CUT.value:g} % of channels cut: parameters {found['parameters']:.3f}"
        f", MACs {found['macs']:.3f}; {options.FINETUNE_EPOCHS.value} epochs after it"
    )
    for name, accuracy in found["accuracies"].items():
        part = found["recovered"].get(name)
        back = "" if part is None else f"  {100 * part:.1f} % of the loss is back"
        print(f"{name:<10} {100 * accuracy:.2f} %{back}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=run.parse)
