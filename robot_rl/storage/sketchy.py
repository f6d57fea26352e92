"""The public data set of reward sketches: an episode a TFRecord file, and metadata.sqlite.

Its description: github.com/google-deepmind/deepmind-research, sketchy/README.md (Cabi et al.
2019, arXiv:1909.12200). A record is a frame: what was observed, and the action that answered it.
"""

from __future__ import annotations

import contextlib
import functools
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.errors import SpecError, StorageError
from robot_rl.specs import ActionField, Contract
from robot_rl.storage import foreign, rewards
from robot_rl.storage.column_file import Columns
from robot_rl.storage.episode import EpisodeHeader
from robot_rl.storage.foreign import ForeignEpisode
from robot_rl.storage.rewards import RewardInfo
from robot_rl.storage.tfrecord import Feature, is_tfrecord, read_examples

METADATA_FILE = 'metadata.sqlite'
RATE_HZ = 10.0
ROBOT = 'sawyer'
_ACTIONS = 'actions'
_SOURCES = {
    'EPISODE_ROBOT_AGENT': 'policy',
    'EPISODE_ROBOT_TELEOPERATION': 'teleop',
    'EPISODE_ROBOT_DAGGER': 'dagger',
}
_KINDS = {'REWARD_SKETCH': 'sketch'}
# What has another name among our columns.
_COLUMNS = {
    'sawyer/joints/angle': 'joint_states.position',
    'sawyer/joints/velocity': 'joint_states.velocity',
    'sawyer/joints/torque': 'joint_states.effort',
}
_DEPTH = 'pixels/royale_camera_driver_depth'
_DEPTH_SIZE = (171, 224)
# Some 2**7 s wide (it is a float32), so it says about when, and not which frame came first.
_CLOCK = 'sawyer/joints/sensor_time'


def episodes(path: Path) -> Iterator[Callable[[], ForeignEpisode]]:
    """Yield what reads each episode: of one file, or of all files in a folder and below.

    metadata.sqlite is looked for in the folder. Raises StorageError where it cannot be read, and
    where there is no episode.
    """
    folder = path if path.is_dir() else path.parent
    known = _Metadata(folder / METADATA_FILE)
    found = sorted(path.rglob('*')) if path.is_dir() else [path]
    files = [file for file in found if file.is_file() and _is_episode(file, known)]
    if not files:
        raise StorageError(f'{path}: no TFRecord file of an episode here')
    for file in files:
        yield functools.partial(read, file, known)


def read(path: Path, known: _Metadata) -> ForeignEpisode:
    """Return the episode in one file, with what is known of it.

    No time of a frame was released that tells frames apart: they are one period apart, from the
    episode's timestamp on. Raises StorageError that names the file.
    """
    frames = list(read_examples(path))
    if len(frames) < 2:
        raise StorageError(f'{path}: {len(frames)} frames; there are no steps')
    about = known.episode(path.name)
    actions = _column(path, frames, _ACTIONS)
    if not (isinstance(actions, np.ndarray) and actions.size and np.isfinite(actions).all()):
        raise StorageError(f'{path}: the actions are not all finite numbers')
    start_ns = int(about.get('Timestamp') or _clock(frames[0])) * 1_000_000_000
    times_ns = foreign.grid_ns(start_ns, len(frames), RATE_HZ)
    columns: Columns = {'time': times_ns * 1e-9}
    for name in sorted(frames[0]):
        if name != _ACTIONS:
            columns[_column_name(name, frames[0][name])] = _column(path, frames, name)
    columns['action/requested'] = columns['action/applied'] = actions[:-1]
    header = EpisodeHeader.parse(
        {
            'id': foreign.as_id(about.get('EpisodeId') or path.stem),
            'task': about.get('TaskId') or '',
            'source': _SOURCES.get(about.get('EpisodeType'), ''),
            'robot': ROBOT,
            'world': 'real',
            'contract': _contract(columns, actions),
            'tags': known.tags(about),
            'start_time_ns': start_ns,
            'end_time_ns': int(times_ns[-1]),
            'extra': {
                'sketchy': {**about, 'file': path.name, 'last_action': actions[-1].tolist()}
            },
        },
        origin=str(path),
    )
    told, problems = known.rewards(about, times_ns)
    return ForeignEpisode(header, columns, told, problems)


def _is_episode(path: Path, known: _Metadata) -> bool:
    """Return whether a file is an episode, or was before it was damaged."""
    named = path.suffix in ('.tfrecord', '.tfrecords') or bool(known.episode(path.name))
    return named or is_tfrecord(path)


def _column(path: Path, frames: list[dict[str, Feature]], name: str) -> Any:
    """Return a feature of all frames as a column. Raises StorageError where they differ."""
    if not all(name in frame for frame in frames):
        raise StorageError(f'{path}: {name} is missing in some of {len(frames)} frames')
    values = [frame[name] for frame in frames]
    kinds = {(type(v), len(v), getattr(v, 'dtype', None)) for v in values}
    if len(kinds) != 1:
        raise StorageError(f'{path}: {name} differs in kind or length from frame to frame')
    if isinstance(values[0], list):
        if len(values[0]) != 1:
            raise StorageError(f'{path}: {name} has {len(values[0])} pictures a frame, not one')
        return foreign.picture_column(f'{path}: {name}', [value for (value,) in values])
    column = np.array(values)
    return column.reshape(-1, *_DEPTH_SIZE) if name == _DEPTH else column


