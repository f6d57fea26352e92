"""Agents and tasks by name; what a name stands for is imported when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from robot_rl import resources
from robot_rl.errors import SpecError, UnknownName

if TYPE_CHECKING:
    from robot_rl.control.runtime import Policy
    from robot_rl.demonstrators.demonstrator import Demonstrator
    from robot_rl.sim.cameras import Sizes
    from robot_rl.sim.environment import Environment
    from robot_rl.sim.task import ArmTask
    from robot_rl.specs import Contract

AGENTS = {
    'bc': 'robot_rl.imitation.bc:BC',
    'd4pg': 'robot_rl.policies.d4pg:D4PG',
    'dmpo': 'robot_rl.policies.mpo:DMPO',
    'gail': 'robot_rl.imitation.gail:GAIL',
    'gail_dmpo': 'robot_rl.imitation.gail:GAIL_DMPO',
    'mpo': 'robot_rl.policies.mpo:MPO',
    'trail': 'robot_rl.imitation.trail:TRAIL',
}
# Those that learn from recorded episodes alone.
OFFLINE_AGENTS = {
    'bc': 'robot_rl.imitation.bc:BC',
    'crr': 'robot_rl.policies.crr:CRR',
    'd4pg': 'robot_rl.policies.d4pg:D4PG',
}
# What the `kind` of a task's YAML file stands for; the names are those of config/tasks.
TASK_KINDS = {
    'insert': 'robot_rl.sim.insert:InsertTask',
    'lift': 'robot_rl.sim.lift:LiftTask',
    'push': 'robot_rl.sim.push:PushTask',
    'reach': 'robot_rl.sim.reach:ReachTask',
    'stack': 'robot_rl.sim.stack:StackTask',
}
# Who demonstrates a task of a kind, by hand-written rules: the policy 'scripted'.
DEMONSTRATORS = {
    'insert': 'robot_rl.demonstrators.insert:InsertDemonstrator',
    'lift': 'robot_rl.demonstrators.lift:LiftDemonstrator',
    'push': 'robot_rl.demonstrators.push:PushDemonstrator',
    'reach': 'robot_rl.demonstrators.reach:ReachDemonstrator',
    'stack': 'robot_rl.demonstrators.stack:StackDemonstrator',
}
SCRIPTED = 'scripted'
# What ends the name of an arm's task that is seen by cameras, as of dm_control's manipulation.
VISION = '_vision'
# And one that pays 1 where it is done and nothing else, as of dm_control's suite.
SPARSE = '_sparse'
_TABLES = {
    'agent': AGENTS,
    'demonstrator': DEMONSTRATORS,
    'offline agent': OFFLINE_AGENTS,
    'task kind': TASK_KINDS,
}
# Names that begin so are dm_control's, and Gymnasium's.
DM_CONTROL, GYMNASIUM = ('suite/', 'manipulation/'), 'gym/'
# Their tasks have rewards only: no arm, no streams, nothing that tells success.
WITHOUT_STREAMS = (*DM_CONTROL, GYMNASIUM)


def resolve(kind: str, name: str) -> Any:
    """Return what the agent or kind of task called `name` stands for. Raises UnknownName."""
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

    arms = arm_task_names()
    return {
        'arm': arms,
        'arm from cameras': [name + VISION for name in arms],
        'arm, sparse reward': [name + SPARSE for name in arms],
        **dm_control.task_names(),
        **gymnasium.task_names(),
    }


def arm_task_names() -> list[str]:
    """Return the names of the tasks for arms: ur5e/reach is config/tasks/ur5e_reach.yaml."""
    return [name.replace('_', '/', 1) for name in resources.names('config/tasks')]


def is_arm_task(name: str) -> bool:
    """Tell whether this is the name of a task for an arm, from poses or cameras, however paid."""
    return _plain(name) in arm_task_names()


def same_task(name: str) -> list[str]:
    """Return all names of an arm's task, from poses or cameras, however paid; or only this one."""
    if not is_arm_task(name):
        return [name]
    return [_plain(name) + paid + sees for paid in ('', SPARSE) for sees in ('', VISION)]


def make_task(name: str, changes: Sequence[str] = ()) -> ArmTask:
    """Return an arm task: what the twin, the recorder's reader and the simulation share.

    `name` may also be the path of a task's YAML file; ur5e/lift_vision is ur5e/lift as cameras
    show it, ur5e/lift_sparse pays 1 where it is done and nothing else, and ur5e/lift_sparse_vision
    is both. `changes` to what the file says are 'randomisation.gain=[0.5, 1]' and the like. Raises
    UnknownName, and SpecError for a task of dm_control or Gymnasium.
    """
    is_path = name.endswith(('.yaml', '.yml'))
    if name.startswith(WITHOUT_STREAMS) and not is_path:
        raise SpecError(
            f'task {name!r} has no arm and no streams; those of an arm are: '
            f'{", ".join(arm_task_names())}'
        )
    if not is_path and not is_arm_task(name):
        raise UnknownName('task', name, _known(), 'robot-rl tasks')
    from robot_rl.sim.task import task_file
    from robot_rl.specs.base import load_yaml

    plain = name if is_path else _plain(name)
    path = task_file(plain)
    data = load_yaml(path)
    kind = data.get('kind', 'reach') if isinstance(data, dict) else 'reach'
    task = resolve('task kind', str(kind)).load(path, changes)
    if plain == name:
        return task
    config = task.config
    sees = 'pictures' if name.endswith(VISION) else config.sees
    paid = 'sparse' if name.removesuffix(VISION).endswith(SPARSE) else config.reward.kind
    return task.seeing(sees, name=name, reward=config.reward.replace(kind=paid))


