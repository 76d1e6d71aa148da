"""Stages that are done once: which of them a run may skip, go on with, or must start over.

A stage is skipped when it finished with the same settings on the same inputs. Each stage has a
directory with two small files: `started.json`, the fingerprint it began with, and `result.json`,
that fingerprint and its figures, written last. A stage's fingerprint covers the parts of the config
it reads and the results of the stages before it, so changing a setting redoes exactly the stages
that depend on it. The stages themselves are in `stages.py`.
"""

import hashlib
import json
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import logging

from compressjax import _atomic

Figures = dict[str, Any]


class Result(NamedTuple):
    """What a finished stage left.

    Attributes:
      directory: where its files are.
      figures: what it measured, as JSON has it.
      digest: of its fingerprint and figures; the stages after it depend on this.
      seconds: what it took.
    """

    directory: pathlib.Path
    figures: Figures
    digest: str
    seconds: float


Results = Mapping[str, Result]


class Stage(NamedTuple):
    """One step of a pipeline.

    Attributes:
      name: of the stage and of its directory.
      run: `(config, directory, results of the stages before) -> figures`.
      settings: the sections of the config that it reads.
      inputs: the stages whose results it reads.
      version: of what it measures; raising it makes every run do the stage again.
    """

    name: str
    run: Callable[[Any, pathlib.Path, Results], Figures]
    settings: tuple[str, ...]
    inputs: tuple[str, ...]
    version: int = 1


def run_stages(
    stages: Sequence[Stage], config: Any, workdir: _atomic.PathLike
) -> dict[str, Result]:
    """Run stages in order, each in its own directory, skipping those that are done.

    Args:
      stages: in an order where inputs come first.
      config: what the stages read; `config[name]` for every name in their `settings`.
      workdir: gets one directory a stage.

    Returns:
      The result of every stage, by name.

    Raises:
      ValueError: a stage's directory holds files that no stage wrote, or its result is damaged.

    Example:
      >>> import tempfile
      >>> double = Stage('double', lambda config, *_: {'y': 2 * config['x']}, ('x',), ())
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     run_stages([double], {'x': 21}, folder)['double'].figures
      {'y': 42}
    """
    results: dict[str, Result] = {}
    for stage in stages:
        directory = pathlib.Path(workdir) / stage.name
        fingerprint = _fingerprint(stage, config, results)
        result = _finished(directory, fingerprint)
        if result is not None:
            logging.info("%s: done before, in %.1f s", stage.name, result.seconds)
            results[stage.name] = result
            continue
        _begin(directory, fingerprint)
        began = time.monotonic()
        inputs = {name: results[name] for name in stage.inputs}
        figures = stage.run(config, directory, inputs)
        seconds = round(time.monotonic() - began, 2)
        _atomic.write_json(
            directory / "result.json",
            {"fingerprint": fingerprint, "seconds": seconds, "figures": figures},
        )
        # Read back what was written, so that a run and a resumed run see the same figures.
        results[stage.name] = _read(directory, fingerprint)
        logging.info("%s: %.1f s", stage.name, seconds)
    return results


def _fingerprint(stage: Stage, config: Any, results: Results) -> str:
    return _digest(
        {
            "stage": stage.name if stage.version == 1 else f"{stage.name}@{stage.version}",
            "settings": {name: config[name] for name in stage.settings},
            "inputs": {name: results[name].digest for name in stage.inputs},
        }
    )


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    """Say config sections and functions in JSON; functions by their name."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}"
    raise TypeError(
        f"a config value of type {type(value).__name__} has no fingerprint: {value!r}. "
        "Use numbers, strings, tuples, sections and functions."
    )


def _finished(directory: pathlib.Path, fingerprint: str) -> Result | None:
    if not (directory / "result.json").exists():
        return None
    try:
        found = json.loads((directory / "result.json").read_text())["fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{directory / 'result.json'} is damaged ({error}). Delete {directory} to do the stage "
            "again."
        ) from error
    return _read(directory, fingerprint) if found == fingerprint else None


def _read(directory: pathlib.Path, fingerprint: str) -> Result:
    value = json.loads((directory / "result.json").read_text())
    digest = _digest([fingerprint, value["figures"]])
    return Result(directory, value["figures"], digest, value["seconds"])


def _begin(directory: pathlib.Path, fingerprint: str) -> None:
    """Keep a half-finished stage with the same fingerprint, clear one with another."""
    started = directory / "started.json"
    if directory.exists() and any(directory.iterdir()):
        if not started.exists():
            raise ValueError(
                f"{directory} holds files that no stage wrote, and a stage wants to work there. "
                "Choose another --workdir, or move them away."
            )
        if started.read_text() == json.dumps({"fingerprint": fingerprint}, indent=2) + "\n":
            return
        logging.info("%s: settings or inputs changed, starting over", directory.name)
        shutil.rmtree(directory)
    _atomic.write_json(started, {"fingerprint": fingerprint})
