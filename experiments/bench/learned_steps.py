"""What is left of a network's accuracy in four bits: LSQ on a trained float network.

    python -m experiments.bench.learned_steps --config=experiments/configs/cifar10.py \
        --workdir=runs/cifar10 --epochs=4

loads (or trains) the config's float network, puts weights and activations in `--bits` bits with
learned steps (Esser et al., 2020), and trains these with the weights, the float network teaching.
The first and the last kernel, and the input, have 8 bits, as in the paper. Accuracy is that of the
simulated network: LiteRT has no 4-bit activations. An epoch takes about one and a half times the
float one.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import optax
from absl import app, flags

import compressjax as cj
from compressjax import quant, training
from compressjax.quant.steps import CONTRACTIONS
from experiments import run
from experiments.bench import options, timing, trained

_EPOCHS = flags.DEFINE_integer("epochs", 4, "Epochs of training with learned steps.", lower_bound=0)
_BITS = flags.DEFINE_integer("bits", 4, "Bits of weights and activations.", lower_bound=2)
_RATE = flags.DEFINE_float("rate", 1e-3, "Adam's first learning rate, with cosine decay.")


def measure(network: trained.Trained, *, bits: int, epochs: int, rate: float, batch: int) -> Any:
    """Trains with learned steps.

    Args:
      network: the trained float network.
      bits: of weights and activations.
      epochs: of training.
      rate: Adam's first learning rate.
      batch: images in a batch.

    Returns:
      Accuracy of the float network, calibrated, and after every epoch, by name.
    """
    data = network.data
    plan = cj.quantize(network.apply).plan(network.variables, data.example)
    kernels = [step.name for step in plan.steps if step.kind in CONTRACTIONS]
    ends = {name: quant.grids.learned_step(8) for name in (kernels[0], kernels[-1])}
    spec = quant.uniform(
        weights=bits,
        activations=bits,
        rules=ends,
        activation_rules={"input_0": quant.Activations(8)},
        learning=quant.lsq(),
    )
    q = cj.quantize(network.apply, spec)
    shown = trained.batches(data, data.train_images, size=batch, count=4 * batch)
    qv = q.calibrate(network.variables, shown, observer=quant.mse(bits=bits))

    def score(apply: Any, variables: Any) -> float:
        return training.evaluate(
            apply, variables, data.test_images, data.test_labels, prepare=data.prepare
        ).accuracy

    # What the optimizer trains is all of `qv`: the weights, and the steps beside them.
    def apply(variables: Any, x: jax.Array) -> jax.Array:
        return q.apply(variables["params"], x)

    teacher = functools.partial(network.apply, network.variables)
    loss = functools.partial(cj.distill.hinton, temperature=4.0, alpha=0.9)
    loss_fn = training.distilled(training.from_apply(apply), teacher, loss)
    steps = max(1, epochs * training.steps_per_epoch(data.train_images.shape[0], batch))
    tx = optax.adam(optax.cosine_decay_schedule(rate, steps))
    epoch = training.make_epoch(loss_fn, tx, batch_size=batch, augment=data.augment)
    state = training.init_state({"params": qv}, tx, jax.random.key(0))
    found = {
        "float": score(network.apply, network.variables),
        "calibrated": score(apply, state.variables),
    }
    for number in range(1, epochs + 1):
        state, _ = epoch(state, data.train_images, data.train_labels)
        found[f"epoch {number}"] = score(apply, state.variables)
    return found


def main(argv: Sequence[str]) -> None:
    """Measures and prints."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    network = trained.load(run.CONFIG.value, run.WORKDIR.value)
    batch = options.BATCH.value or 128
    found = measure(network, bits=_BITS.value, epochs=_EPOCHS.value, rate=_RATE.value, batch=batch)
    if options.JSON.value:
        print(timing.document({"accuracy": found}))
        return
    print(f"{_BITS.value} bits, batch {batch}, {network.data.test_images.shape[0]:,} test images")
    for name, accuracy in found.items():
        lost = 100 * (found["float"] - accuracy)
        print(f"{name:>12}  {100 * accuracy:6.2f} %  lost {lost:+.2f} points")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=run.parse)
