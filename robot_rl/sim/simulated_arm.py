"""A twin behind its driver, as the outside knows an arm: commands in, measurements out."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from robot_rl.sim.driver import SimulatedDriver
from robot_rl.sim.imperfections import Imperfections
from robot_rl.sim.perturbation import Kind
from robot_rl.sim.twin import Twin, World

# Less than this [s] is the rounding of times that are sums.
_SAME_TIME = 1e-9


class Sample(NamedTuple):
    """What joint states tell: the arm's joints [n], then its gripper's and other ones [k]."""

    position: np.ndarray  # [n + k]
    velocity: np.ndarray  # [n + k]


class SimulatedArm:
    """Takes what the arm's controller takes, lets time pass, and measures; with imperfections.

    The noise of an episode is drawn from its seed; what its task randomises comes beside the
    imperfections that are given here.
    """

    def __init__(
        self,
        world: World,
        imperfections: Imperfections,
        seed: int = 0,
        perturbation: Kind = 'none',
    ):
        self.twin, self._driver = Twin(world, perturbation), SimulatedDriver(world.robot)
        self._pending: deque[tuple[float, np.ndarray, float]] = deque()
        self._past: deque[tuple[float, Sample]] = deque()
        self._given = imperfections
        self.reset(seed)

    def tune(self, imperfections: Imperfections) -> None:
        """Be another arm from now on. Raises SpecError where there are not as many joints."""
        robot = self.twin.robot
        faults = imperfections.beside(self.twin.domain.imperfections, robot)
        self._given, self._imperfections = imperfections, faults
        noise = [faults.each(name, robot) for name in ('position_noise', 'velocity_noise')]
        self._noise = np.stack(noise)
        self.twin.tune(faults.each('gain', robot), faults.each('friction', robot))

    def reset(self, seed: int) -> None:
        """Place arm and target as this seed's episode starts; no command is on its way."""
        start = self.twin.reset(seed)
        self.tune(self._given)
        self._rng = np.random.default_rng(seed)
        self._begin(start.joint_position)

    def rest_at(self, position: np.ndarray) -> None:
        """Place the arm at joint positions [n] where it stays until it is commanded."""
        self.twin.rest_at(position)
        self._begin(self.twin.command)

    def command(self, values: ArrayLike, duration_s: float = 0.0, in_s: float = 0.0) -> None:
        """Take a command [n] of the controller's kind, see SimulatedDriver, that comes `in_s` on.

        It acts after the delay. Raises ContractMismatch for another number of values or one that
        is not finite.
        """
        due = self._time + in_s + self._imperfections.command_delay_s
        self._pending.append((due, self._driver.checked(values), duration_s))

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        end = self._time + seconds
        while self._pending and self._pending[0][0] < end - _SAME_TIME:
            due, values, duration_s = self._pending.popleft()
            self._pass(due - self._time)
            self._driver.command(values, duration_s)
        self._pass(end - self._time)
        self._past.append((self._time, self._now()))

    def measure(self) -> Sample | None:
        """Return what is measured now: late and noisy; None: this sample is lost."""
        sample = self._before(self._imperfections.sensor_delay_s)
        noise = self._noise * self._rng.standard_normal(self._noise.shape)
        lost = self._rng.random() < self._imperfections.dropout
        for values, error in zip(sample, noise, strict=True):
            values[: len(error)] += error
        return None if lost else sample

    def _begin(self, command: np.ndarray) -> None:
        self._driver.reset(command)
        self._time = 0.0
        self._pending.clear()
        self._past.clear()
        self._past.append((self._time, self._now()))

    def _pass(self, seconds: float) -> None:
        if seconds <= 0:
            return
        self.twin.set_command(self._driver.advance(seconds))
        self.twin.advance(seconds)
        self._time += seconds

    def _now(self) -> Sample:
        twin = self.twin
        return Sample(
            np.concatenate([twin.joint_position, twin.other_position]),
            np.concatenate([twin.joint_velocity, twin.other_velocity]),
        )

    def _before(self, seconds: float) -> Sample:
        """Return what was so long ago, between two samples; forget what came before them."""
        then = self._time - seconds
        while len(self._past) > 1 and self._past[1][0] <= then + _SAME_TIME:
            self._past.popleft()
        time, sample = self._past[0]
        if len(self._past) == 1 or then <= time:
            return Sample(*map(np.copy, sample))
        later, after = self._past[1]
        share = (then - time) / (later - time)
        return Sample(*(a + share * (b - a) for a, b in zip(sample, after, strict=True)))
