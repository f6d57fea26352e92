"""Doors: what kind of data set a path is, and what takes it in or writes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from robot_rl.errors import StorageError
from robot_rl.storage import archives, lerobot_export, lerobot_import, robomimic, sketchy, transfer
from robot_rl.storage.commanded import Kinematics
from robot_rl.storage.episode import HEADER_FILE
from robot_rl.storage.store import Store
from robot_rl.storage.tfrecord import is_tfrecord
from robot_rl.storage.transfer import Transfer


def import_from(store: Store, path: Path) -> Transfer:
    """Take in an archive of `episodes export` or a data set of another format.

    Raises StorageError that names the file where nothing can be read.
    """
    if lerobot_import.is_dataset(path):
        return transfer.import_steps(store, lerobot_import.episodes(path))
    if any(path.glob(f'*/{HEADER_FILE}')):
        raise StorageError(
            f'{path}: a folder of episodes; robot-rl episodes merge {path} copies them'
        )
    if path.is_dir() or is_tfrecord(path):
        return transfer.import_steps(store, sketchy.episodes(path))
    return transfer.import_archive(store, path)


def export_to(
    paths: Iterable[Path],
    target: Path,
    format: str,
    refused: Callable[[str], None],
    kinematics: Kinematics | None = None,
) -> list[str]:
    """Write episodes to `target`, in one of FORMATS, and return the ids of those that are there.

    `refused` hears why others are not; `kinematics` are those of aligned_columns. Raises
    StorageError where nothing can be written.
    """
    return FORMATS[format](paths, target, refused, kinematics)


def _archive(
    paths: Iterable[Path],
    target: Path,
    refused: Callable[[str], None],
    kinematics: Kinematics | None,
) -> list[str]:
    del kinematics  # episodes leave as they are
    ids, damaged = archives.export(paths, target)
    for item in damaged:
        refused(str(item))
    return ids


FORMATS = {'tar': _archive, 'lerobot': lerobot_export.export, 'robomimic': robomimic.export}
