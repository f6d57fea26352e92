"""How much of what has been recorded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Count(NamedTuple):
    """What some episodes amount to."""

    episodes: int = 0
    # Those whose length is not known count as none.
    hours: float = 0.0
    # Judged ones that succeeded and that did not; the rest nobody has judged.
    successes: int = 0
    failures: int = 0
    # How often a person took over from a policy, as far as that was counted.
    interventions: int = 0

    @property
    def success_rate(self) -> float | None:
        """The part of the judged ones that succeeded; None: nobody has judged any."""
        judged = self.successes + self.failures
        return self.successes / judged if judged else None


def total(counts: Iterable[Count]) -> Count:
    """Return what several counts come to together."""
    found = list(counts)
    return Count(*map(sum, zip(*found, strict=True))) if found else Count()
