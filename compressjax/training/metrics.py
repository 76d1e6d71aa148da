"""Figures of a run as they come: JSON lines for programs, TensorBoard event files for people.

Both are append-only and survive a kill. On resume, a last line that was cut off and the lines of
steps that will be taken again are dropped, so that every step is written once.
"""

import json
import math
import os
import pathlib
import types
from collections.abc import Mapping
from typing import Any, Self

import tensorboardX

from compressjax import _atomic


class MetricsWriter:
    """Writes `metrics.jsonl` and TensorBoard event files into one directory.

    Args:
      directory: where; made if missing.
      resume_step: the run goes on after this step: later lines are dropped; None keeps nothing.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with MetricsWriter(folder) as metrics:
      ...         metrics.write(10, {'loss': 0.5})
      ...     read_metrics(f'{folder}/metrics.jsonl')
      [{'step': 10, 'loss': 0.5}]
    """

    def __init__(self, directory: _atomic.PathLike, *, resume_step: int | None = None) -> None:
        """Open the files, keeping what was written up to `resume_step`."""
        self.directory = pathlib.Path(directory)
        path = self.directory / "metrics.jsonl"
        kept = read_metrics(path) if resume_step is not None and path.exists() else []
        lines = [json.dumps(row) + "\n" for row in kept if row["step"] <= (resume_step or 0)]
        _atomic.write_text(path, "".join(lines))
        self._file = path.open("a", encoding="utf-8")
        self._events = tensorboardX.SummaryWriter(
            str(self.directory), purge_step=None if resume_step is None else resume_step + 1
        )

    def __enter__(self) -> Self:
        """Return the open writer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        """Close both files."""
        self._file.close()
        self._events.close()

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Write the figures of one step, and flush.

        Args:
          step: optimizer steps taken.
          values: scalars by name; NaN and infinities are written as null.
        """
        row = {"step": int(step)} | {name: float(value) for name, value in values.items()}
        self._file.write(_line(row))
        self._file.flush()
        os.fsync(self._file.fileno())
        for name, value in row.items():
            if name != "step":
                self._events.add_scalar(name, value, int(step))
        self._events.flush()


def read_metrics(path: _atomic.PathLike) -> list[dict[str, Any]]:
    """Read a file of JSON lines, without a last line that was cut off.

    Args:
      path: a file that `MetricsWriter` wrote.

    Returns:
      One dict a line, oldest first.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a line before the last one is not JSON.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = _atomic.write_text(f'{folder}/m.jsonl', '{"step": 1}' + chr(10) + '{"st')
      ...     read_metrics(path)
      [{'step': 1}]
    """
    *lines, _ = pathlib.Path(path).read_text(encoding="utf-8").split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"line {number} of {path} is not JSON ({error}): the file is damaged. Delete the "
                "line to keep the rest."
            ) from error
    return rows


def _line(row: Mapping[str, Any]) -> str:
    finite = {key: value if math.isfinite(value) else None for key, value in row.items()}
    return json.dumps(finite, allow_nan=False) + "\n"
