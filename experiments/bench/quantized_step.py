"""What quantization-aware training costs: a step on the lattice over the float step, for ResNet-8.

    python -m experiments.bench.quantized_step

takes some minutes on 2 CPU cores with the default 30 rounds. All steps train the same folded
network; the goal is a ratio of at most 1.15 with ranges observed and 1.10 with ranges kept, and
twice the time to compile. Where qwix is installed (the extra `bench`), its on-device quantization
is measured beside it.
"""

import importlib.util
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from absl import app, flags

import compressjax as cj
from compressjax.models import ResNet8
from experiments.bench import options, timing

_COMPILES = flags.DEFINE_integer("compiles", 3, "Times each step is compiled.", lower_bound=1)

Forward = Callable[[Any, jax.Array], tuple[jax.Array, Any]]
Step = Callable[[], Callable[[], jax.Array]]


class FoldedResNet8(nn.Module):
    """`ResNet8` with its batch norms folded, for tools that take modules and no functions.

    Its variables are those that `fold_batch_norm` makes of the other's.
    """

    num_classes: int
    widths: Sequence[int] = (16, 32, 64)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns logits `[B, num_classes]` of `x: [B, H, W, C]`."""
        x = nn.relu(nn.Conv(self.widths[0], (3, 3))(x))
        for block, width in enumerate(self.widths):
            stride = 1 if block == 0 else 2
            y = nn.relu(nn.Conv(width, (3, 3), (stride, stride))(x))
            y = nn.Conv(width, (3, 3))(y)
            if block > 0:
                x = nn.Conv(width, (1, 1), (stride, stride))(x)
            x = nn.relu(x + y)
        return nn.Dense(self.num_classes)(x.mean(axis=(1, 2)))


def qwix_steps(variables: Any, images: jax.Array) -> dict[str, tuple[Forward, Any]]:
    """Makes the forward passes of qwix's on-device quantization-aware training.

    Args:
      variables: of `FoldedResNet8`.
      images: float32 [B, H, W, C].

    Returns:
      A forward pass and where it starts, by name; nothing where qwix is not installed.
    """
    if importlib.util.find_spec("qwix") is None:
        return {}
    import qwix

    rule = qwix.QuantizationRule(module_path=".*", weight_qtype=jnp.int8, act_qtype=jnp.int8)
    model = qwix.quantize_model(FoldedResNet8(num_classes=10), qwix.OdmlQatProvider([rule]))
    start = {**model.init(jax.random.key(0), images[:1]), **variables}

    def observed(variables: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        logits, changed = model.apply(variables, x, mutable=["quant_stats"])
        return logits, {**variables, **changed}

    _, start = jax.jit(observed)(start, images)
    return {
        "qwix, ranges kept": (lambda v, x: (model.apply(v, x), v), start),
        "qwix, ranges observed": (observed, start),
    }


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


def compile_seconds(
    steps: Mapping[str, Step], *, compiles: int, clock: timing.Clock
) -> dict[str, float]:
    """Times the first call of freshly made steps, in turns: tracing, compiling and one step.

    Args:
      steps: each makes a program that was never called.
      compiles: how often.
      clock: what is measured.

    Returns:
      The median of each, in seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(compiles):
        for name, make in steps.items():
            program = make()
            started = clock.now()
            jax.block_until_ready(program())
            seconds[name].append(clock.now() - started)
    return {name: statistics.median(found) for name, found in seconds.items()}


def measure(*, batch: int, rounds: int, compiles: int, clock: timing.Clock) -> dict[str, Any]:
    """Times float and quantized steps side by side.

    Args:
      batch: images in a batch, 32x32x3 of noise from a fixed seed.
      rounds: times each step is measured.
      compiles: times each step is compiled.
      clock: what is measured.

    Returns:
      The timing of each step, and of each its first call's seconds.
    """
    images = jax.random.normal(jax.random.key(0), (batch, 32, 32, 3))
    labels = jax.random.randint(jax.random.key(1), (batch,), 0, 10)
    model = ResNet8(num_classes=10)
    fn, variables = cj.fold_batch_norm(
        model.apply, jax.jit(model.init)(jax.random.key(2), images), images
    )

    def quantized() -> dict[str, tuple[Forward, Any]]:
        q = cj.quantize(fn, cj.quant.int8())  # anew, because it remembers what it traced
        return {
            "quantized, ranges kept": (lambda v, x: (q.apply(v, x), v), qv),
            "quantized, ranges observed": (q.observe, qv),
        }

    qv = cj.quantize(fn, cj.quant.int8()).calibrate(variables, [images])
    plain = (lambda v, x: (fn(v, x), v), variables)
    peers = qwix_steps(variables, images)
    steps: dict[str, Step] = {
        "float": lambda: training_step(*plain, images, labels),
        "float again": lambda: training_step(*plain, images, labels),
        **{
            name: lambda name=name: training_step(*quantized()[name], images, labels)
            for name in quantized()
        },
        **{name: lambda name=name: training_step(*peers[name], images, labels) for name in peers},
    }
    compiling = compile_seconds(steps, compiles=compiles, clock=clock)
    timings = timing.interleaved(
        {name: make() for name, make in steps.items()}, rounds=rounds, clock=clock
    )
    return {"timings": timings, "compile_seconds": compiling}


def main(argv: Sequence[str]) -> None:
    """Measures and prints."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    batch = options.BATCH.value or 128
    rounds = options.ROUNDS.value or 30
    clock = options.CLOCK.value
    result = measure(
        batch=batch,
        rounds=rounds,
        compiles=_COMPILES.value,
        clock=clock,
    )
    if options.JSON.value:
        print(timing.document(result))
        return
    print(f"ResNet-8, batch {batch}, {rounds} rounds, {clock.value} time")
    print(timing.table(result["timings"]))
    print(f"first call, with tracing and compiling ({_COMPILES.value} times)")
    compiling = result["compile_seconds"]
    for name, seconds in compiling.items():
        print(f"{name:<28} {seconds:>6.2f} s {seconds / compiling['float']:>9.3f}")
    if not any(name.startswith("qwix") for name in result["timings"]):
        print("qwix is not installed: pip install qwix, or the extra `bench`, to compare with it")


if __name__ == "__main__":
    app.run(main)
