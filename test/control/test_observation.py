from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robot_rl.control.observation import History, ObservationAssembler, Observer
from robot_rl.errors import ContractMismatch, SpecError
from robot_rl.specs import Contract, Gripper, ObservationField

NAMES = ('shoulder', 'elbow', 'wrist')


def with_fields(contract: Contract, *fields: dict) -> Contract:
    fields = tuple(ObservationField(**field) for field in fields)
    return contract.model_copy(update={'observation': fields})


def streams(*axes: int) -> dict:
    rng = np.random.default_rng(1)
    return {
        'joint_states': {
            'position': rng.normal(size=(*axes, 3)),
            'velocity': rng.normal(size=(*axes, 3)),
        },
        'command': {'position': rng.normal(size=(*axes, 3))},
        'target_pose': {
            'position': rng.normal(size=(*axes, 3)),
            'orientation': rng.normal(size=(*axes, 4)),
        },
    }


def tip(q: np.ndarray) -> list[float]:
    """Planar forward kinematics with sines and cosines, one pose at a time."""
    x = y = heading = 0.0
    for angle, length in zip(q, (0.4, 0.3, 0.2), strict=True):
        heading += angle
        x, y = x + length * np.cos(heading), y + length * np.sin(heading)
    return [x, y, 0.0]


@pytest.mark.parametrize('axes', [(), (4,), (2, 3)])
def test_fields_are_picked_from_streams_with_any_leading_axes(contract, chain, axes):
    given_streams = streams(*axes)
    seen = Observer(contract, chain).observe(given_streams)
    assert list(seen) == [field.name for field in contract.observation]
    for index in np.ndindex(axes):
        q = given_streams['joint_states']['position'][index]
        np.testing.assert_allclose(seen['joint_position'][index], q, rtol=1e-6)
        np.testing.assert_allclose(seen['tool'][index], tip(q), atol=1e-6)
    assert all(values.dtype == np.float32 for values in seen.values())
    assert np.array_equal(seen['target'], given_streams['target_pose']['position'].astype('f4'))


def test_elements_come_in_the_order_of_the_field_names(contract, chain):
    contract = with_fields(
        contract,
        {
            'name': 'q',
            'source': 'joint_states.position',
            'names': ('wrist', 'shoulder'),
            'shape': (2,),
        },
        {'name': 'height', 'source': 'target_pose.position', 'names': ('z',), 'shape': (1,)},
        {'name': 'turn', 'source': 'tool.orientation', 'names': ('x', 'w'), 'shape': (2,)},
    )
    given_streams = streams(2)
    seen = Observer(contract, chain).observe(given_streams)
    q = given_streams['joint_states']['position']
    np.testing.assert_allclose(seen['q'], q[:, [2, 0]], rtol=1e-6)
    np.testing.assert_allclose(seen['height'], given_streams['target_pose']['position'][:, 2:])
    half = q.sum(axis=1) / 2
    np.testing.assert_allclose(seen['turn'], np.stack([0 * half, np.cos(half)], 1), atol=1e-6)


def test_a_tool_stream_that_is_there_is_taken_as_it_is(contract):
    contract = with_fields(contract, {'name': 't', 'source': 'tool.position', 'shape': (3,)})
    assert Observer(contract, None).observe({'tool': {'position': [1, 2, 3]}})['t'].tolist() == [
        1,
        2,
        3,
    ]


def test_suites_without_streams_read_env_keys(contract):
    contract = with_fields(
        contract,
        {'name': 'a', 'source': 'env.jaco_arm/joints_pos', 'names': ('p', 'q'), 'shape': (2,)},
        {'name': 'b', 'source': 'env.height', 'shape': ()},
    )
    given_streams = {'env': {'jaco_arm/joints_pos': np.ones((5, 2)), 'height': np.ones(5)}}
    seen = Observer(contract, None).observe(given_streams)
    assert (seen['a'].shape, seen['b'].shape) == ((5, 2), (5,))


