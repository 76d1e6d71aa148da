"""Every model of the zoo in every format through both converters: bytes, parity, accuracy, latency.

    python -m experiments.bench.formats

Narrow networks with drawn weights on images of noise, those of `compressjax.models` and of
`architectures`; `--config` and `--workdir` add the trained network of an experiment on its own test
images, with its accuracy. Latencies are those of one example on one thread, all formats of a
network in turns. A cell that cannot be exported says why. Takes an hour on 2 CPU cores; `--models`,
`--formats` and `--converters` choose. Goals: no operation that is not LiteRT's own, no float
operation inside integer files, and 0 differing values in them.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import compressjax as cj
from compressjax import models
from compressjax.export import flatbuffer
from compressjax.quant import grids
from experiments import networks, run
from experiments.bench import architectures, options, parity, timing, trained

_MODELS = flags.DEFINE_list("models", [], "Networks; all if empty, `trained` is the config's.")
_FORMATS = flags.DEFINE_list("formats", [], "Formats; all if empty.")
_CONVERTERS = flags.DEFINE_list("converters", ["jax2tf", "litert"], "Ways to a file.")


class Format(NamedTuple):
    """A form of a .tflite.

    Attributes:
      spec: what the model is quantized with; `None` leaves it float.
      integers: whether all operations between the ends work on integers.
      int8_io: whether the ends are integers too.
      int4: whether weights of 4 bits take half a byte.
    """

    spec: Callable[[], cj.quant.Spec] | None
    integers: bool = False
    int8_io: bool = False
    int4: bool = False


FORMATS: Mapping[str, Format] = {
    "float32": Format(None),
    "float16": Format(lambda: cj.quant.weight_only(grids.float16())),
    "int8 weights": Format(cj.quant.weight_only),
    "int4 weights": Format(lambda: cj.quant.weight_only(grids.integer(4)), int4=True),
    "dynamic int8": Format(cj.quant.dynamic),
    "dynamic int4": Format(lambda: cj.quant.dynamic(grids.integer(4)), int4=True),
    "int8": Format(cj.quant.int8, integers=True),
    "int8, int8 ends": Format(cj.quant.int8, integers=True, int8_io=True),
    "int8, int4 weights": Format(
        lambda: cj.quant.uniform(weights=4, activations=8), integers=True, int4=True
    ),
    "int16x8": Format(cj.quant.int16x8, integers=True),
}


class Case(NamedTuple):
    """A network to export.

    Attributes:
      apply: `(variables, x) -> outputs`, batch norm folded.
      variables: its variables.
      x: images `[N, H, W, C]`, which it is calibrated with and compared on.
      labels: of them, where they are known.
    """

    apply: networks.Apply
    variables: Any
    x: jax.Array
    labels: np.ndarray | None = None


@dataclasses.dataclass
class Row:
    """One file.

    Attributes:
      model: the network.
      via: the converter.
      form: the format.
      size: bytes.
      foreign: operations that are not LiteRT's own.
      floats: float operations between the ends.
      differing: values that differ from the model's own; integers only.
      values: compared values.
      max_step: the largest difference, in steps of the grid.
      agreement: rows whose largest output is where the float function has it, a part of all.
      accuracy: on the labels, where there are any.
      latency: over the float32 file of the same converter.
      refused: why there is no file.
    """

    model: str
    via: str
    form: str
    size: int = 0
    foreign: tuple[str, ...] = ()
    floats: tuple[str, ...] = ()
    differing: int = 0
    values: int = 0
    max_step: int = 0
    agreement: float = 0.0
    accuracy: float | None = None
    latency: float | None = None
    refused: str = ""


def zoo() -> dict[str, Callable[[], Case]]:
    """Lists the networks.

    Returns:
      What builds each of them, by name.
    """
    small = {
        "MLP": (models.MLP(4), 8),
        "SmallCNN": (models.SmallCNN(4, multiplier=0.25), 8),
        "ResNet-8": (models.ResNet8(4, multiplier=0.5), 32),
        "MobileNetV1 (zoo)": (models.MobileNetV1(4, multiplier=0.25), 32),
    }
    others = {each.name: (each.module, each.size) for each in architectures.architectures()}

    def builder(module: Any, size: int) -> Callable[[], Case]:
        return lambda: drawn(module, size)

    return {name: builder(*found) for name, found in {**small, **others}.items()}


def drawn(module: Any, size: int) -> Case:
    """Gives a network drawn weights and images of noise.

    Args:
      module: called on `x: [N, H, W, 3]`.
      size: height and width of an image.

    Returns:
      The network with its batch norms folded.
    """
    x = jax.random.normal(jax.random.key(0), (16, size, size, 3))
    shapes = jax.eval_shape(module.init, jax.random.key(0), x[:1])
    apply, variables = cj.fold_batch_norm(module.apply, parity.draw(shapes, seed=0), x[:1])
    return Case(apply, variables, x)


def float_operations(model: bytes) -> tuple[str, ...]:
    """Names the operations of a file that read and write floats.

    Args:
      model: the .tflite.

    Returns:
      LiteRT's names; QUANTIZE and DEQUANTIZE touch floats on one side only and do not count.
    """
    unpacked = flatbuffer.read(model)
    graph = unpacked.subgraphs[0]

    def is_float(tensors: Sequence[int]) -> bool:
        kinds = [flatbuffer.dtype(graph.tensors[int(i)]) for i in tensors if int(i) >= 0]
        return any(kind.kind == "f" for kind in kinds)

    return tuple(
        flatbuffer.op_name(unpacked, operator)
        for operator in graph.operators
        if is_float(operator.inputs) and is_float(operator.outputs)
    )


def cells(name: str, case: Case, via: str, formats: Sequence[str], rounds: int) -> Iterator[Row]:
    """Exports one network through one converter in several formats.

    Args:
      name: of the network.
      case: the network.
      via: the converter.
      formats: of `FORMATS`, the first is the one that latencies are compared with.
      rounds: times each file is timed.

    Yields:
      A row for each format, when all are measured.
    """
    expected = np.asarray(jax.jit(case.apply)(case.variables, case.x))
    rows, files = [], {}
    for form in formats:
        row = Row(name, via, form)
        rows.append(row)
        try:
            files[form] = _measured(row, case, FORMATS[form], expected)
        except ValueError as error:
            row.refused = str(error).splitlines()[0]
    turns = cj.export.compare(files, rounds=rounds) if files else {}
    for row in rows:
        if row.form in turns:
            row.latency = turns[row.form].ratio
    yield from rows


def _measured(row: Row, case: Case, form: Format, expected: np.ndarray) -> bytes:
    model, variables = case.apply, case.variables
    if form.spec is not None:
        model = cj.quantize(case.apply, form.spec())
        variables = model.calibrate(case.variables, [case.x])
    x = case.x[:1]
    file = cj.export.tflite(model, variables, x, via=row.via, int8_io=form.int8_io, int4=form.int4)
    row.size = len(file)
    row.foreign = tuple(op for op in cj.export.ops(file) if op.startswith(("CUSTOM", "BUILTIN")))
    row.floats = float_operations(file) if form.integers else ()
    outputs = cj.export.run(file, np.asarray(case.x))
    row.agreement = float((outputs.argmax(-1) == expected.argmax(-1)).mean())
    if case.labels is not None:
        row.accuracy = float((outputs.argmax(-1) == case.labels).mean())
    if form.integers:
        found = cj.export.verify(file, model, variables, np.asarray(case.x))
        row.differing = sum(layer.differing for layer in found.layers)
        row.values = sum(layer.values for layer in found.layers)
        row.max_step = found.max_lsb
    return file


def line(row: Row) -> str:
    """Formats a row for a terminal.

    Args:
      row: of `cells`.

    Returns:
      One line, under that of `HEADING`.
    """
    start = f"{row.model:<22} {row.via:<7} {row.form:<19}"
    if row.refused:
        return f"{start} refused: {row.refused}"
    odd = [*row.foreign, *(f"float {op}" for op in dict.fromkeys(row.floats))]
    differing = f"{row.differing:,} of {row.values:,}" if row.values else "-"
    accuracy = "-" if row.accuracy is None else f"{100 * row.accuracy:.2f}"
    latency = "-" if row.latency is None else f"{row.latency:.2f}"
    return (
        f"{start} {row.size:>9,} {differing:>20} {row.max_step:>4} {100 * row.agreement:>7.2f} "
        f"{accuracy:>8} {latency:>7}  {' '.join(odd) or 'none'}"
    )


HEADING = (
    f"{'model':<22} {'via':<7} {'format':<19} {'bytes':>9} {'values that differ':>20} "
    f"{'step':>4} {'top-1':>7} {'accuracy':>8} {'latency':>7}  custom or inner float operations"
)


def _trained() -> Case:
    network = trained.load(run.CONFIG.value, run.WORKDIR.value)
    count = min(options.IMAGES.value or 500, len(network.data.test_labels))
    x = jnp.concatenate(
        trained.batches(network.data, network.data.test_images, size=count, count=count)
    )
    labels = np.asarray(network.data.test_labels[:count])
    return Case(network.apply, network.variables, x, labels)


def main(argv: Sequence[str]) -> None:
    """Exports, measures and prints, one network after the other."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if (run.CONFIG.value is None) != (run.WORKDIR.value is None):
        raise app.UsageError("--config and --workdir go together")
    known: dict[str, Callable[[], Case]] = zoo()
    if run.CONFIG.value is not None:
        known = {"trained": _trained, **known}
    chosen, formats = _MODELS.value or list(known), _FORMATS.value or list(FORMATS)
    for asked, there in ((chosen, known), (formats, FORMATS)):
        if unknown := [name for name in asked if name not in there]:
            raise app.UsageError(f"there is no {unknown[0]!r}, only {', '.join(there)}")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when TensorFlow is imported
    rows: list[Row] = []
    if not options.JSON.value:
        print(HEADING, flush=True)
    for name in chosen:
        case = known[name]()
        for via in _CONVERTERS.value:
            for row in cells(name, case, via, formats, options.ROUNDS.value or 15):
                rows.append(row)
                if not options.JSON.value:
                    print(line(row), flush=True)
    if options.JSON.value:
        print(timing.document({"rows": [dataclasses.asdict(row) for row in rows]}))
        return
    refused = sum(bool(row.refused) for row in rows)
    odd = sum(bool(row.foreign or row.floats) for row in rows)
    print(
        f"{len(rows)} files asked for, {refused} refused, {odd} with custom or inner float "
        f"operations; {sum(row.differing for row in rows):,} values of integer files differ"
    )


if __name__ == "__main__":
    app.run(main, flags_parser=run.parse)
