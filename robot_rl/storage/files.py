"""Files that are there whole or not at all: written aside, brought to the disk, then renamed."""

from __future__ import annotations

import datetime
import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

# What may name a file or a directory of the storage.
ID_PATTERN = r'^[A-Za-z0-9][\w\-]*$'


# What turns the fields of one version of a file into those of the next.
Migration = Callable[[dict[str, Any]], dict[str, Any]]
# The field by which a JSON file is held against itself; always the last one.
CHECKSUM = 'checksum'
_SEAL = re.compile(rb',\n "%s": "([0-9a-f]{64})"\n\}$' % CHECKSUM.encode())


def new_id() -> str:
    """Return a new id; ids sort by the time (UTC) of their making."""
    now = datetime.datetime.now(datetime.UTC)
    return f'{now:%Y%m%d-%H%M%S-%f}-{secrets.token_hex(3)}'


def opened(path: Path) -> BinaryIO:
    """Open a file to read its bytes. Raises OSError.

    What is no file, a named pipe say, is refused at once: nobody may be about to write into it.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, 'No regular file', str(path))
    return os.fdopen(handle, 'rb')


def read_bytes(path: Path) -> bytes:
    """Return what a file holds. Raises OSError, as opened() does."""
    with opened(path) as file:
        return file.read()


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


def sealed(text: str) -> bytes:
    """Return a JSON object, as pydantic writes it with indent=1, with the SHA-256 of itself."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    body = text.removesuffix('\n}')
    return f'{body},\n "{CHECKSUM}": "{digest}"\n}}'.encode()


def seal_problem(data: bytes) -> str | None:
    """Return what is wrong with a file that sealed() made; None: nothing, or it has no seal."""
    seal = _SEAL.search(data)
    if seal is None:
        return 'its checksum is damaged' if f'"{CHECKSUM}"'.encode() in data else None
    digest = hashlib.sha256(data[: seal.start()] + b'\n}').hexdigest()
    if digest.encode() != seal[1]:
        return 'differs from its own checksum: damaged, or changed by hand'
    return None


def unsealed(fields: Any, migrations: Mapping[int, Migration]) -> Any:
    """Return the fields of a sealed file of any version as those of the present one.

    They are without the seal: it is the file's, not the object's. `migrations[n]` turns the
    fields of version n into those of n + 1; the file itself stays as it is.
    """
    if not isinstance(fields, dict):
        return fields
    fields = {key: value for key, value in fields.items() if key != CHECKSUM}
    found = fields.get('schema_version')
    while type(found) is int and found in migrations:
        fields = migrations[found](fields) | {'schema_version': found + 1}
        found += 1
    return fields


def sync_directory(path: Path) -> None:
    """Bring the names in a directory to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
