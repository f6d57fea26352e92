"""Position and velocity limits and interpolation: one set of functions for loop, guard and sim.

Everything is pure and takes any leading batch axes.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from robot_rl.errors import ContractMismatch
from robot_rl.specs import RobotSpec


@dataclasses.dataclass(frozen=True, eq=False)
class Limits:
    """Joint limits [n], in the order of RobotSpec.joints: rad and rad/s (m and m/s for slides)."""

    lower: np.ndarray
    upper: np.ndarray
    max_velocity: np.ndarray

    @classmethod
    def from_spec(cls, robot: RobotSpec) -> Limits:
        """Take the limits of a robot."""
        return cls(robot.lower, robot.upper, robot.max_velocity)

    def slowed(self, speed: float) -> Limits:
        """Return the same limits with no joint faster than `speed`."""
        return dataclasses.replace(self, max_velocity=np.minimum(self.max_velocity, speed))

    def clip(self, positions: np.ndarray) -> np.ndarray:
        """Return `positions` [..., n] within the position limits."""
        return np.clip(positions, self.lower, self.upper)


def require_finite(what: str, values: ArrayLike) -> np.ndarray:
    """Return `values` as float64. Raises ContractMismatch where one is NaN or infinite.

    Clamps let NaN pass, or turn it into a limit: this comes before every one of them.
    """
    array = np.asarray(values, np.float64)
    if not np.isfinite(array).all():
        raise ContractMismatch(f'{what}: not finite: {array.tolist()}')
    return array


def limit(target: ArrayLike, previous: ArrayLike, dt: float, limits: Limits) -> np.ndarray:
    """Return `target` [..., n] as far as it may be commanded `dt` seconds after `previous`.

    Clamps the position, then shortens the whole step until every joint keeps its velocity limit,
    so that the direction of motion stays (as MoveIt Servo does, jointLimitVelocityScalingFactor).
    Raises ContractMismatch for non-finite input and ValueError for a negative `dt`.
    """
    if not dt >= 0:
        raise ValueError(f'limit: dt must be at least 0 s, found {dt}')
    previous = require_finite('previous command', previous)
    goal = limits.clip(require_finite('commanded position', target))
    step, distance = goal - previous, limits.max_velocity * dt
    too_far = np.abs(step) > distance
    room = np.divide(distance, np.abs(step), out=np.ones_like(step), where=too_far)
    scale = room.min(axis=-1, keepdims=True)
    return np.where(scale < 1, previous + scale * step, goal)


def interpolate(previous: ArrayLike, target: ArrayLike, fraction: ArrayLike) -> np.ndarray:
    """Return the point `fraction` of the way from `previous` to `target` [..., n].

    `fraction` is clipped to [0, 1] and broadcasts against the positions; 1 gives `target` exactly.
    """
    previous, target = np.asarray(previous, np.float64), np.asarray(target, np.float64)
    fraction = np.clip(fraction, 0.0, 1.0)
    return np.where(fraction < 1, previous + fraction * (target - previous), target)
