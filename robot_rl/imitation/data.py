"""Recorded episodes as steps to learn from: rewarded anew, and with other goals in hindsight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from robot_rl.errors import ContractMismatch, StorageError
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


def load_episodes(
    store: Store,
    task: ReachTask,
    contract: Contract,
    query: str | Sequence[str],
    refused: Callable[[str], None] = lambda reason: None,
) -> list[Episode]:
    """Return the episodes that `query` finds and that can be used, oldest first.

    One that cannot (cut before there was a step, damaged, other joints, commanded at another
    rate or in another way) is told to `refused` and left out. Raises StorageError where none is
    left.
    """
    headers = store.episodes(query)
    episodes, reasons = [], []
    for header in headers:
        try:
            _require_same_actions(header, contract)
            columns = aligned_columns(store.open(header.id), contract)
            episodes.append(Episode(header, with_tool(task, columns)))
        except (StorageError, ContractMismatch) as error:
            reasons.append(str(error))
            refused(str(error))
    if not episodes:
        why = f'; the first of {len(reasons)}: {reasons[0]}' if reasons else ''
        raise StorageError(
            f'{store.root}: no usable episode for the query {query!r}{why}'
            ' (robot-rl episodes ls lists what is there)'
        )
    return episodes


def judge(store: Store, task: ReachTask, query: str | Sequence[str] = '') -> list[Episode]:
    """Label, by the task's predicate on recorded columns, what nobody has judged yet.

    Returns the usable episodes that `query` finds, with their labels; a person's label stays.
    Raises StorageError where there is none.
    """
    judged = []
    for episode in load_episodes(store, task, task.contract(), query):
        header = episode.header
        if header.success is None:
            header = store.label(header.id, bool(task.success(episode.columns)))
        judged.append(episode._replace(header=header))
    return judged


def _require_same_actions(header: EpisodeHeader, contract: Contract) -> None:
    """Raise ContractMismatch where the recorded actions mean something else."""
    recorded = header.contract
    if recorded is None:
        raise ContractMismatch(f'episode {header.id}: recorded without a contract')
    if recorded.rate_hz != contract.rate_hz:
        raise ContractMismatch(
            f'episode {header.id}: commanded at {recorded.rate_hz:g} Hz, '
            f'the task at {contract.rate_hz:g} Hz'
        )
    kinds = [[(field.kind, field.names) for field in c.action] for c in (recorded, contract)]
    if kinds[0] != kinds[1]:
        raise ContractMismatch(
            f'episode {header.id}: commanded by {kinds[0][0][0]} of {list(kinds[0][0][1])}, '
            f'the task by {kinds[1][0][0]} of {list(kinds[1][0][1])}'
        )


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
    for other goals as well: its target is replaced by the place where its tool ended, then in
    turn by one where it came by and one where any episode's tool did, and its rewards are
    computed anew (hindsight experience replay, Andrychowicz et al. 2017, strategies 'final',
    'episode' and 'random').
    """
    rng = np.random.default_rng(seed)
    reached = np.concatenate([episode.columns[TOOL] for episode in episodes])
    rows = []
    for episode in episodes:
        own = episode.columns[TOOL]
        rows.append(steps_of(task, episode.columns, contract, action))
        for number in range(hindsight_goals):
            place = own[-1]
            if number:
                places = own if number % 2 else reached
                place = places[rng.integers(len(places))]
            goal = np.broadcast_to(place, own.shape)
            rows.append(steps_of(task, episode.columns | {TARGET: goal}, contract, action))
    return Steps.concatenate(rows)
