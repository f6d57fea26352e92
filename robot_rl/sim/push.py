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

# What a reward pays for coming to where the cube is to be pushed from; the rest is for bringing it
# to the target.
_APPROACH = 0.3


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
        """Pay 0.3 for the tool's distance from the cube, 0.7 for the distance."""
        reward = self.config.reward
        apart = np.linalg.norm(np.asarray(state[TOOL]) - self._behind(state), axis=-1)
        # Coming near pays, being exact does not: who pushes is not always exactly behind.
        near = 1 - np.tanh(apart / reward.far)
        return _APPROACH * near + (1 - _APPROACH) * reward.of(self.distance(state))

    def _behind(self, state: Columns) -> np.ndarray:
        """Return the place [..., 3] behind the cube, seen from the target.

        Where the cube is done, behind is anywhere, and the place comes nearer to its middle.
        """
        way = np.asarray(state[TARGET]) - np.asarray(state[CUBE])
        way = way * (1.0, 1.0, 0.0)
        left = np.maximum(self.distance(state), self.config.success_distance)
        far = self.config.cube.size[0] / 2 + self.robot.tip.radius
        return np.asarray(state[CUBE]) - far * way / left[..., None]

    def _poses(self, rng: np.random.Generator) -> dict[str, Pose]:
        cube, target = self.config.cube.drawn(rng), self.config.target
        place = np.append(rng.uniform(target.lower, target.upper), 0.0)
        return {CUBE_POSE: cube, TARGET_POSE: Pose(place, np.array(UPRIGHT))}