@pytest.mark.parametrize(
    ('field', 'told'),
    [
        ({'source': 'wrench.force', 'shape': (3,)}, "no 'wrench.force'; found joint_states.pos"),
        ({'source': 'joint_states.effort', 'shape': (3,)}, "no 'joint_states.effort'; found"),
        (
            {'source': 'joint_states.position', 'names': ('knee',), 'shape': (1,)},
            r"\['knee'\] missing in joint_states.position, which has \['shoulder'",
        ),
        (
            {'source': 'target_pose.position', 'names': ('w',), 'shape': (1,)},
            r"\['w'\] missing in target_pose.position, which has \['x', 'y', 'z'\]",
        ),
        (
            {'source': 'joint_states.position', 'shape': (6,)},
            r'joint_states.position has shape \[2, 3\], right is \[..., 6\]',
        ),
        (
            {'source': 'command.position', 'shape': (9, 9, 3)},
            r'command.position has shape \[2, 3\], right is \[..., 9, 9, 3\]',
        ),
    ],
)
def test_what_cannot_be_read_is_named(contract, chain, field, told):
    contract = with_fields(contract, {'name': 'x', **field})
    with pytest.raises(ContractMismatch, match=f'observation x: {told}'):
        Observer(contract, chain).observe(streams(2))


@given(
    st.integers(2, 4),
    st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=12),
)
def test_history_holds_each_lane_s_own_steps_oldest_first(contract, length, begins):
    contract = with_fields(
        contract,
        {'name': 'q', 'source': 'command.position', 'shape': (2,), 'history': length},
        {'name': 'now', 'source': 'command.position', 'shape': (2,)},
    )
    history = History(contract)
    lanes: list[list] = [[], [], []]
    for k, first in enumerate(begins):
        step = np.arange(6.0).reshape(3, 2) + 10 * k
        seen = history.push({'q': step, 'now': step}, np.array(first))
        assert np.array_equal(seen['now'], step)
        for lane, (steps, begin) in enumerate(zip(lanes, first, strict=True)):
            if begin:
                steps.clear()
            steps.append(step[lane])
            padded = [steps[0]] * length + steps
            assert np.array_equal(seen['q'][lane], padded[-length:])
    history.reset()
    again = history.push({'q': step + 1, 'now': step})['q']
    assert np.array_equal(again, np.stack([step + 1] * length, axis=1))


@pytest.fixture
def assembler(contract, robot, chain) -> ObservationAssembler:
    return ObservationAssembler(contract, robot, chain)


def put_all(assembler: ObservationAssembler, stamp: float, offset: float = 0.0) -> None:
    position = np.array([0.1, 0.2, 0.3]) + offset
    values = {'position': position, 'velocity': [1.0, 2.0, 3.0]}
    assembler.put('joint_states', stamp, values, NAMES)
    assembler.put('target_pose', stamp, {'position': [4, 5, 6], 'orientation': [1, 0, 0, 0]})


def test_messages_become_the_observation_by_joint_name(assembler, chain):
    values = {'position': [0.3, 9.0, 0.1, 0.2], 'velocity': [3.0, np.nan, 1.0, 2.0]}
    assembler.put('joint_states', 1.0, values, ['wrist', 'finger', 'shoulder', 'elbow'])
    assembler.put('target_pose', 0.9, {'position': [4, 5, 6]})
    seen, stamp = assembler.assemble(1.02, [0.0, -0.1, -0.2])
    assert stamp == 1.0
    np.testing.assert_allclose(seen['joint_position'], [0.1, 0.2, 0.3])
    np.testing.assert_allclose(seen['joint_velocity'], [1, 2, 3])
    np.testing.assert_allclose(seen['tool'], tip([0.1, 0.2, 0.3]), atol=1e-6)
    np.testing.assert_allclose(seen['target'], [4, 5, 6])
    np.testing.assert_allclose(seen['command'], [[0, -0.1, -0.2]] * 2)


def test_a_drivers_prefix_stays_outside_of_the_observation(contract, robot, chain):
    left = ObservationAssembler(contract, robot.prefixed('left_'), chain)
    values = {'position': [0.3, 0.1, 0.2], 'velocity': [3.0, 1.0, 2.0]}
    left.put('joint_states', 1.0, values, ['left_wrist', 'left_shoulder', 'left_elbow'])
    left.put('target_pose', 1.0, {'position': [4, 5, 6]})
    seen, _ = left.assemble(1.0, np.zeros(3))
    np.testing.assert_allclose(seen['joint_position'], [0.1, 0.2, 0.3])
    with pytest.raises(SpecError, match='left_shoulder'):
        left.put('joint_states', 1.0, values, NAMES)


