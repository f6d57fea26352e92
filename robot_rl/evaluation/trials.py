"""What trials reached: success, how long they took, and when a person had to step in."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from robot_rl import registry
from robot_rl.errors import StorageError
from robot_rl.evaluation.interval import wilson
from robot_rl.imitation.data import find_episodes
from robot_rl.sim.task import ArmTask, Columns
from robot_rl.storage.episode import EpisodeHeader
from robot_rl.storage.sources import PERSON, by_policy, count_interventions
from robot_rl.storage.store import Store

# What every trial is tagged with: a trial is no demonstration, whoever commands.
TAG = 'evaluation'
# So many of those who showed the task are read, the newest.
_MOST = 200

Judge = Literal['task', 'human']


class Interventions(NamedTuple):
    """Of a person in an episode that a policy runs: how often, and for how long [s]."""

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

    With 'task', one that nobody has judged yet is judged by the task, and labelled; not where the
    poses that the task is about were not recorded, as beside an arm that sees by cameras.
    """
    header = store.open(id).header
    trial = Trial(id, header.seed, header.result, header.termination, header.success)
    try:
        columns = _columns(store, task, id)
    except StorageError as error:
        return trial._replace(reason=str(error)), None
    stepped_in, length = interventions(header, columns), length_s(columns)
    trial = trial._replace(interventions=stepped_in, length_s=length)
    missing = _missing(task, columns)
    if missing:
        return trial._replace(reason=f'{trial.reason}; not recorded: {missing}'), columns
    if trial.success is None and by == 'task':
        trial = _judged(store, trial, bool(task.success(columns)))
    distance = float(task.final_distance(columns))
    return trial._replace(
        done_after_s=done_after_s(task, columns), final_distance=distance
    ), columns


def _judged(store: Store, trial: Trial, success: bool) -> Trial:
    """Return a judged trial, after labelling it; where that cannot be written, it is told."""
    trial = trial._replace(success=success)
    try:
        store.label(trial.episode, success)
    except StorageError as error:
        return trial._replace(reason=f'{trial.reason}; not labelled: {error}')
    return trial


def _columns(store: Store, task: ArmTask, id: str) -> Columns:
    """Return all but pictures, which tell nobody here anything."""
    contract = task.contract()
    blind = contract.without([field.name for field in contract.pictures])
    (episode,) = find_episodes(store, task, blind, f'id={id}')
    return episode.columns


def _missing(task: ArmTask, columns: Columns) -> str:
    """Return the streams that a task is about and that were not recorded; '': none."""
    streams = (*task.objects, *task.goals)
    return ', '.join(stream for stream in streams if f'{stream}.position' not in columns)


def length_s(columns: Columns) -> float:
    """Return how long an episode took [s]."""
    return float(columns['time'][-1] - columns['time'][0])


def done_after_s(task: ArmTask, columns: Columns) -> float | None:
    """Return when the task was done, and stayed so to the last row [s].

    None: it was not, or what was recorded does not tell.
    """
    if _missing(task, columns):
        return None
    done = np.asarray(task.done(columns))
    if not done[-1]:
        return None
    lacking = np.flatnonzero(~done)
    first = lacking[-1] + 1 if lacking.size else 0
    return float(columns['time'][first] - columns['time'][0])


def interventions(header: EpisodeHeader, columns: Columns) -> Interventions:
    """Return how often a person took over from the policy of an episode, and led how long [s]."""
    if not by_policy(header.source) or 'source' not in columns:  # nobody is there in simulation
        return Interventions(0, 0.0)
    led, count = np.asarray(columns['source']), header.interventions
    if count is None:  # of a recorder that did not count
        count = count_interventions(led.tolist())
    seconds = np.diff(columns['time'])[led == PERSON].sum()
    return Interventions(count, float(seconds))


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

    Trials are none of them, even where a demonstrator was on trial. How the task is seen and what
    it pays does not matter: it is done where it is done.
    """
    names = registry.same_task(task.name)
    shown = store.episodes(task=names, source='teleop', success=True)
    trials = set(store.episodes(task=names, tag=TAG).ids)
    ids = [id for id in shown.ids if id not in trials]
    lengths, after = [], []
    for id in ids[-_MOST:]:
        with contextlib.suppress(StorageError):  # one that cannot be read has no times
            columns = _columns(store, task, id)
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
