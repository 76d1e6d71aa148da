"""What pruning costs: a pruned training step over the dense one, for ResNet-8.

    python -m experiments.bench.pruned_step

takes about a minute on 2 CPU cores with the default 40 rounds. The goal is a ratio of at most 1.02,
also amortised: one step that computes masks anew in every `--every` steps.
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

_EVERY = flags.DEFINE_integer("every", 50, "Steps between two mask updates.", lower_bound=1)
_SPARSITY = flags.DEFINE_float("sparsity", 0.8, "Fraction of weights that are pruned.", 0.0, 0.999)


def training_step(tx: optax.GradientTransformation, batch: int) -> Callable[[], jax.Array]:
    """Makes a training step of ResNet-8 that carries its own state.

    Args:
      tx: the optimizer.
      batch: images in a batch, 32x32x3 of noise from a fixed seed.

    Returns:
      A program that makes one step, jitted with its state donated, and returns the loss.
    """
    model = ResNet8(num_classes=10)
    images = jax.random.normal(jax.random.key(0), (batch, 32, 32, 3))
    labels = jax.random.randint(jax.random.key(1), (batch,), 0, 10)
    variables = jax.jit(model.init)(jax.random.key(2), images)

    def loss_of(
        params: Any, stats: Any, images: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, Any]:
        logits, changed = model.apply(
            {"params": params, "batch_stats": stats}, images, train=True, mutable=["batch_stats"]
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(losses), changed["batch_stats"]

    def step(carry: Any, images: jax.Array, labels: jax.Array) -> tuple[Any, jax.Array]:
        params, stats, opt_state = carry
        gradient = jax.value_and_grad(loss_of, has_aux=True)
        (loss, stats), gradients = gradient(params, stats, images, labels)
        updates, opt_state = tx.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), stats, opt_state), loss

    compiled = jax.jit(step, donate_argnums=0)
    carry = (variables["params"], variables["batch_stats"], tx.init(variables["params"]))

    def program() -> jax.Array:
        nonlocal carry
        carry, loss = compiled(carry, images, labels)
        return loss

    return program


def measure(
    *, batch: int, rounds: int, every: int, sparsity: float, clock: timing.Clock
) -> dict[str, Any]:
    """Times dense, pruned and mask-updating steps side by side.

    Args:
      batch: images in a batch.
      rounds: times each step is measured.
      every: steps between two mask updates, for the amortised ratio.
      sparsity: fraction of weights pruned.
      clock: what is measured.

    Returns:
      The timings by program, and the ratio amortised over `every` steps.
    """

    def pruned(schedule: pruning.Schedule) -> Callable[[], jax.Array]:
        return training_step(pruning.prune(optimizer(), schedule=schedule), batch)

    def optimizer() -> optax.GradientTransformation:
        return optax.sgd(0.01, momentum=0.9)

    timings = timing.interleaved(
        {
            "dense": training_step(optimizer(), batch),
            "dense again": training_step(optimizer(), batch),
            "pruned": pruned(pruning.one_shot(sparsity)),
            "pruned, new masks": pruned(pruning.constant(sparsity, every=1)),
        },
        rounds=rounds,
        clock=clock,
    )
    between, renewing = timings["pruned"].ratio, timings["pruned, new masks"].ratio
    return {
        "timings": timings,
        "clock": clock.value,
        "every": every,
        "amortised_ratio": between + (renewing - between) / every,
    }


def main(argv: Sequence[str]) -> None:
    """Measures and prints."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    batch = options.BATCH.value or 128
    rounds = options.ROUNDS.value or 40
    clock = options.CLOCK.value
    result = measure(
        batch=batch,
        rounds=rounds,
        every=_EVERY.value,
        sparsity=_SPARSITY.value,
        clock=clock,
    )
    if options.JSON.value:
        print(timing.document(result))
        return
    print(
        f"ResNet-8, batch {batch}, sparsity {_SPARSITY.value}, {rounds} rounds, {clock.value} time"
    )
    print(timing.table(result["timings"]))
    print(f"amortised over {result['every']} steps: {result['amortised_ratio']:.3f}")


if __name__ == "__main__":
    app.run(main)
