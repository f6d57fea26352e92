"""The commands of an episode as its source gave them: for those who give them again."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from robot_rl.errors import StorageError
from robot_rl.storage.columns import aligned_columns
from robot_rl.storage.episode import EpisodeReader
from robot_rl.storage.samples import joint_state, point_positions, stamp_ns


class RecordedCommands(NamedTuple):
    """C targets in the order of RobotSpec.joints; seconds since the first."""

    time: np.ndarray  # [C] of publication
    target: np.ndarray  # [C, n]
    duration: np.ndarray  # [C] in which each was to be reached [s]
    start: np.ndarray  # [n] where the arm was measured when the first came
    # How far the gripper was told to open [W] [m], and when.
    width_time: np.ndarray
    width: np.ndarray


def recorded_commands(episode: EpisodeReader) -> RecordedCommands:
    """Read what was commanded; where there are columns only, where the commands led, row by row.

    Raises StorageError where there are none, or the header does not say whose they are.
    """
    if episode.header.robot_spec is None:
        raise StorageError(f'{episode.path}: no robot_spec in the header says what its joints are')
    return _of_columns(episode) if episode.is_steps_only else _of_streams(episode)


def _of_streams(episode: EpisodeReader) -> RecordedCommands:
    robot = episode.header.robot_spec
    told, measured, gripper = _topics(episode)
    found: list[tuple[int, np.ndarray, float]] = []
    states: list[tuple[int, np.ndarray]] = []
    widths: list[tuple[int, float]] = []
    for item in episode.messages({told, measured, gripper}):
        try:
            if item.topic == gripper:
                (width,) = item.message.data
                widths.append((item.publish_time_ns, width))
            elif item.topic == told:
                target = point_positions(item.message, robot.joints)
                span = item.message.points[0].time_from_start
                found.append((item.publish_time_ns, target, span.sec + span.nanosec * 1e-9))
            elif robot.is_among(item.message.name):
                position = joint_state(item.message, robot.driver_joints)['position']
                states.append((stamp_ns(item), position))
        except ValueError as error:
            raise StorageError(f'{episode.path}: a message on {item.topic}: {error}') from None
    if len(found) < 2 or not states:
        raise StorageError(
            f'{episode.path}: {len(found)} commands on {told}, {len(states)} joint states on '
            f'{measured}; there is nothing to give again'
        )
    found.sort(key=lambda command: command[0])
    first = found[0][0]
    before = [state for state in states if state[0] <= first] or states[:1]
    start = max(before, key=lambda state: state[0])[1]
    times, targets, durations = map(np.array, zip(*found, strict=True))
    opened = np.array(widths, np.float64).reshape(-1, 2)
    opened[:, 0] = [(at - first) * 1e-9 for at, _ in widths]
    return RecordedCommands((times - first) * 1e-9, targets, durations, start, *opened.T)


def _of_columns(episode: EpisodeReader) -> RecordedCommands:
    columns, joints = aligned_columns(episode), episode.header.robot_spec.joints
    measured = columns.get('joint_states.position')
    path = columns.get('command.position', measured)
    if measured is None or measured.shape[1:] != (len(joints),) or len(path) != len(measured):
        raise StorageError(f'{episode.path}: no positions of {", ".join(joints)} in its columns')
    time = columns['time'] - columns['time'][0]
    none = np.zeros(0)
    return RecordedCommands(time[:-1], path[1:], np.diff(time), measured[0], none, none)


def _topics(episode: EpisodeReader) -> tuple[str, str, str]:
    """Return the topics of commands, joint states and the gripper, below any namespace."""
    types, source = episode.types(), episode.header.source or 'policy'
    found = [topic for topic in types if f'/{topic}'.endswith(f'/{source}/command')]
    if len(found) != 1:
        raise StorageError(
            f'{episode.path}: needs one topic {source}/command, found {found or "none"} '
            f'among {", ".join(types) or "no topics"}'
        )
    states = episode.header.robot_spec.joint_states_topic
    if not states.startswith('/'):
        states = found[0].removesuffix(f'{source}/command') + states
    if states not in types:
        raise StorageError(f'{episode.path}: no topic {states} among {", ".join(types)}')
    return found[0], states, found[0].removesuffix('command') + 'gripper'
