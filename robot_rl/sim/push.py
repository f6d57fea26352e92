"""The push task: push a cube over the table to a target."""

from __future__ import annotations

from typing import Literal

import numpy as np

from robot_rl.sim.task import (
    TARGET_POSE,
    TOOL,
    UPRIGHT,
    Area,
    ArmTask,
    Columns,
    Pose,
    Standing,
    TaskConfig,
)

CUBE_POSE = 'cube_pose'
CUBE, TARGET = f'{CUBE_POSE}.position', f'{TARGET_POSE}.position'

# What a reward pays for coming near the cube; the rest is for bringing it to the target.
_APPROACH = 0.2


class PushConfig(TaskConfig):
    """Everything that the YAML file of a push task says."""

    kind: Literal['push'] = 'push'
    cube: Standing
    # Where the cube's middle is to be.
    target: Area


class PushTask(ArmTask):
    """Columns: 'tool.position', 'cube_pose.position' and 'target_pose.position', all [..., 3]."""

    Config = PushConfig
    config: PushConfig
    objects, goals = (CUBE_POSE,), (TARGET_POSE,)

    def distance(self, columns: Columns) -> np.ndarray:
        """Return how far [...] [m] the cube is from the target, seen from above."""
        way = np.asarray(columns[CUBE]) - np.asarray(columns[TARGET])
        return np.linalg.norm(way[..., :2], axis=-1)

    def done(self, columns: Columns) -> np.ndarray:
        """Tell whether the cube is at the target, and lies on the table."""
        high = np.asarray(columns[CUBE])[..., 2] - self.config.cube.size[2] / 2
        return super().done(columns) & (np.abs(high) <= self.config.success_distance)

    def _dense(self, state: Columns) -> np.ndarray:
        """Pay 0.2 for the tool's distance from the cube, 0.8 for the distance."""
        reward = self.config.reward
        apart = np.linalg.norm(np.asarray(state[TOOL]) - np.asarray(state[CUBE]), axis=-1)
        return _APPROACH * reward.of(apart) + (1 - _APPROACH) * reward.of(self.distance(state))

    def _poses(self, rng: np.random.Generator) -> dict[str, Pose]:
        cube, target = self.config.cube.drawn(rng), self.config.target
        place = np.append(rng.uniform(target.lower, target.upper), 0.0)
        return {CUBE_POSE: cube, TARGET_POSE: Pose(place, np.array(UPRIGHT))}
