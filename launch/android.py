"""Times a .tflite on a phone, and compares what it computes there with what it should.

    python -m launch.android --model=model_int8.tflite --tool=android_aarch64_benchmark_model
        --reference=samples.npz --delegate=cpu --delegate=gpu

The tool is LiteRT's native `benchmark_model` for Android (docs/phone.md says where it is from). It
is pushed with the model and run once for each delegate: latency, memory, and how much of the graph
the delegate took. With --reference, an .npz of real inputs (`input_0`, ...) and of what the model
should put out (`output_0`, ..., such as `q.apply` gives), the model also runs on each of them.
Without outputs in it, LiteRT on this computer says what they should be.

Exit code 0: good; 1: outputs differ by more than is allowed, or a delegate was not applied; 2: the
input is wrong, or there is no phone.
"""

import pathlib
import re
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from compressjax import _atomic
from compressjax.export import flatbuffer, runtime
from launch import adb, cli

_FLAGS = flags.FlagValues()
_MODEL = flags.DEFINE_string("model", None, "The .tflite.", flag_values=_FLAGS)
_TOOL = flags.DEFINE_string("tool", None, "benchmark_model for Android.", flag_values=_FLAGS)
_REFERENCE = flags.DEFINE_string(
    "reference", None, "An .npz of inputs, and of the outputs expected.", flag_values=_FLAGS
)
_DELEGATES = flags.DEFINE_multi_enum(
    "delegate", ["cpu"], ["cpu", "gpu", "nnapi"], "Who runs it; repeat it.", flag_values=_FLAGS
)
_THREADS = flags.DEFINE_integer("threads", 1, "CPU threads.", lower_bound=1, flag_values=_FLAGS)
_RUNS = flags.DEFINE_integer("runs", 50, "Timed runs.", lower_bound=1, flag_values=_FLAGS)
_ROWS = flags.DEFINE_integer(
    "rows", 8, "How many samples to compare, from the first.", lower_bound=1, flag_values=_FLAGS
)
_MAX_LSB = flags.DEFINE_float(
    "max_lsb", 0.0, "Largest difference that is allowed, in steps of the output; on cpu.",
    lower_bound=0.0, flag_values=_FLAGS,
)  # fmt: skip
_MAX_ERROR = flags.DEFINE_float(
    "max_error", 1e-4, "The same for float outputs, over the largest output; on cpu.",
    lower_bound=0.0, flag_values=_FLAGS,
)  # fmt: skip
_SERIAL = flags.DEFINE_string("serial", None, "Which phone.", flag_values=_FLAGS)
_ADB = flags.DEFINE_string("adb", "adb", "The command adb.", flag_values=_FLAGS)
_JSON = flags.DEFINE_string("json", None, "Where everything goes as JSON.", flag_values=_FLAGS)
flags.mark_flags_as_required(["model", "tool"], _FLAGS)

_APPLY = {
    "cpu": ["--use_xnnpack=true"],
    "gpu": ["--use_gpu=true"],
    "nnapi": ["--use_nnapi=true"],
}


class Timing(NamedTuple):
    """What the tool said of one delegate.

    Attributes:
        delegate: the one that was asked for.
        applied: the part of the graph that it runs: `all`, `partly`, or `nothing`.
        init_ms: to load and prepare.
        first_ms: the first run.
        mean_ms: of a run.
        median_ms: of a run, where the tool says so.
        memory_mb: that it took altogether, where the phone says so.
    """

    delegate: str
    applied: str
    init_ms: float
    first_ms: float
    mean_ms: float
    median_ms: float | None
    memory_mb: float | None


class Difference(NamedTuple):
    """How outputs on the phone differ from those expected.

    Attributes:
        rows: samples.
        values: compared.
        differing: how many are not the same.
        largest: the largest difference, in steps of the output's grid or over the largest output.
        in_steps: whether it is in steps.
    """

    rows: int
    values: int
    differing: int
    largest: float
    in_steps: bool


