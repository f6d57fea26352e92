"""Jog against independent computations: MuJoCo's Jacobian, brute force over a path, plain sums."""

from __future__ import annotations

from types import SimpleNamespace

import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_rl.control.jog import TOP_SHARE, Jog, JogConfig, Wish
from robot_rl.errors import RobotRLError
from robot_rl.robots.kinematics import KinematicChain
from robot_rl.robots.mjcf import load_model
from robot_rl.specs import RobotSpec

DT = 0.02
UR5E, GRIPPING = RobotSpec.load('ur5e'), RobotSpec.load('ur5e_gripper')
CHAIN = KinematicChain.from_spec(UR5E)
# Off home's singular-free pose a little, so that no axis is special.
POSE = UR5E.home_position + np.array([0.3, 0.1, -0.2, 0.15, 0.2, 0.4])


def jog(robot=UR5E, chain=CHAIN, **config) -> Jog:
    return Jog(robot, chain, JogConfig(**config))


def hold(one: Jog, wish: Wish, start: np.ndarray, seconds: float, width=None) -> np.ndarray:
    """Hold a wish; the arm is where it was told a tick before. Return the targets [T, n]."""
    at, path = start, []
    for tick in range(round(seconds / DT) + 1):
        at = one.tick(tick * DT, wish, at, width).positions
        path.append(at)
    return np.array(path)


def axis(index: int, size: int = 6, share: float = 1.0) -> np.ndarray:
    return share * np.eye(size)[index]


def test_a_joint_goes_at_its_share_of_its_limit_and_the_others_stand():
    path = hold(jog(speed_scale=0.5), Wish(True, joints=axis(2, share=-0.5)), POSE, 1.0)
    wanted = -0.5 * 0.5 * 0.25 * UR5E.max_velocity[2] * DT * np.arange(51)
    np.testing.assert_allclose(path[:, 2], POSE[2] + wanted, atol=1e-9)
    others = [0, 1, 3, 4, 5]
    np.testing.assert_array_equal(path[:, others], np.tile(POSE[others], (51, 1)))


def test_the_speed_scale_is_changed_while_it_runs():
    one, at = jog(), POSE
    wish = Wish(True, joints=axis(0))
    first = one.tick(0.0, wish, at).positions
    fast = one.tick(DT, wish, first).positions - first
    one.config = one.config.replace(speed_scale=0.1)
    slow = one.tick(2 * DT, wish, first + fast).positions - first - fast
    np.testing.assert_allclose(slow, 0.1 * fast, atol=1e-12)


@pytest.mark.parametrize('frame', ['base', 'tool'])
@pytest.mark.parametrize('index', range(6))
def test_a_twist_leads_the_tool_straight_in_its_frame(frame, index):
    path = hold(jog(), Wish(True, twist=axis(index), frame=frame), POSE, 0.4)
    model = load_model(UR5E.mjcf)
    data = mujoco.MjData(model)
    site = model.site(UR5E.tool_site).id
    base = model.body(UR5E.model_base).id

    def pose(q):
        data.qpos[:6] = q
        mujoco.mj_kinematics(model, data)
        home = data.xmat[base].reshape(3, 3)
        place = home.T @ (data.site_xpos[site] - data.xpos[base])
        return place, home.T @ data.site_xmat[site].reshape(3, 3)

    (begin, turned), (end, turned_after) = pose(path[0]), pose(path[-1])
    direction = np.eye(3)[index % 3]
    direction = turned @ direction if frame == 'tool' else direction
    rotation = turned_after @ turned.T
    cross = rotation - rotation.T
    angle = np.arctan2(
        np.linalg.norm([cross[2, 1], cross[0, 2], cross[1, 0]]), np.trace(rotation) - 1
    )
    if index < 3:
        np.testing.assert_allclose(end - begin, direction * 0.25 * 0.4, atol=1e-4)
        assert angle < 1e-4
    else:
        np.testing.assert_allclose(end, begin, atol=2e-4)
        turn = np.array([cross[2, 1], cross[0, 2], cross[1, 0]]) / (2 * np.sin(angle))
        np.testing.assert_allclose(turn * angle, direction * 0.8 * 0.4, atol=1e-3)


