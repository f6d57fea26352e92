"""Windows drawn from recorded episodes on disk, beside a plain gather from arrays in memory.

And beside the same data read through a LeRobotDataset by its own loader, where there is one.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from robot_rl.bench import storage_lerobot
from robot_rl.errors import RobotRLError, StorageError
from robot_rl.images import as_jpeg
from robot_rl.specs import ActionField, Contract, ObservationField
from robot_rl.storage import foreign, lerobot_export
from robot_rl.storage.episode import EpisodeHeader
from robot_rl.storage.foreign import ForeignEpisode
from robot_rl.storage.pictures import Pictures
from robot_rl.storage.sampler import Sequences, Transitions, WindowSampler
from robot_rl.storage.shards import ShardedSteps, ShardWriter
from robot_rl.storage.steps import (
    ACTION,
    DISCOUNT,
    FIRST,
    LAST,
    MID,
    OBSERVATION,
    REWARD,
    STEP_TYPE,
)

STEPS, EPISODE = 1_000_000, 250
RATE_HZ = 20
FIELDS = {'joints': 7, 'velocities': 7, 'tool': 7, 'target': 3}
ACTION_SIZE = 7
# So many pictures differ, and come again and again.
CAMERA, PICTURE, JPEGS = 'camera', (64, 64, 3), 5000
# Sequences of low-dimensional data; of pictures transitions: what is seen, and n steps later.
BATCH, N_STEP, LENGTH, BURN_IN = 256, 5, 20, 10
PICTURE_BATCH = 64
# LeRobotDataset gets the first steps with pictures only: it keeps them twice, and a video takes
# long to write.
LEROBOT_STEPS = {'low': STEPS, 'image': 100_000, 'video': 5_000}
_LEROBOT_NAMES = {
    **{OBSERVATION + name: f'observation.env.{name}' for name in FIELDS},
    OBSERVATION + CAMERA: f'observation.images.{CAMERA}',
    ACTION: 'action',
}
_DISK_BYTES = 6e9
_SLICE_S = 0.25


def run(seconds: float = 20.0, lerobot: str = '') -> Iterator[dict[str, Any]]:
    """Yield windows/s and MB/s of low-dimensional data and of pictures, and the memory taken.

    What is compared runs in turns, for about `seconds`. `lerobot` is a Python that has the
    lerobot package, where this one does not; without any its rows are left out. Raises
    RobotRLError where the disk has not enough room for the data, which is taken away again.
    """
    if not lerobot and find_spec('lerobot'):
        lerobot = sys.executable
    for part in (_low_dimensional, _with_pictures):
        with tempfile.TemporaryDirectory(prefix='robot-rl-bench-') as folder:
            free = shutil.disk_usage(folder).free
            if free < _DISK_BYTES:
                raise RobotRLError(
                    f'bench storage: {free / 1e9:.1f} GB are free in {Path(folder).parent}, '
                    f'{_DISK_BYTES / 1e9:.0f} are needed; TMPDIR names another place'
                )
            yield from part(Path(folder), seconds, lerobot)


def _low_dimensional(folder: Path, seconds: float, lerobot: str) -> Iterator[dict[str, Any]]:
    """Compare data that fits in memory: a map of files beside arrays of the same values."""
    with ShardWriter(folder / 'low') as writer:
        for number in range(STEPS // EPISODE):
            writer.append(_episode(number))
    idle, sampler = _memory_mb(), WindowSampler(ShardedSteps(folder / 'low'), N_STEP)
    draws = {
        'transitions': lambda: sampler.transitions(BATCH),
        'sequences': lambda: sampler.sequences(BATCH, LENGTH, BURN_IN),
    }
    _rates(draws, seconds / 4)
    yield _disk_row('low_dimensional', folder / 'low', sampler)
    yield from _memory_rows('low_dimensional', idle)
    flat = {name: column.take(np.arange(STEPS), 0) for name, column in sampler.steps.flat.items()}
    limits = {'transitions': _gather_transitions(flat), 'sequences': _gather_sequences(flat)}
    for kind, draw in draws.items():
        ours, limit = _rates({'ours': draw, 'limit': limits[kind]}, seconds).values()
        name, megabytes = f'low_dimensional_{kind}', _bytes(draw()) / 1e6
        yield _row(f'{name}_windows', '1/s', ours * BATCH, limit * BATCH)
        yield _row(f'{name}_bytes', 'MB/s', ours * megabytes, limit * megabytes)
    if lerobot:
        seen = list(range(-BURN_IN, LENGTH + N_STEP))
        offsets = {OBSERVATION + name: seen for name in FIELDS}
        offsets |= {name: seen[BURN_IN:-N_STEP] for name in (ACTION, REWARD, DISCOUNT)}
        _export(folder / 'lerobot', LEROBOT_STEPS['low'])
        theirs = _lerobot(lerobot, folder / 'lerobot', offsets, BATCH, seconds)
        name = f'low_dimensional_sequences_lerobot_{LEROBOT_STEPS["low"]}_steps'
        yield _row(name, '1/s', ours * BATCH, theirs)


def _with_pictures(folder: Path, seconds: float, lerobot: str) -> Iterator[dict[str, Any]]:
    """Compare pictures that are decoded when drawn with decoded ones, and with bare decoding."""
    jpegs = [_jpeg(number) for number in range(JPEGS)]
    with ShardWriter(folder / 'pictures') as writer:
        for number in range(STEPS // EPISODE):
            writer.append(_episode(number, jpegs))
    idle, sampler = _memory_mb(), WindowSampler(ShardedSteps(folder / 'pictures'), N_STEP)

    def draw() -> Transitions:
        return sampler.transitions(PICTURE_BATCH)

    _rates({'ours': draw}, seconds / 4)
    yield _disk_row('pictures', folder / 'pictures', sampler)
    yield from _memory_rows('pictures', idle)
    rng, decoded = np.random.default_rng(0), np.stack([_decoded(jpeg) for jpeg in jpegs])

    def gather() -> np.ndarray:
        return decoded.take(rng.integers(JPEGS, size=2 * PICTURE_BATCH), axis=0)

    def decode() -> list[np.ndarray]:
        return [_decoded(jpegs[number]) for number in rng.integers(JPEGS, size=2 * PICTURE_BATCH)]

    sides = {'ours': draw, 'gather': gather, 'decode': decode}
    ours, limit, bare = _rates(sides, seconds).values()
    megabytes = _bytes(draw()) / 1e6
    yield _row('pictures_windows', '1/s', ours * PICTURE_BATCH, limit * PICTURE_BATCH)
    yield _row('pictures_bytes', 'MB/s', ours * megabytes, limit * megabytes)
    yield _row('pictures_beside_decoding', '1/s', ours * PICTURE_BATCH, bare * PICTURE_BATCH)
    if not lerobot:
        return
    steps = LEROBOT_STEPS['image'], LEROBOT_STEPS['video']
    _export(folder / 'image', steps[0], jpegs)
    _save_columns(folder / 'video', sampler.steps.flat, steps[1])
    offsets = {OBSERVATION + name: [0, N_STEP] for name in (CAMERA, *FIELDS)}
    offsets |= {ACTION: [0]} | {name: list(range(N_STEP)) for name in (REWARD, DISCOUNT)}
    for form, number in zip(('image', 'video'), steps, strict=True):
        theirs = _lerobot(lerobot, folder / form, offsets, PICTURE_BATCH, seconds)
        yield _row(f'pictures_lerobot_{form}_{number}_steps', '1/s', ours * PICTURE_BATCH, theirs)


def _episode(number: int, jpegs: list[bytes] | None = None) -> dict[str, np.ndarray | Pictures]:
    """Return an episode of noise, with a camera's pictures where there are `jpegs`."""
    rng = np.random.default_rng(number)
    sizes = {OBSERVATION + name: size for name, size in FIELDS.items()} | {ACTION: ACTION_SIZE}
    columns = {name: rng.random((EPISODE, size), np.float32) for name, size in sizes.items()}
    kinds = np.full(EPISODE, MID, np.int8)
    kinds[0], kinds[-1] = FIRST, LAST
    columns |= {REWARD: rng.random(EPISODE, np.float32), STEP_TYPE: kinds}
    columns[DISCOUNT] = np.ones(EPISODE, np.float32)
    if jpegs:
        first = number * EPISODE
        seen = [jpegs[row % len(jpegs)] for row in range(first, first + EPISODE)]
        columns[OBSERVATION + CAMERA] = Pictures.of(seen, np.arange(EPISODE), PICTURE[:2])
    return columns


