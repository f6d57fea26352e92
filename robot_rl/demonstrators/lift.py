"""Demonstrators that take something with the gripper: lift, stack and insert."""

from __future__ import annotations

import numpy as np

from robot_rl.demonstrators.demonstrator import UP, Move, View
from robot_rl.demonstrators.waypoints import Waypoint, WaypointDemonstrator
from robot_rl.sim.task import ArmTask, Standing

# How far above what is to be taken the tool comes first [m].
ABOVE = 0.08
# By how much the gripper is wider than what it is to take or has let go [m].
SPARE = 0.022
# How long it closes or opens [decisions].
GRIP_TICKS = 7
# What is farther from where it was taken is lost [m].
_LOST = 0.04


class TakingDemonstrator(WaypointDemonstrator):
    """Takes `body`, and goes on from there."""

    body: str
    grasp: float = 0.0  # how far above its middle it is taken [m]

    def __init__(self, task: ArmTask, noise: float = 0.0, seed: int = 0):
        super().__init__(task, noise, seed)
        self.open = min(self._taken(task).size[:2]) + SPARE
        self.waypoints = (
            Waypoint(self._at(ABOVE, self.open), aside=0.02),
            Waypoint(self._at(0.0, self.open), within=0.005, aside=0.02, slowly=True),
            Waypoint(self._at(0.0, 0.0), within=0.02, ticks=GRIP_TICKS),
            *self._then(),
        )

    def _taken(self, task: ArmTask) -> Standing:
        """Return what the task says of the body."""
        return getattr(task.config, self.body)

    def _then(self) -> tuple[Waypoint, ...]:
        """Return what comes once it is taken."""
        raise NotImplementedError

    def _at(self, above: float, width: float):
        """Return the way to the body, squared with it, or to above it."""

        def move(view: View) -> Move:
            way = view.to(view.place(self.body) + (self.grasp + above) * UP)
            return Move(way, view.turn_to(self.body), width)

        return move

    def _failed(self, view: View) -> tuple[np.ndarray, int]:
        held = view.place(self.body) + self.grasp * UP
        return np.linalg.norm(held - view.measured, axis=1) > _LOST, 0


class LiftDemonstrator(TakingDemonstrator):
    """Takes the cube and holds it up."""

    body = 'cube'

    def _then(self) -> tuple[Waypoint, ...]:
        config = self.task.config
        # A little higher than asked for: it may sink.
        height = config.cube.size[2] / 2 + config.height + config.success_distance

        def up(view: View) -> Move:
            way = view.carrying('cube', height * UP)
            return Move(way * UP)

        return (Waypoint(up, holding=True),)
