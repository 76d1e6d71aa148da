"""The one runner: every experiment is a config for this program.

    python -m experiments.run --config=experiments/configs/digits.py --workdir=runs/digits

It trains, prunes, shrinks, distils, quantizes, exports, verifies, packages and measures, skips what
it did before, and ends with a table in the terminal, and as JSON, PNG and one HTML page in the
workdir, beside `model_int8.tflite` and `model_app.tflite` (uint8 images in, probabilities out, with
the names of the classes). `--config.section.key=value` changes a setting and redoes the stages that
depend on it; `--until=train` stops after a stage. A config with a section `search` finds out
how far its network can be compressed instead (`search.py`), and ends with a table, JSON and PNG.
"""

import json
import logging as stdlib_logging
import os
import pathlib
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import app, flags, logging
from ml_collections import config_flags

from compressjax import training
from experiments import reports, search, stages
from experiments.pipeline import Result, Stage, run_stages

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, a Python file.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where everything of the run goes.")
UNTIL = flags.DEFINE_enum(
    "until",
    None,
    list(dict.fromkeys(stage.name for stage in (*stages.STAGES, *search.STAGES))),
    "Stop after this stage, without a report. The same command without it goes on from there.",
)


class Kind(NamedTuple):
    """What an experiment does.

    Attributes:
      stages: in order.
      report: `(config, results, workdir, command) -> what was promised and whether it was reached`.
    """

    stages: tuple[Stage, ...]
    report: Callable[[Any, dict[str, Result], pathlib.Path, str], dict[str, bool]]


_COMPRESSION = Kind(stages.STAGES, reports.compression)
_SEARCH = Kind(search.STAGES, reports.search)


def kind_of(config: Any) -> Kind:
    """Say what a config asks for: a search where it has that section, else a compression."""
    return _SEARCH if "search" in config else _COMPRESSION


def run(config: Any, workdir: pathlib.Path, command: str) -> dict[str, bool]:
    """Run an experiment and write its report.

    Args:
      config: the whole config.
      workdir: where everything goes.
      command: what was typed, for the report.

    Returns:
      What was promised and whether it was reached.
    """
    kind = kind_of(config)
    return kind.report(config, run_stages(kind.stages, config, workdir), workdir, command)


def run_until(config: Any, workdir: pathlib.Path, last: str) -> dict[str, Result]:
    """Run the first stages of an experiment, without a report.

    Args:
      config: the whole config.
      workdir: where everything goes; a later `run` goes on from there.
      last: the name of the last stage to run.

    Returns:
      The result of every stage that ran.

    Raises:
      app.UsageError: the config has no such stage.
    """
    steps = kind_of(config).stages
    names = [stage.name for stage in steps]
    if last not in names:
        raise app.UsageError(
            f"this config has no stage {last!r}; its stages are {', '.join(names)}."
        )
    return run_stages(steps[: names.index(last) + 1], config, workdir)


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
    except (
        training.CacheMismatchError,
        training.CheckpointMismatchError,
        training.DamagedCacheError,
        training.DamagedCheckpointError,
    ) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parse)
