"""What pruning costs: a pruned training step over the dense one, for ResNet-8.

    python -m experiments.bench.pruned_step

takes about three minutes on 2 CPU cores with the default 40 rounds. The goal is a ratio of at most
1.02, also amortised: one step that computes masks anew in every `--every` steps.
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
      The timings by program, and the ratios amortised over `every` steps.
    """

    once = pruning.one_shot(sparsity)
    always = pruning.constant(sparsity, every=1)

    def pruned(
        schedule: pruning.Schedule,
        regrow: pruning.Regrow | None = None,
        latent: pruning.Latent | None = None,
    ) -> Callable[[], jax.Array]:
        tx = pruning.prune(optimizer(), schedule=schedule, regrow=regrow, latent=latent)
        return training_step(tx, batch)

    def optimizer() -> optax.GradientTransformation:
        return optax.sgd(0.01, momentum=0.9)

    timings = timing.interleaved(
        {
            "dense": training_step(optimizer(), batch),
            "dense again": training_step(optimizer(), batch),
            "pruned": pruned(once),
            "pruned, new masks": pruned(always),
            "RigL": pruned(once, regrow=pruning.rigl()),
            "RigL, new masks": pruned(always, regrow=pruning.rigl()),
            "straight-through": pruned(once, latent=pruning.straight_through()),
            "straight-through, new masks": pruned(always, latent=pruning.straight_through()),
        },
        rounds=rounds,
        clock=clock,
    )

    def amortised(name: str) -> float:
        between, renewing = timings[name].ratio, timings[f"{name}, new masks"].ratio
        return between + (renewing - between) / every

    return {
        "timings": timings,
        "clock": clock.value,
        "every": every,
        "amortised": {name: amortised(name) for name in ("pruned", "RigL", "straight-through")},
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
    for name, ratio in result["amortised"].items():
        print(f"{name}, amortised over {result['every']} steps: {ratio:.3f}")


if __name__ == "__main__":
    app.run(main)
