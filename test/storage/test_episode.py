import errno
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import mcap.writer
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mcap.reader import make_reader
from mcap_ros2.decoder import DecoderFactory

from robot_rl.errors import SpecError, StorageError
from robot_rl.specs import RobotSpec
from robot_rl.storage import streams
from robot_rl.storage.episode import (
    EpisodeHeader,
    EpisodeReader,
    EpisodeWriter,
    read_header,
    set_aside,
    write_header,
)
from robot_rl.storage.files import new_id
from robot_rl.storage.schemas import message_definition
from robot_rl.storage.store import Store
from robot_rl.storage.streams import Required

START_NS = 1_700_000_000_000_000_000


def test_ids_sort_by_time_and_never_repeat():
    ids = [new_id() for _ in range(200)]
    assert len(set(ids)) == 200
    times = [id.rsplit('-', 1)[0] for id in ids]
    assert times == sorted(times)
    assert all(re.fullmatch(r'\d{8}-\d{6}-\d{6}-[0-9a-f]{6}', id) for id in ids)


def test_header_round_trips_and_refuses_what_it_does_not_know(header):
    made = header(tags=('a', 'b'), success=True, seed=2**31 + 5, extra={'from': [1, 2]})
    assert EpisodeHeader.from_json(made.to_json()) == made
    with pytest.raises(SpecError, match="did you mean 'success'"):
        EpisodeHeader.parse({'sucess': True})
    for bad in ('../up', '', 'a b', '.hidden', 'x.partial'):
        with pytest.raises(SpecError, match='id'):
            EpisodeHeader.parse({'id': bad})


@pytest.mark.parametrize(
    'changes',
    [
        {'tf_prefix': 'my arm '},
        {'joint_states_topic': '~/joint_states', 'joint_states_rate_hz': 1e4},
        {'cameras': [{'name': '/camera/color', 'width': 8, 'height': 8}]},
        {'gripper': {'joint': 'elbow', 'open_width': 0.1, 'topic': 'joint_states'}},
        {'controller': {'kind': 'forward_velocity', 'driver_timeout_s': 9.0, 'rate_hz': 2e3}},
        {'joint_limits': {'elbow': {'max_velocity': 100.0}}},
    ],
)
def test_an_episode_of_an_arm_that_no_file_may_be_any_more_is_read(header, changes):
    """Rules came by and by, and with each of them episodes of before could not be opened."""
    data = header().to_dict()
    robot = data['robot_spec']
    for joint, limit in changes.get('joint_limits', {}).items():
        robot['joint_limits'][joint] |= limit
    robot |= {key: value for key, value in changes.items() if key != 'joint_limits'}
    with pytest.raises(SpecError):
        RobotSpec.parse(robot)
    read = EpisodeHeader.from_json(json.dumps(data))
    told = read.robot_spec.model_dump(mode='json', exclude_unset=True)
    assert {key: told[key] for key in changes} == {key: robot[key] for key in changes}
    assert EpisodeHeader.from_json(read.replace(success=True).to_json()).success


OLD = Path(__file__).parent / 'data' / 'episode_v1.json'  # written by the first version


def test_an_older_header_is_read_and_stays_as_it_is(tmp_path):
    (tmp_path / 'episode.json').write_bytes(OLD.read_bytes())
    header = read_header(tmp_path)
    told = json.loads(OLD.read_text())
    assert (told['schema_version'], header.schema_version) == (1, 3)
    assert (header.git_revision, header.interventions) == ('', None)
    unknown = dict.fromkeys(('required_hz', 'expected', 'got', 'delay_s', 'longest_delay_s'))
    topics = {name: topic | unknown for name, topic in told['topics'].items()}
    fields = [field | {'lossless': False} for field in told['contract']['observation']]
    contract = told['contract'] | {'schema_version': 2, 'observation': fields}
    new = {'schema_version': 3, 'git_revision': '', 'interventions': None}
    robot = told['robot_spec'] | {'tip': {'reach': 0.012, 'radius': 0.012}}
    new |= {'topics': topics, 'contract': contract, 'robot_spec': robot}
    assert header.to_dict() == told | new and header.flags == [] and header.skew_s is None
    assert (tmp_path / 'episode.json').read_bytes() == OLD.read_bytes()
    # A change writes the present version, which reads back as the same.
    write_header(tmp_path, header.replace(success=False))
    assert json.loads((tmp_path / 'episode.json').read_text())['schema_version'] == 3
    assert read_header(tmp_path) == header.replace(success=False)


