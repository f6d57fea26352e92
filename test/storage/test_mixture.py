import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_rl.errors import StorageError
from robot_rl.storage.mixture import Mixture, Part
from robot_rl.storage.priorities import Priorities
from robot_rl.storage.sampler import WindowSampler
from robot_rl.storage.steps import FIRST, LAST, MID, Steps

EPISODE = 10


def steps(episodes=30, seed=0):
    rng = np.random.default_rng(seed)
    kinds = np.array([[FIRST, *[MID] * (EPISODE - 2), LAST] * episodes], np.int8)
    return Steps(
        {
            'observation/row': np.arange(kinds.size).reshape(*kinds.shape, 1),
            'action': rng.normal(size=(*kinds.shape, 1)),
            'reward': rng.normal(size=kinds.shape),
            'discount': np.ones(kinds.shape),
            'step_type': kinds,
        }
    )


def spans(*episodes):
    return np.array([[EPISODE * e, EPISODE * (e + 1)] for e in episodes])


def rows_of(*episodes):
    """Return the rows of episodes that a window starts in."""
    return {EPISODE * e + row for e in episodes for row in range(EPISODE - 1)}


@given(
    st.lists(st.floats(0.01, 10), min_size=1, max_size=5),
    st.lists(st.integers(0, 40), min_size=1, max_size=30),
)
def test_quotas_are_kept_in_every_batch_and_over_all(shares, sizes):
    parts = {str(i): Part(share) for i, share in enumerate(shares)}
    mixture, drawn = Mixture(parts, 100), np.zeros(len(shares))
    wanted = np.array(shares) / sum(shares)
    for size in sizes:
        counts = mixture.counts(np.random.default_rng(0), size)
        assert sum(counts) == size
        assert (np.abs(counts - wanted * size) < 1 + 1e-6).all()
        drawn += counts
        if len(shares) == 2:
            assert (np.abs(drawn - wanted * drawn.sum()) < 1).all()
    assert (np.abs(drawn - wanted * drawn.sum()) <= len(shares)).all()
    total = max(drawn.sum(), 1)
    assert list(mixture.fractions().values()) == pytest.approx(list(drawn / total))


@pytest.mark.parametrize('tenths', range(1, 10))
def test_a_quota_that_is_a_whole_number_is_exact_in_every_batch(tenths):
    mixture = Mixture({'a': Part(tenths / 10), 'b': Part(1 - tenths / 10)}, 100)
    for size in (10, 20, 100, 250):
        assert mixture.counts(None, size) == [tenths * size // 10, size - tenths * size // 10]


def test_a_quarter_of_each_batch_comes_from_the_task():
    task = (3, 4, 11)
    parts = {'everything': Part(0.75), 'task': Part(0.25, spans(*task))}
    sampler = WindowSampler(steps(), 3, 0.9, 1, parts=parts)
    for draw in (lambda: sampler.transitions(64), lambda: sampler.sequences(64, 4, 2)):
        drawn = [draw().place for _ in range(50)]
        assert all(set(place[48:]) <= rows_of(*task) for place in drawn)
        # Both parts are drawn from whole, uniformly.
        for place, episodes in ((slice(48), range(30)), (slice(48, 64), task)):
            starts = np.array(sorted(rows_of(*episodes)))
            counts = np.array([(np.stack(drawn)[:, place] == row).sum() for row in starts])
            expected, freedom = counts.sum() / len(starts), len(starts) - 1
            chi = ((counts - expected) ** 2 / expected).sum()
            assert abs(chi - freedom) < 5 * np.sqrt(2 * freedom)
    assert sampler.mixture.fractions() == {'everything': 0.75, 'task': 0.25}


def test_bernoulli_shares_are_those_of_independent_draws():
    parts = {'a': Part(3, spans(0)), 'b': Part(1, spans(1))}
    sampler = WindowSampler(steps(), 1, 0.9, 5, parts=parts, mixing='bernoulli')
    counts = np.array([(sampler.transitions(40).place < EPISODE).sum() for _ in range(2000)])
    assert counts.mean() == pytest.approx(30, abs=4 * np.sqrt(7.5 / 2000))
    assert counts.var() == pytest.approx(40 * 0.75 * 0.25, rel=0.15)
    assert sampler.mixture.fractions()['a'] == counts.sum() / 80000


@pytest.mark.parametrize('mixing', ['quota', 'bernoulli'])
def test_the_same_seed_gives_the_same_batches(mixing):
    parts = {'all': Part(0.6), 'task': Part(0.4, spans(2, 7))}
    one, two = (WindowSampler(steps(), 2, 0.9, 3, parts=parts, mixing=mixing) for _ in range(2))
    for _ in range(10):
        np.testing.assert_equal(one.transitions(9)._asdict(), two.transitions(9)._asdict())


def test_each_part_has_its_own_priorities():
    data = steps()
    everything, task = Priorities(300, 1.0, 1.0), Priorities(300, 1.0, 1.0)
    everything.set(np.arange(300), 1.0)
    task.set(np.arange(20, 30), 1.0)
    parts = {
        'everything': Part(0.5, priorities=everything),
        'task': Part(0.5, spans(2), task),
    }
    sampler = WindowSampler(data, 1, 0.9, 3, parts=parts)
    sampler.update_priorities(np.array([5, 21, 22]), np.array([1000.0, 0.0, 7.0]))
    np.testing.assert_array_equal(everything.scaled(np.array([5, 21, 22, 23])), [1000, 0, 7, 1])
    np.testing.assert_array_equal(task.scaled(np.array([5, 21, 22, 23])), [0, 0, 7, 1])
    batch = sampler.transitions(400)
    assert set(batch.place[200:]) == rows_of(2) - {21}
    assert (batch.place[:200] == 5).mean() > 0.6
    of_task = 1 / task.scaled(batch.place[200:])
    np.testing.assert_allclose(batch.weight[200:], of_task / of_task.max(), rtol=1e-6)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), min_size=1, max_size=6))
@settings(max_examples=100)
def test_a_part_holds_and_draws_the_rows_of_its_spans(gaps):
    begin, chosen = 0, []
    for gap, length in gaps:
        chosen.append((begin + gap, begin + gap + length))
        begin += gap + length
    part, expected = Part(1, np.array(chosen)), {r for a, b in chosen for r in range(a, b)}
    assert set(np.flatnonzero(part.holds(np.arange(begin + 5)))) == expected
    data = steps(10)
    lane, age = part.draw(np.random.default_rng(0), data, 2000)
    assert set(data.rows(lane, age)) == expected


def test_what_cannot_be_mixed_is_refused():
    with pytest.raises(StorageError, match='share 0'):
        Part(0)
    for wrong in (np.zeros((0, 2)), [[3, 3]], [[0, 5], [4, 8]], [[5, 8], [0, 2]]):
        with pytest.raises(StorageError, match='ascending'):
            Part(1, np.array(wrong))
    with pytest.raises(StorageError, match="'some', expected one of"):
        Mixture({'a': Part()}, 10, 'some')
    with pytest.raises(StorageError, match='no part'):
        Mixture({}, 10)
    with pytest.raises(StorageError, match="part 'a' spans rows 0 to 20, outside of 10 rows"):
        Mixture({'a': Part(1, spans(0, 1))}, 10)
    with pytest.raises(StorageError, match='priorities of its own'):
        WindowSampler(steps(), parts={'a': Part()}, priorities=Priorities(300))
    nothing = {'a': Part(), 'last rows': Part(1, np.array([[9, 10]]))}
    with pytest.raises(StorageError, match='no window'):
        WindowSampler(steps(), parts=nothing).transitions(8)
