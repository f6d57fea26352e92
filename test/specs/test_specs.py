from __future__ import annotations

import json
import string

import numpy as np
import pydantic
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from robot_rl.errors import SpecError
from robot_rl.specs import (
    ActionField,
    Contract,
    ObservationField,
    PolicyCard,
    RobotSpec,
    Spec,
    StateField,
)

numbers = st.floats(-1e6, 1e6)
positive = st.floats(1e-6, 1e6)
names = st.text(string.ascii_letters + string.digits + '_-/ äß:#', min_size=1, max_size=8)
identifiers = st.text(string.ascii_letters + '_', min_size=1, max_size=8)
distinct = st.lists(names, min_size=1, max_size=4, unique=True)


@st.composite
def bounds(draw, size: int) -> dict:
    lower = draw(st.lists(numbers, min_size=size, max_size=size))
    spans = draw(st.lists(st.floats(0.1, 10), min_size=size, max_size=size))
    return {'lower': lower, 'upper': [low + span for low, span in zip(lower, spans, strict=True)]}


@st.composite
def robots(draw) -> RobotSpec:
    joints = draw(distinct)
    limits, jerky = {}, draw(st.booleans())
    for joint in joints:
        low, acceleration = draw(numbers), draw(positive if jerky else st.none() | positive)
        limits[joint] = {
            'min_position': low,
            'max_position': low + draw(st.floats(0.1, 10)),
            'max_velocity': draw(st.floats(0.01, 30)),
            'max_acceleration': acceleration,
            'max_jerk': draw(st.none() | positive) if jerky else None,
        }
    return RobotSpec(
        name=draw(names),
        joints=joints,
        joint_limits=limits,
        home={joint: limits[joint]['min_position'] for joint in joints},
        workspace=draw(bounds(3)),
        mjcf=draw(names),
        mjcf_joints=draw(st.just({}) | st.just({joint: f'{joint}_in_mjcf' for joint in joints})),
        mjcf_base=draw(st.none() | names),
        tool_site=draw(names),
        controller={
            'rate_hz': draw(st.floats(1e-6, 1000)),
            'driver_timeout_s': draw(st.none() | positive),
        },
        gripper=draw(st.none() | st.just({'joint': 'g', 'open_width': 0.1, 'topic': 't'})),
    )


@st.composite
def contracts(draw) -> Contract:
    observation = []
    for name in draw(distinct):
        elements = draw(st.lists(names, max_size=3, unique=True))
        shape = [len(elements)] if elements else draw(st.lists(st.integers(0, 9), max_size=3))
        observation.append(
            ObservationField(
                name=name,
                source=f'{draw(identifiers)}{len(observation)}.{draw(identifiers)}',
                names=elements,
                shape=shape,
                dtype=draw(st.sampled_from(['float32', 'uint8'])),
                unit=draw(st.just('') | names),
                history=draw(st.integers(1, 5)),
                max_age_s=draw(st.none() | positive),
                fill=draw(st.sampled_from(['none', 'zero', 'difference'])),
                goal=draw(st.booleans()),
            )
        )
    kinds = ('joint_position', 'joint_delta', 'gripper', 'generic')
    action = []
    for name in draw(distinct):
        elements = draw(distinct)
        limits = draw(bounds(len(elements)))
        kind = draw(st.sampled_from(kinds))
        action.append(ActionField(name=name, kind=kind, names=elements, **limits))
    return Contract(rate_hz=draw(positive), observation=observation, action=action)


@st.composite
def cards(draw) -> PolicyCard:
    state = []
    for name in draw(st.lists(names, max_size=2, unique=True)):
        shape = draw(st.lists(st.integers(1, 3), max_size=2))
        size = int(np.prod(shape))
        initial = draw(st.lists(numbers, min_size=size, max_size=size))
        state.append(StateField(name=name, shape=shape, initial=initial))
    training = draw(st.dictionaries(names, numbers | names | st.integers(), max_size=3))
    return PolicyCard(
        id=draw(names), contract=draw(contracts()), recurrent_state=state, training=training
    )