def make_demonstrator(task: str, noise: float = 0.0, seed: int = 0) -> Demonstrator:
    """Return the policy 'scripted' of an arm task; see demonstrators.demonstrator for `noise`.

    Raises what make_task does.
    """
    made = make_task(task)
    return resolve('demonstrator', made.config.kind)(made, noise, seed)


def make_policy(
    name: str, task: str, contract: Contract, seed: int = 0, noise: float = 0.0
) -> Policy:
    """Return the policy 'scripted' of an arm task, or what control.runtime.load_policy finds."""
    if name == SCRIPTED:
        return make_demonstrator(task, noise, seed)
    from robot_rl.control.runtime import load_policy

    return load_policy(name, contract, seed)


def view_for(policy: str, task: str) -> dict[str, Any]:
    """Return the options of make_environment by which `task` shows what a policy wants to see.

    `policy` is as make_policy takes it. A demonstrator sees poses, whatever else is shown; one
    without a file wants nothing.
    """
    from robot_rl.control.runtime import BUILT_IN, load_policy
    from robot_rl.sim.cameras import view_of

    if policy == SCRIPTED:
        shown = make_task(task).contract()
        return view_of(task, shown.also_seeing(make_demonstrator(task).contract))
    return {} if policy in BUILT_IN else view_of(task, load_policy(policy).contract)


def make_environment(
    task: str,
    num_envs: int = 1,
    seed: int = 0,
    workers: int = 0,
    changes: Sequence[str] = (),
    **options: Any,
) -> Environment:
    """Return `num_envs` environments of a task, the first episodes' seeds drawn from `seed`.

    Tasks without streams, and those whose pictures are drawn, are stepped in this process or in
    as many as `workers` says; an arm that is not seen in threads of this one, whatever it says.
    `changes` are those of make_task, for the task of an arm. `options` are `cameras`
    {name: (height, width)} and `history` {field: steps}, see sim.cameras; of an arm those of
    sim.arm.ArmEnvironment, too.

    Raises UnknownName, SpecError for a Gymnasium environment that no contract fits, and
    RobotRLError where a package is needed and missing.
    """
    if changes and task.startswith(WITHOUT_STREAMS):
        raise SpecError(
            f'{changes[0]}: {task} has no file that says such things, only an arm task'
        )
    if workers and task.startswith(WITHOUT_STREAMS):
        from robot_rl.sim.workers import WorkerEnvironment

        return WorkerEnvironment(task, num_envs, seed, workers, **options)
    if task.startswith(DM_CONTROL):
        from robot_rl.sim.dm_control import DmControlEnvironment

        return DmControlEnvironment(task, num_envs, seed, **options)
    if task.startswith(GYMNASIUM):
        from robot_rl.sim.gymnasium import GymnasiumEnvironment

        return GymnasiumEnvironment(task, num_envs, seed, **options)
    return _arm_environment(task, num_envs, seed, workers, changes, **options)


def _arm_environment(
    name: str,
    num_envs: int,
    seed: int,
    workers: int,
    changes: Sequence[str],
    cameras: Sizes | None = None,
    history: Mapping[str, int] | None = None,
    contract: Contract | None = None,
    **options: Any,
) -> Environment:
    from robot_rl.sim.arm import ArmEnvironment
    from robot_rl.sim.cameras import with_view

    task = make_task(name, changes)
    if contract is None:
        task = task.with_cameras(cameras) if cameras else task
        contract = with_view(task.contract(), {}, history or {})
    if workers and contract.pictures:
        from robot_rl.sim.workers import WorkerEnvironment

        own = {'contract': contract, 'changes': changes, 'threads': 1} | options
        return WorkerEnvironment(name, num_envs, seed, workers, **own)
    return ArmEnvironment(task, num_envs, seed, contract=contract, **options)


def _plain(name: str) -> str:
    """Return the name of an arm's task whose file also says what `name` stands for."""
    return name.removesuffix(VISION).removesuffix(SPARSE)


def _known() -> list[str]:
    named = [name for names in task_names().values() for name in names]
    return named + [name + SPARSE + VISION for name in arm_task_names()]
