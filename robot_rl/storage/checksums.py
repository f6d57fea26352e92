"""What an episode's directory holds, and whether it still is what was stored."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from robot_rl.errors import StorageError
from robot_rl.storage import rewards
from robot_rl.storage.columns import CACHE_FILE
from robot_rl.storage.episode import (
    DISCARDED,
    HEADER_FILE,
    PARTIAL,
    RESERVE_FILE,
    STREAMS_FILE,
    EpisodeHeader,
    read_header,
)
from robot_rl.storage.files import opened, read_bytes, seal_problem
from robot_rl.storage.rewards import REWARDS_FOLDER
from robot_rl.storage.streams import StoredFile

# What can be computed again, unless the manifest says that it is the primary data; and what a
# process that died left of replacing a file.
_DERIVED = (CACHE_FILE, f'{CACHE_FILE}.*.new', '*.json.new', '*.npy.new', RESERVE_FILE)


class Damage(NamedTuple):
    """One file that is not what was stored."""

    file: Path
    problem: str

    def __str__(self) -> str:
        return f'{self.file}: {self.problem}'


class Check(NamedTuple):
    """What the check of one episode found."""

    damaged: tuple[Damage, ...]
    # Data that the manifest does not name, as in older episodes: nothing says what it should be.
    unverifiable: tuple[Path, ...]
    # How much was read and compared.
    bytes: int


def check(path: Path) -> Check:
    """Compare size and SHA-256 of the files of the episode in `path` with its manifest."""
    try:
        header = read_header(path)
    except StorageError as error:
        reason = str(error).removeprefix(f'{path / HEADER_FILE}: ')
        return Check((Damage(path / HEADER_FILE, reason),), (), 0)
    sidecars, damaged = _rewards(path)
    if problem := seal_problem(read_bytes(path / HEADER_FILE)):
        damaged.append(Damage(path / HEADER_FILE, problem))
    known = [*header.files, *sidecars]
    damaged += _differing(path, known)
    told = {stored.file for stored in known} | {_sidecar(stored.file) for stored in sidecars}
    told |= {str(damage.file.relative_to(path)) for damage in damaged}
    unlisted = {path / name for name in primary_files(path, header) if name not in told}
    special = [damage for file in sorted(unlisted) if (damage := not_storable(file))]
    unlisted -= {damage.file for damage in special}
    known_bytes = sum(stored.bytes for stored in known)
    return Check((*damaged, *special), tuple(sorted(unlisted)), known_bytes)


def is_episode(path: Path) -> bool:
    """Tell whether a directory is one of ours: by its name, or by anything in it of an episode."""
    names = {entry.name for entry in path.iterdir()}
    holds = names & {HEADER_FILE, STREAMS_FILE, CACHE_FILE, REWARDS_FOLDER}
    return path.name.endswith((PARTIAL, DISCARDED)) or bool(holds)


def not_storable(file: Path) -> Damage | None:
    """Return that there is a pipe, a socket or a device, which nothing could carry; or None."""
    if file.is_file() or file.is_dir() or not file.exists():
        return None
    return Damage(file, 'a pipe, a socket or a device, which cannot be stored')


def damaged_rewards(path: Path) -> list[Damage]:
    """Return what is not as it was stored of the reward sequences of the episode in `path`."""
    sidecars, damaged = _rewards(path)
    return damaged + _differing(path, sidecars)


def stored_file(path: Path, name: str) -> StoredFile:
    """Return the line of the manifest for file `name` in `path`, as it is now.

    Raises StorageError where it cannot be read.
    """
    try:
        with opened(path / name) as file:
            digest = hashlib.file_digest(file, 'sha256').hexdigest()
            return StoredFile(file=name, sha256=digest, bytes=file.tell())
    except OSError as error:
        raise StorageError(f'{path / name}: cannot be read ({error.strerror})') from None


def primary_files(path: Path, header: EpisodeHeader) -> list[str]:
    """Return the names, relative to `path`, of the data that nothing else could replace."""
    derived = set(derived_files(path, header))
    return [name for name in all_files(path) if name not in derived and name != HEADER_FILE]


def derived_files(path: Path, header: EpisodeHeader) -> list[str]:
    """Return the names of the files that can be computed again from the others."""
    listed = {stored.file for stored in header.files}
    return [
        name
        for name in all_files(path)
        if name not in listed and any(Path(name).match(pattern) for pattern in _DERIVED)
    ]


def all_files(path: Path) -> list[str]:
    """Return the names, relative to `path`, of all that is not a directory in it, sorted."""
    return sorted(
        str(file.relative_to(path))
        for file in path.rglob('*')
        if file.is_symlink() or not file.is_dir()
    )


def _rewards(path: Path) -> tuple[list[StoredFile], list[Damage]]:
    """Return what the sidecars of the reward sequences say, and those that cannot be read."""
    found, damaged = [], []
    for sidecar in sorted((path / REWARDS_FOLDER).glob('*.json')):
        values = sidecar.with_suffix('.npy')
        try:
            digest = rewards.info(path, sidecar.stem).sha256
            problem = seal_problem(read_bytes(sidecar))
        except StorageError as error:
            problem = str(error).removeprefix(f'{sidecar}: ')
        if problem:
            damaged.append(Damage(sidecar, problem))
        else:
            size = values.stat().st_size if values.exists() else 0
            name = str(values.relative_to(path))
            found.append(StoredFile(file=name, sha256=digest, bytes=size))
    return found, damaged


def _differing(path: Path, known: Iterable[StoredFile]) -> list[Damage]:
    return [Damage(path / s.file, problem) for s in known if (problem := _problem(path, s))]


def _sidecar(values: str) -> str:
    return str(Path(values).with_suffix('.json'))


def _problem(path: Path, stored: StoredFile) -> str | None:
    """Return what is wrong with one file, in a few words; None: it is whole."""
    name = Path(stored.file)
    if '..' in name.parts or name.is_absolute() or '\0' in stored.file:
        return 'the manifest names a file outside of the episode'
    try:
        found = stored_file(path, stored.file)
    except StorageError as error:
        return str(error).removeprefix(f'{path / stored.file}: ')
    if found.bytes != stored.bytes:
        return f'{found.bytes} bytes, {stored.bytes} were stored'
    if found.sha256 != stored.sha256:
        return f'SHA-256 {found.sha256[:12]}..., stored was {stored.sha256[:12]}...'
    return None
