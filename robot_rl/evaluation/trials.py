"""What trials reached: success, how long they took, and when a person had to step in."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from robot_rl.errors import StorageError
from robot_rl.evaluation.interval import wilson
from robot_rl.imitation.data import Episode, find_episodes, judge
from robot_rl.sim.task import ArmTask, Columns
from robot_rl.storage.episode import EpisodeReader
from robot_rl.storage.store import Store

# What every trial is tagged with: a trial is no demonstration, whoever commands.
TAG = 'evaluation'
_APPLIED = 'command_guard/applied'
# What the guard names as the source where nobody commands.
_BY_ITSELF = 'hold', 'estop'
# So many of those who showed the task are read, the newest.
_MOST = 200

Judge = Literal['task', 'human']


class Interventions(NamedTuple):
    """When another than an episode's own source had the arm: how often, and for how long [s]."""

    count: int
    seconds: float


class Trial(NamedTuple):
    """One episode of an evaluation; None: not known."""

    episode: str
    seed: int | None
    # How the session ended, and why.
    result: str
    reason: str
    # None: nobody has judged it, or it cannot be read.
    success: bool | None
    # From the first row of its columns to the last [s].
    length_s: float | None = None
    # Until the task was done, and stayed so to the end [s].
    done_after_s: float | None = None
    # [m]
    final_distance: float | None = None
    interventions: Interventions | None = None


def read_trial(
    store: Store, task: ArmTask, id: str, by: Judge = 'task'
) -> tuple[Trial, Columns | None]:
    """Return a recorded trial and its columns; None where they cannot be read.

    With 'task', one that nobody has judged yet is judged by the task, and labelled.
    """
    reader = store.open(id)
    header = reader.header
    about = (id, header.seed, header.result)
    try:
        (episode,) = _read(store, task, id, by)
        stepped_in = interventions(reader)
    except StorageError as error:
        return Trial(*about, str(error), header.success), None
    columns = episode.columns
    return Trial(
        *about,
        header.termination,
        episode.header.success,
        length_s(columns),
        done_after_s(task, columns),
        float(task.final_distance(columns)),
        stepped_in,
    ), columns


def _read(store: Store, task: ArmTask, id: str, by: Judge) -> Sequence[Episode]:
    if by == 'task':
        return judge(store, task, f'id={id}')
    return find_episodes(store, task, task.contract(), f'id={id}')


def length_s(columns: Columns) -> float:
    """Return how long an episode took [s]."""
    return float(columns['time'][-1] - columns['time'][0])


def done_after_s(task: ArmTask, columns: Columns) -> float | None:
    """Return when the task was done, and stayed so to the last row [s]; None: it was not."""
    done = np.asarray(task.done(columns))
    if not done[-1]:
        return None
    lacking = np.flatnonzero(~done)
    first = lacking[-1] + 1 if lacking.size else 0
    return float(columns['time'][first] - columns['time'][0])


def interventions(episode: EpisodeReader) -> Interventions:
    """Read when another than the episode's own source had the arm, from what the guard applied.

    From when the own source began: what was before put things in their places. While the guard
    holds the arm by itself, the arm is still whose it was.
    """
    own, who = episode.header.source or 'policy', ''
    topics = {topic for topic in episode.types() if f'/{topic}'.endswith(f'/{_APPLIED}')}
    if not topics:
        return Interventions(0, 0.0)
    count, time_ns, since_ns = 0, 0, 0
    for item in episode.messages(topics):
        source = item.message.header.frame_id
        if who and who != own:
            time_ns += item.publish_time_ns - since_ns
        if source not in _BY_ITSELF and (who or source == own):
            count += who == own != source
            who = source
        since_ns = item.publish_time_ns
    return Interventions(count, time_ns * 1e-9)


def summary(trials: Sequence[Trial]) -> dict[str, Any]:
    """Return plain data of some trials: success with its 95 % interval, times, interventions.

    Times are those of the successful ones. What nobody has judged is no part of the rate.
    """
    judged = [trial for trial in trials if trial.success is not None]
    good = [trial for trial in judged if trial.success]
    known = [trial for trial in trials if trial.interventions is not None]
    count = sum(trial.interventions.count for trial in known)
    hours = sum(trial.length_s for trial in known) / 3600
    return {
        'trials': len(trials),
        'successes': len(good),
        'success_rate': len(good) / len(judged) if judged else None,
        'success_interval': list(wilson(len(good), len(judged))),
        **_times([trial.length_s for trial in good], [trial.done_after_s for trial in good]),
        'interventions': count,
        'intervened_s': sum(trial.interventions.seconds for trial in known),
        'interventions_per_hour': count / hours if hours else None,
        'failures': [trial.episode for trial in judged if not trial.success],
        'not_judged': [trial.episode for trial in trials if trial.success is None],
    }


def teleoperators(store: Store, task: ArmTask) -> dict[str, Any]:
    """Return how many successful demonstrations of a task the store has, and their times.

    Trials are none of them, even where a demonstrator was on trial.
    """
    shown = store.episodes(task=task.name, source='teleop', success=True)
    trials = set(store.episodes(task=task.name, tag=TAG).ids)
    ids = [id for id in shown.ids if id not in trials]
    lengths, after = [], []
    for id in ids[-_MOST:]:
        with contextlib.suppress(StorageError):  # one that cannot be read has no times
            ((_, columns),) = _read(store, task, id, 'human')
            lengths.append(length_s(columns))
            after.append(done_after_s(task, columns))
    return {'episodes': len(ids), **_times(lengths, after)}


def _times(lengths: Sequence[float | None], after: Sequence[float | None]) -> dict[str, Any]:
    return {'length_s': _spread(lengths), 'done_after_s': _spread(after)}


def _spread(values: Sequence[float | None]) -> dict[str, float] | None:
    """Return median and quartiles of what is known; None of nothing."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    low, median, high = np.percentile(known, [25, 50, 75])
    return {'lower_quartile': float(low), 'median': float(median), 'upper_quartile': float(high)}
