"""Carries whole episodes into a store: out of an archive, another store, or another format."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from robot_rl.errors import SpecError, StorageError
from robot_rl.storage import archives, foreign
from robot_rl.storage.checksums import (
    all_files,
    check,
    damaged_rewards,
    derived_files,
    not_storable,
    primary_files,
    stored_file,
)
from robot_rl.storage.claims import Claim
from robot_rl.storage.episode import (
    DISCARDED,
    PARTIAL,
    EpisodeHeader,
    read_header,
    sync_directory,
    write_header,
)
from robot_rl.storage.files import opened
from robot_rl.storage.foreign import ForeignEpisode
from robot_rl.storage.rewards import REWARDS_FOLDER
from robot_rl.storage.store import Store

# Where episodes wait in a store until they are whole; no query finds what is in it.
INCOMING = '.incoming'

# What people add to an episode afterwards; the rest of the header says what was recorded.
_ANNOTATIONS = {'success', 'tags'}
# The id that an episode had elsewhere, where it got another one here.
_ELSEWHERE = 'id_elsewhere'

# Brings one file to a new place.
Carry = Callable[[Path, Path], None]


class Transfer(NamedTuple):
    """What became of each episode, by the id that it had."""

    added: list[str]
    # Those that were here already; what had been annotated elsewhere was added.
    same: list[str]
    # Those whose id another episode has here: {id: the one it has now}.
    renamed: dict[str, str]
    # One line each for what was left where it is.
    refused: list[str]


def import_archive(store: Store, archive: Path) -> Transfer:
    """Take the episodes of a tar file, plain or compressed, into `store`.

    Nothing is taken in where a checksum is wrong or the archive is cut off: StorageError says so.
    """
    with Claim(store.root), _incoming(store.root) as folder:
        archives.unpack(archive, folder)
        return _take_all(store, folder, _move_file)


def merge(store: Store, other: Path) -> Transfer:
    """Copy the episodes of another store, discarded ones as well; it stays as it is.

    The same episode twice is one. Where two differ under one id, the one from elsewhere gets
    another. Damaged and partial ones are left where they are.
    """
    source = Store(other, create=False)
    if source.root.resolve() == store.root.resolve():
        raise StorageError(f'{other}: a store cannot be merged with itself')
    with Claim(store.root):
        return _take_all(store, source.root, _copy_file)


def import_steps(store: Store, episodes: Iterable[Callable[[], ForeignEpisode]]) -> Transfer:
    """Take in episodes of another format, each read when it is its turn.

    One that cannot be read is left, with a line.
    """
    done = Transfer([], [], {}, [])
    with Claim(store.root), _incoming(store.root) as folder:
        for read in episodes:
            try:
                episode = read()
                path = foreign.write(folder, episode)
                done.refused.extend(episode.problems)
                _take(store, path, _move_file, done)
            except (StorageError, SpecError) as error:
                done.refused.append(str(error))
            else:
                shutil.rmtree(path)  # what of it was here already
    return done


def add_steps(
    store: Store, episodes: Iterable[Callable[[], ForeignEpisode]]
) -> list[EpisodeHeader]:
    """Take in episodes that are made here, each when it is its turn, and return their headers.

    Raises StorageError where one cannot be written; the others are there then.
    """
    done = import_steps(store, episodes)
    if done.refused:
        raise StorageError('; '.join(done.refused))
    return [store.open(id).header for id in done.added]


def _take_all(store: Store, folder: Path, carry: Carry) -> Transfer:
    done = Transfer([], [], {}, [])
    for path in sorted(folder.iterdir()):
        if not path.is_dir() or path.name.startswith('.'):
            continue
        if path.name.endswith(PARTIAL):
            done.refused.append(f'{path}: not finished; robot-rl episodes recover mends it there')
            continue
        try:
            _take(store, path, carry, done)
        except StorageError as error:
            done.refused.append(str(error))
        except OSError as error:
            name = error.filename or path
            raise StorageError(f'{name}: cannot be copied ({error.strerror})') from None
    return done


def _take(store: Store, source: Path, carry: Carry, done: Transfer) -> None:
    """Copy one episode, unless it is there; a name that is taken by another gets a suffix."""
    header = read_header(source)
    suffix = DISCARDED if source.name.endswith(DISCARDED) else ''
    if source.name != header.id + suffix:
        raise StorageError(f'{source}: holds episode {header.id}; rename the directory')
    identity = _identity(source, header)
    origin = header.extra.get(_ELSEWHERE, header.id)  # it may have come from here
    free, taken = f'{origin}-{identity[:12]}', store.root / f'{header.id}{suffix}'
    for id in (header.id, origin, free):
        target = store.root / f'{id}{suffix}'
        if target.is_dir() and _identity(target, read_header(target)) == identity:
            done.refused.extend(_annotate(store, source, target, header))
            done.same.append(header.id)
            return
    if not taken.exists():
        _place(source, taken, header, carry)
        done.added.append(header.id)
        store.refresh(taken.name)  # a damaged one of that name may have been moved away before
    else:
        elsewhere = header.extra | {_ELSEWHERE: origin}
        renamed = header.replace(id=free, extra=elsewhere)
        _place(source, store.root / f'{free}{suffix}', renamed, carry)
        done.renamed[header.id] = free


def _identity(path: Path, header: EpisodeHeader) -> str:
    """Return a hash of what was recorded, whatever id it has and however it was annotated."""
    said = header.to_dict()
    for name in ('schema_version', 'id', 'files', *_ANNOTATIONS):
        del said[name]
    said['extra'] = {key: value for key, value in header.extra.items() if key != _ELSEWHERE}
    known = {stored.file: stored.sha256 for stored in header.files}
    for name in primary_files(path, header):
        if name not in known and Path(name).parts[0] != REWARDS_FOLDER:
            known[name] = stored_file(path, name).sha256
    return hashlib.sha256(json.dumps([said, known], sort_keys=True).encode()).hexdigest()


def _place(source: Path, target: Path, header: EpisodeHeader, carry: Carry) -> None:
    """Bring an episode under the name `target`, which appears when it is whole and on the disk."""
    with _incoming(target.parent, f'{INCOMING}-{target.name}') as new:
        derived = set(derived_files(source, header))
        for name in all_files(source):
            if name in derived:
                continue
            if damage := not_storable(source / name):
                raise StorageError(str(damage))
            carry(source / name, new / name)
        damaged = check(new).damaged
        if damaged:
            first = damaged[0]
            raise StorageError(f'{source / first.file.relative_to(new)}: {first.problem}')
        write_header(new, header)
        new.rename(target)
        sync_directory(target.parent)


def _annotate(store: Store, source: Path, target: Path, header: EpisodeHeader) -> list[str]:
    """Add what people said about the same episode elsewhere; what was said here stays.

    Returns one line for each reward sequence that is damaged there, and so is left there.
    """
    here = read_header(target)
    if set(header.tags) - set(here.tags):
        store.tag(target.name, add=header.tags)
    if here.success is None and header.success is not None:
        store.label(target.name, header.success)
    # A sidecar makes its values a reward sequence, and so it comes after them.
    rewards = [name for name in all_files(source) if Path(name).parts[0] == REWARDS_FOLDER]
    damaged = damaged_rewards(source)
    broken = {item.file.stem for item in damaged}
    for name in sorted(rewards, key=lambda name: name.endswith('.json')):
        if Path(name).stem not in broken and not (target / name).exists():
            _copy_file(source / name, target / name)
    if rewards:
        store.refresh(target.name)
    return list(map(str, damaged))


def _copy_file(source: Path, target: Path) -> None:
    """Copy one file, to the disk; `target` appears when it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f'{target.name}.new')
    with opened(source) as read, new.open('wb') as write:
        shutil.copyfileobj(read, write, 2**20)
        write.flush()
        os.fsync(write.fileno())
    new.rename(target)


def _move_file(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)


@contextlib.contextmanager
def _incoming(root: Path, name: str = INCOMING) -> Iterator[Path]:
    """Lend an empty folder in `root`; what is left in it at the end goes."""
    folder = root / name
    try:
        shutil.rmtree(folder, ignore_errors=True)  # of one who died; nothing in it was taken in
        folder.mkdir()
    except OSError as error:
        raise StorageError(f'{root}: nothing can be put here ({error.strerror})') from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
