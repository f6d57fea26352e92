"""How far a twin is from its arm, and which delay, stiffness and friction bring it closest.

What the arm was told is told to the twin, and both answers are compared. Nothing else is fitted:
masses, damping and what lies in the gripper are the model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import mujoco.minimize
import numpy as np

from robot_rl.errors import RobotRLError
from robot_rl.sim.imperfections import Imperfections
from robot_rl.sim.simulated_arm import SimulatedArm
from robot_rl.sim.twin import World

# A joint that moved less than this [rad] tells nothing of its servo.
MOVED = 0.05
# What the delay is first sought among [s].
DELAYS = np.linspace(0.0, 0.3, 61)
# The unknowns are sought in these units, so that each counts about as much: delay [s], stiffness,
# and friction as the angle [rad] by which the servo of a joint is off before the joint gives way.
DELAY_UNIT, GAIN_UNIT, FRICTION_UNIT = 0.01, 0.1, 1e-3
# Where they may lie, in the same order, and how far the last two are moved to see what changes.
LOWER, UPPER = (0.0, 0.1, 0.0), (0.5, 10.0, 0.1)
GAIN_STEP, FRICTION_STEP = 0.02, 2e-4
ITERATIONS = 30


class Recording(NamedTuple):
    """What an arm was told, as its controller takes it, and where it was; seconds of one clock.

    It stood still at the start.
    """

    command_time: np.ndarray  # [C]
    command: np.ndarray  # [C, n]
    time: np.ndarray  # [T]
    position: np.ndarray  # [T, n]


class Errors(NamedTuple):
    """Of the twin's joint positions against the arm's [rad or m], each [n]."""

    rms: np.ndarray
    max: np.ndarray


class Calibration(NamedTuple):
    """What was found: the imperfections, the errors without and with them, and what moved [n]."""

    imperfections: Imperfections
    before: Errors
    after: Errors
    moved: np.ndarray


def replay(arm: SimulatedArm, recording: Recording) -> np.ndarray:
    """Tell the twin what the arm was told; return where it is at the recording's times [T, n]."""
    arm.rest_at(recording.position[0])
    controller = arm.twin.robot.controller
    duration = controller.point_duration_s if controller.kind == 'joint_trajectory' else 0.0
    now, at = recording.time[0], 0
    positions = []
    for time in recording.time:
        while at < len(recording.command_time) and recording.command_time[at] < time:
            arm.advance(max(0.0, recording.command_time[at] - now))
            now = max(now, recording.command_time[at])
            arm.command(recording.command[at], duration)
            at += 1
        arm.advance(time - now)
        now = time
        positions.append(arm.twin.joint_position)
    return np.array(positions)


def tracking_errors(
    world: World, recordings: Sequence[Recording], imperfections: Imperfections
) -> Errors:
    """Return how far a twin with these imperfections is from the arm over all recordings."""
    arm = SimulatedArm(world, imperfections)
    return _errors([replay(arm, item) - item.position for item in recordings])


def calibrate(world: World, recordings: Sequence[Recording]) -> Calibration:
    """Find delay, stiffness and friction with which the twin moves most like the arm.

    Least squares over all positions (Levenberg-Marquardt within bounds, mujoco.minimize), from
    the best delay of the model as it is. A joint that hardly moved keeps the model's. The delay
    is that from a command to its effect in the joint states: of both ways together. Raises
    RobotRLError where nothing was recorded that moved.
    """
    if not recordings:
        raise RobotRLError('calibrate: no recordings')
    moved = np.max([np.ptp(item.position, axis=0) for item in recordings], axis=0) > MOVED
    if not moved.any():
        raise RobotRLError(
            f'calibrate: no joint moved by {MOVED} rad in {len(recordings)} recordings; record '
            'some in which every joint does'
        )
    fit = _Fit(world, recordings, moved)
    found, _ = mujoco.minimize.least_squares(
        fit.start(),
        fit.residuals,
        bounds=fit.bounds,
        jacobian=fit.jacobian,
        xtol=1e-4,
        max_iter=ITERATIONS,
        verbose=0,
    )
    imperfections = fit.imperfections(found)
    return Calibration(
        imperfections,
        before=tracking_errors(world, recordings, Imperfections()),
        after=tracking_errors(world, recordings, imperfections),
        moved=moved,
    )


