"""Evaluation: whole episodes without exploration, from initial conditions held out of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from robot_rl import registry
from robot_rl.sim.environment import HELD_OUT, Environment, StepType
from robot_rl.sim.task import ArmTask


class Selects(Protocol):
    """What evaluation asks of a policy: torch modules and control.runtime's policies have it."""

    def initial_state(self, batch: int) -> Any:
        """Return the state that an episode begins with."""

    def select(self, observation: Mapping[str, np.ndarray], state: Any) -> tuple:
        """Return actions [B, A] and the next state."""


class Evaluation(NamedTuple):
    """What E episodes gave; success and final distance [m] where the task defines them."""

    returns: np.ndarray  # [E] undiscounted sums of rewards
    lengths: np.ndarray  # [E] steps
    success: np.ndarray | None = None  # [E] bool
    final_distance: np.ndarray | None = None  # [E]

    def summary(self) -> dict[str, Any]:
        """Return plain data: returns, mean, std, and what the task adds."""
        data = {
            'episodes': len(self.returns),
            'returns': [float(value) for value in self.returns],
            'mean': float(self.returns.mean()),
            'std': float(self.returns.std()),
        }
        return data | self.judged()

    def judged(self) -> dict[str, float]:
        """Return success_rate and final_distance_mean, where the task defines them."""
        if self.success is None:
            return {}
        return {
            'success_rate': float(self.success.mean()),
            'final_distance_mean': float(self.final_distance.mean()),
        }


def held_out_seeds(episodes: int) -> list[int]:
    """Return the episode seeds that training never draws."""
    return [HELD_OUT + index for index in range(episodes)]


def task_of(name: str) -> ArmTask | None:
    """Return what tells success in the task of this name; None where it has rewards only."""
    return None if name.startswith(registry.WITHOUT_STREAMS) else registry.make_task(name)


def evaluate(
    policy: Selects, environment: Environment, seeds: Sequence[int], task: ArmTask | None = None
) -> Evaluation:
    """Run one episode from each of `seeds`, environment.num_envs at a time."""
    parts = []
    for start in range(0, len(seeds), environment.num_envs):
        chosen = list(seeds[start : start + environment.num_envs])
        padding = [chosen[-1]] * (environment.num_envs - len(chosen))
        part = _round(policy, environment, chosen + padding, task)
        parts.append([None if value is None else value[: len(chosen)] for value in part])
    columns = zip(*parts, strict=True)
    return Evaluation(*(None if c[0] is None else np.concatenate(c) for c in columns))


def _round(
    policy: Selects, environment: Environment, seeds: list[int], task: ArmTask | None
) -> Evaluation:
    """Run one episode in every environment; whoever has ended waits for the others."""
    timestep = environment.reset(seeds)
    state = policy.initial_state(environment.num_envs)
    returns, lengths = np.zeros(len(seeds)), np.zeros(len(seeds), int)
    running = np.ones(len(seeds), bool)
    rows = [environment.columns] if task else []
    while running.any():
        action, state = policy.select(timestep.observation, state)
        timestep = environment.step(action)
        if task:
            rows.append(environment.columns)
        returns += np.where(running, timestep.reward, 0.0)
        lengths += running
        running &= timestep.step_type != StepType.LAST
    if task is None:
        return Evaluation(returns, lengths)
    episodes = [
        {key: np.stack([row[key][i] for row in rows[: length + 1]]) for key in rows[0]}
        for i, length in enumerate(lengths)
    ]
    success = np.array([bool(task.success(columns)) for columns in episodes])
    distance = np.array([float(task.final_distance(columns)) for columns in episodes])
    return Evaluation(returns, lengths, success, distance)
