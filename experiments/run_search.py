"""How far can a network be compressed? Trains it, searches, and prints the rounds.

    python -m experiments.run_search --config=experiments/configs/digits_search.py \\
        --workdir=runs/digits_search

The config says what is compressed, how far a round goes and how much accuracy it may cost; see
`search.py`. What was done before is skipped, and a killed run goes on where it was. The rounds also
go into the workdir as `search.json` and `search.png`, and the variables of the best network into
`search/variables`.
"""

import dataclasses
import pathlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import rich.console
from absl import app, flags, logging

from compressjax import _atomic, report, training
from compressjax.report import plots, table
from compressjax.search import Round
from experiments import run
from experiments.pipeline import run_stages
from experiments.search import SEARCH_STAGES


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


def search(config: Any, workdir: pathlib.Path, command: str) -> dict[str, bool]:
    """Run a search and write its report.

    Args:
      config: the whole config, with the section `search`.
      workdir: where everything goes.
      command: what was typed, for the report.

    Returns:
      What was promised and whether it was reached.
    """
    results = run_stages(SEARCH_STAGES, config, workdir)
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
    console = rich.console.Console(width=None if sys.stdout.isatty() else 120)
    console.print(table.search(history, figures["floor"]))
    for name in ("dense", "best"):
        console.print(line(name, figures[name]), highlight=False)
    for text, good in reached.items():
        console.print(f"{'reached' if good else 'MISSED '}  {text}", highlight=False)
    return reached


def main(argv: Sequence[str]) -> None:
    """Run the search that the flags describe."""
    if len(argv) > 1:
        raise app.UsageError(
            f"unexpected argument {argv[1]!r}; settings are given as --config.section.key=value"
        )
    logging.set_verbosity(logging.ERROR)  # orbax reports every file it touches
    command = shlex.join(["python", "-m", "experiments.run_search", *sys.argv[1:]])
    try:
        search(run.CONFIG.value, pathlib.Path(run.WORKDIR.value), command)
    except (training.DamagedCheckpointError, training.CheckpointMismatchError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=run.parse)
