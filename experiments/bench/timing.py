"""Side-by-side timing, shared by all benchmarks.

On a machine that others use, times drift by far more than the few percent a benchmark is about. So
the programs take turns within every round, the order of turns rotates, and programs are compared
round by round: a ratio is the median of the rounds' ratios.
"""

import dataclasses
import enum
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


class Clock(enum.Enum):
    """What is measured: elapsed seconds, or seconds of all processors together."""

    WALL = "wall"
    PROCESSOR = "processor"

    def now(self) -> float:
        """Returns the time in seconds, from an arbitrary origin."""
        return time.perf_counter() if self is Clock.WALL else time.process_time()


@dataclasses.dataclass(frozen=True)
class Timing:
    """How one program did.

    Attributes:
      median: seconds a call.
      ratio: median over rounds of its time over the first program's time in the same round.
      ratio_low: lower quartile of those ratios.
      ratio_high: upper quartile of those ratios.
    """

    median: float
    ratio: float
    ratio_low: float
    ratio_high: float


def interleaved(
    programs: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    warmup: int = 2,
    clock: Clock = Clock.WALL,
) -> dict[str, Timing]:
    """Times several programs in turns.

    Args:
      programs: at least one program by name; the first is the one others are compared with. Each
        call's result is waited for.
      rounds: how many times each program is timed, at least 2.
      warmup: untimed calls of each program before, at least 1, which also compile.
      clock: what is measured.

    Returns:
      A timing for each program, in the order given.

    Raises:
      ValueError: if there are no programs, under 2 rounds or no warm-up.

    Example:
      >>> f = jax.jit(lambda x: x + 1)
      >>> timings = interleaved({'one': lambda: f(1.0), 'two': lambda: f(f(1.0))}, rounds=3)
      >>> timings['one'].ratio
      1.0
    """
    if not programs or rounds < 2 or warmup < 1:
        raise ValueError(
            "interleaved needs at least 1 program, 2 rounds and 1 warm-up call, found "
            f"{len(programs)} programs, rounds={rounds}, warmup={warmup}"
        )
    for program in programs.values():
        for _ in range(warmup):
            jax.block_until_ready(program())
    names = list(programs)
    times: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        turn = i % len(names)
        for name in names[turn:] + names[:turn]:
            start = clock.now()
            jax.block_until_ready(programs[name]())
            times[name].append(clock.now() - start)
    base = times[names[0]]
    timings = {}
    for name in names:
        ratios = [a / b for a, b in zip(times[name], base, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        timings[name] = Timing(statistics.median(times[name]), middle, low, high)
    return timings


def _processor() -> str:
    """Names the processor; `platform` alone is silent on Linux."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def document(result: Mapping[str, Any]) -> str:
    """Writes what a benchmark found as JSON, with the hardware and versions.

    Args:
      result: anything that JSON holds, and `Timing`s.

    Returns:
      The JSON.

    Example:
      >>> json.loads(document({'rows': [1, 2]}))['rows']
      [1, 2]
    """
    found = {**result, "environment": environment()}
    return json.dumps(found, default=dataclasses.asdict, indent=2)


def environment() -> dict[str, Any]:
    """Describes the hardware and versions that a measurement belongs to.

    Returns:
      A dictionary that JSON can hold.

    Example:
      >>> sorted(environment())
      ['cpus', 'device', 'load', 'processor', 'python', 'system', 'versions']
    """
    return {
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "device": f"{jax.default_backend()}: {jax.devices()[0].device_kind}",
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def table(timings: Mapping[str, Timing]) -> str:
    """Formats timings for a terminal.

    Args:
      timings: what `interleaved` returned.

    Returns:
      One line a program, under a heading.

    Example:
      >>> print(table({'dense': Timing(0.25, 1.0, 1.0, 1.0)}))
      program                              ms     ratio (quartiles)
      dense                            250.00     1.000 (1.000 to 1.000)
    """
    lines = [f"{'program':<28} {'ms':>10}     ratio (quartiles)"]
    for name, t in timings.items():
        spread = f"{t.ratio:.3f} ({t.ratio_low:.3f} to {t.ratio_high:.3f})"
        lines.append(f"{name:<28} {t.median * 1e3:>10.2f}     {spread}")
    return "\n".join(lines)
