import itertools
import shutil

import numpy as np
import pytest

from robot_rl.errors import ContractMismatch, SpecError, StorageError
from robot_rl.specs import ActionField
from robot_rl.specs.contract import HEARD_WITHIN
from robot_rl.specs.robot import Gripper
from robot_rl.storage import columns as columns_module
from robot_rl.storage.columns import CACHE_FILE, aligned_columns
from robot_rl.storage.episode import EpisodeReader, EpisodeWriter, write_header
from robot_rl.storage.sources import HOLD, PERSON, POLICY
from robot_rl.storage.store import Store

START_NS = 1_700_000_000_000_000_000
MS = 1_000_000
JOINTS = ('shoulder', 'elbow')


class Recording:
    """A simulated arm, policy and guard; everything that they publish, in arrival order."""

    def __init__(self, ros, rng, ticks=12, namespace='', tail_ms=100, tf_prefix=''):
        self.ros, self.namespace, self.sent = ros, namespace, []
        self.tf_prefix = tf_prefix
        self.states, self.poses, self.ticks, self.applied = [], [], [], {}
        self.end_ms = 503 + 50 * ticks + tail_ms
        for at in range(0, self.end_ms, 10):  # the arm, 100 Hz with jitter
            self._state(START_NS + at * MS + int(rng.integers(0, MS)), rng)
        for at in range(3, self.end_ms, 50):  # the target, 20 Hz
            stamp, values = START_NS + at * MS, rng.normal(size=7)
            self.poses.append((stamp, values))
            self._send('target_pose', ros.pose(stamp, values[:3], values[3:]), stamp)
        for tick in range(ticks):  # the policy, from the newest state at 503, 553, ... ms
            self._tick(START_NS + (503 + 50 * tick) * MS, rng)
        self.sent.sort(key=lambda item: item[0])

    def _send(self, topic, message, stamp):
        self.sent.append((stamp + 300_000, self.namespace + topic, message))

    def _state(self, stamp, rng):
        values = {name: tuple(rng.normal(size=2)) for name in (*JOINTS, 'gripper')}
        order = list(rng.permutation(list(values)))
        self.states.append((stamp, values))
        position, velocity = zip(*(values[name] for name in order), strict=True)
        names = [self.tf_prefix + name for name in order]
        self._send('joint_states', self.ros.joint_state(stamp, names, position, velocity), stamp)

    def _tick(self, now, rng):
        stamp = max(stamp for stamp, _ in self.states if stamp <= now)
        action, target = rng.normal(size=(2, 2))
        self.ticks.append((stamp, action, target))
        trajectory = self.ros.trajectory
        # Names in another order than the contract's and the robot's: names decide.
        self._send('policy/action', trajectory(stamp, JOINTS, action), now)
        self._send('policy/command', trajectory(stamp, JOINTS[::-1], target[::-1]), now)
        for part in range(5):
            self.applied[stamp] = rng.normal(size=2)
            message = trajectory(stamp, JOINTS, self.applied[stamp], 'policy')
            self._send('command_guard/applied', message, now + part * 10 * MS)

    def without(self, *topics):
        self.sent = [item for item in self.sent if item[1] not in topics]
        return self

    def write(self, root, header, drop=()):
        with EpisodeWriter(root, header) as writer:
            for index, (time_ns, topic, message) in enumerate(self.sent):
                if index not in drop:
                    self.ros.write(writer, topic, message, time_ns)
            return EpisodeReader(writer.commit())


@pytest.fixture
def recording(ros, rng):
    return Recording(ros, rng)


def brute_force(recording):
    """Walk the rows one by one over the plain lists."""
    stamps = [stamp for stamp, _, _ in recording.ticks]
    after = min(recording.states, key=lambda state: abs(state[0] - stamps[-1] - 50 * MS))[0]
    rows = {'time': [], 'q': [], 'qd': [], 'place': [], 'turn': [], 'pose_time': []}
    decided = [START_NS + (503 + 50 * tick) * MS for tick in range(len(stamps))]
    for stamp, now in zip([*stamps, after], [*decided, after], strict=True):
        state = [values for at, values in recording.states if at <= stamp][-1]
        # What came before the action did, also what was stamped after the joint states.
        at, pose = [pose for pose in recording.poses if pose[0] <= now][-1]
        rows['time'].append(stamp * 1e-9)
        rows['pose_time'].append(at * 1e-9)
        rows['q'].append([state[name][0] for name in JOINTS])
        rows['qd'].append([state[name][1] for name in JOINTS])
        rows['place'].append(pose[:3])
        rows['turn'].append([pose[6], *pose[3:6]])
    path = [rows['q'][0], *(recording.applied[stamp] for stamp in stamps)]
    return rows | {
        'command': [rows['q'][0], *(target for _, _, target in recording.ticks)],
        # The contract's action names are (elbow, shoulder).
        'requested': [action[::-1] for _, action, _ in recording.ticks],
        'applied': [(b - np.asarray(a))[::-1] for a, b in itertools.pairwise(path)],
    }