@given(st.one_of(robots(), contracts(), cards()))
def test_every_spec_survives_json_and_yaml(spec):
    kind = type(spec)
    assert kind.from_json(spec.to_json()) == spec
    assert kind.parse(yaml.safe_load(spec.to_yaml())) == spec
    assert kind.from_json(spec.to_json()).digest() == spec.digest()
    assert json.loads(spec.to_json()) == spec.to_dict()


@given(robots(), identifiers)
def test_a_prefix_changes_what_the_driver_says_and_nothing_else(robot, prefix):
    left = robot.prefixed(prefix)
    assert tuple(name.removeprefix(prefix) for name in left.driver_joints) == robot.driver_joints
    assert left.driver_frame.removeprefix(prefix) == robot.driver_frame
    assert left.driver_gripper.removeprefix(prefix) == robot.driver_gripper
    assert all(name.startswith(prefix) for name in (*left.driver_joints, left.driver_frame))
    back = left.replace(name=robot.name, tf_prefix='')
    assert back == robot and back.digest() == robot.digest()
    assert (left.joints, left.model_joints) == (robot.joints, robot.model_joints)
    assert left.model_base == robot.model_base
    shuffled = [*reversed(left.driver_joints), 'another']
    assert [shuffled[i] for i in left.indices(shuffled)] == list(left.driver_joints)


@given(cards())
def test_a_card_survives_the_metadata_of_a_file(card):
    metadata = card.to_metadata()
    assert all(isinstance(text, str) for pair in metadata.items() for text in pair)
    assert PolicyCard.from_metadata(metadata | {'producer': 'x'}) == card


def test_yaml_files_are_read_and_named_in_errors(tmp_path, contract_data):
    path = tmp_path / 'view.yaml'
    path.write_text(Contract.parse(contract_data).to_yaml())
    assert Contract.from_yaml(path) == Contract.parse(contract_data)
    for text, told in (
        ('rate_hz: [1', 'line 1: not valid YAML'),
        ('- 1\n- 2\n', r'Contract: expected a mapping of fields, found \[1, 2\]'),
        ('', 'Contract: expected a mapping of fields, found None'),
        ('rate_hz: 20\nobservations: []\n', "observations: unknown key; did you mean 'observat"),
    ):
        path.write_text(text)
        with pytest.raises(SpecError, match=rf'view\.yaml: ?{told}|view\.yaml:.*{told}') as error:
            Contract.from_yaml(path)
        assert '\n' not in str(error.value)
    path.write_bytes(b'\xff\xfe\x00')
    for unreadable in (path, tmp_path, tmp_path / 'gone.yaml'):
        with pytest.raises(SpecError, match='cannot be read'):
            Contract.from_yaml(unreadable)
    with pytest.raises(SpecError, match='Contract: not valid JSON'):
        Contract.from_json('{"rate_hz": ')


def test_specs_are_frozen_and_replace_validates(contract_data):
    contract = Contract.parse(contract_data)
    with pytest.raises(pydantic.ValidationError, match='frozen'):
        contract.rate_hz = 5.0
    assert contract.replace(rate_hz=5).period_s == 0.2
    with pytest.raises(SpecError, match='rate_hz: must be greater than 0, found -1'):
        contract.replace(rate_hz=-1)


def change(data: dict, path: str, value: object) -> dict:
    *parents, last = path.split('.')
    at = data
    for key in parents:
        at = at[int(key)] if isinstance(at, list) else at.setdefault(key, {})
    at[int(last) if isinstance(at, list) else last] = value
    return data


