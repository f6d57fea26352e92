"""NeverEnding storage: a folder of episodes. Only storage.garbage ever deletes any of it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy.typing as npt

from robot_rl.errors import ContractMismatch, SpecError, StorageError, UnknownName
from robot_rl.storage import query as queries
from robot_rl.storage import rewards
from robot_rl.storage.claims import Claim
from robot_rl.storage.columns import aligned_columns
from robot_rl.storage.episode import (
    DISCARDED,
    HEADER_FILE,
    PARTIAL,
    EpisodeHeader,
    EpisodeReader,
    read_header,
    write_header,
)
from robot_rl.storage.files import read_bytes, seal_problem
from robot_rl.storage.index import Entry, Index, IndexUnwritable, Stamp
from robot_rl.storage.rewards import RewardInfo
from robot_rl.storage.statistics import Count

# In a folder of its own: what SQLite does there does not look like a change of the store.
INDEX_FILE = '.index/index.sqlite'
# Two changes of a folder within so short a time may leave it with one time of change [ns].
_SETTLED_NS = 3 * 10**9
# Episodes that are taken in or read at once.
_BATCH = 500


class Episodes(Sequence[EpisodeHeader]):
    """Headers in the order of their start; each is read, as it is then, when it is asked for.

    A slice is of the same kind; `ids` are there at once.
    """

    def __init__(self, ids: list[str], read: Callable[[list[str]], list[EpisodeHeader]]):
        self.ids = ids
        self._read = read

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, place: int) -> EpisodeHeader: ...
    @overload
    def __getitem__(self, place: slice) -> Episodes: ...
    def __getitem__(self, place: int | slice) -> EpisodeHeader | Episodes:
        if isinstance(place, slice):
            return Episodes(self.ids[place], self._read)
        (header,) = self._read([self.ids[place]])
        return header

    def __iter__(self) -> Iterator[EpisodeHeader]:
        for start in range(0, len(self.ids), _BATCH):
            yield from self._read(self.ids[start : start + _BATCH])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None

    def __repr__(self) -> str:
        return f'<{len(self)} episodes>'


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
        # In memory, for queries where the file of the other one cannot be written.
        self._spare: Index | None = None
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

    def episodes(self, query: str | Iterable[str] = '', **filters: Any) -> Episodes:
        """Return the headers of the episodes that match, in the order of their start.

        `query` and `filters` are those of query.parse: episodes('task=ur5e/reach tag=a'), or
        episodes(task='ur5e/reach', success=True). Raises UnknownName or QueryError.
        """
        condition = queries.parse(query, **filters)
        return Episodes(self._fresh_index().find(condition), self._headers)

    def counts(self, query: str | Iterable[str] = '', **filters: Any) -> dict[tuple, Count]:
        """Return {(task, source): what they amount to} of the episodes that match."""
        return self._fresh_index().counts(queries.parse(query, **filters))

    def look_again(self, query: str | Iterable[str] = '', **filters: Any) -> bool:
        """Look whether headers that match were changed by others than a Store since.

        Returns whether any was: the next query reads those again, and tells their damage. A query
        by itself does not look, as that takes a system call for every episode.
        """
        index, root = self._fresh_index(), str(self.root)
        stamps = index.stamps(queries.parse(query, **filters))
        changed = [id for id, stamp in stamps.items() if stamp != header_stamp(root, id)]
        for id in changed:
            with contextlib.suppress(IndexUnwritable):
                index.note(id)
        return bool(changed)

    def hints(self, query: str | Iterable[str] = '', **filters: Any) -> list[str]:
        """Return a line for each name in a query that no episode has, with the nearest ones."""
        return self._fresh_index().unheard_of(queries.parse(query, **filters))

    def open(self, id: str) -> EpisodeReader:
        """Open one episode; partial and discarded ones by the name of their directory.

        Raises UnknownName, with the nearest known ids, where there is none.
        """
        return EpisodeReader(self.path(id))

    def path(self, id: str) -> Path:
        """Return the directory of one episode, whole or damaged. Raises UnknownName as `open`."""
        path = self.root / id
        if Path(id).name != id or not path.is_dir():
            raise UnknownName('episode', id, self._names())
        return path

    def unfinished(self) -> list[Path]:
        """Return the directories of recordings in progress, cut short or discarded."""
        return sorted(
            self.root / entry.name
            for entry in self._entries()
            if entry.name.endswith((PARTIAL, DISCARDED))
        )

    def label(self, id: str, success: bool | None) -> EpisodeHeader:
        """Set whether an episode succeeded (None: not judged) and return its header.

        Who says so has looked at the episode: a header that differs from its checksum, as one
        that was changed by hand does, is taken as it is.
        """
        return self._edit(id, lambda header: header.replace(success=success), as_it_is=True)

    def tag(self, id: str, add: Iterable[str] = (), remove: Iterable[str] = ()) -> EpisodeHeader:
        """Add and remove tags of an episode and return its header.

        Raises SpecError for a tag that no query could name: empty, or with a space or comma.
        """
        add, remove = list(add), set(remove)
        for tag in add:
            if not tag or any(character.isspace() or character == ',' for character in tag):
                raise SpecError(f'tag {tag!r}: must be a word without spaces and commas')
        return self._edit(id, lambda h: h.replace(tags=sorted({*h.tags, *add} - remove)))

    def add_reward(self, id: str, values: npt.ArrayLike, /, **about: Any) -> RewardInfo:
        """Add a reward sequence to an episode and return its sidecar.

        `values` are [T], finite: one for each step of the episode's primary time base, or at
        `times_ns`. `about` are fields of RewardInfo: task, kind and author, and for a predicted
        one model_sha256. Raises SpecError where they do not fit, as where the episode's columns
        have another number of steps, and StorageError where nothing can be written. No sequence
        is ever replaced.
        """
        info, data = rewards.prepare(values, about)
        episode, index = self.open(id), self._open_index()
        if info.times_ns is None:
            _require_a_value_a_step(episode, info.length)
        with _claimed(episode.path), index.edit(id):
            rewards.add(episode.path, info, data)
            self._put(index, id)
        return info

    def refresh(self, id: str) -> None:
        """Read an episode again whose files somebody else has changed, for the index."""
        self._read_again(self._open_index(), id)

    def reindex(self) -> int:
        """Read every episode's directory again and return how many episodes there are."""
        index = self._open_index()
        index.clear()
        return len(self._updated(index).ids())

    def _edit(
        self,
        id: str,
        change: Callable[[EpisodeHeader], EpisodeHeader],
        as_it_is: bool = False,
    ) -> EpisodeHeader:
        """Rewrite an episode's header, one process at a time; a damaged one only `as_it_is`."""
        path, index = self.open(id).path, self._open_index()
        with _claimed(path), index.edit(id):
            problem = seal_problem(read_bytes(path / HEADER_FILE))
            if problem and not as_it_is:
                raise StorageError(
                    f'{path / HEADER_FILE}: {problem}; look at it, and say by robot-rl episodes '
                    'label that it is right'
                )
            header = change(read_header(path))
            try:
                write_header(path, header)
            except OSError as error:
                raise StorageError(f'{path}: cannot be changed ({error.strerror})') from None
            self._put(index, id)
        return header

    def _headers(self, ids: list[str]) -> list[EpisodeHeader]:
        """Return the headers of episodes that a query found."""
        known: dict[str, Entry] = {}
        with contextlib.suppress(IndexUnwritable):
            known = self._open_index().headers(ids)
        return [self._header(id, known.get(id)) for id in ids]

    def _header(self, id: str, known: Entry | None) -> EpisodeHeader:
        """Return what the index knows, unless the file was changed since by somebody else."""
        if known and known.stamp == header_stamp(str(self.root), id):
            return known.header
        with contextlib.suppress(IndexUnwritable):
            self._open_index().note(id)  # whatever is wrong with it, the next query tells
        return read_header(self.root / id)

    def _fresh_index(self) -> Index:
        """Return the index after it has taken in new directories and dropped vanished ones.

        Also on a full disk, where it cannot: there one in memory serves, so that what is stored
        can be read, and cleared away.
        """
        try:
            return self._updated(self._open_index())
        except IndexUnwritable:
            self._spare = self._spare or Index(None)
            return self._updated(self._spare)

    def _updated(self, index: Index) -> Index:
        self.damaged = {}
        self._scan(index)
        for name in index.notes():
            self._read_again(index, name)
        return index

    def _scan(self, index: Index) -> None:
        """Bring the index to what directories there are, if any came or went."""
        now, changed_ns = time.time_ns(), self.root.stat().st_mtime_ns
        scan = index.scanned()
        if scan.changed_ns == changed_ns:
            return
        known, noted = index.ids(), set(index.notes())
        names = {name for name in os.listdir(self.root) if _is_committed(name)}
        if known - names:
            index.forget(known - names)
        new = sorted(name for name in names - known - noted if (self.root / name).is_dir())
        for start in range(0, len(new), _BATCH):
            entries = (self._entry(name, index) for name in new[start : start + _BATCH])
            index.add([entry for entry in entries if entry])
        if now - changed_ns > _SETTLED_NS:
            index.set_scanned(scan._replace(changed_ns=changed_ns))

    def _read_again(self, index: Index, name: str) -> None:
        """Take in a directory that was damaged, or edited, when it was last read."""
        if not _is_committed(name) or not (self.root / name).is_dir():
            index.forget([name])
        elif self._entry(name, index):
            with index.edit(name):
                self._put(index, name)
            self._entry(name, index)  # notes it again where one of its rewards is damaged
        else:  # what its header said once counts no more
            index.forget([name])
            index.note(name)

    def _put(self, index: Index, name: str) -> None:
        """Put an episode as it is now into the index; only inside `index.edit`."""
        if _is_committed(name) and (entry := self._entry(name)):
            index.replace(entry)

    def _entry(self, name: str, index: Index | None = None) -> Entry | None:
        """Return what a directory says, or None; and what is wrong in `damaged`.

        `index` takes a note of a directory with damage.
        """
        damaged: dict[str, str] = {}
        entry = None
        try:
            # Before it is read: what comes later is a change.
            stamp = header_stamp(str(self.root), name)
            reader = EpisodeReader(self.root / name)
            if reader.header.id != name:
                raise StorageError(
                    f'{reader.path}: holds episode {reader.header.id}; rename the directory'
                )
            entry = Entry(reader.header, reader.rewards(damaged), stamp)
        except StorageError as error:
            damaged[''] = str(error)
        for file, problem in damaged.items():
            self.damaged[f'{name}/{file}'.rstrip('/')] = problem
        if damaged and index:
            index.note(name)
        return entry

    def _names(self) -> list[str]:
        """Return the names of the directories that are committed episodes."""
        return [entry.name for entry in self._entries() if _is_committed(entry.name)]

    def _entries(self) -> Iterator[os.DirEntry]:
        with os.scandir(self.root) as entries:
            yield from (entry for entry in entries if entry.is_dir())

    def _open_index(self) -> Index:
        if self._index is None or self._index.lost():
            file = self.root / INDEX_FILE
            self._index = Index(file) if os.access(self.root, os.W_OK) else Index(None, like=file)
        return self._index


def header_stamp(root: str, id: str) -> Stamp | None:
    """Return what tells whether an episode's header was changed; None: there is none.

    Of many a Path would take as long to be made as its file to be looked at.
    """
    try:
        found = os.stat(f'{root}/{id}/{HEADER_FILE}')
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _claimed(path: Path) -> contextlib.AbstractContextManager:
    """Hold a partial episode: its recorder would write its own header over what is changed."""
    return Claim(path) if path.name.endswith(PARTIAL) else contextlib.nullcontext()


def _require_a_value_a_step(episode: EpisodeReader, values: int) -> None:
    """Raise SpecError where an episode's columns have another number of steps."""
    try:
        steps = len(aligned_columns(episode)['action/applied'])
    except (StorageError, ContractMismatch):
        return  # no columns, no steps to count
    if values != steps:
        raise SpecError(
            f'reward: {values} values, but {episode.path} has {steps} steps; give one for each '
            'step, or the times_ns of the values'
        )


def _is_committed(name: str) -> bool:
    # A name that is no UTF-8 is none of ours, and no index can hold it.
    is_text = name.isascii() or not any('\ud800' <= letter <= '\udfff' for letter in name)
    return is_text and not (name.startswith('.') or name.endswith((PARTIAL, DISCARDED)))
