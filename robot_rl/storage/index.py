"""The index: a SQLite cache of what the directories say, rebuilt from them at will."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from robot_rl.errors import StorageError, did_you_mean
from robot_rl.specs import Contract, RobotSpec, Spec
from robot_rl.storage.claims import Claim
from robot_rl.storage.episode import EpisodeHeader
from robot_rl.storage.query import REWARDS, Query
from robot_rl.storage.rewards import RewardInfo
from robot_rl.storage.statistics import Count

_VERSION = 4
_COLUMNS = dict.fromkeys(
    ('task', 'source', 'policy', 'robot', 'operator', 'world', 'result'), 'TEXT'
) | dict.fromkeys(('seed', 'success', 'flagged', 'interventions', 'end_time_ns'), 'INTEGER')
# Long, and the same in many episodes: stored once.
_SPECS: dict[str, type[Spec]] = {'contract': Contract, 'robot_spec': RobotSpec}
# A query walks the narrow table `episodes`, which lies in the order of the answer.
_TABLES = ('scanned', 'episodes', 'headers', 'specs', 'tags', 'rewards', 'notes')
_TYPED = ', '.join(f'{name} {kind}' for name, kind in _COLUMNS.items())
_SCHEMA = f"""
{' '.join(f'DROP TABLE IF EXISTS {table};' for table in _TABLES)}
CREATE TABLE scanned (generation BLOB, changed_ns INTEGER);
INSERT INTO scanned VALUES (randomblob(16), NULL);
CREATE TABLE episodes (
    start_time_ns INTEGER, id TEXT, {_TYPED}, changed_ns INTEGER, bytes INTEGER,
    PRIMARY KEY (start_time_ns, id)
) WITHOUT ROWID;
CREATE UNIQUE INDEX episodes_by_id ON episodes (id);
CREATE TABLE headers (
    id TEXT PRIMARY KEY, header TEXT, {' TEXT, '.join(_SPECS)} TEXT
);
CREATE TABLE specs (digest TEXT PRIMARY KEY, spec TEXT) WITHOUT ROWID;
CREATE TABLE tags (id TEXT, tag TEXT, PRIMARY KEY (tag, id)) WITHOUT ROWID;
CREATE INDEX tags_by_id ON tags (id);
CREATE TABLE rewards (
    id TEXT, reward TEXT, kind TEXT, author TEXT, PRIMARY KEY (kind, author, id, reward)
) WITHOUT ROWID;
CREATE INDEX rewards_by_id ON rewards (id);
CREATE TABLE notes (id TEXT PRIMARY KEY) WITHOUT ROWID;
PRAGMA user_version = {_VERSION};
"""


# What SQLite says where it cannot write: a full disk, a missing right, a failing device.
_UNWRITABLE = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
}


class IndexUnwritable(StorageError):
    """The file of the index cannot be written; what it is a cache of may still be read."""


Stamp = tuple[int, int]


class Entry(NamedTuple):
    """What the index knows of one episode."""

    header: EpisodeHeader
    rewards: Sequence[RewardInfo] = ()
    # Of the header's file: time of change [ns] and size [bytes]; None: there is none.
    stamp: Stamp | None = None


class Scan(NamedTuple):
    """What the index has taken in of the folder of episodes."""

    # Of the tables: new ones are empty.
    generation: bytes
    # The folder's time of change up to which the index has everything; None: not known.
    changed_ns: int | None


class Index:
    """Finds episodes by a Query. One instance belongs to one thread; processes share the file.

    `path` None keeps the index in memory, for a store that cannot be written; it begins as a copy
    of the file `like`, as far as that is whole and nobody is writing to it. A file that is no
    index of this version is replaced. Raises IndexUnwritable where the file cannot be written, and
    StorageError where SQLite cannot work with it.
    """

    def __init__(self, path: Path | None, like: Path | None = None):
        self._path, self._like = path, like
        if path is not None:
            _make_folder(path.parent)
        with self._alone(), self._explained():
            try:
                self._open()
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError:
                self._renew()

    def lost(self) -> bool:
        """Return whether the file was removed or replaced since it was opened."""
        return self._path is not None and _identity(self._path) != self._identity

    def ids(self) -> set[str]:
        """Return the ids of all episodes in the index."""
        with self._explained():
            return {id for (id,) in self._connection.execute('SELECT id FROM episodes')}

    def find(self, query: Query) -> list[str]:
        """Return the ids of the episodes that `query` asks for, in the order of their start."""
        return [id for (id,) in self._select('id', query, 'ORDER BY start_time_ns, id')]

    def headers(self, ids: Iterable[str]) -> dict[str, Entry]:
        """Return the headers, with their stamps, of those of `ids` that are in the index."""
        with self._explained():
            rows = self._connection.execute(
                f'SELECT id, changed_ns, bytes, header, {", ".join(_SPECS)} '
                'FROM headers JOIN episodes USING (id) '
                'WHERE id IN (SELECT value FROM json_each(?))',
                [json.dumps(list(ids))],
            ).fetchall()
            return {
                id: Entry(self._header(header, digests), (), _stamp(changed_ns, size))
                for id, changed_ns, size, header, *digests in rows
            }

    def stamps(self, query: Query) -> dict[str, Stamp | None]:
        """Return {id: the stamp of its header} of the episodes that `query` asks for."""
        return {id: _stamp(*s) for id, *s in self._select('id, changed_ns, bytes', query)}

    def counts(self, query: Query) -> dict[tuple[str, str], Count]:
        """Return {(task, source): what they amount to} of the episodes that `query` asks for."""
        lasted = 'CASE WHEN end_time_ns >= start_time_ns THEN end_time_ns - start_time_ns END'
        # TOTAL is a float, which nothing overflows.
        columns = (
            f'task, source, COUNT(*), TOTAL({lasted}) / 3.6e12, TOTAL(success), '
            'TOTAL(NOT success), TOTAL(interventions)'
        )
        rows = self._select(columns, query, 'GROUP BY task, source ORDER BY task, source')
        return {
            (task, source): Count(episodes, hours, *map(int, counted))
            for task, source, episodes, hours, *counted in rows
        }

    def unheard_of(self, query: Query) -> list[str]:
        """Return one line for each value in `query` that no episode has, with the nearest ones."""
        lines = []
        with self._explained():
            for key, value in query.asked:
                known = self._known(key)
                if value not in known | {''}:
                    near = did_you_mean(value, sorted(known - {''}))
                    lines.append(f'no episode has {key} {value!r}{near}')
        return lines

    def add(self, entries: Iterable[Entry]) -> None:
        """Take in episodes; what is there already stays: another process may know it better."""
        with self._explained(), _transaction(self._connection):
            for entry in entries:
                self._insert(entry)

    @contextlib.contextmanager
    def edit(self, id: str) -> Iterator[None]:
        """Hold the only right to change an episode; inside, call `replace`.

        A process that dies inside leaves a note, for others to read the episode again.
        """
        with self._explained():
            self.note(id)
            with _transaction(self._connection):
                yield
                self._connection.execute('DELETE FROM notes WHERE id = ?', (id,))

    def note(self, id: str) -> None:
        """Note that an episode is to be read (again) at the next query."""
        with self._explained():
            self._connection.execute('INSERT OR IGNORE INTO notes VALUES (?)', (id,))

    def notes(self) -> list[str]:
        """Return the ids that are noted: damaged, being edited, or were when a process died."""
        with self._explained():
            return [id for (id,) in self._connection.execute('SELECT id FROM notes')]

    def replace(self, entry: Entry) -> None:
        """Take in an episode in place of what the index says about it; only inside `edit`."""
        self._delete(entry.header.id)
        self._insert(entry)

    def forget(self, ids: Iterable[str]) -> None:
        """Drop episodes and notes of them from the index (never from the store)."""
        with self._explained(), _transaction(self._connection):
            for id in ids:
                self._delete(id)
                self._connection.execute('DELETE FROM notes WHERE id = ?', (id,))

    def scanned(self) -> Scan:
        """Return what the index has taken in of the folder."""
        with self._explained():
            return Scan(*self._connection.execute('SELECT * FROM scanned').fetchone())

    def set_scanned(self, scan: Scan) -> None:
        """Say that the index has everything, unless it was cleared since that generation."""
        with self._explained():
            self._connection.execute(
                'UPDATE scanned SET changed_ns = ? WHERE generation = ?',
                (scan.changed_ns, scan.generation),
            )

    def clear(self) -> None:
        """Forget everything, and mend a damaged file."""
        with self._alone(), self._explained():
            try:
                with _transaction(self._connection):
                    self._make_tables()
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError:
                self._connection.close()
                self._renew()

    def _alone(self) -> contextlib.AbstractContextManager:
        """Wait until nobody else opens the file: SQLite does not, where two make a new one WAL."""
        return Claim(self._path.parent, wait=True) if self._path else contextlib.nullcontext()

    def _open(self) -> None:
        self._connection = (self._like and _copied(self._like)) or sqlite3.connect(
            self._path or ':memory:', timeout=30, isolation_level=None
        )
        self._spec = functools.lru_cache(maxsize=256)(self._read_spec)
        self._connection.execute('PRAGMA journal_mode = WAL')
        self._connection.execute('PRAGMA synchronous = NORMAL')
        if not self._is_current():
            with _transaction(self._connection):
                if not self._is_current():  # another process may have been first
                    self._make_tables()
        self._identity = _identity(self._path) if self._path else None

    def _is_current(self) -> bool:
        (version,) = self._connection.execute('PRAGMA user_version').fetchone()
        return version == _VERSION

    def _make_tables(self) -> None:
        for statement in _SCHEMA.split(';'):
            self._connection.execute(statement)

    def _renew(self) -> None:
        """Replace a file that is no database; it is only a cache."""
        for suffix in ('', '-wal', '-shm'):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        self._open()

    def _select(self, columns: str, query: Query, rest: str = '') -> list[tuple]:
        """Return `columns` of the table of episodes where `query` holds."""
        with self._explained():
            sql = f'SELECT {columns} FROM episodes WHERE {query.where} {rest}'
            return self._connection.execute(sql, query.parameters).fetchall()

    def _known(self, key: str) -> set[str]:
        """Return the values of a key that some episode has."""
        if key == 'reward':
            rows = self._connection.execute('SELECT DISTINCT kind, author FROM rewards')
            return {f'{kind}:{author}' for kind, author in rows} | set(REWARDS)
        table = 'tags' if key == 'tag' else 'episodes'
        rows = self._connection.execute(f'SELECT DISTINCT {key} FROM {table}')
        return {value for (value,) in rows}

    def _insert(self, entry: Entry) -> None:
        header, values = entry.header, entry.header.to_dict()
        told = values | {'flagged': bool(header.flags)}
        added = self._connection.execute(
            f'INSERT OR IGNORE INTO episodes VALUES (?, ?{", ?" * len(_COLUMNS)}, ?, ?)',
            [
                header.start_time_ns,
                header.id,
                *(told[name] for name in _COLUMNS),
                *(entry.stamp or (None, None)),
            ],
        )
        if not added.rowcount:
            return
        digests = [self._insert_spec(values.pop(name)) for name in _SPECS]
        self._connection.execute(
            f'INSERT INTO headers VALUES (?, ?{", ?" * len(_SPECS)})',
            [header.id, json.dumps(values), *digests],
        )
        self._connection.executemany(
            'INSERT OR IGNORE INTO tags VALUES (?, ?)', [(header.id, tag) for tag in header.tags]
        )
        self._connection.executemany(
            'INSERT INTO rewards VALUES (?, ?, ?, ?)',
            [(header.id, reward.id, reward.kind, reward.author) for reward in entry.rewards],
        )

    def _insert_spec(self, spec: dict[str, Any] | None) -> str | None:
        if spec is None:
            return None
        text = json.dumps(spec)
        digest = hashlib.sha256(text.encode()).hexdigest()
        self._connection.execute('INSERT OR IGNORE INTO specs VALUES (?, ?)', (digest, text))
        return digest

    def _header(self, header: str, digests: Iterable[str | None]) -> EpisodeHeader:
        specs = {
            name: digest and self._spec(name, digest)
            for name, digest in zip(_SPECS, digests, strict=True)
        }
        return EpisodeHeader.model_validate(json.loads(header) | specs)

    def _read_spec(self, name: str, digest: str) -> Spec:
        (text,) = self._connection.execute(
            'SELECT spec FROM specs WHERE digest = ?', (digest,)
        ).fetchone()
        return _SPECS[name].model_validate_json(text)

    def _delete(self, id: str) -> None:
        for table in ('episodes', 'headers', 'tags', 'rewards'):
            self._connection.execute(f'DELETE FROM {table} WHERE id = ?', (id,))

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            # The low byte is the kind of error, the others say more about it.
            if getattr(error, 'sqlite_errorcode', 0) & 0xFF in _UNWRITABLE:
                raise IndexUnwritable(
                    f'{self._path}: cannot be written ({error}); make room on the disk, or '
                    'see to the rights of the file'
                ) from None
            raise StorageError(
                f'{self._path}: {error}; it is only a cache: robot-rl episodes reindex mends it'
            ) from None


def _stamp(changed_ns: int | None, size: int | None) -> Stamp | None:
    return None if changed_ns is None else (changed_ns, size)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise IndexUnwritable(f'{path}: cannot be made ({error.strerror})') from None


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from another one of its name; None: it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _copied(path: Path) -> sqlite3.Connection | None:
    """Return a copy in memory of an index that cannot be written; None: there is no whole one."""
    state = _settled(path)
    if state is None:
        return None
    copy = sqlite3.connect(':memory:', isolation_level=None)
    try:
        # Without `immutable` SQLite wants to make files beside it.
        uri = f'{path.absolute().as_uri()}?mode=ro&immutable=1'
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as file:
            file.backup(copy)
        (found,) = copy.execute('PRAGMA integrity_check(1)').fetchone()
        if found == 'ok' and _settled(path) == state:
            return copy
    except sqlite3.Error:
        pass
    copy.close()
    return None


def _settled(path: Path) -> tuple[int, int, int] | None:
    """Return what tells whether a file changes; None: not all that was written is in it."""
    log = path.with_name(f'{path.name}-wal')
    try:
        found = path.stat()
    except OSError:
        return None
    return None if log.exists() else (found.st_ino, found.st_size, found.st_mtime_ns)


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Take the write lock at once: a reader that turns writer later could not wait for it."""
    connection.execute('BEGIN IMMEDIATE')
    try:
        yield
    except BaseException:
        if connection.in_transaction:  # on a full disk SQLite has rolled back already
            connection.execute('ROLLBACK')
        raise
    connection.execute('COMMIT')
