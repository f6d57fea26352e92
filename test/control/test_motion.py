from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from robot_rl.control import motion
from robot_rl.control.limiter import Limits, limit
from robot_rl.control.motion import Line

DT = 0.01
INF = np.full(2, np.inf)
anywhere = hnp.arrays(float, 2, elements=st.floats(-5, 5))
goals = st.lists(
    st.tuples(anywhere, st.sampled_from([1e-9, 0.02, 0.05, 0.1]), st.integers(1, 15)),
    min_size=1,
    max_size=8,
)


@st.composite
def any_limits(draw, jerk=True):
    lower = draw(hnp.arrays(float, 2, elements=st.floats(-3, 0)))
    upper = draw(hnp.arrays(float, 2, elements=st.floats(1e-2, 3)))
    speed = draw(hnp.arrays(float, 2, elements=st.floats(0.05, 5)))
    acceleration = speed * draw(hnp.arrays(float, 2, elements=st.floats(0.5, 20)))
    jerks = acceleration * draw(hnp.arrays(float, 2, elements=st.floats(2, 100)))
    return Limits(lower, upper, speed, acceleration, jerks if jerk else INF)


def walk(limits, goals, dt=DT):
    """Follow lines from goal to goal for some ticks each -> all motions, the first at rest."""
    states, time, last = [motion.at_rest(np.zeros(2), limits)], 0.0, np.zeros(2)
    for goal, duration, steps in goals:
        line, last = Line(last, goal, time, time + duration), goal
        for _ in range(steps):
            time += dt
            states.append(states[-1].follow(line, time, dt, limits))
    return states


@settings(deadline=None)
@given(any_limits(), goals, st.sampled_from([0.002, 0.01, 0.05]))
def test_jerk_stays_within_its_limit_and_so_does_all_else(limits, goals, dt):
    states = walk(limits, goals, dt)
    for _ in range(5):
        states.append(states[-1].brake(dt, limits))
    position, velocity, acceleration = (
        np.array([getattr(state, name) for state in states])
        for name in ('position', 'velocity', 'acceleration')
    )
    assert (position >= limits.lower).all() and (position <= limits.upper).all()
    assert (np.abs(velocity) <= limits.max_velocity + 1e-6).all()
    assert (np.abs(acceleration) <= limits.max_acceleration + 1e-6).all()
    jerk = np.abs(np.diff(acceleration, axis=0)) / dt
    assert (jerk <= limits.max_jerk * (1 + 1e-6) + 1e-6).all()
    # They belong together: the mean of a tick's velocities, to second order, is its way.
    way = dt * (velocity[1:] + velocity[:-1]) / 2
    rest = limits.max_jerk * dt**3 / 6 + 1e-8
    assert (np.abs(np.diff(position, axis=0) - way) <= rest).all()


@settings(deadline=None)
@given(any_limits(), goals)
def test_braking_goes_along_the_path_to_rest_and_ends_in_time(limits, goals):
    now = walk(limits, goals)[-1]
    path, speed, rate = now.path_to_rest(limits), np.abs(now.velocity), limits.max_acceleration
    # First the acceleration of the moment has to go, and the speed that it adds meanwhile.
    longest = (speed / rate + 2.5 * rate / limits.max_jerk).max()
    for _ in range(int(longest / DT) + 2):
        now = now.brake(DT, limits)
    assert np.abs(now.velocity).max() < 1e-9
    np.testing.assert_allclose(now.position, path[-1], atol=1e-6)


def distance_to(path, point):
    """How far a point is from a polygon [k, n]."""
    start, step = path[:-1], np.diff(path, axis=0)
    length = (step**2).sum(axis=1)
    share = ((point - start) * step).sum(axis=1) / np.where(length > 0, length, 1.0)
    nearest = start + np.clip(share, 0, 1)[:, None] * step
    return np.linalg.norm(nearest - point, axis=1).min()


@pytest.mark.parametrize('jerk', [False, True])
@settings(deadline=None)
@given(data=st.data())
def test_braking_stays_beside_the_path_to_rest_that_was_looked_at(jerk, data):
    """Each joint has its own time to stop: the path is a curve, and was taken for a line."""
    limits, way = data.draw(any_limits(jerk=jerk)), data.draw(goals)
    now = walk(limits, way)[-1]
    path, (low, high) = now.path_to_rest(limits), now.extent(limits)
    assert (low <= path.min(axis=0) + 1e-9).all() and (path.max(axis=0) <= high + 1e-9).all()
    if not jerk:  # else a part of the way may be over
        np.testing.assert_allclose(high - low, np.ptp(path, axis=0), atol=1e-9)
    # What the ticks are behind continuous time, and what lies between two places.
    beside = np.linalg.norm(limits.max_velocity) * DT + motion._SPACING / 2
    for _ in range(200):
        assert distance_to(path, now.position) <= beside
        assert (low - 1e-9 <= now.position).all() and (now.position <= high + 1e-9).all()
        now = now.brake(DT, limits)


