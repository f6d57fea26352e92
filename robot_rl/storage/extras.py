"""Libraries that only the doors to other formats need: the extra `doors`."""

from __future__ import annotations

import importlib
from types import ModuleType

from robot_rl.errors import StorageError


def need(module: str, what_for: str) -> ModuleType:
    """Import a library of the extra `doors`. Raises StorageError, with what to do, without it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise StorageError(
            f"{what_for}: {error.name} is not installed; pip install 'robot_rl[doors]'"
        ) from None
