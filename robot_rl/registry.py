"""Agents and tasks by name; what a name stands for is imported when it is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from robot_rl.errors import SpecError, UnknownName

if TYPE_CHECKING:
    from robot_rl.sim.environment import Environment
    from robot_rl.sim.reach import ReachTask

AGENTS = {
    'd4pg': 'robot_rl.policies.d4pg:D4PG',
    'dmpo': 'robot_rl.policies.mpo:DMPO',
    'mpo': 'robot_rl.policies.mpo:MPO',
}
# Those that learn from recorded episodes alone.
OFFLINE_AGENTS = {
    'bc': 'robot_rl.imitation.bc:BC',
    'crr': 'robot_rl.policies.crr:CRR',
    'd4pg': 'robot_rl.policies.d4pg:D4PG',
}
TASKS = {'ur5e/reach': 'robot_rl.sim.reach:ReachTask'}
_TABLES = {'agent': AGENTS, 'offline agent': OFFLINE_AGENTS, 'task': TASKS}
# Names that begin so are dm_control's, and Gymnasium's.
DM_CONTROL, GYMNASIUM = ('suite/', 'manipulation/'), 'gym/'
# Their tasks have rewards only: no arm, no streams, nothing that tells success.
WITHOUT_STREAMS = (*DM_CONTROL, GYMNASIUM)


def resolve(kind: str, name: str) -> Any:
    """Return what the agent or task called `name` stands for. Raises UnknownName."""
    table = _TABLES[kind]
    if name not in table:
        raise UnknownName(kind, name, table)
    module, attribute = table[name].split(':')
    return getattr(importlib.import_module(module), attribute)


def task_names() -> dict[str, list[str]]:
    """Return the names of all tasks by family: 'arm' and, where installed, those of packages.

    Of Gymnasium's they are the best known; make_environment takes any that gymnasium.make does.
    """
    from robot_rl.sim import dm_control, gymnasium

    return {'arm': sorted(TASKS), **dm_control.task_names(), **gymnasium.task_names()}


def make_task(name: str) -> ReachTask:
    """Return an arm task: what the twin, the recorder's reader and the simulation share.

    `name` may also be the path of a task's YAML file. Raises UnknownName, and SpecError for a
    task of dm_control or Gymnasium.
    """
    if name.endswith(('.yaml', '.yml')):
        return resolve('task', 'ur5e/reach').load(name)
    if name.startswith(WITHOUT_STREAMS):
        raise SpecError(
            f'task {name!r} has no arm and no streams; those of an arm are: {", ".join(TASKS)}'
        )
    if name not in TASKS:
        raise UnknownName('task', name, _known(), 'robot-rl tasks')
    return resolve('task', name).load(name)


def make_environment(
    task: str, num_envs: int = 1, seed: int = 0, workers: int = 0, **options: Any
) -> Environment:
    """Return `num_envs` environments of a task, the first episodes' seeds drawn from `seed`.

    Tasks without streams are stepped in this process, or in as many others as `workers` says;
    those of an arm in threads of this one, whatever it says. `options` are those of the family:
    `cameras` {name: (height, width)} and `history` {field: steps} of sim.serial, and what
    sim.arm.ArmEnvironment takes.

    Raises UnknownName, SpecError for a Gymnasium environment that no contract fits, and
    RobotRLError where a package is needed and missing.
    """
    if workers and task.startswith(WITHOUT_STREAMS):
        from robot_rl.sim.workers import WorkerEnvironment

        return WorkerEnvironment(task, num_envs, seed, workers, **options)
    if task.startswith(DM_CONTROL):
        from robot_rl.sim.dm_control import DmControlEnvironment

        return DmControlEnvironment(task, num_envs, seed, **options)
    if task.startswith(GYMNASIUM):
        from robot_rl.sim.gymnasium import GymnasiumEnvironment

        return GymnasiumEnvironment(task, num_envs, seed, **options)
    from robot_rl.sim.arm import ArmEnvironment

    return ArmEnvironment(make_task(task), num_envs, seed, **options)


def _known() -> list[str]:
    return [name for names in task_names().values() for name in names]
