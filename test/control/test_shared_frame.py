"""Pictures handed over through shared memory: never torn, whatever becomes of the writer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_rl.control import shared_frame
from robot_rl.control.shared_frame import FrameReader, FrameWriter, frame_path
from robot_rl.errors import RobotRLError

HEIGHT, WIDTH = 48, 64

# Writes pictures of one value each, as fast as it can; stamp and value follow from the number.
WRITER = """
import itertools, pathlib, sys
import numpy as np
from robot_rl.control.shared_frame import FrameWriter

writer = FrameWriter(pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
print('writes', flush=True)
for number in itertools.count(1):
    writer.write(number * 1000, np.full(writer.shape, number % 251, np.uint8))
"""


@pytest.fixture
def path(tmp_path):
    """A camera's file; the folder is none of other processes."""
    return tmp_path / frame_path(7, '/left', 'wrist').name


@pytest.fixture
def hostile(path):
    """Start processes that write without pause; none is left."""
    started = []

    def start() -> subprocess.Popen:
        words = [sys.executable, '-c', WRITER, str(path), str(HEIGHT), str(WIDTH)]
        started.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == 'writes\n'
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def picture(value: int) -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 3), value, np.uint8)


def require_whole(frame) -> int:
    """Return the number of a picture of WRITER, which is of one value, that of its stamp."""
    number = frame.stamp_ns // 1000
    assert (frame.pixels == number % 251).all()
    return number


def test_the_newest_picture_is_read_once_with_its_stamp(path):
    reader = FrameReader(path, HEIGHT, WIDTH)
    assert reader.newest() is None
    writer = FrameWriter(path, HEIGHT, WIDTH)
    assert reader.newest() is None
    rng = np.random.default_rng(0)
    for stamp in (5, -1, 2**62):
        sent = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        writer.write(0, picture(9))
        writer.write(stamp, sent)
        frame = reader.newest()
        assert frame.stamp_ns == stamp and np.array_equal(frame.pixels, sent)
        assert reader.newest() is None
    writer.close()
    assert reader.newest() is None and not path.exists()
    with pytest.raises(ValueError, match='right is uint8'):
        writer.write(1, picture(0)[:-1])


def test_two_arms_and_two_cameras_have_files_of_their_own():
    paths = {
        frame_path(domain, namespace, camera)
        for domain in (1, 11)
        for namespace in ('/', '/left', '/left/wrist', '/right')
        for camera in ('wrist', 'scene')
    }
    assert len(paths) == 16 and frame_path(1, '', 'wrist') in paths
    assert {path.parent for path in paths} == {shared_frame.FOLDER}


def test_a_picture_of_another_size_is_not_taken(path):
    writer = FrameWriter(path, HEIGHT, WIDTH)
    writer.write(1, picture(1))
    assert FrameReader(path, WIDTH, HEIGHT).newest() is None
    reader = FrameReader(path, HEIGHT, WIDTH)
    assert reader.newest().stamp_ns == 1
    writer.close()
    other = FrameWriter(path, 8, 8)
    other.write(2, np.zeros((8, 8, 3), np.uint8))
    assert reader.newest() is None
    assert FrameReader(path, 8, 8).newest().stamp_ns == 2
    other.close()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_whatever_part_of_a_write_has_been_seen_a_whole_picture_is_read(tmp_path_factory, data):
    """Of all bytes that the third write changes, any may have come, and the others not."""
    path = tmp_path_factory.mktemp('frames') / 'robot_rl-frame-x'
    writer = FrameWriter(path, 4, 5)
    pictures = [np.full((4, 5, 3), value, np.uint8) for value in (10, 20, 30)]
    for number, pixels in enumerate(pictures[:2], start=1):
        writer.write(number, pixels)
    before = np.frombuffer(path.read_bytes(), np.uint8)
    writer.write(3, pictures[2])
    after = np.frombuffer(path.read_bytes(), np.uint8)
    changed = np.flatnonzero(before != after)
    seen = data.draw(st.lists(st.booleans(), min_size=len(changed), max_size=len(changed)))
    mixed = before.copy()
    mixed[changed[seen]] = after[changed[seen]]
    path.write_bytes(mixed.tobytes())
    frame = FrameReader(path, 4, 5).newest()
    assert frame.stamp_ns == (3 if all(seen) else 2)
    assert np.array_equal(frame.pixels, pictures[frame.stamp_ns - 1])
    writer.close()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 12400))
def test_rubbish_in_the_file_is_no_picture(tmp_path_factory, rubbish, where):
    path = tmp_path_factory.mktemp('frames') / 'robot_rl-frame-x'
    writer = FrameWriter(path, 4, 5)
    writer.write(1, np.full((4, 5, 3), 10, np.uint8))
    reader = FrameReader(path, 4, 5)
    data = bytearray(path.read_bytes())
    data[where : where + len(rubbish)] = rubbish
    path.write_bytes(data[: data.index(rubbish) + len(rubbish)] if len(rubbish) % 2 else data)
    frame = reader.newest()
    assert frame is None or (frame.pixels == 10).all()
    writer.close()


def test_no_picture_is_torn_while_another_process_writes_without_pause(path, hostile):
    hostile()
    reader = FrameReader(path, HEIGHT, WIDTH)
    numbers, end = [0], time.monotonic() + 60.0
    while len(numbers) < 200 and time.monotonic() < end:
        if (frame := reader.newest()) is not None:
            numbers.append(require_whole(frame))
    assert len(numbers) == 200 and (np.diff(numbers) > 0).all()


def test_a_writer_that_is_killed_anywhere_leaves_its_last_picture_and_room_for_the_next(
    path, hostile
):
    reader = FrameReader(path, HEIGHT, WIDTH)
    for attempt in range(4):
        process = hostile()
        time.sleep(0.02 + 0.013 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        require_whole(FrameReader(path, HEIGHT, WIDTH).newest())
        assert path.exists()
    writer = FrameWriter(path, HEIGHT, WIDTH)
    writer.write(77, picture(7))
    assert reader.newest().stamp_ns == 77  # the same reader, through five writers
    writer.close()


def test_what_dead_processes_left_is_cleared_away_and_what_is_in_use_is_not(path, hostile):
    dead = hostile()
    dead.kill()
    dead.wait()
    left = path.with_name(path.name + '2')
    path.rename(left)
    living = hostile()
    other = FrameWriter(path.with_name(path.name + '3'), 4, 4)
    assert not left.exists() and path.exists()
    with pytest.raises(RobotRLError, match='another process hands over pictures there'):
        FrameWriter(path, HEIGHT, WIDTH)
    other.close()
    reader, end = FrameReader(path, HEIGHT, WIDTH), time.monotonic() + 5.0
    while (frame := reader.newest()) is None:  # it is overtaken again and again
        assert time.monotonic() < end and living.poll() is None
    require_whole(frame)


def test_a_link_to_elsewhere_is_not_followed(path, tmp_path):
    writer = FrameWriter(tmp_path / 'robot_rl-frame-elsewhere', 4, 4)
    writer.write(1, np.zeros((4, 4, 3), np.uint8))
    path.symlink_to(writer.path)
    assert FrameReader(path, 4, 4).newest() is None
    writer.close()


def test_no_shared_memory_is_one_clear_line(tmp_path):
    with pytest.raises(RobotRLError, match=r'no shared memory \(No such file or directory\)'):
        FrameWriter(tmp_path / 'none' / 'frame', 4, 4)


def test_files_are_its_owners_alone(path):
    writer = FrameWriter(path, 4, 4)
    assert os.stat(path).st_mode & 0o077 == 0
    writer.close()
