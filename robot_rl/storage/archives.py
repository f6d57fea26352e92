"""Archives of whole episodes: a tar file of their directories, with the checksum of every file."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import secrets
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from robot_rl.errors import StorageError
from robot_rl.storage.checksums import Damage, all_files, check, derived_files
from robot_rl.storage.episode import DISCARDED, ID_PATTERN, PARTIAL, read_header, sync_directory
from robot_rl.storage.files import opened

# The last member of an archive: `sha256sum -c SHA256SUMS` checks what was unpacked by hand.
SUMS_FILE = 'SHA256SUMS'
_SUM = re.compile(r'([0-9a-f]{64})  (.+)')


def export(episodes: Iterable[Path], archive: Path) -> tuple[list[str], list[Damage]]:
    """Write the directories of episodes to a tar file; return their ids, and what is damaged.

    An episode with damage is left out. What can be computed again is not carried along. Raises
    StorageError where the archive exists already or cannot be written.
    """
    if archive.exists():
        raise StorageError(f'{archive}: exists already; choose another name')
    # A name of its own: another process may be exporting to the same archive.
    new = archive.with_name(f'{archive.name}.{secrets.token_hex(4)}{PARTIAL}')
    ids, damaged, sums = [], [], []
    try:
        with new.open('xb') as file:
            with tarfile.open(fileobj=file, mode='w', format=tarfile.PAX_FORMAT) as tar:
                for path in episodes:
                    found = check(path).damaged
                    damaged += found
                    if not found:
                        sums += _pack(tar, path)
                        ids.append(path.name)
                _pack_text(tar, SUMS_FILE, ''.join(f'{line}\n' for line in sums))
            file.flush()
            os.fsync(file.fileno())
        if archive.exists():
            raise StorageError(f'{archive}: was made by another process meanwhile')
        new.rename(archive)
        sync_directory(archive.parent)
    except StorageError:  # it is an OSError as well, and says what is wrong
        raise
    except OSError as error:
        raise StorageError(f'{archive}: cannot be written ({error.strerror or error})') from None
    finally:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
    return ids, damaged


def unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive of `export`, plain or compressed since, into an empty folder; check it.

    Raises StorageError that names the archive and its member.
    """
    sums: dict[str, str] | None = None
    found: dict[str, str] = {}
    try:
        with tarfile.open(archive, 'r|*') as tar:
            for member in tar:
                if member.name == SUMS_FILE and member.isreg():
                    sums = _read_sums(tar.extractfile(member).read())
                elif not member.isdir():
                    found[member.name] = _unpack_file(tar, member, folder)
    except Exception as error:  # damaged bytes make the libraries raise almost anything
        reason = getattr(error, 'strerror', None) or str(error) or type(error).__name__
        hint = '' if isinstance(error, OSError) else '; is it what episodes export wrote?'
        raise StorageError(f'{archive}: cannot be unpacked ({reason}){hint}') from None
    if sums is None:
        raise StorageError(f'{archive}: no {SUMS_FILE} at its end; cut off, or not an export')
    for name in sorted(sums.keys() | found.keys()):
        if name not in found:
            raise StorageError(f'{archive}: {name} is missing')
        if sums.get(name) != found[name]:
            raise StorageError(f'{archive}: {name} differs from its SHA-256 in {SUMS_FILE}')


def _unpack_file(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> str:
    """Write one member, to the disk, and return its SHA-256; ValueError for a strange one."""
    parts = member.name.split('/')
    id = parts[0].removesuffix(DISCARDED)
    if not member.isreg() or len(parts) < 2 or not re.match(ID_PATTERN, id):
        raise ValueError(f'{member.name!r} is no file of an episode')
    if any(part in ('', '.', '..') or '\0' in part for part in parts):
        raise ValueError(f'{member.name!r} leads elsewhere')
    target = folder.joinpath(*parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open('xb') as file:
        reader = _Hashed(tar.extractfile(member))
        shutil.copyfileobj(reader, file, 2**20)
        file.flush()
        os.fsync(file.fileno())
    return reader.sha256.hexdigest()


def _read_sums(data: bytes) -> dict[str, str]:
    """Return {name: SHA-256} of the lines of SHA256SUMS; ValueError for a strange line."""
    sums = {}
    for line in data.decode(errors='surrogateescape').split('\n')[:-1]:
        match = _SUM.fullmatch(line)
        if not match:
            raise ValueError(f'{SUMS_FILE}: {line!r} is no line of sha256sum')
        sums[match[2]] = match[1]
    return sums


def _pack(tar: tarfile.TarFile, path: Path) -> list[str]:
    """Put one episode into an archive and return its lines of SHA256SUMS."""
    lines, derived = [], set(derived_files(path, read_header(path)))
    for name in all_files(path):
        if name in derived:
            continue
        member = f'{path.name}/{PurePosixPath(Path(name))}'
        with opened(path / name) as file:
            info = tar.gettarinfo(arcname=member, fileobj=file)
            info.uid = info.gid = 0
            info.uname = info.gname = ''
            reader = _Hashed(file)
            tar.addfile(info, reader)
            lines.append(f'{reader.sha256.hexdigest()}  {member}')
    return lines


def _pack_text(tar: tarfile.TarFile, name: str, text: str) -> None:
    data = text.encode(errors='surrogateescape')  # the bytes of the names, whatever they are
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


class _Hashed:
    """A file that is hashed as it is read."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.sha256 = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.sha256.update(data)
        return data
