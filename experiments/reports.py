"""What a run says when it is done: a table in the terminal, and files in the workdir.

One function for each kind of run, called by `run.py` with the results of all stages. It returns
what the config promised and whether it was reached.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import rich.console

from compressjax import _atomic, report
from compressjax.report import page, plots, table
from compressjax.search import Round
from experiments import stages
from experiments.pipeline import Result


def stage_rows(results: dict[str, Result], int8_file: str) -> list[report.StageRow]:
    """Put the figures of the stages together, dense network first, int8 file last.

    Args:
      results: of all stages.
      int8_file: name of the int8 file that is shipped.

    Returns:
      One row a network. The accuracy of the int8 file is LiteRT's own.
    """
    files, latencies = results["export"].figures, results["benchmark"].figures
    rows = []
    for name in (*stages.FLOAT_FILES, "quantize"):
        figures = results[name].figures
        file = files[int8_file if name == "quantize" else name]
        accuracy = figures["accuracy"]
        if name == "quantize":
            accuracy = results["verify"].figures[int8_file]["accuracy"]
        rows.append(
            report.StageRow(
                stage=name,
                parameters=figures["parameters"],
                nonzero=figures["nonzero"],
                macs=figures["macs"],
                file_bytes=file["file_bytes"],
                gzip_bytes=file["gzip_bytes"],
                entropy_bytes=file["entropy_bytes"],
                accuracy=accuracy,
                latency_ms=latencies[file["file"]]["p50_ms"],
            )
        )
    return rows


def verify_rows(results: dict[str, Result]) -> list[report.VerifyRow]:
    """Put the figures of the verification together.

    Args:
      results: of all stages.

    Returns:
      One row a file.
    """
    return [
        report.VerifyRow(
            model=name, **{key: value for key, value in figures.items() if key != "accuracy"}
        )
        for name, figures in results["verify"].figures.items()
    ]


def expectations(
    expect: Any, rows: Sequence[report.StageRow], verified: Sequence[report.VerifyRow]
) -> dict[str, bool]:
    """Say which of the figures that the config promises were reached.

    Args:
      expect: the section `expect` of a config.
      rows: from `stage_rows`.
      verified: from `verify_rows`.

    Returns:
      Whether it was reached, by what was promised.
    """
    dense, last = rows[0], rows[-1]
    drop, smaller = dense.accuracy - last.accuracy, dense.file_bytes / last.file_bytes
    differing = sum(row.differing for row in verified)
    return {
        f"dense accuracy {100 * dense.accuracy:.2f} %, at least "
        f"{100 * expect.dense_accuracy:.2f} %": dense.accuracy >= expect.dense_accuracy,
        f"accuracy lost {100 * drop:.2f} points, at most {100 * expect.accuracy_drop:.2f}": drop
        <= expect.accuracy_drop,
        f"file {smaller:.1f} times smaller, at least {expect.times_smaller:.1f}": (
            smaller >= expect.times_smaller
        ),
        f"differing values {differing:,}, at most {expect.differing:,}": (
            differing <= expect.differing
        ),
    }


def _console() -> rich.console.Console:
    return rich.console.Console(width=None if sys.stdout.isatty() else 120)


def _print_reached(console: rich.console.Console, reached: Mapping[str, bool]) -> None:
    for text, good in reached.items():
        console.print(f"{'reached' if good else 'MISSED '}  {text}", highlight=False)


def compression(
    config: Any, results: dict[str, Result], workdir: pathlib.Path, command: str
) -> dict[str, bool]:
    """Report on a network that went from dense to int8.

    Args:
      config: the whole config.
      results: of all stages in `stages.STAGES`.
      workdir: gets the .tflite files, and the report as JSON, PNG and one HTML page.
      command: what was typed, for the report.

    Returns:
      What was promised and whether it was reached.
    """
    shipped = (
        ("export", stages.FLOAT_FILES["train"]),
        ("export", stages.INT8_FILE),
        ("package", stages.APP_FILE),
    )
    for stage, name in shipped:
        _atomic.write_bytes(workdir / name, (results[stage].directory / name).read_bytes())
    rows, verified = stage_rows(results, stages.INT8_FILE), verify_rows(results)
    reached = expectations(config.expect, rows, verified)
    dataset = (
        f"{config.data.name}, {config.data.train_split} to train on, {config.data.test_split} "
        f"to test on ({results['train'].figures['total']:,} images)"
    )
    origin = report.provenance(command, dataset, config.seed)
    value = report.to_json(rows, verified, origin) | {"reached": reached}
    value["seconds"] = {name: result.seconds for name, result in results.items()}
    _atomic.write_json(workdir / "report.json", value)
    _atomic.write_bytes(workdir / "report.png", plots.overview(rows))
    _atomic.write_text(workdir / "report.html", page.render(config.title, rows, verified, origin))
    console = _console()
    console.print(table.stages(rows), table.verification(verified))
    app = results["package"].figures
    console.print(
        f"{stages.APP_FILE}: images in, probabilities and names of classes out, accuracy "
        f"{100 * app['accuracy']:.2f} %",
        highlight=False,
    )
    _print_reached(console, reached)
    return reached


def line(name: str, figures: Mapping[str, Any]) -> str:
    """Say what a network costs and reaches.

    Args:
      name: of the network.
      figures: of `search.search`.

    Returns:
      One line.

    Example:
      >>> figures = {'parameters': 1000, 'nonzero': 500, 'macs': 2000, 'accuracy': 0.99}
      >>> line('best', figures | {'final_accuracy': 0.98})
      'best: 1,000 parameters, 500 not zero, 2,000 MACs, accuracy 99.00 %, finally 98.00 %'
    """
    return (
        f"{name}: {figures['parameters']:,} parameters, {figures['nonzero']:,} not zero, "
        f"{figures['macs']:,} MACs, accuracy {100 * figures['accuracy']:.2f} %, finally "
        f"{100 * figures['final_accuracy']:.2f} %"
    )


def search(
    config: Any, results: dict[str, Result], workdir: pathlib.Path, command: str
) -> dict[str, bool]:
    """Report on how far a network could be compressed.

    Args:
      config: the whole config, with the section `search`.
      results: of all stages in `search.STAGES`.
      workdir: gets the report as JSON and PNG.
      command: what was typed, for the report.

    Returns:
      What was promised and whether it was reached.
    """
    figures = results["search"].figures
    history = [Round(*entry) for entry in figures["history"]]
    accuracy, level, expect = figures["dense"]["accuracy"], figures["level"], config.expect
    least = expect.dense_accuracy
    reached = {
        f"dense accuracy {100 * accuracy:.2f} %, at least {100 * least:.2f} %": accuracy >= least,
        f"level {level:.3f}, at least {expect.level:.3f}": level >= expect.level,
    }
    dataset = (
        f"{config.data.name}, {config.data.train_split} to train on, {config.data.test_split} to "
        f"search on, {config.search.final_split} at the end"
    )
    origin = report.provenance(command, dataset, config.seed)
    value = {
        "search": figures,
        "reached": reached,
        "provenance": dataclasses.asdict(origin),
        "seconds": {name: result.seconds for name, result in results.items()},
    }
    _atomic.write_json(workdir / "search.json", value)
    _atomic.write_bytes(workdir / "search.png", plots.search(history, figures["floor"]))
    console = _console()
    console.print(table.search(history, figures["floor"]))
    for name in ("dense", "best"):
        console.print(line(name, figures[name]), highlight=False)
    _print_reached(console, reached)
    return reached
