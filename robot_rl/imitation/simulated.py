"""Episodes of simulated environments in the store: what a policy saw, did and was paid.

They need no ROS and no arm: dm_control's and Gymnasium's tasks, whose rewards cannot be computed
from observations, are recorded like this. Their columns are the primary data (see
storage.episode): a field's newest step under its source (env.<key>, <camera>.image), the actions,
and `discount` [T], which followed them. What the environment paid is a reward sequence.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from robot_rl.control.observation import with_history
from robot_rl.errors import ContractMismatch, StorageError
from robot_rl.images import lossless
from robot_rl.sim.environment import Environment, StepType
from robot_rl.sim.recorded import step_types, with_last_row
from robot_rl.specs import Contract, ObservationField
from robot_rl.storage import rewards
from robot_rl.storage.column_file import Column
from robot_rl.storage.columns import aligned_columns
from robot_rl.storage.episode import EpisodeHeader, EpisodeReader
from robot_rl.storage.foreign import ForeignEpisode, grid_ns
from robot_rl.storage.pictures import Pictures
from robot_rl.storage.rewards import SIMULATED
from robot_rl.storage.steps import ACTION, DISCOUNT, OBSERVATION, REWARD, STEP_TYPE
from robot_rl.storage.store import Store
from robot_rl.storage.transfer import add_steps

# Where the rows of older episodes are: messages on env/observation/<field>, env/action, ...
_TOPICS = '/env/'
# How many differences between two contracts one line tells.
_TOLD = 3


def record_episodes(
    store: Store,
    environment: Environment,
    policy: Any,
    seeds: Sequence[int],
    about: Mapping[str, Any],
    judge: Callable[[Mapping[str, np.ndarray]], bool] | None = None,
) -> list[EpisodeHeader]:
    """Run one episode of `policy` from each of `seeds`, one at a time, into the store.

    `environment` is a single one. `about` are the task and further fields of EpisodeHeader:
    policy, tags. `judge(columns)` tells success from the environment's own columns [T + 1, ...],
    where it has some. Raises StorageError where they cannot be written.
    """
    shared = {'source': 'policy', 'world': 'sim', 'contract': environment.contract, **about}
    episodes = (
        functools.partial(_episode, environment, policy, shared | {'seed': seed}, judge)
        for seed in seeds
    )
    return add_steps(store, episodes)


def is_simulated(episode: EpisodeReader) -> bool:
    """Tell whether an episode is of a task without an arm: its actions command nothing known."""
    contract = episode.header.contract
    return contract is not None and all(field.kind == 'generic' for field in contract.action)


def simulated_steps(episode: EpisodeReader, contract: Contract) -> dict[str, np.ndarray]:
    """Return an episode as columns of storage.Steps [T + 1, ...], with the contract's fields.

    Raises ContractMismatch, which names the field, where it was recorded under a contract that
    does not have it, and StorageError where something is missing.
    """
    problems = _differences(contract, episode.header.contract)
    if problems:
        more = f'; and {len(problems) - _TOLD} more' if len(problems) > _TOLD else ''
        told = '; '.join(problems[:_TOLD])
        raise ContractMismatch(f'{episode.path}: the contract does not fit: {told}{more}')
    rows = (_of_columns if episode.is_steps_only else _of_messages)(episode, contract)
    steps = len(rows[ACTION])
    if not steps:
        raise StorageError(f'{episode.path}: no actions; there are no steps')
    for name, values in rows.items():
        expected = steps + name.startswith(OBSERVATION)
        if len(values) != expected:
            raise StorageError(
                f'{episode.path}: {len(values)} rows of {name}, expected {expected}'
            )
    followed = {name: with_last_row(rows[name]) for name in (ACTION, REWARD, DISCOUNT)}
    return rows | followed | {STEP_TYPE: step_types(steps)}


def _episode(
    environment: Environment, policy: Any, about: Mapping[str, Any], judge: Any
) -> ForeignEpisode:
    """Run one episode."""
    header = EpisodeHeader(**about)
    contract = environment.contract
    timestep, state = environment.reset([header.seed]), policy.initial_state(1)
    shown, actions = [timestep], []
    seen = [environment.columns] if judge else []
    while timestep.step_type[0] != StepType.LAST:
        action, state = policy.select(timestep.observation, state)
        timestep = environment.step(action)
        shown.append(timestep)
        actions.append(action[0])
        if judge:
            seen.append(environment.columns)
    requested, success = np.stack(actions), None
    if judge:
        success = bool(judge({name: np.stack([row[name][0] for row in seen]) for name in seen[0]}))
    times_ns = grid_ns(header.start_time_ns, len(shown), contract.rate_hz)
    header = header.replace(
        end_time_ns=int(times_ns[-1]),
        result='truncated' if timestep.discount[0] else 'ended',
        success=success,
    )
    columns = {
        'time': times_ns * 1e-9,
        **{field.source: _column(field, shown) for field in contract.observation},
        'action/requested': requested,
        'action/applied': requested.clip(contract.action_lower, contract.action_upper),
        DISCOUNT: np.stack([following.discount[0] for following in shown[1:]]),
    }
    paid = [following.reward[0] for following in shown[1:]]
    whose = {'task': header.task, 'kind': SIMULATED, 'author': header.task}
    return ForeignEpisode(header, columns, [rewards.prepare(paid, whose)])


def _column(field: ObservationField, shown: Sequence[Any]) -> Column:
    """Return the newest step of a field at each timestep, without its history."""
    values = np.stack([timestep.observation[field.name][0] for timestep in shown])
    if field.history > 1:
        values = values[:, -1]
    if field.is_picture and field.shape[-1] == 3:
        files = [lossless(picture) for picture in values]
        return Pictures.of(files, np.arange(len(files)), field.shape[:2])
    return values


def _of_columns(episode: EpisodeReader, contract: Contract) -> dict[str, Any]:
    """Return observations [T + 1, ...], actions, rewards and discounts [T, ...]."""
    columns = aligned_columns(episode)
    recorded = {field.name: field.source for field in episode.header.contract.observation}
    sources = {name: recorded[name] for name in contract.observation_shapes}
    paid = [info.id for info in episode.rewards() if info.kind == SIMULATED]
    missing = [name for name in (*sources.values(), DISCOUNT) if name not in columns]
    if missing or not paid:
        told = f'column {missing[0]}' if missing else f'reward of kind {SIMULATED!r}'
        raise StorageError(f'{episode.path}: no {told}; no environment gave these steps')
    observed = with_history(contract, {name: columns[s] for name, s in sources.items()})
    return {
        **{OBSERVATION + name: values for name, values in observed.items()},
        ACTION: columns['action/requested'],
        REWARD: episode.reward(paid[0]),
        DISCOUNT: columns[DISCOUNT],
    }


def _of_messages(episode: EpisodeReader, contract: Contract) -> dict[str, Any]:
    """Return what _of_columns does of an older episode, a message a row."""
    shapes = {OBSERVATION + name: shape for name, shape in contract.observation_shapes.items()}
    shapes |= {ACTION: (contract.action_size,), REWARD: (), DISCOUNT: ()}
    rows: dict[str, list[np.ndarray]] = {name: [] for name in shapes}
    for item in episode.messages([_TOPICS + name for name in shapes]):
        rows[item.topic.removeprefix(_TOPICS)].append(np.asarray(item.message.data))
    return {
        name: np.array(rows[name], np.float32).reshape(len(rows[name]), *shape)
        for name, shape in shapes.items()
    }


def _differences(contract: Contract, recorded: Contract | None) -> list[str]:
    """Say what keeps an episode recorded under a contract from serving `contract`."""
    if recorded is None:
        return ['the episode does not say its own']
    problems, shapes = [], recorded.observation_shapes
    for name, shape in contract.observation_shapes.items():
        if name not in shapes:
            problems.append(f'observation {name}: not among {", ".join(shapes)}')
        elif shapes[name] != shape:
            problems.append(
                f'observation {name}: recorded in shape {list(shapes[name])}, '
                f'read in {list(shape)}'
            )
    found, wanted = (
        [f'{field.kind} {name}' for field in side.action for name in field.names]
        for side in (recorded, contract)
    )
    if found != wanted:
        problems.append(f'action: recorded {", ".join(found)}, commanded {", ".join(wanted)}')
    if recorded.rate_hz != contract.rate_hz:
        problems.append(f'rate_hz: recorded {recorded.rate_hz:g}, decided {contract.rate_hz:g}')
    return problems
