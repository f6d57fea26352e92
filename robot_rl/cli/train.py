"""Train a policy in simulation; continues where an earlier run in the same folder stopped."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pydantic

from robot_rl.cli import common
from robot_rl.cli.common import store_folder
from robot_rl.errors import RobotRLError

if TYPE_CHECKING:
    from robot_rl.training.config import RunConfig

EXAMPLE = (
    'robot-rl train --task suite/cartpole-swingup --agent d4pg --steps 100000 --seed 0 '
    '--out runs/swingup --set learner.sigma=0.3 training.num_envs=4'
)


class Options(common.Options):
    """What to train, how long, and where to put it."""

    task: str | None = pydantic.Field(None, description='what to learn: see robot-rl tasks')
    agent: str = pydantic.Field(
        'd4pg', description='a file of config/agents by name, or the path of one'
    )
    steps: int | None = pydantic.Field(
        None, description='environment steps in all; of agent bc updates'
    )
    demos: str | None = pydantic.Field(
        None, description='which episodes are demonstrations, as robot-rl episodes ls takes it'
    )
    store: Path | None = pydantic.Field(
        None, description='the folder that holds them; $ROBOT_RL_STORE, or ./episodes'
    )
    init: Path | None = pydantic.Field(
        None, description="the folder of a run whose policy this one begins with: bc's, say"
    )
    seed: int | None = pydantic.Field(
        None, description='of networks, exploration, sampling and episodes'
    )
    out: Path | None = pydantic.Field(
        None, description='folder of the run; runs/<task>-<agent>-seed<seed> without it'
    )
    set: tuple[str, ...] = pydantic.Field(
        (),
        description='changes to the config, as learner.<key>=<value>, training.<key>=<value> or '
        "randomisation.<key>=<value>; the run's config.yaml lists all keys",
    )
    resume: bool = pydantic.Field(
        False, description="go on with the config in the run's folder; --steps may be raised"
    )


def main(argv: list[str]) -> int:
    """Train, and leave config, metrics, checkpoint and policy in the run's folder."""
    options = common.parse(Options, argv, 'train', __doc__, EXAMPLE)
    # Here, and not above: torch takes seconds, and --help should not.
    from robot_rl.training.loop import POLICY, Trainer

    if options.out is not None:
        common.require_folder('--out', options.out)
    config = _config(options)
    name = f'{config.task.replace("/", "-")}-{config.agent}-seed{config.seed}'
    out = options.out or Path('runs') / name
    trainer = Trainer(config, out, _left_out)
    complete = trainer.complete
    finished, state = trainer.run(), trainer.state
    steps = state.steps
    data = {'out': str(out), 'finished': finished, state.counted: steps}
    data['policy'] = str(out / POLICY)
    text = f'{steps} steps done; the policy is {out / POLICY}'
    if complete:
        text = f'{out} has {steps} steps already; nothing to do'
    elif not finished:
        text = f'stopped and saved at {steps} steps; robot-rl train --resume --out {out} goes on'
    common.emit(data, options.as_json, text)
    return 0 if finished else 130


def _config(options: Options) -> RunConfig:
    """Build the run's config from the flags, or take the one in its folder."""
    from robot_rl.training.config import RunConfig, load_run_config
    from robot_rl.training.loop import CONFIG

    if options.resume:
        if options.out is None:
            raise RobotRLError('train: --resume needs --out, the folder of the run to go on with')
        config = RunConfig.from_yaml(options.out / CONFIG)
        return config if options.steps is None else config.replace(steps=options.steps)
    if options.task is None:
        raise RobotRLError('train: --task is missing; robot-rl tasks lists what there is')
    demos = {}
    if options.demos is not None:
        demos = {'query': options.demos, 'store': str(options.store or store_folder())}
    elif options.store is not None:
        raise RobotRLError('train: --store holds demonstrations; --demos QUERY says which')
    return load_run_config(
        options.agent,
        options.task,
        options.set,
        demos,
        steps=options.steps,
        seed=options.seed,
        init=None if options.init is None else str(options.init),
    )


def _left_out(reason: str) -> None:
    print(f'robot-rl: left out: {reason}', file=sys.stderr)
