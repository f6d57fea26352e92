"""A model as MuJoCo Menagerie has them, from its folder to forward kinematics."""

from __future__ import annotations

import struct

import mujoco
import numpy as np
import pytest

from robot_rl.errors import SpecError
from robot_rl.robots.kinematics import KinematicChain
from robot_rl.robots.mjcf import load_model
from robot_rl.sim.scene import ArmIndex
from robot_rl.specs import RobotSpec

ARM = """
<mujoco model="arm">
  <compiler angle="radian" meshdir="assets" autolimits="true"/>
  <default>
    <default class="arm">
      <joint axis="0 0 1" range="-2 2" damping="1" armature="0.1"/>
      <general gaintype="fixed" biastype="affine" gainprm="200" biasprm="0 -200 -20"/>
      <default class="visual"><geom type="mesh" contype="0" conaffinity="0" group="2"/></default>
      <default class="collision"><geom type="mesh" group="3"/></default>
    </default>
  </default>
  <asset><mesh file="link.stl"/></asset>
  <worldbody>
    <body name="base" childclass="arm">
      <geom class="visual" mesh="link"/>
      <body name="link1" pos="0 0 0.3" quat="1 -1 0 0">
        <joint name="j1"/><geom class="visual" mesh="link"/><geom class="collision" mesh="link"/>
        <body name="link2" pos="0.1 -0.2 0.05" quat="1 0 1 0.3">
          <joint name="j2" pos="0.01 0 0"/><geom class="visual" mesh="link"/>
          <body name="hand" pos="0 0.1 0.2" quat="0.9 0.1 0 -0.2">
            <geom class="visual" mesh="link"/>
            <site name="attachment_site" pos="0 0 0.1" quat="1 1 0 0"/>
            <body name="finger"><joint name="grip" type="slide" range="0 0.04"/>
              <geom size="0.01"/></body>
          </body>
        </body>
      </body>
    </body>
  </worldbody>
  <actuator>
    <general class="arm" name="first" joint="j1"/><general class="arm" name="second" joint="j2"/>
  </actuator>
  <keyframe><key name="home" qpos="0.5 -0.4 0" ctrl="0.5 -0.4"/></keyframe>
</mujoco>
"""
SCENE = """
<mujoco model="arm scene">
  <include file="arm.xml"/>
  <worldbody>
    <geom name="floor" type="plane" size="0 0 0.05"/><body name="target" mocap="true"/>
  </worldbody>
</mujoco>
"""
# Of a tetrahedron, each facet as its normal (which readers compute anew) and three corners [m].
CORNERS = np.array([[0, 0, 0], [0.05, 0, 0], [0, 0.05, 0], [0, 0, 0.05]])
FACETS = ((0, 2, 1), (0, 1, 3), (0, 3, 2), (1, 2, 3))


@pytest.fixture
def robot(tmp_path, monkeypatch) -> RobotSpec:
    folder = tmp_path / 'maker_arm'
    (folder / 'assets').mkdir(parents=True)
    stl = b'tetrahedron'.ljust(80) + struct.pack('<I', len(FACETS))
    for facet in FACETS:
        stl += struct.pack('<12fH', 0, 0, 0, *CORNERS[list(facet)].ravel(), 0)
    (folder / 'assets' / 'link.stl').write_bytes(stl)
    (folder / 'arm.xml').write_text(ARM)
    (folder / 'scene.xml').write_text(SCENE)
    monkeypatch.setenv('ROBOT_RL_MENAGERIE', str(tmp_path))
    limits = {'min_position': -1.5, 'max_position': 3.0, 'max_velocity': 1.0}
    return RobotSpec.parse(
        {
            'name': 'arm',
            'joints': ['elbow', 'shoulder'],
            'joint_limits': {'elbow': limits, 'shoulder': limits},
            'home': {'elbow': -0.4, 'shoulder': 0.5},
            'workspace': {'lower': [-1, -1, -1], 'upper': [1, 1, 1]},
            'mjcf': 'menagerie:maker_arm/arm.xml',
            'mjcf_joints': {'shoulder': 'j1', 'elbow': 'j2'},
            'mjcf_base': 'base',
            'tool_site': 'attachment_site',
        }
    )


