"""What another package's GAIL is given, and what is said where it cannot run."""

import numpy as np
import pytest

from robot_rl.bench import gail_peer
from robot_rl.errors import RobotRLError
from robot_rl.specs import ActionField, Contract, ObservationField
from robot_rl.storage.shards import ShardedSteps, ShardWriter

CONTRACT = Contract(
    rate_hz=10,
    observation=(
        ObservationField(name='x', source='env.x', shape=(2,)),
        ObservationField(name='y', source='env.y', shape=(1,)),
    ),
    action=(ActionField(name='a', kind='generic', names=('a',), lower=(-1,), upper=(1,)),),
)
WORDS = ['--agent', 'gail', '--demos', 'tag=x', '--store', 's', '--steps', '1', '--seed', '0']


def test_episodes_have_one_observation_more_than_actions(tmp_path):
    rng, episodes = np.random.default_rng(0), []
    with ShardWriter(tmp_path / 'shards') as shards:
        for length in (4, 3):
            shapes = {'observation/x': (length, 2), 'observation/y': (length, 1)}
            shapes |= {'action': (length, 1), 'reward': (length,), 'discount': (length,)}
            columns = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
            columns['step_type'] = np.array([0, *[1] * (length - 2), 2], np.int8)
            shards.append(columns)
            episodes.append(columns)
    lengths = gail_peer.export(ShardedSteps(tmp_path / 'shards'), CONTRACT, tmp_path)
    assert lengths == [3, 2]
    seen, taken = (np.load(tmp_path / f'{name}.npy') for name in ('observation', 'action'))
    assert seen.shape == (7, 3) and taken.shape == (5, 1)
    for begin, first, episode in ((0, 0, episodes[0]), (4, 3, episodes[1])):
        length = len(episode['reward'])
        np.testing.assert_array_equal(seen[begin : begin + length, :2], episode['observation/x'])
        np.testing.assert_array_equal(seen[begin : begin + length, 2:], episode['observation/y'])
        np.testing.assert_array_equal(taken[first : first + length - 1], episode['action'][:-1])


def test_without_the_package_or_gymnasium_there_is_one_line(monkeypatch, tmp_path):
    words = [*WORDS, '--out', str(tmp_path)]
    monkeypatch.delenv(gail_peer.PYTHON, raising=False)
    with pytest.raises(RobotRLError, match='ROBOT_RL_IMITATION: not set; the path of a Python'):
        gail_peer.main(['--task', 'gym/Pendulum-v1', *words])
    monkeypatch.setenv(gail_peer.PYTHON, 'python')
    with pytest.raises(RobotRLError, match='ur5e/reach: imitation learns in Gymnasium'):
        gail_peer.main(['--task', 'ur5e/reach', *words])
