"""What robot-rl doctor looks at without ROS: this machine, and what a URDF says of limits."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from packaging.requirements import Requirement

from robot_rl.errors import RobotRLError, SpecError
from robot_rl.nodes.supervisor import LAST_DOMAIN, LAST_FREE_DOMAIN, ros_domain
from robot_rl.robots.kinematics import KinematicChain
from robot_rl.robots.mjcf import load_model
from robot_rl.specs import RobotSpec
from robot_rl.specs.robot import JointLimits

_PYTHON = (3, 11)  # as in pyproject.toml and setup.cfg
_CAN_DRAW = 'import mujoco; mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 8, 8)'
_DRAW_WITHIN_S = 30.0
# Above Linux's ports for whoever asks for any lie those of the domains from here on.
_FREE_AGAIN = 215
# What files differ by that round: of a limit in its unit.
SAME = 1e-3
# Whose versions somebody who helps will ask for.
_TOLD = ('robot_rl', 'mujoco', 'onnxruntime', 'numpy', 'torch')


class Finding(NamedTuple):
    """One line of the doctor's: how it is, what was found, and what to do about it."""

    level: Literal['OK', 'WARN', 'ERROR']
    about: str
    found: str
    todo: str = ''


class Limits(NamedTuple):
    """What an arm says of one joint; None: nothing."""

    lower: float | None = None
    upper: float | None = None
    velocity: float | None = None
    acceleration: float | None = None
    effort: float | None = None


# {parameter of ros2_control: field of Limits}.
LIMITS = {
    'min_position': 'lower',
    'max_position': 'upper',
    'max_velocity': 'velocity',
    'max_acceleration': 'acceleration',
    'max_effort': 'effort',
}


def machine(folder: Path) -> Iterator[Finding]:
    """Look at this machine; `folder` is where episodes would go."""
    yield _python()
    yield _told_versions()
    yield from _packages()
    yield from _ros()
    yield _graphics()
    yield from _room(folder)
    yield _cores()
    yield _niceness()
    yield _time()


def robot_file(robot: RobotSpec) -> Iterator[Finding]:
    """Compare the file of a robot with the model that it names."""
    about, joints, tool = f'model of {robot.name}', robot.model_joints, robot.tool_site
    try:
        model = load_model(robot.mjcf)
    except RobotRLError as error:
        todo = 'guard, policy and twin need it'
        yield Finding('ERROR', about, str(error), todo)
        return
    try:
        chain = KinematicChain.from_model(model, joints, tool, robot.model_base)
    except RobotRLError as error:
        todo = "mend mjcf, mjcf_joints, mjcf_base or tool_site of the robot's file"
        yield Finding('ERROR', about, str(error), todo)
        return
    ranges = map(Limits, chain.lower.tolist(), chain.upper.tolist())
    limits = dict(zip(robot.driver_joints, ranges, strict=True))
    yield from compare_limits(robot, limits, robot.mjcf)
    home, box = chain.position(robot.home_position).round(3), robot.workspace
    words = f'the tool stands at {home.tolist()}'
    if box.contains(home):
        yield Finding('OK', f'home of {robot.name}', f'{words}, in its workspace')
    else:
        words += f', outside the workspace from {list(box.lower)} to {list(box.upper)}'
        todo = "mend home or workspace of the robot's file: an arm outside may only come in"
        yield Finding('ERROR', f'home of {robot.name}', words, todo)


def urdf_limits(text: str) -> dict[str, Limits]:
    """Return {joint: its limits} of a URDF. Raises SpecError for one that cannot be trusted."""
    if '<!DOCTYPE' in text or '<!ENTITY' in text:  # entities may grow without end
        raise SpecError('robot_description: a URDF has no DOCTYPE and no entities')
    try:
        root = ElementTree.fromstring(text)
        found = {}
        for joint in root.iter('joint'):
            limit = joint.find('limit')
            if limit is not None:
                given = {name: limit.get(name) for name in Limits._fields}
                numbers = {n: None if v is None else float(v) for n, v in given.items()}
                if joint.get('type') == 'continuous':
                    numbers |= {'lower': None, 'upper': None}
                numbers['effort'] = numbers['effort'] or None  # 0 stands where nobody knows
                found[joint.get('name', '')] = Limits(**numbers)
    except (ElementTree.ParseError, ValueError) as error:
        raise SpecError(f'robot_description: no URDF: {error}') from None
    return found


