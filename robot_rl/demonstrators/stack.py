"""Demonstrator of the stack task: green onto red, and let go."""

from __future__ import annotations

from collections.abc import Callable

from robot_rl.demonstrators.demonstrator import UP, Move, View
from robot_rl.demonstrators.taking import ABOVE, TakingDemonstrator
from robot_rl.demonstrators.waypoints import Waypoint

# How far above the red cube the green one is carried, and let go [m].
_OVER, _LET_GO = 0.03, 0.002


class StackDemonstrator(TakingDemonstrator):
    """Takes the green cube, carries it over the red one, lowers it, lets go and leaves."""

    body = 'green'

    def _then(self) -> tuple[Waypoint, ...]:
        return (
            Waypoint(self._raised, within=0.02, holding=True),
            Waypoint(self._on_red(_OVER, 0.0), within=0.004, holding=True),
            Waypoint(
                self._on_red(_LET_GO, 0.0), within=0.003, aside=0.02, slowly=True, holding=True
            ),
            Waypoint(self._on_red(_LET_GO, self.open), within=0.02, ticks=self.grip_ticks),
            Waypoint(self._at(ABOVE, self.open)),
        )

    def _raised(self, view: View) -> Move:
        way = view.carrying('green', view.place('red') + (self._height + _OVER) * UP)
        return Move(way * UP)

    def _on_red(self, above: float, width: float) -> Callable[[View], Move]:
        """Return the way of the green cube to so far above where it lies on red [m]."""

        def move(view: View) -> Move:
            place = view.place('red') + (self._height + above) * UP
            turn = view.turn_carrying('green', 'red')
            return Move(view.carrying('green', place), turn, width)

        return move

    @property
    def _height(self) -> float:
        config = self.task.config
        return (config.green.size[2] + config.red.size[2]) / 2
