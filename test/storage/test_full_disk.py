"""A disk that gets full while recording: limits of a process, and a small file system."""

import contextlib
import os
import resource
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from robot_rl.errors import StorageError
from robot_rl.storage import streams
from robot_rl.storage.checksums import check
from robot_rl.storage.episode import (
    RESERVE_BYTES,
    RESERVE_FILE,
    EpisodeHeader,
    EpisodeReader,
    EpisodeWriter,
)
from robot_rl.storage.recovery import recover
from robot_rl.storage.schemas import message_definition
from robot_rl.storage.store import Store

START_NS = 1_700_000_000_000_000_000

# Records noise until nothing can be written, says so, and what is left of it; then once more.
RECORDER = textwrap.dedent("""
    import os, sys, time
    from robot_rl.errors import StorageError
    from robot_rl.storage.episode import EpisodeHeader, EpisodeWriter
    root, definition = sys.argv[1:3]
    def record(id):
        writer = EpisodeWriter(root, EpisodeHeader(id=id, task='full'))
        try:
            for i in range(10**6):
                text = os.urandom(600).hex().encode() + b'\\0'
                data = b'\\0\\1\\0\\0' + len(text).to_bytes(4, 'little') + text
                writer.write('/noise', 'std_msgs/msg/String', definition, data,
                             1_700_000_000_000_000_000 + i, None, i + 1)
                time.sleep(0.001)
        except StorageError as error:
            print(error, flush=True)
            print(writer.cut(str(error)), flush=True)
    record('e1')
    try:
        record('e2')
    except StorageError as error:
        print('refused:', error, flush=True)
""")


def record_until_full(root, limit=None):
    """Record in another process; return the lines that it prints."""

    def limited():
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, '-c', RECORDER, str(root)]
    command.append(message_definition('std_msgs/msg/String'))
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, preexec_fn=limited)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def check_cut(root, id, words):
    """Hold a cut episode against what was sent; return the number of its messages."""
    reader = EpisodeReader(root / id)
    assert reader.damage() is None and check(reader.path)[:2] == ((), ())
    header = reader.header
    assert (header.result, header.success, header.task) == ('truncated', None, 'full')
    assert words in header.termination
    sequences = [item.sequence for item in reader.messages()]
    assert sequences == list(range(1, len(sequences) + 1))
    assert header.topics['/noise'].count == len(sequences) > 0
    assert header.end_time_ns == START_NS + len(sequences) - 1
    assert not (reader.path / RESERVE_FILE).exists()
    assert Store(root).episodes('task=full result=truncated').ids.count(id) == 1
    return len(sequences)


@pytest.mark.parametrize('limit', [300_000, 1_000_001])
def test_a_file_that_may_grow_no_more_is_a_truncated_episode(tmp_path, ros, limit):
    lines = record_until_full(tmp_path, limit)
    assert f'{tmp_path}/e1.partial/streams.mcap: cannot be written (File too large)' in lines[0]
    assert lines[1] == str(tmp_path / 'e1')
    check_cut(tmp_path, 'e1', 'File too large')
    # What was there when it got full is there: all but what waited for the next flush.
    assert (tmp_path / 'e1' / 'streams.mcap').stat().st_size <= limit


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    place = tmp_path / 'small'
    place.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=2m', 'none', str(place)]
    if not shutil.which('mount') or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip('a small file system needs the right to mount one')
    yield place
    # Lazily: the index of a store may still be open.
    subprocess.run(['umount', '--lazy', str(place)], check=True)


def test_a_full_disk_cuts_the_episode_and_refuses_the_next(small_disk, ros):
    lines = record_until_full(small_disk)
    assert 'e1.partial/streams.mcap: cannot be written (No space left on device)' in lines[0]
    assert lines[1] == str(small_disk / 'e1')
    assert check_cut(small_disk, 'e1', 'No space left on device') > 100
    # What the cut one gave back may be enough for a short one, which is cut as well.
    if (small_disk / 'e2').exists():
        check_cut(small_disk, 'e2', 'No space left on device')
    else:
        told = (
            'no episode can be recorded here (No space',
            'cannot be written (No space',
            'no message reached the disk',
        )
        assert lines[-1].startswith('refused: ') and any(words in lines[-1] for words in told)
    (small_disk / 'fill').write_bytes(b'')
    with contextlib.suppress(OSError), (small_disk / 'fill').open('wb', buffering=0) as file:
        while True:
            file.write(b'x' * 4096)
    before = sorted(os.listdir(small_disk))
    with pytest.raises(StorageError, match=r'no episode can be recorded here \(No space left'):
        EpisodeWriter(small_disk, EpisodeHeader(id='e3'))
    assert sorted(os.listdir(small_disk)) == before  # and nothing is left of it


