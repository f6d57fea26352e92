"""Where a motion has passed lately: what an arm was told and where it was measured."""

from __future__ import annotations

import numpy as np


class Trail:
    """The rows of the last `seconds`, and the last one before them: times [k], places [k, n].

    Rows lie next to each other in arrays that are filled from the front, so that their extremes
    are found at once, and the rows in use are moved to the front when the arrays are full.
    """

    def __init__(self, seconds: float, joints: int):
        self._seconds = seconds
        self._first = self._end = 0
        self._times, self._told, self._measured = np.empty(16), *np.empty((2, 16, joints))

    @property
    def times(self) -> np.ndarray:
        """When, oldest first [k] [s]."""
        return self._times[self._first : self._end]

    @property
    def told(self) -> np.ndarray:
        """What the arm was told [k, n]."""
        return self._told[self._first : self._end]

    @property
    def measured(self) -> np.ndarray:
        """Where it was measured [k, n]."""
        return self._measured[self._first : self._end]

    def append(self, time: float, told: np.ndarray, measured: np.ndarray) -> None:
        """Add a row, not before the last one; drop those that are over."""
        if self._end == len(self._times):
            self._make_room()
        end = self._end
        self._times[end], self._told[end], self._measured[end] = time, told, measured
        self._end += 1
        while self._first < end and self._times[self._first + 1] <= time - self._seconds:
            self._first += 1

    def _make_room(self) -> None:
        count = self._end - self._first
        for name in ('_times', '_told', '_measured'):
            rows = getattr(self, name)
            room = np.empty((max(len(rows), 2 * count), *rows.shape[1:]))
            room[:count] = rows[self._first : self._end]
            setattr(self, name, room)
        self._first, self._end = 0, count
