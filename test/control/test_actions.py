from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from robot_rl.control.actions import (
    applied_action,
    gripper_width,
    joint_target,
    require_supported,
)
from robot_rl.errors import ContractMismatch
from robot_rl.robots import quaternions
from robot_rl.robots.kinematics import KinematicChain
from robot_rl.specs import ActionField, Contract, RobotSpec
from robot_rl.specs.contract import TWIST


def with_actions(contract: Contract, *fields: dict) -> Contract:
    return contract.model_copy(update={'action': tuple(ActionField(**f) for f in fields)})


MIXED = (
    {
        'name': 'arm',
        'kind': 'joint_delta',
        'names': ('wrist', 'shoulder'),
        'lower': (-0.1, -0.2),
        'upper': (0.1, 0.2),
    },
    {'name': 'bend', 'kind': 'joint_position', 'names': ('elbow',), 'lower': (-1,), 'upper': (1,)},
)


@given(hnp.arrays(np.float32, (2, 3), elements=st.floats(-2, 2, width=32)))
def test_mixed_kinds_in_another_order_give_the_target_by_hand(robot, contract, action):
    contract = with_actions(contract, *MIXED)
    command = np.array([[0.1, 0.2, 0.3], [-0.5, 0.0, 0.5]])
    target = joint_target(contract, action, command, robot)
    for a, c, t in zip(action.astype(float), command, target, strict=True):
        shoulder = c[0] + min(max(a[1], -0.2), 0.2)
        wrist = c[2] + min(max(a[0], -0.1), 0.1)
        np.testing.assert_allclose(t, [shoulder, min(max(a[2], -1), 1), wrist])
    assert command[0].tolist() == [0.1, 0.2, 0.3]


@given(hnp.arrays(float, 3, elements=st.floats(-1, 1)))
def test_applied_action_is_the_inverse_within_the_bounds(robot, contract, action):
    contract = with_actions(contract, *MIXED)
    command = np.array([0.1, -0.2, 0.3])
    target = joint_target(contract, action, command, robot)
    applied = applied_action(contract, target, command, robot)
    clipped = np.clip(action, contract.action_lower, contract.action_upper)
    np.testing.assert_allclose(applied, clipped, atol=1e-15)


def test_joints_that_no_action_names_keep_the_command(robot, contract):
    contract = with_actions(contract, MIXED[1])
    target = joint_target(contract, [0.5], [0.1, 0.2, 0.3], robot)
    assert target.tolist() == [0.1, 0.5, 0.3]


VELOCITY = {
    'name': 'v',
    'kind': 'joint_velocity',
    'names': ('elbow', 'wrist'),
    'lower': (-1, -1),
    'upper': (1, 1),
}
WIDTH = {'name': 'hand', 'kind': 'gripper', 'names': ('w',), 'lower': (0,), 'upper': (0.2,)}


def twist(*names: str, bound: float = 0.3) -> dict:
    bounds = {'lower': (-bound,) * len(names), 'upper': (bound,) * len(names)}
    return {'name': 'twist', 'kind': 'cartesian_twist', 'names': names, **bounds}


@pytest.fixture(scope='module')
def arm():
    robot = RobotSpec.load('ur5e_gripper')
    return robot, KinematicChain.from_spec(robot)


def test_a_velocity_leads_on_from_the_last_command_for_one_period(robot, contract):
    contract = with_actions(contract, VELOCITY)
    target = joint_target(contract, [0.5, -3.0], [0.1, 0.2, 0.3], robot)
    period = 1 / contract.rate_hz
    np.testing.assert_allclose(target, [0.1, 0.2 + 0.5 * period, 0.3 - period])
    applied = applied_action(contract, target, [0.1, 0.2, 0.3], robot)
    np.testing.assert_allclose(applied, [0.5, -1.0])


