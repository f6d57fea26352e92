"""The reach task: bring the tool to a target, which may move, and keep it there."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pydantic

from robot_rl.sim.randomisation import Factor
from robot_rl.sim.task import (
    TARGET_POSE,
    TOOL,
    ArmTask,
    Columns,
    Pose,
    Sway,
    TaskConfig,
)
from robot_rl.specs import Box, ObservationField, Spec

TARGET = f'{TARGET_POSE}.position'

# How many steps of a moving target are seen: where it is, how fast it is, and how that changes.
_SEEN_OF_A_MOTION = 3


class Motion(Spec):
    """How a target moves about its place: each axis as a sine of its own."""

    # Drawn from 0 up to this [m], by axis.
    amplitude: tuple[
        pydantic.NonNegativeFloat, pydantic.NonNegativeFloat, pydantic.NonNegativeFloat
    ]
    # Of one oscillation, drawn from this range [s].
    period_s: Factor = (3.0, 8.0)

    def drawn(self, rng: np.random.Generator) -> Sway:
        """Draw a motion that begins anywhere in its oscillation."""
        amplitude = rng.uniform(np.zeros(3), self.amplitude)
        pulse = 2 * np.pi / rng.uniform(*self.period_s, 3)
        return Sway(amplitude, pulse, rng.uniform(0.0, 2 * np.pi, 3))


class ReachConfig(TaskConfig):
    """Everything that the YAML file of a reach task says."""

    kind: Literal['reach'] = 'reach'
    # Where targets are drawn from, uniformly, in base_frame [m].
    target: Box
    motion: Motion | None = None


class ReachTask(ArmTask):
    """Columns: 'tool.position' and 'target_pose.position', both [..., 3]."""

    Config = ReachConfig
    goals = (TARGET_POSE,)

    def distance(self, columns: Columns) -> np.ndarray:
        """Return the distance [...] [m] from the tool to the target."""
        return np.linalg.norm(np.asarray(columns[TOOL]) - np.asarray(columns[TARGET]), axis=-1)

    def _poses(self, rng: np.random.Generator) -> dict[str, Pose]:
        target = rng.uniform(self.config.target.lower, self.config.target.upper)
        motion = self.config.motion
        return {TARGET_POSE: Pose(target, sway=motion.drawn(rng) if motion else None)}

    def _seen_of_goal(self, stream: str, history: int = 1) -> ObservationField:
        return super()._seen_of_goal(stream, _SEEN_OF_A_MOTION if self.config.motion else history)
