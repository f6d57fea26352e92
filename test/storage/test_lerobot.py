"""LeRobotDataset v3, read here by pyarrow, and by lerobot itself where it is installed."""

import importlib.util
import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

from robot_rl.cli import main as cli
from robot_rl.errors import StorageError
from robot_rl.storage import doors, foreign
from robot_rl.storage.columns import aligned_columns
from robot_rl.storage.pictures import Pictures
from robot_rl.storage.store import Store

pa = pytest.importorskip('pyarrow', reason='needs the extra `doors`')
pq = pytest.importorskip('pyarrow.parquet', reason='needs the extra `doors`')

START_NS = 1_700_000_000_123_456_789
# A Python that has lerobot; this one, if it has.
LEROBOT = os.environ.get('ROBOT_RL_LEROBOT_PYTHON') or (
    sys.executable if importlib.util.find_spec('lerobot') else ''
)


def jpeg(shade, size=(16, 24)):
    return cv2.imencode('.jpg', np.full((*size, 3), shade, np.uint8))[1].tobytes()


def columns(steps, seed):
    """Columns as those of streams: times that jitter, stamps before them, a goal, a picture."""
    rng = np.random.default_rng(seed)
    times = START_NS * 1e-9 + np.arange(steps + 1) / 20 + rng.uniform(0, 0.004, steps + 1)
    stamps = times - 0.003
    stamps[0] = np.nan
    path = rng.normal(size=(steps + 1, 2))
    return {
        'time': times,
        'joint_states.position': path,
        'joint_states.time': times - 0.001,
        'target_pose.position': np.tile(rng.normal(size=3), (steps + 1, 1)),
        'target_pose.time': stamps,
        'command.position': path + 0.01,
        'force.norm': rng.normal(size=steps + 1),
        'map.depth': rng.normal(size=(steps + 1, 4, 3)).astype(np.float32),
        'gripper.closed': rng.random(steps + 1) > 0.5,
        'wrist.image': Pictures.of(
            [jpeg(10 * row) for row in range(steps + 1)], np.arange(steps + 1), (16, 24)
        ),
        'action/requested': np.diff(path, axis=0),
        'action/applied': np.diff(path, axis=0)[:, ::-1] / 2,
    }


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / 'store')


@pytest.fixture
def put(store, header):
    """Return a function that puts an episode with columns only into the store."""

    def put(id, steps=5, seed=0, change=None, **fields):
        found = columns(steps, seed)
        if change:
            change(found)
        about = header(id=id, start_time_ns=START_NS, end_time_ns=START_NS + 10**9, **fields)
        foreign.write(store.root, foreign.ForeignEpisode(about, found))
        return found

    return put


def export(store, folder, query=''):
    refused = []
    paths = [store.root / id for id in store.episodes(query).ids]
    return doors.export_to(paths, folder, 'lerobot', refused.append), refused


def test_frames_are_the_recorded_steps_beside_when_they_were(store, put, tmp_path):
    first, second = put('a', steps=5, seed=1), put('b', steps=7, seed=2, task='other')
    assert export(store, tmp_path / 'set') == (['a', 'b'], [])

    table = pq.read_table(tmp_path / 'set/data/chunk-000/file-000.parquet')
    assert table['episode_index'].to_pylist() == [0] * 5 + [1] * 7
    assert table['frame_index'].to_pylist() == [*range(5), *range(7)]
    assert table['index'].to_pylist() == list(range(12))
    np.testing.assert_allclose(table['timestamp'].to_numpy()[5:], np.arange(7) / 20, rtol=1e-6)
    for name, of in (
        ('observation.state', 'joint_states.position'),
        ('observation.target_pose.position', 'target_pose.position'),
        ('observation.command.position', 'command.position'),
        ('map.depth', 'map.depth'),
        ('action', 'action/applied'),
        ('requested_action', 'action/requested'),
    ):
        told = np.array(table[name].to_pylist())
        expected = np.concatenate([first[of][:5], second[of][:7]])
        np.testing.assert_allclose(told, expected, rtol=1e-6, err_msg=name)
    times = np.concatenate([first['time'][:5], second['time'][:7]])
    np.testing.assert_allclose(table['time_ns'].to_numpy(), times * 1e9, rtol=0, atol=300)
    ages = table['target_pose.time.age'].to_numpy()
    assert np.isnan(ages[[0, 5]]).all()
    np.testing.assert_allclose(np.delete(ages, [0, 5]), 0.003, atol=1e-6)
    pictures = table['observation.images.wrist'].to_pylist()
    assert [p['bytes'] for p in pictures[:5]] == [first['wrist.image'].file(i) for i in range(5)]