def test_the_room_that_was_kept_is_given_back(tmp_path, ros, header):
    with EpisodeWriter(tmp_path, header(id='e')) as writer:
        reserved = writer.path / RESERVE_FILE
        assert reserved.stat().st_blocks * 512 >= RESERVE_BYTES
        ros.write(writer, '/note', ros.string('x'), START_NS)
        assert sorted(os.listdir(writer.commit())) == ['episode.json', 'streams.mcap']


def test_a_killed_recorder_s_reserve_goes_when_it_is_recovered(tmp_path, ros, header):
    writer = EpisodeWriter(tmp_path, header(id='e'))
    ros.write(writer, '/note', ros.string('x'), START_NS)
    writer.close()  # without a commit
    assert (writer.path / RESERVE_FILE).exists()
    final = recover(writer.path)
    assert sorted(os.listdir(final)) == ['episode.json', 'streams.mcap']
    assert check(final)[:2] == ((), ())


@pytest.mark.parametrize('fails_at', range(9))
def test_whatever_write_fails_what_stands_before_is_whole(
    tmp_path, ros, header, monkeypatch, fails_at
):
    """Each write to the file fails once, half done; what was written before it is an episode."""
    monkeypatch.setattr(streams, 'FLUSH_PERIOD_S', 1000)
    calls = []

    class Failing(streams._HashedFile):
        def write(self, data):
            calls.append(len(data))
            if len(calls) > 3 + fails_at:  # after the magic bytes and the header
                self._file.write(data[: len(data) // 2])
                raise OSError(28, 'No space left on device')
            return super().write(data)

    monkeypatch.setattr(streams, '_HashedFile', Failing)
    writer = EpisodeWriter(tmp_path, header(id='e', task='full'))
    sent = 0
    with contextlib.suppress(StorageError):
        for sent in range(100):
            ros.write(writer, '/noise', ros.string(f'{sent}'), START_NS + sent, sent + 1)
            with writer._streams._lock, writer._streams._noting_failure():
                writer._streams._mcap.flush()
    with pytest.raises(StorageError):
        writer.commit()
    if fails_at < 3:  # in the first chunk
        with pytest.raises(StorageError, match=r'e\.partial: no message reached the disk'):
            writer.cut('the disk is full')
        return
    path = writer.cut('the disk is full')
    reader = EpisodeReader(path)
    assert reader.damage() is None and check(path)[:2] == ((), ())
    found = [int(item.message.data) for item in reader.messages()]
    assert found == list(range(len(found)))
    assert sent - 1 <= len(found) <= sent + 1
    np.testing.assert_equal(reader.header.result, 'truncated')


def test_where_only_the_header_cannot_be_written_no_message_is_lost(
    tmp_path, ros, header, monkeypatch
):
    def full(path, header):
        raise OSError(28, 'No space left on device')

    writer = EpisodeWriter(tmp_path, header(id='e'))
    for i in range(20):
        ros.write(writer, '/note', ros.string(f'{i}'), START_NS + i, i + 1)
    with monkeypatch.context() as patch:
        patch.setattr('robot_rl.storage.episode.write_header', full)
        with pytest.raises(StorageError, match=r'e\.partial: cannot be committed \(No space'):
            writer.commit(result='success', success=True)
    reader = EpisodeReader(writer.cut('the disk was full'))
    assert [item.message.data for item in reader.messages()] == [str(i) for i in range(20)]
    assert reader.damage() is None and check(reader.path)[:2] == ((), ())
    assert (reader.header.result, reader.header.success) == ('truncated', None)
