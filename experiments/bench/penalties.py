"""What sparsifying training costs: a step with a penalty on channels over the plain one, ResNet-8.

    python -m experiments.bench.penalties

takes about three minutes on 2 CPU cores with the default 40 rounds. The goal is a ratio of at most
1.03. The optimizer's update is also timed alone, since what a penalty adds to it is less than what
a whole step varies by on a busy machine.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import app

from compressjax import slimming
from compressjax.models import ResNet8
from experiments.bench import options, timing
from experiments.bench.pruned_step import training_step

RATE = 0.01


def update(tx: optax.GradientTransformation) -> Callable[[], Any]:
    """Makes the update of an optimizer of ResNet-8, without gradients to compute.

    Args:
      tx: the optimizer.

    Returns:
      A program that makes one update of the same weights.
    """
    model = ResNet8(num_classes=10)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    params = variables["params"]
    state = tx.init(params)

    def step(gradients: Any, state: Any, params: Any) -> Any:
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step)
    return lambda: compiled(params, state, params)


def chains() -> dict[str, optax.GradientTransformation]:
    """Makes SGD with each penalty, at strengths that move with the step.

    Returns:
      The optimizers by name; the first two are SGD alone.
    """
    model = ResNet8(num_classes=10)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    groups = slimming.find_groups(model.apply, variables, images)
    kept = {group.name: range(group.size // 2) for group in groups}
    strength = optax.linear_schedule(0.0, 1e-4, 1000)
    sgd = optax.sgd(RATE, momentum=0.9)
    return {
        "plain": sgd,
        "plain again": sgd,
        "network slimming": optax.chain(slimming.network_slimming(strength), sgd),
        "proximal slimming": optax.chain(sgd, slimming.proximal_slimming(strength, RATE)),
        "group lasso": optax.chain(slimming.group_lasso(groups, strength), sgd),
        "proximal group lasso": optax.chain(
            sgd, slimming.proximal_group_lasso(groups, strength, RATE)
        ),
        "growing decay": optax.chain(
            slimming.growing(groups, kept, slimming.staircase(1e-4, every=10), ordinary=1e-4), sgd
        ),
        "importance-weighted decay": optax.chain(
            slimming.importance_weighted(groups, strength), sgd
        ),
    }


def measure(*, batch: int, rounds: int, clock: timing.Clock) -> dict[str, Any]:
    """Times steps with and without penalties side by side.

    Args:
      batch: images in a batch.
      rounds: times each step is measured.
      clock: what is measured.

    Returns:
      The timings by program, of whole steps and of updates alone, and for each program what it adds
      to the update as a part of the plain step.
    """
    optimizers = chains()
    steps = {name: training_step(tx, batch) for name, tx in optimizers.items()}
    updates = {name: update(tx) for name, tx in optimizers.items()}
    timings = timing.interleaved(steps, rounds=rounds, clock=clock)
    alone = timing.interleaved(updates, rounds=10 * rounds, clock=clock)
    plain = next(iter(timings))
    return {
        "timings": timings,
        "alone": alone,
        "added": {
            name: (found.median - alone[plain].median) / timings[plain].median
            for name, found in alone.items()
        },
        "clock": clock.value,
    }


def main(argv: Sequence[str]) -> None:
    """Measures and prints."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    batch = options.BATCH.value or 128
    rounds = options.ROUNDS.value or 40
    result = measure(batch=batch, rounds=rounds, clock=options.CLOCK.value)
    if options.JSON.value:
        print(timing.document(result))
        return
    print(f"ResNet-8, batch {batch}, {rounds} rounds, {result['clock']} time")
    print(timing.table(result["timings"]))
    print(f"the update alone, {10 * rounds} rounds")
    print(timing.table(result["alone"]))
    for name, part in result["added"].items():
        print(f"{name} adds {100 * part:.2f} % of the plain step")


if __name__ == "__main__":
    app.run(main)
