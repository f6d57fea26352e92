"""The stack task: put the green cube on the red one, and let it go."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pydantic

from robot_rl.sim.task import TOOL, WIDTH, ArmTask, Columns, Pose, Standing, TaskConfig, apart

GREEN_POSE, RED_POSE = 'green_pose', 'red_pose'
GREEN, RED = f'{GREEN_POSE}.position', f'{RED_POSE}.position'

# What a reward pays for coming near the green cube, and for bringing it onto the red one; the
# rest is for letting it go there.
_APPROACH, _BRING = 0.2, 0.5


class StackConfig(TaskConfig):
    """Everything that the YAML file of a stack task says."""

    kind: Literal['stack'] = 'stack'
    green: Standing
    red: Standing
    # Least distance of the two middles at the start [m].
    apart: pydantic.PositiveFloat = 0.08
    # By how much the gripper is wider than the cube that it has let go [m].
    release: pydantic.PositiveFloat = 0.01


class StackTask(ArmTask):
    """Columns: 'tool.position', 'green_pose.position', 'red_pose.position', 'gripper.width'."""

    Config = StackConfig
    config: StackConfig
    objects = (GREEN_POSE, RED_POSE)

    def distance(self, columns: Columns) -> np.ndarray:
        """Return how far [...] [m] the green cube is from lying on the red one."""
        above = np.asarray(columns[RED]) + np.array([0.0, 0.0, self._height])
        return np.linalg.norm(np.asarray(columns[GREEN]) - above, axis=-1)

    def done(self, columns: Columns) -> np.ndarray:
        """Tell whether green lies on red, which is on the table, and nothing holds it."""
        rests = np.asarray(columns[RED])[..., 2] <= self.config.red.size[2]
        return super().done(columns) & rests & self._released(columns)

    def _dense(self, state: Columns) -> np.ndarray:
        """Pay 0.2 for the tool's distance from green, 0.5 for the distance, 0.3 if done."""
        reward, stacked = self.config.reward, self.distance(state)
        near = reward.of(np.linalg.norm(np.asarray(state[TOOL]) - state[GREEN], axis=-1))
        near = np.where(self.done(state), 1.0, near)  # it may leave then
        rest = 1 - _APPROACH - _BRING
        return _APPROACH * near + _BRING * reward.of(stacked) + rest * self.done(state)

    def _released(self, columns: Columns) -> np.ndarray:
        width = np.asarray(columns[WIDTH])[..., 0]
        return width >= min(self.config.green.size[:2]) + self.config.release

    @property
    def _height(self) -> float:
        return (self.config.green.size[2] + self.config.red.size[2]) / 2

    def _poses(self, rng: np.random.Generator) -> dict[str, Pose]:
        config = self.config
        green, red = apart(rng, config.green, config.red, config.apart)
        return {GREEN_POSE: green, RED_POSE: red}
