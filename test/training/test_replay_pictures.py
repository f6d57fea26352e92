"""Pictures and histories in the replay, against control.observation.History step by step."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_rl.control.observation import History
from robot_rl.errors import StorageError
from robot_rl.sim.environment import StepType, TimeStep
from robot_rl.specs import Contract
from robot_rl.storage.sampler import WindowSampler
from robot_rl.training.device import DeviceColumns
from robot_rl.training.replay import Replay

SHAPE = (2, 2, 3)


def contract(pictures: int, numbers: int) -> Contract:
    fields = [
        {'name': 'eye', 'source': 'eye.image', 'shape': SHAPE, 'dtype': 'uint8'}
        | {'encoding': 'rgb8', 'history': pictures},
        {'name': 'angle', 'source': 'env.angle', 'shape': (1,), 'history': numbers},
        {'name': 'clock', 'source': 'env.clock', 'shape': ()},
    ]
    action = {'name': 'a', 'kind': 'generic', 'names': ['x'], 'lower': [-1], 'upper': [1]}
    return Contract.parse({'rate_hz': 10, 'observation': fields, 'action': [action]})


def fill(replay, contract, kinds):
    """Add steps of `kinds` [T][N]; return what History shows of each, {clock: observation}.

    Every observation is another one, and 'clock' is its number. A row of 'cut' starts all anew.
    """
    history, seen, lanes, count = History(contract), {}, len(kinds[0]), 0
    for number, kind in enumerate(kinds):
        kind = np.array([StepType.FIRST if k == 'cut' else k for k in kind], np.int8)
        clock = np.arange(count, count + lanes)
        count += lanes
        pixels = (clock[:, None] * 12 + np.arange(12)) % 251
        observation = {
            'eye': pixels.reshape(-1, *SHAPE).astype(np.uint8),
            'angle': clock[:, None].astype(np.float32) / 7,
            'clock': clock.astype(np.float32),
        }
        shown = history.push(observation, kind == StepType.FIRST)
        step = TimeStep(kind, np.ones(lanes, np.float32), np.ones(lanes, np.float32), shown)
        if number == 0 or kinds[number][0] == 'cut':
            replay.add_first(step)
        else:
            replay.add(np.full((lanes, 1), number, np.float32), step)
        for lane in range(lanes):
            seen[float(clock[lane])] = {name: v[lane] for name, v in shown.items()}
    return seen


def kinds_of(lengths, lanes, cut_at):
    """Return step types [T][N]: in each lane episodes of `lengths`, in another order."""
    columns = []
    for lane in range(lanes):
        column = []
        for length in lengths[lane % len(lengths) :] + lengths[: lane % len(lengths)]:
            column += [StepType.FIRST] + [StepType.MID] * (length - 2) + [StepType.LAST]
        columns.append(column)
    rows = [list(row) for row in zip(*columns, strict=True)]
    if cut_at is not None and 0 < cut_at < len(rows):
        rows[cut_at] = ['cut'] * lanes
        # What followed goes on as an episode of its own, to its LAST.
    return rows


def require_shown(seen, batch_observation):
    """Every observation of a batch [B, ...] is what History showed."""
    for row, clock in enumerate(batch_observation['clock'].tolist()):
        for name, values in batch_observation.items():
            assert values.dtype == seen[clock][name].dtype
            np.testing.assert_array_equal(values[row], seen[clock][name])


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 9), min_size=2, max_size=6),
    lanes=st.integers(1, 3),
    pictures=st.integers(1, 4),
    numbers=st.integers(1, 5),
    capacity=st.integers(8, 40),
    n_step=st.integers(1, 3),
    cut_at=st.one_of(st.none(), st.integers(1, 20)),
)
def test_what_is_sampled_is_what_history_showed(
    lengths, lanes, pictures, numbers, capacity, n_step, cut_at
):
    """Through the ring's end, episodes' ends and cuts, for transitions and sequences."""
    wanted = contract(pictures, numbers)
    replay = Replay(wanted, lanes, capacity * lanes)
    seen = fill(replay, wanted, kinds_of(lengths, lanes, cut_at))
    sampler = WindowSampler(replay.steps, n_step, 0.9)
    windows = sampler.available()
    batch = sampler.gather(windows)
    require_shown(seen, batch.observation)
    require_shown(seen, batch.next_observation)
    if not len(windows.lane):
        return
    sequences = sampler.sequences(16, length=4, burn_in=3)
    for index, rows in enumerate(sequences.observation['clock']):
        step = {name: values[index] for name, values in sequences.observation.items()}
        assert len(rows) == 16
        require_shown(seen, step)


def test_only_starts_whose_history_is_gone_are_not_served():
    """A ring of 10 rows: the oldest is the 6th of its episode, so two lack what was before."""
    wanted = contract(pictures=3, numbers=1)
    replay = Replay(wanted, 1, capacity=9)
    kinds = [[k] for k in [StepType.FIRST] + [StepType.MID] * 14]
    fill(replay, wanted, kinds)
    served = WindowSampler(replay.steps, 1, 0.9).available()
    assert served.age.tolist() == [2, 3, 4, 5, 6, 7, 8]
    # An episode that begins inside has its own beginning.
    replay = Replay(wanted, 1, capacity=9)
    fill(replay, wanted, [*kinds[:6], [StepType.LAST], [StepType.FIRST], *kinds[1:8]])
    served = WindowSampler(replay.steps, 1, 0.9).available()
    assert replay.steps.flat['step_type'][replay.steps.rows(0, np.arange(3))].tolist() == [1, 2, 0]
    assert served.age.tolist() == [2, 3, 4, 5, 6, 7, 8]


def test_a_ring_too_short_for_any_history_says_that_nothing_can_be_sampled():
    wanted = contract(pictures=4, numbers=1)
    replay = Replay(wanted, 1, capacity=3)
    fill(replay, wanted, [[k] for k in [StepType.FIRST] + [StepType.MID] * 14])
    with pytest.raises(StorageError, match='no window'):
        WindowSampler(replay.steps, 1, 0.9).transitions(4)


def test_a_picture_is_kept_once_as_bytes():
    replay = Replay(contract(pictures=4, numbers=1), 2, capacity=100)
    column = replay.steps.columns['observation/eye']
    assert column.dtype == np.uint8 and column.shape == (2, 51, *SHAPE)
    assert column.nbytes == 2 * 51 * 12


def test_a_restored_replay_gives_the_same_batches():
    wanted = contract(pictures=3, numbers=2)
    kinds = kinds_of([5, 7, 4], 2, None)
    one, other = (Replay(wanted, 2, capacity=20) for _ in range(2))
    fill(one, wanted, kinds)
    other.restore(one.save())
    batches = [WindowSampler(r.steps, 2, 0.9, rng=4).transitions(32) for r in (one, other)]
    for name, values in batches[0].observation.items():
        np.testing.assert_array_equal(values, batches[1].observation[name])


def test_a_device_gathers_the_same_pictures():
    wanted = contract(pictures=3, numbers=2)
    replay = Replay(wanted, 2, capacity=20)
    columns = DeviceColumns(replay.steps, torch.device('cpu'))
    fill(replay, wanted, kinds_of([5, 7, 4], 2, None))
    columns.written(np.arange(2 * replay.steps.length))
    one = WindowSampler(replay.steps, 2, 0.9, rng=4).transitions(32)
    other = WindowSampler(replay.steps, 2, 0.9, rng=4, take=columns.take).transitions(32)
    assert other.observation['eye'].dtype == torch.uint8
    for name, values in one.observation.items():
        np.testing.assert_array_equal(values, other.observation[name].numpy())


def test_the_normaliser_is_fitted_to_numbers_with_their_history():
    wanted = contract(pictures=3, numbers=2)
    replay = Replay(wanted, 1, capacity=20)
    seen = fill(replay, wanted, kinds_of([5, 4], 1, None))
    found = replay.observations()
    assert set(found) == {'angle', 'clock'}
    for row, clock in enumerate(found['clock'].tolist()):
        np.testing.assert_array_equal(found['angle'][row], seen[clock]['angle'])