SINGULAR_WAYS = {
    'the arm stretches': ([0.0, -0.6, 0.5, -1.2, -1.57, 0.0], axis(0)),
    'axes of wrist 1 and 3 fall in line': ([0.0, -1.57, 1.57, -1.57, -0.3, 0.0], axis(1)),
    'the wrist comes over the shoulder': ([0.0, -1.2, -0.9, 0.6, 1.57, 0.0], axis(1, share=-1)),
    'forwards from home': ([0.0, -1.57, 1.57, -1.57, -1.57, 0.0], axis(0)),
}
WIDE = UR5E.replace(workspace={'lower': (-2, -2, -2), 'upper': (2, 2, 2)})


def smallest_singular_value(q: np.ndarray) -> tuple[float, np.ndarray]:
    """Return it, and where the tool is [3], by MuJoCo."""
    model = load_model(UR5E.mjcf)
    data, jacobian = mujoco.MjData(model), np.zeros((6, model.nv))
    data.qpos[:6] = q
    mujoco.mj_forward(model, data)
    site = model.site(UR5E.tool_site).id
    mujoco.mj_jacSite(model, data, jacobian[:3], jacobian[3:], site)
    return np.linalg.svd(jacobian[:, :6], compute_uv=False)[-1], data.site_xpos[site].copy()


@pytest.mark.parametrize('way', SINGULAR_WAYS)
def test_before_a_singular_pose_the_tool_stops_on_its_line_and_comes_back(way):
    pose, twist = SINGULAR_WAYS[way]
    one = jog(WIDE)
    there = hold(one, Wish(True, twist=twist), np.array(pose), 4.0)
    one.tick(9.0, Wish(), there[-1])
    back = hold(one, Wish(True, twist=-twist), there[-1], 4.0)
    speeds = np.abs(np.diff(np.concatenate([there, back[1:]]), axis=0)) / DT
    assert (speeds <= TOP_SHARE * UR5E.max_velocity + 1e-9).all()
    values, places = zip(*map(smallest_singular_value, there[::10]), strict=True)
    assert 0.0199 < values[-1] == min(values) < 0.03
    # On the line that was asked for (in the base's frame, that is turned about the world's z).
    ways = np.array(places) - places[0]
    line = ways[-1] / np.linalg.norm(ways[-1])
    assert np.linalg.norm(ways - np.outer(ways @ line, line), axis=1).max() < 5e-4
    assert abs(line[2]) < 0.02
    assert np.linalg.norm(smallest_singular_value(back[-1])[1] - places[-1]) > 0.3


FIVE_JOINTS = """
<mujoco><worldbody><body name="b0"><joint name="j0" axis="0 0 1"/><geom size=".01"/>
<body name="b1"><joint name="j1" axis="0 1 0"/><geom size=".01"/>
<body name="b2" pos=".35 0 0"><joint name="j2" axis="0 1 0"/><geom size=".01"/>
<body name="b3" pos=".35 0 0"><joint name="j3" axis="0 1 0"/><geom size=".01"/>
<body name="b4" pos=".1 0 0"><joint name="j4" axis="1 0 0"/><geom size=".01"/>
<site name="tool"/></body></body></body></body></body></worldbody></mujoco>
"""


def test_an_arm_of_five_joints_stops_before_a_singular_pose_too():
    """It was slowed by the way that no joint leads, not by the one that is about to be lost."""
    model = mujoco.MjModel.from_xml_string(FIVE_JOINTS)
    data, jacobian = mujoco.MjData(model), np.zeros((6, 5))
    names = [f'j{index}' for index in range(5)]
    arm = SimpleNamespace(
        joints=names, max_velocity=np.full(5, 4.0), workspace=None, gripper=None,
        lower=np.full(5, -3.0), upper=np.full(5, 3.0),
    )  # fmt: skip
    one = jog(arm, KinematicChain.from_model(model, names, 'tool'))
    pose = np.array([0.0, -0.9, 1.6, -0.7, 0.0])  # the tool lies along x
    path = hold(one, Wish(True, twist=axis(0)), pose, 4.0)
    values, places = [], []
    for data.qpos[:] in path[::5]:
        mujoco.mj_forward(model, data)
        mujoco.mj_jacSite(model, data, jacobian[:3], jacobian[3:], 0)
        values.append(np.linalg.svd(jacobian, compute_uv=False)[-1])
        places.append(data.site_xpos[0].copy())
    assert 0.0199 < values[-1] == min(values) < 0.03 < values[0]
    np.testing.assert_allclose(np.array(places)[:, 1:], places[0][1:] + np.zeros((len(places), 2)),
                               atol=1e-3)  # fmt: skip


