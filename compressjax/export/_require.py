"""Loads the packages that only exporting needs.

The core of the library works without them, so nothing imports them at the top of a module.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from types import ModuleType

# Read once, while TensorFlow and litert-converter are imported: silences what they print then.
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "0"}


def require(module: str, extra: str = "export") -> ModuleType:
    """Imports a module of an extra.

    Args:
        module: dotted name, such as `ai_edge_litert.interpreter`.
        extra: the extra that installs it.

    Returns:
        The module.

    Raises:
        ModuleNotFoundError: the package that holds it is not installed.

    Example:
        >>> require('json').loads('[1]')
        [1]
    """
    try:
        with _quiet_import():
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0].replace("_", "-")
        raise ModuleNotFoundError(
            f"{module} is missing: export needs the package {package}. "
            f"Install the extra: pip install 'compressjax[{extra}]'",
            name=error.name,
        ) from error


@contextlib.contextmanager
def _quiet_import() -> Iterator[None]:
    """Sets the variables that nobody has set, and takes them away again."""
    added = [name for name in _QUIET if name not in os.environ]
    os.environ.update({name: _QUIET[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
