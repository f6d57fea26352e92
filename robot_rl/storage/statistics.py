"""How much of what has been recorded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from robot_rl.storage.episode import EpisodeHeader


class Count(NamedTuple):
    """What some episodes amount to."""

    episodes: int
    hours: float
    # Judged ones that succeeded and that did not; the rest nobody has judged.
    successes: int
    failures: int
    # How often a person took over from a policy, as far as that was counted.
    interventions: int

    @property
    def success_rate(self) -> float | None:
        """The part of the judged ones that succeeded; None: nobody has judged any."""
        judged = self.successes + self.failures
        return self.successes / judged if judged else None


def count(headers: Iterable[EpisodeHeader]) -> Count:
    """Count episodes and add up their lengths; an unknown length counts as none."""
    headers = list(headers)
    return Count(
        episodes=len(headers),
        hours=sum(header.duration_s or 0.0 for header in headers) / 3600,
        successes=sum(header.success is True for header in headers),
        failures=sum(header.success is False for header in headers),
        interventions=sum(header.interventions or 0 for header in headers),
    )


def by_task_and_source(headers: Iterable[EpisodeHeader]) -> dict[tuple[str, str], Count]:
    """Return {(task, source): their count}, in the order of the names."""
    groups: dict[tuple[str, str], list[EpisodeHeader]] = {}
    for header in headers:
        groups.setdefault((header.task, header.source), []).append(header)
    return {key: count(groups[key]) for key in sorted(groups)}
