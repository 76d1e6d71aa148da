"""Int8 without training: what each method loses, beside what other tools lose on the same network.

    python -m experiments.bench.post_training --config=experiments/configs/cifar10.py \\
        --workdir=runs/cifar10

loads the first stage of the config, or trains it, folds batch norm, calibrates every method on the
same images of the training split, without their labels, and counts right answers on the test split.
The files of other tools run in LiteRT; so does the file of `auto`, whose answers must be those of
`q.apply`. Goals: `auto` loses at most 0.1 points and is not below the other tools; with one scale a
kernel, equalization and bias correction recover 90 % of what min-max loses; 4-bit weights with
AdaRound lose at most a point.
"""

import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import compressjax as cj
from compressjax.quant import correction, recipe
from experiments import run
from experiments.bench import options, peers, timing, trained

_STEPS = flags.DEFINE_integer("steps", 1000, "Steps of AdaRound for each layer.", lower_bound=1)
_PARTS = flags.DEFINE_list(
    "parts", ["int8", "peers", "per_tensor", "four_bits"], "What to measure."
)


class Row(NamedTuple):
    """One way of quantizing.

    Attributes:
      part: which comparison it belongs to.
      method: its name.
      correct: right answers; -1 where the method refused the network.
      total: answers.
      seconds: that quantizing took, with compiling.
      note: what `auto` chose, or why a method refused.
    """

    part: str
    method: str
    correct: int
    total: int
    seconds: float
    note: str = ""


class Bench(NamedTuple):
    """A float network, the images that all methods see, and the test images.

    Attributes:
      network: the float network.
      shown: batches to calibrate with.
      tested: prepared test images, in batches.
      labels: of the test images.
      steps: of AdaRound for each layer.
    """

    network: trained.Trained
    shown: list[jax.Array]
    tested: list[jax.Array]
    labels: np.ndarray
    steps: int

    def correct(self, logits: Callable[[jax.Array], Any]) -> int:
        """Counts right answers of `logits(x)` on the test images."""
        found = [np.asarray(logits(x)).argmax(-1) for x in self.tested]
        return int((np.concatenate(found) == self.labels).sum())


Make = Callable[[], tuple[Any, str]]


def measured(bench: Bench, part: str, method: str, make: Make, logits: Any) -> Row:
    """Quantizes and counts.

    Args:
      bench: what to count on.
      part: for the row.
      method: for the row.
      make: gives what `logits` takes first, and a note.
      logits: `logits(made, x)`.

    Returns:
      The row; a method that raises ValueError gets -1 and its message.
    """
    started = time.monotonic()
    try:
        made, note = make()
    except ValueError as refused:
        return Row(part, method, -1, len(bench.labels), 0.0, str(refused))
    seconds = time.monotonic() - started
    correct = bench.correct(lambda x: logits(made, x))
    return Row(part, method, correct, len(bench.labels), seconds, note)


def int8(bench: Bench) -> Iterator[Row]:
    """Every observer, corrections after one of them, and `auto`; int8 per channel."""
    apply, variables = bench.network.apply, bench.network.variables
    q = cj.quantize(apply, cj.quant.int8())
    logits = jax.jit(q.apply)
    for name, observer in recipe.usual_observers().items():
        yield measured(
            bench,
            "int8",
            name,
            lambda o=observer: (q.calibrate(variables, bench.shown, observer=o), ""),
            logits,
        )
    for name, steps in (("auto", 0), ("auto, with adaround", bench.steps)):
        chosen: list[dict[str, Any]] = []
        yield measured(bench, "int8", name, functools.partial(_auto, bench, steps, chosen), logits)
        if chosen:
            yield measured(
                bench,
                "int8",
                "its file in LiteRT",
                functools.partial(_file, q, chosen[0], bench.shown[0][:1]),
                _litert,
            )


def _auto(bench: Bench, steps: int, chosen: list[dict[str, Any]]) -> tuple[Any, str]:
    apply, variables = bench.network.apply, bench.network.variables
    found = recipe.auto(apply, variables, bench.shown, rounding_steps=steps)
    chosen.append(found.qv)
    return found.qv, found.chosen.name


def _file(q: Any, qv: Any, x: jax.Array) -> tuple[bytes, str]:
    return cj.export.tflite(q, qv, x, via="litert"), ""


def _litert(model: bytes, x: jax.Array) -> Any:
    return cj.export.run(model, np.asarray(x))


