from __future__ import annotations

import pytest

from robot_rl.errors import ContractMismatch
from robot_rl.specs import Contract, fits, require_fit

JOINTS = ('wrist', 'elbow', 'shoulder')
STREAMS = {'joint_states': JOINTS, 'command': JOINTS, 'target_pose': (), 'camera': ()}


@pytest.fixture
def contract(contract_data) -> Contract:
    return Contract.parse(contract_data)


def test_sizes_names_and_bounds_follow_the_order_of_the_fields(contract):
    assert contract.period_s == 0.05
    assert contract.observation_shapes == {'q': (1,), 'target': (3,), 'last': (4, 2)}
    assert [field.size for field in contract.observation] == [1, 3, 8]
    assert contract.action_size == 3
    assert contract.action_names == ('shoulder', 'elbow', 'width')
    assert contract.action_lower.tolist() == [-0.1, -0.2, 0.0]
    assert contract.action_upper.tolist() == [0.1, 0.3, 1.0]
    assert contract.action_slice('arm') == slice(0, 2)
    assert contract.action_slice('hand') == slice(2, 3)
    with pytest.raises(KeyError):
        contract.action_slice('foot')


def test_a_source_is_a_stream_and_a_quantity(contract):
    field = contract.observation[0].replace(source='env.jaco_arm/joints_pos')
    assert (field.stream, field.quantity) == ('env', 'jaco_arm/joints_pos')


def test_more_streams_and_names_than_are_read_fit(contract):
    assert fits(contract, STREAMS) == []
    require_fit(contract, STREAMS)


@pytest.mark.parametrize(
    ('changes', 'told'),
    [
        (
            {'target_pose': None},
            "observation target: no stream 'target_pose' (available: camera, command, joint_stat",
        ),
        (
            {'joint_states': ('wrist', 'knee')},
            "observation q: ['elbow'] missing in 'joint_states', which has ['wrist', 'knee']",
        ),
        (
            {'command': ('wrist', 'elbow')},
            "action arm: joints ['shoulder'] are not commanded here (commanded: wrist, elbow)",
        ),
        ({'command': ()}, "joints ['shoulder', 'elbow'] are not commanded here (commanded: none)"),
    ],
)
def test_what_does_not_fit_is_told(contract, changes, told):
    streams = {key: names for key, names in (STREAMS | changes).items() if names is not None}
    assert any(told in problem for problem in fits(contract, streams))
    with pytest.raises(ContractMismatch, match='robot planar: the contract does not fit: ') as e:
        require_fit(contract, streams, where='robot planar')
    assert told in str(e.value)


def test_nothing_fits_where_there_are_no_streams(contract):
    assert len(fits(contract, {})) == 4
    assert '(available: none)' in fits(contract, {})[0]