class _Fit:
    """The least-squares problem: unknowns [1 + 2 m] of the m joints that moved, in their units."""

    def __init__(self, world: World, recordings: Sequence[Recording], moved: np.ndarray):
        self._arm, self._recordings = SimulatedArm(world, Imperfections()), recordings
        self._joints = np.flatnonzero(moved)
        self._stiffness = self._arm.twin.stiffness
        self._known: tuple[bytes, list[np.ndarray]] = b'', []
        m = len(self._joints)
        self._units = np.repeat([DELAY_UNIT, GAIN_UNIT, FRICTION_UNIT], [1, m, m])
        self.bounds = [np.repeat(bound, [1, m, m]) / self._units for bound in (LOWER, UPPER)]

    def start(self) -> np.ndarray:
        """Return unknowns [1 + 2 m]: the model as it is, with the delay that fits it best."""
        m = len(self._joints)
        guesses = [np.repeat([delay, 1.0, 0.0], [1, m, m]) / self._units for delay in DELAYS]
        sums = [np.square(self._residual(guess)).sum() for guess in guesses]
        return guesses[int(np.argmin(sums))]

    def residuals(self, unknowns: np.ndarray) -> np.ndarray:
        """Return the errors [R, k] of k guesses [1 + 2 m, k]; m equal parts of R, one a joint."""
        return np.stack([self._residual(guess) for guess in unknowns.T], axis=1)

    def jacobian(self, unknowns: np.ndarray, residual: np.ndarray) -> np.ndarray:
        """Return the derivative [R, 1 + 2 m] of the errors [R, 1] at unknowns [1 + 2 m].

        What a joint's servo does to the other joints is left out: two replays do for all of them.
        """
        unknowns, residual = unknowns.ravel(), residual.ravel()
        m, rows = len(self._joints), len(residual) // len(self._joints)
        jacobian = np.zeros((len(residual), 1 + 2 * m))
        later = unknowns.copy()
        later[0] += 0.5
        jacobian[:, 0] = (self._residual(later) - residual) / 0.5
        for first, step in ((1, GAIN_STEP / GAIN_UNIT), (1 + m, FRICTION_STEP / FRICTION_UNIT)):
            other = unknowns.copy()
            other[first : first + m] += step
            change = (self._residual(other) - residual) / step
            for joint in range(m):
                part = slice(joint * rows, (joint + 1) * rows)
                jacobian[part, first + joint] = change[part]
        return jacobian

    def imperfections(self, unknowns: np.ndarray) -> Imperfections:
        """Return what the unknowns say, as far as it can be told, to four digits."""
        values = unknowns * self._units
        delay, gain, angle = np.split(values, [1, 1 + len(self._joints)])
        gains, frictions = np.ones_like(self._stiffness), np.zeros_like(self._stiffness)
        gains[self._joints] = gain
        frictions[self._joints] = angle * self._stiffness[self._joints]
        return Imperfections(
            command_delay_s=float(f'{delay[0]:.4g}'),
            gain=tuple(float(f'{value:.4g}') for value in gains),
            friction=tuple(float(f'{value:.4g}') for value in frictions),
        )

    def _residual(self, unknowns: np.ndarray) -> np.ndarray:
        """Return the errors [R] of one guess, joint after joint.

        A delay is a shift in time, as the arm stood still before: it needs no replay of its own.
        """
        delay, key = unknowns[0] * DELAY_UNIT, unknowns[1:].tobytes()
        if self._known[0] != key:
            now = np.concatenate([[0.0], unknowns[1:]])
            self._arm.tune(self.imperfections(now))
            self._known = key, [replay(self._arm, item) for item in self._recordings]
        return np.concatenate(
            [
                np.interp(item.time - delay, item.time, positions[:, joint])
                - item.position[:, joint]
                for joint in self._joints
                for item, positions in zip(self._recordings, self._known[1], strict=True)
            ]
        )


def _errors(differences: Sequence[np.ndarray]) -> Errors:
    every = np.concatenate(differences)
    return Errors(np.sqrt(np.square(every).mean(axis=0)), np.abs(every).max(axis=0))
