"""The one runner: every experiment is a config for this program.

    python -m experiments.run --config=experiments/configs/digits.py --workdir=runs/digits

It trains, prunes, shrinks, distils, quantizes, exports, verifies and measures, skips what it did
before, and ends with a table in the terminal, and as JSON, PNG and one HTML page in the workdir,
beside `model_int8.tflite`. `--config.section.key=value` changes a setting and redoes the stages
that depend on it; `--until=train` stops after a stage.
"""

import json
import logging as stdlib_logging
import os
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import rich.console
from absl import app, flags, logging
from ml_collections import config_flags

from compressjax import _atomic, report, training
from compressjax.report import page, plots, table
from experiments import stages
from experiments.pipeline import Result, run_stages

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, a Python file.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where everything of the run goes.")
UNTIL = flags.DEFINE_enum(
    "until",
    None,
    [stage.name for stage in stages.STAGES],
    "Stop after this stage, without a report. The same command without it goes on from there.",
)


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


def run(config: Any, workdir: pathlib.Path, command: str) -> dict[str, bool]:
    """Run an experiment and write its report.

    Args:
      config: the whole config.
      workdir: where everything goes.
      command: what was typed, for the report.

    Returns:
      What was promised and whether it was reached.
    """
    results = run_stages(stages.STAGES, config, workdir)
    for name in (stages.FLOAT_FILES["train"], stages.INT8_FILE):
        data = (results["export"].directory / name).read_bytes()
        _atomic.write_bytes(workdir / name, data)
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
    console = rich.console.Console(width=None if sys.stdout.isatty() else 120)
    console.print(table.stages(rows), table.verification(verified))
    for text, good in reached.items():
        console.print(f"{'reached' if good else 'MISSED '}  {text}", highlight=False)
    return reached


def run_until(config: Any, workdir: pathlib.Path, last: str) -> dict[str, Result]:
    """Run the first stages of an experiment, without a report.

    Args:
      config: the whole config.
      workdir: where everything goes; a later `run` goes on from there.
      last: the name of the last stage to run.

    Returns:
      The result of every stage that ran.
    """
    names = [stage.name for stage in stages.STAGES]
    return run_stages(stages.STAGES[: names.index(last) + 1], config, workdir)


def _ours(record: stdlib_logging.LogRecord) -> bool:
    """Keep what the stages say, and errors; orbax reports every file it touches."""
    ours = pathlib.Path(record.pathname).parent == pathlib.Path(__file__).parent
    return ours or record.levelno >= stdlib_logging.ERROR


def parse(argv: Sequence[str]) -> list[str]:
    """Parse the flags; what is wrong with the config ends the program as a wrong flag does.

    Args:
      argv: the command line.

    Returns:
      The arguments that are no flags.
    """
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        text = error.args[0] if isinstance(error, KeyError) else error
        sys.exit(f"error: config: {text}")


def main(argv: Sequence[str]) -> None:
    """Run the experiment that the flags describe."""
    if len(argv) > 1:
        raise app.UsageError(
            f"unexpected argument {argv[1]!r}; settings are given as --config.section.key=value"
        )
    logging.get_absl_handler().addFilter(_ours)
    logging.set_verbosity(logging.INFO)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when TensorFlow is imported
    command = shlex.join(["python", "-m", "experiments.run", *sys.argv[1:]])
    workdir = pathlib.Path(WORKDIR.value)
    try:
        if UNTIL.value is None:
            run(CONFIG.value, workdir, command)
        else:
            figures = run_until(CONFIG.value, workdir, UNTIL.value)[UNTIL.value].figures
            print(json.dumps({UNTIL.value: figures}, indent=2))
    except (training.DamagedCheckpointError, training.CheckpointMismatchError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parse)