def compare_limits(robot: RobotSpec, theirs: Mapping[str, Limits], who: str) -> Iterator[Finding]:
    """Compare what an arm says of its limits with ours: it must be able to do what we may ask."""
    known = False
    for joint, name in zip(robot.joints, robot.driver_joints, strict=True):
        limits = theirs.get(name, Limits())
        known |= limits != Limits()
        if wider := _wider(robot.joint_limits[joint], limits):
            # No effort is commanded: the twin alone holds them.
            level = 'WARN' if wider.keys() == {'max_effort'} else 'ERROR'
            todo = f"narrow joint_limits.{joint} in the robot's file to what the arm can do"
            words = (f'{key} {mine}, the arm has {bound}' for key, (mine, bound) in wider.items())
            yield Finding(level, f'limits of {name}', f'{"; ".join(words)} ({who})', todo)
    if known and all(theirs.get(name, Limits()) != Limits() for name in robot.driver_joints):
        yield Finding('OK', 'limits', f'those of {who} are known for all joints')
    elif not known:
        yield Finding(
            'WARN',
            'limits',
            f'{who} says nothing of the joints of {robot.name}',
            "compare the robot's file with the arm's manual",
        )


def compare_gripper(robot: RobotSpec, theirs: Mapping[str, Limits], who: str) -> Iterator[Finding]:
    """Compare where the gripper's joint may be told to stand with its own limits, if known."""
    joint, gripper = robot.driver_gripper, robot.gripper
    lower, upper = theirs.get(joint, Limits())[:2]
    if lower is None or upper is None:
        return
    least, most = sorted(gripper.position([0.0, gripper.open_width]).tolist())
    if least < lower - SAME or most > upper + SAME:
        words = f'stands from {least:g} to {most:g} in our file, can from {lower:g} to {upper:g}'
        todo = "mend gripper.positions of the robot's file: when closed, and when open"
        yield Finding('ERROR', f'limits of {joint}', f'{words} ({who})', todo)
    else:
        yield Finding('OK', f'limits of {joint}', f'{who} has it where our file has it stand')


def compare_accelerations(robot: RobotSpec, theirs: Mapping[str, Limits], who: str) -> Finding:
    """Compare those that MoveIt plans with, which are chosen and not the arm's own, with ours."""
    above = []
    for joint, name in zip(robot.joints, robot.driver_joints, strict=True):
        told = Limits(acceleration=theirs.get(name, Limits()).acceleration)
        if wider := _wider(robot.joint_limits[joint], told):
            above.append('{} {}, there {}'.format(joint, *wider['max_acceleration']))
    if not above:
        return Finding('OK', 'accelerations', f'none is above what {who} plans with')
    words = f'above what {who} plans with: {"; ".join(above)}'
    todo = "compare both with the arm's manual; MoveIt's may have been chosen low"
    return Finding('WARN', 'accelerations', words, todo)


def _wider(ours: JointLimits, theirs: Limits) -> dict[str, tuple[str, str]]:
    """Return {name of a limit: (ours, theirs)} where ours allows more than theirs."""
    found = {}
    for key, field in LIMITS.items():
        mine, bound = getattr(ours, key), getattr(theirs, field)
        if bound is None or (mine is None and key == 'max_effort'):  # nothing relies on it
            continue
        sign = -1 if key == 'min_position' else 1
        if mine is None or sign * mine > sign * bound + SAME:
            found[key] = 'none' if mine is None else f'{mine:g}', f'{bound:g}'
    return found


