"""Episodes of arm tasks in simulation, into the store: columns, as recorded beside an arm.

They are primary data (see storage.episode): streams, pictures among them, requested and applied
actions at the ticks of the task's contract. Observations and rewards are computed from them, by
this or another task.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from robot_rl.control.actions import applied_action, gripper_width
from robot_rl.images import lossless
from robot_rl.sim.arm import ArmEnvironment
from robot_rl.sim.environment import StepType, TimeStep
from robot_rl.sim.task import ArmTask
from robot_rl.storage.column_file import Column
from robot_rl.storage.episode import EpisodeHeader
from robot_rl.storage.foreign import ForeignEpisode, grid_ns
from robot_rl.storage.pictures import Pictures
from robot_rl.storage.store import Store
from robot_rl.storage.transfer import add_steps

Columns = dict[str, np.ndarray]


def collect_episodes(
    store: Store,
    environment: ArmEnvironment,
    policy: Any,
    seeds: Sequence[int],
    about: Mapping[str, Any] = {},
) -> list[EpisodeHeader]:
    """Run one episode of `policy` from each of `seeds`, num_envs at a time, into the store.

    `about` are further fields of EpisodeHeader: policy, tags. Whether they succeeded is told by
    the task. Raises StorageError where they cannot be written.
    """
    task = environment.task
    shared = {
        'task': task.name,
        'source': 'policy',
        'robot': task.robot.name,
        'robot_spec': task.robot,
        'world': 'sim',
        'contract': environment.contract,
        'result': 'truncated',
        'termination': f'{environment.max_steps} steps',
    }
    return add_steps(store, _episodes(environment, policy, seeds, shared | dict(about)))


def _episodes(
    environment: ArmEnvironment, policy: Any, seeds: Sequence[int], about: Mapping[str, Any]
) -> Iterator[Callable[[], ForeignEpisode]]:
    """Yield what makes each episode, round after round."""
    for start in range(0, len(seeds), environment.num_envs):
        chosen = list(seeds[start : start + environment.num_envs])
        padding = [chosen[-1]] * (environment.num_envs - len(chosen))
        columns, actions = _round(environment, policy, chosen + padding)
        for lane, seed in enumerate(chosen):
            own = {name: values[:, lane] for name, values in columns.items()}
            world = environment.task.randomisation.told(environment.domains[lane])
            where = {'seed': seed, 'extra': world}
            yield functools.partial(
                _episode, environment.task, own, actions[:, lane], {**about, **where}
            )


def _round(
    environment: ArmEnvironment, policy: Any, seeds: Sequence[int]
) -> tuple[Columns, np.ndarray]:
    """Run an episode in every environment: columns [T + 1, N, ...] and actions [T, N, A].

    All of them are cut by the same time limit.
    """
    timestep, state = environment.reset(seeds), policy.initial_state(len(seeds))
    rows, actions = [_row(environment, timestep)], []
    while (timestep.step_type != StepType.LAST).all():
        action, state = policy.select(timestep.observation, state)
        timestep = environment.step(action)
        rows.append(_row(environment, timestep))
        actions.append(action)
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}, np.stack(actions)


def _row(environment: ArmEnvironment, timestep: TimeStep) -> Columns:
    """Return the columns of a step, and the newest picture of each camera [N, h, w, 3] uint8."""
    columns, seen = environment.columns, timestep.observation
    for field in environment.contract.observation:
        if field.is_picture:
            shown = seen[field.name]
            columns[field.source] = shown[:, -1] if field.history > 1 else shown
    return columns


def _kept(values: np.ndarray) -> Column:
    """Return a column as it is stored: pictures [T + 1, h, w, 3] in files, without losses."""
    if values.dtype != np.uint8:
        return values
    files = [lossless(picture) for picture in values]
    return Pictures.of(files, np.arange(len(files)), values.shape[1:3])


def _episode(
    task: ArmTask, columns: Columns, actions: np.ndarray, about: Mapping[str, Any]
) -> ForeignEpisode:
    """Make an episode of columns [T + 1, ...] and requested actions [T, A]."""
    header = EpisodeHeader(**about, success=bool(task.success(columns)))
    contract, robot = header.contract, task.robot
    times_ns = grid_ns(header.start_time_ns, len(actions) + 1, contract.rate_hz)
    # The tool's are derived.
    measured = {k: _kept(v) for k, v in columns.items() if not k.startswith('tool.')}
    command = columns['command.position']
    applied = applied_action(
        contract, command[1:], command[:-1], robot, task.chain,
        gripper_width(contract, actions, robot),
    )  # fmt: skip
    requested = np.asarray(actions, np.float64)
    recorded = {'time': times_ns * 1e-9, 'action/requested': requested, 'action/applied': applied}
    header = header.replace(end_time_ns=int(times_ns[-1]))
    return ForeignEpisode(header, measured | recorded)
