"""What the commands share: options from flags and YAML, and output for people or machines."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import json
import os
import re
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import pydantic
import tyro

from robot_rl.errors import RobotRLError, SpecError, UnknownName, did_you_mean
from robot_rl.specs.base import Spec, load_yaml

if TYPE_CHECKING:
    from robot_rl.robots.kinematics import KinematicChain
    from robot_rl.sim.task import ArmTask
    from robot_rl.specs import RobotSpec
    from robot_rl.storage.store import Store


class Options(Spec):
    """Options that every command has."""

    as_json: Annotated[
        bool,
        tyro.conf.arg(name='json', help='print one JSON object'),
        tyro.conf.FlagCreatePairsOff,
    ] = False


def store_folder() -> Path:
    """Return the folder of the episodes where no flag names one."""
    return Path(os.environ.get('ROBOT_RL_STORE', 'episodes'))


# Of episodes and of what is drawn; the held-out seeds begin above.
Seed = Annotated[int, pydantic.Field(ge=0, lt=2**31)]


class TaskOptions(Options):
    """Options of the commands that simulate a task."""

    set: tuple[str, ...] = pydantic.Field(
        (),
        description="changes to an arm task's file, as duration_s=8 and randomisation.<key>="
        '<value>; docs/randomise_the_simulation.md lists the keys',
    )


class StoreOptions(Options):
    """Options of the commands that read recorded episodes."""

    store: Path = pydantic.Field(
        default_factory=store_folder,
        description='the folder that holds the episodes; $ROBOT_RL_STORE, or ./episodes',
    )

    def open(self) -> Store:
        """Open the store; a folder that is not there is an error, not a new store."""
        from robot_rl.storage.store import Store

        return Store(self.store, create=False)


OptionsT = TypeVar('OptionsT', bound=Spec)


def parse(
    options: type[OptionsT], argv: list[str], command: str, summary: str, example: str
) -> OptionsT:
    """Read a command's options from flags, over those of `--config FILE.yaml`.

    Raises RobotRLError with one line for a flag or a value that does not fit.
    """
    description = f'{summary.strip()}\n\nexample: {example}'
    argv = _with_config_file(options, _gathered(options, argv, command))
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                options, args=argv, prog=f'robot-rl {command}', description=description
            )
    except SystemExit as stop:
        if not stop.code:
            raise  # --help was printed
        raise RobotRLError(f'{command}: {_one_line(errors.getvalue())}') from None


def run_action(
    argv: list[str],
    command: str,
    description: str,
    example: str,
    actions: Mapping[str, tuple[Callable[[Any], int | None], type[Spec], str]],
    arrange: Callable[[list[str]], list[str]] = list,
) -> int:
    """Run `robot-rl <command> <action>`: actions {name: (function, its options, an example)}.

    `arrange` puts the words behind the action in the order in which they are to be read. An
    action returns its exit code, or None for 0.
    """
    if not argv or argv[0] in ('-h', '--help'):
        print(f'usage: robot-rl {command} <action> [options]\n\n{description}\nexample: {example}')
        return 0
    if argv[0] not in actions:
        raise UnknownName(f'action of {command}', argv[0], actions)
    action, model, arguments = actions[argv[0]]
    whole = f'{command} {argv[0]}'
    words = arrange(argv[1:])
    options = parse(model, words, whole, model.__doc__, f'robot-rl {whole} {arguments}'.rstrip())
    return action(options) or 0


def require_robot_of(task: ArmTask, robot: str) -> None:
    """Raise SpecError where a task is of another robot than the one of this name or file."""
    from robot_rl.specs import RobotSpec

    if (name := RobotSpec.load(robot).name) != task.robot.name:
        raise SpecError(
            f'task {task.name} is of robot {task.robot.name}, not of {name}; give '
            f'--robot {task.robot.name}, or another --task'
        )


def emit(data: dict[str, Any], as_json: bool, text: str) -> None:
    """Print `data` as one JSON object for machines, or `text` for people."""
    print(json.dumps(data, allow_nan=False) if as_json else text)


def table(rows: list[dict[str, str]]) -> list[str]:
    """Return the rows as lines of aligned columns, below a line of their names."""
    if not rows:
        return []
    rows = [dict(zip(rows[0], rows[0], strict=True)), *rows]
    widths = {key: max(len(row[key]) for row in rows) for key in rows[0]}
    return ['  '.join(row[key].ljust(widths[key]) for key in row).rstrip() for row in rows]


def require_ros(command: str) -> None:
    """Raise RobotRLError, with what to do, where there is no ROS 2."""
    if importlib.util.find_spec('rclpy') is None:
        raise RobotRLError(
            f"{command} needs ROS 2: source its setup.bash, or pip install 'robot_rl[ros]'"
        )


def require_folder(flag: str, path: Path) -> None:
    """Raise RobotRLError where `path` is there and is no folder."""
    if path.exists() and not path.is_dir():
        raise RobotRLError(f'{flag}: {path} is a file; a folder is needed')


def _known_flags(model: type[pydantic.BaseModel], prefix: str = '--') -> dict[str, bool]:
    """Return whether each flag of a model, and of those nested in it, takes several words."""
    flags = {}
    for key, field in model.model_fields.items():
        named = (item.name for item in field.metadata if getattr(item, 'name', None))
        name = prefix + next(named, key).replace('_', '-')
        if isinstance(field.annotation, type) and issubclass(field.annotation, Spec):
            flags |= _known_flags(field.annotation, f'{name}.')
        else:
            flags[name] = typing.get_origin(field.annotation) is tuple
            if field.annotation is bool and tyro.conf.FlagCreatePairsOff not in field.metadata:
                flags[_negated(name)] = False
    return flags


def _gathered(options: type[Spec], argv: list[str], command: str) -> list[str]:
    """Put what `--set a --set b` gives behind one flag: of two, the last alone would count.

    Refuses a misspelt flag, before what it was meant to give is found missing, and one that takes
    one value and is given twice.
    """
    end = argv.index('--') if '--' in argv else len(argv)
    takes_several = {**_known_flags(options), '--config': False, '--help': False}
    flag = ''
    groups: dict[str, list[str]] = {flag: []}  # the words of each flag, behind those before any
    for word in argv[:end]:
        if not word.startswith('--'):
            groups[flag].append(word)
            continue
        given, equals, value = word.partition('=')
        flag = given.replace('_', '-')
        if flag not in takes_several:
            near = did_you_mean(given, takes_several)
            raise RobotRLError(f'{command}: unknown option {given}{near}')
        if flag in groups and not takes_several[flag]:
            raise RobotRLError(f'{command}: {flag} is given twice; give it once')
        groups.setdefault(flag, [flag]).extend([value] if equals else [])
    return [*itertools.chain.from_iterable(groups.values()), *argv[end:]]


def _with_config_file(options: type[Spec], argv: list[str]) -> list[str]:
    """Replace `--config FILE` by the flags that the file stands for; later flags win."""
    if '--config' not in argv:
        return argv
    at = argv.index('--config')
    if at + 1 == len(argv):
        raise RobotRLError('--config: a YAML file must follow')
    path, rest = Path(argv[at + 1]), argv[:at] + argv[at + 2 :]
    data = load_yaml(path)
    if not isinstance(data, dict):
        raise SpecError(f'{path}: expected a mapping of options, found {data!r}')
    given = {word.split('=')[0] for word in rest if word.startswith('--')}
    flags = _flags(options, data, str(path))
    return [word for name, words in flags if name not in given for word in words] + rest


def _flags(
    model: type[pydantic.BaseModel], data: dict[str, Any], origin: str, prefix: str = '--'
) -> list[tuple[str, list[str]]]:
    """Spell plain data as (flag, its words); a key that `model` lacks is refused."""
    flags: list[tuple[str, list[str]]] = []
    for key, value in data.items():
        if key not in model.model_fields:
            raise SpecError(
                f'{origin}: {prefix[2:]}{key}: unknown key{did_you_mean(key, model.model_fields)}'
            )
        name = prefix + key.replace('_', '-')
        annotation = model.model_fields[key].annotation
        if isinstance(value, dict) and isinstance(annotation, type):
            flags += _flags(annotation, value, origin, f'{name}.')
        elif isinstance(value, bool):
            flags.append((name, [name if value else _negated(name)]))
        elif isinstance(value, list):
            flags.append((name, [name, *map(str, value)]))
        elif value is not None:
            flags.append((name, [name, str(value)]))
    return flags


def _negated(flag: str) -> str:
    head, dot, last = flag[2:].rpartition('.')
    return f'--{head}{dot}no-{last}'


def _one_line(message: str) -> str:
    """Reduce tyro's message to its sentence: title, frame, hints and help texts go."""
    lines = [re.sub(r'[│╭╮╰╯─]+|-{3,}', ' ', line).strip() for line in message.splitlines()]
    if any(line.startswith('Missing from') for line in lines):
        # Each missing option has a line of its own, with its help text below; what has no flag is
        # known by its help only.
        needed = ' (required)'
        missing = [line.split()[0] for line in lines if line.startswith('--')] or [
            line.removesuffix(needed) for line in lines if line.endswith(needed)
        ]
        return f'{", ".join(missing) or "an argument"} is missing; see --help'
    skip = ('For full help', 'For further', 'information visit', 'https:', 'robot-rl ')
    text = ' '.join(line for line in lines[1:] if line and not line.startswith(skip))
    text = ' '.join(re.sub(r' Argument helptext:.*', '', text).split())
    for pattern, words in _WORDS:
        text = re.sub(pattern, words, text)
    return text or 'the options do not fit; see --help'


# Python's and pydantic's words for a wrong value, as tyro hands them on, and ours.
_WORDS = (
    (
        r"Error parsing (\S+): .*invalid literal for int\(\) with base 10: ('.*')",
        r'\1: a whole number is needed, found \2',
    ),
    (
        r"Error parsing (\S+): .*could not convert string to float: ('.*')",
        r'\1: a number is needed, found \2',
    ),
    (r"Missing value for argument '(.*?)'.*", r'\1: a value is needed'),
    (r'Error parsing \w+: \d+ validation errors? for \w+ ', ''),
    (
        r'(\S+) Input should (.*?) \[type=\w+, input_value=(.*?), input_type=\w+\]',
        r'--\1: must \2, found \3',
    ),
    (r'(\S+) Value error, (.*?) \[type=value_error, .*\]', r'--\1: \2'),
    (r' \[type=[^\]]*\]', ''),
)


def chain_of(robot: RobotSpec) -> KinematicChain:
    """Return the kinematics of a robot, for columns of what it was told."""
    # Here, and not above: MuJoCo takes a second, and most actions do without.
    from robot_rl.robots.kinematics import KinematicChain

    return KinematicChain.from_spec(robot)
