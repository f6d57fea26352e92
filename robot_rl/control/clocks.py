"""Steady time, injected: the control path never asks the wall clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Protocol

# How long before a deadline what is to be done then is rehearsed [s].
REHEARSAL_S = 0.5e-3
# A shorter sleep leaves the caches as they are; at such rates the processor has better to do [s].
LONG_SLEEP_S = 5e-3
# So many rehearsals show how long one takes: the first may be slow.
TRIES = 3


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


class RehearsingClock(SteadyClock):
    """A steady clock that does `rehearse` shortly before it wakes its sleeper.

    What slept for milliseconds has lost its code and data from the processor's caches: a control
    tick takes three quarters of its time when it was rehearsed. Short sleeps are left alone, and
    so is what takes longer than REHEARSAL_S at the quickest: it would be late by itself.
    """

    def __init__(self, rehearse: Callable[[], None]):
        self._rehearse = rehearse
        self._tries, self._quickest_s = 0, float('inf')

    def sleep_until(self, deadline_s: float) -> None:
        """Sleep, rehearse, and sleep again until an absolute time."""
        fits = self._quickest_s < REHEARSAL_S or self._tries < TRIES
        if fits and deadline_s - self.now() > LONG_SLEEP_S:
            super().sleep_until(deadline_s - REHEARSAL_S)
            began = self.now()
            self._rehearse()
            self._tries += 1
            self._quickest_s = min(self._quickest_s, self.now() - began)
        super().sleep_until(deadline_s)


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
