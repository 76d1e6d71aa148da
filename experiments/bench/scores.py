"""What evidence costs: a ResNet-8 training step with each score over the dense step.

    python -m experiments.bench.scores --clock=processor

Masks are computed on the first step only, so what is timed is what a score does on every step.

With `--rounds=10`, batch 128, on 2 cores of an AMD EPYC (Zen 4), the dense step took 257 ms and the
ratios (quartiles) were 0.98 (0.94 to 1.03) for the dense step again, 1.04 (0.96 to 1.05) for
magnitude, 0.97 (0.91 to 1.03) for saliency, 0.94 (0.87 to 0.99) for movement, 0.97 (0.88 to 1.00)
for diagonal Fisher and 1.03 (0.95 to 1.08) for OBS: no cost that shows above the noise. OBD with a
sample on every step took 2.85 (2.56 to 3.09). With `every` above 1 its sample is in a branch, where
XLA runs convolutions slowly on a CPU: such a step took about 14 s.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import app, flags

from compressjax import pruning
from compressjax.models import ResNet8
from experiments.bench import options, timing
from experiments.bench.pruned_step import training_step

_NEVER = 2**30
_SCORES = {
    "magnitude": pruning.magnitude(),
    "saliency": pruning.saliency(),
    "movement": pruning.movement(),
    "diagonal Fisher": pruning.diagonal_fisher(),
    "OBD between samples": pruning.optimal_brain_damage(every=_NEVER),
    "OBD sampling": pruning.optimal_brain_damage(every=1),
    "OBS in blocks of 16": pruning.optimal_brain_surgeon(block_size=16),
}
_SCORE = flags.DEFINE_multi_enum(
    "score", list(_SCORES), list(_SCORES), "What is measured beside the dense step; repeatable."
)


def with_loss(tx: optax.GradientTransformation, batch: int) -> optax.GradientTransformation:
    """Gives an optimizer the loss of `training_step`, as `obj_fn`.

    Args:
      tx: an optimizer that takes `obj_fn`.
      batch: images in a batch, 32x32x3 of noise from a fixed seed.

    Returns:
      An optimizer that needs no more than the gradients and the parameters.
    """
    model = ResNet8(num_classes=10)
    images = jax.random.normal(jax.random.key(0), (batch, 32, 32, 3))
    labels = jax.random.randint(jax.random.key(1), (batch,), 0, 10)
    stats = jax.jit(model.init)(jax.random.key(2), images)["batch_stats"]

    def loss_of(params: Any) -> jax.Array:
        logits, _ = model.apply(
            {"params": params, "batch_stats": stats}, images, train=True, mutable=["batch_stats"]
        )
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return tx.update(gradients, state, params, obj_fn=loss_of)

    return optax.GradientTransformation(tx.init, update)


def measure(
    names: Sequence[str], *, batch: int, rounds: int, clock: timing.Clock
) -> dict[str, Any]:
    """Times dense and pruned steps side by side.

    Args:
      names: of the scores to measure.
      batch: images in a batch.
      rounds: times each step is measured.
      clock: what is measured.

    Returns:
      The timings by program.
    """

    def optimizer() -> optax.GradientTransformation:
        return optax.sgd(0.01, momentum=0.9)

    def scored(score: pruning.Score) -> Callable[[], jax.Array]:
        tx = pruning.prune(optimizer(), schedule=pruning.one_shot(0.8), score=score)
        return training_step(with_loss(tx, batch) if score.extra else tx, batch)

    programs = {name: training_step(optimizer(), batch) for name in ("dense", "dense again")}
    programs.update({name: scored(_SCORES[name]) for name in names})
    timings = timing.interleaved(programs, rounds=rounds, clock=clock)
    return {"timings": timings, "clock": clock.value}


def main(argv: Sequence[str]) -> None:
    """Measures and prints."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    batch, rounds = options.BATCH.value or 128, options.ROUNDS.value or 20
    clock = options.CLOCK.value
    result = measure(_SCORE.value, batch=batch, rounds=rounds, clock=clock)
    if options.JSON.value:
        print(timing.document(result))
        return
    print(f"ResNet-8, batch {batch}, {rounds} rounds, {clock.value} time")
    print(timing.table(result["timings"]))


if __name__ == "__main__":
    app.run(main)
