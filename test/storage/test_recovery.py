"""Recovering is compared with what the mcap library's own reader finds in the cut file."""

import contextlib
import hashlib
import os
import signal
import struct
import subprocess
import sys
import textwrap
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mcap.exceptions import McapError
from mcap.reader import NonSeekingReader
from mcap.records import Channel, Chunk, Message, Schema
from mcap.stream_reader import StreamReader, breakup_chunk

from robot_rl.errors import StorageError
from robot_rl.storage import recovery
from robot_rl.storage.checksums import check
from robot_rl.storage.episode import (
    EpisodeHeader,
    EpisodeReader,
    EpisodeWriter,
    read_header,
    write_header,
)
from robot_rl.storage.recovery import CUT_FILE, recover
from robot_rl.storage.schemas import message_definition
from robot_rl.storage.store import Store

START_NS = 1_700_000_000_000_000_000


def messages_of(path):
    """Return (topic, time, sequence, bytes) of all messages in the whole chunks of a file."""
    found, channels = [], {}
    with path.open('rb') as file, contextlib.suppress(McapError, EOFError, Exception):
        for record in StreamReader(file, emit_chunks=True, validate_crcs=True).records:
            for part in breakup_chunk(record) if isinstance(record, Chunk) else [record]:
                if isinstance(part, Channel):
                    channels[part.id] = part.topic
                elif isinstance(part, Message):
                    topic = channels[part.channel_id]
                    found.append((topic, part.log_time, part.sequence, part.data))
    return found


def partial(root, streams: bytes, **fields):
    """Make what a killed recorder leaves."""
    path = root / 'cut.partial'
    path.mkdir(parents=True)
    write_header(path, EpisodeHeader(id='cut', task='t', start_time_ns=START_NS, **fields))
    (path / 'streams.mcap').write_bytes(streams)
    return path


@pytest.fixture(scope='module')
def recording(tmp_path_factory, ros):
    """The bytes of a whole file: two topics, a chunk every 10 messages."""
    root = tmp_path_factory.mktemp('recording')
    definition = message_definition('std_msgs/msg/String')
    with EpisodeWriter(root, EpisodeHeader(id='e')) as writer:
        for i in range(100):
            data = ros.serialize(ros.string(f'note {i} ' + 'x' * (i % 37)))
            topic = ('/a', '/b')[i % 3 == 0]
            writer.write(topic, 'std_msgs/msg/String', definition, data, START_NS + i, None, i + 1)
            if i % 10 == 9:
                with writer._streams._lock:
                    writer._streams._mcap.flush()
        return (writer.commit() / 'streams.mcap').read_bytes()


def boundaries(data, path):
    """Return the byte offsets at which records of a file begin."""
    path.write_bytes(data)
    with path.open('rb') as file:
        reader = StreamReader(file, emit_chunks=True)
        offsets = [file.tell()]
        for _ in reader.records:
            offsets.append(file.tell())
    return offsets


def check_recovered(path, data):
    """Recover `data` cut short in `path`, and compare; return the number of messages."""
    expected = messages_of(path / 'streams.mcap')
    before = (path / 'episode.json').read_bytes()
    if not expected:
        with pytest.raises(StorageError, match='no message reached the disk') as error:
            recover(path)
        assert '\n' not in str(error.value)
        assert (path / 'streams.mcap').read_bytes() == data
        assert (path / 'episode.json').read_bytes() == before
        assert sorted(os.listdir(path)) == ['episode.json', 'streams.mcap']
        return 0
    final = recover(path)
    reader = EpisodeReader(final)
    assert final.name == 'cut' and not path.exists()
    assert reader.damage() is None and check(final)[:2] == ((), ())
    assert messages_of(final / 'streams.mcap') == expected
    assert (reader.header.result, reader.header.task) == ('truncated', 't')
    assert reader.header.termination.startswith('cut: ')
    assert reader.header.end_time_ns == expected[-1][1]
    counts = {topic: report.count for topic, report in reader.header.topics.items()}
    topics = [topic for topic, *_ in expected]
    assert counts == {topic: topics.count(topic) for topic in set(topics)}
    kept = final / (CUT_FILE if (final / CUT_FILE).exists() else 'streams.mcap')
    assert hashlib.sha256(kept.read_bytes()).digest() == hashlib.sha256(data).digest()
    with (final / 'streams.mcap').open('rb') as file:
        assert len(list(NonSeekingReader(file).iter_messages())) == len(expected)
    return len(expected)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(choice=st.data())
