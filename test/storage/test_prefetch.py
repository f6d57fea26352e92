import itertools
import threading

import numpy as np
import pytest

from robot_rl.errors import StorageError
from robot_rl.storage.mixture import Part
from robot_rl.storage.prefetch import Prefetch
from robot_rl.storage.sampler import WindowSampler
from robot_rl.storage.steps import FIRST, LAST, MID, Steps


def sampler(seed):
    rng = np.random.default_rng(0)
    kinds = np.array([[FIRST, *[MID] * 8, LAST] * 30], np.int8)
    columns = {
        'observation/x': rng.normal(size=(*kinds.shape, 2)),
        'action': rng.normal(size=(*kinds.shape, 1)),
        'reward': rng.normal(size=kinds.shape),
        'discount': np.ones(kinds.shape),
        'step_type': kinds,
    }
    parts = {'all': Part(0.75), 'task': Part(0.25, np.array([[10, 20], [50, 80]]))}
    return WindowSampler(Steps(columns), 3, 0.9, seed, parts=parts, mixing='bernoulli')


def threads():
    return [t for t in threading.enumerate() if t.name == 'prefetch']


@pytest.mark.parametrize('ahead', [1, 5])
def test_same_seed_same_batches_with_and_without(ahead):
    plain, drawn = sampler(4), sampler(4)
    with Prefetch(lambda: drawn.transitions(16), ahead) as batches:
        for batch in itertools.islice(batches, 30):
            for one, other in zip(batch, plain.transitions(16), strict=True):
                np.testing.assert_equal(one, other)
    assert not threads()


def test_an_error_comes_after_the_batches_before_it():
    numbers = iter([1, 2, 3])
    with Prefetch(lambda: next(numbers), ahead=2) as batches:
        assert [next(batches) for _ in range(3)] == [1, 2, 3]
        for _ in range(2):
            with pytest.raises(StopIteration):
                next(batches)

    def broken():
        raise StorageError('no window')

    with Prefetch(broken) as batches, pytest.raises(StorageError, match='no window'):
        next(batches)
    assert not threads()


def test_no_more_is_drawn_than_fits_and_closing_ends_a_waiting_thread():
    drawn, enough = [], threading.Event()

    def draw():
        drawn.append(len(drawn))
        if len(drawn) == 4:
            enough.set()
        return drawn[-1]

    batches = Prefetch(draw, ahead=3)
    assert enough.wait(10)  # three wait, and one that found no place
    assert next(batches) == 0
    batches.close()
    batches.close()
    assert not threads() and len(drawn) <= 6
    with pytest.raises(StorageError, match='closed'):
        next(batches)


def test_an_error_of_the_one_who_takes_ends_the_thread():
    with pytest.raises(ZeroDivisionError), Prefetch(lambda: 1) as batches:
        next(batches) / 0
    assert not threads()
    with pytest.raises(StorageError, match='0 batches ahead'):
        Prefetch(lambda: 1, ahead=0)