def test_what_a_derived_field_is_computed_of_is_an_observation(store, put, tmp_path, contract):
    fields = contract.to_dict()
    for field in fields['observation']:
        if field['name'] == 'target':
            field['source'] = 'target_pose.from_tool'
    put('a', contract=fields)
    export(store, tmp_path / 'set')
    features = json.loads((tmp_path / 'set/meta/info.json').read_text())['features']
    assert 'observation.target_pose.position' in features


def test_meta_says_what_there_is(store, put, tmp_path, robot, contract):
    found = [put('a', steps=5, seed=1), put('b', steps=7, seed=2, task='other')]
    export(store, tmp_path / 'set')
    info = json.loads((tmp_path / 'set/meta/info.json').read_text())
    assert (info['codebase_version'], info['fps'], info['robot_type']) == ('v3.0', 20, 'made_up')
    assert (info['total_episodes'], info['total_frames'], info['total_tasks']) == (2, 12, 2)
    features = info['features']
    assert features['observation.state'] == {
        'dtype': 'float32', 'shape': [2], 'names': list(robot.joints)
    }  # fmt: skip
    assert features['action']['names'] == list(contract.action_names)
    assert features['observation.images.wrist']['shape'] == [16, 24, 3]
    assert features['gripper.closed']['dtype'] == 'bool'
    rows = pq.read_table(tmp_path / 'set/meta/episodes/chunk-000/file-000.parquet').to_pylist()
    assert [(r['dataset_from_index'], r['dataset_to_index']) for r in rows] == [(0, 5), (5, 12)]
    assert [row['tasks'] for row in rows] == [['made_up/reach'], ['other']]

    stats = json.loads((tmp_path / 'set/meta/stats.json').read_text())
    actions = np.concatenate([f['action/applied'] for f in found])
    for name, expected in (
        ('mean', actions.mean(axis=0)),
        ('std', actions.std(axis=0)),
        ('min', actions.min(axis=0)),
        ('max', actions.max(axis=0)),
    ):
        np.testing.assert_allclose(stats['action'][name], expected, rtol=1e-5)
    assert stats['action']['count'] == [12]
    assert np.shape(stats['observation.images.wrist']['mean']) == (3, 1, 1)


def test_what_is_exported_comes_back_under_its_names(store, put, tmp_path):
    def led(found):  # as an episode of streams has it
        found['source'] = np.arange(len(found['action/applied']), dtype=np.int8) % 4

    first = put('a', steps=5, seed=1, change=led, tags=('curated',), success=True)
    put('b', steps=7, seed=2, change=led)
    store.add_reward('a', np.linspace(0, 1, 5), task='t', kind='sketch', author='anna')
    export(store, tmp_path / 'set')
    other = Store(tmp_path / 'other')
    assert doors.import_from(other, tmp_path / 'set') == (['a', 'b'], [], {}, [])
    assert doors.import_from(other, tmp_path / 'set').same == ['a', 'b']

    header, own = other.open('a').header, store.open('a').header
    for name in ('task', 'source', 'policy', 'success', 'tags', 'contract', 'robot_spec'):
        assert getattr(header, name) == getattr(own, name), name
    found = aligned_columns(other.open('a'))
    assert found.keys() == first.keys()
    for name, column in first.items():
        if name.startswith('action/') or name == 'source':
            np.testing.assert_allclose(found[name], column[:4], rtol=1e-6)
        elif name != 'wrist.image':
            told = found[name].reshape(column[:5].shape)
            tolerance = 1e-6 if name.endswith('time') else 1e-5
            np.testing.assert_allclose(told, column[:5], rtol=0, atol=tolerance)
    files = [found['wrist.image'].file(row) for row in range(5)]
    assert files == [first['wrist.image'].file(row) for row in range(5)]
    last = header.extra['lerobot']['last_action']
    np.testing.assert_allclose(last, first['action/applied'][4], rtol=1e-6)
    (info,) = other.open('a').rewards()
    assert (info.author, info.kind, len(info.times_ns)) == ('anna', 'sketch', 5)
    np.testing.assert_allclose(other.open('a').reward(info.id), np.linspace(0, 1, 5), rtol=1e-6)


