"""The twin of an arm that has no task: of any MJCF, with the actuators that it has."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from robot_rl.errors import ContractMismatch, SpecError
from robot_rl.robots.kinematics import KinematicChain
from robot_rl.sim.twin import AtHome, Twin
from robot_rl.specs import RobotSpec

MODELS = ['arm', 'scene', 'motors']


@pytest.fixture
def twin(maker_arm):
    return lambda model='arm', **changes: Twin(AtHome(RobotSpec.load(maker_arm(model, **changes))))


# A servo of Menagerie gives way to gravity, by its torque over kp; computed torque does not.
@pytest.mark.parametrize(
    ('model', 'tolerance'), [('arm', 5e-3), ('scene', 5e-3), ('motors', 1e-6)]
)
def test_an_arm_without_a_task_is_held_at_home(twin, model, tolerance):
    arm = twin(model)
    assert not arm.poses and arm.has_gripper
    for _ in range(300):
        arm.advance(0.01)
    np.testing.assert_allclose(arm.joint_position, arm.robot.home_position, atol=tolerance)
    np.testing.assert_allclose(arm.joint_velocity, 0.0, atol=1e-3)
    assert arm.time == pytest.approx(3.0)
    site = arm.data.site('attachment_site').xpos - arm.data.body('base').xpos
    chain = KinematicChain.from_spec(arm.robot)
    np.testing.assert_allclose(chain.position(arm.joint_position), site, atol=1e-9)


def test_servos_give_way_to_gravity_by_what_their_stiffness_says(twin):
    arm = twin('arm')
    arm.advance(5.0)
    static = mujoco.MjData(arm.model)
    static.qpos[:] = arm.data.qpos
    mujoco.mj_inverse(arm.model, static)  # the torques that hold it, for zero acceleration
    held = static.qfrc_inverse[:4] / [2000, 2000, 2000, 500]
    np.testing.assert_allclose(arm.command - arm.joint_position, held, atol=1e-6)


@pytest.mark.parametrize('model', MODELS)
def test_it_rests_where_it_is_put_and_moves_where_it_is_told(twin, model):
    arm = twin(model)
    pose = np.array([-0.4, 0.7, 1.0, -0.3])
    arm.rest_at(pose)
    arm.advance(2.0)
    np.testing.assert_allclose(arm.joint_position, pose, atol=1e-6)
    way = np.array([0.3, -0.2, 0.1, 0.4])
    arm.set_command(arm.command + way)
    arm.advance(2.0)
    moved = arm.joint_position - pose
    np.testing.assert_allclose(moved, way, atol=1e-6 if model == 'motors' else 3e-3)


def test_motors_follow_as_a_critically_damped_spring_would(twin):
    """Alone in its axis and without damping the waist is a linear system with a known answer."""
    arm = twin('motors')
    arm.model.dof_damping[:4] = 0.0
    times, moved = 0.002 * np.arange(1, 101), []
    arm.set_command(arm.robot.home_position + np.array([0.01, 0, 0, 0]))
    for _ in times:
        arm.advance(0.002)
        moved.append(arm.joint_position[0] - arm.robot.home_position[0])
    exact = 0.01 * (1 - (1 + 60 * times) * np.exp(-60 * times))
    np.testing.assert_allclose(moved, exact, atol=4e-4)


def test_the_grippers_joints_are_the_robots_and_the_doors_are_not(twin):
    arm = twin('scene')
    assert arm.other_joints == ('jaw', 'finger_joint2')
    assert twin('scene', tf_prefix='left_').other_joints == ('left_jaw', 'left_finger_joint2')
    for width in (0.08, 0.03, 0.0):
        arm.set_gripper(width)
        arm.advance(4.0)
        np.testing.assert_allclose(arm.other_position, width / 2, atol=1e-4)
    with pytest.raises(ContractMismatch, match=r'width from 0 to 0\.08 m is needed, found 0\.1'):
        arm.set_gripper(0.1)
    with pytest.raises(ContractMismatch, match='has no gripper'):
        twin('arm', gripper=None, mjcf_joints=JOINTS).set_gripper(0.0)


JOINTS = {'waist': 'joint1', 'shoulder': 'joint2', 'elbow': 'joint3', 'wrist': 'joint4'}


def test_a_gripper_that_the_model_lacks_is_no_obstacle_and_a_passive_one_is_told(twin):
    jaw = {'joint': 'hand_joint', 'open_width': 0.1, 'topic': 'g'}
    assert not twin('arm', gripper=jaw, mjcf_joints=JOINTS).has_gripper
    with pytest.raises(
        SpecError, match=r"joint 'joint1' .* needs a range and a position actuator"
    ):
        twin('motors', gripper=jaw | {'joint': 'joint1'}, mjcf_joints=JOINTS)


def test_a_tool_that_the_model_lacks_is_told_with_what_there_is(twin):
    told = r"no site 'flange' and no body of that name; it has sites \[.*attachment_site.* bodies "
    with pytest.raises(SpecError, match=told):
        twin(tool_site='flange')


def test_a_push_is_a_force_for_a_time(twin):
    """Free of its servos and of gravity the arm gains just the momentum that the push gives."""
    arm = twin('motors')
    arm.model.opt.gravity[:] = 0
    arm.model.actuator_gainprm[:] = 0
    arm.model.actuator_biasprm[:] = 0
    arm.model.dof_damping[:] = 0
    arm.push([0, 0, 0], [0, 0, 3.0], 0.05)
    before = arm.data.qpos.copy()
    arm.advance(0.02)
    arm.advance(0.08)
    # About the vertical axis of the waist the angular momentum is torque times time.
    momentum = np.empty(arm.model.nv)
    mujoco.mj_forward(arm.model, arm.data)
    mujoco.mj_mulM(arm.model, arm.data, momentum, arm.data.qvel)
    assert momentum[0] == pytest.approx(3.0 * 0.05, rel=1e-3)
    assert (arm.data.xfrc_applied == 0).all() and (arm.data.qpos != before).any()
    arm.push([100, 0, 0], [0, 0, 0], 1.0)
    arm.reset(0)
    arm.advance(0.1)
    assert (arm.data.xfrc_applied == 0).all()


def test_an_arm_without_actuators_is_held_by_torques_within_its_efforts():
    pytest.importorskip('dm_control', reason='it brings the model')
    arm = Twin(AtHome(RobotSpec.load('j2n6s300')))
    home = arm.robot.home_position
    for step in (0.0, 0.2):
        arm.set_command(home + step)
        arm.advance(3.0)
        np.testing.assert_allclose(arm.joint_position, home + step, atol=1e-3)
    efforts = np.array([arm.robot.joint_limits[joint].max_effort for joint in arm.robot.joints])
    arm.set_command(home + 3.0)
    arm.advance(0.01)
    dofs = [arm.model.joint(joint).dofadr[0] for joint in arm.robot.model_joints]
    applied = np.abs(arm.data.qfrc_applied[dofs])
    np.testing.assert_allclose(applied.max() / efforts[applied.argmax()], 1.0)
    assert (applied <= efforts).all()