@pytest.mark.parametrize('version', [4, 99, 0, -1, '1', None, True, [1]])
def test_a_header_of_no_known_version_is_refused_and_tells_which_is_read(tmp_path, version):
    data = json.loads(OLD.read_text()) | {'schema_version': version, 'of_the_future': 1}
    (tmp_path / 'episode.json').write_text(json.dumps(data))
    with pytest.raises(StorageError, match=r'episode\.json: schema_version: ') as caught:
        read_header(tmp_path)
    assert '\n' not in str(caught.value)
    newer = isinstance(version, int) and version > 3
    assert ('newer than 3' if newer else 'this robot_rl reads 3, found') in str(caught.value)


def test_a_committed_episode_reads_back_with_every_message_and_its_times(tmp_path, ros, header):
    sent = [
        ros.joint_state(START_NS + i * 10**7 - 500, ['b', 'a'], [i + 0.5, -i], [0.25, i])
        for i in range(40)
    ]
    with EpisodeWriter(tmp_path / 'sto re/ü', header()) as writer:
        for i, message in enumerate(sent):
            ros.write(writer, '/joint_states', message, START_NS + i * 10**7, sequence=i + 1)
        path = writer.commit(result='success', success=True, termination='held the target')
    reader = EpisodeReader(path)
    assert path.name == reader.header.id
    assert (reader.header.result, reader.header.success) == ('success', True)
    assert reader.header.duration_s == pytest.approx(0.39)
    assert reader.types() == {'/joint_states': 'sensor_msgs/msg/JointState'}
    assert reader.damage() is None
    received = list(reader.messages())
    assert len(received) == 40
    for i, (item, message) in enumerate(zip(received, sent, strict=True)):
        assert (item.topic, item.type) == ('/joint_states', 'sensor_msgs/msg/JointState')
        assert item.log_time_ns == item.publish_time_ns == START_NS + i * 10**7
        assert item.sequence == i + 1
        assert item.message.header.stamp.nanosec == message.header.stamp.nanosec
        assert list(item.message.name) == list(message.name)
        np.testing.assert_array_equal(item.message.position, message.position)
        np.testing.assert_array_equal(item.message.velocity, message.velocity)


def test_whatever_a_serialiser_appends_is_ignored(tmp_path, ros, header):
    message = ros.trajectory(START_NS, ['a', 'b'], [1.5, 2.5], 'policy')
    definition = definition_of(ros, message)
    with EpisodeWriter(tmp_path, header()) as writer:
        for extra in (b'', b'\0', b'\0' * 16):
            data = ros.serialize(message) + extra
            writer.write('t', ros.type_name(message), definition, data, START_NS)
        path = writer.commit()
    for item in EpisodeReader(path).messages():
        assert list(item.message.points[0].positions) == [1.5, 2.5]
        assert item.message.header.frame_id == 'policy'


def definition_of(ros, message):
    return message_definition(ros.type_name(message))


def test_the_mcap_library_reads_the_file_by_its_index(tmp_path, record_short):
    """What Foxglove and rosbag2 rely on: profile, summary, schemas, CRCs."""
    with (record_short(tmp_path) / 'streams.mcap').open('rb') as file:
        reader = make_reader(file, decoder_factories=[DecoderFactory()], validate_crcs=True)
        assert reader.get_header().profile == 'ros2'
        summary = reader.get_summary()
        (channel,), (schema,) = summary.channels.values(), summary.schemas.values()
        assert (channel.topic, channel.message_encoding) == ('/note', 'cdr')
        assert (schema.name, schema.encoding) == ('std_msgs/msg/String', 'ros2msg')
        assert summary.statistics.message_count == 5
        texts = [item.decoded_message.data for item in reader.iter_decoded_messages(['/note'])]
    assert texts == [f'note {i}' for i in range(5)]


