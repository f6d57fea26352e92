import numpy as np
import pytest

from robot_rl.storage.sampler import WindowSampler
from robot_rl.training.device import DeviceColumns
from robot_rl.training.replay import Replay


@pytest.mark.parametrize('steps', [20, 90])
def test_batches_gathered_on_the_device_are_those_of_the_arrays(line, steps):
    """With 90 steps the ring of 31 rows has wrapped; rows are copied as they are asked for."""
    environment, rng = line(2, seed=1), np.random.default_rng(0)
    replay = Replay(environment.contract, 2, 60, {'hidden': (3,)})
    replay.on_device = DeviceColumns(replay.steps, 'cpu')
    arrays = WindowSampler(replay.steps, 3, 0.9, rng=5)
    tensors = WindowSampler(replay.steps, 3, 0.9, rng=5, take=replay.on_device.take)

    def state():
        return {'hidden': rng.normal(size=(2, 3)).astype(np.float32)}

    replay.add_first(environment.reset(), state())
    for step in range(steps):
        action = rng.uniform(-0.5, 1.5, (2, 1)).astype(np.float32)
        replay.add(action, environment.step(action), state())
        if step > 8 and step % 3 == 0:
            require_same(arrays.transitions(16), tensors.transitions(16))
            require_same(arrays.sequences(8, 4, 2), tensors.sequences(8, 4, 2))
    other = Replay(environment.contract, 2, 60, {'hidden': (3,)})
    other.on_device = DeviceColumns(other.steps, 'cpu')
    other.restore(replay.save())
    again = WindowSampler(other.steps, 3, 0.9, rng=5, take=other.on_device.take)
    arrays.rng = np.random.default_rng(5)
    require_same(arrays.sequences(8, 4, 2), again.sequences(8, 4, 2))


def require_same(first, second):
    for name, value in first._asdict().items():
        one, other = value, getattr(second, name)
        if not isinstance(value, dict):
            one, other = {'': one}, {'': other}
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], err_msg=name)