@pytest.mark.parametrize(
    ('path', 'value', 'told'),
    [
        ('jionts', [], "jionts: unknown key; did you mean 'joints'?"),
        (
            'joint_limits.elbow.max_velocty',
            1,
            "joint_limits.elbow.max_velocty: unknown key; did you mean 'max_velocity'",
        ),
        (
            'controller.kind',
            'forward_postion',
            "controller.kind: unknown value 'forward_postion'; did you mean 'forward_position'",
        ),
        (
            'controller.kind',
            'forward_velocity',
            'controller: kind forward_velocity needs driver_timeout_s',
        ),
        (
            'controller',
            {'kind': 'forward_velocity', 'driver_timeout_s': 1e9},
            'controller: driver_timeout_s 1e+09: with kind forward_velocity it is more than a per',
        ),
        (
            'controller',
            {'kind': 'forward_velocity', 'driver_timeout_s': 0.01, 'rate_hz': 100},
            'a period (0.01 s), or the driver stops between two commands, and at most 1 s',
        ),
        ('controller.rate_hz', 1e9, 'controller.rate_hz: 1e+09: at most 1000 is right'),
        ('controller.topic', 'a b', "controller.topic: 'a b' is no name of a ROS topic: letters"),
        ('joint_states_topic', '', "joint_states_topic: '' is no name of a ROS topic"),
        (
            'joint_limits.elbow.max_velocity',
            'fast',
            "joint_limits.elbow.max_velocity: a number is needed, found 'fast'",
        ),
        (
            'joint_limits.elbow.max_velocity',
            float('nan'),
            'joint_limits.elbow.max_velocity: must be a finite number, found nan',
        ),
        ('joint_limits.elbow', 3, 'joint_limits.elbow: a mapping of fields is needed, found 3'),
        (
            'joint_limits.elbow.min_position',
            4,
            'joint_limits.elbow: min_position 4.0 must be below max_position 1.0',
        ),
        ('joints', 'elbow', "joints: a list is needed, found 'elbow'"),
        ('joints', [], 'joints: at least one is needed, found []'),
        ('joints', ['elbow', 'elbow'], "joints: a name stands twice in ['elbow', 'elbow']"),
        ('joints', ['shoulder'], "joint_limits: ['elbow'] not among joints ['shoulder']"),
        ('home.elbow', 2.0, 'home.elbow: 2.0 lies outside [-1.5, 1.0]'),
        ('home', {'elbow': 0.0}, "home: missing for ['shoulder']"),
        ('workspace.upper', [1, 1], 'workspace.upper.2: this field is required and missing'),
        ('workspace.upper', [1, -2, 1], 'must be below upper (1.0, -2.0, 1.0) on every axis'),
        ('name', 7, 'name: a text is needed, found 7'),
        ('gripper', {'joint': 'g', 'open_width': -1}, 'gripper.open_width: must be gre'),
        (
            'joint_limits.elbow.max_velocity',
            180,
            'joint_limits.elbow.max_velocity: 180: at most 30 is right; in degrees?',
        ),
        ('tf_prefix', 'le ft/', "tf_prefix: 'le ft/' is no beginning of the names of joints"),
        (
            'gripper',
            {'joint': 'elbow', 'open_width': 0.1, 'topic': 'g'},
            "gripper.joint: 'elbow' is one of joints",
        ),
        (
            'gripper',
            {'joint': 'g', 'open_width': 0.1, 'topic': 'joint_states'},
            "gripper.topic: 'joint_states' is joint_states_topic as well",
        ),
        (
            'gripper',
            {'joint': 'g', 'open_width': 0.1, 'topic': 't', 'kind': 'forward_velocity'},
            'gripper.kind',
        ),
        (
            'cameras',
            [{'name': 'c', 'width': 8, 'height': 8, 'topic': 'a b'}],
            "cameras.0.topic: 'a b' is no name of a ROS topic",
        ),
        (
            'cameras',
            [{'name': '/c', 'width': 8, 'height': 8}],
            "cameras.0.name: '/c' begins with /",
        ),
        ('joint_states_topic', '~/joint_states', 'is no name of a ROS topic'),
        ('joint_states_rate_hz', 1e9, 'joint_states_rate_hz: 1e+09: at most 5000 is right'),
        ('schema_version', 2, 'schema_version: 2 is newer than 1, the newest that this robot_rl'),
        ('schema_version', 'one', "schema_version: this robot_rl reads 1, found 'one'"),
        ('name', [0] * 99, 'name: a text is needed, found [0, 0, 0, 0, 0,'),
    ],
)
def test_a_wrong_robot_is_told_by_field_with_what_was_found(robot_data, path, value, told):
    with pytest.raises(SpecError) as error:
        RobotSpec.parse(change(robot_data, path, value), origin='arm.yaml')
    assert str(error.value).startswith('arm.yaml: ')
    assert told in str(error.value)
    assert '\n' not in str(error.value)
    assert len(str(error.value)) < 250


