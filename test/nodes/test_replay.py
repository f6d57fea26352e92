"""robot-rl episodes replay: a recorded episode again, by real processes, on the twin."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from robot_rl.nodes.support import seconds
from robot_rl.storage.commands import recorded_commands
from robot_rl.storage.episode import EpisodeHeader
from robot_rl.storage.foreign import ForeignEpisode, write
from robot_rl.storage.samples import joint_state, stamp_ns
from robot_rl.storage.store import Store

# What the twin may be off the recorded motion [rad]: processes wake some milliseconds late, at up
# to a radian a second.
WORST, TYPICAL = 0.1, 0.02


@pytest.fixture
def replay(command, tmp_path):
    """Return `start(id, *arguments)`, which starts `robot-rl episodes replay`."""
    folders = '--store', str(tmp_path / 'store'), '--log-dir', str(tmp_path / 'replay')
    return lambda id, *arguments: command('episodes', 'replay', id, *folders, *arguments)


def record(supervisor, root, task='ur5e/reach', robot='ur5e') -> str:
    """Record an episode of a random policy on the twin and return its id."""
    supervisor.start('sim_robot', {'task': task})
    supervisor.start('command_guard', {'robot': robot})
    supervisor.start('episode_recorder', {'root': str(root), 'robot': robot})
    supervisor.start('policy', {'policy': 'random', 'seed': 5, 'task': task, 'robot': robot})
    given = {'policy': 'random', 'task': task, 'episodes': 1, 'first_seed': 11, 'max_steps': 60}
    supervisor.start('session', given)
    list(supervisor.follow('session', timeout_s=60.0))
    supervisor.stop()
    (id,) = Store(root).episodes().ids
    return id


def recorded_positions(episode) -> tuple[np.ndarray, np.ndarray]:
    """Return times [T] since the first command, and measured positions [T, n]."""
    robot = episode.header.robot_spec
    first = min(item.publish_time_ns for item in episode.messages(['/policy/command']))
    found = [
        ((stamp_ns(item) - first) * 1e-9, joint_state(item.message, robot.joints)['position'])
        for item in episode.messages(['/joint_states'])
    ]
    times, positions = zip(*sorted(found, key=lambda sample: sample[0]), strict=True)
    return np.array(times), np.array(positions)


def test_the_twin_moves_as_it_did(supervisor, observer, replay, tmp_path):
    id = record(supervisor, tmp_path / 'store')
    states = observer.listen(JointState, 'joint_states')
    commands = observer.listen(JointTrajectory, 'replay/command')
    process = replay(id)
    text, _ = process.communicate(timeout=90)
    assert process.returncode == 0 and 'Traceback' not in text, text
    told = json.loads(
        next(line for line in text.splitlines() if '"commands"' in line).split('] ')[1]
    )

    episode = Store(tmp_path / 'store').open(id)
    times, positions = recorded_positions(episode)
    wanted = recorded_commands(episode)
    assert told['episode'] == id
    assert told['commands'] == len(wanted.time) == len(commands)
    for message, target in zip(commands, wanted.target, strict=True):
        np.testing.assert_array_equal(message.points[0].positions, target)
    given = np.array([seconds(message.header.stamp) for message in commands])
    assert (
        np.abs(given - given[0] - wanted.time).max() < 0.1
    )  # at the recorded times, on a busy machine
    again = np.array([seconds(state.header.stamp) for state in states]) - given[0]
    measured = np.array([state.position for state in states])
    during = (times > 0) & (times < wanted.time[-1])
    expected = positions[during]
    found = np.stack([np.interp(times[during], again, column) for column in measured.T], axis=1)
    assert np.ptp(expected, axis=0).max() > 0.2, 'nothing moved'
    off = np.abs(found - expected)
    assert off.max() < WORST and np.sqrt((off**2).mean()) < TYPICAL, (off.max(), off.mean())


@pytest.mark.slow
def test_the_gripper_is_told_as_it_was(supervisor, observer, replay, tmp_path):
    id = record(supervisor, tmp_path / 'store', 'ur5e/lift', 'ur5e_gripper')
    told = observer.listen(Float64MultiArray, 'gripper_controller/commands')
    process = replay(id)
    text, _ = process.communicate(timeout=90)
    assert process.returncode == 0 and 'begins at home' not in text, text
    wanted = recorded_commands(Store(tmp_path / 'store').open(id))
    assert len(wanted.width) > 50 and np.ptp(wanted.width) > 1e-3
    found = np.array([2 * message.data[0] for message in told])  # a finger goes half of the way
    asked = np.clip(wanted.width, 0, 0.085)
    # Of two that come within one of the guard's ticks, as on a busy machine, the newer one counts.
    left = iter(asked)
    assert all(any(abs(width - one) < 1e-9 for one in left) for width in found)
    assert len(found) > 0.8 * len(asked)


def test_it_refuses_where_the_arm_stands_far_from_where_the_episode_began(
    replay, still_episode, tmp_path, ur5e
):
    home = np.array([ur5e.home[name] for name in ur5e.joints])
    away = home + 0.5 * (np.arange(6) == 2)
    process = replay(still_episode(tmp_path / 'store', away).name)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and 'Traceback' not in text, text
    assert 'replay: elbow_joint stands at' in text and 'bring the arm there first' in text
    assert '"commands"' not in text


@pytest.mark.slow
def test_an_episode_with_columns_only_is_replayed_and_an_emergency_stop_ends_it(
    replay, still_episode, observer, tmp_path, ur5e
):
    home = np.array([ur5e.home[name] for name in ur5e.joints])
    id = still_episode(tmp_path / 'store').name
    states = observer.listen(JointState, 'joint_states')
    process = replay(id)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0, text
    np.testing.assert_allclose(states[-1].position, home + 0.1, atol=0.02)

    commands = observer.listen(JointTrajectory, 'replay/command')
    process = replay(id)
    observer.until(lambda: len(commands) > 5, 'it does not begin')
    assert observer.call('command_guard/estop', Trigger).success
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and 'the emergency stop was called' in text, text


def test_on_the_arm_nothing_simulated_is_started(
    supervisor, observer, replay, still_episode, tmp_path, ur5e
):
    """The driver runs already: here it is played by a twin that the test has started."""
    home = np.array([ur5e.home[name] for name in ur5e.joints])
    id = still_episode(tmp_path / 'store').name
    supervisor.start('sim_robot')
    supervisor.wait_ready()
    states = observer.listen(JointState, 'joint_states')
    commands = observer.listen(JointTrajectory, 'replay/command')
    process = replay(id, '--real')
    observer.until(lambda: len(commands) > 5, 'it does not begin')
    assert observer.node.count_publishers('joint_states') == 1
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and 'Traceback' not in text, text
    started = {path.stem for path in (tmp_path / 'replay').glob('*.log')}
    assert started == {'command_guard', 'replay'}
    np.testing.assert_allclose(states[-1].position, home + 0.1, atol=0.02)
    assert supervisor.children['sim_robot'].poll() is None


def test_without_a_robot_or_commands_it_says_so_before_anything_starts(replay, tmp_path):
    Store(tmp_path / 'store')
    columns = {
        'time': np.arange(3.0),
        'action/requested': np.zeros((2, 1)),
        'action/applied': np.zeros((2, 1)),
    }
    write(tmp_path / 'store', ForeignEpisode(EpisodeHeader(id='bare'), columns))
    text, _ = (process := replay('bare')).communicate(timeout=30)
    assert process.returncode == 2 and 'no robot_spec' in text and text.count('\n') == 1, text
    assert not (tmp_path / 'replay').exists()
