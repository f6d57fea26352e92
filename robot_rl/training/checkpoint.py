"""Checkpoints: one file that appears whole or not at all."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robot_rl.errors import StorageError


def save_checkpoint(path: Path, data: dict[str, Any]) -> None:
    """Write `data` (tensors, arrays, plain values) beside `path`, then put it in its place.

    Whenever the machine stops, `path` holds either the last checkpoint or this one.
    """
    partial = path.with_name(path.name + '.partial')
    try:
        with open(partial, 'wb') as file:
            torch.save(_tensors(data), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise StorageError(f'{path}: the checkpoint cannot be written ({error})') from None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote; arrays come back as tensors.

    Raises StorageError for a file that is missing, damaged or something else.
    """
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except OSError as error:
        raise StorageError(f'{path}: the checkpoint cannot be read ({error.strerror})') from None
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError):
        raise StorageError(
            f'{path}: not a checkpoint of robot-rl train, or a damaged one'
        ) from None


def generator_state(rng: np.random.Generator) -> str:
    """Return a random generator's state as JSON text: its integers exceed 64 bits."""
    return json.dumps(rng.bit_generator.state)


def set_generator_state(rng: np.random.Generator, state: str) -> None:
    """Put a random generator into a state that `generator_state` returned."""
    rng.bit_generator.state = json.loads(state)


def _tensors(data: Any) -> Any:
    """Turn arrays inside of nested dictionaries into tensors, which are stored as plain bytes."""
    if isinstance(data, dict):
        return {key: _tensors(value) for key, value in data.items()}
    return torch.from_numpy(data) if isinstance(data, np.ndarray) else data
