"""The commands of an episode, as its source gave them."""

import numpy as np
import pytest

from robot_rl.errors import StorageError
from robot_rl.storage.commands import recorded_commands
from robot_rl.storage.episode import EpisodeReader, EpisodeWriter
from robot_rl.storage.foreign import ForeignEpisode, write

START_NS = 1_700_000_000_000_000_000
MS = 10**6


@pytest.fixture
def recorded(tmp_path, ros, header, robot):
    """Return a function that records commands at uneven times, and joint states every 10 ms."""

    def record(namespace='', names=None, commands=4, **fields):
        with EpisodeWriter(tmp_path, header(id='e', **fields)) as writer:
            for i in range(20):
                now = START_NS + i * 10 * MS
                state = ros.joint_state(now, robot.joints, [i / 100, -i / 100])
                ros.write(writer, f'{namespace}/joint_states', state, now)
                if i % 4 == 2 and i // 4 < commands:
                    # By name: they come in another order than the robot's.
                    command = ros.trajectory(now, names or robot.joints[::-1], [i, i + 0.5])
                    command.points[0].time_from_start.nanosec = 50 * MS
                    source = fields.get('source', 'policy')
                    ros.write(writer, f'{namespace}/{source}/command', command, now + i * MS)
                    if fields.get('source') == 'teleop':
                        ros.write(
                            writer, f'{namespace}/teleop/gripper', ros.numbers(i / 1000), now
                        )
            return EpisodeReader(writer.commit())

    return record


@pytest.mark.parametrize(('namespace', 'source'), [('', 'policy'), ('/arm1', 'teleop')])
def test_they_have_their_times_targets_and_durations(recorded, namespace, source):
    found = recorded_commands(recorded(namespace, source=source))
    np.testing.assert_allclose(found.time, [0, 0.044, 0.088, 0.132], atol=1e-9)
    np.testing.assert_array_equal(found.target, [[2.5, 2], [6.5, 6], [10.5, 10], [14.5, 14]])
    np.testing.assert_allclose(found.duration, 0.05)
    np.testing.assert_allclose(found.start, [0.02, -0.02])  # the newest by the first command
    # The gripper was told a little before the arm.
    gripper = [-0.002, 0.038, 0.078, 0.118] if source == 'teleop' else []
    np.testing.assert_allclose(found.width_time, gripper, atol=1e-9)
    np.testing.assert_allclose(found.width, [0.002, 0.006, 0.01, 0.014][: len(gripper)])


def test_columns_lead_from_row_to_row(tmp_path, header, robot):
    path = np.arange(8.0).reshape(4, 2)
    columns = {
        'time': 100 + np.array([0.0, 0.1, 0.25, 0.3]),
        'joint_states.position': path,
        'action/requested': np.diff(path, axis=0),
        'action/applied': np.diff(path, axis=0),
    }
    found = recorded_commands(
        EpisodeReader(write(tmp_path, ForeignEpisode(header(id='e'), columns)))
    )
    np.testing.assert_allclose(found.time, [0, 0.1, 0.25])
    np.testing.assert_allclose(found.duration, [0.1, 0.15, 0.05])
    np.testing.assert_array_equal(found.target, path[1:])
    np.testing.assert_array_equal(found.start, path[0])


def test_what_cannot_be_given_again_is_told(recorded, tmp_path, header):
    other = recorded(names=('shoulder', 'wrist'))
    with pytest.raises(StorageError, match=r"a message on /policy/command: \['elbow'\] missing"):
        recorded_commands(other)
    other.header = other.header.replace(source='teleop')
    with pytest.raises(StorageError, match='needs one topic teleop/command, found none'):
        recorded_commands(other)
    other.header = other.header.replace(robot_spec=None)
    with pytest.raises(StorageError, match='no robot_spec'):
        recorded_commands(other)
