"""Columns in one file: an .npz, whose blobs of pictures are mapped into memory, not read."""

from __future__ import annotations

import contextlib
import secrets
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from robot_rl.errors import StorageError
from robot_rl.storage.files import opened
from robot_rl.storage.pictures import Pictures

Column = np.ndarray | Pictures
Columns = dict[str, Column]

_KEY, _NAMES = 'key', 'names'  # what it was made of, and of all other members that there are
_BLOB = '/blob'  # '<column>/blob', '<column>/offsets', ...: the parts of a column of pictures
_LOCAL_HEADER = 30  # [bytes] the fixed part, which ends with the lengths of name and extra field


def write(path: Path, key: str, columns: Mapping[str, Column]) -> None:
    """Replace the file at one stroke: a reader sees the old columns or the new ones.

    `key` says what the columns were made of; read() asks for it. Raises OSError, and leaves
    nothing behind, where the file cannot be written.
    """
    arrays: dict[str, np.ndarray] = {}
    for name, column in columns.items():
        if isinstance(column, Pictures):
            arrays |= {
                f'{name}{_BLOB}': column.blob,
                f'{name}/offsets': column.offsets,
                f'{name}/rows': column.rows,
                f'{name}/size': np.array(column.size),
            }
        else:
            arrays[name] = column
    arrays |= {_NAMES: np.array(sorted(arrays)), _KEY: np.array(key)}
    new = path.with_name(f'{path.name}.{secrets.token_hex(4)}.new')
    try:
        with new.open('xb') as file:
            np.savez(file, **arrays)
        new.replace(path)
    finally:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)


def read(path: Path, key: str | None = None) -> Columns | None:
    """Return the columns of a file; None where there is none, or only one of another `key`.

    Every byte is held against its checksum. Raises StorageError where the file is damaged.
    """
    try:
        with opened(path) as file, np.load(file) as stored:
            if key is not None and str(stored[_KEY]) != key:
                return None
            return _columns(path, stored)
    except FileNotFoundError:
        return None
    except Exception as error:  # damaged bytes make the libraries raise almost anything
        reason = getattr(error, 'strerror', None) or str(error) or type(error).__name__
        raise StorageError(f'{path}: damaged, or no file of columns ({reason})') from None


def read_whole(path: Path) -> Columns:
    """Return the columns of a file that must be there. Raises StorageError."""
    columns = read(path)
    if columns is None:
        raise StorageError(f'{path}: is missing')
    return columns


def _columns(path: Path, stored: np.lib.npyio.NpzFile) -> Columns:
    pictures = {name.removesuffix(_BLOB) for name in stored.files if name.endswith(_BLOB)}
    # An archive's list of members has no checksum: a shorter one would go unseen.
    if sorted({*stored.files} - {_NAMES, _KEY}) != stored[_NAMES].tolist():
        raise StorageError('the list of its columns is not that of what was written')
    columns: Columns = {
        name: stored[name]
        for name in stored.files
        if name not in (_KEY, _NAMES) and name.rsplit('/', 1)[0] not in pictures
    }
    for name in pictures:
        blob = _mapped(path, stored.zip.getinfo(f'{name}{_BLOB}.npy'))
        parts = [stored[f'{name}/{part}'] for part in ('offsets', 'rows', 'size')]
        columns[name] = Pictures(blob, *parts)
    return columns


def _mapped(path: Path, member: zipfile.ZipInfo) -> np.ndarray:
    """Map a one-dimensional array of bytes that a zip archive holds uncompressed."""
    whole = np.memmap(path, np.uint8, mode='r')
    start = member.header_offset
    lengths = whole[start + _LOCAL_HEADER - 4 : start + _LOCAL_HEADER].view('<u2')
    start += _LOCAL_HEADER + int(lengths.sum())
    content = whole[start : start + member.file_size]
    if member.compress_type != zipfile.ZIP_STORED or zlib.crc32(content) != member.CRC:
        raise StorageError(f'the checksum of {member.filename} is another one')
    with path.open('rb') as file:
        file.seek(start)
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        return content[file.tell() - start :]
