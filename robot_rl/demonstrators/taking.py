"""What demonstrators have in common that take something with the gripper."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from robot_rl.demonstrators.demonstrator import UP, Move, View
from robot_rl.demonstrators.waypoints import Waypoint, WaypointDemonstrator
from robot_rl.sim.task import ArmTask

# How far above what is to be taken the tool comes first [m].
ABOVE = 0.08
# By how much the gripper is wider than what it is to take or has let go [m].
SPARE = 0.022
# How far above the table the fingers take something, at least [m].
_CLEAR = 0.006
# What is farther from where it was taken is lost [m].
_LOST = 0.04


class TakingDemonstrator(WaypointDemonstrator):
    """Takes `body`, of which the task's config says the size, and goes on from there."""

    body: str
    grasp: float = 0.0  # how far above its middle it is taken [m], where that is high enough

    def __init__(self, task: ArmTask, noise: float = 0.0, seed: int = 0):
        super().__init__(task, noise, seed)
        size, robot = getattr(task.config, self.body).size, task.robot
        self.open = min(size[:2]) + SPARE
        self.grasp = max(self.grasp, robot.tip.reach + _CLEAR - size[2] / 2)
        # How long the gripper closes or opens [decisions].
        self.grip_ticks = math.ceil(robot.gripper.closing_s * task.config.rate_hz)
        self.waypoints = (
            Waypoint(self._at(ABOVE, self.open), aside=0.02),
            Waypoint(self._at(0.0, self.open), within=0.005, aside=0.02, slowly=True),
            Waypoint(self._at(0.0, 0.0), within=0.02, ticks=self.grip_ticks),
            *self._then(),
        )

    def _then(self) -> tuple[Waypoint, ...]:
        """Return what comes once it is taken."""
        raise NotImplementedError

    def _at(self, above: float, width: float) -> Callable[[View], Move]:
        """Return the way to the body, squared with it, or to above it."""

        def move(view: View) -> Move:
            way = view.to(view.place(self.body) + (self.grasp + above) * UP)
            return Move(way, view.turn_to(self.body), width)

        return move

    def _failed(self, view: View) -> tuple[np.ndarray, int]:
        held = view.place(self.body) + self.grasp * UP
        return np.linalg.norm(held - view.measured, axis=1) > _LOST, 0
