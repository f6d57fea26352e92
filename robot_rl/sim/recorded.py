"""What a task says of a recorded episode: its observations, rewards and success.

Rewards are never recorded; they are computed here, from columns that were, with the functions
that simulation uses.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Literal

import numpy as np

from robot_rl.control.observation import Observer, with_history
from robot_rl.sim.environment import StepType
from robot_rl.sim.task import ArmTask
from robot_rl.specs import Contract

Columns = Mapping[str, np.ndarray]


def with_tool(task: ArmTask, columns: Columns) -> dict[str, np.ndarray]:
    """Add tool.position and tool.orientation, the forward kinematics of the measured joints."""
    position, orientation = task.chain.forward(columns['joint_states.position'])
    return {**columns, 'tool.position': position, 'tool.orientation': orientation}


def steps_of(
    task: ArmTask,
    columns: Columns,
    contract: Contract,
    action: Literal['requested', 'applied'] = 'requested',
) -> dict[str, np.ndarray]:
    """Return an episode as columns of storage.Steps, [T + 1, ...], rewarded by `task`.

    `columns` are those of storage.columns with the tool's (`with_tool`), of an episode recorded
    for this or another task whose streams serve `contract`. The last row is LAST with discount
    1: a recording is cut, whatever the task, by time. Of the two actions RL learns from the
    requested one, imitation from the one that was applied.
    """
    actions = columns[f'action/{action}']
    steps = len(actions)
    arrivals = {name: column[1:] for name, column in columns.items() if '.' in name}
    rewards = task.reward(arrivals, actions)
    observed = Observer(contract, task.chain).observe(_streams(columns))
    observation = with_history(contract, observed)
    return {
        **{f'observation/{name}': values for name, values in observation.items()},
        'action': with_last_row(actions),
        'reward': with_last_row(rewards),
        'discount': np.ones(steps + 1, dtype=np.float32),
        'step_type': step_types(steps),
    }


def step_types(steps: int) -> np.ndarray:
    """Return the step types [T + 1] of an episode of T steps."""
    types = np.full(steps + 1, StepType.MID, np.int8)
    types[[0, -1]] = StepType.FIRST, StepType.LAST
    return types


def with_last_row(values: np.ndarray) -> np.ndarray:
    """Append a row of zeros, float32: the LAST row has no action and no reward."""
    return np.concatenate([values, np.zeros_like(values[:1])]).astype(np.float32)


def _streams(columns: Columns) -> dict[str, dict[str, np.ndarray]]:
    """Turn '<stream>.<quantity>' columns into nested streams."""
    streams: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    for name, column in columns.items():
        if '.' in name:
            stream, quantity = name.split('.', 1)
            streams[stream][quantity] = column
    return dict(streams)
