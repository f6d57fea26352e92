"""Record episodes of a policy in simulation: demonstrations for tasks without an arm or ROS."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pydantic

from robot_rl.cli import common

EXAMPLE = (
    'robot-rl record --task suite/cartpole-swingup --policy runs/swingup/policy.onnx '
    '--episodes 25 --store runs/expert --tag expert'
)


class Options(common.Options):
    """Which policy, in which task, how often, and where to."""

    task: str = pydantic.Field(description='see robot-rl tasks')
    policy: str = pydantic.Field(
        description="an .onnx file, a name in pretrained/, 'random' or 'constant'"
    )
    episodes: pydantic.PositiveInt = pydantic.Field(10, description='how many')
    seed: pydantic.NonNegativeInt = pydantic.Field(
        0, description="of the episodes' initial conditions, and of the policy 'random'"
    )
    store: Path = pydantic.Field(
        default_factory=common.store_folder,
        description='the folder of the episodes, made where it is missing; $ROBOT_RL_STORE, or '
        './episodes',
    )
    tag: tuple[str, ...] = pydantic.Field((), description='words to find them by')


def main(argv: list[str]) -> int:
    """Record, and print the episodes' ids."""
    options = common.parse(Options, argv, 'record', __doc__, EXAMPLE)
    import numpy as np

    from robot_rl import __version__, registry
    from robot_rl.control.runtime import BUILT_IN, load_policy, policy_file
    from robot_rl.imitation.simulated import record_episodes
    from robot_rl.resources import git_revision
    from robot_rl.sim.environment import HELD_OUT
    from robot_rl.storage.store import Store
    from robot_rl.training.evaluation import task_of

    environment = registry.make_environment(options.task)
    try:
        policy = load_policy(options.policy, environment.contract, options.seed)
        built_in, task = options.policy in BUILT_IN, task_of(options.task)
        file = b'' if built_in else policy_file(options.policy).read_bytes()
        seeds = np.random.default_rng(options.seed).integers(HELD_OUT, size=options.episodes)
        headers = record_episodes(
            Store(options.store),
            environment,
            policy,
            seeds.tolist(),
            {
                'task': options.task,
                'robot': task.robot.name if task else '',
                'policy': options.policy if built_in else policy.card.id,
                'policy_sha256': hashlib.sha256(file).hexdigest() if file else '',
                'tags': options.tag,
                'code_version': __version__,
                'git_revision': git_revision(),
            },
            judge=task and task.success,
        )
    finally:
        environment.close()
    ids = [header.id for header in headers]
    data = {'store': str(options.store), 'episodes': ids}
    common.emit(data, options.as_json, f'{len(ids)} episodes in {options.store}')
    return 0
