"""What a calibrated int8 file costs to make, over TFLite's converter on the same function.

    python -m experiments.bench.conversion

MobileNetV2 x1.2 with 1000 classes (4.7 million parameters) at 224x224 and 100 images of noise, from
a float function to a finished file: tracing and compiling count each time. Takes some minutes on 2
CPU cores. Goals: calibrating and exporting take at most as long as the converter's calibrated
conversion, the export alone at most half as long; a float file through litert-converter takes at
most half as long as through jax2tf.
"""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags

import compressjax as cj
from compressjax.export import litert, provisional, rewrite
from compressjax.models import MobileNetV2
from experiments import networks
from experiments.bench import options, parity, peers, timing

_MULTIPLIER = flags.DEFINE_float("multiplier", 1.2, "Width of the network.", 0.01)
_SIZE = flags.DEFINE_integer("size", 224, "Height and width of an image.", lower_bound=1)


def network(multiplier: float, size: int) -> tuple[networks.Apply, Any, int]:
    """Builds the network with drawn weights, batch norm folded.

    Args:
      multiplier: of its width.
      size: height and width of an image.

    Returns:
      The function, its variables and the number of its parameters.
    """
    model = MobileNetV2(num_classes=1000, multiplier=multiplier)
    x = jnp.zeros((1, size, size, 3))
    variables = parity.draw(jax.eval_shape(model.init, jax.random.key(0), x), seed=0)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return *cj.fold_batch_norm(model.apply, variables, x), count


def calibrated(apply: networks.Apply, variables: Any, images: jax.Array, batch: int) -> Any:
    """Quantizes and calibrates, everything from the start.

    Args:
      apply: the float function.
      variables: its variables.
      images: to calibrate with.
      batch: of them, how many at once.

    Returns:
      The quantized function and its variables.
    """
    q = cj.quantize(apply, cj.quant.int8())
    shown = [images[i : i + batch] for i in range(0, images.shape[0], batch)]
    return q, q.calibrate(variables, shown, observer=cj.quant.min_max())


def parts(q: Any, qv: Any, x: jax.Array, clock: timing.Clock) -> dict[str, float]:
    """Says where the time of an export goes.

    Args:
      q: the quantized function.
      qv: its calibrated variables.
      x: one image.
      clock: what is measured.

    Returns:
      Seconds of each part, one after another.
    """
    seconds = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        started = clock.now()
        value = call()
        seconds[name] = clock.now() - started
        return value

    plan = timed("freeze", lambda: q.freeze(qv, x))
    labelled = timed("label", lambda: provisional.label(plan))
    raw = timed("converter", lambda: litert.convert_plan(labelled))
    timed("rewrite", lambda: rewrite.rewrite(raw, plan, labelled, int8_io=False))
    return seconds


def measure(
    *, multiplier: float, size: int, images: int, batch: int, rounds: int, clock: timing.Clock
) -> dict[str, Any]:
    """Times the ways to an int8 file side by side.

    Args:
      multiplier: width of the network.
      size: height and width of an image.
      images: how many to calibrate with.
      batch: of them, how many at once.
      rounds: times each program is measured.
      clock: what is measured.

    Returns:
      The timings of the programs that quantize and of those that do not, the parts of an export,
      and the number of parameters.
    """
    apply, variables, count = network(multiplier, size)
    x = jax.random.normal(jax.random.key(0), (images, size, size, 3))
    q, qv = calibrated(apply, variables, x, batch)

    def whole() -> bytes:
        return cj.export.tflite(*calibrated(apply, variables, x, batch), x[:1], via="litert")

    timings = timing.interleaved(
        {
            "TFLite converter": lambda: peers.tflite_converter(apply, variables, x),
            "calibrate, export": whole,
            "calibrate": lambda: calibrated(apply, variables, x, batch),
            "export": lambda: cj.export.tflite(q, qv, x[:1], via="litert"),
        },
        rounds=rounds,
        warmup=1,
        clock=clock,
    )
    floats = timing.interleaved(
        {
            "float, via jax2tf": lambda: cj.export.tflite(apply, variables, x[:1], via="jax2tf"),
            "float, via litert": lambda: cj.export.tflite(apply, variables, x[:1], via="litert"),
        },
        rounds=rounds,
        warmup=1,
        clock=clock,
    )
    return {
        "timings": timings,
        "floats": floats,
        "parts": parts(q, qv, x[:1], clock),
        "parameters": count,
    }


def main(argv: Sequence[str]) -> None:
    """Measures and prints."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    images = options.IMAGES.value or 100
    batch = options.BATCH.value or 10
    rounds = options.ROUNDS.value or 3
    clock = options.CLOCK.value
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when TensorFlow is imported
    started = time.monotonic()
    result = measure(
        multiplier=_MULTIPLIER.value,
        size=_SIZE.value,
        images=images,
        batch=batch,
        rounds=rounds,
        clock=clock,
    )
    if options.JSON.value:
        print(timing.document(result))
        return
    print(
        f"MobileNetV2 x{_MULTIPLIER.value}, {result['parameters']:,} parameters, {images} "
        f"images of {_SIZE.value}x{_SIZE.value}, {rounds} rounds, {clock.value} time"
    )
    print(timing.table(result["timings"]))
    print(timing.table(result["floats"]))
    found = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in result["parts"].items())
    print(f"an export: {found}; all took {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    app.run(main)
