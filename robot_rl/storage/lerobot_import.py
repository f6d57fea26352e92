"""Reads a LeRobotDataset v3 without the lerobot package: parquet, and pictures or videos.

What lerobot_export wrote comes back under its own names, with headers and rewards. Of other data
sets a feature is the column of its name, and what has no column is in the header, under `extra`.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.errors import StorageError
from robot_rl.specs import ActionField, Contract, ObservationField
from robot_rl.storage import foreign, rewards
from robot_rl.storage.column_file import Columns
from robot_rl.storage.episode import EpisodeHeader
from robot_rl.storage.extras import need
from robot_rl.storage.foreign import ForeignEpisode
from robot_rl.storage.lerobot_export import (
    ACTION,
    FRAME,
    INFO_FILE,
    OWN_FILE,
    STATS_FILE,
    TASKS_FILE,
    TIME_NS,
)
from robot_rl.storage.pictures import Pictures

# A feature whose name may stand in a contract.
_SOURCE = re.compile(r'observation\.[A-Za-z_]\w*')
# What a row of meta/episodes says about files, not about the episode.
_PLACES = ('data/', 'videos/', 'meta/', 'stats/', 'dataset_from_index', 'dataset_to_index')


def is_dataset(path: Path) -> bool:
    """Return whether a folder is a LeRobotDataset."""
    return (path / INFO_FILE).is_file()


def episodes(root: Path) -> Iterator[Callable[[], ForeignEpisode]]:
    """Yield what reads each episode.

    Raises StorageError that names the file where meta/ cannot be read, or is not of version 3.
    """
    dataset = _DataSet(root)
    for row in dataset.rows:
        yield functools.partial(_read, dataset, row)


class _DataSet:
    """What meta/ says."""

    def __init__(self, root: Path):
        self.root, self.own = root, {}
        self.info = _json(root / INFO_FILE)
        version = str(self.info.get('codebase_version'))
        if not version.startswith('v3.'):
            raise StorageError(
                f'{root / INFO_FILE}: version {version}; v3.0 is read, to which lerobot converts'
            )
        for key, kind in (('features', dict), ('fps', (int, float)), ('data_path', str)):
            if not isinstance(self.info.get(key), kind):
                raise StorageError(f'{root / INFO_FILE}: {key} is {self.info.get(key)!r}')
        self.stats = _json(root / STATS_FILE) if (root / STATS_FILE).exists() else {}
        if (root / OWN_FILE).exists():
            self.own = _json(root / OWN_FILE)
        tasks = _table(root / TASKS_FILE).to_pylist() if (root / TASKS_FILE).exists() else []
        # The index of the pandas frame, whatever it is called.
        self.tasks = {
            row['task_index']: next((v for v in row.values() if isinstance(v, str)), '')
            for row in tasks
            if 'task_index' in row
        }
        files = sorted(root.glob('meta/episodes/*/*.parquet'))
        self.rows = [row for file in files for row in _table(file).to_pylist()]
        if not self.rows:
            raise StorageError(f'{root}: no episode in meta/episodes')

    def file(self, path: str, **values: Any) -> Path:
        """Return a file by the pattern that meta/info.json has for it."""
        try:
            return self.root / path.format(**values)
        except (KeyError, IndexError, ValueError):
            raise StorageError(f'{self.root / INFO_FILE}: {path!r} names no file') from None


def _read(dataset: _DataSet, row: dict[str, Any]) -> ForeignEpisode:
    """Return one episode. Raises StorageError that names the file."""
    try:
        return _episode(dataset, row)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise StorageError(
            f'{dataset.root}: episode {row.get("episode_index")} is not as meta/ says '
            f'({type(error).__name__}: {error})'
        ) from None


def _episode(dataset: _DataSet, row: dict[str, Any]) -> ForeignEpisode:
    number, fps = row['episode_index'], float(dataset.info['fps'])
    file = dataset.file(
        dataset.info['data_path'],
        chunk_index=row['data/chunk_index'],
        file_index=row['data/file_index'],
    )
    table = _table(file, [('episode_index', '=', number)])
    count = table.num_rows
    if count != row['length'] or count < 2:
        raise StorageError(f'{file}: {count} frames of episode {number}, {row["length"]} expected')
    frames, words = _features(dataset, row, table, file)
    if ACTION not in frames:
        raise StorageError(f'{file}: no feature {ACTION!r}; there are no steps')
    own = _own(dataset, number)
    start_ns = own['header']['start_time_ns'] if own else 0
    times_ns = frames.pop(TIME_NS, None)
    if times_ns is not None:
        times_ns = times_ns.ravel()
    else:
        times_ns = start_ns + np.round(np.array(table['timestamp']) * 1e9).astype(np.int64)
    about = {
        'data_set': dataset.root.name,
        'last_action': frames[ACTION][-1].tolist(),
        'frames': words,
        'episode': {k: v for k, v in row.items() if not k.startswith(_PLACES)},
    }
    columns = _columns(dataset, frames, times_ns, own is not None)
    if own:
        return _own_episode(own, columns, times_ns, about)
    about |= {key: dataset.info.get(key) for key in ('fps', 'robot_type', 'features')}
    task = dataset.tasks.get(table['task_index'][0].as_py(), '')
    header = EpisodeHeader.parse(
        {
            'id': foreign.as_id(f'{dataset.root.name}-{number:06d}'),
            'task': task,
            'robot': dataset.info.get('robot_type') or '',
            'contract': _contract(dataset, columns, fps),
            'start_time_ns': int(times_ns[0]),
            'end_time_ns': int(times_ns[-1]),
            'extra': {'lerobot': about},
        },
        origin=str(dataset.root),
    )
    return ForeignEpisode(header, columns)


def _features(
    dataset: _DataSet, row: dict[str, Any], table: Any, file: Path
) -> tuple[dict[str, Any], dict[str, list]]:
    """Return the features that columns can be made of, and those that are words."""
    frames: dict[str, Any] = {}
    words: dict[str, list] = {}
    for name, feature in dataset.info['features'].items():
        kind, place = feature['dtype'], f'{file}: {name}'
        if name in FRAME:
            continue
        if kind == 'video':
            frames[name] = foreign.picture_column(place, _video(dataset, row, name))
        elif kind == 'image':
            pictures = [item.get('bytes') for item in table[name].to_pylist()]
            if None in pictures:
                raise StorageError(f'{place}: pictures outside of the parquet file are not read')
            frames[name] = foreign.picture_column(place, pictures)
        else:
            values = np.array(table[name].to_pylist())
            if values.dtype.kind not in 'biuf':
                words[name] = table[name].to_pylist()
                continue
            # Of its kind, whatever Python made of it; a scalar is a vector of one.
            frames[name] = values.astype(kind).reshape(len(values), *feature['shape'])
    return frames, words


def _columns(
    dataset: _DataSet, frames: dict[str, Any], times_ns: np.ndarray, own: bool
) -> Columns:
    """Return the columns; without those of ours, a feature keeps its name."""
    columns: Columns = {'time': times_ns * 1e-9}
    names = dataset.own['columns'] if own else {}
    for feature, values in frames.items():
        name = names.get(feature, feature)
        if feature == ACTION:
            columns['action/applied'] = values[:-1]
            columns.setdefault('action/requested', values[:-1])
        elif name == 'action/requested':
            columns[name] = values[:-1]
        elif own and name == 'source':
            columns[name] = values[:-1, 0]
        elif isinstance(values, Pictures):
            camera = re.sub(r'\W', '_', feature.removeprefix('observation.images.'))
            columns[name if own else f'{camera}.image'] = values
        elif own and name.endswith('.time'):
            columns[name] = columns['time'] - values[:, 0]
        else:
            columns[name] = values
    return columns


def _own(dataset: _DataSet, number: int) -> dict[str, Any] | None:
    """Return what lerobot_export kept of an episode; None: another one wrote it."""
    kept = dataset.own.get('episodes', [])
    return kept[number] if number < len(kept) else None


def _own_episode(
    own: dict[str, Any], columns: Columns, times_ns: np.ndarray, about: dict[str, Any]
) -> ForeignEpisode:
    """Return an episode of ours, with what was known of it."""
    fields = own['header'] | {'topics': {}, 'files': []}
    fields['extra'] = fields.get('extra', {}) | {'lerobot': about}
    told = []
    for reward in own['rewards']:
        said = {key: v for key, v in reward['info'].items() if key not in ('length', 'sha256')}
        values = reward['values']
        if said.get('times_ns') is None:  # a value a step: the last observation is not there
            said['times_ns'], values = times_ns.tolist(), values[: len(times_ns)]
        told.append(rewards.prepare(values, said))
    return ForeignEpisode(EpisodeHeader.parse(fields), columns, told)


def _contract(dataset: _DataSet, columns: Columns, fps: float) -> Contract:
    """Return a contract that reads observation.* and commands actions of no known kind."""
    feature = dataset.info['features'][ACTION]
    size = columns['action/applied'].shape[1]
    names = _names(feature.get('names'), size)
    found = dataset.stats.get(ACTION, {})
    lower = np.minimum(np.ravel(found.get('min', -1.0)), columns['action/applied'].min(axis=0))
    upper = np.maximum(np.ravel(found.get('max', 1.0)), columns['action/applied'].max(axis=0))
    upper = np.where(upper > lower, upper, lower + 1.0)
    action = ActionField(
        name='action', kind='generic', names=names, lower=lower.tolist(), upper=upper.tolist()
    )
    fields = foreign.observed(columns)
    for source, column in columns.items():
        if _SOURCE.fullmatch(source):
            name = source.replace('.', '_')
            fields.append(ObservationField(name=name, source=source, shape=column.shape[1:]))
    return Contract(rate_hz=fps, observation=fields, action=[action])


def _names(names: Any, size: int) -> list[str]:
    """Return the names of an action's elements: a list, {axis: list}, or {name: place}."""
    found = list(names.values()) if isinstance(names, dict) else names or []
    if isinstance(names, dict) and all(isinstance(value, int) for value in found):
        found = sorted(names, key=names.get)
    elif found and isinstance(found[0], list):
        found = list(itertools.chain.from_iterable(found))
    found = [str(name) for name in found]
    if len(found) != size or len(set(found)) != size:
        return [f'action_{number}' for number in range(size)]
    return found


