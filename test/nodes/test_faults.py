"""What becomes of the arm when a process dies or hangs: it holds within a tenth of a second."""

from __future__ import annotations

import json
import os
import signal
import time

import numpy as np
import pytest
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray, String
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from robot_rl.control.session import SessionInfo
from robot_rl.nodes.support import LATCHED, LATCHED_READER, seconds

# From the fault to when the arm is told nothing but to brake or to stand, by wall clock [s].
HOLDS_WITHIN_S = 0.1
# What messages take, and processes that wait for a core, on a busy machine [s].
SLACK_S = 0.05
# How long the twin's servos take to a command that stands still [s].
SERVO_S = 0.15


@pytest.fixture
def moving(supervisor, observer, tmp_path):
    """All nodes of an episode under way, in which a random policy moves the twin."""
    supervisor.start('sim_robot')
    supervisor.start('policy', {'policy': 'random', 'seed': 3})
    supervisor.start('command_guard')
    supervisor.start('episode_recorder', {'root': str(tmp_path / 'episodes')})
    applied = observer.listen_timed(JointTrajectory, 'command_guard/applied')
    to_arm = observer.listen(Float64MultiArray, 'forward_position_controller/commands')
    states = observer.listen(JointState, 'joint_states')
    supervisor.wait_ready()
    given = {'policy': 'random', 'episodes': 1, 'first_seed': 2**31, 'max_steps': 600}
    supervisor.start('session', given)
    observer.until(lambda: len(applied) > 50, 'nothing moves')
    return applied, to_arm, states


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize(
    'node',
    [
        'policy',
        pytest.param('session', marks=pytest.mark.slow),
        pytest.param('episode_recorder', marks=pytest.mark.slow),
    ],
)
def test_the_arm_holds_when_a_process_dies_or_hangs(
    node, number, moving, supervisor, observer, ur5e
):
    applied, to_arm, states = moving
    process = supervisor.children[node]
    fault = time.time()
    os.kill(process.pid, number)
    # The twin stamps its joint states by the same clock.
    observer.until(lambda: states and seconds(states[-1].header.stamp) > fault + 2.0)
    told, commands = list(applied), [list(message.data) for message in to_arm]
    # By the guard's own time it is held from then on: it is braked, or stands.
    held = [m for sent_s, m in told if sent_s - fault > HOLDS_WITHIN_S + SLACK_S]
    assert {message.header.frame_id for message in held} == {'hold'}
    commanded = np.abs([message.points[0].velocities for message in held])
    assert (np.diff(commanded, axis=0) <= 1e-9).all(), 'it is sped up in the hold'
    assert not commanded[-1].any()
    record = [(seconds(s.header.stamp) - fault, np.array(s.position)) for s in list(states)]
    # It is braked within the time, from no more speed than it had, or came to have until then.
    speeds = [
        s.velocity for s in list(states) if 0 < seconds(s.header.stamp) - fault < HOLDS_WITHIN_S
    ]
    brakes_s = (np.abs(speeds).max(axis=0) / ur5e.max_acceleration).max()
    assert brakes_s < 1.0
    if number == signal.SIGSTOP:
        os.kill(process.pid, signal.SIGCONT)
    else:
        supervisor.children.pop(node)  # it is meant to be dead
    times = np.array([t for t, _ in record])
    way = np.abs(np.diff([q for _, q in record], axis=0)).max(axis=1)
    before, after = times[1:] < 0, times[1:] > HOLDS_WITHIN_S + brakes_s + SLACK_S + SERVO_S
    assert way[before][-100:].max() > 1e-3, 'it did not move before'
    assert way[after].max() < 1e-3, f'still moving: {times[1:][after][way[after] > 1e-3]}'
    assert commands[-1] == commands[-20]


def test_the_arm_stands_where_it_is_when_the_guard_dies(moving, supervisor, observer):
    _, to_arm, states = moving
    os.kill(supervisor.children.pop('command_guard').pid, signal.SIGKILL)
    time.sleep(SERVO_S + SLACK_S)
    stood, count = np.array(states[-1].position), len(to_arm)
    time.sleep(0.3)
    assert len(to_arm) == count
    np.testing.assert_allclose(states[-1].position, stood, atol=2e-3)


def test_an_episode_that_loses_its_guard_is_broken_off(moving, supervisor):
    """It went on to its end, and what stood still counted as a failure of the policy."""
    os.kill(supervisor.children.pop('command_guard').pid, signal.SIGKILL)
    (line,) = supervisor.follow('session', 20)
    assert line['result'] == 'truncated' and 'command_guard is gone' in line['reason'], line


def test_a_guard_that_starts_in_an_episode_waits_for_the_next(supervisor, observer, arm, ur5e):
    """As one does that was killed and is started anew: policy commands all the time."""
    here = arm()
    session = observer.node.create_publisher(String, 'session/state', LATCHED)
    session.publish(String(data=SessionInfo(state='running', episode='under way').to_json()))
    to_arm = observer.listen(Float64MultiArray, 'forward_position_controller/commands')
    told = observer.listen(String, 'command_guard/status', LATCHED_READER)
    point = JointTrajectoryPoint(positions=(ur5e.home_position + 0.01).tolist())
    point.time_from_start.nanosec = 50_000_000
    commands = observer.node.create_publisher(JointTrajectory, 'policy/command', 10)

    def commanding(until):
        def told():
            commands.publish(JointTrajectory(joint_names=here.message.name, points=[point]))
            return until()

        observer.until(told)

    supervisor.start('command_guard')
    refused = 'refused: policy: command_guard was restarted in an episode'
    commanding(lambda: refused in supervisor.log('command_guard'))
    begun = time.monotonic()
    commanding(lambda: time.monotonic() > begun + 1.5)  # longer than it listens for a session
    assert to_arm == []
    answer = json.loads(told[-1].data)  # which ends the episode
    assert (answer['episode'], answer['state']) == ('under way', 'error')
    session.publish(String(data=SessionInfo(state='prepare', episode='next').to_json()))
    commanding(lambda: to_arm)
