"""List the tasks that train, evaluate and play know, or write the page that shows them."""

from __future__ import annotations

from pathlib import Path

import pydantic

from robot_rl import registry
from robot_rl.cli import common
from robot_rl.errors import RobotRLError

EXAMPLE = 'robot-rl tasks --json'

_TITLES = {
    'arm': 'arms, simulated and through ROS 2',
    'arm from cameras': 'the same as cameras show them',
    'arm, sparse reward': 'the same, paid 1 where they are done and nothing else',
    'suite': 'dm_control suite',
    'manipulation': 'dm_control manipulation',
    'gym': 'Gymnasium (others with continuous actions: gym/<id>, gym/<module>:<id>)',
}
_PACKAGES = {'suite': 'dm_control', 'gym': 'gymnasium'}


class Options(common.Options):
    """The list, or a page."""

    write: Path | None = pydantic.Field(
        None, description='a page (.md) to write, with pictures in a folder beside it'
    )


def main(argv: list[str]) -> int:
    """Print the names by family, and a hint for every package that is missing."""
    options = common.parse(Options, argv, 'tasks', __doc__, EXAMPLE)
    if options.write is not None:
        return _write(options.write, options.as_json)
    families = registry.task_names()
    blocks = [
        '\n'.join([f'{_TITLES[family]}:', *(f'  {name}' for name in names)])
        for family, names in families.items()
    ]
    blocks += [
        f"{package} is not installed: pip install 'robot_rl[train]'"
        for family, package in _PACKAGES.items()
        if family not in families
    ]
    common.emit({'tasks': families}, options.as_json, '\n\n'.join(blocks))
    return 0


def _write(page: Path, as_json: bool) -> int:
    from robot_rl.bench import gallery

    if page.suffix != '.md':
        raise RobotRLError(f'--write: {page}: a page in Markdown is written, name it so (.md)')
    files = [str(path) for path in gallery.write(page)]
    common.emit({'files': files}, as_json, '\n'.join(files))
    return 0
