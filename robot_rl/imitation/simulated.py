"""Episodes of simulated environments in the store: what a policy saw, did and was paid.

They need no ROS and no arm: dm_control's and Gymnasium's tasks, whose rewards cannot be computed
from observations, are recorded like this. A row of sim.environment's semantics is one message a
topic: env/observation/<field>, env/action, env/reward and env/discount, each a Float64MultiArray,
or a UInt8MultiArray where it is a picture.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from robot_rl.errors import ContractMismatch, StorageError
from robot_rl.sim.environment import Environment, StepType
from robot_rl.specs import Contract
from robot_rl.storage.episode import EpisodeHeader, EpisodeReader, EpisodeWriter
from robot_rl.storage.steps import ACTION, DISCOUNT, OBSERVATION, REWARD, STEP_TYPE
from robot_rl.storage.store import Store

_PREFIX = '/env/'
_TYPE, _OF_BYTES = 'std_msgs/msg/Float64MultiArray', 'std_msgs/msg/UInt8MultiArray'
_SEPARATOR = '=' * 80
# How many differences between two contracts one line tells.
_TOLD = 3
_DEFINITION = f"""\
MultiArrayLayout layout
float64[] data
{_SEPARATOR}
MSG: std_msgs/MultiArrayLayout
MultiArrayDimension[] dim
uint32 data_offset
{_SEPARATOR}
MSG: std_msgs/MultiArrayDimension
string label
uint32 size
uint32 stride
"""


def record_episodes(
    store: Store,
    environment: Environment,
    policy: Any,
    seeds: Sequence[int],
    about: Mapping[str, Any] = {},
    judge: Callable[[Mapping[str, np.ndarray]], bool] | None = None,
) -> list[EpisodeHeader]:
    """Run one episode of `policy` from each of `seeds`, one at a time, into the store.

    `environment` is a single one. `about` are further fields of EpisodeHeader: task, policy,
    tags. `judge(columns)` tells success from an episode's columns [T + 1, ...], where the task
    has some.
    """
    headers = []
    for seed in seeds:
        header = EpisodeHeader(
            source='policy', seed=seed, contract=environment.contract, world='sim', **about
        )
        with EpisodeWriter(store.root, header) as writer:
            success = _run(writer, environment, policy, seed, judge)
            writer.commit(result='truncated' if success is None else 'ended', success=success)
        headers.append(writer.header)
    return headers


def is_simulated(episode: EpisodeReader) -> bool:
    """Tell whether an episode was recorded here."""
    return any(topic.startswith(_PREFIX) for topic in episode.types())


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
    shapes = {OBSERVATION + name: shape for name, shape in contract.observation_shapes.items()}
    shapes |= {ACTION: (contract.action_size,), REWARD: (), DISCOUNT: ()}
    kinds = {OBSERVATION + field.name: field.dtype for field in contract.observation}
    rows: dict[str, list[np.ndarray]] = {name: [] for name in shapes}
    for item in episode.messages([_PREFIX + name for name in shapes]):
        name, data = item.topic.removeprefix(_PREFIX), item.message.data
        of_bytes = isinstance(data, bytes | bytearray)
        rows[name].append(np.frombuffer(data, np.uint8) if of_bytes else np.asarray(data))
    steps = len(rows[ACTION])
    if not steps:
        raise StorageError(f'{episode.path}: no actions; there are no steps')
    columns = {}
    for name, shape in shapes.items():
        expected = steps + name.startswith(OBSERVATION)
        if len(rows[name]) != expected:
            raise StorageError(
                f'{episode.path}: {len(rows[name])} rows of {name}, expected {expected}'
            )
        last = [] if name.startswith(OBSERVATION) else [np.zeros_like(rows[name][0])]
        kind = kinds.get(name, 'float32')
        columns[name] = np.array(rows[name] + last, kind).reshape(steps + 1, *shape)
    columns[STEP_TYPE] = np.full(steps + 1, StepType.MID, np.int8)
    columns[STEP_TYPE][[0, -1]] = StepType.FIRST, StepType.LAST
    return columns


def _run(
    writer: EpisodeWriter, environment: Environment, policy: Any, seed: int, judge: Any
) -> bool | None:
    """Write one episode; return whether it succeeded, where somebody can tell."""
    start, period_ns = writer.header.start_time_ns, round(1e9 / environment.contract.rate_hz)
    timestep, state = environment.reset([seed]), policy.initial_state(1)
    seen = [environment.columns] if judge else []
    step = 0
    while True:
        now = {OBSERVATION + name: value[0] for name, value in timestep.observation.items()}
        if timestep.step_type[0] == StepType.LAST:
            _write(writer, now, start + step * period_ns)
            break
        action, state = policy.select(timestep.observation, state)
        timestep = environment.step(action)
        followed = {ACTION: action[0], REWARD: timestep.reward, DISCOUNT: timestep.discount}
        _write(writer, now | followed, start + step * period_ns)
        step += 1
        if judge:
            seen.append(environment.columns)
    if judge is None:
        return None
    return bool(judge({name: np.stack([row[name][0] for row in seen]) for name in seen[0]}))


def _write(writer: EpisodeWriter, row: Mapping[str, np.ndarray], time_ns: int) -> None:
    for name, values in row.items():
        of_bytes = np.asarray(values).dtype == np.uint8
        kind, definition = _TYPE, _DEFINITION
        if of_bytes:
            kind, definition = _OF_BYTES, _DEFINITION.replace('float64', 'uint8')
        writer.write(_PREFIX + name, kind, definition, _encoded(values, of_bytes), time_ns)


def _encoded(values: np.ndarray, of_bytes: bool = False) -> bytes:
    """Return numbers as a Float64MultiArray, or a UInt8MultiArray, in little-endian CDR.

    Without a layout.
    """
    flat = np.ravel(values).astype('u1' if of_bytes else '<f8')
    # Encapsulation; an empty layout (no dimensions, offset 0); a length; padding to 8 bytes,
    # which bytes need not have.
    head = struct.pack('<BBHIII', 0, 1, 0, 0, 0, len(flat))
    return head + (b'' if of_bytes else bytes(4)) + flat.tobytes()


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
