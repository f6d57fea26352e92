import os
import pickle

import numpy as np
import pytest
import torch

from robot_rl.errors import StorageError
from robot_rl.training import checkpoint


def test_arrays_and_numbers_come_back(tmp_path):
    data = {'a': np.arange(6).reshape(2, 3), 'b': {'c': 3, 'd': 'x', 'e': torch.ones(2)}}
    checkpoint.save_checkpoint(tmp_path / 'c.pt', data)
    found = checkpoint.load_checkpoint(tmp_path / 'c.pt')
    np.testing.assert_array_equal(found['a'], data['a'])
    assert found['b']['c'] == 3
    assert os.listdir(tmp_path) == ['c.pt']


def test_generator_state_survives():
    rng, other = np.random.default_rng(1), np.random.default_rng(2)
    rng.standard_normal(5)
    checkpoint.set_generator_state(other, checkpoint.generator_state(rng))
    assert rng.integers(2**62) == other.integers(2**62)


def test_a_failed_write_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / 'c.pt'
    checkpoint.save_checkpoint(path, {'a': 1})

    def full(*args):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(StorageError, match=r'c\.pt: the checkpoint cannot be written .*space'):
        checkpoint.save_checkpoint(path, {'a': 2})
    assert checkpoint.load_checkpoint(path) == {'a': 1}


def test_what_is_no_checkpoint_is_said_in_one_line(tmp_path):
    whole = tmp_path / 'c.pt'
    checkpoint.save_checkpoint(whole, {'a': torch.ones(1000)})
    files = {
        'empty': b'',
        'text': b'hello world, this is no checkpoint',
        'cut': whole.read_bytes()[:2000],
        'pickle': pickle.dumps({'a': os.system}, protocol=2),
    }
    for name, content in files.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(StorageError, match=f'{name}: not a checkpoint') as error:
            checkpoint.load_checkpoint(path)
        assert '\n' not in str(error.value)
    with pytest.raises(StorageError, match='No such file'):
        checkpoint.load_checkpoint(tmp_path / 'missing')
