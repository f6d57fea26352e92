"""Fill the store with episodes from simulation: of a demonstrator, at random, or of a policy."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pydantic

from robot_rl.cli import common
from robot_rl.errors import RobotRLError

if TYPE_CHECKING:
    from robot_rl.sim.task import ArmTask

EXAMPLE = 'robot-rl collect --task ur5e/lift --policy scripted --episodes 50 --tag lifting'
# So many arms are stepped together.
_AT_ONCE = 16


class Options(common.TaskOptions):
    """Whose episodes, in which task, how many, and where to."""

    task: str = pydantic.Field(description='see robot-rl tasks')
    policy: str = pydantic.Field(
        description="'scripted' (the task's demonstrator), 'random', 'constant', an .onnx file, a "
        'promoted name or one in pretrained/'
    )
    episodes: pydantic.PositiveInt = pydantic.Field(10, description='how many')
    seed: common.Seed = pydantic.Field(
        0, description="of the episodes' initial conditions, of noise and of the policy 'random'"
    )
    noise: pydantic.NonNegativeFloat = pydantic.Field(
        0.0,
        description="makes 'scripted' worse: disturbances of its actions, as a share of bounds",
    )
    through: Literal['process', 'ros'] = pydantic.Field(
        'process',
        description="'process': as fast as it goes; 'ros': in real time, by the nodes beside an "
        'arm, on its twin',
    )
    store: Path = pydantic.Field(
        default_factory=common.store_folder,
        description='the folder of the episodes, made where it is missing; $ROBOT_RL_STORE, or '
        './episodes',
    )
    show: tuple[str, ...] = pydantic.Field(
        (),
        description='what a task without an arm shows besides, as train --set takes it: '
        "'cameras={overview: [32, 32]}', 'history={overview: 3}', 'constants={cue: 1}', "
        "'marker=[255, 0, 0]'",
    )
    tag: tuple[str, ...] = pydantic.Field((), description='words to find them by')


def main(argv: list[str]) -> int:
    """Collect, and print the episodes' ids and how many of them succeeded."""
    options = common.parse(Options, argv, 'collect', __doc__, EXAMPLE)
    from robot_rl.registry import SCRIPTED, WITHOUT_STREAMS

    if options.noise and options.policy != SCRIPTED:
        raise RobotRLError(f'--noise is of the policy {SCRIPTED!r}, not of {options.policy!r}')
    if options.show and not options.task.startswith(WITHOUT_STREAMS):
        raise RobotRLError(
            '--show is for a task without an arm; an arm task says itself what is seen: its name '
            'with _vision, or --task FILE.yaml'
        )
    if options.set and options.through == 'ros':
        raise RobotRLError(
            "--set is for --through process: the twin's nodes read a file: --task FILE.yaml"
        )
    through = {'process': _in_process, 'ros': _through_ros}
    headers = through[options.through](options)
    ids = [header.id for header in headers]
    data: dict[str, Any] = {'store': str(options.store), 'episodes': ids}
    text = f'{len(ids)} episodes in {options.store}'
    judged = [header.success for header in headers if header.success is not None]
    if judged:
        data['success_rate'] = sum(judged) / len(judged)
        text += f'; success {data["success_rate"]:.0%}'
    common.emit(data, options.as_json, text)
    return 0


def _in_process(options: Options) -> list[Any]:
    """Collect in this process; return the episodes' headers."""
    import numpy as np

    from robot_rl import registry
    from robot_rl.imitation.collect import collect_episodes
    from robot_rl.imitation.simulated import record_episodes
    from robot_rl.sim.environment import HELD_OUT
    from robot_rl.storage.store import Store

    has_streams = not options.task.startswith(registry.WITHOUT_STREAMS)
    lanes = min(options.episodes, _AT_ONCE) if has_streams else 1
    view = registry.view_for(options.policy, options.task) | _shown(options)
    view.setdefault('changes', options.set)
    environment = registry.make_environment(options.task, num_envs=lanes, **view)
    try:
        policy, about = _policy(options, environment.contract)
        seeds = np.random.default_rng(options.seed).integers(HELD_OUT, size=options.episodes)
        if has_streams:
            if options.policy == registry.SCRIPTED:  # which sees more than is learned from
                about['contract'] = environment.task.contract()
            return collect_episodes(
                Store(options.store), environment, policy, seeds.tolist(), about
            )
        about |= {'task': options.task}
        return record_episodes(Store(options.store), environment, policy, seeds.tolist(), about)
    finally:
        environment.close()


def _shown(options: Options) -> dict[str, Any]:
    """Return what is to be shown besides, as options of an environment."""
    if not options.show:
        return {}
    from robot_rl.training.config import load_run_config

    return load_run_config('bc', options.task, options.show).view()


def _through_ros(options: Options) -> list[Any]:
    """Collect by the nodes beside an arm, on its twin; return the episodes' headers, judged.

    A demonstrator is in the place of a person: it commands the guard as teleop does.
    """
    from robot_rl import registry
    from robot_rl.cli import up
    from robot_rl.imitation.data import judge
    from robot_rl.storage.store import Store

    task, ids = registry.make_task(options.task), []

    def show(node: str, line: str) -> None:
        if (told := up.ended(node, line)) and told['result'] != 'discarded':
            ids.append(told['episode'])
        print(f'[{node}] {line}', file=sys.stderr, flush=True)

    code = up.run('deploy', _arguments(options, task), None, show)
    if code or not ids:
        raise RobotRLError(f'collect: the nodes ended with code {code}; see their logs')
    episodes = judge(Store(options.store), task, f'id={",".join(ids)}', _tell)
    return [episode.header for episode in episodes]


def _tell(reason: str) -> None:
    print(f'robot-rl: not judged: {reason}', file=sys.stderr)


def _arguments(options: Options, task: ArmTask) -> dict[str, str]:
    """Return the arguments of the graph that runs the episodes."""
    return {
        'robot': task.config.robot,
        'cameras': 'true' if task.cameras else 'false',
        'task': options.task,
        'policy': options.policy,
        'noise': str(options.noise),
        'seed': str(options.seed),
        'episodes': str(options.episodes),
        'first_seed': str(options.seed),
        'manual': 'false',
        'tags': ','.join(_tags(options)),
        'storage': str(options.store),
    }


def _tags(options: Options) -> tuple[str, ...]:
    """Return the tags of the episodes: worse demonstrations say so."""
    return (*options.tag, *([f'noise-{options.noise:g}'] if options.noise else []))


def _policy(options: Options, contract: Any) -> tuple[Any, dict[str, Any]]:
    """Return the policy, and what headers say of it and of this program."""
    from robot_rl import __version__, registry
    from robot_rl.control.runtime import policy_file
    from robot_rl.control.shelf import RESERVED
    from robot_rl.resources import git_revision

    about = {
        'policy': options.policy,
        'tags': _tags(options),
        'code_version': __version__,
        'git_revision': git_revision(),
    }
    policy = registry.make_policy(
        options.policy, options.task, contract, options.seed, options.noise
    )
    if options.policy not in RESERVED:
        digest = hashlib.sha256(policy_file(options.policy).read_bytes()).hexdigest()
        about |= {'policy': policy.card.id, 'policy_sha256': digest}
    return policy, about
