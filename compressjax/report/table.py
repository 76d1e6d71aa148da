"""What each stage of a run costs and reaches, as rows: for the terminal and for programs.

A figure without its circumstances cannot be compared, so the JSON carries the data set, the seed,
the hardware, the versions and the command beside the rows. `plots.py` draws the same rows and
`page.py` puts everything on one page.
"""

import dataclasses
import importlib.metadata
import os
import pathlib
import platform
from collections.abc import Sequence
from typing import Any

import rich.box
import rich.table

from compressjax.pruning import Sensitivity
from compressjax.search import Round

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "numpy",
    "tensorflow",
    "tensorflow-cpu",
    "ai-edge-litert",
    "litert-converter",
)


@dataclasses.dataclass(frozen=True)
class StageRow:
    """One network on its way from dense to int8.

    Attributes:
      stage: its name.
      parameters: number of parameters, zeros included.
      nonzero: number of parameters that are not 0.
      macs: multiply-accumulates of one example.
      file_bytes: size of its .tflite.
      gzip_bytes: size of its .tflite after gzip, where zeros do not count.
      entropy_bytes: size of its .tflite if each array had an ideal code (`coding.py`).
      accuracy: share of the test set that is right, in [0, 1].
      latency_ms: median milliseconds of one example on one thread; None where not measured.
    """

    stage: str
    parameters: int
    nonzero: int
    macs: int
    file_bytes: int
    gzip_bytes: int
    entropy_bytes: int
    accuracy: float
    latency_ms: float | None = None


