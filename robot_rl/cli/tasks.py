"""List the tasks that train, evaluate and play know."""

from __future__ import annotations

from robot_rl import registry
from robot_rl.cli import common

EXAMPLE = 'robot-rl tasks --json'

_TITLES = {
    'arm': 'arms, simulated and through ROS 2',
    'suite': 'dm_control suite',
    'manipulation': 'dm_control manipulation',
    'gym': 'Gymnasium (others with continuous actions: gym/<id>, gym/<module>:<id>)',
}
_PACKAGES = {'suite': 'dm_control', 'gym': 'gymnasium'}


class Options(common.Options):
    """Nothing to choose but the form of the list."""


def main(argv: list[str]) -> int:
    """Print the names by family, and a hint for every package that is missing."""
    options = common.parse(Options, argv, 'tasks', __doc__, EXAMPLE)
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