def timing(delegate: str, printed: str) -> Timing:
    """Reads what `benchmark_model` printed.

    Args:
        delegate: the one that was asked for.
        printed: everything.

    Returns:
        The figures.

    Raises:
        ValueError: it printed no timings.

    Example:
        >>> timing('gpu', 'Though GPU delegate is explicitly applied, the model graph will not be '
        ...        'executed by the delegate.\\n'
        ...        'count=9 first=9 curr=9 min=8 max=9 avg=8 std=1 p5=8 median=8500 p95=9\\n'
        ...        'Inference timings in us: Init: 5685, First inference: 18535, '
        ...        'Warmup (avg): 14462.3, Inference (avg): 1.4e+04')
        Timing(delegate='gpu', applied='nothing', init_ms=5.685, first_ms=18.535, mean_ms=14.0,
               median_ms=8.5, memory_mb=None)
    """
    found = re.search(
        r"Inference timings in us: Init: (\S+), First inference: (\S+), Warmup \(avg\): \S+, "
        r"Inference \(avg\): (\S+)",
        printed,
    )
    if found is None:
        raise ValueError(
            f"benchmark_model printed no timings with {delegate}: {' '.join(printed.split()[-60:])}"
        )
    init, first, mean = (float(number) / 1e3 for number in found.groups())
    medians = re.findall(r"count=\S.* median=(\S+)", printed)
    memory = re.search(r"Memory footprint delta .*overall=(\S+)", printed)
    return Timing(
        delegate,
        _applied(delegate, printed),
        init,
        first,
        mean,
        float(medians[-1]) / 1e3 if medians else None,
        float(memory.group(1)) if memory else None,
    )


def _applied(delegate: str, printed: str) -> str:
    if "completely executed by the delegate" in printed:
        return "all"
    if "partially executed by the delegate" in printed:
        return "partly"
    nodes = re.search(r"Replacing (\d+) out of (\d+) node\(s\) with delegate", printed)
    if nodes is not None and delegate == "cpu":
        return "all" if nodes.group(1) == nodes.group(2) else "partly"
    return "nothing"


def compare(
    model: bytes, outputs: Sequence[np.ndarray], expected: Sequence[np.ndarray]
) -> Difference:
    """Compares real outputs, in steps where the file has a grid for all of them.

    Args:
        model: the .tflite.
        outputs: `[N, ...]` each.
        expected: the same shapes.

    Returns:
        The difference.

    Raises:
        ValueError: the shapes differ.
    """
    for i, (got, wanted) in enumerate(zip(outputs, expected, strict=True)):
        if got.shape != wanted.shape:
            raise ValueError(
                f"output_{i} of the reference has shape {list(wanted.shape)}, the model gives "
                f"{list(got.shape)}"
            )
    steps = output_steps(model)
    in_steps = None not in steps
    largest, differing = 0.0, 0
    for got, wanted, step in zip(outputs, expected, steps, strict=True):
        gap = np.abs(got.astype(np.float64) - wanted.astype(np.float64))
        unit = step if in_steps and step else max(float(np.abs(wanted).max(initial=0.0)), 1e-30)
        gap = np.rint(gap / unit) if in_steps else gap / unit
        largest = max(largest, float(gap.max(initial=0.0)))
        differing += int((gap > 0).sum())
    values = sum(got.size for got in outputs)
    return Difference(len(outputs[0]), values, differing, largest, in_steps)


def output_steps(model: bytes) -> list[float | None]:
    """The scale of each output's codes, in the order of the function; `None` where it has none.

    Args:
        model: the .tflite.

    Returns:
        The scale of an integer output, or of what the last DEQUANTIZE reads.
    """
    unpacked = flatbuffer.read(model)
    graph = unpacked.subgraphs[0]
    makers = {int(op.outputs[0]): op for op in graph.operators or [] if len(op.outputs)}
    steps: list[float | None] = []
    for details in runtime.Session(model).outputs:
        index = int(details["index"])
        maker = makers.get(index)
        if maker is not None and flatbuffer.op_name(unpacked, maker) == "DEQUANTIZE":
            index = int(maker.inputs[0])
        grid = graph.tensors[index].quantization
        scaled = grid is not None and grid.scale is not None and len(grid.scale) == 1
        steps.append(float(grid.scale[0]) if scaled else None)
    return steps


