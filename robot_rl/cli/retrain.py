"""Learn a policy from recorded episodes; rewards are computed anew from what was recorded."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import pydantic
import tyro

from robot_rl import resources
from robot_rl.cli import common
from robot_rl.errors import RobotRLError

EXAMPLE = (
    'robot-rl retrain --store runs/demo/episodes --task ur5e/reach --agent crr '
    '--query "source=policy tag=half-trained" --out runs/retrained --set learner.beta=0.1'
)


class Options(common.StoreOptions):
    """What to learn from, how, and where to put it."""

    task: str = pydantic.Field(description='whose rewards and contract: see robot-rl tasks')
    query: str = pydantic.Field('', description='which episodes, as robot-rl episodes ls takes it')
    agent: str | None = pydantic.Field(
        None,
        description='crr, d4pg, bc or bc_by_hand (files of config/offline), or the path of one; '
        'crr where none is given, bc with --dagger',
    )
    dagger: Annotated[bool, tyro.conf.FlagCreatePairsOff] = pydantic.Field(
        False,
        description="from demonstrations and a person's interventions alone, not from what the "
        'policy did (HG-DAgger); as --set steps=human',
    )
    updates: int | None = pydantic.Field(None, description='gradient steps')
    seed: int = pydantic.Field(0, description='of networks and sampling')
    out: Path = pydantic.Field(Path('runs/retrained'), description='folder of the result')
    set: tuple[str, ...] = pydantic.Field(
        (), description='changes to the config, as updates=500 or learner.<key>=<value>'
    )


def main(argv: list[str]) -> int:
    """Write config, metrics and policy.onnx into the result's folder."""
    options = common.parse(Options, argv, 'retrain', __doc__, EXAMPLE)
    common.require_folder('--out', options.out)
    # Here, and not above: torch takes seconds, and --help should not.
    import torch

    from robot_rl.imitation.dagger import told
    from robot_rl.imitation.retrain import POLICY, RetrainConfig, retrain
    from robot_rl.training.logs import ProgressBar

    torch.set_num_threads(1)
    given = {'task': options.task, 'query': options.query, 'seed': options.seed}
    if options.dagger:
        given['steps'] = 'human'
    if options.updates is not None:
        given['updates'] = options.updates
    if (options.out / POLICY).exists():
        raise RobotRLError(f'--out: {options.out} holds a {POLICY} already; name another folder')
    agent = options.agent or ('bc' if options.dagger else 'crr')
    path = resources.find('config/offline', agent, kind='agent')
    config = RetrainConfig.from_yaml_with(path, given, options.set)
    store = options.open()
    with ProgressBar(f'retrain {config.agent}', config.updates) as bar:
        card = retrain(config, store, options.out, bar.show, _left_out)
    data = {'policy': str(options.out / POLICY), 'id': card.id, 'training': card.training}
    text = f'learned from {card.training["episodes"]} episodes; the policy is {data["policy"]}'
    if config.steps == 'human':
        text = f'{told(card.training)}\n{text}'
    common.emit(data, options.as_json, text)
    return 0


def _left_out(reason: str) -> None:
    print(f'robot-rl: left out: {reason}', file=sys.stderr)
