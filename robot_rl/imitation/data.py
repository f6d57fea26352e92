"""Recorded episodes as steps to learn from: rewarded anew, and with other goals in hindsight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, overload

import numpy as np

from robot_rl.errors import ContractMismatch, StorageError
from robot_rl.imitation.simulated import is_simulated, simulated_steps
from robot_rl.robots.kinematics import KinematicChain
from robot_rl.sim.reach import TARGET, TOOL, ReachTask
from robot_rl.sim.recorded import step_types, steps_of, with_tool
from robot_rl.specs import Contract, require_fit
from robot_rl.storage.columns import aligned_columns
from robot_rl.storage.episode import EpisodeHeader, EpisodeReader
from robot_rl.storage.mixture import Part
from robot_rl.storage.shards import ShardedSteps, ShardWriter
from robot_rl.storage.store import Store


class Episode(NamedTuple):
    """One recorded episode: its header and its aligned columns [T + 1, ...], the tool's too."""

    header: EpisodeHeader
    columns: dict[str, np.ndarray]


class StoredEpisodes(Sequence[Episode]):
    """Episodes of a store, each read when it is asked for: one at a time is in memory."""

    def __init__(
        self, store: Store, task: ReachTask, contract: Contract, headers: Sequence[EpisodeHeader]
    ):
        self.headers = tuple(headers)
        self._store, self._task, self._contract = store, task, contract

    def __len__(self) -> int:
        return len(self.headers)

    @overload
    def __getitem__(self, index: int) -> Episode: ...

    @overload
    def __getitem__(self, index: slice) -> StoredEpisodes: ...

    def __getitem__(self, index: int | slice) -> Episode | StoredEpisodes:
        """Raises StorageError for an episode that can no longer be read."""
        header = self.headers[index]
        if isinstance(index, slice):
            return StoredEpisodes(self._store, self._task, self._contract, header)
        columns = aligned_columns(
            self._store.open(header.id), self._contract, KinematicChain.from_spec
        )
        return Episode(header, with_tool(self._task, columns))


def find_episodes(
    store: Store,
    task: ReachTask,
    contract: Contract,
    query: str | Sequence[str],
    refused: Callable[[str], None] = lambda reason: None,
) -> StoredEpisodes:
    """Return the episodes that `query` finds and that can be used, oldest first.

    Each is read once, to see that it can; at what rate and in what way it was commanded does not
    matter. One that cannot (cut before there was a step, damaged, other joints, a stream of the
    contract that was not recorded) is told to `refused` and left out.
    Raises StorageError where none is left.
    """
    headers = store.episodes(query)
    usable, reasons = [], []
    for header in headers:
        try:
            aligned_columns(store.open(header.id), contract, KinematicChain.from_spec)
            usable.append(header)
        except (StorageError, ContractMismatch) as error:
            reasons.append(str(error))
            refused(str(error))
    if not usable:
        why = f'; the first of {len(reasons)}: {reasons[0]}' if reasons else ''
        raise StorageError(
            f'{store.root}: no usable episode for the query {query!r}{why}'
            ' (robot-rl episodes ls lists what is there)'
        )
    return StoredEpisodes(store, task, contract, usable)


def judge(
    store: Store,
    task: ReachTask,
    query: str | Sequence[str] = '',
    refused: Callable[[str], None] = lambda reason: None,
) -> list[Episode]:
    """Label, by the task's predicate on recorded columns, what nobody has judged yet.

    Returns the usable episodes that `query` finds, with their labels; a person's label stays.
    `refused` hears why others cannot be used. Raises StorageError where none can.
    """
    judged = []
    for episode in find_episodes(store, task, task.contract(), query, refused):
        header = episode.header
        if header.success is None:
            header = store.label(header.id, bool(task.success(episode.columns)))
        judged.append(episode._replace(header=header))
    return judged


def write_steps(
    folder: Path,
    task: ReachTask,
    contract: Contract,
    episodes: Sequence[Episode],
    action: Literal['requested', 'applied'] = 'requested',
    hindsight_goals: int = 0,
    seed: int = 0,
    choose: Callable[[Episode], np.ndarray] | None = None,
) -> ShardedSteps:
    """Write all episodes as Steps below `folder`, a new one, an episode at a time; return them.

    They are rewarded by the task, each under `hindsight_goals` more goals. What the arm did does
    not depend on the goal that it was given, so each episode is evidence for other goals as well:
    its target is replaced by the place where its tool ended, then in turn by one where it came by
    and one where any episode's tool did, and its rewards are computed anew (hindsight experience
    replay, Andrychowicz et al. 2017, strategies 'final', 'episode' and 'random'). Spans 0, 1 + G,
    2 (1 + G), ... of what is returned are the episodes' own, with those of their G goals behind.

    `choose(episode)` says which of its T steps are taken [T]; each run of them is a span then.
    Raises StorageError where none is.
    """
    rng = np.random.default_rng(seed)
    if hindsight_goals > 2:
        reached = np.concatenate([episode.columns[TOOL] for episode in episodes])
    with ShardWriter(folder) as writer:
        for episode in episodes:
            own = episode.columns[TOOL]
            chosen = np.ones(len(own) - 1, bool) if choose is None else choose(episode)
            _append(writer, steps_of(task, episode.columns, contract, action), chosen)
            for number in range(hindsight_goals):
                place = own[-1]
                if number:
                    places = own if number % 2 else reached
                    place = places[rng.integers(len(places))]
                columns = episode.columns | {TARGET: np.broadcast_to(place, own.shape)}
                _append(writer, steps_of(task, columns, contract, action), chosen)
    if not writer.rows:
        raise StorageError(f'none of the steps of {len(episodes)} episodes is to be learned from')
    return ShardedSteps(folder)


