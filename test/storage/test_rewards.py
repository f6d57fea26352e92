import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robot_rl.errors import SpecError, StorageError, UnknownName
from robot_rl.storage import rewards
from robot_rl.storage.episode import EpisodeReader
from robot_rl.storage.rewards import RewardInfo
from robot_rl.storage.store import Store

SKETCH = {'task': 'made_up/stack', 'kind': 'sketch', 'author': 'anna'}
PREDICTED = {'task': 'made_up/reach', 'kind': 'predicted', 'author': 'model-3'}


@pytest.fixture
def store(tmp_path, record_short):
    record_short(tmp_path / 'sto re', id='e0')
    return Store(tmp_path / 'sto re')


def test_many_sequences_stand_beside_each_other(store, rng):
    first, second = rng.random(7), rng.random(7).astype(np.float32)
    a = store.add_reward('e0', first, **SKETCH, created_ns=5)
    b = store.add_reward('e0', second, **SKETCH, created_ns=6)  # by the same person once more
    c = store.add_reward('e0', [0.5], **PREDICTED, model_sha256='ab' * 32, times_ns=[9])
    reader = store.open('e0')
    assert reader.rewards() == [a, b, c]
    assert reader.reward(a.id).dtype == np.float32
    np.testing.assert_array_equal(reader.reward(a.id), first.astype(np.float32))
    np.testing.assert_array_equal(reader.reward(b.id), second)
    assert (a.task, a.kind, a.author, a.length, a.times_ns) == (*SKETCH.values(), 7, None)
    assert (c.model_sha256, c.times_ns) == ('ab' * 32, (9,))
    # NumPy alone reads the values, whoever wrote them.
    stored = np.load(store.root / 'e0' / 'rewards' / f'{b.id}.npy')
    np.testing.assert_array_equal(stored, second)
    assert reader.header.task == 'made_up/reach'  # the annotated task is another


def test_an_add_never_replaces_another(store):
    added = store.add_reward('e0', [1.0, 2.0], **SKETCH, id='mine')
    with pytest.raises(StorageError, match=r'mine\.json: this reward exists already'):
        store.add_reward('e0', [3.0], **PREDICTED, id='mine')
    assert store.open('e0').rewards() == [added]
    np.testing.assert_array_equal(store.open('e0').reward('mine'), [1, 2])


@pytest.mark.parametrize(
    ('values', 'about', 'said'),
    [
        ([], {}, r'one value a step is needed, found shape \[0\]'),
        ([[1.0]], {}, r'found shape \[1, 1\]'),
        ([0.0, float('nan'), 1.0], {}, 'value 1 of 3 is nan, not finite'),
        ([1e300], {}, 'value 0 of 1 is inf'),
        (['x'], {}, 'the values are no numbers'),
        ([1.0], {'kind': 'sketched'}, "did you mean 'sketch'"),
        ([1.0], {'author': ''}, 'author'),
        ([1.0], {'autor': 'x'}, "did you mean 'author'"),
        ([1.0], {'model_sha256': 'ab'}, 'a sketch has no model'),
        ([1.0, 2.0], {'times_ns': [1]}, '1 times, 2 values'),
        ([1.0, 2.0], {'times_ns': [2, 2]}, 'must ascend'),
        ([1.0], {'id': '../up'}, 'id'),
    ],
)
def test_what_is_no_reward_is_refused_in_one_line_and_leaves_nothing(store, values, about, said):
    with pytest.raises(SpecError, match=said) as caught, np.errstate(over='ignore'):
        store.add_reward('e0', values, **(SKETCH | about))
    assert '\n' not in str(caught.value)
    assert not (store.root / 'e0' / 'rewards').exists()


def test_unknown_rewards_and_episodes_get_the_nearest_names(store):
    store.add_reward('e0', [1.0], **SKETCH, id='mine')
    with pytest.raises(UnknownName, match="unknown reward 'mime'; did you mean 'mine'"):
        store.open('e0').reward('mime')
    with pytest.raises(UnknownName, match='unknown reward'):
        store.open('e0').reward('../rewards/mine')
    with pytest.raises(UnknownName, match="unknown episode 'e1'"):
        store.add_reward('e1', [1.0], **SKETCH)


