"""Files that are there whole or not at all: written aside, brought to the disk, then renamed."""

from __future__ import annotations

import datetime
import os
import secrets
from pathlib import Path

# What may name a file or a directory of the storage.
ID_PATTERN = r'^[A-Za-z0-9][\w\-]*$'


def new_id() -> str:
    """Return a new id; ids sort by the time (UTC) of their making."""
    now = datetime.datetime.now(datetime.UTC)
    return f'{now:%Y%m%d-%H%M%S-%f}-{secrets.token_hex(3)}'


def write_whole(path: Path, data: bytes) -> None:
    """Write or replace a file at one stroke: a reader sees all of it, or what was there before.

    Only one process at a time may write a path. Raises OSError.
    """
    new = path.with_name(f'{path.name}.new')
    with new.open('wb') as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Bring the names in a directory to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