def test_from_a_singular_pose_no_joint_is_faster_than_its_bound():
    pose = np.array([0.0, -1.57, 1.57, -1.57, 0.0, 0.0])
    assert smallest_singular_value(pose)[0] < 1e-3
    for index in range(6):
        path = hold(jog(WIDE), Wish(True, twist=axis(index)), pose, 1.0)
        speeds = np.abs(np.diff(path, axis=0)) / DT
        assert (speeds <= TOP_SHARE * UR5E.max_velocity + 1e-9).all()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1, 1), min_size=6, max_size=6),
    st.sampled_from(['joints', 'twist']),
    st.lists(st.floats(-3.1, 3.1), min_size=6, max_size=6),
    st.floats(0.0, 3.0),
)
def test_limits_and_speeds_are_kept_whatever_is_asked(shares, kind, pose, late):
    wish = Wish(True, **{kind: np.array(shares)})
    one, at, path = jog(), np.array(pose), []
    for now in np.cumsum([DT] * 20 + [late] + [DT] * 20):
        at = one.tick(now, wish, at).positions
        path.append(at)
    path = np.array(path)
    assert (path >= UR5E.lower - 1e-12).all() and (path <= UR5E.upper + 1e-12).all()
    steps = np.abs(np.diff(path, axis=0)).max(axis=1)
    allowed = np.full(len(steps), TOP_SHARE * np.pi * DT)
    allowed[19] = max(min(late, 0.1), DT) * TOP_SHARE * np.pi
    assert (steps <= allowed + 1e-9).all()


def test_a_joint_slows_down_before_its_limit_and_goes_back_at_full_speed():
    near = POSE.copy()
    near[2] = UR5E.upper[2] - 0.3
    one = jog()
    path = hold(one, Wish(True, joints=axis(2)), near, 3.0)
    speed = np.diff(path[:, 2]) / DT
    assert path[-1, 2] < UR5E.upper[2] and UR5E.upper[2] - path[-1, 2] < 0.003
    assert speed[0] == pytest.approx(0.25 * np.pi, rel=0.05)
    assert (np.diff(speed) <= 1e-9).all() and speed[-1] < 0.01
    back = one.tick(3.02, Wish(True, joints=axis(2, share=-1)), path[-1]).positions
    assert (back - path[-1])[2] == pytest.approx(-0.25 * np.pi * DT, rel=1e-6)


def test_nothing_is_led_while_the_switch_is_not_held_or_the_arm_is_unknown():
    one, twist = jog(), axis(0)
    assert one.tick(0.0, Wish(False, twist=twist), POSE) == (None, None)
    assert one.tick(0.1, Wish(True, twist=twist), None) == (None, None)
    assert one.tick(0.2, Wish(True, twist=np.full(6, np.nan)), POSE) == (None, None)
    # It begins where the arm is now, not where it was led to when it was let go.
    hold(one, Wish(True, twist=twist), POSE, 0.5)
    assert one.tick(0.6, Wish(False), POSE).positions is None
    begun = one.tick(0.7, Wish(True, twist=twist), POSE + 0.2).positions
    np.testing.assert_array_equal(begun, POSE + 0.2)


def test_a_held_switch_without_a_wish_keeps_the_arm_where_it_is_told():
    path = hold(jog(), Wish(True), POSE, 0.2)
    np.testing.assert_array_equal(path, np.tile(POSE, (11, 1)))


