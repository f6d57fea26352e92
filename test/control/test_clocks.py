from __future__ import annotations

import itertools
import time

import pytest

from robot_rl.control.clocks import (
    LONG_SLEEP_S,
    REHEARSAL_S,
    TRIES,
    RehearsingClock,
    SteadyClock,
    VirtualClock,
    ticks,
)


def test_the_steady_clock_wakes_at_the_deadline_or_after_it():
    clock = SteadyClock()
    deadline = clock.now() + 0.02
    clock.sleep_until(deadline)
    assert clock.now() >= deadline
    clock.sleep_until(clock.now() - 1.0)  # returns at once


def test_a_rehearsal_comes_shortly_before_the_deadline_and_is_left_out_of_short_sleeps():
    rehearsed = []
    clock = RehearsingClock(lambda: rehearsed.append(clock.now()))
    deadlines = [clock.now() + 0.02 * k for k in (1, 2, 3)]
    for deadline in deadlines:
        clock.sleep_until(deadline)
        assert clock.now() >= deadline
    assert len(rehearsed) == 3
    # Not too early; how late the system wakes anybody is not the clock's doing.
    soonest = [deadline - REHEARSAL_S - 1e-6 for deadline in deadlines]
    assert all(a >= b for a, b in zip(rehearsed, soonest, strict=True))
    for short in (0.9 * LONG_SLEEP_S, -1.0):
        clock.sleep_until(clock.now() + short)
    assert len(rehearsed) == 3


def test_what_takes_longer_than_a_rehearsal_may_is_not_rehearsed_any_more():
    """A policy of 12 ms was late by 12 ms at every tick."""
    rehearsed = []
    clock = RehearsingClock(lambda: (rehearsed.append(1), time.sleep(4 * REHEARSAL_S)))
    for _ in range(TRIES + 3):
        clock.sleep_until(clock.now() + 2 * LONG_SLEEP_S)
    assert len(rehearsed) == TRIES


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
