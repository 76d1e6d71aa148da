"""Fuzzes the reader of .tflite files: what passes it must not end the process in LiteRT.

    python -m launch.fuzz --seconds=600                  (needs the extra `fuzz`)
    python -m launch.fuzz --changes=100                  (without it)

Small files are changed byte by byte and number by number, guided by the lines that they reach in
`compressjax/export` (atheris), or blindly. A file may be refused with a ValueError; one that passes
is loaded and run by LiteRT in a process of its own. Anything else is a finding: the file is written
to --findings, and the command ends with 1. It starts from files that the library makes (float,
int8, int16, dynamic, sparse, four bits), or from those in --corpus.
"""

import hashlib
import multiprocessing
import os
import pathlib
import random
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from absl import app, flags

_SECONDS = flags.DEFINE_integer("seconds", 60, "How long to look.", lower_bound=1)
_CHANGES = flags.DEFINE_integer(
    "changes", 0, "Change each file so many times without atheris, instead.", lower_bound=0
)
_CORPUS = flags.DEFINE_string("corpus", None, "Folder of files to start from.")
_SEED = flags.DEFINE_integer("fuzz_seed", 1, "Where the random changes start.", lower_bound=1)
_FINDINGS = flags.DEFINE_string("findings", "runs/fuzz", "Where files that broke something go.")

LONGEST_RUN = 10  # seconds that LiteRT may take for one file
LARGEST_FILE = 1 << 15
_MEMORY = 1 << 28  # bytes of activations; larger files are read, but not run
_SIGNALS = (
    signal.SIGABRT, signal.SIGALRM, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV,
)  # fmt: skip
# Numbers at which programs go wrong.
_NUMBERS = (-(2**31), -129, -128, -2, -1, 0, 1, 2, 3, 4, 7, 8, 16, 127, 255, 256, 65535, 2**31 - 1)


def seeds() -> dict[str, bytes]:
    """Exports small models in the formats that the reader knows.

    Returns:
        Files by name.
    """
    import jax
    import jax.numpy as jnp
    from flax import linen as nn

    import compressjax as cj

    class Network(nn.Module):
        """A convolution, a depthwise one, a shortcut, pools, a gate and a fully connected layer."""

        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            x = nn.relu(nn.Conv(4, (3, 3), strides=2)(x))
            y = nn.relu6(nn.Conv(4, (3, 3), feature_group_count=4)(x))
            x = nn.max_pool(x + y, (2, 2), (2, 2)) * nn.sigmoid(x.mean((1, 2), keepdims=True))
            x = jnp.concatenate([x, jnp.pad(x[:, :1], ((0, 0), (0, 1), (0, 0), (0, 0)))], -1)
            return nn.softmax(nn.Dense(3)(x.transpose(0, 2, 1, 3).reshape(1, -1)))

    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 2))
    network = Network()
    variables = network.init(jax.random.key(1), x)
    pruned = jax.tree.map(lambda w: w * (jnp.abs(w) > 0.9 * jnp.abs(w).max()), variables)
    files = {
        "float": cj.export.tflite(network.apply, variables, x, via="litert"),
        "sparse": cj.export.tflite(network.apply, pruned, x, via="litert", sparse=True),
    }
    specs = {
        "int8": cj.quant.int8(),
        "int16": cj.quant.int16x8(),
        "dynamic": cj.quant.dynamic(),
        "four_bits": cj.quant.int8(weights={"**": cj.quant.grids.integer(4)}),
    }
    for name, spec in specs.items():
        q = cj.quantize(network.apply, spec)
        qv, four = q.calibrate(variables, [x]), name == "four_bits"
        files[name] = cj.export.tflite(q, qv, x, via="litert", int8_io=name == "int8", int4=four)
    return files


def mutated(data: bytes, seed: int) -> bytes:
    """Changes a few numbers of a file that the reader accepts, and packs it again.

    Args:
        data: a file; one that is refused comes back as it is.
        seed: of the random choices; the same seed makes the same changes.

    Returns:
        The changed file: its layout is right, its meaning perhaps not.
    """
    from compressjax.export import flatbuffer

    choose = random.Random(seed)
    try:
        model = flatbuffer.read(data)
        places = list(_numbers(model))
        for _ in range(choose.randint(1, 3)):
            choose.choice(places)(choose)
        return flatbuffer.write(model)
    except Exception:  # a number that the packer refuses, or a file that the reader does
        return data


def _numbers(table: Any) -> Iterator[Callable[[random.Random], None]]:
    """Every scalar and every item of the vectors below a table, as what changes it."""
    for name, value in vars(table).items():
        if isinstance(value, list):
            for item in value:
                if hasattr(item, "__dict__"):
                    yield from _numbers(item)
        elif isinstance(value, np.ndarray):
            yield _item(table, name)
        elif isinstance(value, bool | int | float):
            yield _scalar(table, name)
        elif hasattr(value, "__dict__"):
            yield from _numbers(value)


def _scalar(table: Any, name: str) -> Callable[[random.Random], None]:
    def change(choose: random.Random) -> None:
        value = getattr(table, name)
        kinds: dict[type, Callable[[], Any]] = {
            bool: lambda: not value,
            int: lambda: choose.choice((*_NUMBERS, value + 1, value - 1)),
            float: lambda: choose.choice((0.0, -1.0, 1e30, float("inf"), float("nan"), -value)),
        }
        setattr(table, name, kinds[type(value)]())

    return change


