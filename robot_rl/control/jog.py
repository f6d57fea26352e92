"""What a person asks of the arm at this moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Frame = Literal['base', 'tool']


@dataclass(frozen=True)
class Wish:
    """What a person asks of the arm at this moment; without anything: to be let alone."""

    enabled: bool = False
    joints: np.ndarray | None = None
    twist: np.ndarray | None = None
    frame: Frame = 'base'
    grip: float = 0.0
    positions: np.ndarray | None = None