def _append(writer: ShardWriter, steps: Mapping[str, np.ndarray], chosen: np.ndarray) -> None:
    """Write the runs of chosen steps [T], each as an episode: the row after it is its last."""
    for begin, end in runs_of(chosen):
        run = {name: values[begin : end + 1] for name, values in steps.items()}
        writer.append(run | {'step_type': step_types(end - begin)})


def runs_of(chosen: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield [begin, end) of each run of True in `chosen` [T]."""
    edges = np.flatnonzero(np.diff(chosen.astype(np.int8), prepend=0, append=0))
    yield from edges.reshape(-1, 2).tolist()


def mixed_parts(
    store: Store,
    query: str,
    mix: Mapping[str, float],
    headers: Sequence[EpisodeHeader],
    spans: np.ndarray,
) -> dict[str, Part]:
    """Return the parts of a batch: shares of those episodes that a further query finds too.

    `mix` is {query: share}; what is left of 1 is of all episodes. `spans` [E * K, 2] are the rows
    of the E episodes with `headers`, K spans each. Raises StorageError where a query finds none.
    """
    borders = spans.reshape(len(headers), -1)
    parts = {'all': Part(1 - sum(mix.values()))}
    for wanted, share in mix.items():
        ids = {header.id for header in store.episodes(f'{query} {wanted}')}
        chosen = [number for number, header in enumerate(headers) if header.id in ids]
        if not chosen:
            raise StorageError(
                f'{store.root}: none of {len(headers)} usable episodes fits {wanted!r}, which '
                f'{share:g} of each batch should come from'
            )
        parts[wanted] = Part(share, borders[chosen][:, [0, -1]])
    return parts


def write_demonstrations(
    folder: Path,
    store: Store,
    query: str,
    task: ReachTask | None,
    contract: Contract,
    action: Literal['requested', 'applied'] = 'requested',
    limit: int | None = None,
    refused: Callable[[str], None] = lambda reason: None,
) -> ShardedSteps:
    """Write the episodes that `query` finds as Steps below `folder`, a new one; return them.

    Those recorded in simulation have the rewards that they were paid; those of an arm are
    rewarded by `task`. At most `limit` are taken, oldest first. One that cannot be used (of
    another contract, without actions, of no length, with numbers that are not finite) is left out
    and told to `refused`. Raises StorageError, with the first reason, where none is left.
    """
    reasons, used = [], 0
    with ShardWriter(folder) as writer:
        for header in store.episodes(query):
            try:
                writer.append(_demonstration(store.open(header.id), task, contract, action))
            except (StorageError, ContractMismatch) as error:
                reasons.append(str(error))
                continue
            used += 1
            if used == limit:
                break
    if not used:
        why = f'; the first of {len(reasons)}: {reasons[0]}' if reasons else ''
        hints = ''.join(f'; {line}' for line in store.hints(query))
        raise StorageError(
            f'{store.root}: no usable demonstration for the query {query!r}{why}{hints}'
            ' (robot-rl episodes ls lists what is there)'
        )
    for reason in reasons:
        refused(reason)
    return ShardedSteps(folder)


def _demonstration(
    episode: EpisodeReader, task: ReachTask | None, contract: Contract, action: str
) -> dict[str, np.ndarray]:
    """Return one episode as columns of Steps [T + 1, ...], all of them finite."""
    if not episode.types() and not episode.is_steps_only:
        raise StorageError(f'{episode.path}: nothing was recorded; there are no steps')
    if is_simulated(episode):
        columns = simulated_steps(episode, contract)
    elif task is None:
        raise ContractMismatch(
            f'{episode.path}: an episode of streams, and the task to be learned has none; '
            'record demonstrations with robot-rl collect'
        )
    else:
        _require_joints(episode, contract)
        aligned = aligned_columns(episode, contract, KinematicChain.from_spec)
        columns = steps_of(task, with_tool(task, aligned), contract, action)
    for name, values in columns.items():
        if values.dtype.kind != 'f':
            continue  # pictures, which would be decoded: each value of theirs is a number
        wrong = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if wrong.any():
            raise StorageError(
                f'{episode.path}: {name.replace("/", " ")}: NaN or infinite in {wrong.sum()} of '
                f'{len(wrong)} steps'
            )
    return columns


def _require_joints(episode: EpisodeReader, contract: Contract) -> None:
    """Raise ContractMismatch where the episode's arm lacks joints that the contract names.

    Whether other streams were recorded is for storage.columns to say, which looks for them.
    """
    robot = episode.header.robot_spec
    if robot is not None:
        streams = {field.stream: () for field in contract.observation}
        streams |= {'joint_states': robot.joints, 'command': robot.joints}
        require_fit(contract, streams, str(episode.path))