def _item(table: Any, name: str) -> Callable[[random.Random], None]:
    def change(choose: random.Random) -> None:
        values = np.array(getattr(table, name))
        act = choose.randrange(4)
        if act == 0:
            values = values[: choose.randint(0, len(values))]
        elif act == 1:
            values = np.concatenate([values, values[-1:]])
        elif len(values):
            at = choose.randrange(len(values))
            if values.dtype.kind == "f":
                values[at] = choose.choice((0.0, -1.0, 1e-30, 1e30, np.inf, np.nan))
            else:
                low, high = np.iinfo(values.dtype).min, np.iinfo(values.dtype).max
                values[at] = min(max(choose.choice((*_NUMBERS, int(values[at]) + 1)), low), high)
        setattr(table, name, values)

    return change


def judge(data: bytes, *, execute: bool = True) -> str | None:
    """Reads a file and, if the reader accepts it, runs it in a process of its own.

    Args:
        data: the file.
        execute: whether to run it.

    Returns:
        What went wrong, or `None`: the file was refused with a ValueError, or it ran, or LiteRT
        refused it.
    """
    from compressjax.export import flatbuffer

    try:
        model = flatbuffer.read(data)
    except ValueError:
        return None
    except Exception as error:
        return f"the reader raised {type(error).__name__}: {error}"
    if not execute or _activations(model) > _MEMORY:
        return None
    return _run(data)


def _activations(model: Any) -> int:
    shapes = (t.shape for graph in model.subgraphs for t in graph.tensors or [])
    return sum(8 * int(np.prod(shape, dtype=np.float64)) for shape in shapes if shape is not None)


def _fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # JAX's; the child does not touch JAX
        return os.fork()


def _run(data: bytes) -> str | None:
    """Runs a file in a fork of this process, and says how that died."""
    from ai_edge_litert.interpreter import Interpreter

    child = _fork()
    if child == 0:  # pragma: no cover - another process
        try:
            for number in _SIGNALS:  # libFuzzer has handlers of its own
                signal.signal(number, signal.SIG_DFL)
            signal.alarm(LONGEST_RUN)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            interpreter = Interpreter(model_content=data)
            interpreter.allocate_tensors()
            for details in interpreter.get_input_details():
                zeros = np.zeros(details["shape"], details["dtype"])
                interpreter.set_tensor(details["index"], zeros)
            interpreter.invoke()
        except Exception:
            pass
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    if status == 0:
        return None
    if not os.WIFSIGNALED(status):
        return f"LiteRT left with the status {os.waitstatus_to_exitcode(status)}"
    killer = signal.Signals(os.WTERMSIG(status))
    return f"LiteRT {'took too long' if killer == signal.SIGALRM else f'died of {killer.name}'}"


def _write_seeds(folder: str) -> None:
    for name, data in seeds().items():
        pathlib.Path(folder, f"{name}.tflite").write_bytes(data)


class _Findings:
    """Judges files, and keeps those that broke something."""

    def __init__(self, folder: str):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        # Shared: libFuzzer ends the process that it runs in.
        self.tried, self.found = (multiprocessing.Value("q", 0, lock=False) for _ in range(2))

    def judge(self, data: bytes) -> None:
        self.tried.value += 1
        if (what := judge(data)) is not None:
            self.found.value += 1
            name = f"{hashlib.sha256(data).hexdigest()[:16]}.tflite"
            (self.folder / name).write_bytes(data)
            print(f"{name}: {what}", flush=True)


def _blindly(corpus: str, findings: _Findings, changes: int, seed: int) -> None:
    for path in sorted(pathlib.Path(corpus).iterdir()):
        data = path.read_bytes()
        for number in range(changes):
            findings.judge(mutated(data, seed + number))


def _guided(corpus: str, findings: _Findings, seconds: int, seed: int) -> bool:
    """Runs atheris in another process, and says whether it ended well."""
    try:
        import atheris
    except ModuleNotFoundError as error:
        raise app.UsageError(
            "install the extra: pip install 'compressjax[fuzz]', or give --changes"
        ) from error
    with atheris.instrument_imports(include=["compressjax.export"]):
        import compressjax.export.flatbuffer  # noqa: F401

    def mutator(data: bytes, limit: int, seed: int) -> bytes:
        if seed % 2:
            return atheris.Mutate(data, limit)
        changed = mutated(data, seed)
        return changed if changed != data and len(changed) <= limit else atheris.Mutate(data, limit)

    options = [
        f"-max_total_time={seconds}", f"-seed={seed}", "-rss_limit_mb=4096", "-verbosity=0",
        f"-max_len={LARGEST_FILE}", f"-timeout={10 * LONGEST_RUN}",
    ]  # fmt: skip
    child = _fork()
    if child == 0:
        atheris.Setup([sys.argv[0], *options, corpus], findings.judge, custom_mutator=mutator)
        atheris.Fuzz()
    _, status = os.waitpid(child, 0)
    return status == 0


def main(argv: list[str]) -> None:
    """Looks for findings, and exits with 1 if there are any.

    Args:
        argv: the program's name.
    """
    del argv
    findings = _Findings(_FINDINGS.value)
    with tempfile.TemporaryDirectory() as folder:
        corpus = _CORPUS.value or folder
        if _CORPUS.value is None:
            # In another process: this one is forked for each file, and must not have started JAX.
            spawn = multiprocessing.get_context("spawn")
            maker = spawn.Process(target=_write_seeds, args=(corpus,))
            maker.start()
            maker.join()
            if maker.exitcode:
                raise app.UsageError("the first files could not be made: see above")
        well = True
        if _CHANGES.value:
            _blindly(corpus, findings, _CHANGES.value, _SEED.value)
        else:
            well = _guided(corpus, findings, _SECONDS.value, _SEED.value)
    print(f"{findings.tried.value} files tried, {findings.found.value} findings")
    sys.exit(0 if well and not findings.found.value else 1)


if __name__ == "__main__":
    app.run(main)