def test_pictures_of_another_size_or_in_grey_become_those_of_the_feature(store, put, tmp_path):
    grey = cv2.imencode('.jpg', np.full((16, 24), 90, np.uint8))[1].tobytes()
    for id, file in (('a', jpeg(90, (32, 48))), ('b', grey)):
        pictures = Pictures.of([file], np.zeros(6, int), (16, 24))
        put(id, change=lambda c, pictures=pictures: c.update({'wrist.image': pictures}))
    export(store, tmp_path / 'set')
    table = pq.read_table(tmp_path / 'set/data/chunk-000/file-000.parquet')
    for item in table['observation.images.wrist'].to_pylist():
        data = np.frombuffer(item['bytes'], np.uint8)
        picture = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
        assert picture.shape == (16, 24, 3)
        assert abs(int(picture.mean()) - 90) <= 2


def test_what_differs_or_is_damaged_is_left_with_a_line(store, put, tmp_path):
    put('a')
    put('b', change=lambda c: c.pop('force.norm'))
    put('c', contract=None)
    put('d')
    steps = store.root / 'd' / 'steps.npz'
    steps.write_bytes(steps.read_bytes()[:-7])
    ids, refused = export(store, tmp_path / 'set')
    assert ids == ['a']
    told = '\n'.join(refused)
    assert f'{store.root / "b"}: differs from the first episode in force.norm' in told
    assert f'{store.root / "c"}: no contract' in told
    assert f'{steps}: ' in told
    with pytest.raises(StorageError, match='exists already'):
        export(store, tmp_path / 'set')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['set', 'store']


def test_where_nothing_can_be_exported_nothing_is_left(store, put, tmp_path):
    put('c', contract=None)
    ids, refused = export(store, tmp_path / 'set')
    assert (ids, len(refused)) == ([], 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['store']


def video(path, shades, fps=10):
    """Write an mp4 of plain frames."""
    av = pytest.importorskip('av', reason='needs the extra `doors`')
    with av.open(str(path), 'w') as out:
        stream = out.add_stream('mpeg4', rate=fps)
        stream.width, stream.height, stream.pix_fmt = 48, 32, 'yuv420p'
        for shade in shades:
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), shade, np.uint8), 'rgb24')
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