@dataclasses.dataclass(frozen=True)
class VerifyRow:
    """How a .tflite compares with the function it was exported from.

    Attributes:
      model: the file.
      via: the exporter that wrote it.
      examples: examples compared.
      values: values compared, over all layers and examples.
      differing: how many of them differ.
      max_difference: the largest difference, in steps of the int8 grid.
      top1_agreement: share of the examples with the same prediction.
      first_difference: the first layer that differs, None if none does.
    """

    model: str
    via: str
    examples: int
    values: int
    differing: int
    max_difference: int
    top1_agreement: float
    first_difference: str | None


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where figures come from.

    Attributes:
      command: what to type to get them again.
      dataset: name and split sizes.
      seed: seed of the run.
      hardware: processor and number of cores.
      system: operating system and Python.
      versions: of the packages that matter.
    """

    command: str
    dataset: str
    seed: int
    hardware: str
    system: str
    versions: dict[str, str]


def provenance(command: str, dataset: str, seed: int) -> Provenance:
    """Collect the circumstances of a run on this machine.

    Args:
      command: what was typed.
      dataset: name of the data set and its size.
      seed: seed of the run.

    Returns:
      The circumstances, with the hardware and the versions filled in.

    Example:
      >>> provenance('python -m experiments.run', 'digits', 0).seed
      0
    """
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return Provenance(
        command=command,
        dataset=dataset,
        seed=seed,
        hardware=f"{_processor()}, {os.cpu_count()} cores",
        system=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        versions=versions,
    )


def to_json(
    rows: Sequence[StageRow], verification: Sequence[VerifyRow], origin: Provenance
) -> dict[str, Any]:
    """Put rows and their circumstances into one value for JSON.

    Args:
      rows: the stages, first to last.
      verification: one row for each file that was verified.
      origin: from `provenance`.

    Returns:
      `{'rows': [...], 'verification': [...], 'provenance': {...}}` of plain values.

    Example:
      >>> row = StageRow('train', 10, 10, 100, 4096, 2048, 1536, 0.99)
      >>> to_json([row], [], provenance('run', 'digits', 0))['rows'][0]['accuracy']
      0.99
    """
    return {
        "rows": [dataclasses.asdict(row) for row in rows],
        "verification": [dataclasses.asdict(row) for row in verification],
        "provenance": dataclasses.asdict(origin),
    }


def stages(rows: Sequence[StageRow]) -> rich.table.Table:
    """Lay the stages out for the terminal, sizes also as a ratio to the first row.

    Args:
      rows: the stages, first to last; the first is what the others are compared with.

    Returns:
      A table for `rich.print`.

    Example:
      >>> stages([StageRow('train', 10, 10, 100, 4096, 2048, 1536, 0.99)]).row_count
      1
    """
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, header_style="bold")
    table.add_column("stage", no_wrap=True)
    for name in STAGE_COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row.stage, *stage_cells(row, rows[0]))
    return table


STAGE_COLUMNS = (
    "parameters",
    "not zero",
    "MACs",
    "file bytes",
    "smaller",
    "gzip bytes",
    "entropy bytes",
    "accuracy",
    "latency",
)


def stage_cells(row: StageRow, first: StageRow) -> tuple[str, ...]:
    """Say a row's figures in words, one cell for each of `STAGE_COLUMNS`.

    Args:
      row: the stage.
      first: the stage it is compared with.

    Returns:
      Nine strings.

    Example:
      >>> row = StageRow('train', 1000, 500, 2000, 4096, 2048, 1536, 0.99, 0.25)
      >>> stage_cells(row, row)
      ('1,000', '500', '2,000', '4,096', '1.0x', '2,048', '1,536', '99.00 %', '250.0 µs')
    """
    return (
        f"{row.parameters:,}",
        f"{row.nonzero:,}",
        f"{row.macs:,}",
        f"{row.file_bytes:,}",
        f"{first.file_bytes / row.file_bytes:.1f}x",
        f"{row.gzip_bytes:,}",
        f"{row.entropy_bytes:,}",
        f"{100 * row.accuracy:.2f} %",
        "" if row.latency_ms is None else f"{1000 * row.latency_ms:,.1f} µs",
    )


def verification(rows: Sequence[VerifyRow]) -> rich.table.Table:
    """Lay the verification out for the terminal.

    Args:
      rows: one for each file that was verified.

    Returns:
      A table for `rich.print`.

    Example:
      >>> verification([VerifyRow('a.tflite', 'litert', 9, 90, 0, 0, 1.0, None)]).row_count
      1
    """
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, header_style="bold")
    table.add_column("file", no_wrap=True)
    for name in VERIFY_COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row.model, *verify_cells(row))
    return table


VERIFY_COLUMNS = ("via", "examples", "values", "differing", "largest", "same top-1", "first layer")


def verify_cells(row: VerifyRow) -> tuple[str, ...]:
    """Say a verification's figures in words, one cell for each of `VERIFY_COLUMNS`.

    Args:
      row: the verification.

    Returns:
      Seven strings.

    Example:
      >>> verify_cells(VerifyRow('a.tflite', 'litert', 9, 90, 0, 0, 1.0, None))
      ('litert', '9', '90', '0', '0', '100.00 %', 'none')
    """
    return (
        row.via,
        f"{row.examples:,}",
        f"{row.values:,}",
        f"{row.differing:,}",
        f"{row.max_difference:,}",
        f"{100 * row.top1_agreement:.2f} %",
        row.first_difference or "none",
    )


def sensitivity(scan: Sensitivity) -> rich.table.Table:
    """Lay a scan of single leaves out for the terminal, the model's own accuracy on top.

    Args:
      scan: from `pruning.sensitivity`, of accuracies in [0, 1].

    Returns:
      A table for `rich.print`; a column each sparsity, a row each leaf, accuracies in percent.

    Example:
      >>> import numpy as np
      >>> scan = Sensitivity(np.array([0.5]), 0.99, {'Dense_0/kernel': np.array([0.9])})
      >>> sensitivity(scan).row_count
      2
    """
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, header_style="bold")
    table.add_column("accuracy, % at sparsity")
    for level in scan.levels:
        table.add_column(f"{100 * level:g} %", justify="right", no_wrap=True)
    table.add_row("whole", f"{100 * scan.dense:.2f}", *[""] * (len(scan.levels) - 1))
    for path, scores in scan.scores.items():
        table.add_row(path, *(f"{100 * score:.2f}" for score in scores))
    return table


def search(history: Sequence[Round], floor: float) -> rich.table.Table:
    """Lay the rounds of a search out for the terminal.

    Args:
      history: of a `Search` whose scores are accuracies in [0, 1].
      floor: the lowest accuracy that is good enough.

    Returns:
      A table for `rich.print`; a row each round, first the model that the search started from.

    Example:
      >>> search([Round(0.0, 0.99), Round(0.5, 0.97)], 0.98).row_count
      2
    """
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, header_style="bold")
    for name in ("round", "level", "accuracy", f"floor {100 * floor:.2f} %"):
        table.add_column(name, justify="right", no_wrap=True)
    for number, (level, score) in enumerate(history):
        table.add_row(
            str(number) if number else "start",
            f"{100 * level:g} %",
            f"{100 * score:.2f} %",
            "met" if score >= floor else "missed",
        )
    return table


def _processor() -> str:
    """The processor's name, as well as the platform says it."""
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
