import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_rl.errors import StorageError
from robot_rl.storage.priorities import Priorities


@pytest.mark.parametrize('rows', [1, 2, 16, 17, 300, 5000])
@pytest.mark.parametrize('alpha', [0.0, 0.6, 1.0])
def test_rows_are_drawn_in_proportion(rows, alpha):
    rng = np.random.default_rng(rows)
    priorities = np.exp(rng.normal(size=rows))
    tree = Priorities(rows, alpha)
    tree.set(np.arange(rows), priorities)
    counts = np.bincount(tree.draw(np.random.default_rng(1), 200_000), minlength=rows)
    expected = 200_000 * priorities**alpha / (priorities**alpha).sum()
    # Pearson's chi-squared: mean f, standard deviation sqrt(2 f) for f degrees of freedom.
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert statistic <= (rows - 1) + 5 * np.sqrt(2 * (rows - 1))


@st.composite
def updates(draw):
    rows = draw(st.integers(1, 700))
    sizes = draw(st.lists(st.integers(0, 60), min_size=1, max_size=30))
    return rows, sizes, draw(st.integers(0, 2**31))


@given(updates())
@settings(max_examples=100, deadline=None)
def test_after_many_updates_the_tree_is_that_of_the_last_priorities(case):
    """Priorities differ by 24 orders of magnitude: sums that were adjusted would have drifted."""
    rows, sizes, seed = case
    rng = np.random.default_rng(seed)
    tree, expected, largest = Priorities(rows, alpha=1.0), {}, 1.0
    for size in sizes:
        chosen = rng.integers(rows, size=size)
        values = 10.0 ** rng.uniform(-12, 12, size) * (rng.random(size) > 0.3)
        if rng.random() < 0.3:
            tree.set_newest(chosen)
            values[:] = largest
        else:
            tree.set(chosen, values)
        for row, value in zip(chosen, values, strict=True):
            expected[int(row)] = float(value)
            largest = max(largest, float(value))
    leaves = [expected.get(row, 0.0) for row in range(rows)]
    np.testing.assert_array_equal(tree.scaled(np.arange(rows)), leaves)
    assert tree.total == pytest.approx(math.fsum(leaves), rel=1e-13)
    assert tree.largest == largest
    if any(leaves):
        drawn = tree.draw(rng, 500)
        assert all(leaves[row] > 0 for row in drawn)


class Uniform:
    """Stands in for a generator whose numbers are all the same."""

    def __init__(self, value):
        self.value = value

    def random(self, size):
        return np.full(size, self.value)


@pytest.mark.parametrize('rows', [40, 4000])
def test_rounding_never_leads_to_a_row_without_a_priority(rows):
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = rng.uniform(0.1, 1, rows) * (rng.random(rows) < 0.2)
        values[[0, -1]] = 0
        tree = Priorities(rows, alpha=1.0)
        tree.set(np.arange(rows), values)
        positive = np.flatnonzero(values)
        assert tree.draw(Uniform(0.0), 3).tolist() == [positive[0]] * 3
        assert tree.draw(Uniform(np.nextafter(1.0, 0)), 3).tolist() == [positive[-1]] * 3


@pytest.mark.parametrize('beta', [0.0, 0.4, 1.0])
def test_weights_are_those_of_the_paper(beta):
    rng = np.random.default_rng(2)
    priorities = rng.uniform(0.01, 5, 100)
    tree = Priorities(100, alpha=0.7, beta=beta)
    tree.set(np.arange(100), priorities)
    drawn = tree.draw(rng, 32)
    probability = priorities**0.7 / (priorities**0.7).sum()
    weights = (100 * probability[drawn]) ** -beta
    np.testing.assert_allclose(tree.weights(drawn), weights / weights.max(), rtol=1e-6)
    assert tree.weights(drawn).dtype == np.float32


def test_beta_can_be_raised_while_learning():
    tree = Priorities(2, alpha=1.0, beta=0.0)
    tree.set(np.arange(2), np.array([1.0, 4.0]))
    np.testing.assert_array_equal(tree.weights(np.arange(2)), [1, 1])
    tree.beta = 1.0
    np.testing.assert_array_equal(tree.weights(np.arange(2)), [1, 0.25])


def test_newest_rows_get_the_largest_priority_seen():
    tree = Priorities(10, alpha=0.5)
    tree.set_newest(np.array([0, 1]))
    tree.set(np.array([0]), np.array([0.25]))
    tree.set_newest(np.array([2]))
    tree.set(np.array([1, 2]), np.array([9.0, 4.0]))
    tree.set(np.array([1]), np.array([0.0]))
    tree.set_newest(np.array([3]))
    np.testing.assert_allclose(tree.scaled(np.arange(5)), [0.5, 0, 2, 3, 0])


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf, -1e-9, 1e300])
def test_bad_priorities_are_refused_and_change_nothing(bad):
    tree = Priorities(100)
    tree.set_newest(np.arange(100))
    message = re.escape(f'row 41 has priority {bad}, expected a finite float32')
    with pytest.raises(StorageError, match=message) as raised:
        tree.set(np.array([40, 41, 42]), np.array([5.0, bad, bad]))
    assert '\n' not in str(raised.value)
    assert tree.largest == 1
    np.testing.assert_array_equal(tree.scaled(np.arange(100)), 1)


@pytest.mark.parametrize(('alpha', 'beta', 'name'), [(1.1, 0, 'alpha'), (1, np.nan, 'beta')])
def test_exponents_outside_of_the_unit_interval_are_refused(alpha, beta, name):
    with pytest.raises(StorageError, match=rf'{name} .* must be in \[0, 1\]'):
        Priorities(3, alpha, beta)


def test_nothing_can_be_drawn_before_a_row_has_a_priority():
    tree = Priorities(5)
    with pytest.raises(StorageError, match='no row has a priority above 0'):
        tree.draw(np.random.default_rng(0), 3)
    tree.set(np.arange(5), 0)
    assert tree.total == 0


def test_a_restored_tree_draws_the_same():
    rng = np.random.default_rng(4)
    tree, other = Priorities(3000), Priorities(3000)
    for _ in range(50):
        tree.set(rng.integers(3000, size=64), rng.exponential(size=64))
    other.set(np.arange(3000), 7.0)
    rows = rng.permutation(3000).reshape(3, 1000)
    other.restore(rows, tree.save(rows))
    first, second = (t.draw(np.random.default_rng(9), 1000) for t in (tree, other))
    np.testing.assert_array_equal(first, second)
    assert other.largest == tree.largest
    other.restore(rows[:1], tree.save(rows[:1]))
    assert set(other.draw(rng, 500)) <= set(rows[0])
