"""Batches of what an agent lives through and of demonstrations, against the samplers alone."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_rl.errors import StorageError
from robot_rl.storage.mixed_sampler import MixedSampler, Source, joined
from robot_rl.storage.priorities import Priorities
from robot_rl.storage.sampler import Transitions, WindowSampler
from robot_rl.storage.steps import FIRST, LAST, MID, Steps

EPISODE = 6


def steps(source, lanes=1, episodes=4, state=0):
    """Rows that say where they are from: observation = (source, flat row)."""
    kinds = np.array([[FIRST, *[MID] * (EPISODE - 2), LAST] * episodes] * lanes, np.int8)
    rows = np.arange(kinds.size).reshape(kinds.shape)
    columns = {
        'observation/from': np.stack([np.full(kinds.shape, source), rows], -1).astype(np.float32),
        'action': rows[..., None].astype(np.float32),
        'reward': np.full(kinds.shape, source, np.float32),
        'discount': np.ones(kinds.shape, np.float32),
        'step_type': kinds,
    }
    if state:
        columns['state/hidden'] = np.ones((*kinds.shape, state), np.float32)
    return Steps(columns)


def mixed(share=0.25, mixing='quota', seed=0, n_step=2, **options):
    ring = WindowSampler(
        steps(1, lanes=2, **options), n_step, 0.9, rng := np.random.default_rng(seed)
    )
    demos = WindowSampler(steps(2), n_step, 0.9, rng)
    sources = {'replay': Source(ring, 1 - share), 'demos': Source(demos, share)}
    return MixedSampler(sources, mixing, rng)


def sources_of(batch):
    return batch.observation['from'][..., 0]


def test_each_element_is_whole_from_one_source_and_its_place_says_which():
    sampler = mixed()
    rows = 2 * 4 * EPISODE  # of the ring
    batch = sampler.transitions(16)
    np.testing.assert_array_equal(sources_of(batch), [1] * 12 + [2] * 4)
    np.testing.assert_array_equal(batch.next_observation['from'][:, 0], [1] * 12 + [2] * 4)
    row = batch.observation['from'][:, 1]
    np.testing.assert_array_equal(batch.place, np.where(sources_of(batch) == 1, row, rows + row))
    np.testing.assert_array_equal(batch.action[:, 0], row)
    steps_inside = np.round(np.log(batch.discount) / np.log(0.9))
    expected = sources_of(batch) * np.where(steps_inside == 1, 1, 1.9)
    np.testing.assert_allclose(batch.reward, expected, rtol=1e-6)
    np.testing.assert_array_equal(batch.weight, np.ones(16))


def test_sequences_are_joined_along_the_batch_and_states_not_recorded_are_zeros():
    sampler = mixed(state=3)
    batch = sampler.sequences(8, length=3, burn_in=2)
    assert batch.observation['from'].shape == (2 + 3 + 2, 8, 2)
    for t in range(7):
        np.testing.assert_array_equal(sources_of(batch)[t], [1] * 6 + [2] * 2)
    assert batch.action.shape == (3, 8, 1)
    assert batch.real.shape == (2, 8)
    assert batch.valid.shape == batch.following.shape == (3, 8)
    np.testing.assert_array_equal(batch.state['hidden'], [[1.0] * 3] * 6 + [[0.0] * 3] * 2)


@given(share=st.floats(0.01, 0.99), sizes=st.lists(st.integers(1, 30), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_quotas_are_exact_in_the_long_run_and_fractions_are_those_drawn(share, sizes):
    sampler, drawn = mixed(share), np.zeros(2)
    for size in sizes:
        from_ = sources_of(sampler.transitions(size))
        assert len(from_) == size
        assert abs((from_ == 2).sum() - share * size) < 1 + 1e-6
        drawn += [(from_ == 1).sum(), (from_ == 2).sum()]
        assert abs(drawn[1] - share * drawn.sum()) < 1 + 1e-6
    assert sampler.mixture.fractions() == pytest.approx(
        {'replay': drawn[0] / drawn.sum(), 'demos': drawn[1] / drawn.sum()}
    )


def test_bernoulli_draws_each_element_by_itself():
    sampler = mixed(0.3, 'bernoulli')
    counts = np.array([(sources_of(sampler.transitions(20)) == 2).sum() for _ in range(1000)])
    assert counts.mean() == pytest.approx(6, abs=4 * np.sqrt(4.2 / 1000))
    assert counts.var() == pytest.approx(4.2, rel=0.2)
    assert sampler.mixture.fractions()['demos'] == counts.sum() / 20000


def test_a_source_without_an_element_in_a_batch_leaves_the_shapes_as_they_are():
    sampler = mixed(0.01, state=3)
    batch = sampler.transitions(1)
    assert sources_of(batch).tolist() == [1]
    batch = sampler.sequences(1, 2, 1)
    assert batch.state['hidden'].shape == (1, 3)


def test_priorities_go_to_the_source_that_the_places_are_of():
    ring, demos = steps(1), steps(2)
    priorities = [Priorities(24, 1.0, 1.0), Priorities(24, 1.0, 1.0)]
    samplers = []
    for part, mine in zip((ring, demos), priorities, strict=True):
        mine.set(np.arange(24), 1.0)
        samplers.append(WindowSampler(part, 1, 0.9, 0, mine))
    sampler = MixedSampler({'a': Source(samplers[0], 1), 'b': Source(samplers[1], 1)})
    sampler.update_priorities(np.array([3, 23, 24, 30]), np.array([5.0, 6.0, 7.0, 8.0]))
    expected = np.ones((2, 24))
    expected[0, [3, 23]] = 5, 6
    expected[1, [0, 6]] = 7, 8
    for mine, right in zip(priorities, expected, strict=True):
        np.testing.assert_array_equal(mine.scaled(np.arange(24)), right)


def test_only_the_ring_has_priorities_and_keeps_them():
    ring, demos = steps(1), steps(2)
    priorities = Priorities(24, 1.0, 1.0)
    priorities.set(np.arange(24), 1e-3)
    priorities.set(np.array([7]), 1e3)
    sources = {
        'replay': Source(WindowSampler(ring, 1, 0.9, 1, priorities), 0.5),
        'demos': Source(WindowSampler(demos, 1, 0.9, 1), 0.5),
    }
    sampler = MixedSampler(sources)
    batch = sampler.transitions(200)
    assert (batch.place[:100] == 7).mean() > 0.9
    assert len(np.unique(batch.place[100:])) == 4 * (EPISODE - 1)
    np.testing.assert_array_equal(batch.weight[100:], 1)
    sampler.update_priorities(batch.place, np.full(200, 1e-3))
    assert priorities.scaled(np.array([7])) == 1e-3


@pytest.mark.parametrize('mixing', ['quota', 'bernoulli'])
def test_what_was_saved_draws_the_same_batches_again(mixing):
    sampler, other = mixed(0.3, mixing), mixed(0.3, mixing, seed=9)
    for _ in range(3):
        sampler.transitions(7)
    other.restore(copy.deepcopy(sampler.save()))
    other.rng.bit_generator.state = sampler.rng.bit_generator.state
    for _ in range(5):
        one, two = sampler.transitions(7), other.transitions(7)
        np.testing.assert_equal(one._asdict(), two._asdict())
    assert sampler.mixture.fractions() == other.mixture.fractions()
    with pytest.raises(StorageError, match='1 sources were saved, 2 are there'):
        other.restore([3])


def test_batches_are_joined_in_their_order_by_whatever_joins_them():
    sampler, asked = mixed(), []

    def concatenate(parts, axis):
        asked.append(axis)
        return np.concatenate(parts, axis)

    one, two = sampler.transitions(4), sampler.transitions(8)
    both = joined([one, two], concatenate)
    assert isinstance(both, Transitions)
    assert set(asked) == {0}
    np.testing.assert_array_equal(sources_of(both), [1, 1, 1, 2] + [1] * 6 + [2] * 2)


def test_rewards_are_asked_for_whenever_a_window_is_drawn():
    """Of each step inside: a window's return is that of the rewards of now."""
    data, scale = steps(1), [1.0]

    def rewards(rows):
        return scale[0] * (100.0 + rows)

    sampler = WindowSampler(data, 3, 0.5, 0, rewards=rewards)
    for scale[0] in (1.0, -2.0):
        batch = sampler.transitions(50)
        for place, reward, discount in zip(batch.place, batch.reward, batch.discount, strict=True):
            inside = round(np.log(discount) / np.log(0.5))
            right = sum(0.5**i * scale[0] * (100 + place + i) for i in range(inside))
            assert reward == pytest.approx(right, rel=1e-6)
        batch = sampler.sequences(10, 4)
        for b in range(10):
            for t in range(4):
                k, row = batch.following[t, b], batch.place[b] + t
                right = sum(0.5**i * scale[0] * (100 + row + i) for i in range(k))
                assert batch.reward[t, b] == pytest.approx(right, rel=1e-6)


@given(st.integers(3, 9), st.integers(0, 30), st.integers(1, 3))
@settings(max_examples=50)
def test_the_row_after_a_row_is_the_next_step_of_its_lane(length, written, lanes):
    """Also where the ring wraps; the newest one stays."""
    size = min(written + 1, length)
    columns = {
        'action': np.zeros((lanes, length, 1)),
        'reward': np.zeros((lanes, length)),
        'discount': np.zeros((lanes, length)),
        'step_type': np.zeros((lanes, length), np.int8),
    }
    data = Steps(columns, size, (written + 1) % length)
    for lane in range(lanes):
        rows = [lane * length + (written - age) % length for age in reversed(range(size))]
        np.testing.assert_array_equal(data.following(np.array(rows)), [*rows[1:], rows[-1]])