@pytest.fixture
def theirs(tmp_path):
    """A data set as others write it: two episodes, one video file for both, no statistics."""
    root = tmp_path / 'pick-place'
    for folder in ('meta/episodes/chunk-000', 'data/chunk-000', 'videos/observation.images.top-1/chunk-000'):  # fmt: skip # noqa: E501
        (root / folder).mkdir(parents=True)
    shades = [20 * i for i in range(5)] + [30 + 20 * i for i in range(8)]
    video(root / 'videos/observation.images.top-1/chunk-000/file-000.mp4', shades)
    lengths, rows = [5, 8], []
    for number, length in enumerate(lengths):
        start = sum(lengths[:number])
        rows.append(
            {
                'episode_index': number,
                'tasks': [f'do {number}'],
                'length': length,
                'data/chunk_index': 0,
                'data/file_index': 0,
                'dataset_from_index': start,
                'dataset_to_index': start + length,
                'videos/observation.images.top-1/chunk_index': 0,
                'videos/observation.images.top-1/file_index': 0,
                'videos/observation.images.top-1/from_timestamp': start / 10,
                'videos/observation.images.top-1/to_timestamp': (start + length) / 10,
                'quality': 0.5 + number,
            }
        )
    pq.write_table(pa.Table.from_pylist(rows), root / 'meta/episodes/chunk-000/file-000.parquet')
    frames = [
        {
            'timestamp': i / 10,
            'frame_index': i,
            'episode_index': number,
            'index': sum(lengths[:number]) + i,
            'task_index': number,
            'observation.state': [float(i), float(number), 0.5],
            'action': [i + 0.25, -1.0],
            'next.reward': i / 10,
            'note': f'frame {i}',
        }
        for number, length in enumerate(lengths)
        for i in range(length)
    ]
    pq.write_table(pa.Table.from_pylist(frames), root / 'data/chunk-000/file-000.parquet')
    tasks = pa.table({'task_index': [0, 1], '__index_level_0__': ['do 0', 'do 1']})
    pq.write_table(tasks, root / 'meta/tasks.parquet')
    feature = {'dtype': 'float32', 'names': None}
    info = {
        'codebase_version': 'v3.0',
        'fps': 10,
        'robot_type': 'so101',
        'data_path': 'data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet',
        'video_path': 'videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4',
        'features': {
            'observation.state': feature | {'shape': [3]},
            'action': feature | {'shape': [2], 'names': {'motors': ['lift', 'turn']}},
            'observation.images.top-1': {'dtype': 'video', 'shape': [32, 48, 3], 'names': None},
            'next.reward': feature | {'shape': [1]},
            'note': {'dtype': 'string', 'shape': [1], 'names': None},
            'timestamp': feature | {'shape': [1]},
        },
    }
    (root / 'meta/info.json').write_text(json.dumps(info))
    return root


def test_a_data_set_of_others_keeps_its_names_and_the_rest_is_extra(store, theirs):
    done = doors.import_from(store, theirs)
    assert done == (['pick-place-000000', 'pick-place-000001'], [], {}, [])
    (header,) = store.episodes('task="do 1" robot=so101')
    assert header.contract.rate_hz == 10
    assert header.contract.action_names == ('lift', 'turn')
    found = aligned_columns(store.open(header.id))
    np.testing.assert_allclose(found['time'], np.arange(8) / 10, atol=1e-6)
    np.testing.assert_array_equal(found['observation.state'][:, 0], np.arange(8))
    np.testing.assert_array_equal(found['action/applied'][:, 0], np.arange(7) + 0.25)
    np.testing.assert_allclose(found['next.reward'][:, 0], np.arange(8) / 10, rtol=1e-6)
    shades = found['top_1.image'].take(np.arange(8)).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(shades, 30 + 20 * np.arange(8), atol=4)
    about = header.extra['lerobot']
    assert about['frames'] == {'note': [f'frame {i}' for i in range(8)]}
    assert about['episode']['quality'] == 1.5
    assert about['last_action'] == [7.25, -1.0]
    sources = {field.source for field in header.contract.observation}
    assert sources == {'observation.state', 'top_1.image'}


@pytest.mark.parametrize('name', ['meta/info.json', 'meta/tasks.parquet',
                                  'meta/episodes/chunk-000/file-000.parquet'])  # fmt: skip
def test_damaged_meta_is_one_line_that_names_the_file(store, theirs, name):
    (theirs / name).write_bytes((theirs / name).read_bytes()[:-9])
    with pytest.raises(StorageError) as caught:
        doors.import_from(store, theirs)
    assert str(caught.value).startswith(f'{theirs / name}: ')
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'name',
    ['data/chunk-000/file-000.parquet', 'videos/observation.images.top-1/chunk-000/file-000.mp4'],
)
def test_damaged_data_is_told_and_nothing_of_it_is_taken(store, theirs, name):
    (theirs / name).write_bytes((theirs / name).read_bytes()[:-300])
    done = doors.import_from(store, theirs)
    assert done.added == []
    assert all(line.startswith(f'{theirs / name}: ') for line in done.refused)
    assert len(done.refused) == 2
    assert store.episodes().ids == []


