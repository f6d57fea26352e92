from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from robot_rl.control.limiter import Limits, brake, interpolate, limit, track
from robot_rl.errors import RobotRLError

LIMITS = Limits(
    lower=np.array([-1.0, -2.0]),
    upper=np.array([1.0, 0.5]),
    max_velocity=np.array([1.0, 3.0]),
    max_acceleration=np.array([4.0, 20.0]),
    max_jerk=np.full(2, np.inf),
)
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


@pytest.mark.parametrize(
    ('fraction', 'reached'), [(-1, 0), (0, 0), (0.5, 0.05), (1, 0.1), (3, 0.1)]
)
def test_interpolation_takes_batches_and_ends_exactly(fraction, reached):
    points = interpolate(np.zeros((4, 2)), np.full((4, 2), 0.1), fraction)
    assert points.tolist() == [[reached, reached]] * 4


def test_limits_come_from_the_spec_and_slow_down(robot):
    limits = Limits.from_spec(robot)
    assert limits.lower.tolist() == [-2.0, -1.5, -3.0]
    assert limits.upper.tolist() == [2.0, 1.0, 3.0]
    assert limits.slowed(1.5).max_velocity.tolist() == [1.0, 1.5, 1.5]
    assert limits.clip(np.array([9.0, 0.0, -9.0])).tolist() == [2.0, 0.0, -3.0]


DT = 0.01
limits = st.tuples(
    hnp.arrays(float, 2, elements=st.floats(-3, 0)),
    hnp.arrays(float, 2, elements=st.floats(1e-3, 3)),
    hnp.arrays(float, 2, elements=st.floats(1e-2, 10)),
    hnp.arrays(float, 2, elements=st.floats(1e-2, 1000) | st.just(np.inf)),
).map(lambda drawn: Limits(*drawn, max_jerk=np.full(2, np.inf)))
anywhere = hnp.arrays(float, 2, elements=st.floats(-5, 5))
aims = st.lists(st.tuples(anywhere, anywhere, st.integers(1, 20)), min_size=1, max_size=8)


def walk(limits, aims, dt=DT, brakes=0):
    """Track each aim for some steps, then brake -> positions, velocities [steps + 1, n]."""
    position, velocity = np.zeros(2), np.zeros(2)
    positions, velocities = [position], [velocity]
    for aim, aim_velocity, steps in [*aims, (None, None, brakes)]:
        for _ in range(steps):
            if aim is None:
                position, velocity = brake(position, velocity, dt, limits)
            else:
                position, velocity = track(position, velocity, aim, aim_velocity, dt, limits)
            positions.append(position), velocities.append(velocity)
    return np.array(positions), np.array(velocities)


@given(limits, aims, st.sampled_from([0.002, 0.01, 0.05]))
def test_no_tracking_leaves_any_limit_and_what_is_said_is_done(limits, aims, dt):
    positions, velocities = walk(limits, aims, dt, brakes=5)
    assert (positions >= limits.lower).all() and (positions <= limits.upper).all()
    np.testing.assert_allclose(np.diff(positions, axis=0) / dt, velocities[1:], atol=1e-9)
    assert (np.abs(velocities) <= limits.max_velocity * (1 + 1e-9)).all()
    change = np.abs(np.diff(velocities, axis=0))
    assert (change <= limits.max_acceleration * dt * (1 + 1e-9) + 1e-9).all()


@given(limits, aims)
def test_braking_from_wherever_tracking_has_led_ends_within_v_over_a(limits, aims):
    speed = np.abs(walk(limits, aims)[1][-1])
    steps = 1 + int((speed / (limits.max_acceleration * DT)).max())
    positions, velocities = walk(limits, aims, brakes=min(steps, 2000))
    if steps <= 2000:
        assert np.abs(velocities[-1]).max() < 1e-12
    # Not by the clip at the ends: each step is what its velocity says.
    np.testing.assert_allclose(np.diff(positions, axis=0) / DT, velocities[1:], atol=1e-9)


