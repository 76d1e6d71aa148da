"""Whole files or none: every file this project writes goes through here.

A run that is killed while it writes must leave either the old file or the new one. The data go
to a temporary file in the same directory, which is flushed to the disk and then renamed over the
target; the directory is flushed too, so that the rename survives a power cut.
"""

import contextlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

PathLike = str | os.PathLike[str]


def write_bytes(path: PathLike, data: bytes) -> pathlib.Path:
    """Write `data` to `path`, replacing what was there in one step.

    Args:
      path: where; missing parent directories are made.
      data: the bytes of the whole file.

    Returns:
      The path written.

    Raises:
      OSError: the directory cannot be written; the old file is untouched.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     write_bytes(f'{folder}/new/model.tflite', b'TFL3').read_bytes()
      b'TFL3'
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _mode_for(path))
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)
    return path


def write_text(path: PathLike, text: str) -> pathlib.Path:
    """Write `text` to `path` as UTF-8, replacing what was there in one step.

    Args:
      path: where; missing parent directories are made.
      text: the whole file.

    Returns:
      The path written.

    Raises:
      OSError: the directory cannot be written; the old file is untouched.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     write_text(f'{folder}/a.txt', 'whole').read_text()
      'whole'
    """
    return write_bytes(path, text.encode("utf-8"))


def write_json(path: PathLike, value: Any) -> pathlib.Path:
    """Write `value` to `path` as indented JSON, replacing what was there in one step.

    Args:
      path: where; missing parent directories are made.
      value: anything `json.dumps` takes; NaN and infinities are refused, since JSON has none.

    Returns:
      The path written.

    Raises:
      OSError: the directory cannot be written; the old file is untouched.
      TypeError: `value` holds something JSON cannot say.
      ValueError: `value` holds a NaN or an infinity.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     json.loads(write_json(f'{folder}/a.json', {'accuracy': 0.99}).read_text())
      {'accuracy': 0.99}
    """
    return write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def directory(path: PathLike) -> Iterator[pathlib.Path]:
    """Give an empty directory that becomes `path` once its content is whole.

    Args:
      path: where; missing parent directories are made.

    Yields:
      The directory to write into, beside `path`; it is removed if the block raises.

    Raises:
      FileExistsError: `path` exists, and two versions would be mixed.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with directory(f'{folder}/model') as new:
      ...         _ = (new / 'part').write_bytes(b'1')
      ...     pathlib.Path(folder, 'model', 'part').read_bytes()
      b'1'
    """
    path = pathlib.Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists: name a new directory, or remove it first")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                with open(os.path.join(folder, name), "rb") as file:
                    os.fsync(file.fileno())
            _sync_directory(pathlib.Path(folder))
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync_directory(path.parent)


def _mode_for(path: pathlib.Path) -> int:
    """Permissions of the file being replaced, else what a plain `open` would have given."""
    try:
        return path.stat().st_mode & 0o777
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask


def _sync_directory(path: pathlib.Path) -> None:
    """Flush a directory's entries, where the platform lets a directory be opened."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
