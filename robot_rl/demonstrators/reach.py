"""Demonstrator of the reach task: to the target, and with it where it moves."""

from __future__ import annotations

import numpy as np

from robot_rl.demonstrators.demonstrator import SHARE, Arrays, Demonstrator, Move, View

# How long an arm takes to follow its commands [s]: a moving target is met where it will be.
_LAG_S = 0.05


class ReachDemonstrator(Demonstrator):
    """Sees where the target is and where it was one decision ago."""

    upright = False

    def initial_state(self, batch: int) -> Arrays:
        """Return what is remembered: where the target was [B, 3]; NaN at first."""
        return super().initial_state(batch) | {'target': np.full((batch, 3), np.nan)}

    def _move(self, view: View, state: Arrays) -> tuple[Move, Arrays]:
        way = view.from_tool('target')
        target = view.measured + (way[:, -1] if way.ndim == 3 else way)  # with its history
        period_s = self.contract.period_s
        velocity = np.nan_to_num(target - state['target']) / period_s
        # Who commands a share of the way trails by a period over that share.
        ahead = velocity * (_LAG_S + period_s / SHARE)
        return Move(view.to(target + ahead)), {**state, 'target': target}