def test_an_add_that_dies_leaves_no_sequence(store, monkeypatch):
    def dies(path, data):
        if path.suffix == '.json':
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        path.write_bytes(data)

    monkeypatch.setattr(rewards, 'write_whole', dies)
    with pytest.raises(StorageError, match=r'no reward can be added \(No space left'):
        store.add_reward('e0', [1.0], **SKETCH, id='mine')
    assert store.open('e0').rewards() == []
    monkeypatch.undo()
    store.add_reward('e0', [2.0], **SKETCH, id='mine')  # nothing of the first is in the way
    np.testing.assert_array_equal(store.open('e0').reward('mine'), [2])


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    kind=st.sampled_from(['.npy', '.json']),
    place=st.floats(0, 1, exclude_max=True),
    flip=st.integers(0, 255),  # 0: the file is cut there
)
def test_damage_is_told_with_the_file_and_leaves_the_others_alone(
    record_short, tmp_path_factory, kind, place, flip
):
    path = record_short(tmp_path_factory.mktemp('damaged'), id='e0')
    store = Store(path.parent)
    for id in ('bad', 'good'):
        store.add_reward('e0', [1.0, 2.0], **SKETCH, id=id)
    file = path / 'rewards' / f'bad{kind}'
    data = bytearray(file.read_bytes())
    spot = int(len(data) * place)
    data[spot] ^= flip
    file.write_bytes(data if flip else data[:spot])
    reader, damaged = EpisodeReader(path), {}
    good = {info.id for info in reader.rewards(damaged)}
    assert 'good' in good
    np.testing.assert_array_equal(reader.reward('good'), [1, 2])
    try:
        np.testing.assert_array_equal(reader.reward('bad'), [1, 2])
    except StorageError as error:
        assert str(path / 'rewards' / 'bad') in str(error) and '\n' not in str(error)
    assert ('bad' in good) != ('rewards/bad.json' in damaged)
    assert len(store.episodes()) == 1


def test_a_sidecar_of_a_newer_robot_rl_is_refused_and_tells_which_is_read(store):
    added = store.add_reward('e0', [1.0], **SKETCH)
    file = store.root / 'e0' / 'rewards' / f'{added.id}.json'
    file.write_text(file.read_text().replace('"schema_version": 2', '"schema_version": 3'))
    with pytest.raises(StorageError, match='3 is newer than 2, the newest that this robot_rl'):
        store.open('e0').reward(added.id)


def test_a_sidecar_of_the_first_version_is_read(store):
    added = store.add_reward('e0', [1.0, 0.5], **SKETCH)
    file = store.root / 'e0' / 'rewards' / f'{added.id}.json'
    fields = {key: v for key, v in json.loads(file.read_text()).items() if key != 'checksum'}
    file.write_text(json.dumps(fields | {'schema_version': 1}))
    (info,) = store.open('e0').rewards()
    assert info == added
    np.testing.assert_array_equal(store.open('e0').reward(added.id), [1, 0.5])


def test_a_sidecar_round_trips(store):
    added = store.add_reward('e0', [1.0, 2.0], **SKETCH, times_ns=[1, 2], extra={'from': 'x'})
    assert RewardInfo.from_json(added.to_json()) == added


ADDER = """
import sys
from robot_rl.storage.store import Store
root, name = sys.argv[1:]
for number in range(20):
    about = {'task': 't', 'kind': 'sketch', 'author': name}
    Store(root).add_reward('e0', [number, number], **about)
"""


def test_several_processes_add_to_one_episode_and_none_is_lost(store):
    adders = [subprocess.Popen([sys.executable, '-c', ADDER, str(store.root), n]) for n in 'abc']
    assert [adder.wait(120) for adder in adders] == [0, 0, 0]
    reader = store.open('e0')
    for name in 'abc':
        values = [reader.reward(i.id)[0] for i in reader.rewards() if i.author == name]
        assert values == list(range(20))
        assert [h.id for h in store.episodes(f'reward=sketch:{name}')] == ['e0']