@pytest.mark.parametrize(
    ('path', 'value', 'told'),
    [
        ('observation.0.histroy', 3, "observation.0.histroy: unknown key; did you mean 'history'"),
        (
            'observation.0.source',
            'joints',
            "observation.0.source: 'joints' is not '<stream>.<quantity>', such as 'joint_states.p",
        ),
        ('observation.0.shape', [2], 'observation.0: shape [2] does not hold 1 names'),
        ('observation.0.shape', [-2], 'observation.0.shape.0: must be greater than or'),
        ('observation.0.shape', [1.5], 'observation.0.shape.0: a whole number is needed, found'),
        ('observation.1.name', 'q', "observation: the names ['q'] stand more than once"),
        ('observation', [], 'observation: at least one is needed, found []'),
        ('action.0.kind', 'joint_delt', "unknown value 'joint_delt'; did you mean 'joint_delta'"),
        ('action.0.upper', [1], 'action.0: upper: 1 values for 2 names'),
        ('action.0.upper', [1, -1], 'action.0: lower [-0.1, -0.2] must be below upper [1.0, -1.'),
        ('rate_hz', 0, 'rate_hz: must be greater than 0, found 0'),
    ],
)
def test_a_wrong_contract_is_told_by_field(contract_data, path, value, told):
    with pytest.raises(SpecError) as error:
        Contract.parse(change(contract_data, path, value))
    assert told in str(error.value)
    # One cause is one remark: a list with a wrong item is not also called too short.
    assert '; observation' not in str(error.value)
    assert 'at least one' not in str(error.value) or value == []


def test_several_mistakes_are_all_told_at_once(contract_data):
    contract_data['rate_hz'] = 'often'
    del contract_data['observation'][1]['shape']
    contract_data['action'][0]['kinds'] = 'joint_delta'
    with pytest.raises(SpecError) as error:
        Contract.parse(contract_data)
    assert str(error.value).split('; ') == [
        "rate_hz: a number is needed, found 'often'",
        'observation.1.shape: this field is required and missing',
        'action.0.kinds: unknown key',
        "did you mean 'kind'?",
    ]


def test_a_newer_version_is_all_that_is_said_of_a_newer_file(contract_data):
    contract_data |= {'schema_version': 3, 'camera_rate': 5, 'rate_hz': {'a': 1}}
    with pytest.raises(SpecError) as error:
        PolicyCard.parse({'id': 'x', 'contract': contract_data, 'new': 1})
    assert str(error.value) == (
        'contract.schema_version: 3 is newer than 2, the newest that this robot_rl reads; '
        'update robot_rl'
    )


def test_the_version_is_written_and_may_be_left_out_when_read(robot_data, contract_data):
    for kind, data, version in ((RobotSpec, robot_data, 1), (Contract, contract_data, 2)):
        assert 'schema_version' not in data
        assert kind.parse(data).to_dict()['schema_version'] == version


def test_a_field_of_a_field_is_found_for_the_nearest_key():
    class Inner(Spec):
        speed: float = 1.0

    class Outer(Spec):
        inner: Inner | None = None
        many: tuple[Inner, ...] = ()
        named: dict[str, Inner] | None = None

    for data in ({'inner': {'sped': 1}}, {'many': [{'sped': 1}]}, {'named': {'a': {'sped': 1}}}):
        with pytest.raises(SpecError, match="sped: unknown key; did you mean 'speed'"):
            Outer.parse(data)
