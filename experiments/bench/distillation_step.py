"""What a teacher costs: a distillation step over the student's own step and the teacher's forward.

    python -m experiments.bench.distillation_step

ResNet-8 teaches itself at a quarter of the width, with its logits, and with attention maps of its
three blocks beside them. Takes about two minutes on 2 CPU cores. The goal is at most the student's
step and 1.05 times the teacher's forward pass.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import app, flags

import compressjax as cj
from compressjax import graph as graphs
from compressjax import training
from compressjax.models import ResNet8
from experiments.bench import options, timing

_WIDTH = flags.DEFINE_float("student_width", 0.25, "Of the teacher's channels.", 0.0, 1.0)
_BLOCKS = ("relu_2", "relu_4", "relu_6")


def programs(batch: int, width: float) -> dict[str, Callable[[], Any]]:
    """Makes what is timed; each training step carries its own state.

    Args:
      batch: images in a batch, 32x32x3 of noise from a fixed seed.
      width: of the student, as a part of the teacher's.

    Returns:
      Programs by name.
    """
    images = jax.random.normal(jax.random.key(0), (batch, 32, 32, 3))
    labels = jax.random.randint(jax.random.key(1), (batch,), 0, 10)
    teacher, student = ResNet8(num_classes=10), ResNet8(num_classes=10, multiplier=width)
    variables = jax.jit(teacher.init)(jax.random.key(2), images)
    start = jax.jit(student.init)(jax.random.key(3), images)

    def train(variables: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        return student.apply(variables, x, train=True, mutable=["batch_stats"])

    looking = graphs.capturing(train, _BLOCKS)
    teaching = graphs.capturing(teacher.apply, _BLOCKS)

    def forward(variables: Any, x: jax.Array, rng: jax.Array) -> tuple[jax.Array, Any]:
        logits, statistics = train(variables, x)
        return logits, {**variables, **statistics}

    def with_maps(variables: Any, x: jax.Array, rng: jax.Array) -> tuple[Any, Any]:
        (logits, statistics), maps = looking(variables, x)
        return (logits, maps), {**variables, **statistics}

    def attention(of_student: Any, of_teacher: Any, labels: jax.Array) -> jax.Array:
        (logits, maps), (target, targets) = of_student, of_teacher
        losses = [cj.distill.attention_transfer(maps[at], targets[at]) for at in _BLOCKS]
        return cj.distill.hinton(logits, target, labels) + 1e3 * sum(losses)

    losses = {
        "student": training.supervised(forward),
        "distilled": training.distilled(
            forward, lambda x: teacher.apply(variables, x), cj.distill.hinton
        ),
        "distilled, with maps": training.distilled(
            with_maps,
            lambda x: teaching(variables, x),
            attention,
            logits=lambda outputs: outputs[0],
        ),
    }
    answer = jax.jit(teacher.apply)
    return {
        **{name: _step(loss_fn, start, images, labels) for name, loss_fn in losses.items()},
        "teacher": lambda: answer(variables, images),
    }


def _step(loss_fn: Any, variables: Any, x: jax.Array, labels: jax.Array) -> Callable[[], Any]:
    tx = optax.sgd(0.01, momentum=0.9)

    def step(carry: Any, x: jax.Array, labels: jax.Array) -> tuple[Any, jax.Array]:
        variables, state = carry

        def of_params(params: Any) -> tuple[jax.Array, Any]:
            return loss_fn({**variables, "params": params}, x, labels, None)

        gradient = jax.value_and_grad(of_params, has_aux=True)
        (loss, (changed, _)), gradients = gradient(variables["params"])
        updates, state = tx.update(gradients, state, variables["params"])
        params = optax.apply_updates(variables["params"], updates)
        return ({**changed, "params": params}, state), loss

    compiled = jax.jit(step, donate_argnums=0)
    carry = (jax.tree.map(jnp.copy, variables), tx.init(variables["params"]))

    def program() -> jax.Array:
        nonlocal carry
        carry, loss = compiled(carry, x, labels)
        return loss

    return program


def measure(*, batch: int, width: float, rounds: int, clock: timing.Clock) -> dict[str, Any]:
    """Times the steps and the teacher side by side.

    Args:
      batch: images in a batch.
      width: of the student, as a part of the teacher's.
      rounds: times each is measured.
      clock: what is measured.

    Returns:
      The timings by program, and for each kind of distillation its median over the sum of the
      student's and 1.05 times the teacher's.
    """
    timings = timing.interleaved(programs(batch, width), rounds=rounds, clock=clock)
    budget = timings["student"].median + 1.05 * timings["teacher"].median
    kinds = [name for name in timings if name.startswith("distilled")]
    return {"timings": timings, "over": {name: timings[name].median / budget for name in kinds}}


def main(argv: Sequence[str]) -> None:
    """Measures and prints."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    batch, rounds = options.BATCH.value or 128, options.ROUNDS.value or 40
    clock = options.CLOCK.value
    result = measure(batch=batch, width=_WIDTH.value, rounds=rounds, clock=clock)
    if options.JSON.value:
        print(timing.document(result))
        return
    print(f"ResNet-8, batch {batch}, student x{_WIDTH.value}, {rounds} rounds, {clock.value} time")
    print(timing.table(result["timings"]))
    for name, over in result["over"].items():
        print(f"{name}: {over:.3f} of the student's step and 1.05 times the teacher; goal 1")


if __name__ == "__main__":
    app.run(main)
