from __future__ import annotations

import pytest

from robot_rl import resources
from robot_rl.errors import SpecError, UnknownName
from robot_rl.specs import Box, RobotSpec


def test_arrays_follow_the_order_of_joints(robot_data):
    robot_data['joints'].reverse()
    robot = RobotSpec.parse(robot_data)
    assert robot.joints == ('elbow', 'shoulder')
    assert robot.lower.tolist() == [-1.5, -2.0]
    assert robot.upper.tolist() == [1.0, 2.0]
    assert robot.max_velocity.tolist() == [2.0, 1.0]
    assert robot.home_position.tolist() == [0.5, 0.0]


def test_joints_are_found_by_name_among_others_and_missing_ones_are_told(robot_data):
    robot = RobotSpec.parse(robot_data)
    assert robot.indices(['finger', 'elbow', 'shoulder']) == [2, 1]
    with pytest.raises(SpecError, match=r"\['elbow'\] of robot planar are missing; found \['sh"):
        robot.indices(['shoulder', 'elbow_joint'])


def test_a_box_tells_which_points_lie_inside():
    box = Box(lower=(0, 0, 0), upper=(1, 2, 3))
    points = [[[0.5, 1, 1], [1, 2, 3]], [[-0.1, 1, 1], [0.5, 2.1, 1]]]
    assert box.contains(points).tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize('name', resources.names('config/robots'))
def test_every_robot_that_ships_is_valid(name):
    robot = RobotSpec.load(name)
    assert robot.name == name


def test_robots_are_loaded_by_name_or_path(tmp_path, robot_data):
    path = tmp_path / 'mine.yaml'
    path.write_text(RobotSpec.parse(robot_data).to_yaml())
    assert RobotSpec.load(str(path)).name == 'planar'
    with pytest.raises(UnknownName, match="unknown robot 'ur5'; did you mean 'ur5e'"):
        RobotSpec.load('ur5')


def test_a_name_with_a_prefix_is_the_same_arm_behind_another_driver(tmp_path, robot_data):
    left = RobotSpec.load('ur5e@left_')
    assert left.name == 'ur5e@left_' and left.joints == RobotSpec.load('ur5e').joints
    assert left.driver_joints[0] == 'left_shoulder_pan_joint'
    assert left.driver_frame == 'left_base_link' and left.model_base == 'base_link'
    with pytest.raises(
        SpecError, match=r"\['left_wrist_3_joint'\] of robot ur5e@left_ are missing"
    ):
        left.indices([*left.driver_joints[:5], 'wrist_3_joint'])
    path = tmp_path / 'arm@home.yaml'  # a file is a file, whatever its name
    path.write_text(RobotSpec.parse(robot_data).to_yaml())
    assert RobotSpec.load(str(path)).tf_prefix == ''
    assert RobotSpec.load(f'{path}@b/').driver_joints == ('b/shoulder', 'b/elbow')


@pytest.mark.parametrize(
    ('name', 'told'),
    [
        ('ur5e@', "robot 'ur5e@': a tf_prefix is needed after @, as in ur5e@left_"),
        ('ur5@left_', "unknown robot 'ur5'; did you mean 'ur5e'"),
    ],
)
def test_a_wrong_name_with_a_prefix_is_one_clear_line(name, told):
    with pytest.raises((SpecError, UnknownName), match=told):
        RobotSpec.load(name)


def test_model_names_follow_the_order_of_joints(robot_data):
    robot = RobotSpec.parse(robot_data)
    assert robot.model_joints == robot.joints and robot.model_base == 'base_link'
    robot = robot.replace(mjcf_joints={'elbow': 'j2'}, mjcf_base='pedestal', tf_prefix='a_')
    assert robot.model_joints == ('shoulder', 'j2') and robot.model_base == 'pedestal'


@pytest.mark.parametrize(
    ('changes', 'told'),
    [
        ({'mjcf_joints': {'wrist': 'j3'}}, r"mjcf_joints: \['wrist'\] not among joints"),
        ({'mjcf_joints': {'elbow': 'shoulder'}}, r"a name stands twice in \['shoulder', 'should"),
    ],
)
def test_model_names_that_cannot_be_are_told(robot_data, changes, told):
    with pytest.raises(SpecError, match=told) as caught:
        RobotSpec.parse(robot_data | changes)
    assert '\n' not in str(caught.value)


def test_a_bound_on_jerk_needs_one_on_acceleration(robot_data):
    limits = robot_data['joint_limits']['elbow']
    limits['max_jerk'] = 50.0
    for joint in robot_data['joint_limits'].values():
        with pytest.raises(SpecError, match='max_jerk needs max_acceleration, of all joints'):
            RobotSpec.parse(robot_data)
        joint['max_acceleration'] = 5.0
    assert RobotSpec.parse(robot_data).max_jerk[1] == 50.0


def test_a_message_is_about_an_arm_that_has_one_of_its_joints_or_no_names():
    left = RobotSpec.load('ur5e@left_')
    assert left.is_among(['finger', 'left_elbow_joint']) and left.is_among([])
    assert not left.is_among(['finger', 'elbow_joint', 'right_elbow_joint'])
