from __future__ import annotations

import mujoco
import numpy as np
import pytest

from robot_rl.errors import SpecError
from robot_rl.sim.scene import ArmIndex

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
    np.testing.assert_array_equal(arm.ctrl, [1, 2])
    assert arm.marker == 0


@pytest.mark.parametrize(
    ('actuators', 'found'),
    [
        ('<motor joint="a"/>', 0),
        ('<velocity joint="a" kv="3"/>', 0),
        ('<position joint="a"/><position joint="a"/>', 2),
    ],
)
def test_a_joint_without_one_position_actuator_is_told(actuators, found):
    with pytest.raises(SpecError, match=f"joint 'a' of the scene has {found} position actuators"):
        ArmIndex.of(scene(actuators), ('a',))


def test_what_the_scene_lacks_is_one_clear_line():
    with pytest.raises(SpecError, match=r"no joint 'c'; it has \['rail', 'a', 'b'\]"):
        ArmIndex.of(scene(), ('a', 'c'))
    with pytest.raises(SpecError, match="needs a mocap body 'target'"):
        ArmIndex.of(scene(target=''), ('a', 'b'))
