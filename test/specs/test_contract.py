from __future__ import annotations

import pytest

from robot_rl.errors import ContractMismatch, SpecError
from robot_rl.specs import Contract, ObservationField, fits, require_fit

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


PICTURE = {'name': 'p', 'source': 'wrist.image', 'shape': (8, 9, 3), 'dtype': 'uint8'}


def field(**data) -> ObservationField:
    return ObservationField.parse({'name': 'p', 'shape': (3,)} | data)


@pytest.mark.parametrize(
    ('data', 'kind', 'is_set'),
    [
        ({'source': 'joint_states.velocity', 'goal': True}, 'joints', True),
        ({'source': 'place.position', 'goal': True}, 'pose', True),
        ({'source': 'place.position', 'goal': True, 'max_age_s': 0.5}, 'pose', False),
        ({'source': 'place.position', 'names': ('x', 'y', 'z')}, 'pose', False),
        ({'source': 'posture.position', 'names': JOINTS}, 'joints', False),
        ({'source': 'place.from_tool'}, 'pose', False),
        ({'source': 'command.position', 'names': JOINTS}, '', False),
        ({'source': 'env.position'}, '', False),
        (PICTURE | {'encoding': 'jpeg'}, 'image', False),
    ],
)
def test_a_field_says_what_messages_bring_it(data, kind, is_set):
    assert (field(**data).kind, field(**data).is_set) == (kind, is_set)


@pytest.mark.parametrize(
    ('data', 'told'),
    [
        ({}, "a picture needs an encoding, 'rgb8' or 'jpeg'"),
        ({'encoding': 'rgb8', 'dtype': 'float32'}, 'found wrist.image, float32'),
        ({'encoding': 'rgb8', 'shape': (8, 9)}, r'\[height, width, 3\]; .* \[8, 9\]'),
        ({'encoding': 'rgb8', 'shape': (8, 0, 3)}, r'found wrist.image, uint8, \[8, 0, 3\]'),
        ({'encoding': 'rgb8', 'source': 'wrist.depth'}, 'found wrist.depth'),
        ({'encoding': 'rgb8', 'goal': True}, 'a picture is no goal'),
        ({'encoding': 'rgb8', 'source': 'gripper.image'}, "'gripper' is computed"),
        ({'encoding': 'png'}, "encoding: unknown value 'png'"),
        ({'encoding': 'jpeg', 'lossless': True}, "lossless is for .* raw: encoding 'rgb8'"),
    ],
)
def test_what_is_no_picture_is_told(data, told):
    with pytest.raises(SpecError, match=told):
        field(**PICTURE | data)


@pytest.mark.parametrize(
    ('one', 'other', 'told'),
    [
        (
            {'source': 'place.position', 'goal': True},
            {'source': 'place.orientation', 'shape': (4,)},
            "'place' expect different messages: pose that is set, and pose that is streamed",
        ),
        (
            PICTURE | {'encoding': 'jpeg'},
            PICTURE | {'encoding': 'jpeg', 'shape': (4, 4, 3)},
            r'jpeg of shape \[8, 9, 3\], and jpeg of shape \[4, 4, 3\]',
        ),
        (
            PICTURE | {'encoding': 'rgb8'},
            PICTURE | {'encoding': 'rgb8', 'lossless': True},
            r'rgb8 of shape \[8, 9, 3\], and rgb8 of shape \[8, 9, 3\] without losses',
        ),
    ],
)
def test_fields_of_a_stream_are_brought_by_the_same_message(contract, one, other, told):
    fields = [field(**one).to_dict(), field(**other).to_dict() | {'name': 'r'}]
    with pytest.raises(SpecError, match=told):
        contract.replace(observation=fields)


def test_what_was_seen_without_losses_before_there_was_another_way_still_is(contract):
    raw, sent = ({'name': n, 'source': f'{n}.image', 'shape': (8, 9, 3)} for n in ('raw', 'sent'))
    fields = [raw | {'encoding': 'rgb8'}, sent | {'encoding': 'jpeg'}]
    fields = [field | {'dtype': 'uint8'} for field in fields]
    old = contract.to_dict() | {'schema_version': 1, 'observation': fields}
    assert [field.lossless for field in Contract.parse(old).observation] == [True, False]
    assert Contract.parse(old) == Contract.parse(Contract.parse(old).to_dict())
    new = Contract.parse(old | {'schema_version': 2})
    assert [field.lossless for field in new.observation] == [False, False]
    with pytest.raises(SpecError, match=r'^observation: this field is required and missing$'):
        Contract.parse({key: value for key, value in old.items() if key != 'observation'})


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
