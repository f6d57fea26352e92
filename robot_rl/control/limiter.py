"""Position, velocity and acceleration limits: one set of functions for loop, guard and sim.

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
    """Joint limits [n], in the order of RobotSpec.joints: rad and seconds (m for slides).

    Accelerations and jerks without a limit are infinite.
    """

    lower: np.ndarray
    upper: np.ndarray
    max_velocity: np.ndarray
    max_acceleration: np.ndarray
    max_jerk: np.ndarray

    @classmethod
    def from_spec(cls, robot: RobotSpec) -> Limits:
        """Take the limits of a robot."""
        return cls(
            robot.lower, robot.upper, robot.max_velocity, robot.max_acceleration, robot.max_jerk
        )

    def slowed(self, speed: float) -> Limits:
        """Return the same limits with no joint faster than `speed`."""
        return dataclasses.replace(self, max_velocity=np.minimum(self.max_velocity, speed))

    def clip(self, positions: np.ndarray) -> np.ndarray:
        """Return `positions` [..., n] within the position limits."""
        return np.minimum(np.maximum(positions, self.lower), self.upper)  # a third of clip's time


def require_finite(what: str, values: ArrayLike) -> np.ndarray:
    """Return `values` as float64. Raises ContractMismatch where one is NaN or infinite.

    Clamps let NaN pass, or turn it into a limit: this comes before every one of them.
    """
    array = np.asarray(values, np.float64)
    if np.count_nonzero(np.isfinite(array)) != array.size:  # a third of all's time
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
    step = goal - previous
    short = shortened(step, limits.max_velocity * dt)
    reached = (short == step).all(axis=-1, keepdims=True)
    return np.where(reached, goal, previous + short)


def track(
    position: np.ndarray,
    velocity: np.ndarray,
    aim: ArrayLike,
    aim_velocity: ArrayLike,
    dt: float,
    limits: Limits,
) -> tuple[np.ndarray, np.ndarray]:
    """Return position and velocity [..., n] `dt` seconds on, as near to a moving aim as may be.

    `aim` is where the aim will be by then, `aim_velocity` how fast it moves. What the limits allow
    is followed exactly; what they do not is made up for later, without more speed than can be
    braked away before the aim is reached. Shortfalls are shared: one factor for all joints bounds
    the speed, one the change of velocity, and one the way back to braking, which bounds what comes
    too near to the ends. Hence a straight motion stays straight, and whoever starts within the
    limits can always stop within them: braking is always among the choices.
    Raises ContractMismatch for an aim that is not finite and ValueError for a `dt` of 0 or less.
    """
    if not dt > 0:
        raise ValueError(f'track: dt must be above 0 s, found {dt}')
    aim = limits.clip(require_finite('aim', aim))
    acceleration = limits.max_acceleration
    wanted = shortened(require_finite('aim velocity', aim_velocity), limits.max_velocity)
    error = aim - position - wanted * dt
    ways = np.array([np.abs(error), limits.upper - position, position - limits.lower])
    to_aim, high, low = _stoppable(ways, dt, acceleration)
    wanted = wanted + shortened(error / dt, to_aim)
    change = shortened(wanted, limits.max_velocity) - velocity
    moved = velocity + shortened(change, acceleration * dt)
    braked = _braked(velocity, dt, acceleration)
    room = np.where(moved > braked, high - braked, braked + low)
    velocity = braked + shortened(moved - braked, np.maximum(room, 0.0))
    return limits.clip(position + velocity * dt), velocity


def brake(
    position: np.ndarray, velocity: np.ndarray, dt: float, limits: Limits
) -> tuple[np.ndarray, np.ndarray]:
    """Return position and velocity [..., n] `dt` seconds on, every joint slowing as it may."""
    velocity = _braked(velocity, dt, limits.max_acceleration)
    return limits.clip(position + velocity * dt), velocity


def _braked(velocity: np.ndarray, dt: float, acceleration: np.ndarray) -> np.ndarray:
    change = acceleration * dt
    return velocity - np.minimum(np.maximum(velocity, -change), change)


def shortened(vector: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """Return `vector` [..., n] shortened as a whole until no element is larger than `bound`."""
    size = np.abs(vector)
    over = size > bound
    if not np.count_nonzero(over):  # nearly always, and ten times in a tick
        return vector
    share = np.divide(bound, size, out=np.ones_like(size), where=over)
    return vector * share.min(axis=-1, keepdims=True)


def _stoppable(distance: np.ndarray, dt: float, acceleration: np.ndarray) -> np.ndarray:
    """Return the largest speed of a step of `dt` after which braking ends within `distance`.

    The root v of v dt + v^2 / (2 a) = d, in a form that holds for infinite accelerations.
    """
    distance = np.maximum(distance, 0.0)
    return 2 * distance / (dt + np.sqrt(dt * dt + 2 * distance / acceleration))


def interpolate(previous: ArrayLike, target: ArrayLike, fraction: float) -> np.ndarray:
    """Return the point `fraction` of the way from `previous` to `target` [..., n].

    `fraction` is clipped to [0, 1]; 1 gives `target` exactly.
    """
    previous, target = np.asarray(previous, np.float64), np.asarray(target, np.float64)
    if fraction >= 1:
        return target.copy()
    return previous + max(fraction, 0.0) * (target - previous)
