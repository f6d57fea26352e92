"""Learning curves: the mean of several seeds, when it reaches a return, and published ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydantic

from robot_rl.bench.results import RESULTS, Entry, PublishedAgent, steps_of
from robot_rl.errors import SpecError
from robot_rl.specs import Spec

PUBLISHED = RESULTS / 'published.yaml'


class Curve(NamedTuple):
    """Returns over environment steps, which increase."""

    steps: np.ndarray  # [P]
    returns: np.ndarray  # [P]

    def first_at(self, wanted: float) -> int | None:
        """Return the first of `steps` at which the return is at least `wanted`."""
        reached = self.steps[self.returns >= wanted]
        return int(reached[0]) if len(reached) else None

    def level(self, until: float) -> float | None:
        """Return the mean return of steps 0 to `until`: the area below the curve over the steps.

        Linear between the points; before the first one, its return. None where the curve ends
        before `until`.
        """
        if self.steps[-1] < until:
            return None
        inside = self.steps[(self.steps > 0) & (self.steps < until)]
        steps = np.concatenate([[0.0], inside, [until]])
        returns = np.interp(steps, self.steps, self.returns)
        return float((np.diff(steps) * (returns[1:] + returns[:-1]) / 2).sum() / until)


def curve_of(rows: Sequence[dict[str, Any]]) -> Curve:
    """Return the curve of one run's evaluations, over updates where the agent does not act."""
    points = np.array([(steps_of(row), row['eval_return_mean']) for row in rows], float)
    return Curve(*points.T)


def mean_of(curves: Sequence[Curve]) -> Curve:
    """Return the mean of some seeds' curves at every step at which one was evaluated.

    Each is interpolated linearly, and is its first return before its first step. The mean ends
    where the shortest does.
    """
    last = min(curve.steps[-1] for curve in curves)
    steps = np.unique(np.concatenate([curve.steps for curve in curves]))
    steps = steps[steps <= last]
    returns = [np.interp(steps, curve.steps, curve.returns) for curve in curves]
    return Curve(steps, np.mean(returns, axis=0))


class PublishedCurve(Spec):
    """One agent on one task; the file's head says how the figures were made."""

    mean: float  # over the seeds, of the return at the end
    std: float
    reached: int | None  # the step at which the mean curve reaches the task's threshold
    curve: tuple[float, ...] = pydantic.Field(min_length=1)


class PublishedTask(Spec):
    """The agents' curves on one task."""

    threshold: float | None
    agents: dict[PublishedAgent, PublishedCurve]


class Published(Spec):
    """Published curves, all on the same grid of environment steps."""

    first_step: pydantic.PositiveInt
    every: pydantic.PositiveInt
    tasks: dict[str, PublishedTask]


class Reference(NamedTuple):
    """What is published of the agent and the task of one entry."""

    threshold: float | None  # a return
    reached: int | None  # the step at which the curve reaches the threshold
    curve: Curve
    mean: float  # of the return at the end, over seeds
    std: float

    @property
    def until(self) -> float:
        """The step up to which levels are compared: 1.25 x `reached`, or the curve's end."""
        end = float(self.curve.steps[-1])
        return end if self.reached is None else min(1.25 * self.reached, end)


def reference_of(entry: Entry, published: Published) -> Reference | None:
    """Return what is published for an entry that asks for it; its own `needs` come first.

    Raises SpecError where nothing is.
    """
    if entry.published is None:
        return None
    task = published.tasks.get(entry.task)
    if task is None or entry.published not in task.agents:
        raise SpecError(f'{PUBLISHED}: nothing of {entry.published} on {entry.task}')
    found = task.agents[entry.published]
    steps = published.first_step + published.every * np.arange(len(found.curve), dtype=float)
    curve = Curve(steps, np.array(found.curve))
    threshold, reached = task.threshold, found.reached
    if entry.needs is not None and entry.needs.return_ != threshold:
        threshold = entry.needs.return_
        reached = curve.first_at(threshold)
    return Reference(threshold, reached, curve, found.mean, found.std)


def read_published(path: Path = PUBLISHED) -> Published:
    """Read the published curves. Raises SpecError."""
    return Published.from_yaml(path)
