"""Says where the time of one call goes, kernel by kernel.

`benchmark.py` times whole calls. LiteRT's profiler times what is inside, XNNPACK's kernels too; it
is run by `_profiler.py` in a process of its own, because its interface is for C and may change.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from compressjax import _atomic
from compressjax.export import _profiler, flatbuffer
from compressjax.export._require import require

_ROW = re.compile(
    r"\s*(?P<kernel>\S.*?)"
    r"(?:\s+[\d.]+){3}\s+(?P<percent>[\d.]+)%\s+[\d.]+%\s+[\d.]+\s+(?P<called>\d+)"
    r"\s+\[(?P<owner>.*)\]:(?P<index>\d+)\s*"
)
_TOTAL = re.compile(r"Timings \(microseconds\): .*curr=(?P<total>\d+)")
# What XNNPACK calls a kernel -> the operations it may stand for; it computes convolutions with one
# tap as fully connected layers.
_LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_STANDS_FOR = {
    "Convolution": _LAYERS, "Fully Connected": _LAYERS, "Add": ("ADD",), "Multiply": ("MUL",),
    "Mean": ("MEAN",), "Max Pooling": ("MAX_POOL_2D",), "Average Pooling": ("AVERAGE_POOL_2D",),
    "HardSwish": ("HARD_SWISH",), "Sigmoid": ("LOGISTIC",), "Softmax": ("SOFTMAX",),
}  # fmt: skip


class Kernel(NamedTuple):
    """One kernel of a call.

    Attributes:
        operation: what it is, in XNNPACK's words where it is XNNPACK's, else LiteRT's operation.
        name: the tensor that it puts out; empty where that is not known, as for the conversions
            and clamps that XNNPACK adds.
        seconds: of a call, a mean of many; LiteRT's clock counts whole microseconds.
        delegated: whether it is XNNPACK's.
    """

    operation: str
    name: str
    seconds: float
    delegated: bool


def profile(
    model: flatbuffer.File,
    *,
    threads: int = 1,
    rounds: int = 11,
    repeats: int = 10,
    warmup: int = 10,
) -> tuple[Kernel, ...]:
    """Times every kernel of a model on zeros.

    Args:
        model: the .tflite, as bytes or as a path.
        threads: CPU threads.
        rounds: profiles that are made; each kernel gets the median of its means, so that what
            else the machine does counts little.
        repeats: calls in each.
        warmup: calls before the first.

    Returns:
        The kernels in the order they run.

    Raises:
        OSError: the path cannot be read.
        ValueError: the file is damaged, an argument is less than 1, or this version of LiteRT
            cannot be profiled.

    Example:
        >>> import jax.numpy as jnp
        >>> from compressjax.export.tflite import tflite
        >>> model = tflite(lambda variables, x: x * 2, {}, jnp.ones((1, 4)), via='litert')
        >>> [(kernel.operation, kernel.delegated) for kernel in profile(model, rounds=1)]
        [('Multiply (ND)', True)]
    """
    if min(threads, rounds, repeats) < 1 or warmup < 0:
        raise ValueError(
            f"threads={threads}, rounds={rounds}, repeats={repeats}, warmup={warmup}: expected at "
            "least 1, 1, 1 and 0"
        )
    data = flatbuffer.content(model)
    unpacked = flatbuffer.read(data)
    with tempfile.TemporaryDirectory() as folder:
        path = _atomic.write_bytes(pathlib.Path(folder) / "model.tflite", data)
        counts = [str(count) for count in (threads, warmup, rounds, repeats)]
        command = [sys.executable, "-I", _profiler.__file__, _library(), str(path), *counts]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        raise ValueError(
            f"LiteRT {importlib.metadata.version('ai-edge-litert')} gives no profile of this model "
            f"(exit code {done.returncode}): {said}"
        )
    graph = unpacked.subgraphs[0]
    made = [
        (flatbuffer.op_name(unpacked, op), flatbuffer.text(graph.tensors[int(op.outputs[0])].name))
        for op in graph.operators
    ]
    return parse(done.stdout.split(_profiler.SEPARATOR), made)


def parse(summaries: Sequence[str], made: Sequence[tuple[str, str]]) -> tuple[Kernel, ...]:
    """Reads summaries of LiteRT's profiler.

    Args:
        summaries: their texts; each covers all calls so far.
        made: for each operation of the file, its kind and the tensor it puts out.

    Returns:
        The kernels in the order they run. XNNPACK numbers kernels in its own way, so a delegated
        kernel is given the name of a tensor only where there are as many kernels of its sort as
        operations. Kernels with one name and number in two parts of a graph, which an operation
        left to LiteRT divides, are one row: LiteRT adds them up.

    Raises:
        ValueError: one is no such summary.
    """
    totals, calls = zip(*map(_times, summaries), strict=True)
    means = np.diff(totals, axis=0, prepend=0) / np.diff(calls, prepend=0)[:, None]
    seconds = np.median(means, axis=0) / 1e6
    kernels, own = [], set()
    for row, mean in zip(_rows(summaries[0]), seconds, strict=True):
        operation, delegated = re.subn(r"^Delegate/", "", row["kernel"])
        index, name = int(row["index"]), ""
        if not delegated and index < len(made):
            name = made[index][1]
            own.add(index)
        kernels.append(Kernel(operation, name, float(mean), bool(delegated)))
    taken = [entry for i, entry in enumerate(made) if i not in own]
    for kinds in set(_STANDS_FOR.values()):
        names = [name for kind, name in taken if kind in kinds]
        places = [i for i, k in enumerate(kernels) if k.delegated and _kinds(k) == kinds]
        if len(names) == len(places):
            for place, name in zip(places, names, strict=True):
                kernels[place] = kernels[place]._replace(name=name)
    return tuple(kernels)


def _rows(summary: str) -> list[re.Match[str]]:
    lines = summary.partition("Run Order")[2].partition("Top by")[0].splitlines()
    return [match for match in map(_ROW.fullmatch, lines) if match]


def _times(summary: str) -> tuple[list[float], int]:
    """Microseconds of each kernel over all calls so far, and how many calls there were."""
    rows, total = _rows(summary), _TOTAL.search(summary)
    if not rows or total is None:
        raise ValueError(f"this is no profile of LiteRT: {summary[:80]!r}")
    times = [float(row["percent"]) / 100 * int(total["total"]) for row in rows]
    return times, min(int(row["called"]) for row in rows)


def _kinds(kernel: Kernel) -> tuple[str, ...]:
    """The operations that one of XNNPACK's kernels may stand for."""
    starts = (kinds for start, kinds in _STANDS_FOR.items() if kernel.operation.startswith(start))
    return next(starts, ())


def _library() -> str:
    """LiteRT's C library."""
    require("ai_edge_litert")
    spec = importlib.util.find_spec("ai_edge_litert")
    assert spec is not None and spec.origin is not None
    folder = pathlib.Path(spec.origin).parent
    found = [path for path in folder.glob("libLiteRt.*") if path.suffix in (".so", ".dylib")]
    if not found:
        raise ValueError(f"ai-edge-litert has no C library in {folder}, so it cannot be profiled")
    return str(found[0])