def _python() -> Finding:
    found, right = platform.python_version(), '.'.join(map(str, _PYTHON))
    if sys.version_info[:2] < _PYTHON:
        return Finding('ERROR', 'Python', found, f'install Python {right} or later')
    return Finding('OK', 'Python', f'{found} on {platform.system()} {platform.machine()}')


def _told_versions() -> Finding:
    told = ', '.join(f'{name} {version}' for name, version in _versions(_TOLD))
    return Finding('OK', 'versions', told or 'none is known')


def _packages() -> Iterator[Finding]:
    """Compare what the base install needs, and its extras ask for, with what is installed."""
    try:
        lines = importlib.metadata.requires('robot_rl') or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding(
            'WARN',
            'packages',
            'robot_rl runs from a folder and is not installed',
            'pip install -e . in its folder',
        )
        return
    wanted = list(map(Requirement, lines))
    needed = [r for r in wanted if not r.marker or r.marker.evaluate()]
    extras = [r for r in wanted if r not in needed and list(_versions([r.name]))]
    wrong = list(filter(None, map(_mismatch, needed)))
    for name, words in wrong:
        yield Finding('ERROR', f'package {name}', words, f"pip install '{name}'")
    for name, words in filter(None, map(_mismatch, extras)):  # not needed beside an arm
        yield Finding('WARN', f'package {name}', words, f"pip install '{name}'")
    if not wrong:
        yield Finding('OK', 'packages', f'all {len(needed)} that robot_rl needs')


