"""Demonstrator of the insert task: the peg into the hole."""

from __future__ import annotations

from robot_rl.demonstrators.demonstrator import UP, Move, View
from robot_rl.demonstrators.lift import TakingDemonstrator
from robot_rl.demonstrators.waypoints import Waypoint

# How far above the block the peg is carried [m].
_OVER = 0.02


class InsertDemonstrator(TakingDemonstrator):
    """Takes the peg above its middle, carries it over the hole, and lowers it."""

    body, grasp = 'peg', 0.02

    def _then(self) -> tuple[Waypoint, ...]:
        config = self.task.config
        rim, deep = config.hole.size[2], config.depth + config.success_distance
        return (
            Waypoint(self._raised, within=0.02, holding=True),
            Waypoint(self._above_bottom(rim + _OVER), within=0.002, holding=True),
            Waypoint(self._above_bottom(rim - deep), aside=0.003, slowly=True, holding=True),
        )

    def _raised(self, view: View) -> Move:
        return Move(self._above_bottom(self.task.config.hole.size[2] + _OVER)(view).way * UP)

    def _above_bottom(self, end: float):
        """Return the way of the peg's lower end to so far above the bottom of the hole [m]."""
        middle = end + self.task.config.peg.size[2] / 2

        def move(view: View) -> Move:
            place = view.place('hole') + middle * UP
            way = view.carrying('peg', place)
            return Move(way, view.turn_carrying('peg', 'hole'))

        return move
