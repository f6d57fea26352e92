"""Means, first crossings and areas of learning curves, against sums by hand."""

from pathlib import Path

import numpy as np
import pytest

from robot_rl.bench import curves
from robot_rl.bench.curves import Curve, Published, curve_of, mean_of, reference_of
from robot_rl.bench.results import Entry
from robot_rl.errors import SpecError

ROOT = Path(__file__).parents[2]
PUBLISHED = Published.parse(
    {
        'first_step': 40,
        'every': 10,
        'tasks': {
            'suite/a': {
                'threshold': 8,
                'agents': {
                    'MPO': {'mean': 9.5, 'std': 1, 'reached': 60, 'curve': [2, 6, 8, 9, 10]},
                    'DMPO': {'mean': 9.5, 'std': 1, 'reached': None, 'curve': [2, 6, 7]},
                },
            }
        },
    }
)


def curve(*points):
    return Curve(*np.array(points, float).T)


def entry(**changes):
    fields = {'name': 'x', 'task': 'suite/a', 'agent': 'd4pg', 'steps': 1, 'seeds': 1}
    return Entry.parse(fields | {'published': 'MPO'} | changes)


def test_a_curve_of_evaluations():
    rows = [{'env_steps': step, 'eval_return_mean': step / 2, 'wall_s': 1} for step in (10, 30)]
    assert [list(part) for part in curve_of(rows)] == [[10, 30], [5, 15]]


def test_first_crossing_is_a_step_of_the_curve_and_counts_a_later_fall_not():
    rising = curve((10, 1), (20, 5), (30, 8), (40, 3), (50, 9))
    assert rising.first_at(5) == 20
    assert rising.first_at(5.1) == 30
    assert rising.first_at(9.1) is None


def test_level_is_the_area_over_the_steps():
    rising = curve((10, 2), (20, 4), (40, 8))
    # 10 x 2 held back to step 0, then 10 x 3, then 20 x 6.
    assert rising.level(40) == pytest.approx((20 + 30 + 120) / 40)
    # The last piece is cut at 30, where the curve is 6: 10 x 5.
    assert rising.level(30) == pytest.approx((20 + 30 + 50) / 30)
    assert rising.level(5) == pytest.approx(2)
    assert rising.level(41) is None


def test_level_is_that_of_a_fine_sum():
    rng = np.random.default_rng(0)
    steps = np.cumsum(rng.integers(1, 50, size=20)).astype(float)
    wild = Curve(steps, rng.normal(size=20))
    until = steps[-1] * 0.83
    middles = (np.arange(200_000) + 0.5) * until / 200_000
    assert wild.level(until) == pytest.approx(np.interp(middles, *wild).mean(), abs=1e-5)


def test_the_mean_of_seeds_interpolates_each_and_ends_with_the_shortest():
    one = curve((10, 0), (20, 10), (30, 20), (40, 99))
    two = curve((15, 4), (25, 8), (35, 12))
    mean = mean_of([one, two])
    assert list(mean.steps) == [10, 15, 20, 25, 30, 35]
    # 35 lies halfway between one's 20 and 99; two is 4 before its first step.
    expected = [(0, 4), (5, 4), (10, 6), (15, 8), (20, 10), (59.5, 12)]
    assert list(mean.returns) == [sum(pair) / 2 for pair in expected]


def test_reference_stands_on_its_grid_up_to_a_quarter_beyond_its_crossing():
    reference = reference_of(entry(), PUBLISHED)
    assert list(reference.curve.steps) == [40, 50, 60, 70, 80]
    assert (reference.threshold, reference.reached, reference.until) == (8, 60, 75)
    # 40 x 2, then pieces of 10 and one of 5 that ends at 9.5.
    assert reference.curve.level(75) == pytest.approx((80 + 40 + 70 + 85 + 46.25) / 75)


def test_reference_that_never_gets_there_counts_to_its_end():
    reference = reference_of(entry(published='DMPO'), PUBLISHED)
    assert (reference.reached, reference.until) == (None, 60)


def test_own_needs_come_before_the_published_threshold():
    reference = reference_of(entry(needs={'return': 9, 'within': 1}), PUBLISHED)
    assert (reference.threshold, reference.reached, reference.until) == (9, 70, 80)


def test_what_is_not_published_is_named():
    assert reference_of(entry(published=None), PUBLISHED) is None
    with pytest.raises(SpecError, match=r'published\.yaml: nothing of D4PG on suite/a'):
        reference_of(entry(published='D4PG'), PUBLISHED)
    with pytest.raises(SpecError, match='nothing of MPO on suite/b'):
        reference_of(entry(task='suite/b'), PUBLISHED)


def test_stored_curves_agree_with_the_figures_beside_them():
    stored = curves.read_published(ROOT / curves.PUBLISHED)
    assert len(stored.tasks) == 18
    for name, task in stored.tasks.items():
        for agent, found in task.agents.items():
            assert len(found.curve) == 47
            # 450,000 to 500,000 by the curve; the figure beside it is of data not averaged.
            assert np.mean(found.curve[-6:]) == pytest.approx(found.mean, abs=30), (name, agent)
            if task.threshold is not None and found.reached is not None:
                at = (found.reached - stored.first_step) // stored.every
                assert found.curve[at] == pytest.approx(task.threshold, abs=60)
                assert max(found.curve[:at]) < task.threshold + 1
    swingup = stored.tasks['suite/cartpole-swingup'].agents
    assert {agent: found.reached for agent, found in swingup.items()} == {
        'D4PG': 160_000,
        'DMPO': 140_000,
        'MPO': 110_000,
        'DDPG': 110_000,
    }
    assert [round(swingup[agent].mean) for agent in ('D4PG', 'MPO', 'DMPO')] == [875, 858, 859]