def _jpeg(number: int) -> bytes:
    """Return a picture of a table with a disc somewhere, with a camera's noise, as JPEG."""
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[: PICTURE[0], : PICTURE[1]]
    picture = np.stack([rows, columns, (rows + columns) // 2], axis=-1).astype(np.uint8)
    x, y = (int(place) for place in rng.integers(8, 56, 2))
    cv2.circle(picture, (x, y), 8, (220, 40, 40), -1)
    noisy = picture + rng.normal(scale=4, size=PICTURE)
    return as_jpeg(noisy.clip(0, 255).astype(np.uint8))


def _decoded(jpeg: bytes) -> np.ndarray:
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def _gather_transitions(flat: Mapping[str, np.ndarray]) -> Callable[[], object]:
    """Return the limit of transitions: the same rows of the same columns, and no more."""
    rng, steps = np.random.default_rng(0), np.arange(N_STEP)[:, None]

    def gather() -> object:
        rows = rng.integers(STEPS - N_STEP, size=BATCH)
        seen = [flat[OBSERVATION + name].take(rows, axis=0) for name in FIELDS]
        later = [flat[OBSERVATION + name].take(rows + N_STEP, axis=0) for name in FIELDS]
        scalars = [flat[name].take(rows + steps) for name in (REWARD, DISCOUNT)]
        return seen, later, flat[ACTION].take(rows, axis=0), scalars

    return gather


def _gather_sequences(flat: Mapping[str, np.ndarray]) -> Callable[[], object]:
    """Return the limit of sequences, as _gather_transitions does."""
    rng, offsets = np.random.default_rng(0), np.arange(-BURN_IN, LENGTH + N_STEP)[:, None]

    def gather() -> object:
        rows = rng.integers(BURN_IN, STEPS - LENGTH - N_STEP, size=BATCH) + offsets
        seen = [flat[OBSERVATION + name].take(rows, axis=0) for name in FIELDS]
        learned, rewarded = rows[BURN_IN:-N_STEP], rows[BURN_IN:-1]
        scalars = [flat[name].take(rewarded) for name in (REWARD, DISCOUNT)]
        return seen, flat[ACTION].take(learned, axis=0), scalars

    return gather


def _rates(sides: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Return the calls/s of each side; they take turns for `seconds` in all."""
    for call in sides.values():
        call()
    totals = {name: [0, 0.0] for name in sides}
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for name, call in sides.items():
            start, calls = time.perf_counter(), 0
            while (spent := time.perf_counter() - start) < _SLICE_S:
                call()
                calls += 1
            totals[name][0] += calls
            totals[name][1] += spent
    return {name: calls / spent for name, (calls, spent) in totals.items()}


def _bytes(batch: Transitions | Sequences) -> int:
    """Return how much there is in a batch."""
    arrays = [
        part
        for field in batch
        for part in (field.values() if isinstance(field, dict) else [field])
    ]
    return sum(array.nbytes for array in arrays)


def _memory_mb() -> dict[str, float]:
    """Return this process's resident memory: of its own, and of mapped files (proc(5))."""
    lines = Path('/proc/self/status').read_text().splitlines()
    found = {line.split(':')[0]: line.split()[1] for line in lines if line.startswith('Rss')}
    return {'own': int(found['RssAnon']) / 1e3, 'mapped': int(found['RssFile']) / 1e3}


def _disk_row(name: str, folder: Path, sampler: WindowSampler) -> dict[str, Any]:
    """Say how much is on the disk, beside what the same arrays would take."""
    used = sum(file.stat().st_size for file in folder.rglob('*') if file.is_file())
    flat = sampler.steps.flat.values()
    whole = sum(math.prod(column.shape) * column.dtype.itemsize for column in flat)
    return _row(f'{name}_disk_{STEPS}_steps', 'MB', used / 1e6, whole / 1e6)


def _memory_rows(name: str, idle: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    """Yield what drawing takes beyond what the process had when it was `idle`.

    The system drops what is mapped whenever it needs the memory.
    """
    now = _memory_mb()
    for kind in idle:
        yield _row(f'{name}_memory_{kind}_{STEPS}_steps', 'MB', now[kind] - idle[kind], now[kind])


def _export(folder: Path, steps: int, jpegs: list[bytes] | None = None) -> None:
    """Write the first steps as a LeRobotDataset into `folder`, as `episodes export` does."""
    contract, told = _contract(pictures=bool(jpegs)), []

    def episodes() -> Iterator[Path]:
        for number in range(steps // EPISODE):
            columns = _episode(number, jpegs)
            recorded = {'time': np.arange(EPISODE) / RATE_HZ, 'action/applied': columns[ACTION]}
            recorded |= {f.source: columns[OBSERVATION + f.name] for f in contract.observation}
            recorded |= {name: columns[name] for name in (REWARD, DISCOUNT)}
            header = EpisodeHeader(id=f'e{number}', task='bench', contract=contract)
            path = foreign.write(folder, ForeignEpisode(header, recorded))
            yield path
            shutil.rmtree(path)

    folder.mkdir()
    lerobot_export.export(episodes(), folder / 'dataset', told.append)
    if told:
        raise StorageError(f'bench storage: {told[0]}')


def _contract(pictures: bool) -> Contract:
    fields = [ObservationField(name=n, source=f'env.{n}', shape=(s,)) for n, s in FIELDS.items()]
    if pictures:
        camera = {'name': CAMERA, 'source': f'{CAMERA}.image', 'shape': PICTURE}
        fields.append(ObservationField(**camera, dtype='uint8', encoding='jpeg'))
    names = tuple(f'a{number}' for number in range(ACTION_SIZE))
    bounds = {'lower': (-1.0,) * ACTION_SIZE, 'upper': (1.0,) * ACTION_SIZE}
    action = ActionField(name='action', kind='generic', names=names, **bounds)
    return Contract(rate_hz=RATE_HZ, observation=tuple(fields), action=(action,))


def _save_columns(folder: Path, flat: Mapping[str, np.ndarray], steps: int) -> None:
    """Write the first steps for storage_lerobot to make a data set with videos of."""
    folder.mkdir()
    for name in set(flat) - {STEP_TYPE}:
        column = flat[name].take(np.arange(steps), 0)
        named = folder / f'{_LEROBOT_NAMES.get(name, name)}.npy'
        np.save(named, column if column.ndim > 1 else column[:, None])


def _lerobot(
    python: str, folder: Path, offsets: Mapping[str, list[int]], batch: int, seconds: float
) -> float:
    """Return the windows/s of the LeRobotDataset in `folder`, read with a worker a core.

    Raises RobotRLError, with the last line that it said, where it fails.
    """
    spec = {
        'rate_hz': RATE_HZ,
        'episode': EPISODE,
        'offsets': {_LEROBOT_NAMES.get(name, name): rows for name, rows in offsets.items()},
        'batch_size': batch,
        'workers': len(os.sched_getaffinity(0)),
        'seconds': seconds,
    }
    (folder / 'spec.json').write_text(json.dumps(spec))
    command = [python, storage_lerobot.__file__, str(folder)]
    offline = {'HF_HUB_OFFLINE': '1', 'HF_HOME': str(folder), 'PYTHONPATH': ''}
    done = subprocess.run(command, env=os.environ | offline, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ['nothing said']
        raise RobotRLError(f'bench storage: lerobot in {python} failed: {said[-1]}')
    return json.loads(done.stdout.splitlines()[-1])['windows']


def _row(metric: str, unit: str, value: float, reference: float) -> dict[str, Any]:
    return {
        'bench': 'storage',
        'metric': metric,
        'value': round(float(value), 1),
        'unit': unit,
        'reference': round(float(reference), 1),
        'ratio': round(float(value / reference), 3),
    }