def test_a_twist_moves_the_tool_as_it_says_and_nothing_else(arm, contract):
    robot, chain = arm
    contract = with_actions(contract, twist('linear_y', 'angular_z'))
    rng = np.random.default_rng(0)
    command = robot.home_position + rng.uniform(-0.3, 0.3, (5, 6))
    action = rng.uniform(-0.3, 0.3, (5, 2))
    target = joint_target(contract, action, command, robot, chain)
    before, after = chain.forward(command), chain.forward(target)
    moved = after[0] - before[0]
    period = contract.period_s
    np.testing.assert_allclose(moved[:, 1], action[:, 0] * period, atol=1e-6)
    np.testing.assert_allclose(moved[:, [0, 2]], 0, atol=1e-6)
    for lane in range(5):
        turn = action[lane, 1] * period
        about_z = [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
        expected = about_z @ quaternions.to_matrix(before[1][lane])
        np.testing.assert_allclose(quaternions.to_matrix(after[1][lane]), expected, atol=1e-6)
    back = applied_action(contract, target, command, robot, chain)
    np.testing.assert_allclose(back, action, atol=1e-4)


def test_a_twist_of_zero_keeps_the_command_also_over_many_steps(arm, contract):
    robot, chain = arm
    contract = with_actions(contract, twist(*TWIST))
    command = robot.home_position
    for _ in range(200):
        command = joint_target(contract, np.zeros(6), command, robot, chain)
    np.testing.assert_allclose(command, robot.home_position, atol=1e-12)


def test_a_twist_stays_within_workspace_and_joint_limits_where_it_is_singular(arm, contract):
    robot, chain = arm
    contract = with_actions(contract, twist(*TWIST, bound=1.0))
    # Where an arm is stretched out, what is left of rounding decides which way it goes on.
    starts = robot.home_position + np.random.default_rng(0).normal(size=(20, 6)) * 1e-9
    for push in np.vstack([np.eye(6), -np.eye(6)]):
        command, pushes = starts, np.tile(push, (len(starts), 1))
        for _ in range(150):
            command = joint_target(contract, pushes, command, robot, chain)
            assert np.isfinite(command).all()
            assert (command >= robot.lower).all() and (command <= robot.upper).all()
            # At a metre a second it slips by up to three centimetres there.
            tool = chain.position(command)
            assert (tool > np.array(robot.workspace.lower) - 0.035).all()
            assert (tool < np.array(robot.workspace.upper) + 0.035).all()


def test_a_tool_outside_the_workspace_comes_back_as_fast_as_it_is_moved(arm, contract):
    robot, chain = arm
    contract = with_actions(contract, twist('linear_z'))
    wall = robot.workspace.replace(lower=(-0.85, -0.85, 0.4))  # home is below
    robot = robot.replace(workspace=wall)
    start = chain.position(robot.home_position)
    period = contract.period_s
    for velocity, expected in ((-0.2, 0.2 * period), (0.2, 0.2 * period), (0.0, 0.0)):
        target = joint_target(contract, [velocity], robot.home_position, robot, chain)
        moved = chain.position(target) - start
        np.testing.assert_allclose(moved, [0, 0, expected], atol=1e-6)


def test_a_width_is_clipped_to_the_bounds_and_to_what_the_gripper_has(arm, contract):
    robot, chain = arm
    contract = with_actions(contract, twist('linear_x'), WIDTH)
    action = np.array([[0.1, 0.03], [0.1, -1.0], [0.1, 0.15]])
    widths = gripper_width(contract, action, robot)
    np.testing.assert_allclose(widths, [0.03, 0.0, robot.gripper.open_width])
    command = np.tile(robot.home_position, (3, 1))
    target = joint_target(contract, action, command, robot, chain)
    applied = applied_action(contract, target, command, robot, chain, widths)
    np.testing.assert_allclose(applied, np.stack([[0.1] * 3, widths], 1), atol=1e-4)
    assert gripper_width(with_actions(contract, twist('linear_x')), action[:, :1], robot) is None


@pytest.mark.parametrize(
    ('action', 'command', 'told'),
    [
        ([0, 0], [0, 0, 0], r'action: expected 3 values, found shape \(2,\)'),
        ([0, 0, 0], [0, 0], r'command: expected 3 values, found shape \(2,\)'),
        (0.0, [0, 0, 0], r'action: expected 3 values, found shape \(\)'),
        ([0, np.nan, 0], [0, 0, 0], 'action: not finite'),
        ([0, 0, 0], [0, np.inf, 0], 'command: not finite'),
    ],
)
def test_wrong_sizes_and_non_finite_values_are_refused(robot, contract, action, command, told):
    with pytest.raises(ContractMismatch, match=told):
        joint_target(contract, action, command, robot)


@pytest.mark.parametrize(
    ('fields', 'told'),
    [
        ([MIXED[1] | {'kind': 'effort'}], "'effort' cannot be commanded; supported: joint_pos"),
        ([MIXED[1] | {'names': ('knee',)}], r"\['knee'\] are no joints of planar"),
        ([MIXED[0], MIXED[1] | {'names': ('wrist',)}], r"\['wrist'\] are commanded more than"),
        ([WIDTH], 'hand: planar has no gripper'),
        ([twist('x')], r"twist: \['x'\] are no elements of a twist"),
        ([twist('linear_x'), MIXED[1]], 'beside a cartesian_twist, which moves all'),
    ],
)
def test_actions_that_the_robot_cannot_take_are_refused(robot, contract, fields, told):
    with pytest.raises(ContractMismatch, match=told):
        require_supported(with_actions(contract, *fields), robot)


def test_a_gripper_is_told_one_width_once(arm, contract):
    robot, _ = arm
    for fields, told in (
        ([WIDTH, WIDTH | {'name': 'b', 'names': ('v',)}], 'commanded more than once'),
        (
            [WIDTH | {'names': ('v', 'w'), 'lower': (0, 0), 'upper': (1, 1)}],
            r"takes one width, found \['v', 'w'\]",
        ),
    ):
        with pytest.raises(ContractMismatch, match=told):
            require_supported(with_actions(contract, *fields), robot)