def others(bench: Bench) -> Iterator[Row]:
    """Other tools' int8, in LiteRT."""
    images = jnp.concatenate(bench.shown)
    for name, convert in (
        ("TFLite converter", peers.tflite_converter),
        ("litert-quantizer", peers.litert_quantizer),
    ):
        yield measured(
            bench,
            "peers",
            name,
            lambda c=convert: (c(bench.network.apply, bench.network.variables, images), ""),
            _litert,
        )


def per_tensor(bench: Bench) -> Iterator[Row]:
    """One scale a kernel: min-max, and with equalization and bias correction."""
    apply, variables = bench.network.apply, bench.network.variables
    q = cj.quantize(apply, cj.quant.int8(per_channel=False))
    logits = jax.jit(q.apply)

    def naive(variables: Any) -> Any:
        return q.calibrate(variables, bench.shown, observer=cj.quant.min_max())

    def equalized() -> Any:
        return correction.equalize(apply, variables, bench.shown[0], batches=bench.shown)[1]

    def absorbed() -> Any:
        return correction.absorb_bias(apply, equalized(), bench.shown, padded=True)

    def corrected(level: Any) -> Any:
        return correction.correct_bias(q, naive(level), bench.shown)

    for name, make in {
        "min-max": lambda: naive(variables),
        "+ equalize": lambda: naive(equalized()),
        "+ bias": lambda: corrected(variables),
        "+ equalize + bias": lambda: corrected(equalized()),
        "+ equalize + absorb + bias": lambda: corrected(absorbed()),
    }.items():
        yield measured(bench, "per_tensor", name, lambda make=make: (make(), ""), logits)


def four_bits(bench: Bench) -> Iterator[Row]:
    """4-bit weights per channel, 8-bit activations: nearest, and with AdaRound."""
    q = cj.quantize(bench.network.apply, cj.quant.uniform(weights=4, activations=8))
    logits = jax.jit(q.apply)
    qv = q.calibrate(bench.network.variables, bench.shown, observer=cj.quant.mse())

    def rounded() -> Any:
        rng = jax.random.key(0)
        return correction.adaround(q, qv, bench.shown, steps=bench.steps, rng=rng)

    for name, make in {
        "nearest": lambda: qv,
        "nearest + bias": lambda: correction.correct_bias(q, qv, bench.shown),
        "adaround": rounded,
        "adaround + bias": lambda: correction.correct_bias(
            q, rounded(), bench.shown, reference=bench.network.variables
        ),
    }.items():
        yield measured(bench, "four_bits", name, lambda make=make: (make(), ""), logits)


PARTS = {"int8": int8, "peers": others, "per_tensor": per_tensor, "four_bits": four_bits}


def line(row: Row, float_correct: int) -> str:
    """Formats a row for a terminal.

    Args:
      row: what was found.
      float_correct: right answers of the float network.

    Returns:
      One line.

    Example:
      >>> line(Row('int8', 'mse', 7449, 10000, 2.0), 7450)
      'int8        mse                          74.49 %   -0.01       2.0 s  '
    """
    if row.correct < 0:
        return f"{row.part:<11} {row.method:<28} refused: {row.note}"
    accuracy, lost = row.correct / row.total, (row.correct - float_correct) / row.total
    return (
        f"{row.part:<11} {row.method:<28} {100 * accuracy:.2f} % {100 * lost:>+7.2f}"
        f" {row.seconds:>9.1f} s  {row.note}"
    )


def main(argv: Sequence[str]) -> None:
    """Measures and prints, each row as soon as it is there."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    batch = options.BATCH.value or 64
    images = options.IMAGES.value or 512
    if unknown := set(_PARTS.value) - set(PARTS):
        raise app.UsageError(f"--parts: {sorted(unknown)} are not among {sorted(PARTS)}")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when TensorFlow is imported
    network = trained.load(run.CONFIG.value, run.WORKDIR.value)
    data = network.data
    bench = Bench(
        network,
        trained.batches(
            data,
            data.train_images,
            size=batch,
            count=images,
        ),
        trained.batches(data, data.test_images, size=250, count=options.TESTED.value),
        np.asarray(data.test_labels[: options.TESTED.value]),
        _STEPS.value,
    )
    logits = jax.jit(network.apply)
    rows = [measured(bench, "float", "float32", lambda: (network.variables, ""), logits)]
    floats = rows[0].correct
    if not options.JSON.value:
        print(line(rows[0], floats), flush=True)
    for part in _PARTS.value:
        for row in PARTS[part](bench):
            rows.append(row)
            if not options.JSON.value:
                print(line(row, floats), flush=True)
    if options.JSON.value:
        print(timing.document({"rows": [row._asdict() for row in rows]}))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=run.parse)
