"""What an arm was told and where it was, each at its own times: for those who compare the two."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from robot_rl.errors import StorageError
from robot_rl.specs import RobotSpec
from robot_rl.storage.episode import EpisodeReader
from robot_rl.storage.samples import joint_state, point_positions, stamp_ns

# Commands and joint states of one clock begin no farther apart [s].
SAME_CLOCK_S = 3600.0


class RecordedMotion(NamedTuple):
    """An episode's commands to the arm, and its joint states; seconds since the first of these.

    That is the last one before the first command: how the arm came to where it began is not said.
    Commands before one that the guard could not have gone on to are those of another beginning,
    as that of the episode before, and are left out.
    """

    command_time: np.ndarray  # [C] of publication
    command: np.ndarray  # [C, n] as RobotSpec.controller takes them
    time: np.ndarray  # [T] of measurement
    position: np.ndarray  # [T, n]


def recorded_motion(episode: EpisodeReader) -> RecordedMotion:
    """Read the commands on the topic of the arm's controller, and the measured positions.

    Raises StorageError where there are none, or the header does not say whose they are.
    """
    robot = episode.header.robot_spec
    if robot is None:
        raise StorageError(f'{episode.path}: no robot_spec in the header')
    to_arm, from_arm = _topics(episode)
    commands: list[tuple[int, np.ndarray]] = []
    states: list[tuple[int, np.ndarray]] = []
    for item in episode.messages({to_arm, from_arm}):
        try:
            if item.topic == from_arm:
                if not robot.is_among(item.message.name):  # a gripper's own driver
                    continue
                position = joint_state(item.message, robot.driver_joints)['position']
                states.append((stamp_ns(item), position))
            elif robot.controller.kind == 'joint_trajectory':
                told = point_positions(item.message, robot.driver_joints)
                commands.append((item.publish_time_ns, told))
            else:
                commands.append((item.publish_time_ns, np.array(item.message.data, float)))
        except ValueError as error:
            raise StorageError(f'{episode.path}: a message on {item.topic}: {error}') from None
    for topic, found in ((to_arm, commands), (from_arm, states)):
        if len(found) < 2 or {len(values) for _, values in found} != {len(robot.joints)}:
            raise StorageError(
                f'{episode.path}: {topic} holds {len(found)} messages; needed are several, with '
                f'{len(robot.joints)} joints each'
            )
    apart_s = abs(commands[0][0] - states[0][0]) * 1e-9
    if apart_s > SAME_CLOCK_S:
        raise StorageError(
            f'{episode.path}: {from_arm} is stamped {apart_s:.0f} s from {to_arm}: by another '
            'clock (/clock?), which tells no delays'
        )
    commands = commands[_beginning(commands, robot) :]
    first = commands[0][0]
    start = max((stamp for stamp, _ in states if stamp <= first), default=states[0][0])
    states = [state for state in states if state[0] >= start]
    return RecordedMotion(*_series(commands, start), *_series(states, start))


def _topics(episode: EpisodeReader) -> tuple[str, str]:
    """Return the topics of commands and joint states, below any namespace."""
    robot, types = episode.header.robot_spec, episode.types()
    told = f'/{robot.controller.topic.lstrip("/")}'
    found = [topic for topic in types if topic.endswith(told)]
    if len(found) != 1:
        raise StorageError(
            f'{episode.path}: needs one topic {robot.controller.topic}, found {found or "none"} '
            f'among {", ".join(types) or "no topics"}'
        )
    states = robot.joint_states_topic
    if not states.startswith('/'):
        states = f'{found[0].removesuffix(told)}/{states}'
    if states not in types:
        raise StorageError(f'{episode.path}: no topic {states} among {", ".join(types)}')
    return found[0], states


def _beginning(commands: list[tuple[int, np.ndarray]], robot: RobotSpec) -> int:
    """Return the place of the first command that none before it leads to."""
    if robot.controller.kind == 'forward_velocity':
        return 0
    times, positions = _series(commands, 0)
    # However long the guard said nothing, one step of it makes up for two periods at most; a
    # publication may be as late again.
    two_s = 2 * robot.controller.period_s
    seconds = np.minimum(np.diff(times)[:, None], two_s) + two_s
    jumps = (np.abs(np.diff(positions, axis=0)) > robot.max_velocity * seconds).any(axis=1)
    return int(np.flatnonzero(jumps)[-1]) + 1 if jumps.any() else 0


def _series(samples: list[tuple[int, np.ndarray]], start_ns: int) -> tuple[np.ndarray, np.ndarray]:
    """Return times [M] [s] since `start_ns` and values [M, n], in the order of the times."""
    times, values = zip(*sorted(samples, key=lambda sample: sample[0]), strict=True)
    return (np.array(times) - start_ns) * 1e-9, np.array(values)