@pytest.mark.parametrize('namespace', ['', '/', '/left_arm/'])
def test_columns_equal_a_walk_over_the_messages(tmp_path, ros, rng, header, namespace):
    recording = Recording(ros, rng, namespace=namespace)
    found = aligned_columns(recording.write(tmp_path, header()))
    expected = brute_force(recording)
    names = {
        'time': 'time',
        'q': 'joint_states.position',
        'qd': 'joint_states.velocity',
        'place': 'target_pose.position',
        'turn': 'target_pose.orientation',
        'pose_time': 'target_pose.time',
        'command': 'command.position',
        'requested': 'action/requested',
        'applied': 'action/applied',
    }
    assert set(found) == {*names.values(), 'joint_states.time', 'source'}
    assert found['source'].tolist() == [POLICY] * len(recording.ticks)
    for short, name in names.items():
        assert found[name].dtype == np.float64
        np.testing.assert_allclose(found[name], expected[short], rtol=0, atol=1e-12, err_msg=name)
    assert len(found['time']) == len(found['action/requested']) + 1 == 13


@pytest.mark.parametrize('topic', ['broadcaster/joint_states', '/elsewhere/joint_states'])
def test_joint_states_are_found_where_the_robot_says(tmp_path, recording, header, robot, topic):
    expected = aligned_columns(recording.write(tmp_path, header()))
    recording.sent = [
        (time_ns, topic if name == 'joint_states' else name, message)
        for time_ns, name, message in recording.sent
    ]
    moved = header(robot_spec=robot.replace(joint_states_topic=topic))
    found = aligned_columns(recording.write(tmp_path, moved))
    np.testing.assert_array_equal(
        found['joint_states.position'], expected['joint_states.position']
    )


def test_joints_are_found_behind_a_prefix(tmp_path, ros, header, robot):
    plain, left = (
        Recording(ros, np.random.default_rng(7), tf_prefix=prefix) for prefix in ('', 'left_')
    )
    expected = aligned_columns(plain.write(tmp_path, header()))
    behind = header(robot_spec=robot.prefixed('left_'))
    found = aligned_columns(left.write(tmp_path, behind))
    for name, column in expected.items():
        np.testing.assert_array_equal(found[name], column)
    with pytest.raises(StorageError, match=r'left_shoulder.* missing among .*shoulder'):
        aligned_columns(plain.write(tmp_path / 'other', behind))


def test_the_joint_states_of_a_gripper_are_passed_over(tmp_path, ros, recording, header):
    expected = aligned_columns(recording.write(tmp_path, header()))
    finger = 'joint_states', ros.joint_state(START_NS, ['finger'], [0.02])
    recording.sent = [m for sent in recording.sent for m in (sent, (sent[0] + 1, *finger))]
    found = aligned_columns(recording.write(tmp_path, header()))
    for name, column in expected.items():
        np.testing.assert_array_equal(found[name], column, err_msg=name)


def test_joint_positions_are_applied_as_they_are(tmp_path, recording, header, contract):
    action = contract.action[0].replace(kind='joint_position')
    reader = recording.write(tmp_path, header())
    found = aligned_columns(reader, contract.replace(action=[action.to_dict()]))
    last = [recording.applied[stamp][::-1] for stamp, _, _ in recording.ticks]
    np.testing.assert_array_equal(found['action/applied'], last)


def test_a_recording_that_ends_too_early_leaves_out_the_last_action(tmp_path, ros, rng, header):
    recording = Recording(ros, rng, ticks=4, tail_ms=-45)
    found = aligned_columns(recording.write(tmp_path, header()))
    stamps = np.array([stamp for stamp, _, _ in recording.ticks])
    np.testing.assert_array_equal(found['time'], stamps * 1e-9)
    assert found['action/requested'].shape == found['action/applied'].shape == (3, 2)
    assert found['command.position'].shape == (4, 2)
    with pytest.raises(StorageError, match='no steps'):
        recording = Recording(ros, rng, ticks=1, tail_ms=-45)
        aligned_columns(recording.write(tmp_path, header()))


def test_two_ticks_on_one_sample_are_paired_by_their_order(tmp_path, ros, rng, header):
    recording = Recording(ros, rng, ticks=0)
    first, second, third = (state[0] for state in recording.states[20:35:5][:3])
    targets = {}
    for number, stamp in enumerate((first, second, second, third)):
        now = START_NS + (300 + number) * MS
        targets[number] = rng.normal(size=2)
        for topic in ('policy/action', 'policy/command', 'command_guard/applied'):
            recording._send(topic, ros.trajectory(stamp, JOINTS, targets[number], 'policy'), now)
    recording.sent.sort(key=lambda item: item[0])
    found = aligned_columns(recording.write(tmp_path, header()))
    np.testing.assert_array_equal(
        found['command.position'][1:], [targets[number] for number in range(4)]
    )


