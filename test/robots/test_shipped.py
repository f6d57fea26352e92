"""The arms in config/robots against their models and against the makers' published numbers."""

from __future__ import annotations

import importlib.util
import math
import os

import mujoco
import numpy as np
import pytest

from robot_rl import resources
from robot_rl.robots.kinematics import KinematicChain
from robot_rl.robots.mjcf import load_model
from robot_rl.specs import RobotSpec

NAMES = resources.names('config/robots')
# Positions of joints of Kinova's j2s7s300 and j2n6s300 in their parents [m], with the angles about
# fixed x, y, z [rad], from the maker's description; the last is the end effector, or the wrist.
HALF = math.pi / 2
UP = ([0, 0, 0.15675], [0, math.pi, 0]), ([0, 0.0016, -0.11875], [-HALF, 0, math.pi])
JACOS = {
    'j2s7s300': (
        *UP,
        ([0, -0.205, 0], [-HALF, 0, 0]),
        ([0, 0, -0.205], [HALF, 0, math.pi]),
        ([0, 0.2073, -0.0114], [-HALF, 0, math.pi]),
        ([0, 0, -0.10375], [HALF, 0, math.pi]),
        ([0, 0.10375, 0], [-HALF, 0, math.pi]),
        ([0, 0, -0.16], [math.pi, 0, HALF]),
    ),
    'j2n6s300': (
        *UP,
        ([0, -0.41, 0], [0, math.pi, 0]),
        ([0, 0.2073, -0.0114], [-HALF, 0, math.pi]),
        ([0, -0.03703, -0.06414], [math.pi / 3, 0, math.pi]),
        ([0, -0.03703, -0.06414], [math.pi / 3, 0, math.pi]),
        ([0, 0, 0], [0, 0, 0]),
    ),
}


def at_hand(name: str) -> RobotSpec:
    """Return the robot, or skip where its model is not on this machine."""
    robot = RobotSpec.load(name)
    place, colon, _ = robot.mjcf.partition(':')
    known = 'ROBOT_RL_MENAGERIE' in os.environ  # the package would download it
    if colon and not (known if place == 'menagerie' else importlib.util.find_spec(place)):
        pytest.skip(f'{robot.mjcf} is not at hand')
    return robot


def turn(axis: int, angle: float) -> np.ndarray:
    """Return the rotation matrix about a coordinate axis."""
    a, b = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[[a, b], [a, b]] = np.cos(angle)
    matrix[a, b], matrix[b, a] = -np.sin(angle), np.sin(angle)
    return matrix


@pytest.mark.parametrize('name', NAMES)
def test_limits_lie_inside_those_of_the_model(name):
    robot = at_hand(name)
    model, ours = load_model(robot.mjcf), ':' not in robot.mjcf
    for joint, known in zip(robot.joints, robot.model_joints, strict=True):
        found, limits = model.joint(known), robot.joint_limits[joint]
        if model.jnt_limited[found.id]:
            assert found.range[0] - 1e-6 <= limits.min_position
            assert limits.max_position <= found.range[1] + 1e-6
        if ours:
            of_joints = model.actuator_trntype == mujoco.mjtTrn.mjTRN_JOINT
            servo = of_joints & (model.actuator_trnid[:, 0] == found.id)
            np.testing.assert_allclose(model.actuator_forcerange[servo, 1], [limits.max_effort])


@pytest.mark.parametrize('name', NAMES)
def test_at_home_the_arm_stands_inside_its_workspace(name):
    robot = at_hand(name)
    points = KinematicChain.from_spec(robot).points(robot.home_position)
    assert robot.workspace.contains(points[-1])
    assert points[:, 2].min() >= robot.workspace.lower[2]


@pytest.mark.parametrize('name', JACOS)
def test_forward_is_that_of_the_makers_description(name):
    robot = at_hand(name)
    chain = KinematicChain.from_spec(robot)
    for q in np.random.default_rng(0).uniform(-3, 3, (20, len(robot.joints))):
        place, pose = np.zeros(3), np.eye(3)
        for (offset, (x, y, z)), angle in zip(JACOS[name], [*q, 0.0], strict=True):
            place = place + pose @ offset
            pose = pose @ turn(2, z) @ turn(1, y) @ turn(0, x) @ turn(2, angle)
        np.testing.assert_allclose(chain.position(q), place, atol=1e-6)