def samples(path: str, model: bytes, rows: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Reads a reference.

    Args:
        path: an .npz with `input_0`, ... and perhaps `output_0`, ..., `[N, ...]` each.
        model: the .tflite; LiteRT here runs it for outputs that are not in the file.
        rows: how many samples, from the first.

    Returns:
        The inputs and the outputs that are expected.

    Raises:
        OSError: the file cannot be read.
        ValueError: an array is missing.
    """
    session = runtime.Session(model)
    with np.load(path, allow_pickle=False) as arrays:
        found = {name: arrays[name][:rows] for name in arrays.files}

    def taken(kind: str, count: int) -> list[np.ndarray]:
        missing = [f"{kind}_{i}" for i in range(count) if f"{kind}_{i}" not in found]
        if missing:
            raise ValueError(f"{path} lacks {missing}: it has {sorted(found)}")
        return [found[f"{kind}_{i}"] for i in range(count)]

    inputs = taken("input", len(session.inputs))
    if any(name.startswith("output_") for name in found):
        return inputs, taken("output", len(session.outputs))
    outputs = runtime.run(model, *inputs)
    return inputs, list(outputs) if isinstance(outputs, tuple) else [outputs]


def on_phone(
    phone: adb.Phone, model: bytes, inputs: Sequence[np.ndarray], command: Sequence[str]
) -> list[np.ndarray]:
    """Runs the model on each sample.

    Args:
        phone: with the model and the tool on it.
        model: the .tflite.
        inputs: float, `[N, ...]` each.
        command: the tool and its flags, without inputs.

    Returns:
        Real outputs, `[N, ...]` each.

    Raises:
        ValueError: the model takes batches, or the tool did not write what it should.
    """
    session = runtime.Session(model)
    details = session.interpreter.get_input_details()
    if any(len(d["shape"]) == 0 or d["shape"][0] != 1 for d in details):
        raise ValueError("samples are compared one by one: export the model with a batch of 1")
    place = {int(d["index"]): i for i, d in enumerate(session.inputs)}
    names = [f"input{i}" for i in range(len(details))]
    shapes = ":".join(",".join(str(int(n)) for n in d["shape"]) for d in details)
    files = ",".join(f"{name}:{adb.FOLDER}/{name}.bin" for name in names)
    flags_of = [
        f"--input_layer={','.join(names)}",
        f"--input_layer_shape={shapes}",
        f"--input_layer_value_files={files}",
        f"--output_filepath={adb.FOLDER}/output.bin",
        *("--num_runs=1", "--warmup_runs=0", "--min_secs=0", "--warmup_min_secs=0"),
    ]
    rows: list[list[np.ndarray]] = []
    with tempfile.TemporaryDirectory() as folder:
        local = pathlib.Path(folder, "file.bin")
        for row in range(len(inputs[0])):
            for name, d in zip(names, details, strict=True):
                value = inputs[place[int(d["index"])]][row : row + 1]
                local.write_bytes(_stored(value, d).tobytes())
                phone.push(local, f"{name}.bin")
            phone.shell(*command, *flags_of)
            rows.append(_real(session, phone.pull("output.bin", local)))
    return [np.concatenate(column) for column in zip(*rows, strict=True)]


def _stored(value: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    if details["dtype"] in (np.int8, np.int16):
        scale, zero_point = details["quantization"]
        return runtime.quantize(value, scale, zero_point, details["dtype"])
    return np.ascontiguousarray(value, details["dtype"])


def _real(session: runtime.Session, content: bytes) -> list[np.ndarray]:
    """Takes the outputs, which lie one behind the other, apart, and dequantizes them."""
    details, start, found = session.interpreter.get_output_details(), 0, {}
    sizes = [int(np.prod(d["shape"])) * np.dtype(d["dtype"]).itemsize for d in details]
    if sum(sizes) != len(content):
        raise ValueError(
            f"the phone wrote {len(content)} bytes of outputs, expected {sum(sizes)}: take a newer "
            "benchmark_model (it needs --output_filepath)"
        )
    for d, size in zip(details, sizes, strict=True):
        array = np.frombuffer(content[start : start + size], d["dtype"]).reshape(d["shape"])
        found[int(d["index"])] = runtime.dequantize(array, d)
        start += size
    return [found[int(d["index"])] for d in session.outputs]


def work() -> int:
    """Measures, compares and prints what the flags ask for."""
    path = pathlib.Path(_MODEL.value)
    model = flatbuffer.content(path)
    flatbuffer.validate(model)
    reference = samples(_REFERENCE.value, model, _ROWS.value) if _REFERENCE.value else None
    tool = pathlib.Path(_TOOL.value)
    if not tool.is_file():
        raise ValueError(f"--tool={tool} is no file: docs/phone.md says where it is from")
    phone = adb.connect(_ADB.value, _SERIAL.value)
    names = ("ro.product.model", "ro.soc.model", "ro.product.cpu.abi", "ro.build.version.release")
    about = {name: phone.shell("getprop", name).strip() for name in names}
    print(f"{about[names[0]]} ({about[names[1]]}, {about[names[2]]}), Android {about[names[3]]}")
    try:
        return _measure(phone, model, path, tool, reference, about)
    finally:
        phone.shell("rm", "-rf", adb.FOLDER)


def _measure(
    phone: adb.Phone,
    model: bytes,
    path: pathlib.Path,
    tool: pathlib.Path,
    reference: tuple[list[np.ndarray], list[np.ndarray]] | None,
    about: dict[str, str],
) -> int:
    binary, graph = phone.push(tool, "benchmark_model"), phone.push(path, "model.tflite")
    phone.shell("chmod", "755", binary)
    failed: list[str] = []
    found: dict[str, Any] = {}
    print("delegate  graph    init ms  first ms   mean ms  median ms  memory MB  outputs")
    for delegate in dict.fromkeys(_DELEGATES.value):
        command = [binary, f"--graph={graph}", f"--num_threads={_THREADS.value}", *_APPLY[delegate]]
        printed = phone.shell(*command, f"--num_runs={_RUNS.value}")
        figures, gap = timing(delegate, printed), None
        if figures.applied == "nothing" and delegate != "cpu":
            failed.append(f"{delegate} was not applied: the CPU ran the model")
        if reference is not None:
            gap = compare(model, on_phone(phone, model, reference[0], command), reference[1])
            limit = _MAX_LSB.value if gap.in_steps else _MAX_ERROR.value
            if delegate == "cpu" and gap.largest > limit:
                failed.append(f"outputs on {delegate} {said(gap)}; at most {limit:g} is allowed")
        print(row(figures, gap))
        found[delegate] = figures._asdict() | {"outputs": gap._asdict() if gap else None}
    for sentence in failed:
        print(f"FAILED: {sentence}")
    if _JSON.value:
        _atomic.write_json(_JSON.value, {"phone": about, "model": str(path), "delegates": found})
    return cli.PASSED if failed else cli.GOOD


def row(figures: Timing, gap: Difference | None) -> str:
    """Formats one line of the table."""
    median, memory = (
        "" if number is None else f"{number:.3f}"
        for number in (figures.median_ms, figures.memory_mb)
    )
    return (
        f"{figures.delegate:8}  {figures.applied:7}  {figures.init_ms:7.2f}  "
        f"{figures.first_ms:8.3f}  {figures.mean_ms:8.3f}  {median:>9}  {memory:>9}  "
        f"{said(gap) if gap else ''}"
    ).rstrip()


def said(gap: Difference) -> str:
    """Says a difference in words."""
    unit = f"{gap.largest:g} steps" if gap.in_steps else f"{gap.largest:.2g} of the largest"
    return f"{gap.differing} of {gap.values} values differ, by up to {unit}"


def main(argv: Sequence[str]) -> int:
    """Runs the command and gives its exit code."""
    return cli.run(work, _FLAGS, __doc__ or "", argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