def test_a_lost_command_leaves_the_one_before_it(tmp_path, recording, header):
    commands = [i for i, item in enumerate(recording.sent) if item[1] == 'policy/command']
    found = aligned_columns(recording.write(tmp_path, header(), drop={commands[0], commands[5]}))
    targets = np.array([target for _, _, target in recording.ticks])
    targets[5] = targets[4]
    targets[0] = found['joint_states.position'][0]
    np.testing.assert_array_equal(found['command.position'][1:], targets)


def with_velocity(contract, fill):
    fields = [
        field.replace(fill=fill) if field.name == 'qd' else field for field in contract.observation
    ]
    return contract.replace(observation=[field.to_dict() for field in fields])


@pytest.mark.parametrize('empty', [True, False])
def test_velocities_that_the_driver_leaves_out_are_filled_by_rule(
    tmp_path, recording, header, contract, empty
):
    positions, stamps, given = [], [], []
    for _, topic, message in recording.sent:
        if topic == 'joint_states':
            elbow = list(message.name).index('elbow')
            given.append(message.velocity[list(message.name).index('shoulder')])
            if empty:
                message.velocity = []
            else:
                message.velocity[elbow] = np.nan
            where = [list(message.name).index(name) for name in JOINTS]
            positions.append(np.array(message.position)[where])
            stamps.append(message.header.stamp.sec * 10**9 + message.header.stamp.nanosec)
    reader = recording.write(tmp_path, header())
    difference = np.diff(positions, axis=0) / (np.diff(stamps)[:, None] * 1e-9)
    if not empty:
        difference[:, 0] = given[1:]
    found = aligned_columns(reader, with_velocity(contract, 'difference'))
    rows = np.searchsorted(stamps, np.round(found['time'] * 1e9).astype(int) + 200) - 1
    np.testing.assert_allclose(found['joint_states.velocity'], difference[rows - 1], rtol=1e-9)
    found = aligned_columns(reader, with_velocity(contract, 'zero'))
    np.testing.assert_array_equal(found['joint_states.velocity'][:, 1], 0)
    with pytest.raises(StorageError, match=r"'joint_states.velocity' has no value"):
        aligned_columns(reader, with_velocity(contract, 'none'))


@pytest.mark.parametrize(
    ('topic', 'said'),
    [
        ('policy/action', 'needs one topic policy/action, found none among'),
        ('policy/command', 'no topic policy/command'),
        ('command_guard/applied', 'no topic command_guard/applied'),
        ('joint_states', 'no topic joint_states'),
        ('target_pose', "nothing recorded for 'target_pose.position', which the contract reads"),
    ],
)
def test_a_missing_topic_is_named(tmp_path, recording, header, topic, said):
    reader = recording.without(topic).write(tmp_path, header())
    with pytest.raises(StorageError, match=said) as caught:
        aligned_columns(reader)
    assert str(reader.path) in str(caught.value) and '\n' not in str(caught.value)


def test_a_goal_that_came_too_late_is_told(tmp_path, recording, header):
    late = [i for i, item in enumerate(recording.sent) if item[1] == 'target_pose'][:-3]
    reader = recording.write(tmp_path, header(), drop=set(late))
    with pytest.raises(StorageError, match=r"'target_pose\.position' has no value at 11 of 13"):
        aligned_columns(reader)


@pytest.mark.parametrize(
    ('names', 'values', 'said'),
    [
        (('elbow', 'wrist'), (0, 0), r"\['shoulder'\] missing among the names \['elbow', 'wris"),
        (JOINTS, (0, 0, 0), '3 values for 2 names'),
    ],
)
def test_messages_that_do_not_fit_are_told_with_their_topic(
    tmp_path, ros, recording, header, names, values, said
):
    recording._send('policy/action', ros.trajectory(START_NS + 1, names, values), START_NS)
    reader = recording.write(tmp_path, header())
    with pytest.raises(StorageError, match=f'policy/action: {said}'):
        aligned_columns(reader)


def test_an_action_kind_of_later_versions_and_a_bare_header_are_refused(
    tmp_path, recording, header, contract
):
    action = contract.action[0].replace(kind='effort').to_dict()
    reader = recording.write(tmp_path, header())
    with pytest.raises(ContractMismatch, match='delta is of kind effort'):
        aligned_columns(reader, contract.replace(action=[action]))
    bare = recording.write(tmp_path, header(robot_spec=None))
    with pytest.raises(StorageError, match='robot_spec'):
        aligned_columns(bare)


