from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from robot_rl.control.actions import applied_action, joint_target, require_supported
from robot_rl.errors import ContractMismatch
from robot_rl.specs import ActionField, Contract


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
    ],
)
def test_actions_that_the_robot_cannot_take_are_refused(robot, contract, fields, told):
    with pytest.raises(ContractMismatch, match=told):
        require_supported(with_actions(contract, *fields), robot)
