"""Steady time, injected: the control path never asks the wall clock."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from statistics import median_high
from typing import Protocol

# A tick is not prepared earlier before its deadline than by this share of a period.
LONGEST_LEAD = 0.75
# It begins early by so many times as long as it usually takes, which is the median of the latest:
# they differ as caches and neighbours do.
LEAD, LATEST = 1.5, 9
# What a tick is made of should have come so much before its preparation begins [s], or a quarter
# of the time between two samples: messages are on their way for now more and now less.
MARGIN_S = 0.001


class Clock(Protocol):
    """A time in seconds that never jumps, and a way to wait for it."""

    def now(self) -> float:
        """Return the time [s]; only differences have a meaning."""
        ...

    def sleep_until(self, deadline_s: float) -> None:
        """Return once now() has reached `deadline_s`; at once where it has already."""
        ...


class SteadyClock:
    """The machine's monotonic clock: not moved by NTP, by a person, or by /clock."""

    def now(self) -> float:
        """Return the monotonic time [s]."""
        return time.monotonic()

    def sleep_until(self, deadline_s: float) -> None:
        """Sleep until an absolute time, so that lateness does not add up."""
        remaining = deadline_s - time.monotonic()
        if remaining > 0:
            time.sleep(remaining)


class PreparingClock(SteadyClock):
    """A steady clock that does `prepare(deadline_s)` shortly before it wakes its sleeper.

    What can be done before a deadline is done by then, and what is left runs on warm caches: who
    has slept has lost code and data to other processes. It begins early by a little more than it
    usually takes.
    """

    def __init__(self, prepare: Callable[[float], None], period_s: float):
        self._prepare, self._longest_s = prepare, LONGEST_LEAD * period_s
        self._took_s: deque[float] = deque(maxlen=LATEST)

    def sleep_until(self, deadline_s: float) -> None:
        """Sleep, prepare, and sleep again until an absolute time."""
        if self.now() >= deadline_s:
            return
        # Be it too late to be done in time: what is not done now would be done later still, and
        # the tick after a prepared one has its time again.
        usual_s = median_high(self._took_s or [self._longest_s])
        super().sleep_until(deadline_s - min(LEAD * usual_s, self._longest_s))
        began = self.now()
        self._prepare(deadline_s)
        self._took_s.append(self.now() - began)
        super().sleep_until(deadline_s)


def until_prepared(since_s: float, period_s: float, takes_s: float) -> float:
    """Return how long to wait until a tick can be prepared from what comes each `period_s` [s].

    It came `since_s` ago; to prepare the tick takes `takes_s`. Ticks that keep this phase are
    prepared from what has just come, whether it comes now a little earlier or later.
    """
    return (LEAD * takes_s + min(MARGIN_S, period_s / 4) - since_s) % period_s


class VirtualClock:
    """A clock that moves when told to: tests and simulation run faster than real time."""

    def __init__(self, start_s: float = 0.0):
        self._now = start_s

    def now(self) -> float:
        """Return the virtual time [s]."""
        return self._now

    def sleep_until(self, deadline_s: float) -> None:
        """Move to `deadline_s` at once; never backwards."""
        self._now = max(self._now, deadline_s)

    def advance(self, seconds: float) -> float:
        """Move forward by `seconds` and return the new time."""
        self._now += seconds
        return self._now


def ticks(clock: Clock, period_s: float) -> Iterator[float]:
    """Yield the time at absolute deadlines, one `period_s` apart, the first at once.

    Deadlines missed while the caller was busy are skipped, never made up in a burst.
    """
    start, count = clock.now(), 0
    while True:
        clock.sleep_until(start + count * period_s)
        yield clock.now()
        passed = math.ceil((clock.now() - start) / period_s)
        count = max(count + 1, passed)
