"""A replay's large columns on the device that learns, so that batches are gathered there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from robot_rl.storage.steps import ACTION, OBSERVATION, STATE, Steps


def taken_from(
    steps: Steps, device: str, on_device: DeviceColumns | None = None
) -> Callable[[str, np.ndarray], np.ndarray | Tensor]:
    """Return what takes flat rows of a column of `steps` to where the learner computes.

    `on_device` are the columns that lie there already.
    """
    if on_device is not None:
        return on_device.take

    def take(column: str, rows: np.ndarray) -> np.ndarray | Tensor:
        values = steps.flat[column].take(rows, axis=0)
        return values if device == 'cpu' else torch.from_numpy(values).to(device)

    return take


def concatenated(parts: Sequence[np.ndarray | Tensor], axis: int) -> np.ndarray | Tensor:
    """Return arrays, or tensors on one device, as one."""
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts), dim=axis)
    return np.concatenate(parts, axis)


class DeviceColumns:
    """Observations, actions and states of `steps` a second time, as tensors on `device`.

    What decides which rows are drawn (step types, rewards, discounts, priorities) stays in NumPy
    and is small. Rows that were written are copied over when something is next taken, all of
    them in one go.
    """

    def __init__(self, steps: Steps, device: torch.device | str):
        self._steps, self._device = steps, torch.device(device)
        self._tensors = {
            name: torch.from_numpy(np.zeros_like(column)).to(device)
            for name, column in steps.flat.items()
            if name == ACTION or name.startswith((OBSERVATION, STATE))
        }
        self._written: list[np.ndarray] = []

    def written(self, rows: np.ndarray) -> None:
        """Take note that flat `rows` were written."""
        self._written.append(np.ravel(rows))

    def take(self, column: str, rows: np.ndarray) -> Tensor:
        """Return flat `rows` [...] of a column -> [..., *shape]; WindowSampler asks for it."""
        self._copy()
        return self._tensors[column][self._index(rows)]

    def _copy(self) -> None:
        if not self._written:
            return
        rows = np.unique(np.concatenate(self._written))
        index, self._written = self._index(rows), []
        for name, tensor in self._tensors.items():
            values = torch.from_numpy(self._steps.flat[name][rows])
            tensor[index] = values.to(self._device, non_blocking=True)

    def _index(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(rows)).to(self._device, non_blocking=True)
