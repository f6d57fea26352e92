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
    for name, value in {'STEPS': 1000, 'PICTURE_STEPS': 500, 'JPEGS': 5, '_SLICE_S': 0.01}.items():
        monkeypatch.setattr(storage, name, value)


def test_every_row_says_what_it_is_beside_what(small):
    rows = list(storage.run(seconds=0.02))
    assert len({row['metric'] for row in rows}) == len(rows)
    for row in rows:
        assert row['bench'] == 'storage' and row['unit'] in ('1/s', 'MB/s', 'MB')
        assert np.isfinite([row['value'], row['reference'], row['ratio']]).all()


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
    columns = {'action': np.zeros((4, 2), np.float32)}
    with pytest.raises(RobotRLError, match='lerobot in /bin/false failed: nothing said'):
        storage._lerobot('/bin/false', tmp_path / 'l', columns, {}, 0.1)


def test_options_of_one_benchmark_are_refused_by_another():
    with pytest.raises(RobotRLError, match='--lerobot is an option of bench storage only'):
        bench.main(['sim', '--lerobot', 'python'])


def test_without_seconds_each_benchmark_takes_its_own(monkeypatch):
    given = []
    monkeypatch.setattr('robot_rl.bench.record.run', lambda **more: given.append(more) or [])
    bench.main(['record'])
    bench.main(['record', '--seconds', '5'])
    assert given == [{}, {'seconds': 5.0}]