def test_joints_that_stop_one_after_the_other_leave_the_straight_line():
    """Found 0.178 rad beside the path that had been looked at, and 85 mm outside a workspace."""
    limits = Limits(np.full(2, -9.0), np.full(2, 9.0), np.full(2, 3.0), np.array([10.0, 3.0]), INF)
    now = motion.AccelerationLimited(np.zeros(2), np.array([3.0, -3.0]))
    path = now.path_to_rest(limits)
    assert len(path) > 20 and np.linalg.norm(np.diff(path, axis=0), axis=1).max() < 0.2
    np.testing.assert_allclose(path[-1], [0.45, -1.5])
    for _ in range(100):
        now = now.brake(1e-3, limits)
        assert distance_to(path, now.position) < 0.01


@pytest.mark.parametrize('jerk', [np.inf, 2000.0])
def test_a_stream_of_goals_that_the_limits_allow_is_followed(jerk):
    """Along a line at a pace that it starts with; with a bounded jerk once it has caught up."""
    limits = Limits(-np.ones(2), np.ones(2), np.ones(2), np.full(2, 20.0), np.full(2, jerk))
    pace = np.array([0.15, -0.1])
    now, reached = motion.at_rest(np.zeros(2), limits), []
    for k in range(20):
        goal = pace * 0.05 * (k + 1)
        line = Line(pace * 0.05 * k, goal, 0.05 * k, 0.05 * (k + 1))
        for tick in range(5):
            now = now.follow(line, line.begins + DT * (tick + 1), DT, limits)
        reached.append(np.abs(now.position - goal).max())
        np.testing.assert_allclose(now.velocity, pace, atol=0.2 if k == 0 else 1e-6)
    assert max(reached) < 1e-9


@pytest.mark.parametrize('jerk', [np.inf, 40.0])
@pytest.mark.parametrize('acceleration', [[4.0, 4.0], [1.0, 7.0]])
def test_a_straight_motion_stays_straight_and_arrives(jerk, acceleration):
    limits = Limits(-np.ones(2), np.ones(2), np.ones(2), np.array(acceleration), np.full(2, jerk))
    now, aim = motion.at_rest(np.zeros(2), limits), np.array([0.6, -0.9])
    # Where the limits are not alike, Ruckig gives up the line for the joint that is to hurry.
    bend = 0.1 if np.isfinite(jerk) and acceleration[0] != acceleration[1] else 1e-9
    line = Line(aim, aim, -1.0, 0.0)
    for k in range(300):
        now = now.follow(line, DT * (k + 1), DT, limits)
        assert abs(now.position @ [0.9, 0.6]) <= bend
    np.testing.assert_allclose(now.position, aim, atol=1e-6)
    np.testing.assert_allclose(now.velocity, 0, atol=1e-4)


def test_no_limit_of_acceleration_means_a_stop_at_once():
    limits = Limits(-np.ones(2), np.ones(2), np.ones(2), INF, INF)
    line = Line(np.ones(2), np.ones(2), -1.0, 0.0)
    now = motion.at_rest(np.zeros(2), limits).follow(line, DT, DT, limits)
    np.testing.assert_allclose(now.position, limit(np.ones(2), np.zeros(2), DT, limits))
    assert (now.path_to_rest(limits) == now.position).all()
    assert (now.brake(DT, limits).velocity == 0).all()


def test_where_ruckig_has_no_answer_the_motion_brakes(monkeypatch):
    limits = Limits(-np.ones(2), np.ones(2), np.ones(2), np.full(2, 4.0), np.full(2, 40.0))
    now = walk(limits, [(np.ones(2), 0.05, 30)])[-1]
    expected = now.brake(DT, limits)
    monkeypatch.setattr(motion, '_trajectory', lambda asked: None)
    for other in (np.ones(2), np.zeros(2)):
        found = now.follow(Line(other, other, 0.0, 0.1), 0.35, DT, limits)
        assert np.array_equal(found.position, expected.position)


@settings(deadline=None, max_examples=30)
@given(any_limits(), goals)
def test_how_far_a_stop_reaches_is_what_its_samples_say(limits, goals):
    """Ruckig's own position_extrema count a zero where the target is a velocity."""
    for now in walk(limits, goals):
        stop = now.stop.trajectory
        times = np.linspace(0, stop.duration, 2000)
        sampled = np.array([stop.at_time(time)[0] for time in times])
        low, high = motion._reach(stop)
        between = limits.max_velocity * stop.duration / 2000 + 1e-9
        assert (low <= sampled.min(axis=0) + 1e-9).all()
        assert (low >= sampled.min(axis=0) - between).all()
        assert (high >= sampled.max(axis=0) - 1e-9).all()
        assert (high <= sampled.max(axis=0) + between).all()
