"""The worlds that N simulated episodes are in at once, where a task randomises them."""

from __future__ import annotations

import copy

import mujoco
import numpy as np

from robot_rl.sim.randomisation import Domain, generator
from robot_rl.sim.scene import ArmIndex
from robot_rl.sim.task import ArmTask


class Worlds:
    """A model for each of `count` environments, and what delays and noise do to an arm there.

    All of them are the task's own model where nothing is randomised. `sensed` are the places, in a
    physics state, of what is measured: joint positions [n], velocities [n], and what has no noise.
    """

    def __init__(
        self,
        task: ArmTask,
        model: mujoco.MjModel,
        arm: ArmIndex,
        sensed: np.ndarray,
        count: int,
    ):
        self._task, self._nominal, self._arm, self._sensed = task, model, arm, sensed
        given = task.randomisation
        self._on = given.is_on
        self.models, self.domains = [model] * count, [Domain()] * count
        if not self._on:
            return
        self.models = [copy.copy(model) for _ in range(count)]
        self._scratch = mujoco.MjData(model)
        self._commands = _Late(count, len(task.robot.joints), given.command_delay[1])
        self._measured = _Late(count, len(sensed), given.sensor_delay[1])
        # Of whole episodes, row by row: the noise of one does not hang on the others'.
        self._noise = np.zeros((count, task.max_steps + 1, len(sensed)))

    def enter(self, lane: int, seed: int, command: np.ndarray, state: np.ndarray) -> None:
        """Let lane be in the world of this episode's seed, which begins so, at rest."""
        if not self._on:
            return
        robot, model = self._task.robot, self.models[lane]
        self.domains[lane] = domain = self._task.randomisation.drawn(seed, self._nominal, robot)
        domain.embody(model, self._nominal, self._scratch)
        faults, period_s = domain.imperfections, robot.controller.period_s
        self._arm.tune(
            model, self._nominal, faults.each('gain', robot), faults.each('friction', robot)
        )
        self._commands.begin(lane, command, round(faults.command_delay_s / period_s))
        self._measured.begin(lane, state[self._sensed], round(faults.sensor_delay_s / period_s))
        deviation = [faults.each(name, robot) for name in ('position_noise', 'velocity_noise')]
        noisy = self._noise[lane, :, : 2 * len(robot.joints)]
        noisy[:] = np.concatenate(deviation) * generator(seed, 'noise').standard_normal(
            noisy.shape
        )

    def told(self, path: np.ndarray, lanes: np.ndarray) -> np.ndarray:
        """Return what servos [N, T, n] are told when the arm is, where `lanes` [N] is true."""
        if self._on:
            path[lanes] = self._commands.pass_on(path[lanes], lanes)
        return path

    def measured(self, states: np.ndarray, lanes: np.ndarray) -> np.ndarray:
        """Return what is measured, but for noise, after `states` [L, steps, S] of L lanes."""
        if not self._on:
            return states[:, -1, self._sensed]
        every = self._task.substeps
        ticks = states[:, every - 1 :: every, self._sensed]
        return self._measured.pass_on(ticks, lanes)[:, -1]

    def noisy(self, measured: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """Return what is measured [N, :], with its noise, after so many steps [N]."""
        if not self._on:
            return measured
        return measured + self._noise[np.arange(len(steps)), steps]


class _Late:
    """Rows of values that come to N lanes tick by tick, and go on a number of ticks later."""

    def __init__(self, lanes: int, size: int, most: int):
        self._past, self._ticks = np.zeros((lanes, most, size)), np.zeros(lanes, int)

    def begin(self, lane: int, row: np.ndarray, ticks: int) -> None:
        """Let values be `ticks` late in a lane where they have been `row` [size] so far."""
        self._past[lane], self._ticks[lane] = row, ticks

    def pass_on(self, rows: np.ndarray, lanes: np.ndarray) -> np.ndarray:
        """Return what goes on [L, T, size] while `rows` come to the L lanes in `lanes` [N]."""
        most, count = self._past.shape[1], rows.shape[1]
        known = np.concatenate([self._past[lanes], rows], axis=1)
        self._past[lanes] = known[:, count:]
        first = most - self._ticks[lanes]
        return np.take_along_axis(known, (first[:, None] + np.arange(count))[..., None], axis=1)