@pytest.mark.parametrize('file', ['arm.xml', 'scene.xml'])
@pytest.mark.parametrize('tool', ['attachment_site', 'hand'])
@pytest.mark.parametrize('base', ['base', 'world', 'link1'])
def test_forward_kinematics_are_mujocos_for_a_site_and_for_a_body(robot, file, tool, base):
    joints = {'j1': 'shoulder', 'j2': 'elbow'}
    if base == 'link1':  # the chain begins above the first joint
        joints.pop('j1')
    names = [joint for joint in robot.joints if joint in joints.values()]
    robot = robot.replace(
        mjcf=f'menagerie:maker_arm/{file}',
        mjcf_base=base,
        tool_site=tool,
        joints=names,
        mjcf_joints={driver: known for known, driver in joints.items()},
        joint_limits={name: robot.joint_limits[name].to_dict() for name in names},
        home={name: robot.home[name] for name in names},
    )
    chain = KinematicChain.from_spec(robot)
    assert chain.joints == robot.joints
    # The narrower of the model's limits and the arm's.
    assert (chain.lower == -1.5).all() and (chain.upper == 2.0).all()
    model = load_model(robot.mjcf)
    data = mujoco.MjData(model)
    for q in np.random.default_rng(0).uniform(-1.5, 2, (10, len(names))):
        for known, value in zip(robot.model_joints, q, strict=True):
            data.joint(known).qpos[0] = value
        mujoco.mj_kinematics(model, data)
        root = data.body(base)
        element = data.site(tool) if tool == 'attachment_site' else data.body(tool)
        frame = root.xmat.reshape(3, 3).T
        np.testing.assert_allclose(
            chain.position(q), frame @ (element.xpos - root.xpos), atol=1e-12
        )
        matrix = np.empty(9)
        mujoco.mju_quat2Mat(matrix, chain.forward(q)[1])
        np.testing.assert_allclose(
            matrix.reshape(3, 3), frame @ element.xmat.reshape(3, 3), atol=1e-12
        )


def test_its_scene_is_simulated_by_the_arms_names(robot):
    model = load_model('menagerie:maker_arm/scene.xml')
    arm = ArmIndex.of(model, robot.model_joints)
    home = model.key('home')
    np.testing.assert_array_equal(home.qpos[arm.qpos], robot.home_position)
    np.testing.assert_array_equal(home.ctrl[arm.actuators.ctrl], robot.home_position)


@pytest.mark.parametrize(
    ('changes', 'told'),
    [
        ({'mjcf': 'menagerie:maker_arm/leg.xml'}, r'no such file: .*leg\.xml'),
        ({'mjcf_joints': {}}, r"joints \['elbow', 'shoulder'\] are not .* which are \['j1', 'j2'"),
        ({'mjcf_base': None}, "no body 'base_link'; it has .*'base'"),
        ({'tool_site': 'flange'}, r"no site 'flange' .* sites \['attachment_site'\] and bodies"),
        ({'mjcf_base': 'finger'}, "tool 'attachment_site' does not hang below 'finger'"),
    ],
)
def test_what_does_not_fit_the_model_is_one_clear_line(robot, changes, told):
    with pytest.raises(SpecError, match=told) as caught:
        KinematicChain.from_spec(robot.replace(**changes))
    assert '\n' not in str(caught.value)


def test_a_missing_mesh_is_one_clear_line(robot, tmp_path):
    (tmp_path / 'maker_arm' / 'assets' / 'link.stl').unlink()
    with pytest.raises(SpecError, match=r'arm\.xml: MuJoCo cannot read it .*link\.stl') as caught:
        KinematicChain.from_spec(robot)
    assert '\n' not in str(caught.value)
