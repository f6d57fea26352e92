"""Robomimic's HDF5 file, read back as robomimic reads it (utils/dataset.py, SequenceDataset)."""

import json

import cv2
import numpy as np
import pytest

from robot_rl.cli import main as cli
from robot_rl.errors import StorageError
from robot_rl.storage import foreign, robomimic
from robot_rl.storage.pictures import Pictures
from robot_rl.storage.store import Store

h5py = pytest.importorskip('h5py', reason='needs the extra `doors`')
START_NS = 1_700_000_000_000_000_000


@pytest.fixture
def put(tmp_path, header):
    """Return a function that puts an episode with columns only into a store."""

    def put(id, steps=4, **fields):
        rng = np.random.default_rng(steps)
        png = cv2.imencode('.png', np.full((6, 8, 3), (10, 20, 30), np.uint8))[1].tobytes()
        columns = {
            'time': START_NS * 1e-9 + np.arange(steps + 1) / 20,
            'joint_states.position': rng.normal(size=(steps + 1, 2)),
            'joint_states.time': np.full(steps + 1, np.nan),
            'wrist.image': Pictures.of([png], np.zeros(steps + 1, int), (6, 8)),
            'action/requested': rng.uniform(-0.1, 0.1, (steps, 2)),
            'action/applied': rng.uniform(-0.1, 0.1, (steps, 2)),
        }
        columns['action/applied'][0] = [0.1, 0.25]  # at a bound, and beyond it
        about = header(id=id, start_time_ns=START_NS, **fields)
        Store(tmp_path / 'store')
        foreign.write(tmp_path / 'store', foreign.ForeignEpisode(about, columns))
        return columns

    return put


def test_each_episode_is_a_demo(put, tmp_path, contract):
    told = [put('a', 4, success=True, tags=('curated',)), put('b', 6, success=False)]
    out = tmp_path / 'set.hdf5'
    paths = [tmp_path / 'store' / id for id in 'ab']
    assert robomimic.export(paths, out, pytest.fail) == ['a', 'b']
    with h5py.File(out) as hdf5:
        data = hdf5['data']
        assert sorted(data) == ['demo_0', 'demo_1']
        assert data.attrs['total'] == 10
        assert json.loads(data.attrs['env_args']).keys() == {'env_name', 'type', 'env_kwargs'}
        for number, columns in enumerate(told):
            demo = data[f'demo_{number}']
            steps = demo.attrs['num_samples']
            assert steps == len(columns['action/applied'])
            expected = np.clip(columns['action/applied'] / 0.1, -1, 1)  # bounds are -0.1 and 0.1
            np.testing.assert_allclose(demo['actions'][()], expected, atol=1e-12)
            position = columns['joint_states.position']
            np.testing.assert_array_equal(demo['obs/joint_states_position'][()], position[:-1])
            np.testing.assert_array_equal(demo['next_obs/joint_states_position'], position[1:])
            assert demo['obs/wrist_image'].shape == (steps, 6, 8, 3)
            assert demo['obs/wrist_image'].dtype == np.uint8
            assert demo['obs/wrist_image'][0, 0, 0].tolist() == [30, 20, 10]  # RGB
            assert demo['dones'][()].tolist() == [0] * (steps - 1) + [1]
            assert np.isfinite(demo['obs/joint_states_position'][()]).all()
            assert set(demo['obs']) == {'joint_states_position', 'wrist_image'}
            assert demo['time_ns'][1] - demo['time_ns'][0] == pytest.approx(5e7, abs=300)
        assert data['demo_0/rewards'][()].tolist() == [0, 0, 0, 1]
        assert not data['demo_1/rewards'][()].any()
        filtered = [name.decode('utf-8') for name in hdf5['mask/curated'][()]]
        assert filtered == ['demo_0'] == [name.decode() for name in hdf5['mask/success'][()]]
        assert json.loads(data['demo_0'].attrs['episode'])['id'] == 'a'


def test_rewards_are_the_newest_ones_of_the_task_or_else_success(put, tmp_path, rng):
    for id in 'abc':
        put(id, success=True, task='pick')
    store, values = Store(tmp_path / 'store'), rng.normal(size=(3, 4))
    for id, task, author, reward in (
        ('a', 'pick', 'anna', values[0]),
        ('a', 'pick', 'bob', values[1]),
        ('a', 'stack', 'anna', values[2]),
        ('b', 'stack', 'anna', values[2]),
    ):
        store.add_reward(id, reward, task=task, kind='sketch', author=author)
    times = [START_NS, START_NS + 10**8]  # not one a step
    store.add_reward('c', [0, 1], task='pick', kind='sketch', author='anna', times_ns=times)
    out = tmp_path / 'set.hdf5'
    robomimic.export([store.root / id for id in 'abc'], out, pytest.fail)
    with h5py.File(out) as hdf5:
        a, b, c = (hdf5[f'data/demo_{number}'] for number in range(3))
        assert a.attrs['rewards'] == 'sketch:bob'
        np.testing.assert_allclose(a['rewards'][()], values[1].astype(np.float32))
        for demo in (b, c):
            assert demo.attrs['rewards'] == 'success'
            assert demo['rewards'][()].tolist() == [0, 0, 0, 1]


def test_what_cannot_be_exported_is_told(put, tmp_path, contract):
    put('a', contract=None)
    put('b')
    wider = contract.to_dict()
    wider['action'][0]['upper'] = [1.0, 1.0]
    put('c', contract=wider)
    out, refused = tmp_path / 'set.hdf5', []
    paths = [tmp_path / 'store' / id for id in 'abc']
    assert robomimic.export(paths, out, refused.append) == ['b']
    assert [line.split(': ')[0] for line in refused] == [str(paths[0]), str(paths[2])]
    with pytest.raises(StorageError, match='exists already'):
        robomimic.export(paths, out, refused.append)
    assert robomimic.export(paths[:1], tmp_path / 'none.hdf5', refused.append) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ['set.hdf5', 'store']


def test_the_command(put, tmp_path, capsys):
    put('a')
    out = tmp_path / 'set.hdf5'
    store = ['--store', str(tmp_path / 'store')]
    assert cli.main(['episodes', 'export', str(out), '--format', 'robomimic', *store]) == 0
    assert '1 episode (' in capsys.readouterr().out
    with h5py.File(out) as hdf5:
        assert list(hdf5['data']) == ['demo_0']
