"""What the arm was told and where it was, from messages in any order of joints and arrival."""

from __future__ import annotations

import numpy as np
import pytest

from robot_rl.errors import StorageError
from robot_rl.storage.episode import EpisodeReader, EpisodeWriter
from robot_rl.storage.recorded_motion import recorded_motion

START_NS = 1_700_000_000_000_000_000
TOLD = [[0.5, 0.0], [0.53, -0.02], [0.56, -0.04]]


@pytest.fixture
def episode(tmp_path, header, ros, robot):
    """Return `write(kind, ...)`; the arm is told `told`, with a pause after the first one."""
    from std_msgs.msg import Float64MultiArray

    def write(
        kind,
        namespace='',
        joints=('elbow', 'rail', 'shoulder'),
        count=3,
        told=TOLD,
        epoch_ns=START_NS,
        paused_ns=0,
    ):
        topic = 'arm_controller/commands'
        controller = {'kind': kind, 'topic': topic, 'driver_timeout_s': 0.1}
        spec = robot.replace(controller=controller, tf_prefix='left_')
        names = [f'left_{joint}' for joint in joints]
        with EpisodeWriter(tmp_path, header(robot_spec=spec)) as writer:
            before = ros.joint_state(epoch_ns - 10**7, names, [7.0, 8.0, 9.0])  # led by hand
            ros.write(writer, f'{namespace}/joint_states', before, START_NS - 10**7)
            for tick in range(count):
                # Arrival is 2 ms after the sample, and the first two arrive in the wrong order.
                stamp = epoch_ns + (1 - tick if tick < 2 else tick) * 10**7
                state = ros.joint_state(stamp, names, [tick + part for part in (0.1, 9, 0.2)])
                ros.write(
                    writer,
                    f'{namespace}/joint_states',
                    state,
                    stamp + 2 * 10**6 + START_NS - epoch_ns,
                )
                finger = ros.joint_state(stamp, ['finger'], [0.02])  # of a driver of its own
                ros.write(writer, f'{namespace}/joint_states', finger, stamp)
                command = Float64MultiArray(data=told[tick])
                if kind == 'joint_trajectory':
                    command = ros.trajectory(0, ['left_shoulder', 'left_elbow'], told[tick])
                now = START_NS + tick * 10**7 + 5 * 10**6 + (paused_ns if tick else 0)
                ros.write(writer, f'{namespace}/{topic}', command, now)
            return EpisodeReader(writer.commit())

    return write


@pytest.mark.parametrize('kind', ['forward_position', 'forward_velocity', 'joint_trajectory'])
@pytest.mark.parametrize('namespace', ['', '/left'])
def test_series_are_in_the_order_of_joints_and_of_time(episode, kind, namespace):
    found = recorded_motion(episode(kind, namespace))
    np.testing.assert_allclose(found.time, [0.0, 0.01, 0.02], atol=1e-9)
    np.testing.assert_allclose(found.position, [[1.2, 1.1], [0.2, 0.1], [2.2, 2.1]])
    np.testing.assert_allclose(found.command_time, [0.005, 0.015, 0.025], atol=1e-9)
    np.testing.assert_allclose(found.command, TOLD)


def test_commands_of_the_episode_before_are_left_out(episode):
    """The guard held where the former episode ended until the arm stood at the next start."""
    found = recorded_motion(episode('forward_position', told=[[2.0, 0.0], *TOLD[1:]]))
    np.testing.assert_allclose(found.command, TOLD[1:])
    # From the last sample before 15 ms on.
    np.testing.assert_allclose(found.time, [0.0, 0.01], atol=1e-9)
    np.testing.assert_allclose(found.command_time, [0.005, 0.015], atol=1e-9)
    np.testing.assert_allclose(found.position, [[0.2, 0.1], [2.2, 2.1]])


def test_commands_of_the_episode_before_are_left_out_after_a_pause(episode):
    """A guard on a busy machine was silent for longer than the arm would have taken there."""
    told = [[2.0, 0.0], *TOLD[1:]]
    found = recorded_motion(episode('forward_position', told=told, paused_ns=5 * 10**9))
    np.testing.assert_allclose(found.command, TOLD[1:])


def test_what_is_missing_is_one_clear_line(episode, tmp_path, header):
    with pytest.raises(StorageError, match=r"joint_states: \['left_shoulder'\] missing"):
        recorded_motion(episode('forward_position', joints=('elbow', 'rail', 'wrist')))
    with pytest.raises(StorageError, match='commands holds 1 messages; needed are several'):
        recorded_motion(episode('forward_position', count=1))
    with pytest.raises(StorageError, match=r'joint_states is stamped .* s from .*another clock'):
        recorded_motion(episode('forward_position', epoch_ns=10**9))
    with EpisodeWriter(tmp_path, header(id='other', robot_spec=None)) as writer:
        reader = EpisodeReader(writer.commit())
    with pytest.raises(StorageError, match='no robot_spec'):
        recorded_motion(reader)
