"""Says how long .tflite files take, side by side, and where the time goes.

    python -m launch.benchmark --model=float.tflite --model=int8.tflite --threads=1 --profile

Files take turns in every round, so their ratios hold on a machine that others use; the first is
what the others are compared with. The arena is computed from the file, the rest is measured on
this machine with LiteRT's default kernels. Exit code 0: measured; 1: a file is slower than
--max_ratio allows; 2: the input is wrong.
"""

import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from compressjax import _atomic, export, report
from launch import cli

_FLAGS = flags.FlagValues()
_MODELS = flags.DEFINE_multi_string("model", None, "A .tflite; repeat it.", flag_values=_FLAGS)
_THREADS = flags.DEFINE_integer("threads", 1, "CPU threads.", lower_bound=1, flag_values=_FLAGS)
_ROUNDS = flags.DEFINE_integer(
    "rounds", 50, "Turns of each file.", lower_bound=2, flag_values=_FLAGS
)
_PROFILE = flags.DEFINE_bool("profile", False, "Time every kernel too.", flag_values=_FLAGS)
_MAX_RATIO = flags.DEFINE_float(
    "max_ratio", None, "Largest time over the first file's that is allowed.", lower_bound=0.0,
    flag_values=_FLAGS,
)  # fmt: skip
_JSON = flags.DEFINE_string("json", None, "Where everything goes as JSON.", flag_values=_FLAGS)
flags.mark_flag_as_required("model", _FLAGS)


def table(turns: dict[str, export.Turns], latencies: dict[str, export.Latency]) -> str:
    """Formats what was measured.

    Args:
        turns: of `export.compare`.
        latencies: of `export.benchmark`, with the same names.

    Returns:
        One line a file, under a heading.

    Example:
        >>> turn = export.Turns(1e-3, 2e-3, 1e-3, 1.0, 1.0, 1.0)
        >>> latency = export.Latency(1e-3, 2e-3, 1e-3, ('ADD',), (), 2048)
        >>> print(table({'a.tflite': turn}, {'a.tflite': latency}))
        file      p50 ms  p90 ms  min ms  ratio  quartiles       arena KiB  delegated
        a.tflite   1.000   2.000   1.000  1.000  1.000 to 1.000        2.0  1 of 1
    """
    width = max(map(len, [*turns, "file"]))
    heading = "p50 ms  p90 ms  min ms  ratio  quartiles       arena KiB  delegated"
    lines = [f"{'file':{width}}  {heading}"]
    for name, turn in turns.items():
        latency = latencies[name]
        count = len(latency.delegated) + len(latency.not_delegated)
        lines.append(
            f"{name:{width}}  {1e3 * turn.p50:6.3f}  {1e3 * turn.p90:6.3f}  {1e3 * turn.min:6.3f}  "
            f"{turn.ratio:5.3f}  {turn.ratio_low:5.3f} to {turn.ratio_high:5.3f}  "
            f"{latency.arena_bytes / 1024:9,.1f}  {len(latency.delegated)} of {count}"
        )
    return "\n".join(lines)


def kernels(rows: Sequence[export.Kernel]) -> str:
    """Formats a profile, in the order the kernels run.

    Args:
        rows: of `export.profile`.

    Returns:
        One line a kernel.

    Example:
        >>> print(kernels([export.Kernel('ADD', 'add_0', 1e-6, False)]))
             us       %  kernel (* not delegated)  tensor
            1.0  100.0%  ADD *                     add_0
    """
    total = sum(row.seconds for row in rows) or 1.0
    labels = [row.operation + ("" if row.delegated else " *") for row in rows]
    heading = "kernel (* not delegated)"
    width = max(map(len, [*labels, heading]))
    lines = [f"{'us':>7}  {'%':>6}  {heading:{width}}  tensor"]
    for row, label in zip(rows, labels, strict=True):
        line = f"{1e6 * row.seconds:7.1f}  {row.seconds / total:6.1%}  {label:{width}}  {row.name}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def work() -> int:
    """Measures, prints, and writes what the flags ask for."""
    models = {path: pathlib.Path(path) for path in _MODELS.value}
    turns = export.compare(models, threads=_THREADS.value, rounds=_ROUNDS.value)
    latencies = {
        name: export.benchmark(path, threads=_THREADS.value, repeats=_ROUNDS.value)
        for name, path in models.items()
    }
    print(table(turns, latencies))
    profiles = {}
    if _PROFILE.value:
        for name, path in models.items():
            profiles[name] = export.profile(path, threads=_THREADS.value)
            print(f"\n{name}\n{kernels(profiles[name])}")
    slow = [
        name
        for name, turn in list(turns.items())[1:]
        if _MAX_RATIO.value is not None and turn.ratio > _MAX_RATIO.value
    ]
    for name in slow:
        print(
            f"FAILED: {name} takes {turns[name].ratio:.3f} of the first file's time, at most "
            f"{_MAX_RATIO.value:.3f} is allowed"
        )
    if _JSON.value:
        origin = report.provenance("launch.benchmark", "", 0)
        value = {
            name: {
                **turns[name]._asdict(),
                "arena_bytes": latencies[name].arena_bytes,
                "delegated": latencies[name].delegated,
                "not_delegated": latencies[name].not_delegated,
                "kernels": [row._asdict() for row in profiles.get(name, ())],
            }
            for name in models
        }
        hardware = {"hardware": origin.hardware, "system": origin.system}
        circumstances = {**hardware, "versions": origin.versions, "threads": _THREADS.value}
        _atomic.write_json(_JSON.value, {"files": value, "circumstances": circumstances})
    return cli.PASSED if slow else cli.GOOD


def main(argv: Sequence[str]) -> int:
    """Runs the command and gives its exit code."""
    return cli.run(work, _FLAGS, __doc__ or "", argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
