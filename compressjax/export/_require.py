"""Loads the packages that only exporting needs.

The core of the library works without them, so nothing imports them at the top of a module.
"""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str) -> ModuleType:
    """Imports a module of the `export` extra.

    Args:
        module: dotted name, such as `ai_edge_litert.interpreter`.

    Returns:
        The module.

    Raises:
        ModuleNotFoundError: the package that holds it is not installed.

    Example:
        >>> require('json').loads('[1]')
        [1]
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0].replace("_", "-")
        raise ModuleNotFoundError(
            f"{module} is missing: export needs the package {package}. "
            "Install the extra: pip install 'compressjax[export]'",
            name=error.name,
        ) from error
