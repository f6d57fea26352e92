"""Aligned columns: what a policy saw and did, tick by tick, from the raw streams of an episode.

The ticks are the messages on policy/action; their header.stamp is that of the joint_states
sample which the action was computed from. Each row holds, of every stream, the latest sample
that was taken by then. Derived data: cached as steps.npz and rebuilt whenever it does not match.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import zipfile
from collections import defaultdict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from robot_rl.errors import ContractMismatch, StorageError
from robot_rl.specs import Contract
from robot_rl.storage.episode import EpisodeReader
from robot_rl.storage.streams import StreamMessage

CACHE_FILE = 'steps.npz'
_CACHE_KEY = 'key'
_CACHE_VERSION = 1

_ACTION, _COMMAND, _APPLIED = 'policy/action', 'policy/command', 'command_guard/applied'
_JOINT_STATES = 'joint_states'
_POSE = 'geometry_msgs/msg/PoseStamped'

Columns = dict[str, np.ndarray]


def aligned_columns(episode: EpisodeReader, contract: Contract | None = None) -> Columns:
    """Return an episode's columns at its T control ticks, float64, in the order of time.

    'time' [T + 1] seconds; '<stream>.<quantity>' [T + 1, ...]: joint_states.position and
    .velocity [n] in the order of the episode's RobotSpec.joints (velocities filled as the
    contract says, NaN where it says nothing), command.position [n], and position [3] and
    orientation [4] (wxyz) of every pose stream (NaN before its first sample); action/requested
    and action/applied [T, A] in contract units and order. Row T is the state that the last
    action led to.

    command.position of row k is the policy's target of tick k - 1, and of row 0 the measured
    position; a lost message leaves the target before it. action/applied is what the guard let
    through: the last applied position that carries tick k's stamp, less that of tick k - 1
    (row 0's command before the first) where the action is a joint_delta.

    `contract` is the episode's own where none is given. Raises StorageError where a topic or a
    sample is missing and ContractMismatch for an action kind other than joint_position and
    joint_delta.
    """
    contract = contract or episode.header.contract
    if contract is None or episode.header.robot_spec is None:
        raise StorageError(
            f'{episode.path}: no columns without a contract and a robot_spec in the header'
        )
    key = _cache_key(episode, contract)
    cached = _load(episode.path / CACHE_FILE, key)
    if cached is None:
        cached = _align(_read(episode, contract), contract, episode)
        _save(episode.path / CACHE_FILE, key, cached)
    return cached


class _Series(NamedTuple):
    """Samples of one stream in the order of their stamps [M]."""

    stamps_ns: np.ndarray
    values: dict[str, np.ndarray]  # {quantity: [M, ...]}


class _Recording(NamedTuple):
    """What an episode's messages say, not aligned yet."""

    ticks_ns: list[int]
    requested: list[np.ndarray]  # per tick [A]
    commands: list[tuple[int, np.ndarray]]  # (stamp, target [n])
    applied: dict[int, np.ndarray]  # {stamp: last applied position [n]}
    streams: dict[str, _Series]


def _align(recording: _Recording, contract: Contract, episode: EpisodeReader) -> Columns:
    """Put the streams, the commands and the actions into rows."""
    joints = episode.header.robot_spec.joints
    times_ns = _row_times(recording, contract, episode.path)
    ticks_ns = recording.ticks_ns[: len(times_ns) - 1]
    columns = {'time': times_ns * 1e-9}
    for stream, series in recording.streams.items():
        rows = np.searchsorted(series.stamps_ns, times_ns, side='right') - 1
        for quantity, values in series.values.items():
            known = rows.reshape(-1, *[1] * (values.ndim - 1)) >= 0
            columns[f'{stream}.{quantity}'] = np.where(known, values[rows], np.nan)
    measured = columns['joint_states.position']
    columns['command.position'] = _after_each_tick(
        measured[0], _paired(ticks_ns, recording.commands)
    )
    applied = _after_each_tick(measured[0], [recording.applied.get(tick) for tick in ticks_ns])
    columns['action/requested'] = np.array(recording.requested[: len(ticks_ns)])
    columns['action/applied'] = _as_action(contract, joints, applied)
    _require_columns(columns, contract, episode.path)
    return columns


def _row_times(recording: _Recording, contract: Contract, path: Path) -> np.ndarray:
    """Return the times [T + 1] of the rows: the ticks, and the arrival of the last action.

    That is the joint_states sample nearest to one period later. Where the recording ended before
    it, the last tick is the last row, and its action (of unknown effect) is left out.
    """
    ticks, stamps = recording.ticks_ns, recording.streams[_JOINT_STATES].stamps_ns
    period_ns = contract.period_s * 1e9
    arrival = ticks[-1] + period_ns
    nearest = stamps[np.abs(stamps - arrival).argmin()]
    if abs(nearest - arrival) <= period_ns / 2:
        ticks = [*ticks, nearest]
    if len(ticks) < 2:
        raise StorageError(f'{path}: no joint_states after the only action; there are no steps')
    return np.array(ticks, dtype=np.int64)


def _paired(
    ticks_ns: Sequence[int], commands: Sequence[tuple[int, np.ndarray]]
) -> list[np.ndarray | None]:
    """Return each tick's target, matched by stamp (by order where ticks share one), or None."""
    waiting: dict[int, deque[np.ndarray]] = defaultdict(deque)
    for stamp, target in commands:
        waiting[stamp].append(target)
    return [waiting[tick].popleft() if waiting[tick] else None for tick in ticks_ns]


def _after_each_tick(start: np.ndarray, positions: Sequence[np.ndarray | None]) -> np.ndarray:
    """Return [T + 1, n]: `start`, then the position after each tick; None keeps the last one."""
    rows = [start]
    for position in positions:
        rows.append(rows[-1] if position is None else position)
    return np.array(rows)


def _as_action(contract: Contract, joints: Sequence[str], positions: np.ndarray) -> np.ndarray:
    """Return the actions [T, A] that lead along `positions` [T + 1, n]."""
    parts = []
    for field in contract.action:
        moved = positions[:, [joints.index(name) for name in field.names]]
        parts.append(np.diff(moved, axis=0) if field.kind == 'joint_delta' else moved[1:])
    return np.concatenate(parts, axis=1)


def _require_columns(columns: Columns, contract: Contract, path: Path) -> None:
    """Raise StorageError where the contract reads a stream that is not there from row 0 on."""
    for field in contract.observation:
        if field.stream == 'tool':
            continue  # forward kinematics of the joints: computed by whoever needs it
        if field.recorded not in columns:
            streams = sorted(name for name in columns if '.' in name)
            raise StorageError(
                f'{path}: nothing recorded for {field.recorded!r}, which the contract reads '
                f'(recorded: {", ".join(streams)})'
            )
        if not np.isfinite(columns[field.recorded]).all():
            raise StorageError(
                f'{path}: {field.recorded!r} has no value at some of the ticks '
                '(no sample before the first one, or a velocity that no fill rule replaces)'
            )


def _read(episode: EpisodeReader, contract: Contract) -> _Recording:
    """Read the messages that columns are made of."""
    for field in contract.action:
        if field.kind not in ('joint_position', 'joint_delta'):
            raise ContractMismatch(
                f'{episode.path}: action {field.name} is a {field.kind}; columns can be made of '
                'joint_position and joint_delta'
            )
    robot, names = episode.header.robot_spec, _stream_names(episode)
    recording = _Recording([], [], [], {}, {})
    samples: dict[str, list[tuple[int, dict[str, np.ndarray]]]] = defaultdict(list)
    others: Sequence[str] = ()  # joints of another driver, on the topic of the arm's
    for item in episode.messages(names):
        name, stamp = names[item.topic], stamp_ns(item)
        try:
            if name == _ACTION:
                recording.requested.append(point_positions(item.message, contract.action_names))
                recording.ticks_ns.append(stamp)
            elif name == _COMMAND:
                recording.commands.append((stamp, point_positions(item.message, robot.joints)))
            elif name == _APPLIED:
                recording.applied[stamp] = point_positions(item.message, robot.joints)
            elif name == _JOINT_STATES:
                if robot.is_among(item.message.name):
                    joints = joint_state(item.message, robot.driver_joints)
                    samples[name].append((stamp, joints))
                else:  # a gripper's own driver, say
                    others = item.message.name
            else:
                samples[name].append((stamp, _pose(item.message.pose)))
        except ValueError as error:
            raise StorageError(f'{episode.path}: a message on {item.topic}: {error}') from None
    for topic, found in ((_ACTION, recording.ticks_ns), (_JOINT_STATES, samples[_JOINT_STATES])):
        if not found:
            passed_over = f', only of {others}' if others and topic == _JOINT_STATES else ''
            raise StorageError(
                f'{episode.path}: no message on {topic}{passed_over}; there are no steps'
            )
    recording.streams.update({name: _series(part) for name, part in samples.items()})
    _fill_velocities(recording.streams[_JOINT_STATES], contract)
    return recording


def _stream_names(episode: EpisodeReader) -> dict[str, str]:
    """Return {topic: stream} of what columns are made of, topics below any namespace.

    Raises StorageError where a topic that no columns can be made without is missing.
    """
    types = episode.types()
    actions = [topic for topic in types if f'/{topic}'.endswith(f'/{_ACTION}')]
    if len(actions) != 1:
        raise StorageError(
            f'{episode.path}: needs one topic {_ACTION}, found {actions or "none"} '
            f'among {", ".join(types) or "no topics"}'
        )
    namespace = actions[0].removesuffix(_ACTION)
    states = episode.header.robot_spec.joint_states_topic
    names = {namespace + name: name for name in (_ACTION, _COMMAND, _APPLIED)}
    names[states if states.startswith('/') else namespace + states] = _JOINT_STATES
    for topic in names.keys() - types.keys():
        raise StorageError(f'{episode.path}: no topic {topic} among {", ".join(types)}')
    for topic, kind in types.items():
        if kind == _POSE and topic.startswith(namespace):
            names[topic] = topic.removeprefix(namespace).lstrip('/').replace('/', '_')
    return names


def stamp_ns(item: StreamMessage) -> int:
    """Return the time of a message's sample; that of its publication where it has none."""
    stamp = item.message.header.stamp
    return stamp.sec * 1_000_000_000 + stamp.nanosec or item.publish_time_ns


def point_positions(message: Any, wanted: Sequence[str]) -> np.ndarray:
    """Return the positions of a JointTrajectory's one point in the order `wanted`."""
    if len(message.points) != 1:
        raise ValueError(f'{len(message.points)} points, expected one')
    return _by_name(message.joint_names, message.points[0].positions, wanted)


def joint_state(message: Any, joints: Sequence[str]) -> dict[str, np.ndarray]:
    """Return position and velocity [n] of a JointState in the order `joints`."""
    velocity = message.velocity if len(message.velocity) else [np.nan] * len(message.name)
    return {
        'position': _by_name(message.name, message.position, joints),
        'velocity': _by_name(message.name, velocity, joints),
    }


def _pose(pose: Any) -> dict[str, np.ndarray]:
    place, turn = pose.position, pose.orientation
    return {
        'position': np.array([place.x, place.y, place.z]),
        'orientation': np.array([turn.w, turn.x, turn.y, turn.z]),
    }


def _by_name(names: Sequence[str], values: Sequence[float], wanted: Sequence[str]) -> np.ndarray:
    """Return the values of the names `wanted`. Raises ValueError where they do not fit."""
    if len(names) != len(values):
        raise ValueError(f'{len(values)} values for {len(names)} names')
    found = dict(zip(names, values, strict=True))
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(f'{missing} missing among the names {list(names)}')
    return np.array([found[name] for name in wanted], dtype=np.float64)


def _series(samples: list[tuple[int, dict[str, np.ndarray]]]) -> _Series:
    stamps = np.array([stamp for stamp, _ in samples], dtype=np.int64)
    order = np.argsort(stamps, kind='stable')
    values = {
        quantity: np.array([sample[quantity] for _, sample in samples])[order]
        for quantity in samples[0][1]
    }
    return _Series(stamps[order], values)


def _fill_velocities(series: _Series, contract: Contract) -> None:
    """Replace velocities that the driver left out, as control.observation does beside the arm."""
    rules = {f.fill for f in contract.observation if f.source == 'joint_states.velocity'}
    velocity, absent = series.values['velocity'], ~np.isfinite(series.values['velocity'])
    if 'zero' in rules:
        velocity[absent] = 0.0
    elif 'difference' in rules:
        elapsed_s = np.diff(series.stamps_ns)[:, None] * 1e-9
        change = np.diff(series.values['position'], axis=0)
        velocity[0, absent[0]] = 0.0
        for row in np.flatnonzero(absent.any(axis=1)):
            if row:
                moving = elapsed_s[row - 1] > 0  # a sample sent twice keeps its velocity
                stand_in = change[row - 1] / elapsed_s[row - 1] if moving else velocity[row - 1]
                velocity[row] = np.where(absent[row], stand_in, velocity[row])


def _cache_key(episode: EpisodeReader, contract: Contract) -> str:
    try:
        size = episode.streams_path.stat().st_size
    except OSError as error:
        raise StorageError(f'{episode.streams_path}: cannot be read ({error.strerror})') from None
    joints = episode.header.robot_spec.joints
    text = f'{_CACHE_VERSION} {size} {joints} {contract.to_json()}'
    return hashlib.sha256(text.encode()).hexdigest()


def _load(path: Path, key: str) -> Columns | None:
    """Return the cached columns, or None where there are none for this key."""
    try:
        with np.load(path) as stored:
            if str(stored[_CACHE_KEY]) == key:
                return {name: stored[name] for name in stored.files if name != _CACHE_KEY}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    return None


def _save(path: Path, key: str, columns: Columns) -> None:
    """Keep the columns for the next time; a store that cannot be written serves without."""
    new = path.with_suffix(f'.{os.getpid()}.npz')
    with contextlib.suppress(OSError):
        np.savez(new, **{_CACHE_KEY: np.array(key)}, **columns)
        new.replace(path)