def test_a_recording_cut_anywhere_is_mended_up_to_its_last_flush(
    recording, tmp_path_factory, choice
):
    root = tmp_path_factory.mktemp('cut')
    ends = boundaries(recording, root / 'whole.mcap')
    # Before, at and after the beginning of any record, or anywhere; the start and end as well.
    near = st.sampled_from(ends).flatmap(lambda at: st.integers(at - 9, at + 9))
    at = choice.draw(near | st.integers(0, len(recording)))
    data = recording[: max(0, at)]
    check_recovered(partial(root, data), data)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_damaged_recording_gives_a_line_or_messages_that_were_sent(
    recording, tmp_path_factory, place, flip
):
    root = tmp_path_factory.mktemp('flipped')
    sent = messages_of(partial(root / 'sent', recording) / 'streams.mcap')
    data = bytearray(recording)
    data[int(len(data) * place)] ^= flip
    path = partial(root, bytes(data))
    try:
        final = recover(path)
    except StorageError as error:
        assert '\n' not in str(error) and str(path) in str(error)
        assert (path / 'streams.mcap').read_bytes() == data
        return
    found = messages_of(final / 'streams.mcap')
    assert found == sent[: len(found)]


def test_what_was_closed_but_never_committed_keeps_its_file(tmp_path, recording):
    path = partial(tmp_path, recording)
    assert check_recovered(path, recording) == 100
    assert sorted(os.listdir(tmp_path / 'cut')) == ['episode.json', 'streams.mcap']
    assert 'complete' in read_header(tmp_path / 'cut').termination


def test_what_cannot_be_recovered_is_said_and_stays(tmp_path, recording, record_short):
    live = EpisodeWriter(tmp_path, EpisodeHeader(id='live'))
    with live, pytest.raises(StorageError, match=r'live.partial: in use by another process'):
        recover(live.path)
    committed = record_short(tmp_path, id='done')
    with pytest.raises(StorageError, match=r'only what is called <id>\.partial'):
        recover(committed)
    record_short(tmp_path, id='cut')
    path = partial(tmp_path, recording)
    with pytest.raises(StorageError, match='cut: this episode exists already'):
        recover(path)
    other = path.rename(tmp_path / 'renamed.partial')
    with pytest.raises(StorageError, match='holds episode cut; rename'):
        recover(other)
    (other / 'episode.json').write_text('{')
    with pytest.raises(StorageError, match='not valid JSON'):
        recover(other)
    assert (other / 'streams.mcap').read_bytes() == recording


@pytest.mark.parametrize('step', range(4))
def test_dying_while_recovering_loses_nothing(tmp_path, recording, monkeypatch, step):
    """Each step that changes the directory fails once; recovering again gives the episode."""
    data = recording[: len(recording) // 2]
    path = partial(tmp_path, data)
    expected = messages_of(path / 'streams.mcap')
    steps = []

    def dies(real):
        def call(*arguments, **options):
            steps.append(real)
            if len(steps) == step + 1:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(recovery, 'sync_directory', dies(recovery.sync_directory))
        patch.setattr(recovery, 'write_header', dies(recovery.write_header))
        patch.setattr(recovery.Path, 'rename', dies(recovery.Path.rename))
        with pytest.raises(KeyboardInterrupt):
            recover(path)
    final = recover(path) if path.exists() else tmp_path / 'cut'
    assert messages_of(final / 'streams.mcap') == expected
    assert (final / CUT_FILE).read_bytes() == data
    assert check(final)[:2] == ((), ())


# Records and commits short episodes, one after another, and keeps a note of how far it is that
# outlives it: how many are committed, then the episode, number and time of the last message.
RECORDER = textwrap.dedent("""
    import mmap, struct, sys, time
    from robot_rl.storage.episode import EpisodeHeader, EpisodeWriter
    root, note, definition, data, run = sys.argv[1:]
    file, data = open(note, 'r+b'), bytes.fromhex(data)
    note = mmap.mmap(file.fileno(), 32)
    for number in range(10**6):
        writer = EpisodeWriter(root, EpisodeHeader(id=f'{run}-{number}', task='t'))
        for i in range(10**6 if number % 3 == 2 else 300):
            now_ns = time.time_ns()
            writer.write('/note', 'std_msgs/msg/String', definition, data, now_ns, None, i + 1)
            note[8:32] = struct.pack('<3Q', number, i + 1, now_ns)
            time.sleep(0.001)
        writer.commit()
        note[:8] = struct.pack('<Q', number + 1)
""")
PROMISED_S = 0.5


def record_and_kill(root, note, ros, run, rng):
    """Record in another process, and kill it at a random moment; return what it had noted."""
    note.write_bytes(bytes(32))
    definition = message_definition('std_msgs/msg/String')
    data = ros.serialize(ros.string('hello')).hex()
    command = [sys.executable, '-c', RECORDER, str(root), str(note), definition, data, str(run)]
    with subprocess.Popen(command) as process:
        until = time.monotonic() + 30
        while not note.read_bytes()[16]:  # it has begun
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 2.5))
        process.send_signal(signal.SIGKILL)
    return struct.unpack('<4Q', note.read_bytes())


