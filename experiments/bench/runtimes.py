"""LiteRT, ONNX Runtime and MNN on one network: exactness, size and latency, float and int8.

    python -m experiments.bench.runtimes

ResNet-8 and MobileNetV2 x0.25 at 32x32 with drawn weights on random images, or with `--config` and
`--workdir` the trained network of an experiment on its test images. Every file takes one image on
one thread, copies of input and output included, all files of a network in turns; ratios are over
LiteRT's float file. Differences are those from `q.apply` in int8 and from the function in float;
MNN shows the codes of its outputs alone.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import compressjax as cj
from compressjax import models
from compressjax.export.parity import Parity
from compressjax.export.runtime import Session
from experiments import run
from experiments.bench import options, parity, timing, trained

_NETWORKS = flags.DEFINE_list("on_runtimes", [], "Networks that are measured; all if empty.")
_MODELS = {
    "ResNet-8": (models.ResNet8, {}),
    "MobileNetV2 x0.25": parity.NARROW["MobileNetV2 x0.25"],
}


class Network(NamedTuple):
    """A float network and what it is shown.

    Attributes:
      apply: `(variables, x) -> logits`, batch norm folded.
      variables: its variables.
      shown: float32 `[N, H, W, C]`, to calibrate.
      tested: float32 `[N, H, W, C]`, to compare.
    """

    apply: Callable[..., jax.Array]
    variables: Any
    shown: jax.Array
    tested: jax.Array


class Row(NamedTuple):
    """One file on its runtime.

    Attributes:
      runtime: its name.
      form: `float32` or `int8`.
      size: bytes of the file.
      values: compared.
      differing: fraction of them.
      max_step: largest difference of codes.
      max_relative: largest difference of the outputs, over the largest output.
      top1: fraction of the images with the same prediction as the model.
      latency: of one image.
    """

    runtime: str
    form: str
    size: int
    values: int
    differing: float
    max_step: int
    max_relative: float
    top1: float
    latency: timing.Timing


def drawn(name: str, images: int, size: int = 32) -> Network:
    """Draws a network and its images.

    Args:
      name: one of the networks.
      images: how many are compared.
      size: height and width.

    Returns:
      The network.
    """
    make, fields = _MODELS[name]
    model = make(num_classes=10, **fields)
    shown, tested = (
        jax.random.normal(key, (count, size, size, 3))
        for key, count in zip(jax.random.split(jax.random.key(0)), (64, images), strict=True)
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0), shown[:1])
    apply, variables = cj.fold_batch_norm(model.apply, parity.draw(shapes, seed=0), shown[:1])
    return Network(apply, variables, shown, tested)


def measure(network: Network, *, rounds: int, clock: timing.Clock) -> list[Row]:
    """Exports a network to each runtime, compares and times the files.

    Args:
      network: the network.
      rounds: times each file is called.
      clock: what is measured.

    Returns:
      A row for each runtime and form; the first is LiteRT's float file.
    """
    apply, variables, shown, tested = network
    one = tested[:1]
    q = cj.quantize(apply, cj.quant.int8())
    qv = q.calibrate(variables, [shown])
    found: dict[tuple[str, str], tuple[bytes, Parity]] = {}
    programs: dict[tuple[str, str], Callable[[], Any]] = {}
    for form, model, trained_variables in (("float32", apply, variables), ("int8", q, qv)):
        file = cj.export.tflite(model, trained_variables, one, via="litert")
        made = {
            "LiteRT": (file, cj.export.verify, _litert),
            "ONNX Runtime": (
                cj.export.onnx.convert(model, trained_variables, one),
                cj.export.onnx.verify,
                _onnx,
            ),
            "MNN": (cj.export.mnn.convert(file), cj.export.mnn.verify, _mnn),
        }
        for runtime, (data, verify, program) in made.items():
            found[runtime, form] = data, verify(data, model, trained_variables, tested)
            programs[runtime, form] = program(data, np.asarray(one))
    named = {" ".join(key): program for key, program in programs.items()}
    timings = timing.interleaved(named, rounds=rounds, warmup=5, clock=clock)
    return [
        Row(
            *key,
            len(data),
            compared.values,
            compared.mismatch_fraction,
            compared.max_lsb,
            compared.max_relative,
            compared.top1_agreement,
            timings[" ".join(key)],
        )
        for key, (data, compared) in found.items()
    ]


def _litert(model: bytes, x: np.ndarray) -> Callable[[], Any]:
    session = Session(model)
    interpreter, source = session.interpreter, session.inputs[0]["index"]
    target = session.outputs[0]["index"]

    def program() -> np.ndarray:
        interpreter.set_tensor(source, x)
        interpreter.invoke()
        return interpreter.get_tensor(target)

    return program


def _onnx(model: bytes, x: np.ndarray) -> Callable[[], Any]:
    session = cj.export.onnx.Session(model)
    return lambda: session.call([x])


def _mnn(model: bytes, x: np.ndarray) -> Callable[[], Any]:
    session = cj.export.mnn.Session(model)
    return lambda: session.call([x])


def table(rows: Sequence[Row]) -> str:
    """Formats the rows for a terminal.

    Args:
      rows: of `measure`.

    Returns:
      One line a row, under a heading.

    Example:
      >>> latency = timing.Timing(0.0005, 1.0, 0.9, 1.1)
      >>> print(table([Row('LiteRT', 'int8', 2048, 1000, 0.5, 1, 0.01, 1.0, latency)]))
      runtime      form        KiB       values differing  max LSB  relative   top-1      ms ...
      LiteRT       int8        2.0        1,000  50.0000%        1     1e-02 100.00%   0.500 ...
    """
    lines = [
        f"{'runtime':<12} {'form':<7} {'KiB':>7} {'values':>12} {'differing':>9} {'max LSB':>8}"
        f" {'relative':>9} {'top-1':>7} {'ms':>7}  ratio (quartiles)"
    ]
    for row in rows:
        integer, t = row.form == "int8", row.latency
        lines.append(
            f"{row.runtime:<12} {row.form:<7} {row.size / 1024:>7.1f} {row.values:>12,}"
            f" {f'{row.differing:.4%}' if integer else '':>9}"
            f" {row.max_step if integer else '':>8} {row.max_relative:>9.0e} {row.top1:>7.2%}"
            f" {1e3 * t.median:>7.3f}  {t.ratio:.3f} ({t.ratio_low:.3f} to {t.ratio_high:.3f})"
        )
    return "\n".join(lines)


def _trained(images: int) -> Network:
    network = trained.load(run.CONFIG.value, run.WORKDIR.value)
    data = network.data
    shown = trained.batches(data, data.train_images, size=256, count=256)
    tested = trained.batches(data, data.test_images, size=500, count=images)
    return Network(network.apply, network.variables, shown[0], jnp.concatenate(tested))


def main(argv: Sequence[str]) -> None:
    """Measures and prints."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if (run.CONFIG.value is None) != (run.WORKDIR.value is None):
        raise app.UsageError("--config and --workdir go together")
    chosen = _NETWORKS.value or list(_MODELS)
    if unknown := [name for name in chosen if name not in _MODELS]:
        raise app.UsageError(f"no network {unknown[0]!r}; there are {', '.join(_MODELS)}")
    rounds, clock = options.ROUNDS.value or 60, options.CLOCK.value
    images = options.IMAGES.value or 256
    if run.CONFIG.value is not None:
        networks = {"trained": _trained(images)}
    else:
        networks = {name: drawn(name, images) for name in chosen}
    found = {
        name: measure(network, rounds=rounds, clock=clock) for name, network in networks.items()
    }
    if options.JSON.value:
        rows = {name: [row._asdict() for row in rows] for name, rows in found.items()}
        print(timing.document({"rows": rows, "rounds": rounds, "clock": clock.value}))
        return
    print(f"{rounds} rounds, {clock.value} time, one image, one thread, {images} images compared")
    for name, rows in found.items():
        print(f"\n{name}")
        print(table(rows))


if __name__ == "__main__":
    app.run(main)