def test_the_cache_serves_until_contract_or_streams_change(
    tmp_path, recording, header, contract, monkeypatch
):
    reader = recording.write(tmp_path, header())
    first = aligned_columns(reader)
    reads = []
    read = columns_module._read
    monkeypatch.setattr(columns_module, '_read', lambda *a: reads.append(1) or read(*a))
    again = aligned_columns(reader)
    assert not reads
    assert set(again) == set(first)
    for name, column in first.items():
        np.testing.assert_array_equal(again[name], column)
    aligned_columns(reader, with_velocity(contract, 'zero'))
    assert len(reads) == 1
    aligned_columns(reader)
    assert len(reads) == 2
    with reader.streams_path.open('ab') as file:
        file.write(b'x')
    aligned_columns(reader)
    assert len(reads) == 3
    # Other streams of the same length, put there with their own manifest.
    (stored,) = reader.header.files
    other = reader.header.replace(files=[stored.replace(sha256='0' * 64)])
    write_header(reader.path, other)
    aligned_columns(EpisodeReader(reader.path))
    assert len(reads) == 4
    write_header(reader.path, reader.header)
    aligned_columns(reader)
    assert len(reads) == 5
    cache = reader.path / CACHE_FILE
    assert {path.name for path in reader.path.iterdir()} == {
        'episode.json', 'streams.mcap', cache.name
    }  # fmt: skip
    for damaged in (b'', b'PK\3\4 no archive', cache.read_bytes()[:-40]):
        cache.write_bytes(damaged)
        np.testing.assert_array_equal(aligned_columns(reader)['time'], first['time'])
    assert len(reads) == 8


def test_a_reward_sequence_has_a_value_for_each_step_or_times(tmp_path, recording, header):
    steps = len(recording.ticks)
    recording.write(tmp_path, header(id='e'))
    store, sketch = Store(tmp_path), {'task': 'stack', 'kind': 'sketch', 'author': 'anna'}
    for values in (1, steps - 1, steps + 1):
        with pytest.raises(SpecError, match=rf'{values} values, but .*/e has {steps} steps; '):
            store.add_reward('e', np.zeros(values), **sketch)
    assert store.open('e').rewards() == []
    by_step = store.add_reward('e', np.zeros(steps), **sketch)
    by_time = store.add_reward('e', [0.0, 1.0], **sketch, times_ns=[START_NS, START_NS + MS])
    assert store.open('e').rewards() == [by_step, by_time]


def test_a_store_that_cannot_be_written_serves_without_a_cache(
    tmp_path, recording, header, monkeypatch
):
    reader = recording.write(tmp_path, header())

    def refuse(*args, **columns):
        raise PermissionError

    monkeypatch.setattr(np, 'savez', refuse)
    assert len(aligned_columns(reader)['time']) == 13
    assert not (reader.path / CACHE_FILE).exists()