def test_a_video_that_is_too_short_is_refused(store, theirs):
    path = theirs / 'videos/observation.images.top-1/chunk-000/file-000.mp4'
    path.unlink()
    video(path, [20] * 11)
    done = doors.import_from(store, theirs)
    assert done.added == ['pick-place-000000']
    assert done.refused == [f'{path}: 6 frames, 8 expected']


def test_version_2_is_refused(store, theirs):
    info = json.loads((theirs / 'meta/info.json').read_text())
    (theirs / 'meta/info.json').write_text(json.dumps(info | {'codebase_version': 'v2.1'}))
    with pytest.raises(StorageError, match=r'version v2\.1; v3\.0 is read'):
        doors.import_from(store, theirs)


def test_the_commands(store, put, tmp_path, capsys):
    put('a')
    at = ['--store', str(store.root)]
    out = str(tmp_path / 'set')
    assert (
        cli.main(['episodes', 'export', out, 'task=made_up/reach', '--format', 'lerobot', *at])
        == 0
    )
    assert '1 episode (' in capsys.readouterr().out
    other = ['--store', str(tmp_path / 'other')]
    assert cli.main(['episodes', 'import', out, *other]) == 0
    assert Store(tmp_path / 'other').episodes().ids == ['a']


LOAD = """
import io, json, sys, numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
root, picture = sys.argv[1:]
data = LeRobotDataset('robot_rl/test', root=root, delta_timestamps={'action': [0.0, 0.05]})
last = data[len(data) - 1]
print(json.dumps({
    'frames': data.num_frames, 'episodes': data.num_episodes, 'fps': data.fps,
    'state': last['observation.state'].tolist(), 'action': last['action'].tolist(),
    'pad': last['action_is_pad'].tolist(), 'time_ns': last['time_ns'].item(),
    'timestamp': last['timestamp'].item(), 'task': last['task'],
    'depth': last['map.depth'].tolist(), 'picture': last[picture].mean().item(),
    'picture_shape': list(last[picture].shape), 'mean': data.meta.stats['action']['mean'].tolist(),
}))
"""


@pytest.mark.skipif(not LEROBOT, reason='no lerobot; ROBOT_RL_LEROBOT_PYTHON names one that has')
def test_lerobot_loads_what_is_exported(store, put, tmp_path):
    put('a', steps=5, seed=1)
    second = put('b', steps=7, seed=2, task='other')
    export(store, tmp_path / 'set')
    environment = os.environ | {
        'HF_HUB_OFFLINE': '1', 'HF_HOME': str(tmp_path / 'hf'), 'PYTHONPATH': ''
    }  # fmt: skip
    script = [LEROBOT, '-c', LOAD, str(tmp_path / 'set'), 'observation.images.wrist']
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found['frames'], found['episodes'], found['fps']) == (12, 2, 20)
    assert found['task'] == 'other'
    np.testing.assert_allclose(found['state'], second['joint_states.position'][6], rtol=1e-6)
    np.testing.assert_allclose(found['action'][0], second['action/applied'][6], rtol=1e-6)
    assert found['pad'] == [False, True]
    assert abs(found['time_ns'] - second['time'][6] * 1e9) < 300
    assert found['timestamp'] == pytest.approx(6 / 20)
    np.testing.assert_allclose(found['depth'], second['map.depth'][6], rtol=1e-6)
    assert found['picture'] == pytest.approx(60 / 255, abs=0.01)
    assert found['picture_shape'] == [3, 16, 24]
    actions = np.concatenate([columns(5, 1)['action/applied'], second['action/applied']])
    np.testing.assert_allclose(found['mean'], actions.mean(axis=0), rtol=1e-5)
