"""List the tasks that train, evaluate and play know."""

from __future__ import annotations

from robot_rl import registry
from robot_rl.cli import common

EXAMPLE = 'robot-rl tasks --json'

_TITLES = {
    'arm': 'arms, simulated and through ROS 2',
    'suite': 'dm_control suite',
    'manipulation': 'dm_control manipulation with features',
}


class Options(common.Options):
    """Nothing to choose but the form of the list."""


def main(argv: list[str]) -> int:
    """Print the names by family; without dm_control, those of the arms and a hint."""
    options = common.parse(Options, argv, 'tasks', __doc__, EXAMPLE)
    families = registry.task_names()
    blocks = [
        '\n'.join([f'{_TITLES[family]}:', *(f'  {name}' for name in names)])
        for family, names in families.items()
    ]
    if 'suite' not in families:
        blocks.append("dm_control is not installed: pip install 'robot_rl[train]'")
    common.emit({'tasks': families}, options.as_json, '\n\n'.join(blocks))
    return 0