def test_the_jaco_follows_its_servos_and_holds_against_gravity():
    robot = RobotSpec.load('j2s7s300')
    model = load_model(robot.mjcf)
    model.opt.timestep, model.opt.integrator = 0.002, mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    data = mujoco.MjData(model)
    command = data.qpos[:] = robot.home_position
    goal = robot.home_position + np.array([0.4, -0.3, 0.4, 0.4, -0.4, -0.4, 0.4])
    lag = 0.0
    for _ in range(1500):
        step = robot.max_velocity * model.opt.timestep
        command = command + np.clip(goal - command, -step, step)
        data.ctrl[:] = command
        mujoco.mj_step(model, data)
        lag = max(lag, np.abs((data.qpos - command) / robot.max_velocity).max())
    np.testing.assert_allclose(data.qpos, goal, atol=1e-3)
    assert lag < 0.08  # seconds behind


def in_frame(data: mujoco.MjData, place: np.ndarray, site: str) -> np.ndarray:
    """Return a place [..., 3] of the world as a site sees it."""
    frame = data.site(site)
    return (place - frame.xpos) @ frame.xmat.reshape(3, 3)


def gripping(name: str, width: float) -> tuple[RobotSpec, mujoco.MjModel, mujoco.MjData]:
    """Return an arm at home whose gripper is so far open [m]: all its joints alike."""
    robot = RobotSpec.load(name)
    model = load_model(robot.mjcf)
    data = mujoco.MjData(model)
    data.qpos[:] = robot.gripper.position(width)
    data.qpos[: len(robot.joints)] = robot.home_position
    mujoco.mj_forward(model, data)
    return robot, model, data


def corners(model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
    """Return the corners [k, 3] of all boxes on bodies that are called finger."""
    signs = np.stack(np.meshgrid(*[[-1, 1]] * 3), axis=-1).reshape(-1, 3)
    boxes = [
        geom
        for geom in range(model.ngeom)
        if 'finger' in model.body(model.geom_bodyid[geom]).name
        and model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_BOX
    ]
    return np.concatenate(
        [
            data.geom_xpos[g] + signs * model.geom_size[g] @ data.geom_xmat[g].reshape(3, 3).T
            for g in boxes
        ]
    )


@pytest.mark.parametrize('name', ['ur5e_gripper', 'j2s7s300_hand'])
def test_the_tip_is_as_far_beyond_the_tool_as_the_fingers_at_most(name):
    beyond = []
    for width in np.linspace(0.0, 0.08, 9):
        robot, model, data = gripping(name, width)
        beyond.append(in_frame(data, corners(model, data), robot.tool_site)[:, 2].max())
    assert max(beyond) == pytest.approx(robot.tip.reach, abs=5e-4)


def test_the_width_of_the_jaco_s_hand_is_that_between_the_middles_of_its_pads():
    for width in np.linspace(0.0, 0.12, 13):
        robot, model, data = gripping('j2s7s300_hand', width)
        pads = [model.geom(f'hand/finger_{k}').id for k in (1, 2, 3)]
        inner = np.stack(
            [
                data.geom_xpos[p] + data.geom_xmat[p].reshape(3, 3)[:, 1] * model.geom_size[p, 1]
                for p in pads
            ]
        )
        one, two, three = in_frame(data, inner, robot.tool_site)[:, 0]
        assert one - (two + three) / 2 == pytest.approx(width, abs=2.5e-3)
        assert (one + (two + three) / 2) / 2 == pytest.approx(0.0, abs=5e-4)


def test_the_jaco_s_fingers_are_mounted_as_those_of_dm_control():
    """Its hand's frame is that of the arm's last link."""
    pytest.importorskip('dm_control')
    ours = load_model('j2s7s300/j2s7s300_hand.xml')
    theirs = load_model('dm_control:third_party/kinova/jaco_hand.xml')
    for finger in ('finger_1', 'finger_2', 'finger_3'):
        found, expected = ours.body(f'hand/{finger}'), theirs.body(f'b_{finger}')
        np.testing.assert_allclose(found.pos, expected.pos, atol=1e-5)
        np.testing.assert_allclose(found.quat, expected.quat, atol=1e-5)
        mass = expected.mass + theirs.body(f'b_{finger.replace("_", "_tip_")}').mass
        np.testing.assert_allclose(found.mass, mass, atol=1e-4)
