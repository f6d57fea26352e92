"""Run the whole loop: train, run on ROS 2, log, retrain, report."""

from __future__ import annotations

import sys
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
    episodes: pydantic.PositiveInt | None = pydantic.Field(
        None, description='how many episodes --deploy-only runs; 5 without it'
    )
    out: Path | None = pydantic.Field(
        None,
        description='folder of the results; an older one is kept, renamed. Without it: runs/demo, '
        'or runs/deploy for --deploy-only',
    )


def main(argv: list[str]) -> int:
    """Run it; exit with 0 only if every required figure was reached."""
    options = common.parse(Options, argv, 'demo', __doc__, EXAMPLE)
    common.require_ros('demo')
    if options.episodes is not None and not options.deploy_only:
        raise RobotRLError('demo: --episodes belongs to --deploy-only')
    out = options.out or Path('runs/deploy' if options.deploy_only else 'runs/demo')
    _set_aside(out)
    console = Console(stderr=options.as_json)
    if options.deploy_only:
        return _deploy(out, options, console)
    from robot_rl.demo.pipeline import Demo

    passed = Demo(out, console).run()
    if options.as_json:
        print((out / 'summary.json').read_text(encoding='utf-8'))
    return 0 if passed else 1


def _deploy(out: Path, options: Options, console: Console) -> int:
    """Run the shipped policy on held-out targets, and say how it did."""
    from robot_rl.demo import deploy

    outcome = deploy.run(out, options.episodes or 5, console)
    data = {**outcome, 'folder': str(out)}
    text = (
        f'reached {outcome["reached"]} of {outcome["episodes"]} targets; '
        f'pictures and episodes are in {out}'
    )
    common.emit(data, options.as_json, text)
    return 0 if outcome['reached'] else 1


def _set_aside(folder: Path) -> None:
    """Rename the results of an earlier run: nothing that was recorded is lost."""
    if folder.exists() and not folder.is_dir():
        raise StorageError(f'{folder}: a file is in the way; choose another --out')
    if folder.exists() and any(folder.iterdir()):
        then = time.strftime('%Y%m%d-%H%M%S', time.localtime(folder.stat().st_mtime))
        kept = folder.rename(folder.with_name(f'{folder.name}-{then}'))
        print(f'robot-rl: earlier results are kept in {kept}', file=sys.stderr)
