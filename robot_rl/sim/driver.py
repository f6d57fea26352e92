"""What a simulated arm's driver makes of its controller's commands: where its servos are to be."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from robot_rl.control.limiter import interpolate
from robot_rl.errors import ContractMismatch
from robot_rl.specs import RobotSpec


class SimulatedDriver:
    """Turns commands, of the kind that RobotSpec.controller names, into joint positions [n].

    Positions are taken as they come; velocities are integrated until the driver's timeout, as a
    driver that watches over them does; the one point of a trajectory is approached on a line.
    """

    def __init__(self, robot: RobotSpec):
        self._robot = robot
        self._takes_velocities = robot.controller.kind == 'forward_velocity'
        self.reset(robot.home_position)

    def reset(self, position: ArrayLike) -> None:
        """Forget all commands: the servos stand at `position` [n]."""
        self._position = np.array(position, dtype=float)
        self._start = self._goal = self._position
        self._velocity = np.zeros_like(self._position)
        self._duration = self._since = 0.0

    def command(self, values: ArrayLike, duration_s: float = 0.0) -> None:
        """Take a command [n]: positions, or velocities; a trajectory's point takes `duration_s`.

        Raises ContractMismatch, see `checked`.
        """
        values = self.checked(values)
        self._since, self._duration = 0.0, duration_s
        if self._takes_velocities:
            self._velocity = values
        else:
            self._start, self._goal = self._position, values

    def checked(self, values: ArrayLike) -> np.ndarray:
        """Return a command [n] that may be given.

        Raises ContractMismatch for another number of values or one that is not finite.
        """
        values = np.array(values, dtype=float)
        if values.shape != self._position.shape or not np.isfinite(values).all():
            what = 'velocities' if self._takes_velocities else 'positions'
            raise ContractMismatch(
                f'the twin of {self._robot.name} takes {len(self._position)} finite joint {what}, '
                f'found {values.tolist()}'
            )
        return values

    def advance(self, seconds: float) -> np.ndarray:
        """Let time pass; return where the servos are to be [n]."""
        self._since += seconds
        if self._takes_velocities:
            if self._since > self._robot.controller.driver_timeout_s:
                self._velocity = np.zeros_like(self._velocity)
            moved = self._position + self._velocity * seconds
            self._position = np.clip(moved, self._robot.lower, self._robot.upper)
        else:
            fraction = self._since / self._duration if self._duration > 0 else 1.0
            self._position = interpolate(self._start, self._goal, fraction)
        return self._position