def _versions(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the packages among `names` that are installed, and their versions."""
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield name, importlib.metadata.version(name)


def _mismatch(needed: Requirement) -> tuple[str, str] | None:
    """Return (requirement, what is wrong) where a package is missing or of a wrong version."""
    text = f'{needed.name}{needed.specifier}'
    try:
        found = importlib.metadata.version(needed.name)
    except importlib.metadata.PackageNotFoundError:
        return text, 'missing'
    if needed.specifier.contains(found, prereleases=True):
        return None
    return text, f'{found}, needed {needed.specifier}'


def _ros() -> Iterator[Finding]:
    if importlib.util.find_spec('rclpy') is None:
        yield Finding(
            'ERROR',
            'ROS',
            'rclpy is not installed',
            "pip install 'robot_rl[ros]' (x86-64), or source a ROS 2 install: "
            'source /opt/ros/kilted/setup.bash',
        )
        return
    rmw = os.environ.get('RMW_IMPLEMENTATION', 'rmw_fastrtps_cpp')
    (version,) = [version for _, version in _versions(['rclpy'])] or ['of unknown version']
    distribution = os.environ.get('ROS_DISTRO', 'none sourced: from wheels')
    yield Finding('OK', 'ROS', f'rclpy {version}, distribution {distribution}; RMW {rmw}')
    reach = os.environ.get('ROS_AUTOMATIC_DISCOVERY_RANGE', 'SUBNET')
    try:
        domain = ros_domain()
    except RobotRLError as error:
        yield Finding('ERROR', 'domain', str(error), f'export ROS_DOMAIN_ID=<0 to {LAST_DOMAIN}>')
        return
    if LAST_FREE_DOMAIN < domain < _FREE_AGAIN:
        words = f'{domain}, whose ports this system may have given to other programs'
        todo = f'export ROS_DOMAIN_ID=<1 to {LAST_FREE_DOMAIN}> where nodes do not find each other'
        yield Finding('WARN', 'domain', words, todo)
    elif domain == 0 and reach == 'SUBNET':
        yield Finding(
            'WARN',
            'domain',
            '0, and everybody on the network hears and may command it',
            f'export ROS_DOMAIN_ID=<1 to {LAST_FREE_DOMAIN}>, or '
            'ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST',
        )
    else:
        yield Finding('OK', 'domain', f'{domain}, discovery range {reach}')


def _graphics() -> Finding:
    """Draw in a process of its own: a broken driver may end it."""
    backend = os.environ.get('MUJOCO_GL', '')
    environment = os.environ | {'MUJOCO_GL': backend or 'egl'}
    try:
        done = subprocess.run(
            [sys.executable, '-c', _CAN_DRAW],
            env=environment,
            capture_output=True,
            timeout=_DRAW_WITHIN_S,
            check=False,
        )
        works = done.returncode == 0
    except subprocess.TimeoutExpired:
        works = False
    about, name = 'pictures', environment['MUJOCO_GL']
    if not works:
        return Finding(
            'WARN',
            about,
            f'MuJoCo cannot draw with MUJOCO_GL={name}',
            'apt install libegl1 libgl1-mesa-dri; export MUJOCO_GL=egl',
        )
    hint = '' if backend else 'export MUJOCO_GL=egl where there is no screen'
    return Finding('OK', about, f'MuJoCo draws with MUJOCO_GL={name}', hint)


def _room(folder: Path) -> Iterator[Finding]:
    folder = folder.absolute()
    where = next(path for path in (folder, *folder.parents) if path.exists())
    free_gb = shutil.disk_usage(where).free / 1e9
    level = 'ERROR' if free_gb < 1 else 'WARN' if free_gb < 10 else 'OK'
    todo = '' if level == 'OK' else 'make room, or record elsewhere (storage:=<folder>)'
    yield Finding(level, 'disk', f'{free_gb:.1f} GB free at {where}', todo)
    if Path('/dev/shm').is_dir():
        free_mb = shutil.disk_usage('/dev/shm').free / 1e6
        level, todo = 'OK', ''
        if free_mb < 64:
            level, todo = 'WARN', 'rm /dev/shm/fastrtps_* of killed nodes; docker: --shm-size=1g'
        yield Finding(level, '/dev/shm', f'{free_mb:.0f} MB free', todo)


def _cores() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    load = os.getloadavg()[0]
    words = f'{cores} cores, load {load:.1f}'
    if cores < 4 or load > cores:
        return Finding('WARN', 'cores', words, 'let nothing heavy run beside an arm')
    return Finding('OK', 'cores', words)


def _niceness() -> Finding:
    nice = os.nice(0)
    if nice > 0:
        return Finding(
            'WARN',
            'priority',
            f'nice {nice}: others run first',
            'start from a shell that is not niced',
        )
    hints = []
    realtime = Path('/sys/kernel/realtime').exists()
    if not realtime:
        hints.append("the arm's own driver may want a PREEMPT_RT kernel")
    allowed = _may_run_in_real_time()
    if not allowed:
        hints.append('let policy and guard go before others: rtprio in docs/deploy_to_an_arm.md')
    kernel = 'real-time' if realtime else 'ordinary'
    words = f'nice {nice}, {kernel} kernel, SCHED_FIFO {"allowed" if allowed else "not allowed"}'
    return Finding('OK', 'priority', words, '; '.join(hints))


def _may_run_in_real_time() -> bool:
    """Ask the system, in a process of its own: ours is to stay as it is."""
    ask = 'import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))'
    done = subprocess.run([sys.executable, '-c', ask], capture_output=True, check=False)
    return done.returncode == 0


def _time() -> Finding:
    """Ask systemd whether the clock is synchronised: stamps of two machines are compared."""
    try:
        done = subprocess.run(
            ['timedatectl', 'show', '--property=NTPSynchronized'],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
        said = re.search(r'NTPSynchronized=(\w+)', done.stdout)
    except (OSError, subprocess.TimeoutExpired):
        said = None
    if said is None:
        return Finding(
            'WARN',
            'clock',
            'nobody here says whether it is synchronised',
            'where the driver runs on another machine: chrony on both',
        )
    if said[1] != 'yes':
        return Finding('WARN', 'clock', 'not synchronised', 'install chrony')
    return Finding('OK', 'clock', 'synchronised')