def test_history_moves_on_with_what_is_kept_and_begins_anew(assembler):
    put_all(assembler, 1.0)
    for k in range(3):
        assembler.assemble(1.0, np.full(3, 9.0))  # in vain
        seen, _ = assembler.assemble(1.0, np.full(3, float(k)))
        assembler.keep(seen)
    assert seen['command'].tolist() == [[1, 1, 1], [2, 2, 2]]
    assembler.reset_history()
    assert assembler.assemble(1.0, np.full(3, 7.0))[0]['command'].tolist() == [[7] * 3] * 2


def test_absent_and_old_streams_are_told_with_their_ages(assembler):
    assert assembler.missing(1.0) == ['joint_states: none has come', 'target_pose: none has come']
    put_all(assembler, 1.0)
    assert assembler.missing(1.09) == []
    old = 'joint_velocity: the newest of joint_states is 0.200 s old, at most 0.1 s'
    assert assembler.missing(1.2) == [old]
    assert assembler.missing(2.5)[1] == (
        'target: the newest of target_pose is 1.500 s old, at most 1 s'
    )
    (ahead,) = assembler.missing(0.5)
    assert '0.500 s in the future, at most 0.1 s' in ahead
    with pytest.raises(ContractMismatch, match=old):
        assembler.assemble(1.2, np.zeros(3))
    assembler.reset()
    assert assembler.absent() == ['joint_states', 'target_pose']
    assert len(assembler.missing(1.0)) == 2
    assert assembler.latest('joint_states') is None


@pytest.mark.parametrize(
    ('names', 'values', 'told'),
    [
        (('a', 'elbow', 'wrist'), {'position': [0, 0, 0]}, r"\['shoulder'\] of robot planar are"),
        (NAMES[:2], {'position': [0, 0]}, r"\['wrist'\] of robot planar are missing; found"),
        (NAMES, {'position': [0, 0]}, 'position: 2 values for 3 joint names'),
        (NAMES, {}, 'position: 0 values for 3 joint names'),
        (NAMES, {'position': [0, np.nan, 0]}, 'joint_states.position: not finite'),
        (NAMES, {'position': [0, 0, 0], 'velocity': [1]}, 'velocity: 1 values for 3 joint names'),
    ],
)
def test_bad_joint_states_are_refused_and_the_former_ones_stay(assembler, names, values, told):
    put_all(assembler, 1.0)
    with pytest.raises((SpecError, ContractMismatch), match=told):
        assembler.put('joint_states', 2.0, values, names)
    assert assembler.assemble(1.0, np.zeros(3))[1] == 1.0


@pytest.mark.parametrize(
    ('values', 'told'),
    [
        ({'position': [0, np.inf, 0]}, 'target_pose.position: not finite'),
        ({'position': [0, 0]}, r'target_pose.position: shape \[2\], right is \[3\]'),
        ({'orientation': [0, 0, 1]}, r'target_pose.orientation: shape \[3\], right is \[4\]'),
    ],
)
def test_bad_poses_are_refused(assembler, values, told):
    with pytest.raises(ContractMismatch, match=told):
        assembler.put('target_pose', 1.0, values)
    assert assembler.latest('target_pose') is None


def filling(contract, robot, chain, fill: str) -> ObservationAssembler:
    fields = [
        field.replace(fill=fill) if field.quantity == 'velocity' else field
        for field in contract.observation
    ]
    contract = contract.model_copy(update={'observation': tuple(fields)})
    return ObservationAssembler(contract, robot, chain)


@pytest.mark.parametrize('velocity', [[], [np.nan] * 3, None])
def test_velocities_that_the_driver_leaves_out_follow_the_fill_rule(
    contract, robot, chain, velocity
):
    def send(assembler, stamp, position):
        values = {'position': position} | ({} if velocity is None else {'velocity': velocity})
        assembler.put('joint_states', stamp, values, NAMES)
        return assembler.latest('joint_states')['velocity'].tolist()

    zero = filling(contract, robot, chain, 'zero')
    assert send(zero, 1.0, [0, 0, 0]) == send(zero, 1.1, [1, 1, 1]) == [0, 0, 0]
    difference = filling(contract, robot, chain, 'difference')
    assert send(difference, 1.0, [0, 0, 0]) == [0, 0, 0]
    assert send(difference, 1.5, [0.1, 0.2, -0.3]) == pytest.approx([0.2, 0.4, -0.6])
    assert send(difference, 1.5, [9, 9, 9]) == pytest.approx([0.2, 0.4, -0.6])  # no time passed
    with pytest.raises(ContractMismatch, match='velocity: empty or not finite, and the contract'):
        send(filling(contract, robot, chain, 'none'), 1.0, [0, 0, 0])