def test_the_manifest_names_size_and_hash_of_the_streams(tmp_path, record_short):
    path = record_short(tmp_path)
    (stored,) = read_header(path).files
    data = (path / stored.file).read_bytes()
    assert (stored.bytes, stored.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_losses_are_told_of_each_publisher(tmp_path, ros, header):
    """A gripper's joint states among the arm's: each change of publisher was a gap."""
    sent = [(b'arm', 1000), (b'gripper', 10), (b'arm', 1001), (b'gripper', 12), (b'arm', 1002)]
    with EpisodeWriter(tmp_path, header()) as writer:
        for k, (publisher, sequence) in enumerate(sent):
            ros.write(writer, '/a', ros.string('x'), START_NS + k, sequence, publisher)
        assert writer.report()['/a'].lost == 1
        writer.commit()


def test_what_is_sent_again_is_not_lost(tmp_path, ros, header, rng):
    """Messages come in the order of arrival: one that DDS sent again follows later ones."""
    numbers = np.setdiff1d(np.arange(1, 400), lost := [50, 51, 230])
    late = numbers + np.where(rng.random(len(numbers)) < 0.1, rng.integers(2, 30, len(numbers)), 0)
    late[[0, -1]] = numbers[[0, -1]] + [0, 100]
    with EpisodeWriter(tmp_path, header()) as writer:
        for k, number in enumerate(numbers[np.argsort(late, kind='stable')]):
            ros.write(writer, '/a', ros.string('x'), START_NS + k, int(number), b'arm')
        assert writer.report()['/a'].lost == len(lost)


def test_the_report_tells_losses_gaps_and_rates(tmp_path, ros, header):
    # Numbers 1 2 5 (two lost), then a publisher that started anew at 1, then 0: not known.
    arrivals = [(0.0, 1), (0.1, 2), (0.2, 5), (1.0, 1), (1.1, 2), (1.2, 0), (1.3, 9)]
    with EpisodeWriter(tmp_path, header()) as writer:
        assert writer.report() == {}
        for seconds, sequence in arrivals:
            ros.write(writer, '/a', ros.string('x'), START_NS + int(seconds * 1e9), sequence)
        ros.write(writer, '/b', ros.string('x'), START_NS)
        live = writer.report()
        report = read_header(writer.commit()).topics
    assert live == report
    assert (report['/a'].count, report['/a'].lost) == (7, 2)
    assert report['/a'].longest_gap_s == pytest.approx(0.8)
    assert report['/a'].rate_hz == pytest.approx(6 / 1.3)
    assert (report['/b'].count, report['/b'].longest_gap_s, report['/b'].rate_hz) == (1, 0, 0)


def test_what_was_committed_can_be_set_aside_and_is_kept(tmp_path, ros, header, record_short):
    store = Store(tmp_path)
    with EpisodeWriter(tmp_path, header(id='good')) as writer:
        ros.write(writer, '/note', ros.string('kept'), START_NS)
        path = writer.commit(result='success', success=True)
    assert store.episodes('success=true').ids == ['good']
    aside = set_aside(path)
    assert aside.name == 'good.discarded' and not path.exists()
    assert EpisodeReader(aside).header.result == 'discarded'
    assert [item.message.data for item in EpisodeReader(aside).messages()] == ['kept']
    assert store.episodes().ids == [] and aside in store.unfinished()
    with pytest.raises(StorageError, match='cannot be read'):
        set_aside(path)


@pytest.mark.parametrize('from_first', [False, True])
def test_the_report_tells_what_was_required_while_the_episode_ran(
    tmp_path, ros, header, rng, from_first
):
    """10 Hz are asked for from 1 s to 4 s; they come from 0.5 s on, with a pause, until 4.5 s."""
    times = np.sort(np.append(rng.uniform(0.5, 2.0, 12), rng.uniform(3.0, 4.5, 12)))
    delays = rng.uniform(-0.01, 0.05, len(times))
    begin, end = 1.0, 4.0
    with EpisodeWriter(tmp_path, header()) as writer:
        required = {
            '/a': Required('sensor_msgs/msg/JointState', 10.0, from_first),
            '/silent': Required('std_msgs/msg/String', 10.0, from_first),
        }
        writer.run_from(START_NS + int(begin * 1e9), required)
        writer.run_until(START_NS + int(end * 1e9))
        for time_s, delay in zip(times, delays, strict=True):
            arrival = START_NS + round(time_s * 1e9)
            state = ros.joint_state(arrival - round(delay * 1e9), ('a',), [0.0])
            ros.write(writer, '/a', state, arrival)
        ros.write(writer, '/free', ros.string('x'), START_NS)
        live = writer.report()
        read = read_header(writer.commit())
    report = read.topics
    assert live == report
    during = times[(times >= begin) & (times <= end)]
    since = during[0] if from_first else begin
    assert report['/a'].got == len(during)
    assert report['/a'].expected == round((end - since) * 10)
    assert report['/a'].longest_gap_s == pytest.approx(np.diff(times).max(), abs=1e-8)
    assert report['/a'].delay_s == pytest.approx(delays.mean(), abs=1e-8)
    assert report['/a'].longest_delay_s == pytest.approx(delays.max(), abs=1e-8)
    assert (report['/silent'].got, report['/silent'].count) == (0, 0)
    assert report['/silent'].longest_gap_s == pytest.approx(0 if from_first else end - begin)
    assert '/silent' not in EpisodeReader(tmp_path / read.id).types()
    assert report['/silent'].expected == (0 if from_first else 30)
    assert report['/silent'].is_short is not from_first
    assert report['/free'].expected is None and report['/free'].delay_s is None
    assert [line.split(':')[0] for line in read.flags] == [
        name for name in sorted(required) if report[name].is_short
    ]


@pytest.mark.parametrize(
    ('got', 'expected', 'short'),
    [(90, 100, False), (89, 100, True), (0, 2, False), (0, 3, True), (7, 10, True), (8, 9, False)],
)
def test_short_is_what_lacks_a_tenth_and_a_quarter_of_a_second(got, expected, short):
    report = streams.TopicReport(type='a/msg/A', required_hz=10, got=got, expected=expected)
    assert report.is_short is short


def test_skew_is_how_far_apart_the_delays_of_what_is_measured_are(header):
    def report(type_name, delay_s):
        return streams.TopicReport(type=type_name, delay_s=delay_s)

    topics = {
        '/joint_states': report('sensor_msgs/msg/JointState', 0.002),
        '/wrist': report('sensor_msgs/msg/CompressedImage', 0.062),
        '/applied': report('trajectory_msgs/msg/JointTrajectory', 0.5),
        '/notes': report('std_msgs/msg/String', None),
    }
    assert header(topics=topics).skew_s == pytest.approx(0.06)
    assert header(topics={'/wrist': topics['/wrist']}).skew_s is None


def test_what_is_not_committed_stays_partial_and_what_is_discarded_is_kept(
    tmp_path, ros, header, record_short
):
    with EpisodeWriter(tmp_path, header(id='left')) as writer:
        ros.write(writer, '/note', ros.string('kept'), START_NS)
    assert [item.message.data for item in EpisodeReader(writer.path).messages()] == ['kept']
    assert writer.path.name == 'left.partial'
    with EpisodeWriter(tmp_path, header(id='thrown')) as writer:
        ros.write(writer, '/note', ros.string('kept too'), START_NS)
        path = writer.discard(termination='the operator said so')
    reader = EpisodeReader(path)
    assert path.name == 'thrown.discarded'
    assert reader.header.result == 'discarded'
    assert [item.message.data for item in reader.messages()] == ['kept too']


def test_an_error_while_recording_leaves_a_readable_partial(tmp_path, ros, header):
    with pytest.raises(ZeroDivisionError), EpisodeWriter(tmp_path, header(id='e')) as writer:
        ros.write(writer, '/note', ros.string('before'), START_NS)
        raise ZeroDivisionError
    reader = EpisodeReader(tmp_path / 'e.partial')
    assert reader.types() == {'/note': 'std_msgs/msg/String'}
    assert reader.damage() is None


def test_misuse_of_a_writer_is_refused_in_one_line_and_loses_nothing(tmp_path, ros, header):
    with EpisodeWriter(tmp_path, header(id='e')) as writer:
        ros.write(writer, '/note', ros.string('x'), START_NS)
        with pytest.raises(StorageError, match='/note holds std_msgs/msg/String, not sensor'):
            ros.write(writer, '/note', ros.joint_state(START_NS, [], []), START_NS)
        with pytest.raises(SpecError, match="did you mean 'success'"):
            writer.commit(sucess=True)
        ros.write(writer, '/note', ros.string('y'), START_NS)
        with pytest.raises(StorageError, match='no episode can be recorded here'):
            EpisodeWriter(tmp_path, header(id='e'))
        path = writer.commit()
        with pytest.raises(StorageError, match='closed'):
            ros.write(writer, '/note', ros.string('z'), START_NS)
    with pytest.raises(StorageError, match='exists already'):
        EpisodeWriter(tmp_path, header(id='e'))
    assert len(list(EpisodeReader(path).messages())) == 2


def test_a_folder_that_cannot_be_written_is_told_in_one_line(tmp_path, header):
    (tmp_path / 'file').write_text('')
    with pytest.raises(StorageError, match=r'file/x: no episode can be recorded here \(Not a dir'):
        EpisodeWriter(tmp_path / 'file' / 'x', header())


def test_a_full_disk_is_told_by_the_next_write_and_by_commit(tmp_path, ros, header, monkeypatch):
    monkeypatch.setattr(streams, 'FLUSH_PERIOD_S', 0.01)

    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with EpisodeWriter(tmp_path, header(id='e')) as writer:
        ros.write(writer, '/note', ros.string('stored'), START_NS)
        wait_for(lambda: (tmp_path / 'e.partial/streams.mcap').stat().st_size > 100)
        monkeypatch.setattr(streams._HashedFile, 'sync', full)

        def write_fails():
            try:
                ros.write(writer, '/note', ros.string('more'), START_NS)
            except StorageError as error:
                return 'streams.mcap: cannot be written (No space left' in str(error)
            return False

        wait_for(write_fails)
        with pytest.raises(StorageError, match='No space left'):
            writer.commit()
        with pytest.raises(StorageError, match='No space left'):
            writer.close()
    first = next(EpisodeReader(tmp_path / 'e.partial').messages())
    assert first.message.data == 'stored'


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, 'it did not happen'
        time.sleep(0.01)


def test_several_threads_may_write(tmp_path, ros, header):
    with EpisodeWriter(tmp_path, header()) as writer:

        def work(number):
            for i in range(200):
                ros.write(writer, f'/t{number}', ros.string('x' * 100), START_NS + i, i + 1)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        reader = EpisodeReader(writer.commit())
    assert reader.damage() is None
    assert len(list(reader.messages())) == 800
    assert all(report.lost == 0 for report in reader.header.topics.values())


@pytest.fixture(scope='module')
def chunked(tmp_path_factory, ros):
    """An MCAP file of 300 messages in many chunks."""
    path = tmp_path_factory.mktemp('chunked') / 'streams.mcap'
    definition = definition_of(ros, ros.string(''))
    writer = streams.StreamWriter(path)
    for i in range(300):
        data = ros.serialize(ros.string(f'note {i} ' + 'x' * (i % 50)))
        writer.write('/note', 'std_msgs/msg/String', definition, data, START_NS + i)
        if i % 20 == 19:
            with writer._lock:
                writer._mcap.flush()
    writer.close()
    return path


def read_all(path):
    """Return the texts that can be read and the error that ends them, if any."""
    texts = []
    try:
        for item in streams.read_messages(path):
            texts.append(item.message.data.split()[1])
    except StorageError as error:
        return texts, str(error)
    return texts, None


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cut=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_read_up_to_its_last_whole_chunk(chunked, tmp_path, cut):
    data = chunked.read_bytes()
    path = tmp_path / 'cut.mcap'
    path.write_bytes(data[: int(len(data) * cut)])
    texts, error = read_all(path)
    assert texts == [str(i) for i in range(len(texts))] and len(texts) % 20 == 0
    assert '\n' not in error and str(path) in error and 'cut off or damaged' in error
    assert streams.damage(path) == error


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
@example(place=0.6263194640899767, flip=6)  # a chunk became of no known kind, and was passed over
@example(place=0.6263194640899767, flip=3)  # a chunk became a message of an unknown channel
def test_a_flipped_byte_never_gives_a_wrong_message_or_another_error(
    chunked, tmp_path, place, flip
):
    data = bytearray(chunked.read_bytes())
    data[int(len(data) * place)] ^= flip
    path = tmp_path / 'flipped.mcap'
    path.write_bytes(data)
    texts, error = read_all(path)
    assert texts == [str(i) for i in range(len(texts))]
    if error is None:
        assert len(texts) == 300
    else:
        assert '\n' not in error and str(path) in error


def test_a_foreign_or_missing_file_is_told_in_one_line(tmp_path, record_short):
    path = record_short(tmp_path)
    (path / 'streams.mcap').write_text('not an MCAP file at all')
    assert 'invalid magic' in EpisodeReader(path).damage()
    (path / 'streams.mcap').unlink()
    with pytest.raises(StorageError, match=r'streams.mcap: cannot be read \(No such file'):
        list(EpisodeReader(path).messages())
    for text, reason in (('{', 'not valid JSON'), ('[]', 'expected a mapping'), ('\xff', '')):
        (path / 'episode.json').write_bytes(text.encode('latin-1'))
        with pytest.raises(StorageError, match=rf'episode\.json.*{reason}'):
            read_header(path)
    with pytest.raises(StorageError, match='absent'):
        EpisodeReader(tmp_path / 'absent')


def test_messages_that_cannot_be_decoded_are_told_with_their_topic(tmp_path, ros):
    for number, (encoding, schema, data, said) in enumerate(
        [
            ('json', 'jsonschema', b'{}', "its encoding is 'json', not CDR with a ros2msg"),
            ('cdr', 'ros2msg', b'\0\1', 'a message on /t cannot be decoded'),
        ]
    ):
        path = tmp_path / f'{number}.mcap'
        writer = mcap.writer.Writer(str(path))
        writer.start()
        definition = definition_of(ros, ros.string('')).encode()
        schema_id = writer.register_schema('std_msgs/msg/String', schema, definition)
        channel = writer.register_channel('/t', encoding, schema_id)
        writer.add_message(channel, 1, data, 1)
        writer.finish()
        with pytest.raises(StorageError, match=said):
            list(streams.read_messages(path))
        assert list(streams.read_messages(path, topics=['/other'])) == []
        assert streams.topic_types(path) == {'/t': 'std_msgs/msg/String'}


KILLED = textwrap.dedent("""
    import sys, time
    from robot_rl.storage.episode import EpisodeHeader, EpisodeWriter
    root, definition, data = sys.argv[1], sys.argv[2], bytes.fromhex(sys.argv[3])
    for number in range(3):
        writer = EpisodeWriter(root, EpisodeHeader(id=f'e{number}', task='killed'))
        for i in range(50 if number < 2 else 10**9):
            writer.write('/note', 'std_msgs/msg/String', definition, data, time.time_ns())
            time.sleep(0.001)
            if number == 2 and i % 100 == 0:
                print(i, time.time_ns(), flush=True)
        if number < 2:
            writer.commit(result='success')
""")


def run_and_kill(root, ros, seconds):
    """Record in another process, kill it in its third episode; return the time of the kill."""
    message = ros.string('hello')
    arguments = [str(root), definition_of(ros, message), ros.serialize(message).hex()]
    with subprocess.Popen(
        [sys.executable, '-c', KILLED, *arguments], stdout=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        time.sleep(seconds)
        killed_ns = time.time_ns()
        process.send_signal(signal.SIGKILL)
    return killed_ns


def check_after_kill(root, killed_ns):
    for number in range(2):
        reader = EpisodeReader(root / f'e{number}')
        assert reader.damage() is None
        assert len(list(reader.messages())) == 50
    partial = EpisodeReader(root / 'e2.partial')
    assert partial.header.task == 'killed'
    assert 'cut off' in partial.damage()
    times = []
    with pytest.raises(StorageError, match='what stands before is readable'):
        for item in partial.messages():
            assert item.message.data == 'hello'
            times.append(item.log_time_ns)
    return (killed_ns - times[-1]) * 1e-9


def test_a_killed_recorder_loses_at_most_the_tail_of_the_episode_in_hand(tmp_path, ros):
    lost_s = check_after_kill(tmp_path, run_and_kill(tmp_path, ros, seconds=1.5))
    assert lost_s < 3  # half a second between flushes, and a busy machine


def test_a_header_is_replaced_at_one_stroke(tmp_path, record_short, monkeypatch):
    path = record_short(tmp_path)
    before = read_header(path)

    def dies(self, target):
        raise OSError(errno.EIO, 'the machine died')

    monkeypatch.setattr(Path, 'replace', dies)
    with pytest.raises(OSError, match='died'):
        write_header(path, before.replace(success=True))
    assert read_header(path) == before