def _video(dataset: _DataSet, row: dict[str, Any], name: str) -> list[bytes]:
    """Return the frames of an episode in a video, as JPEG files.

    Raises StorageError where there is none within half a period of a frame's time.
    """
    from robot_rl.images import as_jpeg  # OpenCV takes a while: only who reads videos imports it

    av = need('av', 'videos of LeRobot')
    file = dataset.file(
        dataset.info.get('video_path') or '',
        video_key=name,
        chunk_index=row[f'videos/{name}/chunk_index'],
        file_index=row[f'videos/{name}/file_index'],
    )
    fps, start = float(dataset.info['fps']), float(row[f'videos/{name}/from_timestamp'])
    files: list[bytes] = []
    try:
        with av.open(str(file)) as video:
            stream = video.streams.video[0]
            video.seek(max(0, int((start - 0.5 / fps) / stream.time_base)), stream=stream)
            for frame in video.decode(stream):
                place = (frame.time - start) * fps
                if place < -0.5:
                    continue  # the seek went to a key frame before
                if len(files) == row['length']:
                    break
                if abs(place - len(files)) > 0.5:
                    raise StorageError(f'{file}: no frame at {start + len(files) / fps:.3f} s')
                files.append(as_jpeg(frame.to_ndarray(format='rgb24')))
    except StorageError:
        raise
    except (OSError, ValueError, IndexError) as error:  # av's own errors are such
        raise StorageError(f'{file}: cannot be decoded ({error})') from None
    if len(files) != row['length']:
        raise StorageError(f'{file}: {len(files)} frames, {row["length"]} expected')
    return files


def _table(path: Path, filters: Sequence[tuple] | None = None) -> Any:
    parquet = need('pyarrow.parquet', 'LeRobot')
    try:
        return parquet.read_table(path, filters=filters, partitioning=None)
    except Exception as error:  # damaged bytes make the library raise almost anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StorageError(f'{path}: cannot be read ({reason})') from None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise StorageError(f'{path}: cannot be read ({error.strerror})') from None
    except (ValueError, RecursionError) as error:
        raise StorageError(f'{path}: no JSON ({error})') from None
    if not isinstance(found, dict):
        raise StorageError(f'{path}: no JSON object')
    return found
