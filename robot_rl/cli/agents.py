"""List the agents, and every option of one with its value and meaning."""

from __future__ import annotations

import json
from typing import Annotated, Any, get_args

import pydantic
import tyro

from robot_rl import registry, resources
from robot_rl.cli import common
from robot_rl.specs import Spec
from robot_rl.specs.base import load_yaml

EXAMPLE = 'robot-rl agents dmpo'
_FOLDER = 'config/agents'
_OF_THE_RUN = ('steps', 'hide', 'pixels_only', 'cameras', 'history')


class Options(common.Options):
    """Which agent to describe."""

    name: Annotated[str, tyro.conf.Positional] = pydantic.Field(
        '', description='a file of config/agents by name, or the path of one; all without it'
    )


def main(argv: list[str]) -> int:
    """Print one line an agent, or one line an option."""
    options = common.parse(Options, argv, 'agents', __doc__, EXAMPLE)
    if options.name:
        key, rows = 'options', describe(options.name)
    else:
        key = 'agents'
        rows = [{'agent': name, 'what': _summary(name)} for name in resources.names(_FOLDER)]
    cells = [{name: _cell(value) for name, value in row.items()} for row in rows]
    common.emit({key: rows}, options.as_json, '\n'.join(common.table(cells)))
    return 0


def describe(name: str) -> list[dict[str, Any]]:
    """Return every option of the agent file `name` as {option, value, meaning}.

    Raises UnknownName, and SpecError for a file that does not say what it should.
    """
    from robot_rl.training.config import RunConfig, load_run_config

    # Any task will do: none of the values depends on it. Nor does what has to be chosen.
    open_fields = _required(name)
    chosen = [f'learner.{key}={choices[0]}' for key, choices in open_fields.items()]
    config = load_run_config(name, task='suite/cartpole-swingup', overrides=chosen)
    data, agent = config.to_dict(), registry.resolve('agent', config.agent)
    told = {key: f'required: {" | ".join(choices)}' for key, choices in open_fields.items()}
    sections = {
        section: (RunConfig.model_fields[section].annotation, data[section])
        for section in ('training', 'demos')
    }
    sections['learner'] = agent.config, config.learner | told
    rows = _rows(RunConfig, {key: data[key] for key in _OF_THE_RUN}, '')
    for section, (model, values) in sections.items():
        rows += _rows(model, values, f'{section}.')
    return rows


def _required(name: str) -> dict[str, tuple[str, ...]]:
    """Return the learner's fields that have no default and are not in the file: their choices."""
    data = load_yaml(resources.find(_FOLDER, name))
    data = data if isinstance(data, dict) else {}
    agent, given = data.get('agent', ''), data.get('learner') or {}
    if agent not in registry.AGENTS:
        return {}  # refused, with its name, where the file is read
    fields = registry.resolve('agent', agent).config.model_fields
    return {
        key: get_args(field.annotation)
        for key, field in fields.items()
        if field.is_required() and key not in given
    }


def _rows(model: type[Spec], values: dict[str, Any], prefix: str) -> list[dict[str, Any]]:
    return [
        {'option': prefix + key, 'value': value, 'meaning': model.model_fields[key].description}
        for key, value in values.items()
    ]


def _summary(name: str) -> str:
    """Return the first line of the comment that a file begins with."""
    path = resources.find(_FOLDER, name)
    load_yaml(path)  # a file that cannot be read is named
    first = path.read_text(encoding='utf-8').splitlines()[0]
    return first.removeprefix('#').strip()


def _cell(value: Any) -> str:
    """Return a value as --set takes it."""
    return value if isinstance(value, str) else json.dumps(value)
