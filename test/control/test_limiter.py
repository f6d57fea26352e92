from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from robot_rl.control.limiter import Limits, interpolate, limit
from robot_rl.errors import RobotRLError

LIMITS = Limits(np.array([-1.0, -2.0]), np.array([1.0, 0.5]), np.array([1.0, 3.0]))
inside = st.tuples(st.floats(-1, 1), st.floats(-2, 0.5)).map(np.array)


def limit_by_hand(target, previous, dt):
    """The definition, joint by joint: clamp, then the largest common part of the way."""
    goal = [min(max(t, lo), hi) for t, lo, hi in zip(target, *bounds(), strict=True)]
    part = 1.0
    for g, p, v in zip(goal, previous, LIMITS.max_velocity, strict=True):
        if abs(g - p) > v * dt:
            part = min(part, v * dt / abs(g - p))
    return [p + part * (g - p) for g, p in zip(goal, previous, strict=True)]


def bounds():
    return LIMITS.lower, LIMITS.upper


@given(hnp.arrays(float, 2, elements=st.floats(-1e3, 1e3)), inside, st.floats(0, 1))
def test_limit_is_the_joint_by_joint_definition(target, previous, dt):
    np.testing.assert_allclose(
        limit(target, previous, dt, LIMITS), limit_by_hand(target, previous, dt), atol=1e-12
    )


@given(hnp.arrays(float, (3, 4, 2), elements=st.floats(-9, 9)), st.floats(0, 0.5))
def test_batches_are_limited_row_by_row(target, dt):
    previous = np.linspace(-0.5, 0.4, 24).reshape(3, 4, 2)
    batched = limit(target, previous, dt, LIMITS)
    for index in np.ndindex(3, 4):
        assert np.array_equal(batched[index], limit(target[index], previous[index], dt, LIMITS))


def test_no_time_means_no_motion_and_the_reachable_is_kept_exactly():
    previous, target = np.array([0.1, 0.2]), np.array([0.3, -0.1])
    assert np.array_equal(limit(target, previous, 0.0, LIMITS), previous)
    assert np.array_equal(limit(target, previous, 1.0, LIMITS), target)
    assert np.array_equal(limit(previous, previous, 0.0, LIMITS), previous)


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_and_never_clamped(bad):
    with pytest.raises(RobotRLError, match='commanded position: not finite'):
        limit([0.0, bad], [0.0, 0.0], 0.1, LIMITS)
    with pytest.raises(RobotRLError, match='previous command: not finite'):
        limit([0.0, 0.0], [bad, 0.0], 0.1, LIMITS)


@pytest.mark.parametrize('dt', [-0.01, np.nan])
def test_time_does_not_go_backwards(dt):
    with pytest.raises(ValueError, match='dt must be at least 0'):
        limit([0.0, 0.0], [0.0, 0.0], dt, LIMITS)


@given(inside, inside, st.floats(-1, 2))
def test_interpolation_is_linear_and_stays_between(previous, target, fraction):
    point = interpolate(previous, target, fraction)
    expected = [np.interp(fraction, [0, 1], ends) for ends in zip(previous, target, strict=True)]
    np.testing.assert_allclose(point, expected, atol=1e-12)
    assert np.array_equal(interpolate(previous, target, 1.0), target)


def test_interpolation_broadcasts_fractions_and_ends_exactly():
    previous, target = np.zeros((4, 2)), np.full((4, 2), 0.1)
    points = interpolate(previous, target, np.array([0, 0.5, 1.0, 3.0])[:, None])
    assert points[:, 0].tolist() == [0, 0.05, 0.1, 0.1]


def test_limits_come_from_the_spec_and_slow_down(robot):
    limits = Limits.from_spec(robot)
    assert limits.lower.tolist() == [-2.0, -1.5, -3.0]
    assert limits.upper.tolist() == [2.0, 1.0, 3.0]
    assert limits.slowed(1.5).max_velocity.tolist() == [1.0, 1.5, 1.5]
    assert limits.clip(np.array([9.0, 0.0, -9.0])).tolist() == [2.0, 0.0, -3.0]
