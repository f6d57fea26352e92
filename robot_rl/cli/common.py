"""What the commands share: options from flags and YAML, and output for people or machines."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pydantic
import tyro

from robot_rl.errors import RobotRLError, SpecError, did_you_mean
from robot_rl.specs.base import Spec, load_yaml


class Options(Spec):
    """Options that every command has."""

    as_json: Annotated[
        bool,
        tyro.conf.arg(name='json', help='print one JSON object'),
        tyro.conf.FlagCreatePairsOff,
    ] = False


OptionsT = TypeVar('OptionsT', bound=Spec)


def parse(
    options: type[OptionsT], argv: list[str], command: str, summary: str, example: str
) -> OptionsT:
    """Read a command's options from flags, over those of `--config FILE.yaml`.

    Raises RobotRLError with one line for a flag or a value that does not fit.
    """
    description = f'{summary.strip()}\n\nexample: {example}'
    argv = _with_config_file(options, argv)
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


def emit(data: dict[str, Any], as_json: bool, text: str) -> None:
    """Print `data` as one JSON object for machines, or `text` for people."""
    print(json.dumps(data, allow_nan=False) if as_json else text)


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
    """Reduce tyro's message to its sentence: title, frame and the hints on --help go."""
    lines = [re.sub(r'[│╭╮╰╯─]+|-{3,}', ' ', line).strip() for line in message.splitlines()]
    skip = ('For full help', 'For further', 'information visit', 'https:', 'robot-rl ')
    text = ' '.join(line for line in lines[1:] if line and not line.startswith(skip))
    text = re.sub(r'\[type=[^\]]*\]', '', text)
    text = re.sub(r'Error parsing \w+: \d+ validation errors? for \w+ ', '', text)
    text = re.sub(r' Argument helptext:.*', '', text)
    return ' '.join(text.split()) or 'the options do not fit; see --help'
