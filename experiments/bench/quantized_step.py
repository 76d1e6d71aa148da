"""What quantization-aware training costs: a step on the lattice over the float step, for ResNet-8.

    python -m experiments.bench.quantized_step

takes about two minutes on 2 CPU cores with the default 30 rounds. Both steps train the same folded
network; the goal is a ratio of at most 1.15 with ranges observed and 1.10 with ranges kept.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import app, flags

import compressjax as cj
from compressjax.models import ResNet8
from experiments.bench import timing

_BATCH = flags.DEFINE_integer("batch", 128, "Images in a batch.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 30, "Times each step is measured.", lower_bound=2)
_CLOCK = flags.DEFINE_enum_class(
    "clock",
    timing.Clock.WALL,
    timing.Clock,
    "What is measured. Processor seconds are steadier on a machine that others use.",
)
_JSON = flags.DEFINE_bool("json", False, "Print JSON with the hardware and versions.")

Forward = Callable[[Any, jax.Array], tuple[jax.Array, Any]]


def training_step(
    forward: Forward, variables: Any, images: jax.Array, labels: jax.Array
) -> Callable[[], jax.Array]:
    """Makes a training step that carries its own state.

    Args:
      forward: `forward(variables, images) -> (logits, variables)`.
      variables: where training starts.
      images: float32 [B, H, W, C].
      labels: int32 [B].

    Returns:
      A program that makes one step, jitted with its state donated, and returns the loss.
    """
    tx = optax.sgd(1e-4, momentum=0.9)

    def loss_of(params: Any, variables: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        logits, new = forward({**variables, "params": params}, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), new

    def step(carry: Any, images: jax.Array) -> tuple[Any, jax.Array]:
        variables, opt_state = carry
        gradient = jax.value_and_grad(loss_of, has_aux=True)
        (loss, new), gradients = gradient(variables["params"], variables, images)
        updates, opt_state = tx.update(gradients, opt_state)
        params = optax.apply_updates(variables["params"], updates)
        return ({**new, "params": params}, opt_state), loss

    compiled = jax.jit(step, donate_argnums=0)
    carry = jax.tree.map(jnp.copy, (variables, tx.init(variables["params"])))

    def program() -> jax.Array:
        nonlocal carry
        carry, loss = compiled(carry, images)
        return loss

    return program


def measure(*, batch: int, rounds: int, clock: timing.Clock) -> dict[str, timing.Timing]:
    """Times float and quantized steps side by side.

    Args:
      batch: images in a batch, 32x32x3 of noise from a fixed seed.
      rounds: times each step is measured.
      clock: what is measured.

    Returns:
      The timing of each program.
    """
    images = jax.random.normal(jax.random.key(0), (batch, 32, 32, 3))
    labels = jax.random.randint(jax.random.key(1), (batch,), 0, 10)
    model = ResNet8(num_classes=10)
    fn, variables = cj.fold_batch_norm(
        model.apply, jax.jit(model.init)(jax.random.key(2), images), images
    )
    q = cj.quantize(fn, cj.quant.int8())
    qv = q.calibrate(variables, [images])
    programs = {
        "float": (lambda v, x: (fn(v, x), v), variables),
        "float again": (lambda v, x: (fn(v, x), v), variables),
        "quantized, ranges kept": (lambda v, x: (q.apply(v, x), v), qv),
        "quantized, ranges observed": (q.observe, qv),
    }
    return timing.interleaved(
        {name: training_step(*program, images, labels) for name, program in programs.items()},
        rounds=rounds,
        clock=clock,
    )


def main(argv: Sequence[str]) -> None:
    """Measures and prints."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    timings = measure(batch=_BATCH.value, rounds=_ROUNDS.value, clock=_CLOCK.value)
    if _JSON.value:
        found = {name: dataclasses.asdict(t) for name, t in timings.items()}
        print(json.dumps({"timings": found, "environment": timing.environment()}, indent=2))
        return
    print(f"ResNet-8, batch {_BATCH.value}, {_ROUNDS.value} rounds, {_CLOCK.value.value} time")
    print(timing.table(timings))


if __name__ == "__main__":
    app.run(main)
