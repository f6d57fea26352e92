"""Finds config/, launch/ and pretrained/ from a checkout, a wheel or a colcon workspace.

A checkout holds them beside the package. A wheel and colcon both install them as share/robot_rl
below their prefix, which is an ancestor of the package's own folder in every layout (a virtual
environment, --user, --target, install/robot_rl).
"""

import functools
import importlib.util
import os
import subprocess
from pathlib import Path

from robot_rl.errors import RobotRLError, SpecError, UnknownName

_PACKAGE = Path(__file__).resolve().parent
# Names a local checkout of MuJoCo Menagerie.
_MENAGERIE = 'ROBOT_RL_MENAGERIE'


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
    """Return the path of an MJCF file.

    `name` is a path of a file, a name below robots/models, menagerie:<folder>/<file>.xml for
    one of MuJoCo Menagerie, or <package>:<path> for one inside an installed Python package.
    Raises UnknownName, or SpecError that says what is missing.
    """
    own, models = Path(name), _PACKAGE / 'robots' / 'models'
    for path in (own, models / name):
        if path.is_file():
            return path
    place, colon, inside = name.partition(':')
    if colon and place == 'menagerie':
        return _menagerie(name, *inside.split('/', 1))
    if colon:
        return _in_package(name, place, inside)
    raise UnknownName('model', name, (str(p.relative_to(models)) for p in models.rglob('*.xml')))


def _menagerie(name: str, folder: str, file: str = '') -> Path:
    """Find a model in the local checkout, or else let the package fetch and keep it."""
    checkout = os.environ.get(_MENAGERIE)
    if checkout:
        return _existing(name, Path(checkout).expanduser() / folder / file)
    try:
        import mujoco_menagerie
    except ImportError:
        raise SpecError(
            f'model {name!r}: set {_MENAGERIE} to a checkout of MuJoCo Menagerie, or let a '
            'package download its models: pip install mujoco-menagerie'
        ) from None
    try:
        return _existing(name, mujoco_menagerie.get(folder).path() / file)
    except (mujoco_menagerie.MenagerieError, OSError) as error:
        raise SpecError(
            f'model {name!r}: {" ".join(str(error).split())}; {_MENAGERIE} may name a checkout'
        ) from None


def _in_package(name: str, package: str, inside: str) -> Path:
    """Find a file in an installed package without importing it."""
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise SpecError(f'model {name!r}: no Python package {package!r} is installed')
    return _existing(name, Path(found.submodule_search_locations[0]) / inside)


def _existing(name: str, path: Path) -> Path:
    if not path.is_file():
        raise SpecError(f'model {name!r}: no such file: {path}')
    return path


def git_revision() -> str:
    """Return the revision of the checkout that this package runs from; '' outside of one.

    It ends in -dirty where files differ from that revision.
    """
    place = str(_PACKAGE)
    command = ['git', '-C', place, 'describe', '--always', '--dirty', '--exclude=*', '--abbrev=12']
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ''
    return done.stdout.strip() if done.returncode == 0 else ''
