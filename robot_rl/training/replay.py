"""The replay: a ring of the last steps of N environments, in storage's row semantics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from robot_rl.sim.environment import StepType, TimeStep
from robot_rl.specs import Contract
from robot_rl.storage.steps import ACTION, DISCOUNT, OBSERVATION, REWARD, STEP_TYPE, Steps


class Replay:
    """One ring a lane for each of `num_envs` environments, `capacity` rows in all.

    The newest row of a lane is the present observation, whose action is not known yet. Memory is
    taken as it fills. `steps` is the view that a WindowSampler draws from.
    """

    def __init__(self, contract: Contract, num_envs: int, capacity: int):
        # One row more than the steps: the observation that the newest of them led to.
        length = -(-capacity // num_envs) + 1
        shapes = {OBSERVATION + name: shape for name, shape in contract.observation_shapes.items()}
        shapes |= {ACTION: (contract.action_size,), REWARD: (), DISCOUNT: ()}
        columns = {
            name: np.zeros((num_envs, length, *shape), np.float32)
            for name, shape in shapes.items()
        }
        columns[STEP_TYPE] = np.zeros((num_envs, length), np.int8)
        self.steps = Steps(columns, size=0, head=0)
        self.inserted = 0  # environment steps ever added

    def add_first(self, timestep: TimeStep) -> None:
        """Add the observations that episodes begin with; episodes under way count as cut."""
        columns, row = self.steps.columns, self.steps.head
        for name, values in timestep.observation.items():
            columns[OBSERVATION + name][:, row] = values
        columns[STEP_TYPE][:, row] = timestep.step_type
        self.steps.head = (row + 1) % self.steps.length
        self.steps.size = min(self.steps.size + 1, self.steps.length)

    def add(self, action: np.ndarray, following: TimeStep) -> None:
        """Add what was done [N, A] in the newest observations, and what followed."""
        columns, row = self.steps.columns, self.steps.head - 1
        columns[ACTION][:, row] = action
        columns[REWARD][:, row] = following.reward
        columns[DISCOUNT][:, row] = following.discount
        self.add_first(following)
        self.inserted += int(np.count_nonzero(following.step_type != StepType.FIRST))

    def observations(self) -> dict[str, np.ndarray]:
        """Return all observations kept, {field: [N * size, ...]}."""
        lane, age = np.divmod(np.arange(self.steps.lanes * self.steps.size), self.steps.size)
        rows = self.steps.rows(lane, age)
        return {
            name: self.steps.flat[OBSERVATION + name][rows]
            for name in self.steps.observation_names
        }

    def save(self) -> dict[str, Any]:
        """Return what is kept, oldest row first: arrays [N, size, ...] and the count."""
        order = (self.steps.head - self.steps.size + np.arange(self.steps.size)) % (
            self.steps.length
        )
        columns = {name: column[:, order] for name, column in self.steps.columns.items()}
        return {'columns': columns, 'inserted': self.inserted}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take back what `save` returned: the same draws give the same transitions."""
        size = saved['columns'][STEP_TYPE].shape[1]
        for name, column in saved['columns'].items():
            self.steps.columns[name][:, :size] = column
        self.steps.size, self.steps.head = size, size % self.steps.length
        self.inserted = saved['inserted']
