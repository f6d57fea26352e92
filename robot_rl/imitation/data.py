"""Recorded episodes as steps to learn from: rewarded anew, and with other goals in hindsight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from robot_rl.errors import StorageError
from robot_rl.sim.reach import TARGET, TOOL, ReachTask
from robot_rl.sim.recorded import steps_of, with_tool
from robot_rl.specs import Contract
from robot_rl.storage.columns import aligned_columns
from robot_rl.storage.episode import EpisodeHeader
from robot_rl.storage.steps import Steps
from robot_rl.storage.store import Store


class Episode(NamedTuple):
    """One recorded episode: its header and its aligned columns [T + 1, ...], the tool's too."""

    header: EpisodeHeader
    columns: dict[str, np.ndarray]


def load_episodes(store: Store, task: ReachTask, contract: Contract, query: str) -> list[Episode]:
    """Return the episodes that `query` finds, oldest first.

    Raises StorageError where there is none.
    """
    headers = store.episodes(query)
    if not headers:
        raise StorageError(
            f'{store.root}: no episode for the query {query!r}; '
            'robot-rl episodes ls lists what is there'
        )
    return [
        Episode(header, with_tool(task, aligned_columns(store.open(header.id), contract)))
        for header in headers
    ]


def make_steps(
    task: ReachTask,
    contract: Contract,
    episodes: Sequence[Episode],
    action: Literal['requested', 'applied'] = 'requested',
    hindsight_goals: int = 0,
    seed: int = 0,
) -> Steps:
    """Return all episodes as Steps, rewarded by the task, each under `hindsight_goals` more goals.

    What the arm did does not depend on the goal that it was given, so each episode is evidence
    for other goals as well: its target is replaced, in turn, by a place where its own tool came
    by and by one where any episode's did, and its rewards are computed anew (hindsight
    experience replay, Andrychowicz et al. 2017, strategies 'episode' and 'random').
    """
    rng = np.random.default_rng(seed)
    reached = np.concatenate([episode.columns[TOOL] for episode in episodes])
    rows = []
    for episode in episodes:
        own = episode.columns[TOOL]
        rows.append(steps_of(task, episode.columns, contract, action))
        for number in range(hindsight_goals):
            places = own if number % 2 == 0 else reached
            goal = np.broadcast_to(places[rng.integers(len(places))], own.shape)
            rows.append(steps_of(task, episode.columns | {TARGET: goal}, contract, action))
    return Steps.concatenate(rows)