def test_what_holds_the_arm_back_leaves_nothing_to_be_caught_up_with():
    one, wish = jog(), Wish(True, joints=axis(0))
    for tick in range(200):
        target = one.tick(tick * DT, wish, POSE).positions  # the arm does not move
    ahead = target[0] - POSE[0]
    assert 0.01 < ahead <= 0.25 * TOP_SHARE * np.pi + 1e-9


def test_a_leader_leads_only_once_it_is_near_and_never_by_a_jump():
    one, leader = jog(), POSE.copy()
    leader[2] += 0.42
    assert one.tick(0.0, Wish(True, positions=leader), POSE).positions is None
    assert 'elbow_joint is 0.42 away' in one.waits and 'within 0.1' in one.waits
    leader = POSE + 0.05
    path = hold(one, Wish(True, positions=leader), POSE, 0.2)
    assert one.waits == ''
    np.testing.assert_array_equal(path[0], POSE)
    assert np.abs(np.diff(path, axis=0)).max() <= TOP_SHARE * np.pi * DT + 1e-9
    np.testing.assert_allclose(path[-1], leader)
    # A reading that jumps is not followed; the arm stays until the leader is near again.
    assert one.tick(0.3, Wish(True, positions=leader + 1.0), leader).positions is None
    assert 'is 1.00 away' in one.waits
    assert one.tick(0.32, Wish(True, positions=leader + 0.2), leader).positions is None
    assert one.tick(0.34, Wish(True, positions=leader), leader).positions is not None
    # A leader that is let go has to be near anew.
    one.tick(0.36, Wish(False), leader)
    assert one.tick(0.38, Wish(True, positions=leader + 0.3), leader).positions is None


def test_the_gripper_goes_on_from_its_width_within_its_range():
    one = jog(GRIPPING, KinematicChain.from_spec(GRIPPING))
    widths = [one.tick(tick * DT, Wish(True, grip=-1.0), POSE, 0.05).width for tick in range(60)]
    assert widths[0] == 0.05 and widths[-1] == 0.0
    np.testing.assert_allclose(np.diff(widths[:10]), -0.085 / 0.7 * DT)
    assert one.tick(1.2, Wish(True), POSE, 0.0).width is None  # it is let be
    opened = [
        one.tick(1.22 + tick * DT, Wish(True, grip=1.0), POSE, 0.02).width for tick in (0, 1)
    ]
    np.testing.assert_allclose(opened, 0.02 + 0.085 / 0.7 * DT * np.array([1, 2]))
    assert jog().tick(0.0, Wish(True, grip=1.0), POSE, 0.02).width is None  # no gripper
    blind = jog(GRIPPING, KinematicChain.from_spec(GRIPPING))
    assert blind.tick(0.0, Wish(True, grip=1.0), POSE).width is None


def test_a_leader_leads_the_gripper_too_no_faster_than_it_goes():
    one = jog(GRIPPING, KinematicChain.from_spec(GRIPPING))
    leader = Wish(True, positions=POSE, width=0.02)
    widths = [one.tick(tick * DT, leader, POSE, 0.05).width for tick in range(30)]
    assert widths[0] == 0.05 and widths[-1] == pytest.approx(0.02)
    np.testing.assert_allclose(np.diff(widths[:10]), -0.085 / 0.7 * DT)
    beyond = Wish(True, positions=POSE, width=0.2)
    widths = [one.tick(1 + tick * DT, beyond, POSE, 0.02).width for tick in range(60)]
    assert max(widths) == 0.085
    away = Wish(True, positions=POSE + 0.7, width=0.0)
    assert one.tick(3.0, away, POSE, 0.085).width is None  # an arm that is not led
    assert one.tick(3.1, Wish(True, positions=POSE, width=np.nan), POSE, 0.08).width is None


def test_a_wish_of_another_arm_is_told():
    with pytest.raises(RobotRLError, match=r'joints of shape \(7,\), \(6,\) is right'):
        jog().tick(0.0, Wish(True, joints=np.zeros(7)), POSE)
