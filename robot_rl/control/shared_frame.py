"""The newest picture of a camera, handed from one process to another through shared memory.

A picture is a file in memory with two slots, each with a number, a stamp and a checksum of them
and of the pixels. It is written to the slot that does not hold the newest one, which so stays
whole whatever becomes of the writer; a reader takes the highest number whose checksum is right:
never a torn picture, in whatever order a processor lets it see what was written.

A writer holds a lock on its file until it ends, however it ends; files that nobody holds are
cleared away by the next writer. multiprocessing.shared_memory has a tracker instead, which
takes away what other processes still use.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from robot_rl.errors import RobotRLError

FOLDER = Path('/dev/shm')
_PREFIX = f'robot_rl-frame-{os.getuid()}-'
_FILE_HEAD = struct.Struct('<8sII')  # magic, height, width
_MAGIC = b'rrlfrm01'
_NUMBERS = struct.Struct('<Qq')  # number, from 1 on; stamp [ns]
_CHECKSUM = struct.Struct('<I')
_SLOT_HEAD = _NUMBERS.size + _CHECKSUM.size
_TRIES = 4  # a slot that was whole may be overwritten while it is read


class Frame(NamedTuple):
    """A picture [height, width, 3] uint8, RGB, and when it was taken."""

    stamp_ns: int
    pixels: np.ndarray


def frame_path(domain_id: int, namespace: str, camera: str) -> Path:
    """Return the file of a camera: two arms differ in their ROS domain or namespace."""
    parts = [part for part in namespace.split('/') if part]
    return FOLDER / (_PREFIX + '.'.join([str(domain_id), *parts, camera]))


class FrameWriter:
    """Hands over the newest picture of one camera, at one size.

    Raises RobotRLError where another process does, or where there is no shared memory.
    """

    def __init__(self, path: Path, height: int, width: int):
        self.path, self.shape, self._number = path, (height, width, 3), 0
        try:
            _clear_away(path.parent)
            self._file = _new_file(path, height, width)
        except FileExistsError:
            raise RobotRLError(f'{path}: another process hands over pictures there') from None
        except OSError as error:
            raise RobotRLError(f'{path}: no shared memory ({error.strerror})') from None

    def write(self, stamp_ns: int, pixels: np.ndarray) -> None:
        """Hand over a picture [height, width, 3] uint8."""
        if pixels.shape != self.shape or pixels.dtype != np.uint8:
            raise ValueError(f'{pixels.dtype} {pixels.shape}, right is uint8 {self.shape}')
        self._number += 1
        data, numbers = np.ascontiguousarray(pixels), _NUMBERS.pack(self._number, stamp_ns)
        checksum = _CHECKSUM.pack(_checksum(numbers, data))
        os.pwritev(self._file, [numbers, checksum, data], _slot(self._number % 2, self.shape))

    @property
    def closed(self) -> bool:
        """Whether close() has been called."""
        return self._file < 0

    def close(self) -> None:
        """Take the picture away."""
        if not self.closed:
            _unlink(self.path, self._file)
            os.close(self._file)
            self._file = -1


class FrameReader:
    """Reads the newest picture of one camera, whoever writes it and however often it restarts."""

    def __init__(self, path: Path, height: int, width: int):
        self.path, self.shape = path, (height, width, 3)
        self._file, self._identity, self._last = -1, (0, 0), 0

    def newest(self) -> Frame | None:
        """Return the newest picture; None: none of this size has come since the last call."""
        if not self._attach():
            return None
        for _ in range(_TRIES):
            numbers = sorted(((self._peek(slot), slot) for slot in (0, 1)), reverse=True)
            if numbers[0][0] <= self._last:
                return None
            for number, slot in numbers:
                frame = self._take(number, slot) if number > self._last else None
                if frame is not None:
                    self._last = number
                    return frame
        return None

    def close(self) -> None:
        """Let go of the file."""
        if self._file >= 0:
            os.close(self._file)
        self._file, self._identity, self._last = -1, (0, 0), 0

    def _attach(self) -> bool:
        """Tell whether there is a file of a writer of ours; hold on to it until it is another."""
        try:
            there = os.stat(self.path, follow_symlinks=False)
        except OSError:
            self.close()
            return False
        if self._file < 0 or (there.st_dev, there.st_ino) != self._identity:
            self.close()
            self._open()
        return self._file >= 0

    def _open(self) -> None:
        try:
            file = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return
        about, head = os.fstat(file), os.pread(file, _FILE_HEAD.size, 0)
        right = _FILE_HEAD.pack(_MAGIC, *self.shape[:2])
        if about.st_uid == os.getuid() and head == right:
            self._file, self._identity = file, (about.st_dev, about.st_ino)
        else:
            os.close(file)

    def _peek(self, slot: int) -> int:
        data = os.pread(self._file, _NUMBERS.size, _slot(slot, self.shape))
        return _NUMBERS.unpack(data)[0] if len(data) == _NUMBERS.size else 0

    def _take(self, number: int, slot: int) -> Frame | None:
        """Return the picture in a slot where it is whole and still the one of this number."""
        size = _SLOT_HEAD + int(np.prod(self.shape))
        data = os.pread(self._file, size, _slot(slot, self.shape))
        if len(data) != size:
            return None
        pixels = np.frombuffer(data, np.uint8, offset=_SLOT_HEAD)
        found, stamp_ns = _NUMBERS.unpack_from(data)
        (checksum,) = _CHECKSUM.unpack_from(data, _NUMBERS.size)
        if found != number or checksum != _checksum(data[: _NUMBERS.size], pixels):
            return None
        return Frame(stamp_ns, pixels.reshape(self.shape))


def _slot(slot: int, shape: tuple[int, int, int]) -> int:
    """Return where a slot begins: on a page of its own, not beside what is being read."""
    page = 4096
    size = -(-(_SLOT_HEAD + int(np.prod(shape))) // page) * page
    return page + slot * size


def _checksum(numbers: bytes, pixels: np.ndarray) -> int:
    return zlib.crc32(pixels, zlib.crc32(numbers))


def _new_file(path: Path, height: int, width: int) -> int:
    """Create a locked file and give it its name in one step. Raises OSError."""
    file = os.open(path.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(file, _slot(2, (height, width, 3)))
        os.pwrite(file, _FILE_HEAD.pack(_MAGIC, height, width), 0)
        folder = os.open(path.parent, os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.link(f'/proc/self/fd/{file}', path.name, dst_dir_fd=folder, follow_symlinks=True)
        finally:
            os.close(folder)
    except BaseException:
        os.close(file)
        raise
    return file


def _clear_away(folder: Path) -> None:
    """Unlink the files of writers that have died."""
    for path in folder.glob(f'{_PREFIX}*'):
        with contextlib.suppress(OSError):
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _unlink(path, file)
            finally:
                os.close(file)


def _unlink(path: Path, file: int) -> None:
    """Unlink `path` where it is `file`."""
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(file)):
            path.unlink()
