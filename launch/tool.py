"""LiteRT's `benchmark_model`: what it prints, and which phones its binary is for.

Pure functions on text and bytes, so that logs of real phones can test them. The lines are those of
`benchmark_model.cc` and `benchmark_tflite_model.cc` in `tflite/tools/benchmark` of
google-ai-edge/LiteRT; the percentiles are from its newer versions, and memory is missing where the
system does not tell it.
"""

import re
from typing import NamedTuple

_NUMBER = r"[-+]?[\d.]+(?:e[-+]?\d+)?"
_DELEGATES = {"cpu": "XNNPack", "gpu": "Gpu", "nnapi": "Nnapi"}  # in the names that LiteRT prints
_MACHINES = {3: "x86", 40: "armeabi-v7a", 62: "x86_64", 183: "arm64-v8a"}  # of the ELF header


class Timing(NamedTuple):
    """What the tool said of one delegate; `None` is what it did not say.

    Attributes:
        delegate: the one that was asked for.
        applied: the part of the graph that it runs: `all`, `partly`, or `nothing`.
        nodes: how many operations it took.
        of_nodes: of how many.
        init_ms: to load and prepare.
        first_ms: the first run.
        warmup_ms: mean of the runs before the timed ones.
        mean_ms: of the timed runs, as all that follow.
        median_ms: the middle one.
        min_ms: the fastest.
        max_ms: the slowest.
        std_ms: their standard deviation.
        p95_ms: 95 % are not slower.
        init_mb: memory that loading took.
        memory_mb: memory that it took altogether.
    """

    delegate: str
    applied: str
    nodes: int | None
    of_nodes: int | None
    init_ms: float
    first_ms: float
    warmup_ms: float
    mean_ms: float
    median_ms: float | None
    min_ms: float | None
    max_ms: float | None
    std_ms: float | None
    p95_ms: float | None
    init_mb: float | None
    memory_mb: float | None


def timing(delegate: str, printed: str) -> Timing:
    """Reads what `benchmark_model` printed.

    Args:
        delegate: the one that was asked for: `cpu`, `gpu` or `nnapi`.
        printed: everything.

    Returns:
        The figures.

    Raises:
        ValueError: it printed no timings.

    Example:
        >>> found = timing('gpu', 'Explicitly applied GPU delegate, and the model graph will be '
        ...     'completely executed by the delegate.\\n'
        ...     'count=9 first=9 curr=9 min=8000 max=9000 avg=8 std=100 p5=8 median=8500 p95=9\\n'
        ...     'Inference timings in us: Init: 5685, First inference: 18535, '
        ...     'Warmup (avg): 14462.3, Inference (avg): 1.4e+04')
        >>> found.applied, found.init_ms, found.mean_ms, found.median_ms, found.memory_mb
        ('all', 5.685, 14.0, 8.5, None)
    """
    found = re.search(
        rf"Inference timings in us: Init: ({_NUMBER}), First inference: ({_NUMBER}), "
        rf"Warmup \(avg\): ({_NUMBER}|\S*nan), Inference \(avg\): ({_NUMBER})",
        printed,
    )
    if found is None:
        raise ValueError(
            f"benchmark_model printed no timings with {delegate}: {' '.join(printed.split()[-60:])}"
        )
    init, first, warmup, mean = (float(number) / 1e3 for number in found.groups())
    lines = re.findall(r"count=\d+ (.*)", printed)
    stats = dict(re.findall(rf"(\w+)=({_NUMBER})", lines[-1])) if lines else {}
    if set(stats) == {"curr"}:  # one run, or all took the same
        stats |= {"min": stats["curr"], "max": stats["curr"], "std": "0"}
    memory = re.search(rf"Memory footprint delta .*init=({_NUMBER}) overall=({_NUMBER})", printed)
    took = re.search(
        rf"Replacing (\d+) out of (\d+) node\(s\) with delegate \(\w*{_DELEGATES[delegate]}",
        printed,
    )
    if "Restored original execution plan after delegate application failure" in printed:
        took = None
    median, least, most, std, p95 = (
        float(stats[name]) / 1e3 if name in stats else None
        for name in ("median", "min", "max", "std", "p95")
    )
    return Timing(
        delegate,
        _applied(printed, took),
        int(took.group(1)) if took else None,
        int(took.group(2)) if took else None,
        *(init, first, warmup, mean, median, least, most, std, p95),
        float(memory.group(1)) if memory else None,
        float(memory.group(2)) if memory else None,
    )


def _applied(printed: str, took: re.Match[str] | None) -> str:
    if "completely executed by the delegate" in printed:
        return "all"
    if "partially executed by the delegate" in printed:
        return "partly"
    if took is not None and "will not be executed by the delegate" not in printed:
        return "all" if took.group(1) == took.group(2) else "partly"
    return "nothing"


def abi(binary: bytes) -> str:
    """Says which of Android's ABIs a native program is for.

    Args:
        binary: its first 20 bytes or more.

    Returns:
        As `getprop ro.product.cpu.abilist` names it.

    Raises:
        ValueError: it is no native program, or for no phone.

    Example:
        >>> abi(b'\\x7fELF' + bytes(14) + (183).to_bytes(2, 'little'))
        'arm64-v8a'
    """
    if binary[:2] == b"PK":
        raise ValueError("it is an app (.apk): take the native benchmark_model")
    machine = int.from_bytes(binary[18:20], "little")
    if binary[:4] != b"\x7fELF" or machine not in _MACHINES:
        raise ValueError(
            f"it is no native program for one of {sorted(_MACHINES.values())}: it begins with "
            f"{binary[:4]!r}"
        )
    return _MACHINES[machine]
