"""Finds config/, launch/ and pretrained/ from a checkout, a wheel or a colcon workspace.

A checkout holds them beside the package. A wheel and colcon both install them as share/robot_rl
below their prefix, which is an ancestor of the package's own folder in every layout (a virtual
environment, --user, --target, install/robot_rl).
"""

import functools
from pathlib import Path

from robot_rl.errors import RobotRLError, UnknownName

_PACKAGE = Path(__file__).resolve().parent


@functools.cache
def share() -> Path:
    """Return the folder that holds config/, launch/ and pretrained/."""
    checkout = _PACKAGE.parent
    if (checkout / 'package.xml').is_file() and (checkout / 'config').is_dir():
        return checkout
    for prefix in _PACKAGE.parents:
        found = prefix / 'share' / 'robot_rl'
        if (found / 'config').is_dir():
            return found
    raise RobotRLError(
        f'no share/robot_rl with a config folder above {_PACKAGE}: reinstall robot_rl with its '
        'data files (pip install, or colcon build)'
    )


def names(folder: str, suffix: str = '.yaml') -> list[str]:
    """Return what `folder` (e.g. 'config/robots') holds, as sorted names without suffix."""
    found = (share() / folder).glob(f'*{suffix}')
    return sorted(path.name.removesuffix(suffix) for path in found)


def find(folder: str, name: str, suffix: str = '.yaml', kind: str = '') -> Path:
    """Return the file called `name` in `folder`, or `name` itself where it is a path of a file.

    Raises UnknownName, with the nearest known name, where neither exists; `kind` says of what.
    """
    own = Path(name)
    if own.suffix and own.is_file():
        return own
    path = share() / folder / f'{name}{suffix}'
    if path.is_file():
        return path
    raise UnknownName(kind or Path(folder).name.removesuffix('s'), name, names(folder, suffix))


def model(name: str) -> Path:
    """Return the path of an MJCF file: a path of a file, or a name below robots/models."""
    own = Path(name)
    if own.is_file():
        return own
    path = _PACKAGE / 'robots' / 'models' / name
    if path.is_file():
        return path
    models = _PACKAGE / 'robots' / 'models'
    raise UnknownName('model', name, (str(p.relative_to(models)) for p in models.rglob('*.xml')))
