"""Doors: what kind of data set a path is, and what takes it in."""

from __future__ import annotations

from pathlib import Path

from robot_rl.storage import sketchy, transfer
from robot_rl.storage.store import Store
from robot_rl.storage.tfrecord import is_tfrecord
from robot_rl.storage.transfer import Transfer


def import_from(store: Store, path: Path) -> Transfer:
    """Take in an archive of `episodes export` or a data set of another format.

    Raises StorageError that names the file where nothing can be read.
    """
    if path.is_dir() or is_tfrecord(path):
        return transfer.import_steps(store, sketchy.episodes(path))
    return transfer.import_archive(store, path)
