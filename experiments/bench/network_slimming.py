"""What is left of a network's accuracy when most of its channels go, with and without a penalty.

    python -m experiments.bench.network_slimming --config=experiments/configs/cifar10_vgg16.py \
        --workdir=runs/cifar10_vgg16

trains the config's network twice from the same untrained weights, once with an L1 penalty on the
scales of batch norm, cuts the channels with the smallest scales out of both, and fine-tunes as long
as it trained, as Liu et al. (2017) do. The dense network is fine-tuned as well, to say what that
training alone gives. A run that was stopped goes on. One epoch of VGG16 x0.25 on CIFAR-10 takes
about 110 s on two idle CPU cores, so all rows take about 45 minutes.
"""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import optax
from absl import app, flags, logging

import compressjax as cj
from compressjax import slimming, training
from experiments import fitting, networks, run
from experiments.bench import options, timing, trained

_STRENGTH = flags.DEFINE_float("strength", 2e-3, "Of the penalty.", lower_bound=0.0)
_RATIO = flags.DEFINE_float("ratio", 0.73, "Part of all channels that go.", 0.0, 0.999)


def accuracy(data: networks.Data, apply: networks.Apply, variables: networks.Variables) -> float:
    """Counts on the whole test split."""
    return fitting.scored(data, apply, variables).accuracy


def rows(config: Any, workdir: pathlib.Path) -> dict[str, Any]:
    """Trains, cuts and fine-tunes.

    Args:
      config: of an experiment.
      workdir: gets a folder for each training run.

    Returns:
      For each row its accuracies, and what is left of parameters and MACs.
    """
    data, network, init, _ = fitting.set_up(config)
    start = jax.jit(init)(fitting.key(config, "init"), data.example)
    whole = cj.trace(network.apply, start, data.example)
    starts = {"dense": optax.identity(), "sparse": slimming.network_slimming(_STRENGTH.value)}
    fit = functools.partial(trained.by_momentum, config, data=data)
    found: dict[str, Any] = {}

    def add(
        name: str, small: networks.Network, variables: networks.Variables, *, tune: bool
    ) -> None:
        after = None
        if tune:
            tuned = fit(
                workdir / f"{name.replace(' ', '_')}_tuned",
                loss_fn=training.supervised(small.forward),
                variables=variables,
                epochs=options.FINETUNE_EPOCHS.value,
                rate=options.FINETUNE_RATE.value,
            )
            after = accuracy(data, small.apply, tuned)
        graph = cj.trace(small.apply, variables, data.example)
        found[name] = {
            "before": accuracy(data, small.apply, variables),
            "after": after,
            "parameters": graph.num_params / whole.num_params,
            "macs": graph.macs / whole.macs,
        }
        logging.info("%s: %s", name, found[name])

    for name, penalty in starts.items():
        variables = fit(
            workdir / name,
            loss_fn=training.supervised(network.forward),
            variables=start,
            epochs=options.TRAIN_EPOCHS.value,
            rate=options.TRAIN_RATE.value,
            penalty=penalty,
        )
        cut = cj.shrink(
            network.apply,
            variables,
            data.example,
            ratio=_RATIO.value,
            importance=slimming.batch_norm_scale(),
            ranking=slimming.global_(),
            round_to=options.ROUND_TO.value,
        )
        add(name, network, variables, tune=name == "dense")
        small = networks.Network(cut.apply, cut.transform(network.train))
        add(f"{name} cut", small, cut.variables, tune=True)
        found[f"{name} cut"]["channels"] = dict(cut.report.groups)
    return found


def main(argv: Sequence[str]) -> None:
    """Measures and prints."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    found = rows(run.CONFIG.value, pathlib.Path(run.WORKDIR.value))
    if options.JSON.value:
        print(timing.document({"rows": found}))
        return
    print(
        f"{options.TRAIN_EPOCHS.value} epochs, {options.FINETUNE_EPOCHS.value} of fine-tuning, "
        f"{100 * _RATIO.value:g} % of all channels cut, strength {_STRENGTH.value:g}"
    )
    print(f"{'':<34} {'before':>8} {'tuned':>8}  parameters  MACs")
    for name, row in found.items():
        after = "" if row["after"] is None else f"{100 * row['after']:.2f} %"
        print(
            f"{name:<34} {100 * row['before']:>6.2f} % {after:>8}"
            f"  {row['parameters']:>10.3f}  {row['macs']:.3f}"
        )


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=run.parse)
