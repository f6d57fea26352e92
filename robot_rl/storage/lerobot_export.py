"""Writes episodes as a LeRobotDataset v3.0: parquet, pictures in it as JPEG, and meta/.

The layout is that of lerobot 0.6 (datasets/dataset_metadata.py, dataset_writer.py); the package
itself is not needed. A frame is a step: what was observed, and the action that answered it; the
last observation, which no action answers, is not among them. `timestamp` is frame_index / fps, as
lerobot has it; when a frame really was stands beside it as `time_ns`. What LeRobot has no place
for (the header, reward sequences) is in meta/robot_rl.json, for lerobot_import.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.errors import ContractMismatch, StorageError
from robot_rl.specs import Contract
from robot_rl.storage.checksums import check
from robot_rl.storage.columns import aligned_columns
from robot_rl.storage.commanded import Kinematics
from robot_rl.storage.episode import PARTIAL, EpisodeReader
from robot_rl.storage.extras import need
from robot_rl.storage.pictures import Pictures

VERSION = 'v3.0'
INFO_FILE, TASKS_FILE = 'meta/info.json', 'meta/tasks.parquet'
STATS_FILE, OWN_FILE = 'meta/stats.json', 'meta/robot_rl.json'
DATA_PATH = 'data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet'
EPISODES_PATH = 'meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet'
VIDEO_PATH = 'videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4'
CHUNK_FILES = 1000
DATA_FILE_MB = 100
STATE, ACTION, TIME_NS = 'observation.state', 'action', 'time_ns'
# What every frame has, beside the features of its data set.
FRAME = {
    'timestamp': 'float32',
    'frame_index': 'int64',
    'episode_index': 'int64',
    'index': 'int64',
    'task_index': 'int64',
}
_QUANTILES = {'q01': 0.01, 'q10': 0.1, 'q50': 0.5, 'q90': 0.9, 'q99': 0.99}
# Pictures of an episode that its statistics look at.
_SEEN = 8


def export(
    paths: Iterable[Path],
    folder: Path,
    refused: Callable[[str], None],
    kinematics: Kinematics | None = None,
) -> list[str]:
    """Write the episodes in `paths` into a new folder and return the ids of those that are in it.

    `refused` hears in one line why an episode is not: it is damaged, no columns can be made of it,
    or they are not those of the first one. Raises StorageError where nothing can be written.
    """
    if folder.exists():
        raise StorageError(f'{folder}: exists already; choose another name')
    new = folder.with_name(f'{folder.name}.{secrets.token_hex(4)}{PARTIAL}')
    writer = None
    try:
        new.mkdir(parents=True)
        writer = _Writer(new, kinematics)
        for path in paths:
            try:
                writer.append(path)
            except (StorageError, ContractMismatch) as error:
                refused(str(error))
        if writer.ids:
            writer.finish()
            new.rename(folder)
        return writer.ids
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f'{folder}: cannot be written ({error.strerror or error})') from None
    finally:
        if writer:
            writer.close()
        with contextlib.suppress(OSError):
            shutil.rmtree(new)


class _Writer:
    """Writes one data set, an episode at a time."""

    def __init__(self, root: Path, kinematics: Kinematics | None):
        self._root, self._kinematics = root, kinematics
        self._pa, self._parquet = need('pyarrow', 'LeRobot'), need('pyarrow.parquet', 'LeRobot')
        self.ids: list[str] = []
        self._features: dict[str, dict[str, Any]] = {}
        self._columns: dict[str, str] = {}
        self._fps, self._robot, self._frames = 0.0, '', 0
        self._tasks: dict[str, int] = {}
        self._rows: list[dict[str, Any]] = []
        self._stats: list[dict[str, dict[str, np.ndarray]]] = []
        self._own: list[dict[str, Any]] = []
        self._file, self._files = None, 0

    def append(self, path: Path) -> None:
        """Add an episode. Raises StorageError or ContractMismatch where it cannot be."""
        for damage in check(path).damaged:
            raise StorageError(str(damage))
        episode = EpisodeReader(path)
        header = episode.header
        if header.contract is None:
            raise StorageError(f'{episode.path}: no contract says at what rate its steps are')
        aligned = aligned_columns(episode, kinematics=self._kinematics)
        frames, columns = _frames(aligned, header.contract)
        features = {name: _feature(name, v, episode, columns) for name, v in frames.items()}
        fps = header.contract.rate_hz
        if self.ids and (features, fps) != (self._features, self._fps):
            raise StorageError(f'{episode.path}: {_difference(features, self._features)}')
        if not self.ids:
            self._features, self._columns, self._fps = features, columns, fps
            self._robot = header.robot
        own = {'header': header.to_dict(), 'rewards': _rewards(episode)}
        self._write(header.task, frames)
        self._own.append(own)
        self.ids.append(header.id)

    def finish(self) -> None:
        """Write meta/."""
        self.close()
        pa, count = self._pa, len(self.ids)
        (self._root / 'meta').mkdir(exist_ok=True)
        path = self._root / EPISODES_PATH.format(chunk_index=0, file_index=0)
        path.parent.mkdir(parents=True)
        self._parquet.write_table(pa.Table.from_pylist(self._rows), path)
        self._parquet.write_table(_tasks_table(pa, self._tasks), self._root / TASKS_FILE)
        frame = {name: {'dtype': d, 'shape': [1], 'names': None} for name, d in FRAME.items()}
        _write_json(
            self._root / INFO_FILE,
            {
                'codebase_version': VERSION,
                'robot_type': self._robot or None,
                'total_episodes': count,
                'total_frames': self._frames,
                'total_tasks': len(self._tasks),
                'chunks_size': CHUNK_FILES,
                'data_files_size_in_mb': DATA_FILE_MB,
                'video_files_size_in_mb': 200,
                'fps': int(self._fps) if self._fps.is_integer() else self._fps,
                'splits': {'train': f'0:{count}'},
                'data_path': DATA_PATH,
                'video_path': None,
                'features': self._features | frame,
            },
        )
        whole = {name: _merged([s[name] for s in self._stats]) for name in self._stats[0]}
        _write_json(self._root / STATS_FILE, _listed(whole))
        _write_json(self._root / OWN_FILE, {'columns': self._columns, 'episodes': self._own})

    def close(self) -> None:
        """Finish the file of frames that is open."""
        if self._file:
            self._file.close()
            self._file = None

    def _write(self, task: str, frames: dict[str, Any]) -> None:
        """Write the frames of one episode as a row group, and its line in meta/episodes."""
        pa, number, length = self._pa, len(self.ids), len(frames[TIME_NS])
        task_index = self._tasks.setdefault(task, len(self._tasks))
        index = np.arange(length)
        frames = frames | {
            'timestamp': (index / self._fps).astype(np.float32),
            'frame_index': index,
            'episode_index': np.full(length, number),
            'index': index + self._frames,
            'task_index': np.full(length, task_index),
        }
        table = pa.table({name: _array(pa, values) for name, values in frames.items()})
        if self._file and self._sink.tell() > DATA_FILE_MB * 2**20:
            self.close()
            self._files += 1
        chunk, file = divmod(self._files, CHUNK_FILES)
        if not self._file:
            path = self._root / DATA_PATH.format(chunk_index=chunk, file_index=file)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._sink = path.open('wb')
            self._file = _Closing(
                self._parquet.ParquetWriter(self._sink, table.schema), self._sink
            )
        self._file.write_table(table)
        stats = {name: _statistics(values) for name, values in frames.items()}
        stats = {name: found for name, found in stats.items() if found}
        self._stats.append(stats)
        flat = {f'stats/{n}/{k}': v for n, s in _listed(stats).items() for k, v in s.items()}
        self._rows.append(
            {
                'episode_index': number,
                'tasks': [task],
                'length': length,
                'data/chunk_index': chunk,
                'data/file_index': file,
                'dataset_from_index': self._frames,
                'dataset_to_index': self._frames + length,
                'meta/episodes/chunk_index': 0,
                'meta/episodes/file_index': 0,
                **flat,
            }
        )
        self._frames += length


class _Closing:
    """A parquet writer that closes its file, too."""

    def __init__(self, writer: Any, file: Any):
        self._writer, self._file = writer, file
        self.write_table = writer.write_table

    def close(self) -> None:
        self._writer.close()
        self._file.close()


def _frames(columns: dict[str, Any], contract: Contract) -> tuple[dict[str, Any], dict[str, str]]:
    """Return {feature: values [T, ...]} and {feature: the column that it is of}.

    What the contract reads is called observation.*, so that it is what a policy of lerobot sees.
    """
    steps = len(columns['action/applied'])
    frames: dict[str, Any] = {}
    names: dict[str, str] = {}
    # What is computed of a stream (from_tool, say) is there as what was recorded of it.
    read = {name for field in contract.observation for name in (field.source, field.recorded)}
    for name, column in columns.items():
        feature, values = name, column[:steps]
        if isinstance(column, Pictures):
            feature = f'observation.images.{name.removesuffix(".image")}'
        elif name == 'joint_states.position':
            feature = STATE
        elif name == 'time':
            feature, values = TIME_NS, np.round(values * 1e9).astype(np.int64)
        elif name.startswith('action/'):
            feature = ACTION if name == 'action/applied' else 'requested_action'
        elif name.endswith('.time'):
            # float32 tells an age, and not when in this century it was.
            feature, values = f'{name}.age', columns['time'][:steps] - values
        elif name in read:
            feature = f'observation.{name}'
        frames[feature] = values if isinstance(column, Pictures) else _narrowed(values)
        names[feature] = name
    return frames, names


def _narrowed(values: np.ndarray) -> np.ndarray:
    """Return values of a kind that every reader knows: float32, int64 or bool."""
    if values.dtype.kind == 'f':
        return values.astype(np.float32)
    return values if values.dtype == bool else values.astype(np.int64)


def _feature(
    name: str, values: Any, episode: EpisodeReader, columns: dict[str, str]
) -> dict[str, Any]:
    """Return what meta/info.json says of a feature."""
    header = episode.header
    if isinstance(values, Pictures):
        return {
            'dtype': 'image',
            'shape': [*values.size, 3],
            'names': ['height', 'width', 'channels'],
        }
    names = None
    if columns[name].startswith('action/'):
        names = list(header.contract.action_names)
    elif header.robot_spec and columns[name] in ('joint_states.position', 'command.position'):
        names = list(header.robot_spec.joints)
    shape = list(values.shape[1:]) or [1]
    return {'dtype': str(values.dtype), 'shape': shape, 'names': names}


def _difference(found: dict[str, Any], first: dict[str, Any]) -> str:
    """Say how the features of an episode differ from those of the first one."""
    differing = sorted(n for n in found.keys() | first.keys() if found.get(n) != first.get(n))
    told = ', '.join(differing) if differing else 'the rate'
    return f'differs from the first episode in {told}; a data set has the same of all'


def _rewards(episode: EpisodeReader) -> list[dict[str, Any]]:
    return [
        {'info': info.to_dict(), 'values': episode.reward(info.id).tolist()}
        for info in episode.rewards()
    ]


def _array(pa: Any, values: Any) -> Any:
    """Return a column for parquet: a scalar, a list of fixed length, or a picture, a row."""
    if isinstance(values, Pictures):
        files = [{'bytes': file, 'path': None} for file in _files(values)]
        kind = pa.struct([('bytes', pa.binary()), ('path', pa.string())])
        return pa.array(files, kind)
    flat = pa.array(np.ascontiguousarray(values).ravel())
    sizes = values.shape[1:]
    if sizes != (1,):
        # Lists in lists have no fixed length: that is how lerobot's reader takes them.
        if len(sizes) > 1:
            return pa.array(values.tolist(), _nested(pa, flat.type, len(sizes)))
        if sizes:
            return pa.FixedSizeListArray.from_arrays(flat, sizes[0])
    return flat


def _nested(pa: Any, kind: Any, depth: int) -> Any:
    for _ in range(depth):
        kind = pa.list_(kind)
    return kind


def _files(pictures: Pictures) -> list[bytes]:
    """Return each row's picture as a file, of the column's size; as it is kept where that does."""
    import cv2

    from robot_rl.images import lossless

    first = cv2.imdecode(np.frombuffer(pictures.file(0), np.uint8), cv2.IMREAD_UNCHANGED)
    if first is not None and first.shape == (*pictures.size, 3):
        return [pictures.file(row) for row in range(len(pictures))]
    return [lossless(pictures[row]) for row in range(len(pictures))]


def _statistics(values: Any) -> dict[str, np.ndarray]:
    """Return mean, std, min, max, count and quantiles of a feature in one episode.

    Of pictures they are those of some, by channel [3, 1, 1] and from 0 to 1; there are none of
    what has more than one axis a frame.
    """
    count = len(values)
    if isinstance(values, Pictures):
        rows = np.unique(np.linspace(0, count - 1, min(count, _SEEN)).round().astype(int))
        pixels = values.take(rows).reshape(-1, 3) / 255.0
        return {
            name: v if name == 'count' else v.reshape(3, 1, 1)
            for name, v in _of_rows(pixels, count).items()
        }
    if values.ndim > 2:
        return {}
    return _of_rows(values.reshape(count, -1).astype(np.float64), count)


def _of_rows(rows: np.ndarray, count: int) -> dict[str, np.ndarray]:
    rows = np.nan_to_num(rows)  # nothing had come yet
    quantiles = np.quantile(rows, list(_QUANTILES.values()), axis=0)
    return {
        'mean': rows.mean(axis=0),
        'std': rows.std(axis=0),
        'min': rows.min(axis=0),
        'max': rows.max(axis=0),
        'count': np.array([count]),
        **dict(zip(_QUANTILES, quantiles, strict=True)),
    }


def _merged(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the statistics of all episodes; the quantiles are means, as those of lerobot are."""
    counts = np.array([part['count'][0] for part in parts], np.float64)

    def mean(values: list[np.ndarray]) -> np.ndarray:
        return np.tensordot(counts / counts.sum(), np.stack(values), axes=1)

    means = mean([part['mean'] for part in parts])
    spread = mean([part['std'] ** 2 + (part['mean'] - means) ** 2 for part in parts])
    return {
        'mean': means,
        'std': np.sqrt(spread),
        'min': np.min([part['min'] for part in parts], axis=0),
        'max': np.max([part['max'] for part in parts], axis=0),
        'count': np.array([int(counts.sum())]),
        **{name: mean([part[name] for part in parts]) for name in _QUANTILES},
    }


def _listed(stats: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, list]]:
    return {name: {k: v.tolist() for k, v in found.items()} for name, found in stats.items()}


def _tasks_table(pa: Any, tasks: dict[str, int]) -> Any:
    """Return meta/tasks.parquet, which is read as a pandas frame whose index are the tasks."""
    table = pa.table({'task_index': list(tasks.values()), 'task': list(tasks)})

    def column(name: str, kind: str, numpy_type: str) -> dict[str, Any]:
        known = {'name': name, 'field_name': name, 'metadata': None}
        return known | {'pandas_type': kind, 'numpy_type': numpy_type}

    pandas = {
        'index_columns': ['task'],
        'column_indexes': [],
        'columns': [column('task_index', 'int64', 'int64'), column('task', 'unicode', 'object')],
        'pandas_version': '2.0.0',
    }
    return table.replace_schema_metadata({'pandas': json.dumps(pandas)})


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1, allow_nan=False), encoding='utf-8')
