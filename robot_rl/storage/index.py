"""The index: a SQLite cache of the episodes' headers, rebuilt from their directories at will."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from robot_rl.errors import StorageError
from robot_rl.storage.episode import EpisodeHeader
from robot_rl.storage.query import Query

_VERSION = 1
_COLUMNS = dict.fromkeys(
    ('task', 'source', 'policy', 'robot', 'operator', 'world', 'result', 'header'), 'TEXT'
) | dict.fromkeys(('seed', 'success', 'start_time_ns'), 'INTEGER')
_SCHEMA = f"""
DROP TABLE IF EXISTS episodes;
DROP TABLE IF EXISTS tags;
DROP TABLE IF EXISTS edits;
CREATE TABLE episodes (
    id TEXT PRIMARY KEY, {', '.join(f'{name} {kind}' for name, kind in _COLUMNS.items())}
) WITHOUT ROWID;
CREATE TABLE tags (id TEXT, tag TEXT, PRIMARY KEY (id, tag)) WITHOUT ROWID;
CREATE INDEX tags_by_tag ON tags (tag);
CREATE TABLE edits (id TEXT PRIMARY KEY) WITHOUT ROWID;
PRAGMA user_version = {_VERSION};
"""


class Index:
    """Finds headers by a Query. One instance belongs to one thread; processes share the file.

    `path` None keeps the index in memory, for a store that cannot be written. A file that is no
    index of this version is replaced. Raises StorageError where SQLite cannot work with it.
    """

    def __init__(self, path: Path | None):
        self._path = path
        with self._explained():
            try:
                self._open()
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError:
                self._renew()

    def ids(self) -> set[str]:
        """Return the ids of all episodes in the index."""
        with self._explained():
            return {id for (id,) in self._connection.execute('SELECT id FROM episodes')}

    def find(self, query: Query) -> list[EpisodeHeader]:
        """Return the headers that `query` asks for, in the order of their start."""
        with self._explained():
            rows = self._connection.execute(
                f'SELECT header FROM episodes WHERE {query.where} ORDER BY start_time_ns, id',
                query.parameters,
            ).fetchall()
        return [EpisodeHeader.model_validate_json(header) for (header,) in rows]

    def add(self, headers: Iterable[EpisodeHeader]) -> None:
        """Take in episodes; what is there already stays: another process may know it better."""
        with self._explained(), _transaction(self._connection):
            for header in headers:
                self._insert(header)

    @contextlib.contextmanager
    def edit(self, id: str) -> Iterator[None]:
        """Hold the only right to change an episode; inside, call `replace`.

        A process that dies inside leaves a note, for others to read the episode again.
        """
        with self._explained():
            self._connection.execute('INSERT OR IGNORE INTO edits VALUES (?)', (id,))
            with _transaction(self._connection):
                yield
                self._connection.execute('DELETE FROM edits WHERE id = ?', (id,))

    def edits(self) -> list[str]:
        """Return the ids of the episodes that are being edited, or were when a process died."""
        with self._explained():
            return [id for (id,) in self._connection.execute('SELECT id FROM edits')]

    def replace(self, header: EpisodeHeader) -> None:
        """Take in an episode in place of what the index says about it; only inside `edit`."""
        self._delete(header.id)
        self._insert(header)

    def forget(self, ids: Iterable[str]) -> None:
        """Drop episodes from the index (never from the store)."""
        with self._explained(), _transaction(self._connection):
            for id in ids:
                self._delete(id)

    def clear(self) -> None:
        """Forget everything, and mend a damaged file."""
        with self._explained():
            try:
                with _transaction(self._connection):
                    self._make_tables()
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError:
                self._connection.close()
                self._renew()

    def _open(self) -> None:
        self._connection = sqlite3.connect(
            self._path or ':memory:', timeout=30, isolation_level=None
        )
        self._connection.execute('PRAGMA journal_mode = WAL')
        self._connection.execute('PRAGMA synchronous = NORMAL')
        if not self._is_current():
            with _transaction(self._connection):
                if not self._is_current():  # another process may have been first
                    self._make_tables()

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

    def _insert(self, header: EpisodeHeader) -> None:
        values = header.to_dict() | {'header': header.to_json()}
        added = self._connection.execute(
            f'INSERT OR IGNORE INTO episodes (id, {", ".join(_COLUMNS)}) '
            f'VALUES (?{", ?" * len(_COLUMNS)})',
            [header.id, *(values[name] for name in _COLUMNS)],
        )
        if added.rowcount:
            self._connection.executemany(
                'INSERT INTO tags VALUES (?, ?)', {(header.id, tag) for tag in header.tags}
            )

    def _delete(self, id: str) -> None:
        self._connection.execute('DELETE FROM episodes WHERE id = ?', (id,))
        self._connection.execute('DELETE FROM tags WHERE id = ?', (id,))

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StorageError(
                f'{self._path}: {error}; it is only a cache: robot-rl episodes reindex mends it'
            ) from None


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Take the write lock at once: a reader that turns writer later could not wait for it."""
    connection.execute('BEGIN IMMEDIATE')
    try:
        yield
    except BaseException:
        connection.execute('ROLLBACK')
        raise
    connection.execute('COMMIT')