def test_every_field_is_held_to_its_own_age_and_joint_states_to_the_readers_too(
    contract, robot, chain
):
    contract = with_fields(
        contract,
        {'name': 'q', 'source': 'joint_states.position', 'shape': (3,), 'max_age_s': 0.3},
        {'name': 'tip', 'source': 'tool.position', 'shape': (3,), 'max_age_s': 0.2},
        {'name': 'cup', 'source': 'cup.position', 'shape': (3,), 'max_age_s': 0.6},
        {'name': 'turn', 'source': 'cup.orientation', 'shape': (4,), 'max_age_s': 0.4},
        {'name': 'lid', 'source': 'lid.position', 'shape': (3,)},
    )
    loose = ObservationAssembler(contract, robot, chain, joint_states_max_age_s=0.25)
    strict = ObservationAssembler(contract, robot, chain, joint_states_max_age_s=0.15)
    for assembler in (loose, strict):
        put_all(assembler, 0.0)
        for stream in ('cup', 'lid'):
            assembler.put(stream, 0.0, {'position': [1, 2, 3], 'orientation': [1, 0, 0, 0]})
        # Beyond which age, and who says so: the first that does is the strictest of its stream.
    assert strict.missing(0.16) == [
        'joint_states: the newest of joint_states is 0.160 s old, at most 0.15 s'
    ]
    assert loose.missing(0.19) == []
    told = [line.split(':')[0] for line in loose.missing(0.5)]
    assert told == ['tip', 'turn']


def goals(contract, robot, chain) -> ObservationAssembler:
    contract = with_fields(
        contract,
        {'name': 'place', 'source': 'place.position', 'shape': (3,), 'goal': True},
        {
            'name': 'posture',
            'source': 'posture.position',
            'names': ('wrist', 'shoulder'),
            'shape': (2,),
            'goal': True,
        },
    )
    return ObservationAssembler(contract, robot, chain)


def test_goals_that_are_set_stay_until_others_are(contract, robot, chain):
    assembler = goals(contract, robot, chain)
    assert assembler.absent() == ['joint_states', 'place', 'posture']
    assembler.put('place', 0.0, {'position': [1, 2, 3]})
    names = ['gripper', 'wrist', 'elbow', 'shoulder']
    assembler.put('posture', 0.0, {'position': [9, 0.3, 0.2, 0.1]}, names)
    assembler.reset()
    assert assembler.absent() == ['joint_states']
    put_all(assembler, 1e6)
    assert assembler.missing(1e6) == []
    seen, _ = assembler.assemble(1e6, np.zeros(3))
    np.testing.assert_allclose(seen['place'], [1, 2, 3])
    np.testing.assert_allclose(seen['posture'], [0.3, 0.1])
    assembler.put('place', 0.0, {'position': [4, 5, 6]})
    assert assembler.assemble(1e6, np.zeros(3))[0]['place'].tolist() == [4, 5, 6]
    with pytest.raises(SpecError, match=r"\['elbow'\] of robot planar are missing"):
        assembler.put('posture', 0.0, {'position': [1, 2]}, ['wrist', 'shoulder'])
    with pytest.raises(ContractMismatch, match=r'posture\.position: not finite'):
        assembler.put('posture', 0.0, {'position': [1, np.nan, 2]}, NAMES)


def seeing(contract, robot, chain, **changes) -> ObservationAssembler:
    picture = {'dtype': 'uint8', 'encoding': 'rgb8', 'shape': (2, 4, 3), 'source': 'wrist.image'}
    contract = with_fields(contract, {'name': 'wrist_view', **picture, **changes})
    return ObservationAssembler(contract, robot, chain)


def test_pictures_grow_old_and_keep_their_bytes(contract, robot, chain):
    assembler = seeing(contract, robot, chain, history=2)
    pixels = np.arange(48, dtype=np.uint8).reshape(2, 2, 4, 3)
    views = []
    for now, picture in enumerate(pixels):
        put_all(assembler, now)
        assembler.put('wrist', now, {'image': picture})
        seen, _ = assembler.assemble(now + 0.4, np.zeros(3))
        assembler.keep(seen)
        views.append(seen['wrist_view'])
    assert views[1].dtype == np.uint8 and np.array_equal(views[1], pixels)
    assert np.array_equal(views[0], pixels[[0, 0]])
    told = 'wrist_view: the newest of wrist is 0.600 s old, at most 0.5 s'
    assert assembler.missing(1.6) == [told]
    assert seeing(contract, robot, chain, max_age_s=0.1).absent() == ['joint_states', 'wrist']
    assembler.put('wrist', 2.0, {'image': pixels[0, :1]})
    with pytest.raises(ContractMismatch, match=r'has shape \[1, 4, 3\], right is'):
        assembler.assemble(2.0, np.zeros(3))


