"""Single environments of another library behind the batched interface, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from robot_rl.errors import ContractMismatch, RobotRLError
from robot_rl.sim.environment import HELD_OUT, StepType, TimeStep
from robot_rl.specs import Contract


class Step(NamedTuple):
    """What one environment returned last."""

    step_type: int  # a value of StepType
    reward: float
    discount: float
    observation: dict[str, np.ndarray]  # field name -> [*shape]


class SerialEnvironment:
    """N single environments in this process; see sim.environment.Environment for the semantics.

    A family of tasks says how one of them begins an episode (`_begin`) and takes an action
    (`_advance`). The episodes' seeds are drawn from `seed`.
    """

    def __init__(self, envs: Sequence[Any], contract: Contract, seed: int):
        self.num_envs, self.contract = len(envs), contract
        self._envs = list(envs)
        self._lower, self._upper = contract.action_lower, contract.action_upper
        self._rng = np.random.default_rng(seed)
        self._last: list[Step] = []

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """Nothing: these tasks have no streams."""
        return {}

    def reset(self, seeds: Sequence[int] | None = None) -> TimeStep:
        """Start N new episodes, from these N episode seeds where given; all FIRST."""
        if seeds is None:
            seeds = self._rng.integers(HELD_OUT, size=self.num_envs)
        if len(seeds) != self.num_envs:
            raise ValueError(f'{len(seeds)} seeds for {self.num_envs} environments')
        pairs = zip(self._envs, seeds, strict=True)
        self._last = [self._begin(env, int(seed)) for env, seed in pairs]
        return self._timestep()

    def step(self, action: np.ndarray) -> TimeStep:
        """Take action [N, A] in contract units; see Environment.step."""
        if not self._last:
            raise RobotRLError('call reset before the first step')
        action = np.asarray(action, dtype=float)
        if action.shape != (self.num_envs, len(self._lower)):
            raise ContractMismatch(
                f'action: shape {list(action.shape)}, right is '
                f'[{self.num_envs}, {len(self._lower)}]'
            )
        ended = [last.step_type == StepType.LAST for last in self._last]
        for row, ignored in zip(action, ended, strict=True):
            if not (ignored or np.isfinite(row).all()):
                raise ContractMismatch(f'action: not finite: {row.tolist()}')
        action = np.clip(action, self._lower, self._upper)
        self._last = [
            self._begin(env, int(self._rng.integers(HELD_OUT))) if new else self._advance(env, row)
            for env, row, new in zip(self._envs, action, ended, strict=True)
        ]
        return self._timestep()

    def _begin(self, env: Any, seed: int) -> Step:
        """Start the episode of this seed."""
        raise NotImplementedError

    def _advance(self, env: Any, action: np.ndarray) -> Step:
        """Take an action [A] that lies within the bounds."""
        raise NotImplementedError

    def _timestep(self) -> TimeStep:
        last = self._last
        return TimeStep(
            step_type=np.array([step.step_type for step in last], dtype=np.int8),
            reward=np.array([step.reward for step in last], dtype=np.float32),
            discount=np.array([step.discount for step in last], dtype=np.float32),
            # Stacked, and so copied: an environment may fill the same array at every step.
            observation={
                field.name: np.stack([step.observation[field.name] for step in last]).astype(
                    field.dtype
                )
                for field in self.contract.observation
            },
        )
