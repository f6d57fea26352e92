"""Episodes of other formats: columns, which become the primary data, and reward sequences.

A row is a frame of theirs; the columns are those of storage.columns.aligned_columns, as far as
there are any, and besides them whatever was recorded. Where a format gives an action with the
last frame, too, nothing says what it led to: it is kept in the header, under `extra`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from robot_rl.errors import StorageError
from robot_rl.specs import ObservationField
from robot_rl.storage import column_file, rewards
from robot_rl.storage.checksums import stored_file
from robot_rl.storage.column_file import Column, Columns
from robot_rl.storage.episode import STEPS_FILE, EpisodeHeader, write_header
from robot_rl.storage.pictures import Pictures
from robot_rl.storage.rewards import RewardInfo


class ForeignEpisode(NamedTuple):
    """An episode as another format tells it."""

    header: EpisodeHeader
    columns: Columns
    # Reward sequences, each with the file of its values: see rewards.prepare().
    rewards: Sequence[tuple[RewardInfo, bytes]] = ()
    # One line each for what of it could not be taken.
    problems: Sequence[str] = ()


def write(folder: Path, episode: ForeignEpisode) -> Path:
    """Write an episode below `folder` and return its directory. Raises StorageError."""
    path = folder / episode.header.id
    try:
        path.mkdir()
        column_file.write(path / STEPS_FILE, '', episode.columns)
        with (path / STEPS_FILE).open('rb') as file:
            os.fsync(file.fileno())
        header = episode.header.replace(files=[stored_file(path, STEPS_FILE)])
        write_header(path, header)
    except StorageError:  # it is an OSError as well, and says what is wrong
        raise
    except OSError as error:
        raise StorageError(f'{path}: cannot be written ({error.strerror})') from None
    for info, data in episode.rewards:
        rewards.add(path, info, data)
    return path


def as_id(name: str) -> str:
    """Return a name of elsewhere as what may name an episode here."""
    return re.sub(r'[^\w\-]', '-', name, flags=re.ASCII).lstrip('-_') or 'episode'


def grid_ns(start_ns: int, frames: int, rate_hz: float) -> np.ndarray:
    """Return the times [frames] of frames that are one period apart, int64."""
    return start_ns + np.round(np.arange(frames) * (1e9 / rate_hz)).astype(np.int64)


def picture_column(where: str, files: Sequence[bytes]) -> Pictures:
    """Return JPEG or PNG files, one a row, as a column of the size of the first.

    Raises StorageError, which begins with `where`, for one that cannot be decoded.
    """
    import cv2  # it takes a while: only who looks at pictures imports it

    picture = cv2.imdecode(np.frombuffer(files[0], np.uint8), cv2.IMREAD_COLOR) if files else None
    if picture is None:
        raise StorageError(f'{where}: {len(files[0]) if files else 0} bytes are no JPEG or PNG')
    return Pictures.of(files, np.arange(len(files)), picture.shape[:2])


def observed(columns: Mapping[str, Column]) -> list[ObservationField]:
    """Return the fields of a contract that reads the joint states and cameras in `columns`."""
    fields = []
    for source, column in columns.items():
        name = source.replace('.', '_')
        if isinstance(column, Pictures):
            shape = (*column.size, 3)
            fields.append(
                ObservationField(
                    name=name, source=source, shape=shape, dtype='uint8', encoding='jpeg'
                )
            )
        elif source in ('joint_states.position', 'joint_states.velocity'):
            fields.append(ObservationField(name=name, source=source, shape=column.shape[1:]))
    return fields