def check_after_kill(root, run, noted):
    """Hold a store against the note; return how much of the episode in hand is lost [s]."""
    committed, number, messages, last_ns = noted
    names = {path.name for path in root.iterdir() if path.name.startswith(f'{run}-')}
    whole = {name for name in names if not name.endswith('.partial')}
    # The last commit may have been done just before it was noted.
    assert {f'{run}-{n}' for n in range(committed)} <= whole
    assert whole <= {f'{run}-{n}' for n in range(committed + 1)}
    for name in whole:
        reader = EpisodeReader(root / name)
        assert reader.damage() is None and check(reader.path)[:2] == ((), ())
        assert reader.header.topics['/note'].count == len(list(reader.messages())) == 300
    if f'{run}-{number}' in whole:
        return 0.0  # killed between two episodes
    path = root / f'{run}-{number}.partial'
    first_ns = last_ns - messages * 10**6
    try:
        count = len(list(EpisodeReader(recover(path)).messages()))
    except StorageError as error:
        assert 'no message reached the disk' in str(error)
        return (last_ns - first_ns) * 1e-9
    reader = EpisodeReader(root / f'{run}-{number}')
    assert [item.sequence for item in reader.messages()] == [*range(1, count + 1)]
    assert reader.damage() is None and check(reader.path)[:2] == ((), ())
    assert reader.header.result == 'truncated'
    return max(0.0, (last_ns - reader.header.end_time_ns) * 1e-9)


def check_kills(tmp_path, ros, rng, kills):
    root = tmp_path / 'episodes'
    root.mkdir()
    lost_s = []
    for run in range(kills):
        noted = record_and_kill(root, tmp_path / 'note', ros, run, rng)
        lost_s.append(check_after_kill(root, run, noted))
    store = Store(root)
    assert store.episodes('task=t').ids and not store.damaged
    assert {header.result for header in store.episodes()} <= {'', 'truncated'}
    assert max(lost_s) <= PROMISED_S, sorted(lost_s)[-5:]
    assert max(lost_s) > 0, 'nobody was killed while recording'


def test_a_recorder_that_is_killed_loses_half_a_second_of_the_episode_in_hand(tmp_path, ros, rng):
    check_kills(tmp_path, ros, rng, 3)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fifty_kills_at_random_moments(tmp_path, ros, rng):
    check_kills(tmp_path, ros, rng, 50)


def test_schemas_are_kept(tmp_path, recording):
    data = recording[: len(recording) // 2]
    final = recover(partial(tmp_path, data))
    with (final / 'streams.mcap').open('rb') as file:
        found = [record for record in StreamReader(file).records if isinstance(record, Schema)]
    definition = message_definition('std_msgs/msg/String').encode()
    assert {(schema.name, schema.encoding, schema.data) for schema in found} == {
        ('std_msgs/msg/String', 'ros2msg', definition)
    }
