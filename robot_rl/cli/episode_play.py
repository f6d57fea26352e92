"""`robot-rl episodes open` and `replay`: see an episode, and let an arm do it again."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Literal

import pydantic
import tyro

from robot_rl.cli import common
from robot_rl.cli.episode_care import EpisodeOptions, Flag
from robot_rl.errors import RobotRLError
from robot_rl.registry import is_arm_task
from robot_rl.specs.ros_names import Namespace
from robot_rl.storage.commands import recorded_commands

# The programs of each viewer, as its packages call them.
VIEWERS = {'foxglove': ('foxglove-studio', 'foxglove'), 'rerun': ('rerun',)}


class OpenOptions(EpisodeOptions):
    """Show an episode in Foxglove or rerun, whichever is installed."""

    viewer: Annotated[Literal['', 'foxglove', 'rerun'], tyro.conf.arg(name='with')] = (
        pydantic.Field('', description='which of the two; empty: the first that is there')
    )


class ReplayOptions(EpisodeOptions):
    """Give an episode's commands again, through the guard, at the times of the recording."""

    real: Flag = pydantic.Field(
        False, description='to the arm, whose driver runs, not to the twin'
    )
    robot: str = pydantic.Field('', description="a robot; empty: the episode's")
    namespace: Namespace = pydantic.Field(
        '', description='namespace of the nodes and of the driver'
    )
    params_file: str = pydantic.Field(
        '', description='YAML file of node parameters; empty: config/nodes/replay.yaml'
    )
    log_dir: Path | None = pydantic.Field(
        None, description="folder of the nodes' logs; without it a new one in the temporary folder"
    )


def open_(options: OpenOptions) -> None:
    """Start a viewer with the episode's MCAP file, and leave it running."""
    episode = options.open().open(options.id)
    viewers = [options.viewer] if options.viewer else list(VIEWERS)
    programs = (shutil.which(name) for viewer in viewers for name in VIEWERS[viewer])
    program = next(filter(None, programs), None)
    if program is None:
        raise RobotRLError(
            f'open: {" and ".join(viewers)} not found on the PATH; get Foxglove from '
            'foxglove.dev/download, or pip install rerun-sdk'
        )
    path = episode.streams_path
    if episode.is_steps_only:
        from robot_rl.storage import steps_mcap

        path = Path(tempfile.mkdtemp(prefix='robot-rl-')) / f'{episode.header.id}.mcap'
        steps_mcap.write(episode, path)
    subprocess.Popen(
        [program, str(path.absolute())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # it stays when this terminal goes
    )
    common.emit({'program': program, 'path': str(path)}, options.as_json, f'{program} {path}')


def replay(options: ReplayOptions) -> int:
    """Run the graph replay; return the exit code of the node that ended it."""
    from robot_rl.cli import up

    episode = options.open().open(options.id)
    recorded_commands(episode)  # what is wrong shows before anything is started
    header = episode.header
    given = {
        'sim': 'false' if options.real else 'true',
        'episode': str(episode.path.absolute()),
        'robot': options.robot or header.robot,
        'namespace': options.namespace,
        'params_file': options.params_file,
    }
    if not options.real:
        seed = '' if header.seed is None else str(header.seed)
        given |= {'task': _task(header.task), 'seed': seed}
    return up.run('replay', given, options.log_dir, up.said('replay', given, sys.stdout))


def _task(name: str) -> str:
    """Return a task that the twin can be placed by; '': it stands at home."""
    if is_arm_task(name):
        return name
    print(f'robot-rl: no task {name!r} here: the twin begins at home', file=sys.stderr)
    return ''


ACTIONS = {
    'open': (open_, OpenOptions, 'ID'),
    'replay': (replay, ReplayOptions, 'ID'),
}
