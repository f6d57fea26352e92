"""The batched environment of every simulated task: dm_env's semantics over N environments."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import mujoco
import numpy as np

from robot_rl.specs import Contract

# The initial condition of an episode is a pure function of one integer. Training draws its
# episode seeds below this number; held-out evaluation uses HELD_OUT + 0, 1, 2, ...
HELD_OUT = 2**31


class StepType(enum.IntEnum):
    """Where a step stands in its episode."""

    FIRST = 0
    MID = 1
    LAST = 2


class TimeStep(NamedTuple):
    """What N environments return: LAST with discount 0 is termination, with 1 truncation.

    A FIRST step has reward 0 and discount 1.
    """

    step_type: np.ndarray  # [N] int8, values of StepType
    reward: np.ndarray  # [N] float32
    discount: np.ndarray  # [N] float32
    observation: dict[str, np.ndarray]  # field name -> [N, *full_shape], in its dtype


class Environment(Protocol):
    """A batch of `num_envs` environments that serve one contract.

    An environment whose last step was LAST ignores its action and returns FIRST, the start of
    an episode whose seed it draws from its own random generator. Observations are never
    overwritten: the last one of an episode comes with LAST, the first of the next with FIRST.
    """

    contract: Contract
    num_envs: int
    # (lowest, highest) reward of one step, where the task states them.
    reward_range: tuple[float, float] | None
    # The most steps an episode takes (its LAST is a truncation then), where the task states it.
    max_steps: int | None

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """The present state as float64 columns '<stream>.<quantity>' -> [N, ...].

        They are what a task's reward and success read; suites without streams have none.
        """

    def reset(self, seeds: Sequence[int] | None = None) -> TimeStep:
        """Start N new episodes, from these N episode seeds where given; all FIRST."""

    def step(self, action: np.ndarray) -> TimeStep:
        """Take action [N, A] in contract units.

        Raises ContractMismatch for another shape or a value that is not finite.
        """

    def scene(self, index: int = 0) -> tuple[mujoco.MjModel, mujoco.MjData]:
        """Return the model and the present state of environment `index`, to be drawn only."""

    def close(self) -> None:
        """Release threads."""