def test_a_motion_that_the_limits_allow_is_followed_exactly():
    """A sine below both limits, each step aimed at with its own velocity."""
    time = DT * np.arange(500)
    path = 0.2 * np.array([np.sin(2 * time), np.sin(2 * time)]).T
    position, velocity = path[0], (path[1] - path[0]) / DT
    for before, after in itertools.pairwise(path[1:]):
        position, velocity = track(before, velocity, after, (after - before) / DT, DT, LIMITS)
        np.testing.assert_allclose(position, after, atol=1e-12)


def test_without_a_limit_of_acceleration_it_is_the_limit_of_one_step():
    free = dataclasses.replace(LIMITS, max_acceleration=np.full(2, np.inf))
    rng = np.random.default_rng(0)
    for _ in range(200):
        position, velocity = rng.uniform(free.lower, free.upper), rng.normal(size=2)
        aim = rng.uniform(-3, 3, 2)
        found, _ = track(position, velocity, aim, np.zeros(2), DT, free)
        np.testing.assert_allclose(found, limit(aim, position, DT, free), atol=1e-12)


def test_a_straight_motion_stays_straight_from_rest_to_rest():
    aim = np.array([0.6, -0.9])
    positions, _ = walk(LIMITS, [(aim, np.zeros(2), 200)])
    across = positions @ np.array([0.9, 0.6])
    np.testing.assert_allclose(across, 0, atol=1e-12)
    np.testing.assert_allclose(positions[-1], aim, atol=1e-6)
    along = positions @ aim / np.linalg.norm(aim)
    assert (np.diff(along) >= -1e-12).all(), 'it overshoots'
    # About as fast as can be: a trapezoid of velocity for the slower joint.
    arrived = np.argmax(along > 0.99 * along[-1]) * DT
    assert 0.6 / 1.0 + 1.0 / 4.0 - 0.05 < arrived < 0.6 / 1.0 + 1.0 / 4.0 + 0.05


def test_a_moving_aim_is_caught_up_with_and_then_kept():
    aim, moved = np.array([-0.5, -0.5]), np.array([0.3, 0.3])
    position, velocity, errors = np.zeros(2), np.zeros(2), []
    for step in range(1, 200):
        position, velocity = track(position, velocity, aim + moved * DT * step, moved, DT, LIMITS)
        errors.append(np.abs(position - aim - moved * DT * step).max())
    assert errors[10] > 0.3
    assert max(errors[150:]) < 1e-6


@given(hnp.arrays(float, (4, 3, 2), elements=st.floats(-2, 2)))
def test_batches_are_tracked_row_by_row(aim):
    position = np.linspace(-0.5, 0.4, 24).reshape(4, 3, 2)
    velocity = np.linspace(-0.9, 0.9, 24).reshape(4, 3, 2)
    found = track(position, velocity, aim, aim / 3, DT, LIMITS)
    slowed = brake(position, velocity, DT, LIMITS)
    for i in np.ndindex(4, 3):
        for all_of_them, one in (
            (found, track(position[i], velocity[i], aim[i], aim[i] / 3, DT, LIMITS)),
            (slowed, brake(position[i], velocity[i], DT, LIMITS)),
        ):
            for batched, single in zip(all_of_them, one, strict=True):
                assert np.array_equal(batched[i], single)


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_an_aim_that_is_not_finite_is_refused(bad):
    rest = np.zeros(2), np.zeros(2)
    with pytest.raises(RobotRLError, match='aim: not finite'):
        track(*rest, [bad, 0.0], np.zeros(2), DT, LIMITS)
    with pytest.raises(RobotRLError, match='aim velocity: not finite'):
        track(*rest, np.zeros(2), [0.0, bad], DT, LIMITS)
    with pytest.raises(ValueError, match='dt must be above 0'):
        track(*rest, *rest, 0.0, LIMITS)
