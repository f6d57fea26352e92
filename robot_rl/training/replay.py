"""The replay: a ring of the last steps of N environments, in storage's row semantics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from robot_rl.errors import RobotRLError
from robot_rl.sim.environment import StepType, TimeStep
from robot_rl.specs import Contract
from robot_rl.storage.priorities import Priorities
from robot_rl.storage.steps import (
    ACTION,
    DISCOUNT,
    OBSERVATION,
    REWARD,
    STATE,
    STEP_TYPE,
    Steps,
)
from robot_rl.training.device import DeviceColumns


class Replay:
    """One ring a lane for each of `num_envs` environments, `capacity` rows in all.

    The newest row of a lane is the present observation, whose action is not known yet. Memory is
    taken as it fills: a picture is kept as it is, and once, whatever the history that it is seen
    with. `steps` is the view that a WindowSampler draws from.

    `state_shapes` {name: shape without N} are the recurrent states to keep with each observation.
    `priorities` are alpha and beta of prioritised sampling; a WindowSampler is to be given
    `Replay.priorities` then, in which new rows have the largest priority seen. On another
    `device` than the CPU the large columns are kept a second time, for it to gather batches from.
    """

    def __init__(
        self,
        contract: Contract,
        num_envs: int,
        capacity: int,
        state_shapes: Mapping[str, tuple[int, ...]] = {},
        priorities: tuple[float, float] | None = None,
        device: str = 'cpu',
    ):
        # One row more than the steps: the observation that the newest of them led to.
        length = -(-capacity // num_envs) + 1
        shapes = {STATE + name: shape for name, shape in state_shapes.items()}
        shapes |= {ACTION: (contract.action_size,), REWARD: (), DISCOUNT: ()}
        columns = {
            name: np.zeros((num_envs, length, *shape), np.float32)
            for name, shape in shapes.items()
        }
        columns |= {
            OBSERVATION + field.name: np.zeros((num_envs, length, *field.shape), field.dtype)
            for field in contract.observation
        }
        # What is not written yet begins no episode: whoever looks for those finds few rows.
        columns[STEP_TYPE] = np.full((num_envs, length), StepType.LAST, np.int8)
        histories = {field.name: field.history for field in contract.observation}
        histories = {name: steps for name, steps in histories.items() if steps > 1}
        self.steps = Steps(columns, size=0, head=0, histories=histories)
        self.priorities = Priorities(num_envs * length, *priorities) if priorities else None
        self.on_device = None if device == 'cpu' else DeviceColumns(self.steps, device)
        self.inserted = 0  # environment steps ever added
        self._observations, self._states = list(contract.observation_shapes), set(state_shapes)

    def add_first(self, timestep: TimeStep, state: Mapping[str, np.ndarray] = {}) -> None:
        """Add the observations that episodes begin with; episodes under way count as cut.

        `state` {name: [N, ...]} is the recurrent state before the policy sees them. An
        environment may show more than the contract names: that is left out.

        Raises RobotRLError for an observation that is not finite, or another state than asked.
        """
        self._check_observations(timestep)
        self._append(timestep, state)

    def add(
        self, action: np.ndarray, following: TimeStep, state: Mapping[str, np.ndarray] = {}
    ) -> None:
        """Add what was done [N, A] in the newest observations, and what followed.

        `state` belongs to the observations that followed, as add_first says. Nothing is stored
        where RobotRLError is raised: for a reward, discount or observation that is not finite,
        or another state than asked.
        """
        self._check(REWARD, following.reward)
        self._check(DISCOUNT, following.discount)
        self._check_observations(following)
        columns, row = self.steps.columns, self.steps.head - 1
        self._append(following, state)
        columns[ACTION][:, row] = action
        self._note(row)
        columns[REWARD][:, row] = following.reward
        columns[DISCOUNT][:, row] = following.discount
        self.inserted += int(np.count_nonzero(following.step_type != StepType.FIRST))

    def observations(self) -> dict[str, np.ndarray]:
        """Return all observations kept, {field: [N * size, ...]}, but for pictures."""
        steps, rows = self.steps, self._rows().reshape(-1)
        seen = {}
        for name in self._observations:
            column, count = steps.flat[OBSERVATION + name], steps.histories.get(name, 1)
            if column.dtype.kind == 'f':
                seen[name] = column[rows if count == 1 else steps.behind(rows, count)]
        return seen

    def save(self) -> dict[str, Any]:
        """Return what is kept, oldest row first: arrays [N, size, ...], and counts."""
        rows = self._rows()
        saved = {
            'columns': {name: column[rows] for name, column in self.steps.flat.items()},
            'inserted': self.inserted,
            'head': self.steps.head,
        }
        if self.priorities is not None:
            saved['priorities'] = self.priorities.save(rows)
        return saved

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take back what `save` returned: the same draws give the same transitions.

        Raises RobotRLError where it is of other environments, or more than fits.
        """
        lanes, size = saved['columns'][STEP_TYPE].shape
        if lanes != self.steps.lanes or size > self.steps.length:
            raise RobotRLError(
                f'replay: {lanes} environments with {size} rows each were saved, expected '
                f'{self.steps.lanes} with at most {self.steps.length}'
            )
        # Draws by priority depend on where the rows lie; checkpoints from before there were
        # priorities do not say it.
        self.steps.size, self.steps.head = size, saved.get('head', size) % self.steps.length
        rows = self._rows()
        for name, column in saved['columns'].items():
            self.steps.flat[name][rows] = column
        if self.on_device is not None:
            self.on_device.written(rows)
        if self.priorities is not None and 'priorities' in saved:
            self.priorities.restore(rows, saved['priorities'])
        elif self.priorities is not None:
            self._rank_newest(rows.reshape(-1))
        self.inserted = saved['inserted']

    def _rows(self) -> np.ndarray:
        """Return the flat rows kept [N, size], oldest first."""
        return self.steps.rows(np.arange(self.steps.lanes)[:, None], np.arange(self.steps.size))

    def _append(self, timestep: TimeStep, state: Mapping[str, np.ndarray]) -> None:
        """Write observations, states and step types into new rows, over the oldest ones."""
        steps = self.steps
        if state.keys() != self._states:
            raise RobotRLError(
                f'replay: states {sorted(state)} were given, {sorted(self._states)} are kept'
            )
        for name in self._observations:
            values = timestep.observation[name]
            newest = values[:, -1] if name in steps.histories else values
            steps.columns[OBSERVATION + name][:, steps.head] = newest
        for name, values in state.items():
            steps.columns[STATE + name][:, steps.head] = values
        steps.columns[STEP_TYPE][:, steps.head] = timestep.step_type
        self._note(steps.head)
        if self.priorities is not None:
            self._rank_newest(np.arange(steps.lanes) * steps.length + steps.head)
        steps.head = (steps.head + 1) % steps.length
        steps.size = min(steps.size + 1, steps.length)

    def _note(self, row: int) -> None:
        """Let the device's copy know that `row` of every lane was written."""
        if self.on_device is not None:
            lanes, length = self.steps.lanes, self.steps.length
            self.on_device.written(np.arange(lanes) * length + row % length)

    def _rank_newest(self, rows: np.ndarray) -> None:
        """Give new `rows` [M] the largest priority, for they have not been learned from yet."""
        self.priorities.set_newest(rows)
        # No window starts in a LAST row: with a priority it would be drawn and refused for good.
        self.priorities.set(rows[self.steps.flat[STEP_TYPE][rows] == StepType.LAST], 0)

    def _check_observations(self, timestep: TimeStep) -> None:
        for name in self._observations:
            self._check(OBSERVATION + name, timestep.observation[name])

    def _check(self, column: str, values: np.ndarray) -> None:
        """Raise RobotRLError where `values` [N, ...] of a column are not all finite."""
        if self.steps.flat[column].dtype.kind != 'f':
            return  # pictures: each value of theirs is a number
        # Half the time of all(), at every step and for every field.
        if np.count_nonzero(np.isfinite(values)) == np.size(values):
            return
        lanes = np.reshape(values, (len(values), -1))
        lane = int(np.flatnonzero(~np.isfinite(lanes).all(axis=1))[0])
        check = (
            'the sensor or quantity that the field reads, and whether the simulation diverges'
            if column.startswith(OBSERVATION)
            else f"the task's {column} for what was observed there"
        )
        raise RobotRLError(
            f'{column.replace("/", " ")}: NaN or infinite in environment {lane} after '
            f'{self.inserted} steps; check {check}'
        )
