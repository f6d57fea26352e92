"""Where the command is and how it goes on: what a guard moves, tick by tick, within limits.

Two kinds with one interface: bounded acceleration, or bounded jerk as well. Both are values:
`follow` and `brake` return the motion after a tick. Braking is always allowed: a caller who takes
a motion only where its `path_to_rest` is clear can always stop on a path that was found clear.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple, Protocol, Self

import numpy as np
import ruckig

from robot_rl.control import limiter
from robot_rl.control.limiter import Limits, interpolate

# Places of a way to rest that are looked at are at most this far apart [rad]: between two of them
# the tool of an arm of 1 m bulges out by a millimetre.
_SPACING = 0.1
# Slower than this [rad/s], and without more acceleration [rad/s^2], is at rest.
AT_REST = 1e-6
# What a sum of floats may miss an end by: positions [rad], times [s].
_ROUNDING, _SAME_TIME = 1e-9, 1e-6


class Line(NamedTuple):
    """The straight way that a command asks for: from `start` [..., n] to `goal` in a time [s].

    It starts where the command before led to, so that its pace is that of whoever commands.
    """

    start: np.ndarray
    goal: np.ndarray
    begins: float
    ends: float

    def at(self, time: float) -> np.ndarray:
        """Return where the command wants the arm at `time`."""
        return interpolate(self.start, self.goal, (time - self.begins) / (self.ends - self.begins))

    def pace(self, time: float) -> np.ndarray:
        """Return how fast it is to move at `time`: at its end another may go on, after it none."""
        if time > self.ends + _SAME_TIME:
            return np.zeros_like(self.goal)
        return (self.goal - self.start) / (self.ends - self.begins)


class Motion(Protocol):
    """A commanded position [n] and velocity [n]."""

    position: np.ndarray
    velocity: np.ndarray

    def follow(self, line: Line, due: float, dt: float, limits: Limits) -> Self:
        """Return the motion `dt` seconds on, at the time `due`, as near to `line` as may be."""

    def brake(self, dt: float, limits: Limits) -> Self:
        """Return the motion `dt` seconds on where every joint slows down as it may."""

    def path_to_rest(self, limits: Limits) -> np.ndarray:
        """Return positions [k, n] from here to where braking ends."""

    def extent(self, limits: Limits) -> tuple[np.ndarray, np.ndarray]:
        """Return the least and the greatest [n] of that path: sooner known than the path."""

    @property
    def moves(self) -> bool:
        """Whether braking would take it anywhere else than where it is."""


def at_rest(position: np.ndarray, limits: Limits) -> Motion:
    """Return the motion that stands at `position` [n], of the kind that the limits ask for."""
    return moving(position, np.zeros_like(position), limits)


def moving(position: np.ndarray, velocity: np.ndarray, limits: Limits) -> Motion:
    """Return the motion that is at `position` [n] with `velocity` [n], likewise.

    What could not stop within the position limits stands there instead.
    """
    rest = np.zeros_like(position)
    if np.isfinite(limits.max_jerk).any():
        found = JerkLimited.from_state(position, velocity, rest, limits)
        return found or JerkLimited.from_state(position, rest, rest, limits)
    ends = position + 0.5 * velocity * np.abs(velocity) / limits.max_acceleration
    return AccelerationLimited(position, np.where(limits.clip(ends) == ends, velocity, 0.0))


@dataclasses.dataclass(frozen=True, eq=False)
class AccelerationLimited:
    """Bounded velocity and acceleration, or velocity alone; see limiter.track."""

    position: np.ndarray
    velocity: np.ndarray

    def follow(self, line: Line, due: float, dt: float, limits: Limits) -> AccelerationLimited:
        """See Motion. Any leading batch axes, as many as those of `line`."""
        state = self.position, self.velocity
        return AccelerationLimited(
            *limiter.track(*state, line.at(due), line.pace(due), dt, limits)
        )

    def brake(self, dt: float, limits: Limits) -> AccelerationLimited:
        """See Motion."""
        return AccelerationLimited(*limiter.brake(self.position, self.velocity, dt, limits))

    def path_to_rest(self, limits: Limits) -> np.ndarray:
        """See Motion. As if time were continuous: braking in ticks lags less behind it."""
        rate, speed = limits.max_acceleration, np.abs(self.velocity)
        takes = speed / rate  # [n]: each joint has its own time
        count = _places(0.5 * speed * takes)
        time = np.minimum(_shares(count) * takes.max(), takes)
        # v t - a t^2 / 2, in the form that holds where a is infinite, and no time passes.
        way = self.velocity * time * (1 - 0.5 * time / np.where(takes > 0, takes, 1.0))
        return limits.clip(self.position + way)

    def extent(self, limits: Limits) -> tuple[np.ndarray, np.ndarray]:
        """See Motion."""
        way = 0.5 * self.velocity * np.abs(self.velocity) / limits.max_acceleration
        end = self.position + way
        return np.minimum(self.position, end), np.maximum(self.position, end)

    @property
    def moves(self) -> bool:
        """See Motion."""
        return bool(np.abs(self.velocity).max() > AT_REST)


class Way(NamedTuple):
    """A trajectory, the line and limits it was made for, and how many seconds of it are over."""

    trajectory: ruckig.Trajectory
    line: Line | None = None
    limits: Limits | None = None
    rests: bool = True
    since: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class JerkLimited:
    """Bounded velocity, acceleration and jerk, by Ruckig (Berscheid and Kroeger, RSS 2021).

    One trajectory leads to a goal, as straight as the joints' limits let it be. It goes on only
    to where stopping stays within the position limits, else along `stop`, which was found when it
    came here; `reach` are the lowest and the highest positions on it.
    """

    position: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray
    stop: Way
    reach: tuple[np.ndarray, np.ndarray]
    way: Way | None = None

    @classmethod
    def from_state(
        cls, position: np.ndarray, velocity: np.ndarray, acceleration: np.ndarray, limits: Limits
    ) -> JerkLimited | None:
        """Return the motion in this state, each [n]; None: it cannot stop within the limits."""
        asked = _asked(position, velocity, acceleration, limits)
        asked.control_interface = ruckig.ControlInterface.Velocity
        stop = _trajectory(asked)
        if stop is None:
            return None
        low, high = _reach(stop)
        if (low < limits.lower - _ROUNDING).any() or (high > limits.upper + _ROUNDING).any():
            return None
        return cls(limits.clip(position), velocity, acceleration, Way(stop), (low, high))

    def follow(self, line: Line, due: float, dt: float, limits: Limits) -> JerkLimited:
        """See Motion."""
        way, rests = self.way, due > line.ends + _SAME_TIME
        if way is None or way.line is not line or way.limits is not limits or way.rests != rests:
            way = self._plan(line, due - dt, rests, limits)
        if way is None:
            return self.brake(dt, limits)
        way = way._replace(since=way.since + dt)
        moved = self.from_state(*_state(way), limits)
        return self.brake(dt, limits) if moved is None else dataclasses.replace(moved, way=way)

    def brake(self, dt: float, limits: Limits) -> JerkLimited:
        """See Motion."""
        stop = self.stop._replace(since=self.stop.since + dt)
        position, velocity, acceleration = _state(stop)
        return JerkLimited(limits.clip(position), velocity, acceleration, stop, self.reach)

    def path_to_rest(self, limits: Limits) -> np.ndarray:
        """See Motion."""
        since, stop = self.stop.since, self.stop.trajectory
        end = max(since, stop.duration)
        low, high = self.reach
        times = np.linspace(since, end, _places(high - low))
        return limits.clip(np.array([stop.at_time(time)[0] for time in times]))

    def extent(self, limits: Limits) -> tuple[np.ndarray, np.ndarray]:
        """See Motion: of the whole way, of which a part may be over."""
        del limits
        return self.reach

    @property
    def moves(self) -> bool:
        """See Motion."""
        size = max(np.abs(self.velocity).max(), np.abs(self.acceleration).max())
        return bool(size > AT_REST)

    def _plan(self, line: Line, now: float, rests: bool, limits: Limits) -> Way | None:
        """Return a way to the end of `line`, at its pace and in time, or as soon as can be.

        Where it `rests`, the time is over: it comes to rest there.
        """
        asked = _asked(self.position, self.velocity, self.acceleration, limits)
        asked.synchronization = ruckig.Synchronization.Phase
        asked.target_position = limits.clip(line.goal)
        if not rests:
            asked.minimum_duration = line.ends - now
            asked.target_velocity = limiter.shortened(line.pace(now), limits.max_velocity)
        trajectory = _trajectory(asked)
        return None if trajectory is None else Way(trajectory, line, limits, rests)


def _reach(stop: ruckig.Trajectory) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and highest positions, each [n], of a trajectory of one section.

    `position_extrema` counts a zero among them where the target is a velocity. A section of
    constant jerk has its extremes at its ends, and where its velocity is zero.
    """
    (profiles,) = stop.profiles
    parts = [(p.brake, p) for p in profiles]
    values = {
        name: np.array([[*getattr(brake, name), *getattr(p, name)[:7]] for brake, p in parts])
        for name in 'tpvaj'
    }
    time, position, velocity, acceleration, jerk = values.values()
    last = np.array([p.p[-1] for p in profiles])[:, None]
    # Roots of v + a t + j t^2 / 2, in the form that holds where a or j vanish.
    square = acceleration**2 - 2 * jerk * velocity
    root = np.sqrt(np.maximum(square, 0.0))
    places = [np.zeros_like(time)]
    for sign in (-1, 1):
        below = acceleration + sign * root
        at = np.divide(-2 * velocity, below, out=np.zeros_like(time), where=below != 0)
        places.append(np.where((square >= 0) & (at > 0) & (at < time), at, 0.0))
    ways = [position + t * (velocity + t * (acceleration / 2 + t * jerk / 6)) for t in places]
    reached = np.concatenate([np.where(time > 0, way, last) for way in ways] + [last], axis=1)
    return reached.min(axis=1), reached.max(axis=1)


