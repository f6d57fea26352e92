"""NeverEnding storage: a folder of episodes. Nothing in it is ever deleted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from robot_rl.errors import SpecError, StorageError, UnknownName
from robot_rl.storage import query as queries
from robot_rl.storage.episode import (
    DISCARDED,
    PARTIAL,
    EpisodeHeader,
    EpisodeReader,
    read_header,
    write_header,
)
from robot_rl.storage.index import Index

INDEX_FILE = 'index.sqlite'


class Store:
    """The episodes below `root`, which is made where it is missing, unless `create` is False.

    The directories are the truth and the index is a cache: every query first takes in what
    other processes recorded since. An instance belongs to one thread; any number of processes
    may share the folder. A folder that cannot be written can still be read. Raises StorageError
    where `root` can be neither opened nor made.
    """

    def __init__(self, root: str | Path, create: bool = True):
        self.root = Path(root)
        self._index: Index | None = None
        # Directories that cannot be read: {name: what is wrong with it}, as of the last query.
        self.damaged: dict[str, str] = {}
        try:
            if create:
                self.root.mkdir(parents=True, exist_ok=True)
            os.scandir(self.root).close()
        except FileNotFoundError:
            raise StorageError(
                f'{self.root}: no folder of episodes here; --store names it, e.g. '
                'runs/demo/episodes'
            ) from None
        except OSError as error:
            raise StorageError(
                f'{self.root}: not a folder for episodes ({error.strerror}); choose one that '
                'exists or can be made'
            ) from None

    def episodes(self, query: str | Iterable[str] = '', **filters: Any) -> list[EpisodeHeader]:
        """Return the headers of the episodes that match, in the order of their start.

        `query` and `filters` are those of query.parse: episodes('task=ur5e/reach tag=a'), or
        episodes(task='ur5e/reach', success=True). Raises UnknownName or QueryError.
        """
        condition = queries.parse(query, **filters)
        return self._fresh_index().find(condition)

    def open(self, id: str) -> EpisodeReader:
        """Open one episode; partial and discarded ones by the name of their directory.

        Raises UnknownName, with the nearest known ids, where there is none.
        """
        path = self.root / id
        if Path(id).name != id or not path.is_dir():
            raise UnknownName('episode', id, self._names())
        return EpisodeReader(path)

    def unfinished(self) -> list[Path]:
        """Return the directories of recordings in progress, cut short or discarded."""
        return sorted(
            self.root / entry.name
            for entry in self._entries()
            if entry.name.endswith((PARTIAL, DISCARDED))
        )

    def label(self, id: str, success: bool | None) -> EpisodeHeader:
        """Set whether an episode succeeded (None: not judged) and return its header."""
        return self._edit(id, lambda header: header.replace(success=success))

    def tag(self, id: str, add: Iterable[str] = (), remove: Iterable[str] = ()) -> EpisodeHeader:
        """Add and remove tags of an episode and return its header.

        Raises SpecError for a tag that no query could name: empty, or with a space or comma.
        """
        add, remove = list(add), set(remove)
        for tag in add:
            if not tag or any(character.isspace() or character == ',' for character in tag):
                raise SpecError(f'tag {tag!r}: must be a word without spaces and commas')
        return self._edit(id, lambda h: h.replace(tags=sorted({*h.tags, *add} - remove)))

    def reindex(self) -> int:
        """Read every episode's directory again and return how many episodes there are."""
        self._open_index().clear()
        return len(self._fresh_index().ids())

    def _edit(self, id: str, change: Callable[[EpisodeHeader], EpisodeHeader]) -> EpisodeHeader:
        """Rewrite an episode's header, one process at a time."""
        path, index = self.open(id).path, self._open_index()
        with index.edit(id):
            header = change(read_header(path))
            try:
                write_header(path, header)
            except OSError as error:
                raise StorageError(f'{path}: cannot be changed ({error.strerror})') from None
            if header.id == id:  # unfinished episodes are not in the index
                index.replace(header)
        return header

    def _fresh_index(self) -> Index:
        """Return the index after it has taken in new directories and dropped vanished ones."""
        index = self._open_index()
        known, present = index.ids(), set(self._names())
        if known - present:
            index.forget(known - present)
        self.damaged = {}
        new = [header for name in sorted(present - known) if (header := self._header(name))]
        if new:
            index.add(new)
        for name in index.edits():
            with index.edit(name):
                header = self._header(name) if name in present else None
                if header:
                    index.replace(header)
        return index

    def _header(self, name: str) -> EpisodeHeader | None:
        """Return the header of a directory, or None, and why in `damaged`."""
        try:
            header = read_header(self.root / name)
            if header.id == name:
                return header
            self.damaged[name] = (
                f'{self.root / name}: holds episode {header.id}; rename the directory'
            )
        except StorageError as error:
            self.damaged[name] = str(error)
        return None

    def _names(self) -> list[str]:
        """Return the names of the directories that are committed episodes."""
        return [
            entry.name
            for entry in self._entries()
            if not entry.name.endswith((PARTIAL, DISCARDED)) and not entry.name.startswith('.')
        ]

    def _entries(self) -> Iterator[os.DirEntry]:
        with os.scandir(self.root) as entries:
            yield from (entry for entry in entries if entry.is_dir())

    def _open_index(self) -> Index:
        if self._index is None:
            writable = os.access(self.root, os.W_OK)
            self._index = Index(self.root / INDEX_FILE if writable else None)
        return self._index
