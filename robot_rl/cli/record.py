"""Record demonstrations: a person commands the twin or an arm, and says how episodes end."""

from __future__ import annotations

import collections
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import tyro

from robot_rl.cli import common, up
from robot_rl.nodes.graphs import TELEOP
from robot_rl.storage.store import Store

EXAMPLE = 'robot-rl record --task ur5e/lift --teleop keyboard --episodes 10'


class Options(common.Options):
    """Who shows what on which arm, with what, and where it goes."""

    task: str = pydantic.Field(description='see robot-rl tasks')
    robot: str = pydantic.Field(
        '', description="robot in config/robots or a YAML file; empty: the task's"
    )
    teleop: Literal[TELEOP] = pydantic.Field(
        'keyboard',
        description="the device; 'none': a node of your own publishes on teleop/command",
    )
    episodes: pydantic.NonNegativeInt = pydantic.Field(
        10, description='how many, discarded ones not counted; 0: until Ctrl-C'
    )
    real: Annotated[bool, tyro.conf.FlagCreatePairsOff] = pydantic.Field(
        False, description='an arm, whose driver runs already, in the place of its twin'
    )
    cameras: Annotated[bool, tyro.conf.FlagCreatePairsOff] = pydantic.Field(
        False, description="with pictures, also where the task sees none; the twin's are drawn"
    )
    store: Path = pydantic.Field(
        default_factory=common.store_folder,
        description='the folder of the episodes, made where it is missing; $ROBOT_RL_STORE, or '
        './episodes',
    )
    tag: tuple[str, ...] = pydantic.Field((), description='words to find them by')
    operator: str = pydantic.Field('', description='you, for the record')
    arguments: Annotated[tuple[str, ...], tyro.conf.Positional] = pydantic.Field(
        (),
        description='further arguments name:=value of record.launch.py; robot-rl up record '
        '--show-args lists them',
    )
    log_dir: Path | None = pydantic.Field(
        None, description="folder of the nodes' logs; without it a new one in the temporary folder"
    )


def main(argv: list[str]) -> int:
    """Record until the last episode or Ctrl-C; print what was recorded."""
    options = common.parse(Options, argv, 'record', __doc__, EXAMPLE)
    arguments = _arguments(options)
    store = Store(arguments['storage']).root  # what cannot be one shows before anything is started
    said = up.said('record', arguments, sys.stderr)
    told: list[dict[str, Any]] = []

    def show(node: str, line: str) -> None:
        if episode := up.ended(node, line):
            told.append(episode)
        said(node, line)

    code = up.run('record', arguments, options.log_dir, show)
    # Those that were recorded again have been set aside.
    episodes = [episode for episode in told if (store / episode['episode']).is_dir()]
    results = collections.Counter(episode['result'] for episode in episodes)
    counted = ', '.join(f'{number} {result}' for result, number in results.items())
    data = {'store': str(store), 'episodes': [episode['episode'] for episode in episodes]}
    text = f'{len(episodes)} episodes in {store}' + (f': {counted}' if counted else '')
    if episodes or not code or options.as_json:  # else why not is the last line
        common.emit(data | {'results': results}, options.as_json, text)
    return code


def _arguments(options: Options) -> dict[str, str]:
    """Return the arguments of the graph."""
    from robot_rl import registry

    task = registry.make_task(options.task)
    robot = options.robot or task.config.robot
    common.require_robot_of(task, robot)
    return {
        'robot': robot,
        'task': options.task,
        'teleop': options.teleop,
        'episodes': str(options.episodes),
        'sim': 'false' if options.real else 'true',
        'storage': str(options.store),
        'cameras': 'true' if options.cameras or task.cameras else 'false',
        'tags': ','.join(options.tag),
        'operator': options.operator,
    } | up.pairs(options.arguments, 'record')
