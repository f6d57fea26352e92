"""Record demonstrations: a person leads the arm, or its twin, through the guard."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pydantic

from robot_rl import registry
from robot_rl.cli import common, up
from robot_rl.cli.episode_care import Flag
from robot_rl.errors import RobotRLError
from robot_rl.specs import RobotSpec

EXAMPLE = 'robot-rl record --robot ur5e --task ur5e/lift --teleop keyboard --episodes 10'


class Options(common.Options):
    """What is recorded, with which device; see docs/record_demonstrations.md."""

    task: str = pydantic.Field('ur5e/reach', description='task in config/tasks, or a YAML file')
    robot: str = pydantic.Field(
        '', description="robot in config/robots or a YAML file; empty: the task's"
    )
    teleop: Literal['keyboard', 'joy', 'twist', 'leader', 'page', 'none'] = pydantic.Field(
        'keyboard', description='what the arm is led with; none: a device of your own'
    )
    mapping: str = pydantic.Field(
        '', description='of joy: gamepad, spacemouse or a YAML file; empty: gamepad'
    )
    episodes: pydantic.NonNegativeInt = pydantic.Field(
        0, description='how many to record; 0: until Ctrl-C'
    )
    store: Path = pydantic.Field(
        default_factory=common.store_folder,
        description='the folder of the episodes; $ROBOT_RL_STORE, or ./episodes',
    )
    real: Flag = pydantic.Field(
        False, description='the arm, whose driver runs already, not the twin'
    )
    operator: str = pydantic.Field('', description='the person who leads, for the record')
    first_seed: int | None = pydantic.Field(
        None, description='seed of the first episode; where the twin begins comes from it'
    )
    cameras: Flag = pydantic.Field(False, description="draw the twin's cameras, or hear the arm's")
    namespace: str = pydantic.Field('', description='namespace of the nodes and of the driver')
    params_file: str = pydantic.Field(
        '', description='YAML file of node parameters; empty: config/nodes/record.yaml'
    )
    log_dir: Path | None = pydantic.Field(
        None, description="folder of the nodes' logs; without it a new one in the temporary folder"
    )


def main(argv: list[str]) -> int:
    """Run the graph record until its episodes are there; return the exit code."""
    options = common.parse(Options, argv, 'record', __doc__, EXAMPLE)
    terminal = os.ttyname(sys.stdin.fileno()) if sys.stdin.isatty() else ''
    if options.teleop == 'keyboard' and not terminal:
        raise RobotRLError(
            'record: the keyboard is read from a terminal, and standard input is none; start it in '
            'one, or choose another --teleop'
        )
    screen = bool(terminal) and sys.stdout.isatty() and options.teleop != 'none'
    said = Said(quiet=screen)
    with _restored(terminal):
        arguments = _arguments(options, terminal, screen)
        code = up.run('record', arguments, options.log_dir, said.hear)
    told = said.about(options.store)
    common.emit(told, options.as_json, _summary(told))
    return code


class Said:
    """What the nodes say: of each ended episode, for the summary; else shown, unless `quiet`."""

    def __init__(self, quiet: bool):
        self._quiet, self._episodes = quiet, []

    def hear(self, node: str, line: str) -> None:
        """Take a line of a node."""
        if node == 'session' and line.startswith('{'):
            self._episodes.append(json.loads(line))
        if not self._quiet:
            up.show(node, line)

    def about(self, store: Path) -> dict[str, Any]:
        """Return how many episodes ended how, and where those lie that count."""
        results = collections.Counter(episode['result'] for episode in self._episodes)
        kept = [
            episode['path']
            for episode in self._episodes
            if episode['result'] != 'discarded' and 'path' in episode
        ]
        return {'store': str(store), 'results': dict(results), 'episodes': kept}


def _arguments(options: Options, terminal: str, screen: bool) -> dict[str, str]:
    """Return the arguments of the graph record."""
    given = {
        'sim': str(not options.real).lower(),
        'robot': _robot(options),
        'task': options.task,
        'teleop': options.teleop,
        'mapping': options.mapping,
        'terminal': terminal,
        'screen': str(screen).lower(),
        'episodes': str(options.episodes),
        'first_seed': '' if options.first_seed is None else str(options.first_seed),
        'operator': options.operator,
        'storage': str(options.store),
        'cameras': str(options.cameras).lower(),
        'namespace': options.namespace,
        'params_file': options.params_file,
    }
    return {name: value for name, value in given.items() if value}


def _robot(options: Options) -> str:
    """Return the robot that is led: the task's, where the given one is that without its gripper.

    Raises RobotRLError where the twin of the task is another arm.
    """
    own = registry.make_task(options.task).robot.name
    if not options.robot or own.startswith(f'{options.robot}_'):
        return own
    given = RobotSpec.load(options.robot).name
    if not options.real and given != own:
        raise RobotRLError(
            f'record: {options.task} is simulated with {own}, not with {given}; leave --robot out'
        )
    return options.robot


@contextlib.contextmanager
def _restored(terminal: str) -> Iterator[None]:
    """Give the terminal back as it was, also where the node that reads its keys was killed."""
    if not terminal:
        yield
        return
    former = termios.tcgetattr(sys.stdin)
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, former)


def _summary(told: dict[str, Any]) -> str:
    results = ', '.join(f'{count} {result}' for result, count in told['results'].items())
    return (
        f'{len(told["episodes"])} episodes recorded in {told["store"]} ({results or "none ended"})'
    )
