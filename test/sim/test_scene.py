from __future__ import annotations

import mujoco
import numpy as np
import pytest

from robot_rl.errors import SpecError
from robot_rl.sim.scene import ArmIndex, Bodies, extent

SCENE = """
<mujoco><worldbody>
  <body name="cart"><joint name="rail" type="slide"/><geom size=".1"/>
    <body><joint name="a"/><geom size=".1"/><body><joint name="b"/><geom size=".1"/></body></body>
  </body>
  <body name="target" {target}/>
</worldbody><actuator>{actuators}</actuator></mujoco>
"""
SERVOS = """
  <motor name="a" joint="rail"/>
  <position name="second" joint="b" kp="5" kv="1"/><position name="first" joint="a" kp="7"/>
"""


def scene(actuators=SERVOS, target='mocap="true"'):
    xml = SCENE.format(actuators=actuators, target=target)
    return mujoco.MjModel.from_xml_string(xml)


def test_servos_are_found_by_the_joint_they_move_whatever_their_names():
    arm = ArmIndex.of(scene(), ('b', 'a'))
    np.testing.assert_array_equal(arm.qpos, [2, 1])
    np.testing.assert_array_equal(arm.qvel, [2, 1])
    np.testing.assert_array_equal(arm.actuators.ctrl, [1, 2])
    assert Bodies.of(scene(), ['target_pose']).marks == {'target_pose': 0}


@pytest.mark.parametrize(
    ('actuators', 'found'),
    [
        ('<intvelocity joint="a" kp="3" actrange="-1 1"/>', '1 actuators, 0 of them'),
        ('<position joint="a"/><position joint="a"/>', '2 actuators, 2 of them'),
        ('<position joint="a"/><damper joint="a" kv="1" ctrlrange="0 1"/>', '2 actuators, 1 of'),
    ],
)
def test_a_joint_with_another_actuator_or_several_is_told(actuators, found):
    with pytest.raises(SpecError, match=f"joint 'a' of the scene has {found}"):
        ArmIndex.of(scene(actuators), ('a',))


def test_what_the_scene_lacks_is_one_clear_line():
    with pytest.raises(SpecError, match=r"no joint 'c'; it has \['rail', 'a', 'b'\]"):
        ArmIndex.of(scene(), ('a', 'c'))
    with pytest.raises(SpecError, match="needs a mocap body 'target'"):
        Bodies.of(scene(target=''), ['target_pose'])


KINDS = """
  <position joint="a" kp="50" kv="2" gear="3"/>
  <general joint="b" gaintype="fixed" biastype="affine" gainprm="0.5" biasprm="4 -60 -7" gear="2"/>
"""
FORCES = '<motor joint="a" gear="-5"/><velocity joint="b" kv="3" gear="2"/>'


def test_a_task_is_learned_with_servos_alone():
    ArmIndex.of(scene(KINDS), ('a', 'b')).require_servos(scene(KINDS))
    arm = ArmIndex.of(scene(FORCES), ('a', 'b'))
    assert not arm.actuators.servo.any()
    with pytest.raises(SpecError, match="joint 'a' of the scene is moved by force"):
        arm.require_servos(scene(FORCES))


def joint_forces(model, ctrl):
    """MuJoCo's own forces on joints a and b, at a pose and in motion."""
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = [0.0, 0.3, -0.4], [0.0, 0.2, -0.1]
    data.ctrl[:] = ctrl
    mujoco.mj_forward(model, data)
    return data.qfrc_actuator[1:]


def test_servos_pull_nowhere_from_where_they_are_told_to_be_whatever_gear_and_gain():
    model = scene(KINDS)
    actuators = ArmIndex.of(model, ('a', 'b')).actuators
    assert actuators.servo.all()
    here = np.array([0.3, -0.4])
    # What is left at the very place is the damping, and the stiffness is MuJoCo's.
    damping = np.array([2 * 3**2 * -0.2, 7 * 2**2 * 0.1])
    np.testing.assert_allclose(joint_forces(model, actuators.towards(here)), damping)
    pulled = joint_forces(model, actuators.towards(here + 0.01)) - damping
    np.testing.assert_allclose(pulled, 0.01 * actuators.stiffness)
    np.testing.assert_allclose(actuators.stiffness, [50 * 9, 60 * 4])


def test_a_force_is_what_motors_and_velocity_actuators_are_told_for_it():
    model = scene(FORCES)
    actuators = ArmIndex.of(model, ('a', 'b')).actuators
    ctrl = actuators.pushing(np.array([7.0, -3.0]), np.array([0.3, -0.4]), np.array([0.2, -0.1]))
    np.testing.assert_allclose(joint_forces(model, ctrl), [7.0, -3.0])


def test_the_extent_of_a_body_is_that_of_what_can_be_touched():
    model = mujoco.MjModel.from_xml_string(
        '<mujoco><worldbody><body name="thing" pos="9 8 7" euler="30 0 0">'
        '<geom type="box" size="0.1 0.2 0.3" pos="0.5 0 0" euler="0 0 90"/>'
        '<geom type="box" size="0.05 0.05 0.05" pos="-0.2 0 0"/>'
        '<geom type="sphere" size="2" contype="0" conaffinity="0"/></body>'
        '<body name="ball"><geom type="sphere" size="0.1"/></body><body name="none"/>'
        '</worldbody></mujoco>'
    )
    # x: from -0.25 to 0.7; y: the box's 0.1, turned; z: 0.3.
    np.testing.assert_allclose(extent(model, 'thing'), [0.95, 0.2, 0.6], atol=1e-6)
    assert extent(model, 'ball') is None and extent(model, 'none') is None
