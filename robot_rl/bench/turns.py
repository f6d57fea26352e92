"""What is compared takes turns, so that a machine that others use as well treats both alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

# How long a turn is [s].
_SLICE_S = 0.25


def in_turns(turns: Mapping[str, Callable[[float], int]], seconds: float) -> dict[str, float]:
    """Return the steps a second of each; `seconds` are those of all.

    A turn works for so many seconds and returns how many steps it has done.
    """
    for turn in turns.values():
        turn(_SLICE_S)  # first calls allocate
    totals = {name: np.zeros(2) for name in turns}  # steps, seconds
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for name, turn in turns.items():
            start = time.perf_counter()
            steps = turn(_SLICE_S)
            totals[name] += steps, time.perf_counter() - start
    return {name: steps / spent for name, (steps, spent) in totals.items()}
