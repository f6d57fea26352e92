"""Demonstrator of the lift task: up with the cube."""

from __future__ import annotations

from robot_rl.demonstrators.demonstrator import UP, Move, View
from robot_rl.demonstrators.taking import TakingDemonstrator
from robot_rl.demonstrators.waypoints import Waypoint


class LiftDemonstrator(TakingDemonstrator):
    """Takes the cube and holds it up."""

    body = 'cube'

    def _then(self) -> tuple[Waypoint, ...]:
        config = self.task.config
        # A little higher than asked for: it may sink.
        height = config.cube.size[2] / 2 + config.height + config.success_distance

        def up(view: View) -> Move:
            return Move(view.carrying('cube', height * UP) * UP)

        return (Waypoint(up, holding=True),)
