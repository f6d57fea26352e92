"""Run the whole loop: train, run on ROS 2, log, retrain, report."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

import pydantic
from rich.console import Console

from robot_rl.cli import common
from robot_rl.errors import RobotRLError, StorageError

EXAMPLE = 'robot-rl demo --deploy-only'


class Options(common.Options):
    """How much of the loop, and where its results go."""

    deploy_only: bool = pydantic.Field(
        False, description='only run the policy that ships with the package on the twin, by ROS 2'
    )
    episodes: pydantic.PositiveInt = pydantic.Field(
        5, description='how many episodes --deploy-only runs'
    )
    out: Path = pydantic.Field(
        Path('runs/demo'), description='folder of the results; an older one is kept, renamed'
    )


def main(argv: list[str]) -> int:
    """Run it; exit with 0 only if every required figure was reached."""
    options = common.parse(Options, argv, 'demo', __doc__, EXAMPLE)
    if importlib.util.find_spec('rclpy') is None:
        raise RobotRLError(
            "demo needs ROS 2: source its setup.bash, or pip install 'robot_rl[ros]'"
        )
    _set_aside(options.out)
    console = Console(stderr=options.as_json)
    if options.deploy_only:
        return _deploy(options, console)
    from robot_rl.demo.pipeline import Demo

    passed = Demo(options.out, console).run()
    if options.as_json:
        print((options.out / 'summary.json').read_text(encoding='utf-8'))
    return 0 if passed else 1


def _deploy(options: Options, console: Console) -> int:
    """Run the shipped policy on held-out targets, and say how it did."""
    from robot_rl.demo import deploy

    outcome = deploy.run(options.out, options.episodes, console)
    data = {**outcome, 'folder': str(options.out)}
    text = (
        f'reached {outcome["reached"]} of {outcome["episodes"]} targets; '
        f'pictures and episodes are in {options.out}'
    )
    common.emit(data, options.as_json, text)
    return 0 if outcome['reached'] else 1


def _set_aside(folder: Path) -> None:
    """Rename the results of an earlier run: nothing that was recorded is lost."""
    if folder.exists() and not folder.is_dir():
        raise StorageError(f'{folder}: a file is in the way; choose another --out')
    if folder.exists() and any(folder.iterdir()):
        then = time.strftime('%Y%m%d-%H%M%S', time.localtime(folder.stat().st_mtime))
        folder.rename(folder.with_name(f'{folder.name}-{then}'))
