"""What may be deleted: found and listed first, and nothing else goes."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from robot_rl.errors import StorageError
from robot_rl.storage import streams
from robot_rl.storage.checksums import all_files, derived_files
from robot_rl.storage.claims import Claim, in_use
from robot_rl.storage.episode import (
    DISCARDED,
    PARTIAL,
    STREAMS_FILE,
    read_header,
    sync_directory,
)
from robot_rl.storage.store import INDEX_FILE, Store
from robot_rl.storage.transfer import INCOMING

Kind = Literal['discarded', 'empty', 'columns', 'leftover', 'episode']
REASONS: dict[Kind, str] = {
    'discarded': 'a recording that was discarded',
    'empty': 'a recording without any message',
    'columns': 'can be computed again',
    'leftover': 'left by a process that died',
    'episode': 'an episode that was asked for',
}
# What is being deleted is called so: dying inside leaves no half of an episode.
_DELETING = '.deleting-'
# No file of streams is longer before its first message.
_STARTED_BYTES = 256


class Garbage(NamedTuple):
    """A directory with all in it, or some derived files of an episode's directory."""

    path: Path
    kind: Kind
    # {name below path: (inode, size, time of change)}, as it was when it was listed.
    files: dict[str, tuple[int, int, int]]

    @property
    def bytes(self) -> int:
        """The size of the files."""
        return sum(size for _, size, _ in self.files.values())


def garbage(store: Store) -> list[Garbage]:
    """Return what can go without losing an episode; what is being recorded is left out."""
    return [*_unfinished(store), *_leftovers(store), *_derived(store)]


def episodes(store: Store, ids: Iterable[str]) -> list[Garbage]:
    """Return whole episodes as what is to be deleted. Raises UnknownName."""
    return [_listed(store.path(id), 'episode') for id in ids]


def delete(store: Store, listed: Iterable[Garbage]) -> list[str]:
    """Delete what is listed; return one line for each thing that was left.

    Left is what changed since it was listed, or is in use. Raises StorageError where a file
    cannot be deleted.
    """
    left = []
    with Claim(store.root):
        for item in listed:
            try:
                if item.kind == 'columns':
                    _delete_files(item, item.path)
                else:
                    _delete_directory(item)
            except StorageError as error:
                left.append(str(error))
            except OSError as error:
                raise StorageError(
                    f'{error.filename or item.path}: cannot be deleted ({error.strerror})'
                ) from None
        sync_directory(store.root)
    return left


def remove_empty(store: Store) -> None:
    """Remove the folder of a store in which nothing is but its index, which is a cache."""
    index = store.root / Path(INDEX_FILE).parent
    if all(path == index for path in store.root.iterdir()):
        shutil.rmtree(index, ignore_errors=True)
        with contextlib.suppress(OSError):  # somebody has put something there meanwhile
            store.root.rmdir()


def _unfinished(store: Store) -> Iterator[Garbage]:
    """Yield discarded recordings, and partial ones of which no message reached the disk."""
    for path in store.unfinished():
        if path.is_symlink() or in_use(path):
            continue
        if path.name.endswith(DISCARDED):
            yield _listed(path, 'discarded')
        elif path.name.endswith(PARTIAL) and not _has_data(path):
            yield _listed(path, 'empty')


def _leftovers(store: Store) -> Iterator[Garbage]:
    for path in sorted(store.root.iterdir()):
        if path.name.startswith((INCOMING, _DELETING)) and path.is_dir():
            yield _listed(path, 'leftover')


def _derived(store: Store) -> Iterator[Garbage]:
    for id in store.episodes().ids:
        path = store.root / id
        try:
            names = derived_files(path, read_header(path))
            names = [name for name in names if not name.endswith('.new')]  # is being written?
        except StorageError:
            continue  # without a header nothing can be computed again
        if names:
            yield _listed(path, 'columns', names)


def _has_data(path: Path) -> bool:
    """Return whether anything could be recovered, or was added by something else."""
    others = {name for name in all_files(path) if not name.startswith('episode.json')}
    if others - {STREAMS_FILE}:
        return True
    try:
        return next(streams.raw_messages(path / STREAMS_FILE), None) is not None
    except StorageError:  # no whole chunk: it may have been cut, or it may be damaged
        return (path / STREAMS_FILE).exists() and (
            (path / STREAMS_FILE).stat().st_size > _STARTED_BYTES
        )


def _listed(path: Path, kind: Kind, names: Iterable[str] | None = None) -> Garbage:
    return Garbage(path, kind, _state(path, all_files(path) if names is None else names))


def _state(path: Path, names: Iterable[str]) -> dict[str, tuple[int, int, int]]:
    stats = {name: (path / name).lstat() for name in names}
    return {name: (s.st_ino, s.st_size, s.st_mtime_ns) for name, s in stats.items()}


def _delete_directory(item: Garbage) -> None:
    """Delete a directory and the listed files in it; a new or changed one keeps all of it."""
    with Claim(item.path):
        if _state(item.path, all_files(item.path)) != item.files:
            raise StorageError(f'{item.path}: changed since it was listed; left as it is')
        going = item.path
        if not going.name.startswith(_DELETING):
            going = item.path.with_name(_DELETING + item.path.name)
            item.path.rename(going)
        _delete_files(item, going)
        for folder, _, _ in os.walk(going, topdown=False):
            os.rmdir(folder)


def _delete_files(item: Garbage, path: Path) -> None:
    for name, state in item.files.items():
        if _state(path, [name])[name] != state:
            raise StorageError(f'{path / name}: changed since it was listed; left as it is')
        (path / name).unlink()
