"""The insert task: take a peg that stands on the table and put it into a hole."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pydantic

from robot_rl.robots import quaternions
from robot_rl.sim.task import TOOL, ArmTask, Columns, Pose, Standing, TaskConfig, apart
from robot_rl.specs import ObservationField

PEG_POSE, HOLE_POSE = 'peg_pose', 'hole_pose'
PEG, HOLE = f'{PEG_POSE}.position', f'{HOLE_POSE}.position'
_PEG_WAY, _HOLE_WAY = f'{PEG_POSE}.orientation', f'{HOLE_POSE}.orientation'

# What a reward pays for coming near the peg; the rest is for bringing it into the hole.
_APPROACH = 0.2


class InsertConfig(TaskConfig):
    """Everything that the YAML file of an insert task says."""

    kind: Literal['insert'] = 'insert'
    peg: Standing
    # The block around the hole; its hole is square.
    hole: Standing
    # Edge length of the hole [m].
    opening: pydantic.PositiveFloat = 0.034
    # How deep the peg's end is to be below the hole's rim [m].
    depth: pydantic.PositiveFloat = 0.03
    # Least distance of peg and hole at the start [m].
    apart: pydantic.PositiveFloat = 0.13


class InsertTask(ArmTask):
    """Columns: 'tool.position', and position and orientation of 'peg_pose' and 'hole_pose'."""

    Config = InsertConfig
    config: InsertConfig
    objects, goals = (PEG_POSE,), (HOLE_POSE,)

    def distance(self, columns: Columns) -> np.ndarray:
        """Return how far [...] [m] the peg's lower end is from its place in the hole."""
        x, y, z = np.moveaxis(self._end(columns), -1, 0)
        lacking = np.maximum(z - (self.config.hole.size[2] - self.config.depth), 0.0)
        return np.sqrt(np.square(x) + np.square(y) + np.square(lacking))

    def done(self, columns: Columns) -> np.ndarray:
        """Tell whether the peg's lower end is inside the hole, as deep as it is to be."""
        x, y, z = np.moveaxis(self._end(columns), -1, 0)
        inside = np.maximum(np.abs(x), np.abs(y)) <= self.config.opening / 2
        deep = z <= self.config.hole.size[2] - self.config.depth + self.config.success_distance
        return inside & deep & (z > -self.config.success_distance)

    def _dense(self, state: Columns) -> np.ndarray:
        """Pay 0.2 for the tool's distance from the peg, 0.8 for the distance."""
        reward = self.config.reward
        near = reward.of(np.linalg.norm(np.asarray(state[TOOL]) - state[PEG], axis=-1))
        near = np.where(self.done(state), 1.0, near)  # it may leave then
        return _APPROACH * near + (1 - _APPROACH) * reward.of(self.distance(state))

    def _end(self, columns: Columns) -> np.ndarray:
        """Return the peg's lower end [..., 3] [m] in the hole's frame, z = 0 at its bottom."""
        half = np.array([0.0, 0.0, self.config.peg.size[2] / 2])
        axis = quaternions.rotate(columns[_PEG_WAY], half)
        axis = np.where(axis[..., 2:] < 0, -axis, axis)  # whichever end is below
        way = np.asarray(columns[PEG]) - axis - np.asarray(columns[HOLE])
        return quaternions.rotate(quaternions.conjugate(columns[_HOLE_WAY]), way)

    def _seen_of_bodies(self) -> tuple[ObservationField, ...]:
        # The hole is square: how it is turned matters.
        (place,) = (field for field in super()._seen_of_bodies() if field.goal)
        way = place.replace(name='hole_orientation', source=_HOLE_WAY, unit='', shape=(4,))
        return (*super()._seen_of_bodies(), way)

    def _poses(self, rng: np.random.Generator) -> dict[str, Pose]:
        config = self.config
        peg, hole = apart(rng, config.peg, config.hole, config.apart)
        on_table = hole.position * (1.0, 1.0, 0.0)  # the block's origin is in its underside
        return {PEG_POSE: peg, HOLE_POSE: hole._replace(position=on_table)}
