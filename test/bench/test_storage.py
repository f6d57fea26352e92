"""What the storage's benchmark compares is the same data; what it measures is not looked at."""

import numpy as np
import pytest

from robot_rl.bench import storage
from robot_rl.cli import bench
from robot_rl.errors import RobotRLError
from robot_rl.storage.sampler import WindowSampler
from robot_rl.storage.shards import ShardedSteps, ShardWriter


@pytest.fixture
def small(monkeypatch):
    for name, value in {'STEPS': 1000, 'JPEGS': 5, '_SLICE_S': 0.01}.items():
        monkeypatch.setattr(storage, name, value)


def test_every_row_says_what_it_is_beside_what(small):
    rows = list(storage.run(seconds=0.02))
    assert len({row['metric'] for row in rows}) == len(rows)
    for row in rows:
        assert row['bench'] == 'storage' and row['unit'] in ('1/s', 'MB/s', 'MB')
        assert np.isfinite([row['value'], row['reference'], row['ratio']]).all()
    disk = {row['metric']: row for row in rows if '_disk_' in row['metric']}
    numbers = 7 + 7 + 7 + 3 + 7 + 2  # float32, and a byte for the kind of a step
    low = disk['low_dimensional_disk_1000_steps']
    assert low['reference'] == round(1000 * (4 * numbers + 1) / 1e6, 1)
    seen = disk['pictures_disk_1000_steps']
    assert seen['reference'] == round(1000 * (4 * numbers + 1 + 64 * 64 * 3) / 1e6, 1)
    assert low['value'] < seen['value'] < seen['reference'] / 2


def test_the_limit_gathers_as_much_as_the_sampler(small, tmp_path):
    with ShardWriter(tmp_path / 's') as writer:
        for number in range(4):
            writer.append(storage._episode(number))
    steps = ShardedSteps(tmp_path / 's')
    flat = {name: column.take(np.arange(1000), 0) for name, column in steps.flat.items()}
    sampler = WindowSampler(steps, storage.N_STEP)
    batch = sampler.transitions(storage.BATCH)
    seen, later, action, _ = storage._gather_transitions(flat)()
    assert [x.shape for x in seen] == [batch.observation[name].shape for name in storage.FIELDS]
    assert [x.shape for x in later] == [
        batch.next_observation[name].shape for name in storage.FIELDS
    ]
    assert action.shape == batch.action.shape
    batch = sampler.sequences(storage.BATCH, storage.LENGTH, storage.BURN_IN)
    seen, action, _ = storage._gather_sequences(flat)()
    assert [x.shape for x in seen] == [batch.observation[name].shape for name in storage.FIELDS]
    assert action.shape == batch.action.shape


def test_a_python_without_lerobot_is_named(small, tmp_path):
    with pytest.raises(RobotRLError, match='lerobot in /bin/false failed: nothing said'):
        storage._lerobot('/bin/false', tmp_path, {}, 4, 0.1)


def test_lerobot_is_given_the_same_steps(small, tmp_path):
    pq = pytest.importorskip('pyarrow.parquet', reason='needs the extra `doors`')
    jpegs = [storage._jpeg(number) for number in range(5)]
    storage._export(tmp_path / 'l', 500, jpegs)
    assert [path.name for path in (tmp_path / 'l').iterdir()] == ['dataset']
    table = pq.read_table(tmp_path / 'l' / 'dataset' / 'data')
    with ShardWriter(tmp_path / 's') as writer:
        for number in range(2):
            writer.append(storage._episode(number, jpegs))
    for name, column in ShardedSteps(tmp_path / 's').flat.items():
        if name == 'step_type':
            continue
        found = table[storage._LEROBOT_NAMES.get(name, name)].to_pylist()
        if name.endswith('camera'):
            assert [row['bytes'] for row in found] == [column.file(row) for row in range(500)]
        else:
            np.testing.assert_array_equal(found, column.take(np.arange(500), 0))


def test_a_disk_without_room_is_told_before_anything_is_written(monkeypatch):
    monkeypatch.setattr(storage, '_DISK_BYTES', 1e18)
    with pytest.raises(RobotRLError, match=r'GB are free in /.*, 1000000000 are needed; TMPDIR'):
        next(storage.run(0.02))


def test_options_of_one_benchmark_are_refused_by_another():
    with pytest.raises(RobotRLError, match='--lerobot is an option of bench storage only'):
        bench.main(['sim', '--lerobot', 'python'])


def test_without_seconds_each_benchmark_takes_its_own(monkeypatch):
    given = []
    monkeypatch.setattr('robot_rl.bench.record.run', lambda **more: given.append(more) or [])
    bench.main(['record'])
    bench.main(['record', '--seconds', '5'])
    assert given == [{}, {'seconds': 5.0}]