def _column_name(name: str, values: Feature) -> str:
    """Return '<stream>.<quantity>' of a feature."""
    if name in _COLUMNS:
        return _COLUMNS[name]
    place = name.removeprefix('pixels/').replace('/', '_')
    if isinstance(values, list):
        return f'{place}.image'
    if name == _DEPTH:
        return f'{place}.depth'
    stream, _, quantity = name.removeprefix('pixels/').rpartition('/')
    return f'{stream.replace("/", "_") or "extra"}.{quantity}'


def _clock(frame: dict[str, Feature]) -> int:
    """Return about when a frame was recorded [s]; 0: nothing says it."""
    values = frame.get(_CLOCK, ())
    return int(values[0]) if len(values) and isinstance(values, np.ndarray) else 0


def _contract(columns: Columns, actions: np.ndarray) -> Contract:
    """Return the contract: what the actions mean was not released, nor their bounds."""
    bound = np.maximum(1.0, np.abs(actions).max(axis=0)).astype(float)
    names = [f'action_{number}' for number in range(actions.shape[1])]
    action = ActionField(
        name='action', kind='generic', names=names, lower=(-bound).tolist(), upper=bound.tolist()
    )
    return Contract(rate_hz=RATE_HZ, observation=foreign.observed(columns), action=[action])


class _Metadata:
    """metadata.sqlite, or what is known without it: nothing."""

    def __init__(self, path: Path):
        self._path, self._database = path, None
        if path.exists():
            # Read as it is: it may lie where nothing can be written.
            uri = f'{path.absolute().as_uri()}?mode=ro&immutable=1'
            with self._naming_the_file():
                self._database = sqlite3.connect(uri, uri=True)
                self._database.row_factory = sqlite3.Row

    def episode(self, file: str) -> dict[str, Any]:
        """Return the row of the episode in `file`, and the archive that it came in."""
        rows = self._rows(
            'SELECT Episodes.*, ArchiveFile FROM Episodes LEFT JOIN ArchiveFiles '
            'USING (EpisodeId) WHERE DataPath = ? OR DataPath LIKE ?',
            (file, f'%/{file}'),
        )
        about = dict(rows[0]) if rows else {}
        for key, value in about.items():
            if not isinstance(value, int if key == 'Timestamp' else str) and value is not None:
                raise StorageError(f'{self._path}: {key} of the episode in {file} is {value!r}')
        return about

    def tags(self, about: dict[str, Any]) -> list[str]:
        """Return the tags of an episode, as words that a query can name."""
        query = 'SELECT Tag FROM EpisodeTags WHERE EpisodeId = ? ORDER BY Tag'
        rows = self._rows(query, (about.get('EpisodeId'),))
        return list(dict.fromkeys('_'.join(tag.replace(',', ' ').split()) for (tag,) in rows))

    def rewards(
        self, about: dict[str, Any], times_ns: np.ndarray
    ) -> tuple[list[tuple[RewardInfo, bytes]], list[str]]:
        """Return an episode's reward sequences, one value a frame; and what is wrong with others.

        When they were drawn was not released: they count as drawn at no time, 0.
        """
        found, problems = [], []
        query = 'SELECT * FROM RewardSequences WHERE EpisodeId = ? ORDER BY RewardSequenceId'
        for row in self._rows(query, (about.get('EpisodeId'),)):
            place = f'{self._path}: reward {row["RewardSequenceId"]} of {row["EpisodeId"]}'
            try:
                found.append(_reward(dict(row), times_ns))
            except (SpecError, TypeError, ValueError) as error:
                problems.append(f'{place}: {error}')
        return found, problems

    def _rows(self, query: str, parameters: tuple) -> list[sqlite3.Row]:
        if self._database is None:
            return []
        with self._naming_the_file():
            return self._database.execute(query, parameters).fetchall()

    @contextlib.contextmanager
    def _naming_the_file(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise StorageError(f'{self._path}: cannot be read ({error})') from None


def _reward(row: dict[str, Any], times_ns: np.ndarray) -> tuple[RewardInfo, bytes]:
    values = np.frombuffer(row.pop('Values') or b'', '<f4')
    if len(values) != len(times_ns):
        raise ValueError(f'{len(values)} values for {len(times_ns)} frames')
    episode, sequence = str(row['EpisodeId']), str(row['RewardSequenceId'])
    return rewards.prepare(
        values,
        {
            'id': foreign.as_id(f'{episode}-{sequence}'),
            'task': row['RewardTaskId'],
            'kind': _KINDS.get(row['Type'], 'predicted'),
            'author': row['User'] or 'unknown',
            'created_ns': 0,
            'times_ns': times_ns.tolist(),
            'extra': {'sketchy': row},
        },
    )