def test_a_cut_recording_is_refused_and_a_partial_one_can_be_aligned(
    tmp_path, recording, header, ros
):
    with EpisodeWriter(tmp_path, header(id='p')) as writer:
        for time_ns, topic, message in recording.sent:
            ros.write(writer, topic, message, time_ns)
    found = aligned_columns(EpisodeReader(tmp_path / 'p.partial'))
    assert len(found['time']) == 13
    whole = recording.write(tmp_path, header())
    broken = tmp_path / 'broken'
    shutil.copytree(whole.path, broken)
    data = (broken / 'streams.mcap').read_bytes()
    (broken / 'streams.mcap').write_bytes(data[: len(data) // 3])
    with pytest.raises(StorageError, match='cut off'):
        aligned_columns(EpisodeReader(broken))


def test_a_message_without_a_stamp_counts_from_its_publication(tmp_path, ros, rng, header):
    recording = Recording(ros, rng)
    for _, topic, message in recording.sent:
        if topic == 'target_pose':
            message.header.stamp.sec = message.header.stamp.nanosec = 0
    reader = recording.write(tmp_path, header())
    found = aligned_columns(reader)
    published = {stamp + 300_000: values for stamp, values in recording.poses}
    times = np.round(found['target_pose.time'] * 1e9 - START_NS).astype(int)
    expected = [
        values[:3]
        for time in times
        for at, values in published.items()
        if abs(at - START_NS - time) < 1000
    ]
    np.testing.assert_allclose(found['target_pose.position'], expected)


def grid_of(recording, start, period, steps):
    """Walk over the messages with a clock that ticks every `period` [ns] from `start`."""
    rows = {'time': [], 'q': [], 'place': [], 'command': [], 'applied': []}
    applied = sorted(
        (time_ns, message.points[0].positions)
        for time_ns, topic, message in recording.sent
        if topic == 'command_guard/applied'
    )
    commands = sorted(
        (time_ns, message.points[0].positions[::-1])
        for time_ns, topic, message in recording.sent
        if topic.endswith('/command')
    )
    for now in (start + k * period for k in range(steps + 1)):
        stamp, state = [(at, values) for at, values in recording.states if at <= now][-1]
        known = stamp + 300_000
        rows['time'].append(now * 1e-9)
        rows['q'].append([state[name][0] for name in JOINTS])
        rows['place'].append(
            [pose[:3] for at, pose in recording.poses if at + 300_000 <= known][-1]
        )
        first = [(0, rows['q'][0])]
        rows['command'].append([p for at, p in first + commands if at <= known][-1])
        rows['applied'].append([p for at, p in first + applied if at <= known][-1])
    return {name: np.array(values) for name, values in rows.items()}


def require_grid(found, expected, contract):
    order = [JOINTS.index(name) for name in contract.action_names]
    np.testing.assert_allclose(found['time'], expected['time'], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found['joint_states.position'], expected['q'])
    np.testing.assert_array_equal(found['target_pose.position'], expected['place'])
    np.testing.assert_array_equal(found['command.position'], expected['command'])
    for action, path in (('requested', 'command'), ('applied', 'applied')):
        moved = np.diff(expected[path], axis=0)[:, order]
        np.testing.assert_array_equal(found[f'action/{action}'], moved)


@pytest.mark.parametrize(('rate_hz', 'steps'), [(10, 6), (40, 24), (100, 60), (7, 4)])
def test_another_rate_is_a_walk_with_its_clock(
    tmp_path, recording, header, contract, rate_hz, steps
):
    found = aligned_columns(recording.write(tmp_path, header()), contract.replace(rate_hz=rate_hz))
    start = recording.ticks[0][0]
    expected = grid_of(recording, start, round(1e9 / rate_hz), steps)
    assert len(found['action/requested']) == steps
    require_grid(found, expected, contract)


def by_a_person(sent: list[tuple]) -> list[tuple]:
    """Return what was sent as if a person had commanded what the policy did."""
    return [
        (time_ns, topic.replace('policy/command', 'teleop/command'), message)
        for time_ns, topic, message in sent
        if topic != 'policy/action'
    ]


def test_a_person_s_commands_are_on_a_grid_from_the_first_one(
    tmp_path, recording, header, contract
):
    recording.sent = by_a_person(recording.sent)
    for _, topic, message in recording.sent:
        if topic == 'teleop/command':  # a device that knows no stamps
            message.header.stamp.sec = message.header.stamp.nanosec = 0
    reader = recording.write(tmp_path, header(source='teleop'))
    for rate_hz, steps in ((20, 12), (50, 29)):
        found = aligned_columns(reader, contract.replace(rate_hz=rate_hz))
        expected = grid_of(recording, recording.ticks[0][0], round(1e9 / rate_hz), steps)
        require_grid(found, expected, contract)


def test_what_a_person_commanded_before_the_episode_ran_is_no_step(
    tmp_path, recording, header, contract
):
    """A key was held until the attempt before was thrown away, and the arm was put back."""
    recording.sent = by_a_person(recording.sent)
    expected = grid_of(recording, recording.ticks[0][0], 50 * MS, 12)
    ros, held = recording.ros, recording.ros.trajectory(0, JOINTS, (1.0, 2.0))
    recording.sent += [(START_NS + at * MS, 'teleop/command', held) for at in range(1, 160, 20)]
    for at, state in ((0, 'prepare'), (300, 'ready'), (500, 'running'), (1150, 'ended')):
        text = f'{{"state": "{state}", "episode": "e"}}'
        recording.sent.append((START_NS + at * MS, 'session/state', ros.string(text)))
    recording.sent.sort(key=lambda item: item[0])
    found = aligned_columns(recording.write(tmp_path, header(source='teleop')), contract)
    require_grid(found, expected, contract)
    assert 'session/state.time' not in found


def test_what_a_person_did_to_a_policy_s_episode_was_applied(tmp_path, ros, rng, header):
    """From tick 3 to tick 6 nothing answers the policy: the guard hears somebody else."""
    recording = Recording(ros, rng)
    overruled = [stamp for stamp, _, _ in recording.ticks[3:7]]
    recording.sent = [  # what is applied comes after the tick
        (time_ns + (topic == 'command_guard/applied'), topic, message)
        for time_ns, topic, message in recording.sent
    ]
    for _, topic, message in recording.sent:
        stamp = message.header.stamp
        if topic == 'command_guard/applied' and stamp.sec * 10**9 + stamp.nanosec in overruled:
            stamp.sec = stamp.nanosec = 0
            message.header.frame_id = 'teleop'
    found = aligned_columns(recording.write(tmp_path, header()))
    last = np.array([recording.applied[stamp][::-1] for stamp, _, _ in recording.ticks])
    expected = np.diff(last, axis=0)
    np.testing.assert_allclose(found['action/applied'][1:], expected, atol=1e-12)
    # Tick 3 is the policy's own; from 4 to 7 it has been led elsewhere, by what came before each.
    asked, led = (np.array([t for _, _, t in recording.ticks]), last[:, ::-1])
    command = found['command.position'][1:-1]
    np.testing.assert_array_equal(command[:3], asked[:3])
    np.testing.assert_array_equal(command[3:7], led[3:7])
    np.testing.assert_array_equal(command[7:], asked[7:-1])


def intervene(recording, ros, rng, stamped=False):
    """Let a person lead from the middle of tick 3 to that of tick 6, and the guard hold until 8.

    Returns what was applied, as (arrival, source, position, tick or None), and what the person
    asked for, as (arrival, position).
    """
    first = recording.sent[0][0]
    applied, asked = [], []
    for place, (time_ns, topic, message) in enumerate(recording.sent):
        if topic != 'command_guard/applied':
            continue
        tick, part = divmod(len(applied), 5)
        at = tick + part / 5
        source = 'teleop' if 3.4 <= at < 6.6 else 'hold' if 6.6 <= at < 8 else 'policy'
        message.header.frame_id = source
        if source != 'policy':
            message.header.stamp.sec = 1 if stamped else 0
            message.points[0].positions = rng.normal(size=2).tolist()
        recording.sent[place] = (time_ns + 1, topic, message)  # it comes after the tick
        mine = tick if source == 'policy' else None
        applied.append((time_ns + 1, source, np.array(message.points[0].positions), mine))
    since = next(time for time, source, *_ in applied if source == 'teleop') - first
    for at in range(since - 3 * MS, since + 160 * MS, 25 * MS):
        target = rng.normal(size=2)
        message = ros.trajectory(0, JOINTS[::-1], target[::-1])
        recording.sent.append((first + at, 'teleop/command', message))
        asked.append((first + at, target))
    recording.sent.sort(key=lambda item: item[0])
    return applied, asked


@pytest.mark.parametrize('stamped', [False, True])
def test_every_step_has_its_source_and_what_that_asked_for(tmp_path, ros, rng, header, stamped):
    recording = Recording(ros, rng)
    applied, asked = intervene(recording, ros, rng, stamped)
    found = aligned_columns(recording.write(tmp_path, header()))
    ticks = recording.ticks
    arrivals = [time for time, topic, _ in recording.sent if topic == 'policy/action']
    after = min(recording.states, key=lambda state: abs(state[0] - ticks[-1][0] - 50 * MS))[0]
    ends = [*arrivals[1:], after + 300_000]
    command = [found['joint_states.position'][0]]
    path, sources, requested = [command[0]], [], []
    for tick, end in enumerate(ends):
        begin = arrivals[tick]
        here = [a for a in applied if a[3] == tick or (a[3] is None and begin < a[0] <= end)]
        sources.append({'policy': POLICY, 'teleop': PERSON, 'hold': HOLD}[here[-1][1]])
        path.append(here[-1][2])
        _, action, target = ticks[tick]
        if sources[-1] == PERSON:
            target = [position for time, position in asked if time <= end][-1]
            action = target - command[-1]
        requested.append(action[::-1])  # the contract's order
        last = [a for a in applied if a[0] <= end][-1]  # what a policy goes on from
        command.append(target if last[1] == 'policy' else last[2])
    assert sources == [POLICY] * 3 + [PERSON] * 3 + [HOLD] * 2 + [POLICY] * 4
    assert found['source'].tolist() == sources and found['source'].dtype == np.int8
    np.testing.assert_allclose(found['command.position'], command, atol=1e-12)
    np.testing.assert_allclose(found['action/requested'], requested, atol=1e-12)
    expected = np.diff(path, axis=0)[:, ::-1]
    np.testing.assert_allclose(found['action/applied'], expected, atol=1e-12)


def test_a_person_whose_commands_were_not_recorded_asked_for_what_was_applied(
    tmp_path, ros, rng, header
):
    recording = Recording(ros, rng)
    intervene(recording, ros, rng)
    found = aligned_columns(recording.without('teleop/command').write(tmp_path, header()))
    led = found['source'] == PERSON
    np.testing.assert_allclose(
        found['action/requested'][led][1:], found['action/applied'][led][1:], atol=1e-12
    )


@pytest.mark.parametrize('rate_hz', [10, 40])
def test_on_a_grid_every_step_has_its_source_too(tmp_path, ros, rng, header, contract, rate_hz):
    recording = Recording(ros, rng)
    applied, asked = intervene(recording, ros, rng)
    reader = recording.write(tmp_path, header())
    found = aligned_columns(reader, contract.replace(rate_hz=rate_hz))
    command = np.array([t[2] for t in recording.ticks])
    arrivals = [time for time, topic, _ in recording.sent if topic == 'policy/command']
    start = found['joint_states.position'][0]
    led = [start]
    for row, stamp in enumerate(found['joint_states.time'][1:]):
        known = round(stamp * 1e9) + 300_000
        (_, source, *_) = [a for a in applied if a[0] <= known + 500][-1]
        source = {'policy': POLICY, 'teleop': PERSON, 'hold': HOLD}[source]
        assert found['source'][row] == source
        if source == PERSON:
            led.append([position for time, position in asked if time <= known + 500][-1])
        else:
            led.append(command[np.searchsorted(arrivals, known + 500) - 1])
    np.testing.assert_allclose(found['action/requested'], np.diff(led, axis=0)[:, ::-1])
    assert {POLICY, PERSON, HOLD} == set(found['source'].tolist())


@pytest.mark.parametrize(('source', 'expected'), [('teleop', PERSON), ('policy', POLICY)])
def test_applied_commands_that_do_not_say_whose_they_are_are_the_episode_s_own(
    tmp_path, recording, header, source, expected
):
    sent = []
    for time_ns, topic, message in recording.sent:
        if topic == 'command_guard/applied':
            message.header.frame_id = ''
        sent.append((time_ns, topic.replace('policy/command', f'{source}/command'), message))
    recording.sent = sent
    found = aligned_columns(recording.write(tmp_path, header(source=source)))
    assert set(found['source'].tolist()) == {expected}


def test_too_short_for_a_period_and_unknown_joints_are_told(tmp_path, recording, header, contract):
    reader = recording.write(tmp_path, header())
    with pytest.raises(StorageError, match=r'shorter than a period at 0\.5 Hz'):
        aligned_columns(reader, contract.replace(rate_hz=0.5))
    action = contract.action[0].replace(names=('elbow', 'rail')).to_dict()
    with pytest.raises(ContractMismatch, match=r"\['rail'\] are no joints of made_up"):
        aligned_columns(reader, contract.replace(action=[action]))


OPEN = 0.08


class Turning:
    """Kinematics that can be worked out by hand: the tool turns with the first joint alone."""

    def displacement(self, start, end):
        way = np.zeros((*start.shape[:-1], 6))
        way[..., 0] = end[..., 1] - start[..., 1]
        way[..., 5] = end[..., 0] - start[..., 0]
        return way


def gripping(contract, robot, **changes):
    """Return a contract and a robot of a tool's velocity and a gripper's width."""
    twist = {'name': 'twist', 'kind': 'cartesian_twist', 'names': ('angular_z', 'linear_x')}
    width = {'name': 'width', 'kind': 'gripper', 'names': ('width',), 'lower': (0,), 'upper': (1,)}
    bounds = {'lower': (-1, -1), 'upper': (1, 1)}
    seen = [field.to_dict() for field in contract.observation]
    seen += [{'name': 'width', 'source': 'gripper.width', 'shape': (1,)}]
    fields = contract.to_dict() | {'observation': seen, 'action': [twist | bounds, width]}
    jaw = {'joint': 'gripper', 'open_width': OPEN, 'topic': 'gripper_controller/commands'}
    jaw = Gripper.parse(jaw | changes)
    return type(contract).parse(fields), robot.replace(gripper=jaw)


def grip(recording, source, widths, told=lambda width: width):
    """Let the gripper be told `widths`, one a tick, as the guard passes them on 8 ms later.

    `told` is what its driver takes for a width.
    """
    from std_msgs.msg import Float64MultiArray

    for tick, width in enumerate(widths):
        now = START_NS + (503 + 50 * tick) * MS
        message = Float64MultiArray(data=[width])
        recording._send(f'{source}/gripper', message, now)
        passed = Float64MultiArray(data=[told(min(width, OPEN))])
        recording._send('gripper_controller/commands', passed, now + 8 * MS)
    recording.sent.sort(key=lambda item: item[0])


@pytest.mark.parametrize('kind', ['joint_position', 'joint_delta', 'joint_velocity'])
def test_commands_amount_to_actions_of_other_kinds(tmp_path, recording, header, contract, kind):
    names = {'names': ('elbow', 'shoulder'), 'lower': (-1, -1), 'upper': (1, 1)}
    own = ActionField(name='own', kind='joint_position', **names)
    reader = recording.write(tmp_path, header(contract=contract.replace(action=[own.to_dict()])))
    action = ActionField(name='other', kind=kind, **names)
    found = aligned_columns(reader, contract.replace(action=[action.to_dict()]))
    targets = np.array([target for _, _, target in recording.ticks])
    before = np.vstack([found['joint_states.position'][:1], targets[:-1]])
    expected = {
        'joint_position': np.array([asked[::-1] for _, asked, _ in recording.ticks]),  # its own
        'joint_delta': (targets - before)[:, ::-1],
        'joint_velocity': (targets - before)[:, ::-1] / 0.05,
    }
    np.testing.assert_allclose(found['action/requested'], expected[kind], atol=1e-12)


def test_a_twist_is_what_the_tool_did_and_a_width_what_answered_the_tick(
    tmp_path, recording, header, contract, robot, rng
):
    contract, robot = gripping(contract, robot)
    widths = rng.uniform(0, 2 * OPEN, 12)
    grip(recording, 'teleop', widths)
    recording.sent = [
        (at, topic.replace('policy/command', 'teleop/command'), message)
        for at, topic, message in recording.sent
        if topic != 'policy/action'
    ]
    reader = recording.write(
        tmp_path, header(contract=contract, robot_spec=robot, source='teleop')
    )
    found = aligned_columns(reader, kinematics=lambda given: Turning() if given == robot else None)
    # Rows begin with the newest joint states before the first command and end a period after the
    # last: what is told within a row's period is its action.
    targets = np.array([target for _, _, target in recording.ticks])
    arrivals = np.array([START_NS + (503 + 50 * k) * MS + 300_000 for k in range(12)])
    states = dict(recording.states)
    known = [
        max(at for at in states if at <= time * 1e9 + 1000) + 300_000 for time in found['time']
    ]
    path, asked, told = [found['joint_states.position'][0]], [], []
    for at in known[1:]:
        newest = np.flatnonzero(arrivals <= at)[-1]
        path.append(targets[newest])
        asked.append(widths[newest])
        heard = np.flatnonzero(arrivals + 8 * MS <= at)
        told.append(
            min(widths[heard[-1]], OPEN)
            if len(heard)
            else 2 * states[known[0] - 300_000]['gripper'][0]
        )
    way = np.diff(path, axis=0) / 0.05
    requested = found['action/requested']
    np.testing.assert_allclose(requested, np.column_stack([way, asked]), atol=1e-9)
    np.testing.assert_allclose(found['action/applied'][:, 2], told, atol=1e-12)
    bare = aligned_columns(reader)['action/requested']
    assert np.isnan(bare[:, :2]).all()
    np.testing.assert_array_equal(bare[:, 2], requested[:, 2])
    assert np.isfinite(
        aligned_columns(reader, kinematics=lambda _: Turning())['action/requested']
    ).all()


@pytest.mark.parametrize('kind', ['width', 'forward_position'])
def test_a_policy_s_twist_is_as_it_asked_and_the_guard_s_width_is_the_applied_one(
    tmp_path, recording, header, contract, robot, rng, kind
):
    contract, robot = gripping(contract, robot, kind=kind)
    widths = rng.uniform(0, 2 * OPEN, 12)
    # One of two fingers that slide stands at half of the width.
    share = {'width': 1.0, 'forward_position': 0.5}[kind]
    grip(recording, 'policy', widths, lambda width: share * width)
    asked = rng.normal(size=(12, 3))
    names = ('linear_x', 'width', 'angular_z')
    stamps = [stamp for stamp, _, _ in recording.ticks]
    rows = iter(zip(stamps, asked, strict=True))
    recording.sent = [
        (at, topic, recording.ros.trajectory(*(lambda r: (r[0], names, r[1]))(next(rows))))
        if topic == 'policy/action'
        else (at, topic, message)
        for at, topic, message in recording.sent
    ]
    reader = recording.write(tmp_path, header(contract=contract, robot_spec=robot))
    found = aligned_columns(reader, kinematics=lambda _: Turning())
    np.testing.assert_array_equal(found['action/requested'], asked[:, [2, 0, 1]])
    applied = found['action/applied'][:, 2]
    np.testing.assert_allclose(applied, np.minimum(widths, OPEN), atol=1e-15)
    measured = [
        2 * next(values for stamp, values in recording.states if stamp == at)['gripper'][0]
        for at in stamps
    ]
    np.testing.assert_allclose(found['gripper.width'][:12, 0], measured, atol=1e-12)


def test_a_width_that_the_contract_reads_has_to_be_among_the_joint_states(
    tmp_path, recording, header, contract, robot
):
    contract, robot = gripping(contract, robot)
    jaw = robot.gripper.replace(joint='left_finger')
    reader = recording.write(
        tmp_path, header(contract=contract, robot_spec=robot.replace(gripper=jaw.to_dict()))
    )
    with pytest.raises(StorageError, match=r"'left_finger'\] missing among the names"):
        aligned_columns(reader)


@pytest.mark.parametrize('rate_hz', [20.0, 30.0, 60.0, 7.0])
def test_a_whole_period_is_not_taken_for_when_an_action_was_heard(rate_hz):
    """So every action was sent before it was told, rounded to a nanosecond up or down."""
    whole = round(1.0 / rate_hz % 1 * 1e9)
    assert whole > round(HEARD_WITHIN * 1e9 / rate_hz)
