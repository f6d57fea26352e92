"""Compare recorded motions with the twin's, and fit its delay, stiffness and friction.

The commands of recorded episodes are told to the twin of the arm that they were recorded of. The
result is a file of parameters that sim_robot takes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic
import yaml

from robot_rl.cli import common
from robot_rl.errors import RobotRLError

if TYPE_CHECKING:
    from robot_rl.sim.calibration import Calibration
    from robot_rl.specs import RobotSpec
    from robot_rl.storage.episode import EpisodeHeader

EXAMPLE = 'robot-rl calibrate --store episodes --query "robot=ur5e" --out twin.yaml'
FITTED = ('command_delay_s', 'gain', 'friction')


class Options(common.StoreOptions):
    """Which episodes, and where to put what was found."""

    query: str = pydantic.Field('', description='which episodes, as robot-rl episodes ls takes it')
    out: Path = pydantic.Field(
        Path('twin.yaml'), description='file of parameters of sim_robot to be written'
    )


def main(argv: list[str]) -> int:
    """Print the tracking errors before and after, and write the file."""
    options = common.parse(Options, argv, 'calibrate', __doc__, EXAMPLE)
    # Here, and not above: MuJoCo takes a second, and --help should not.
    from robot_rl.sim.calibration import Recording, calibrate
    from robot_rl.sim.twin import AtHome
    from robot_rl.storage.recorded_motion import recorded_motion

    store = options.open()
    headers = store.episodes(options.query)
    robot = _robot_of(headers)
    recordings = [Recording(*recorded_motion(store.open(header.id))) for header in headers]
    found = calibrate(AtHome(robot), recordings)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(_parameters(found, robot, len(headers)), encoding='utf-8')
    data = {'episodes': len(headers), 'robot': robot.name, 'out': str(options.out)}
    data |= found.imperfections.to_dict() | {'joints': _rows(found, robot)}
    common.emit(data, options.as_json, _text(found, robot, options.out))
    return 0


def _robot_of(headers: list[EpisodeHeader]) -> RobotSpec:
    """Return the one robot of all episodes. Raises RobotRLError."""
    robots = [header.robot_spec for header in headers]
    if not robots or None in robots or any(robot != robots[0] for robot in robots):
        names = sorted({header.robot for header in headers})
        raise RobotRLError(
            f'calibrate: {len(headers)} episodes of {names or "no robot"} match; those of one '
            'robot, described alike, are needed: --query robot=<name>'
        )
    return robots[0]


def _rows(found: Calibration, robot: RobotSpec) -> list[dict[str, Any]]:
    return [
        {
            'joint': joint,
            'rms_before': float(found.before.rms[index]),
            'rms_after': float(found.after.rms[index]),
            'max_before': float(found.before.max[index]),
            'max_after': float(found.after.max[index]),
            'gain': found.imperfections.gain[index],
            'friction': found.imperfections.friction[index],
            'moved': bool(found.moved[index]),
        }
        for index, joint in enumerate(robot.joints)
    ]


def _text(found: Calibration, robot: RobotSpec, out: Path) -> str:
    """Return the errors in mrad (mm for a slide), what was found, and what was not."""
    table = [
        {
            'joint': row['joint'],
            'rms [mrad]': f'{1e3 * row["rms_before"]:.2f} -> {1e3 * row["rms_after"]:.2f}',
            'max [mrad]': f'{1e3 * row["max_before"]:.2f} -> {1e3 * row["max_after"]:.2f}',
            'gain': f'{row["gain"]:.3f}' if row['moved'] else 'not told: it hardly moved',
            'friction [N m]': f'{row["friction"]:.2f}' if row['moved'] else '',
        }
        for row in _rows(found, robot)
    ]
    delay_ms = 1e3 * found.imperfections.command_delay_s
    return '\n'.join([*common.table(table), f'delay {delay_ms:.1f} ms; written to {out}'])


def _parameters(found: Calibration, robot: RobotSpec, episodes: int) -> str:
    """Return a file of ROS parameters for sim_robot."""
    values = {name: found.imperfections.to_dict()[name] for name in FITTED}
    document = {'/**/sim_robot': {'ros__parameters': values}}
    return (
        f'# Fitted by robot-rl calibrate to {episodes} episodes of {robot.name}; joints in the\n'
        f'# order {", ".join(robot.joints)}.\n'
        + yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=99)
    )
