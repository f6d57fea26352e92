"""Check this machine and the graph that runs on it, and say what to do about each finding."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pydantic

from robot_rl.cli import common
from robot_rl.nodes.checks import Finding, machine, robot_file
from robot_rl.registry import make_task
from robot_rl.specs import RobotSpec
from robot_rl.specs.ros_names import Namespace

EXAMPLE = 'robot-rl doctor --task ur5e/lift --seconds 5'


class Options(common.Options):
    """Which arm to look for, and where."""

    robot: str = pydantic.Field(
        '',
        description='robot in config/robots or a YAML file; @<tf_prefix> may follow; '
        "empty: the task's, or ur5e",
    )
    task: str = pydantic.Field(
        '',
        description='whose streams to look at as well: poses, goals, pictures; empty: what the '
        'episode in hand reads, where a session runs',
    )
    namespace: Namespace = pydantic.Field('', description="of the arm's nodes and topics")
    seconds: pydantic.PositiveFloat = pydantic.Field(3.0, description='how long to listen [s]')
    store: Path = pydantic.Field(Path('episodes'), description='folder of the episodes')


def main(argv: list[str]) -> int:
    """Print the findings; exit with 1 where any is an ERROR."""
    options = common.parse(Options, argv, 'doctor', __doc__, EXAMPLE)
    task = make_task(options.task) if options.task else None
    named = options.robot or ('' if task else 'ur5e')
    robot = RobotSpec.load(named) if named else task.robot
    findings = [*machine(options.store), *robot_file(robot)]
    if importlib.util.find_spec('rclpy') is not None:
        from robot_rl.nodes.doctor import graph

        contract = task.contract() if task else None
        findings += graph(robot, options.namespace, options.seconds, contract)
    counts = {level: sum(f.level == level for f in findings) for level in ('OK', 'WARN', 'ERROR')}
    told = {'counts': counts, 'findings': [finding._asdict() for finding in findings]}
    common.emit(told, options.as_json, '\n'.join([*map(_line, findings), _summary(counts)]))
    return 1 if counts['ERROR'] else 0


def _line(finding: Finding) -> str:
    todo = f'\n       -> {finding.todo}' if finding.todo else ''
    return f'{finding.level:<5}  {finding.about}: {finding.found}{todo}'


def _summary(counts: dict[str, int]) -> str:
    return ', '.join(f'{number} {level}' for level, number in counts.items())
