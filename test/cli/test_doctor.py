"""What robot-rl doctor says of a machine; its graph part is tested with real nodes."""

from __future__ import annotations

import collections
import importlib.metadata
import importlib.util

import pytest

from robot_rl.cli import doctor
from robot_rl.errors import SpecError
from robot_rl.nodes import checks
from robot_rl.nodes.checks import Limits, compare_accelerations, compare_limits, urdf_limits
from robot_rl.specs import RobotSpec

Usage = collections.namedtuple('Usage', 'total used free')


@pytest.fixture
def no_ros(monkeypatch):
    found = importlib.util.find_spec
    hidden = lambda name, *more: None if name == 'rclpy' else found(name, *more)  # noqa: E731
    monkeypatch.setattr(importlib.util, 'find_spec', hidden)


def lines(findings):
    return [f'{f.level} {f.about}: {f.found} -> {f.todo}' for f in findings]


def test_without_ros_the_machine_is_checked_and_how_to_install_is_said(no_ros, capsys, tmp_path):
    assert doctor.main(['--store', str(tmp_path / 'not' / 'there')]) == 1
    text = capsys.readouterr().out
    assert 'ERROR  ROS: rclpy is not installed' in text
    assert "-> pip install 'robot_rl[ros]'" in text and '/opt/ros/' in text
    for about in ('Python', 'packages', 'pictures', 'disk', 'cores', 'priority', 'clock'):
        assert f' {about}: ' in text or f'  {about}: ' in text, about
    assert f'free at {tmp_path}' in text


def test_versions_are_told(monkeypatch):
    monkeypatch.setenv('ROS_DISTRO', 'kilted')
    text = '\n'.join(lines([checks._told_versions(), *checks._ros()]))
    for name in ('robot_rl', 'mujoco', 'onnxruntime', 'numpy', 'rclpy'):
        try:
            assert f'{name} {importlib.metadata.version(name)}' in text
        except importlib.metadata.PackageNotFoundError:
            assert name == 'rclpy'
    assert 'distribution kilted' in text or 'rclpy is not installed' in text


@pytest.mark.parametrize(('free', 'level'), [(5e8, 'ERROR'), (5e9, 'WARN'), (5e10, 'OK')])
def test_a_disk_that_is_short_is_told(monkeypatch, tmp_path, free, level):
    monkeypatch.setattr(checks.shutil, 'disk_usage', lambda _: Usage(1e12, 0, free))
    disk = next(f for f in checks._room(tmp_path) if f.about == 'disk')
    assert disk.level == level and bool(disk.todo) == (level != 'OK')


@pytest.mark.parametrize(
    ('domain', 'reach', 'told'),
    [
        ('', 'SUBNET', 'WARN domain: 0, and everybody on the network'),
        ('7', 'SUBNET', 'OK domain: 7, discovery range SUBNET'),
        ('0', 'LOCALHOST', 'OK domain: 0, discovery range LOCALHOST'),
        ('150', 'SUBNET', 'WARN domain: 150, whose ports this system may have'),
        ('220', 'SUBNET', 'OK domain: 220'),
        ('500', 'SUBNET', 'ERROR domain: ROS_DOMAIN_ID=500'),
        ('a', 'SUBNET', 'ERROR domain: ROS_DOMAIN_ID=a'),
    ],
)
def test_the_domain_is_told(monkeypatch, domain, reach, told):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda *_: True)
    monkeypatch.setenv('ROS_DOMAIN_ID', domain)
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', reach)
    assert lines(checks._ros())[-1].startswith(told)


def test_packages_that_are_missing_or_old_are_named(monkeypatch):
    needed = ['numpy>=1.26', 'mujoco<4,>=3.2', 'mcap>=1.5', 'torch>=2; extra == "train"']
    monkeypatch.setattr(importlib.metadata, 'requires', lambda _: needed)
    needed.append('onnx>=1.16; extra == "train"')
    versions = {'numpy': '1.26.4', 'mujoco': '4.0.0', 'onnx': '1.15.0'}

    def version(name):
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, 'version', version)
    assert lines(checks._packages()) == [
        "ERROR package mujoco<4,>=3.2: 4.0.0, needed <4,>=3.2 -> pip install 'mujoco<4,>=3.2'",
        "ERROR package mcap>=1.5: missing -> pip install 'mcap>=1.5'",
        "WARN package onnx>=1.16: 1.15.0, needed >=1.16 -> pip install 'onnx>=1.16'",
    ]


def test_a_renderer_that_does_not_work_is_told(monkeypatch):
    monkeypatch.setenv('MUJOCO_GL', 'nonsense')
    (line,) = lines([checks._graphics()])
    assert line.startswith('WARN pictures: MuJoCo cannot draw with MUJOCO_GL=nonsense')


def test_a_urdf_gives_its_limits():
    text = (
        '<robot><joint name="a" type="revolute"><limit lower="-1" upper="2.5" velocity="3"/>'
        '</joint><joint name="b" type="continuous"><limit velocity="1" effort="2"/></joint>'
        '<joint name="c" type="fixed"/></robot>'
    )
    assert urdf_limits(text) == {'a': Limits(-1.0, 2.5, 3.0), 'b': Limits(velocity=1.0, effort=2)}


