from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robot_rl.control import clocks
from robot_rl.control.clocks import (
    LEAD,
    LONGEST_LEAD,
    MARGIN_S,
    PreparingClock,
    SteadyClock,
    VirtualClock,
    ticks,
    until_prepared,
)


def test_the_steady_clock_wakes_at_the_deadline_or_after_it():
    clock = SteadyClock()
    deadline = clock.now() + 0.02
    clock.sleep_until(deadline)
    assert clock.now() >= deadline
    clock.sleep_until(clock.now() - 1.0)  # returns at once


def test_a_tick_is_prepared_shortly_before_the_deadline_where_there_is_time_for_it():
    prepared, period_s = [], 0.02
    clock = PreparingClock(lambda due_s: prepared.append((clock.now(), due_s)), period_s)
    deadlines = [clock.now() + period_s * k for k in (1, 2, 3)]
    for deadline in deadlines:
        clock.sleep_until(deadline)
        assert clock.now() >= deadline
    # Not too early; how late the system wakes anybody is not the clock's doing.
    times, due = zip(*prepared, strict=True)
    soonest = [deadline - LONGEST_LEAD * period_s - 1e-6 for deadline in deadlines]
    assert all(a >= b for a, b in zip(times, soonest, strict=True))
    assert list(due) == deadlines
    clock.sleep_until(clock.now() - 1.0)
    assert len(prepared) == 3


def test_it_is_begun_early_by_a_little_more_than_it_takes():
    began, period_s, takes_s = [], 0.2, 0.01

    def prepare(due_s):
        began.append(due_s - clock.now())
        time.sleep(takes_s)

    clock = PreparingClock(prepare, period_s)
    for _ in range(4):
        clock.sleep_until(clock.now() + period_s)
    assert began[0] <= LONGEST_LEAD * period_s
    assert all(lead < 0.8 * LONGEST_LEAD * period_s for lead in began[1:])
    assert max(began[1:]) > takes_s


def test_a_preparation_that_takes_longer_by_and_by_is_begun_earlier():
    """An idle guard's took 0.04 ms; those of a busy one began as late, and made it late."""
    period_s, took_s, late = 0.04, [0.0] * 20 + [0.005] * 20, []
    clock = PreparingClock(lambda due_s: time.sleep(took_s[len(late)]), period_s)
    deadline = clock.now()
    for _ in took_s:
        deadline += period_s
        clock.sleep_until(deadline)
        late.append(clock.now() - deadline)
    assert np.median(late[20:25]) > 0.002
    assert np.median(late[30:]) < 0.002


def test_a_tick_that_was_not_prepared_leaves_time_to_prepare_the_next_one():
    """At 250 Hz one of 2.5 ms did not leave the 1.5 times as long that is usual, ever after."""
    prepared, period_s = [], 0.3

    def prepare(due_s):
        prepared.append(due_s)
        time.sleep(0.3 * period_s)

    clock = PreparingClock(prepare, period_s)
    for _ in range(5):  # how long it takes is known
        clock.sleep_until(clock.now() + period_s)
    due_s = clock.now() + period_s
    time.sleep(0.6 * period_s)  # a tick that had everything left to do
    clock.sleep_until(due_s)
    assert prepared[5:] == [due_s]


class Simulated:
    """In place of the module time: who sleeps or works moves it."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def policy_at_work(time, takes_s, period_s, sample_s, count=400, since_s=0.0):
    """Return when each command went out [s], and how old its sample was at the tick [s].

    As the node does: it decides beforehand, on the newest sample that has come by then.
    """
    prepared, out, ages_s = [], [], []
    time.sleep(since_s)

    def prepare(due_s):
        prepared.append(time.now // sample_s * sample_s)
        time.sleep(takes_s)

    for now in itertools.islice(ticks(PreparingClock(prepare, period_s), period_s), count):
        if not prepared:
            prepare(now)
        out.append(time.now)
        ages_s.append(now - prepared.pop())
    return np.array(out) - since_s, np.array(ages_s)


@pytest.mark.parametrize('share', [0.1, 0.3, 0.45, 0.52, 0.6, 0.7, 0.95, 1.2])
@pytest.mark.parametrize('sample_s', [0.01, 0.002])
def test_a_policy_of_sixty_per_cent_of_its_period_missed_one_deadline_in_four(
    monkeypatch, share, sample_s
):
    """What came while it was prepared was decided upon at the tick, and there was no time left.

    And one of 12 ms was late by 12 ms at every tick: what takes longer than there is time for
    goes out as soon as it is decided, one after another.
    """
    monkeypatch.setattr(clocks, 'time', time := Simulated())
    out, _ = policy_at_work(time, share * 0.05, 0.05, sample_s)
    usual = out[20:]  # by then it is known how long it takes
    if share < 1.0:
        late = (usual + 1e-9) % 0.05
        assert late.max() < max(share - LONGEST_LEAD, 0.0) * 0.05 + 1e-6
        np.testing.assert_allclose(np.diff(usual), 0.05, atol=1e-6)
    else:  # no core has time for all, and none is idle between two
        assert np.diff(usual).mean() < 0.05 * (share + 0.1)


@pytest.mark.parametrize('takes_s', [0.0004, 0.001, 0.002, 0.003, 0.0045])
@pytest.mark.parametrize('sample_s', [0.01, 0.002])
def test_in_its_phase_a_tick_is_prepared_from_what_has_just_come(monkeypatch, takes_s, sample_s):
    """A policy of 4 ms, with a phase of 3 ms, decided twice at every tick."""
    monkeypatch.setattr(clocks, 'time', time := Simulated())
    since_s = until_prepared(0.0, sample_s, takes_s)
    _, ages_s = policy_at_work(time, takes_s, 0.05, sample_s, since_s=since_s)
    usual = ages_s[10:]
    np.testing.assert_allclose(usual, LEAD * takes_s + min(MARGIN_S, sample_s / 4), atol=1e-9)


@given(st.floats(0, 1e3), st.floats(1e-3, 1.0), st.floats(0, 0.1))
def test_a_tick_waits_for_what_it_is_made_of_to_have_been_there_for_a_while(
    since_s, period_s, takes_s
):
    waited_s = until_prepared(since_s, period_s, takes_s)
    assert 0 <= waited_s <= period_s
    came_before_s = (since_s + waited_s) % period_s
    wanted_s = (LEAD * takes_s + min(MARGIN_S, period_s / 4)) % period_s
    off_s = abs(came_before_s - wanted_s)
    assert min(off_s, period_s - off_s) < 1e-9


def test_the_virtual_clock_never_goes_backwards():
    clock = VirtualClock(start_s=5.0)
    clock.sleep_until(4.0)
    assert clock.now() == 5.0
    clock.sleep_until(6.5)
    assert clock.advance(0.25) == clock.now() == 6.75


def test_ticks_come_at_absolute_deadlines_whatever_the_work_takes():
    clock = VirtualClock(start_s=2.0)
    times = []
    for now in itertools.islice(ticks(clock, 0.1), 5):
        times.append(now)
        clock.advance(0.07)
    assert times == pytest.approx([2.0, 2.1, 2.2, 2.3, 2.4])


def test_missed_ticks_are_skipped_and_the_phase_stays():
    clock = VirtualClock()
    times, work = [], iter([0.01, 0.25, 0.01, 0.01])
    for now in itertools.islice(ticks(clock, 0.1), 4):
        times.append(now)
        clock.advance(next(work))
    assert times == pytest.approx([0.0, 0.1, 0.4, 0.5])