def test_partly_missing_velocities_are_differences_of_their_own_joints(contract, robot, chain):
    assembler = filling(contract, robot, chain, 'difference')
    for stamp, moved in ((1.0, 0.0), (1.2, 0.1)):
        values = {'position': np.array([1.0, 2.0, 3.0]) * moved, 'velocity': [7.0, np.nan, np.inf]}
        assembler.put('joint_states', stamp, values, NAMES)
    velocity = assembler.latest('joint_states')['velocity']
    np.testing.assert_allclose(velocity, [7.0, 0.2 / 0.2, 0.3 / 0.2])


def test_a_single_missing_velocity_is_filled_alone(contract, robot, chain):
    assembler = filling(contract, robot, chain, 'zero')
    values = {'position': [0, 0, 0], 'velocity': [1.0, np.nan, 3.0]}
    assembler.put('joint_states', 1.0, values, NAMES)
    assert assembler.latest('joint_states')['velocity'].tolist() == [1, 0, 3]


def test_a_contract_without_velocities_does_not_ask_for_them(contract, robot, chain):
    contract = with_fields(
        contract, {'name': 'q', 'source': 'joint_states.position', 'shape': (3,)}
    )
    assembler = ObservationAssembler(contract, robot, chain)
    assembler.put('joint_states', 1.0, {'position': [1, 2, 3], 'velocity': [np.nan] * 3}, NAMES)
    assert assembler.assemble(99.0, np.zeros(3))[0]['q'].tolist() == [1, 2, 3]


WIDTH = {'name': 'width', 'source': 'gripper.width', 'shape': (1,)}


def test_the_grippers_width_is_read_off_its_joint_wherever_it_stands(contract, robot, chain):
    jaw = {'joint': 'knuckle', 'open_width': 0.08, 'topic': 'g', 'positions': (0.8, 0.0)}
    robot = robot.replace(gripper=jaw, tf_prefix='left_')
    assembler = ObservationAssembler(with_fields(contract, WIDTH), robot, chain)
    names = ['left_knuckle', *(f'left_{name}' for name in NAMES)]
    for position, width in ((0.8, 0.0), (0.2, 0.06), (0.0, 0.08)):
        assembler.put('joint_states', 1.0, {'position': [position, 0.1, 0.2, 0.3]}, names)
        seen, _ = assembler.assemble(1.0, [0, 0, 0])
        np.testing.assert_allclose(seen['width'], [width], atol=1e-7)
    with pytest.raises(ContractMismatch, match="its joint 'left_knuckle' is missing"):
        assembler.put('joint_states', 1.1, {'position': [0.1, 0.2, 0.3]}, names[1:])
    with pytest.raises(ContractMismatch, match=r'gripper\.width: not finite'):
        assembler.put('joint_states', 1.1, {'position': [np.nan, 0.1, 0.2, 0.3]}, names)


@given(st.floats(0.0, 0.2), st.sampled_from([None, (0.0, 0.04), (0.8, 0.0)]))
def test_width_and_position_of_a_gripper_are_inverse(width, positions):
    gripper = Gripper(joint='j', open_width=0.085, topic='g', positions=positions)
    assert gripper.width(gripper.position(width)) == pytest.approx(width, abs=1e-12)
    closed, opened = positions or (0.0, 0.0425)  # one of two fingers goes half of the way
    assert gripper.position([0.0, 0.085]).tolist() == pytest.approx([closed, opened])
    assert gripper.command(width) == gripper.commanded_width(width) == width
    forward = gripper.replace(kind='forward_position')
    assert forward.command(width) == pytest.approx(closed + width / 0.085 * (opened - closed))
    assert forward.commanded_width(forward.command(width)) == pytest.approx(width, abs=1e-12)


def test_a_gripper_that_does_not_move_is_refused():
    with pytest.raises(SpecError, match='positions: closed and open are both'):
        Gripper.parse({'joint': 'j', 'open_width': 0.1, 'topic': 'g', 'positions': [1, 1]})
