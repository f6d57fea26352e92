"""The lift task: take a cube from the table and hold it up."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pydantic

from robot_rl.sim.task import TOOL, ArmTask, Columns, Pose, Standing, TaskConfig

CUBE_POSE = 'cube_pose'
CUBE = f'{CUBE_POSE}.position'

# What a reward pays for coming near the cube; the rest is for lifting it.
_APPROACH = 0.3


class LiftConfig(TaskConfig):
    """Everything that the YAML file of a lift task says."""

    kind: Literal['lift'] = 'lift'
    cube: Standing
    # How far above where it stood the cube is to be held [m].
    height: pydantic.PositiveFloat = 0.1
    # It is held where its middle is no farther from the tool than this [m].
    hold_distance: pydantic.PositiveFloat = 0.04


class LiftTask(ArmTask):
    """Columns: 'tool.position' and 'cube_pose.position', both [..., 3]."""

    Config = LiftConfig
    config: LiftConfig
    objects = (CUBE_POSE,)

    def distance(self, columns: Columns) -> np.ndarray:
        """Return how much height [...] [m] the cube still lacks."""
        return np.maximum(self.config.height - self._lifted(columns), 0.0)

    def done(self, columns: Columns) -> np.ndarray:
        """Tell whether the cube is up and in the gripper: one that flies is not held."""
        held = self._apart(columns) <= self.config.hold_distance
        return held & super().done(columns)

    def _dense(self, state: Columns) -> np.ndarray:
        """Pay 0.3 for the tool's distance from the cube, 0.7 for the share of the height."""
        apart = self._apart(state)
        share = np.clip(self._lifted(state) / self.config.height, 0.0, 1.0)
        held = np.exp(-np.square(apart / self.config.hold_distance))
        return _APPROACH * self.config.reward.of(apart) + (1 - _APPROACH) * share * held

    def _apart(self, columns: Columns) -> np.ndarray:
        return np.linalg.norm(np.asarray(columns[TOOL]) - np.asarray(columns[CUBE]), axis=-1)

    def _lifted(self, columns: Columns) -> np.ndarray:
        return np.asarray(columns[CUBE])[..., 2] - self.config.cube.size[2] / 2

    def _poses(self, rng: np.random.Generator) -> dict[str, Pose]:
        return {CUBE_POSE: self.config.cube.drawn(rng)}
