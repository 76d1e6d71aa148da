"""Times a .tflite on a phone, and compares what it computes there with what it should.

    python -m launch.android --model=model_int8.tflite --tool=android_aarch64_benchmark_model
        --reference=samples.npz --delegate=cpu --delegate=gpu

The tool is LiteRT's native `benchmark_model` for Android (docs/phone.md says where it is from). It
is pushed with the model and run once for each delegate: latency, memory, and how much of the graph
the delegate took. With --reference, an .npz of real inputs (`input_0`, ...) and of what the model
should put out (`output_0`, ..., such as `q.apply` gives), the model also runs on each of them.
Without outputs, or with an .npy of one input, LiteRT on this computer says what they should be.

Exit code 0: good; 1: outputs differ by more than is allowed, or a delegate was not applied; 2: the
input is wrong, or there is no phone.
"""

import contextlib
import pathlib
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from compressjax import _atomic
from compressjax.export import flatbuffer, runtime
from compressjax.export.join import select
from launch import adb, cli, tool

_FLAGS = flags.FlagValues()
_MODEL = flags.DEFINE_string("model", None, "The .tflite.", flag_values=_FLAGS)
_TOOL = flags.DEFINE_string("tool", None, "benchmark_model for Android.", flag_values=_FLAGS)
_REFERENCE = flags.DEFINE_string(
    "reference", None, "An .npz of inputs, and of the outputs expected.", flag_values=_FLAGS
)
_SIGNATURE = flags.DEFINE_string(
    "signature", None, "Which one of the file; its first by default.", flag_values=_FLAGS
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
_TIMEOUT = flags.DEFINE_float(
    "timeout", 600.0, "Seconds that one command on the phone may take.",
    lower_bound=0.0, flag_values=_FLAGS,
)  # fmt: skip
_ADB = flags.DEFINE_string("adb", "adb", "The command adb.", flag_values=_FLAGS)
_JSON = flags.DEFINE_string("json", None, "Where everything goes as JSON.", flag_values=_FLAGS)
flags.mark_flags_as_required(["model", "tool"], _FLAGS)

_APPLY = {
    "cpu": ["--use_xnnpack=true"],
    "gpu": ["--use_gpu=true"],
    "nnapi": ["--use_nnapi=true"],
}


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
        with np.errstate(invalid="ignore"):
            gap = np.abs(got.astype(np.float64) - wanted.astype(np.float64))
        gap = np.where(got == wanted, 0.0, np.where(np.isnan(gap), np.inf, gap))
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
        path: an .npz with `input_0`, ... and perhaps `output_0`, ..., `[N, ...]` each; or an .npy,
            the input of a model of one.
        model: the .tflite; LiteRT here runs it for outputs that are not in the file.
        rows: how many samples, from the first.

    Returns:
        The inputs and the outputs that are expected.

    Raises:
        OSError: the file cannot be read.
        TypeError: an input is not of the type that the model takes.
        ValueError: the file is damaged, or an array is missing, empty or of the wrong shape.
    """
    session = runtime.Session(model)
    try:
        with open(path, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                loaded = {"input_0": loaded}
            arrays = {name: np.asarray(loaded[name]) for name in loaded}
    except (EOFError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"--reference={path} is no .npz or .npy of arrays: {error}") from error
    found = {name: array[:rows] for name, array in arrays.items() if array.ndim}

    def taken(kind: str, count: int) -> list[np.ndarray]:
        missing = [f"{kind}_{i}" for i in range(count) if f"{kind}_{i}" not in found]
        if missing:
            raise ValueError(f"{path} lacks {missing}: it has {sorted(found)}")
        return [found[f"{kind}_{i}"] for i in range(count)]

    inputs = taken("input", len(session.inputs))
    counts = [len(value) for value in inputs]
    if len(set(counts)) > 1 or not counts[0]:
        raise ValueError(f"{path}: inputs have {counts} samples, expected equally many, at least 1")
    outputs = runtime.run(model, *inputs)  # says what is wrong with an input
    if any(name.startswith("output_") for name in found):
        return inputs, taken("output", len(session.outputs))
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
            phone.shell("rm", "-f", f"{adb.FOLDER}/output.bin")  # the tool is silent if it fails
            phone.shell(*command, *flags_of)
            try:
                content = phone.pull("output.bin", local)
            except ValueError as error:
                raise ValueError(
                    f"benchmark_model wrote no outputs; it has to know --output_filepath: {error}"
                ) from error
            rows.append(_real(session, content))
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
            f"the phone wrote {len(content)} bytes of outputs, expected {sum(sizes)}: is its disk "
            "full (adb shell df /data)?"
        )
    for d, size in zip(details, sizes, strict=True):
        array = np.frombuffer(content[start : start + size], d["dtype"]).reshape(d["shape"])
        found[int(d["index"])] = runtime.dequantize(array, d)
        start += size
    return [found[int(d["index"])] for d in session.outputs]


def work() -> int:
    """Measures, compares and prints what the flags ask for."""
    model = flatbuffer.content(pathlib.Path(_MODEL.value))
    signatures = flatbuffer.read(model).signatureDefs or []
    if _SIGNATURE.value or len(signatures) > 1:  # the tool refuses to choose
        model = select(model, _SIGNATURE.value or flatbuffer.text(signatures[0].signatureKey))
    reference = samples(_REFERENCE.value, model, _ROWS.value) if _REFERENCE.value else None
    binary = pathlib.Path(_TOOL.value)
    if not binary.is_file():
        raise ValueError(f"--tool={binary} is no file: docs/phone.md says where it is from")
    try:
        abi = tool.abi(binary.read_bytes()[:20])
    except ValueError as error:
        raise ValueError(
            f"--tool={binary}: {error}; docs/phone.md says where it is from"
        ) from error
    phone = adb.connect(_ADB.value, _SERIAL.value, _TIMEOUT.value)
    try:
        code = _measure(phone, model, binary, abi, reference)
    except BaseException:
        with contextlib.suppress(OSError, ValueError):  # the first error says more
            phone.clear()
        raise
    phone.clear()
    return code


def _about(phone: adb.Phone, abi: str) -> dict[str, str]:
    names = {
        "model": "ro.product.model",
        "chip": "ro.soc.model",
        "abis": "ro.product.cpu.abilist",
        "android": "ro.build.version.release",
    }
    about = {key: phone.shell("getprop", name).strip() for key, name in names.items()}
    if abi not in about["abis"].split(","):
        raise ValueError(f"the tool is for {abi}, the phone {phone.serial} runs {about['abis']!r}")
    return about


def _measure(
    phone: adb.Phone,
    model: bytes,
    tool_file: pathlib.Path,
    abi: str,
    reference: tuple[list[np.ndarray], list[np.ndarray]] | None,
) -> int:
    about = _about(phone, abi)
    print(f"{about['model']} ({about['chip']}, {about['abis']}), Android {about['android']}")
    binary = phone.push(tool_file, "benchmark_model")
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "model.tflite")
        file.write_bytes(model)
        graph = phone.push(file, file.name)
    phone.shell("chmod", "755", binary)
    failed: list[str] = []
    found: dict[str, Any] = {}
    print(HEADER)
    for delegate in dict.fromkeys(_DELEGATES.value):
        command = [binary, f"--graph={graph}", f"--num_threads={_THREADS.value}", *_APPLY[delegate]]
        printed = phone.shell(*command, f"--num_runs={_RUNS.value}")
        figures, gap = tool.timing(delegate, printed), None
        if figures.applied == "nothing" and delegate != "cpu":
            failed.append(f"{delegate} was not applied: the CPU ran the model")
        if reference is not None:
            gap = compare(model, on_phone(phone, model, reference[0], command), reference[1])
            limit = _MAX_LSB.value if gap.in_steps else _MAX_ERROR.value
            if delegate == "cpu" and not gap.largest <= limit:
                failed.append(f"outputs on {delegate} {said(gap)}; at most {limit:g} is allowed")
        print(row(figures, gap))
        found[delegate] = figures._asdict() | {"outputs": gap._asdict() if gap else None}
    for sentence in failed:
        print(f"FAILED: {sentence}")
    if _JSON.value:
        _atomic.write_json(_JSON.value, {"phone": about, "model": _MODEL.value, "delegates": found})
    return cli.PASSED if failed else cli.GOOD


HEADER = (
    "delegate  graph    nodes    init ms  first ms  warm ms  mean ms  median      min      max"
    "  init MB  all MB  outputs"
)


def row(figures: tool.Timing, gap: Difference | None) -> str:
    """Formats one line of the table."""

    def cell(number: float | None, width: int, digits: int = 3) -> str:
        return f"{'' if number is None else format(number, f'.{digits}f'):>{width}}"

    nodes = "" if figures.nodes is None else f"{figures.nodes}/{figures.of_nodes}"
    times = (figures.mean_ms, figures.median_ms, figures.min_ms, figures.max_ms)
    return (
        f"{figures.delegate:8}  {figures.applied:7}  {nodes:7}  {cell(figures.init_ms, 7, 2)}  "
        f"{cell(figures.first_ms, 8)}  {cell(figures.warmup_ms, 7)}  "
        f"{'  '.join(cell(number, 7) for number in times)}  {cell(figures.init_mb, 7, 2)}  "
        f"{cell(figures.memory_mb, 6, 2)}  {said(gap) if gap else ''}"
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