@functools.lru_cache(maxsize=64)  # the same few, tick after tick
def _shares(count: int) -> np.ndarray:
    return np.linspace(0.0, 1.0, count)[:, None]


def _places(way: np.ndarray) -> int:
    """Return at how many places to look at a way to rest [n] long: twice as fast at first."""
    return 2 + int(2 * np.abs(way).max() / _SPACING)


def _asked(
    position: np.ndarray, velocity: np.ndarray, acceleration: np.ndarray, limits: Limits
) -> ruckig.InputParameter:
    """Return a question to Ruckig whose answer ends at rest."""
    asked = ruckig.InputParameter(len(position))
    asked.current_position, asked.current_velocity = position, velocity
    asked.current_acceleration = acceleration
    asked.target_position, asked.target_velocity = position, np.zeros_like(position)
    asked.max_velocity, asked.max_jerk = limits.max_velocity, limits.max_jerk
    asked.max_acceleration = limits.max_acceleration
    return asked


def _trajectory(asked: ruckig.InputParameter) -> ruckig.Trajectory | None:
    """Return the answer; None where Ruckig has none, as its numerics may fail."""
    way = ruckig.Trajectory(asked.degrees_of_freedom)
    try:
        result = ruckig.Ruckig(asked.degrees_of_freedom).calculate(asked, way)
    except ruckig.RuckigError:
        return None
    return way if result in (ruckig.Result.Working, ruckig.Result.Finished) else None


def _state(way: Way) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return position, velocity and acceleration, each [n], where a way has come to."""
    position, velocity, acceleration = map(np.array, way.trajectory.at_time(way.since))
    return position, velocity, acceleration
