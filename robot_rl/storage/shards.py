"""Training data of many episodes: their columns one after another, in memory-mapped shards.

A shard is a directory of raw columns, one file each, episodes one after another, with shard.json
to say what they are and where the episodes end. It is written as '<number>.partial', renamed when
it is whole, and never changed then. This is derived data, in the row semantics of storage.steps:
made anew from the episodes whenever something else is wanted.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import pydantic

from robot_rl.errors import SpecError, StorageError
from robot_rl.specs import Spec
from robot_rl.storage.pictures import Pictures
from robot_rl.storage.steps import DISCOUNT, REWARD, STEP_TYPE, Steps

HEADER_FILE = 'shard.json'
PARTIAL = '.partial'
# What is mapped takes no memory, and from one file a batch is gathered at once: it is large.
SHARD_BYTES = 2**34
# Read for every window that is considered: a few bytes a row, which are kept in memory.
_IN_MEMORY = (STEP_TYPE, REWARD, DISCOUNT)
_OFFSETS, _ROWS = '.offsets', '.rows'


class StoredColumn(Spec):
    """How one column lies in its file."""

    # 'pictures' are the parts of storage.pictures.Pictures, a file each; `shape` is that of a
    # decoded one.
    kind: Literal['array', 'pictures'] = 'array'
    dtype: str
    shape: tuple[pydantic.NonNegativeInt, ...]

    @pydantic.field_validator('dtype')
    @classmethod
    def _is_of_numbers(cls, value: str) -> str:
        try:
            kind = np.dtype(value).kind
        except TypeError as error:
            raise ValueError(str(error)) from None
        if kind not in 'biuf':
            raise ValueError(f'{value} is no type of numbers')
        return value


class ShardHeader(Spec):
    """shard.json: the columns of a shard, and behind which rows its episodes end."""

    schema_version: Literal[1] = 1
    columns: dict[str, StoredColumn]
    ends: tuple[pydantic.PositiveInt, ...] = pydantic.Field(min_length=1)


class ShardWriter:
    """Writes episodes into shards below `folder`, which holds none yet, an episode at a time.

    A shard is finished once it has `shard_bytes`. Use it in a `with` block, which finishes the
    last one; after an error it stays partial. Raises StorageError where nothing can be written,
    where there are shards already, and for episodes that differ in their columns.
    """

    def __init__(self, folder: str | Path, shard_bytes: int = SHARD_BYTES):
        self.folder, self.rows = Path(folder), 0
        self._shard_bytes, self._shards = shard_bytes, 0
        self._columns: dict[str, StoredColumn] = {}
        self._files: dict[str, BinaryIO] = {}
        self._ends: list[int] = []
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            empty = not any(self.folder.iterdir())
        except OSError as error:
            raise StorageError(f'{self.folder}: cannot be written ({error.strerror})') from None
        if not empty:
            raise StorageError(f'{self.folder}: not empty; name a new folder for the shards')

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is None:
            self._finish()
        for file in self._files.values():
            file.close()

    def append(self, episode: Mapping[str, np.ndarray | Pictures]) -> tuple[int, int]:
        """Add an episode {column: [T + 1, ...]} and return its rows [begin, end) among all."""
        columns, lengths = _columns_of(episode), {len(c) for c in episode.values()}
        if len(lengths) != 1 or lengths == {0}:
            raise StorageError(f'shards: an episode with columns of {sorted(lengths)} rows')
        if self._columns and columns != self._columns:
            raise StorageError(
                f'shards: an episode with columns {_shown(columns)}, the first one '
                f'has {_shown(self._columns)}'
            )
        self._columns, (length,) = columns, lengths
        try:
            if not self._files:
                self._begin()
            for name, values in episode.items():
                self._write(name, values)
            self._ends.append((self._ends[-1] if self._ends else 0) + length)
        except OSError as error:
            raise StorageError(f'{self._path}: cannot be written ({error.strerror})') from None
        if sum(file.tell() for file in self._files.values()) >= self._shard_bytes:
            self._finish()
        self.rows += length
        return self.rows - length, self.rows

    @property
    def _path(self) -> Path:
        return self.folder / f'{self._shards:06d}{PARTIAL}'

    def _begin(self) -> None:
        self._path.mkdir()
        for name, column in self._columns.items():
            parts = (name, name + _OFFSETS, name + _ROWS)
            for part in parts if column.kind == 'pictures' else parts[:1]:
                self._files[part] = (self._path / _file(part)).open('wb')
            if column.kind == 'pictures':
                self._files[name + _OFFSETS].write(np.zeros(1, np.int64).data)

    def _write(self, name: str, values: np.ndarray | Pictures) -> None:
        if not isinstance(values, Pictures):
            self._files[name].write(np.ascontiguousarray(values).data)
            return
        blob, offsets, rows = (self._files[name + part] for part in ('', _OFFSETS, _ROWS))
        shown, numbers = np.unique(values.rows, return_inverse=True)  # of a slice not all are
        before = offsets.tell() // 8 - 1
        for number in shown.tolist():
            blob.write(values.blob[values.offsets[number] : values.offsets[number + 1]])
            offsets.write(np.array([blob.tell()], np.int64).data)
        rows.write((before + numbers.reshape(-1)).astype(np.int64).data)

    def _finish(self) -> None:
        """Make the shard in hand one that is opened, where there is one."""
        if not self._files:
            return
        try:
            header = ShardHeader(columns=self._columns, ends=tuple(self._ends))
            for file in self._files.values():
                file.close()
            (self._path / HEADER_FILE).write_text(header.to_json(), encoding='utf-8')
            self._path.rename(self._path.with_suffix(''))
        except OSError as error:
            raise StorageError(f'{self._path}: cannot be written ({error.strerror})') from None
        self._files, self._ends, self._shards = {}, [], self._shards + 1


class ShardedColumn:
    """The same column of several shards, as one: rows are numbered on from shard to shard."""

    def __init__(self, parts: list[np.ndarray | Pictures]):
        self._parts, self._ends = parts, np.cumsum([len(part) for part in parts])
        self.shape = (int(self._ends[-1]), *parts[0].shape[1:])
        self.dtype = parts[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, rows: np.ndarray, axis: int = 0) -> np.ndarray:
        """Return `rows` [...] as [..., *shape of a row], which is what a NumPy array does."""
        wanted = np.ravel(rows)
        taken = np.empty((len(wanted), *self.shape[1:]), self.dtype)
        shards = np.searchsorted(self._ends, wanted, side='right')
        for shard in np.unique(shards).tolist():
            here, part = shards == shard, self._parts[shard]
            taken[here] = part.take(wanted[here] - (self._ends[shard] - len(part)), axis=0)
        return taken.reshape(*np.shape(rows), *self.shape[1:])


def _joined(parts: list[np.ndarray | Pictures]) -> np.ndarray | Pictures | ShardedColumn:
    return parts[0] if len(parts) == 1 else ShardedColumn(parts)


class ShardedSteps(Steps):
    """All episodes in the shards below a folder, as one lane of Steps.

    Columns are mapped, not read: memory that they take is the system's, which drops it when it
    is needed. Pictures are read and decoded when they are taken. `spans` [E, 2] are the rows
    [begin, end) of each episode.

    Raises StorageError where there is no shard, or one that is damaged or of other columns.
    """

    def __init__(self, folder: str | Path):
        paths = sorted(p for p in Path(folder).glob('*') if p.is_dir() and p.suffix != PARTIAL)
        if not paths:
            raise StorageError(f'{folder}: no shards here')
        headers = [_read_header(path) for path in paths]
        for path, header in zip(paths, headers, strict=True):
            if header.columns != headers[0].columns:
                raise StorageError(
                    f'{path}: columns {_shown(header.columns)}, {paths[0].name} '
                    f'has {_shown(headers[0].columns)}'
                )
        missing = {*_IN_MEMORY} - set(headers[0].columns)
        if missing:
            raise StorageError(f'{folder}: columns {sorted(missing)} are missing')
        self.flat = {
            name: _joined([_map(*shard, name) for shard in zip(paths, headers, strict=True)])
            for name in headers[0].columns
        }
        for name in _IN_MEMORY:
            self.flat[name] = self.flat[name].take(np.arange(len(self.flat[name])))
        rows = [header.ends[-1] for header in headers]
        self.lanes, self.length, self.size, self.head = 1, sum(rows), sum(rows), 0
        before = np.cumsum([0, *rows[:-1]])
        ends = np.concatenate([b + h.ends for b, h in zip(before, headers, strict=True)])
        self.spans = np.stack([np.append(0, ends[:-1]), ends], axis=1)


def chunks(column: np.ndarray | ShardedColumn, rows: int = 65536) -> Iterator[np.ndarray]:
    """Yield a flat column, `rows` rows at a time."""
    for begin in range(0, len(column), rows):
        yield column.take(np.arange(begin, min(begin + rows, len(column))), axis=0)


def _columns_of(episode: Mapping[str, np.ndarray | Pictures]) -> dict[str, StoredColumn]:
    return {
        name: StoredColumn(
            kind='pictures' if isinstance(values, Pictures) else 'array',
            dtype=np.dtype(values.dtype).str,
            shape=values.shape[1:],
        )
        for name, values in episode.items()
    }


def _shown(columns: Mapping[str, StoredColumn]) -> str:
    return ', '.join(f'{n} {c.dtype}{list(c.shape)}' for n, c in sorted(columns.items()))


def _file(column: str) -> str:
    return column.replace('/', '.') + '.bin'


def _read_header(path: Path) -> ShardHeader:
    file = path / HEADER_FILE
    try:
        header = ShardHeader.from_json(file.read_text(encoding='utf-8'), origin=str(file))
        if (np.diff([0, *header.ends]) < 1).any():
            raise SpecError(f'{file}: ends: not ascending')
        return header
    except OSError as error:
        raise StorageError(f'{file}: cannot be read ({error.strerror}); no shard?') from None
    except (UnicodeDecodeError, SpecError) as error:
        where = '' if isinstance(error, SpecError) else f'{file}: '
        raise StorageError(f'{where}{error}') from None


def _map(path: Path, header: ShardHeader, name: str) -> np.ndarray | Pictures:
    """Return one column of a shard."""
    column, rows = header.columns[name], header.ends[-1]
    if column.kind == 'array':
        return _mapped(path / _file(name), np.dtype(column.dtype), (rows, *column.shape))
    file, offsets_file = path / _file(name), path / _file(name + _OFFSETS)
    shown = _mapped(path / _file(name + _ROWS), np.dtype(np.int64), (rows, *column.shape[:-3]))
    files = int(shown.max()) + 1
    offsets = _mapped(offsets_file, np.dtype(np.int64), (files + 1,))
    if shown.min() < 0 or offsets[0] or (np.diff(offsets) < 0).any():
        raise StorageError(f'{offsets_file}: these are no offsets; make the shards anew')
    _require_size(file, int(offsets[-1]))
    return Pictures(_Bytes(file), offsets, shown, column.shape[-3:-1])


def _mapped(file: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    size = dtype.itemsize * math.prod(shape)
    _require_size(file, size)
    if not size:
        return np.zeros(shape, dtype)  # nothing cannot be mapped
    # As a plain array: what is taken from it is one as well, and sooner.
    return np.asarray(np.memmap(file, dtype, 'r', shape=shape))


def _require_size(file: Path, size: int) -> None:
    """Raise StorageError where a file has another size: reading past its end would end Python."""
    try:
        found = file.stat().st_size
    except OSError as error:
        raise StorageError(f'{file}: cannot be read ({error.strerror})') from None
    if found != size:
        raise StorageError(f'{file}: {found} bytes, expected {size}; make the shards anew')


class _Bytes:
    """The bytes of a file, read piece by piece: what was read is not kept in this process."""

    def __init__(self, path: Path):
        self._file = path.open('rb')

    def __getitem__(self, piece: slice) -> np.ndarray:
        size = int(piece.stop - piece.start)
        return np.frombuffer(os.pread(self._file.fileno(), size, int(piece.start)), np.uint8)