@pytest.mark.parametrize(
    'text',
    ['<!DOCTYPE r [<!ENTITY a "b">]><r>&a;</r>', '<robot', 'no', '<r><joint name="a"><limit '
     'lower="x"/></joint></r>'],
)  # fmt: skip
def test_a_urdf_that_cannot_be_trusted_is_refused(text):
    with pytest.raises(SpecError, match='robot_description: '):
        urdf_limits(text)


def test_limits_that_the_arm_does_not_have_are_errors():
    robot = RobotSpec.load('ur5e')
    ours = robot.joint_limits
    same = {
        j: Limits(ours[j].min_position, ours[j].max_position, ours[j].max_velocity) for j in ours
    }
    assert [f.level for f in compare_limits(robot, same, 'x')] == ['OK']
    assert [f.level for f in compare_limits(robot, {}, 'x')] == ['WARN']
    first = robot.joints[0]
    narrow = same | {first: Limits(ours[first].min_position + 0.5, 99.0, 0.1)}
    error = next(iter(compare_limits(robot, narrow, 'x')))
    assert error.level == 'ERROR' and error.about == f'limits of {first}'
    assert 'min_position' in error.found and 'max_velocity' in error.found
    assert 'max_position' not in error.found


def test_efforts_and_accelerations_are_compared_where_somebody_tells_them():
    robot = RobotSpec.load('ur5e')
    pan, lift = robot.joints[:2]
    theirs = {joint: Limits(effort=500.0) for joint in robot.joints}
    assert [f.level for f in compare_limits(robot, theirs, 'x')] == ['OK']
    weak, brisk = Limits(effort=100.0), Limits(acceleration=2.0)
    found = lines(compare_limits(robot, theirs | {pan: weak, lift: brisk}, 'x'))
    assert found[0].startswith(f'WARN limits of {pan}: max_effort 150, the arm has 100 (x)')
    assert found[1].startswith(
        f'ERROR limits of {lift}: max_acceleration 3.14159, the arm has 2 (x)'
    )
    unbounded = RobotSpec.load('j2n6s300')
    told = {joint: Limits(acceleration=1.0) for joint in unbounded.joints}
    assert 'max_acceleration none, the arm has 1' in lines(compare_limits(unbounded, told, 'x'))[0]


def test_accelerations_above_those_that_moveit_plans_with_are_a_warning():
    robot = RobotSpec.load('ur5e')
    fine = {joint: Limits(velocity=0.1, acceleration=5.0) for joint in robot.joints}
    assert compare_accelerations(robot, fine, '/move_group').level == 'OK'
    slow = compare_accelerations(
        robot, fine | {'elbow_joint': Limits(acceleration=1.0)}, '/move_group'
    )
    assert slow.level == 'WARN' and slow.todo
    assert slow.found == 'above what /move_group plans with: elbow_joint 3.14159, there 1'


def test_a_robot_file_is_compared_with_its_model():
    robot = RobotSpec.load('ur5e')
    found = lines(checks.robot_file(robot))
    assert [line.split()[0] for line in found] == ['OK', 'OK']
    assert 'home of ur5e: the tool stands at [0.492, 0.133, 0.488], in its workspace' in found[1]
    limits = robot.to_dict()['joint_limits']
    limits['elbow_joint'] |= {'min_position': -180.0, 'max_position': 180.0}
    low = {'lower': [-0.5, -0.5, 0.0], 'upper': [0.5, 0.5, 0.4]}
    wrong = robot.replace(joint_limits=limits, workspace=low)
    found = lines(checks.robot_file(wrong))
    told = 'min_position -180, the arm has -3.14159; max_position 180, the arm has 3.14159'
    assert found[0].startswith(f'ERROR limits of elbow_joint: {told} (ur5e/ur5e.xml)')
    assert found[-1].startswith(
        'ERROR home of ur5e: the tool stands at [0.492, 0.133, 0.488], out'
    )
    (lost,) = lines(checks.robot_file(robot.replace(tool_site='nowhere')))
    assert lost.startswith('ERROR model of ur5e: ') and 'nowhere' in lost


def test_a_gripper_is_compared_with_its_own_limits():
    robot = RobotSpec.load('j2s7s300_hand@left_')
    joint = 'left_j2s7s300_joint_finger_1'
    assert not lines(checks.compare_gripper(robot, {}, 'x'))
    for limits, level in (((0.0, 1.51), 'OK'), ((0.5, 1.51), 'ERROR'), ((0.0, 1.3), 'ERROR')):
        (found,) = lines(checks.compare_gripper(robot, {joint: Limits(*limits)}, 'x'))
        assert found.startswith(f'{level} limits of {joint}: ')
    assert 'stands from 0.466 to 1.41 in our file, can from 0 to 1.3 (x)' in found
