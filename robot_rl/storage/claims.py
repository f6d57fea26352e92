"""The only right to work in a folder: held by a process, and gone with it however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from robot_rl.errors import StorageError


class Claim:
    """A lock on a directory; it follows the directory when that is renamed.

    Raises StorageError where another holds it, or waits for it. On a file system without locks
    there is nothing to hold, and everybody has a claim.
    """

    def __init__(self, path: Path, wait: bool = False):
        self._handle: int | None = None
        try:
            self._handle = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise StorageError(f'{path}: cannot be opened ({error.strerror})') from None
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN):
                self.release()
                raise StorageError(
                    f'{path}: in use by another process (a recorder, or one that recovers, '
                    'imports, merges or clears away); try again when it is done'
                ) from None

    def release(self) -> None:
        """Give the right back; a second time does nothing."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __del__(self) -> None:
        self.release()

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


def in_use(path: Path) -> bool:
    """Return whether another process has a claim on `path`, or nobody can have one."""
    try:
        Claim(path).release()
    except StorageError:
        return True
    return False
