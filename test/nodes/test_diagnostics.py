"""What every node says of itself once a second, and whom it says it cannot talk to."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from robot_rl.nodes.main import FOR_BENCHES, NODES
from robot_rl.nodes.teleop import DEVICES

# Nodes that are not asked how they are, and why.
SILENT = {
    'echo': 'a bare link of a chain: what it costs is measured, and nothing is to cost more',
    'generator': 'stands for a driver, which says nothing here',
    'traced_policy': 'the class of policy, which keeps the times of its ticks as well',
    'traced_guard': 'likewise that of command_guard',
    'traced_twin': 'likewise that of sim_robot',
}
BEST_EFFORT = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
PAGE = Path(__file__).parents[2] / 'docs' / 'troubleshooting.md'


class Statuses:
    """What comes on /diagnostics, by node, with the time it came."""

    def __init__(self, observer):
        self._observer, self.heard = observer, {}
        observer.node.create_subscription(DiagnosticArray, '/diagnostics', self._take, 100)

    def _take(self, message: DiagnosticArray) -> None:
        for status in message.status:
            self.heard.setdefault(status.name, []).append((time.monotonic(), status))

    def of(self, node: str, condition=lambda status: True) -> DiagnosticStatus:
        """Wait for a status of `node` that fulfils `condition`."""

        def found():
            return [s for _, s in self.heard.get(node, [])[-3:] if condition(s)]

        return self._observer.until(found, f'{node}: {self.heard.get(node, [])[-1:]}')[-1]


@pytest.fixture
def statuses(observer):
    return Statuses(observer)


def values(status: DiagnosticStatus) -> dict[str, str]:
    return {item.key: item.value for item in status.values}


def documented_keys(node: str) -> set[str]:
    """Return what the page's table lists for a node; those with a <part> are left out."""
    (row,) = re.findall(rf'^\| `{node}` \| (.*) \|$', PAGE.read_text(encoding='utf-8'), re.M)
    return {key for key in re.findall(r'`([^`]+)`', row) if '<' not in key}


@pytest.mark.slow
def test_every_node_says_once_a_second_how_it_is_also_while_idle(
    supervisor, statuses, tmp_path, still_episode, terminal
):
    nodes = NODES.keys() - SILENT.keys()
    taking_part = ['sim_robot', 'policy', 'command_guard', 'episode_recorder', 'image_feed']
    given = {
        'episode_recorder': {'root': str(tmp_path)},
        'session': {'manual': True, 'participants': taking_part},
        'replay': {'episode': str(still_episode()), 'ready_timeout_s': 300.0},  # it waits
        'screen': {'terminal': terminal.path},
        'teleop': {'device': 'twist'},
    }
    for node in sorted(nodes):
        supervisor.start(node, given.get(node, {}))
    supervisor.wait_ready(60)
    for node in nodes:
        statuses.of(node)
    start = time.monotonic()
    time.sleep(6)
    for node in nodes:
        times = np.array([at for at, _ in statuses.heard[node] if at > start])
        assert 4 <= len(times) <= 7, (node, times - start)
        assert 0.8 < np.diff(times).mean() < 1.3, (node, np.diff(times))
        status = statuses.of(node)
        assert status.hardware_id and status.message
        assert documented_keys(node) <= values(status).keys(), node
        assert status.level in (DiagnosticStatus.OK, DiagnosticStatus.WARN), status
        assert values(status)['incompatible_endpoints'] == '0', status.message


@pytest.mark.slow
def test_teleop_says_how_it_is_whichever_device_leads(supervisor, statuses, terminal):
    for device in DEVICES:
        given = {'device': device, 'terminal': terminal.path, 'page_port': 0}
        supervisor.start('teleop', given, device, ['-r', f'__node:={device}'])
    supervisor.wait_ready(60)
    for device in DEVICES:
        status = statuses.of(device)
        assert values(status)['device'] == device and status.hardware_id == 'ur5e'
        assert documented_keys('teleop') <= values(status).keys()


def test_a_replay_says_how_far_it_is(supervisor, observer, statuses, still_episode):
    commands = observer.listen(JointTrajectory, 'replay/command')
    supervisor.start('sim_robot')
    supervisor.start('command_guard', {'sources': ['replay']})
    supervisor.start('replay', {'episode': str(still_episode())})
    status = statuses.of('replay', lambda s: int(values(s)['given']) > 0)
    told = values(status)
    assert status.message == 'replaying' and told['episode'] == 'still'
    assert told['commands'] == '40' and int(told['given']) <= 40
    assert supervisor.children['replay'].wait(20) == 0
    assert len(commands) == 40


def test_what_every_node_says_is_on_the_page():
    rows = re.findall(r'^\| `(\w+)` \| .*\|$', PAGE.read_text(encoding='utf-8'), re.M)
    assert NODES.keys() - FOR_BENCHES <= set(rows)
    assert SILENT.keys() == FOR_BENCHES  # only these need not say it


def test_a_screen_and_a_replay_that_waits_say_how_they_are(
    supervisor, statuses, terminal, still_episode, tmp_path
):
    supervisor.start('screen', {'terminal': terminal.path})
    supervisor.start('replay', {'episode': str(still_episode(tmp_path / 'episodes'))})
    supervisor.wait_ready()
    screen = values(statuses.of('screen', lambda s: int(values(s)['rate_hz']) >= 2))
    assert documented_keys('screen') <= screen.keys()
    assert 0 < float(screen['draw_mean_ms']) <= float(screen['draw_max_ms']) < 1000
    replay = statuses.of('replay')
    assert replay.message == 'waiting for the guard and the arm'
    assert documented_keys('replay') <= values(replay).keys() and values(replay)['given'] == '0'


def test_while_an_episode_runs_rates_and_latencies_are_told(supervisor, statuses, tmp_path):
    nodes = ['sim_robot', 'policy', 'command_guard']
    for node in nodes:
        supervisor.start(node, {})
    supervisor.start('session', {'participants': nodes, 'max_steps': 80, 'episodes': 1})
    status = statuses.of('policy', lambda s: int(values(s)['rate_hz']) >= 15)
    told = values(status)
    assert told['state'] == 'running' and told['wanted_rate_hz'] == '20.0'
    # From the stamp of the newest joint states, at 100 Hz, to the command.
    assert 0 < float(told['latency_mean_ms']) <= float(told['latency_max_ms']) < 500
    assert 0 < float(told['tick_mean_ms']) <= float(told['tick_max_ms']) < 100

    def hears_the_policy(status):
        # A whole second of it: in the first one it may just have begun.
        return 'policy.age_ms' in values(status) and int(values(status)['rate_hz']) > 50

    guard = values(statuses.of('command_guard', hears_the_policy))
    assert float(guard['joint_states.age_ms']) < 500
    assert int(guard['rate_hz']) <= 110 and guard['wanted_rate_hz'] == '100.0'
    assert statuses.of('session', lambda s: values(s)['state'] == 'running').message == 'running'


def policies_of_threads(pid: int) -> set[tuple[int, int]]:
    """Return how the system schedules the threads of a process: policy and priority."""
    threads = [int(thread) for thread in os.listdir(f'/proc/{pid}/task')]
    return {(os.sched_getscheduler(t), os.sched_getparam(t).sched_priority) for t in threads}


def test_policy_and_guard_run_in_real_time_where_the_system_lets_them(supervisor, statuses):
    """And say so; without leave, or where nobody wants it, they run as all do."""
    ask = 'import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))'
    allowed = subprocess.run([sys.executable, '-c', ask], capture_output=True).returncode == 0
    for node, priority in (('policy', 40), ('command_guard', 50)):
        pid = supervisor.start(node).pid
        supervisor.wait_ready()
        assert values(statuses.of(node))['in_real_time'] == str(allowed)
        wanted = (os.SCHED_FIFO, priority) if allowed else (os.SCHED_OTHER, 0)
        assert policies_of_threads(pid) == {wanted}
        if not allowed:
            assert 'real-time scheduling: Operation not permitted' in supervisor.log(node)
    pid = supervisor.start('command_guard', {'realtime_priority': 0}, name='ordinary').pid
    supervisor.wait_ready()
    assert policies_of_threads(pid) == {(os.SCHED_OTHER, 0)}


def test_a_command_without_a_stamp_is_not_taken_for_decades_old(
    supervisor, observer, statuses, arm
):
    supervisor.start('command_guard')
    supervisor.wait_ready()
    here = arm().message
    point = JointTrajectoryPoint(positions=here.position)
    point.time_from_start.nanosec = 50_000_000
    commands = observer.publisher(JointTrajectory, 'teleop/command')

    def followed():
        commands.publish(JointTrajectory(joint_names=here.name, points=[point]))
        time.sleep(0.02)
        last = statuses.heard.get('command_guard', [])[-1:]
        return [status for _, status in last if values(status)['source'] == 'teleop']

    told = values(observer.until(followed)[0])
    assert int(told['accepted']) > 0 and float(told['command_latency_max_ms']) == 0.0


def test_without_joint_states_the_guard_is_stale(supervisor, statuses):
    supervisor.start('command_guard')
    status = statuses.of('command_guard', lambda s: s.level == DiagnosticStatus.STALE)
    assert 'no joint states of ur5e on /joint_states' in status.message


@pytest.mark.parametrize(
    'kind',
    [
        'reliability',
        pytest.param('type', marks=pytest.mark.slow),
        pytest.param('durability', marks=pytest.mark.slow),
        pytest.param('reader', marks=pytest.mark.slow),
    ],
)
def test_whom_a_node_cannot_hear_is_told_in_words_once(supervisor, observer, statuses, kind):
    supervisor.start('command_guard')
    supervisor.wait_ready()
    node = observer.node
    if kind == 'reliability':
        node.create_publisher(JointTrajectory, 'policy/command', BEST_EFFORT)
        told = (
            '/policy/command: /observer publishes, /command_guard reads: QoS reliability '
            'best_effort, wanted reliable: change the publisher to what is wanted, or the reader'
        )
    elif kind == 'type':
        node.create_publisher(PoseStamped, 'joint_states', 10)
        told = (
            '/joint_states: /observer publishes, /command_guard reads: type '
            'geometry_msgs/msg/PoseStamped, wanted sensor_msgs/msg/JointState; '
            'give one of the two another topic name'
        )
    elif kind == 'durability':
        node.create_publisher(String, 'session/state', 10)
        told = 'QoS durability volatile, wanted transient_local'
    else:
        wish = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        node.create_subscription(JointTrajectory, 'command_guard/applied', print, wish)
        told = (
            '/command_guard/applied: /command_guard publishes, /observer reads: QoS durability '
            'volatile, wanted transient_local'
        )
    status = statuses.of('command_guard', lambda s: told in s.message)
    assert status.level in (DiagnosticStatus.WARN, DiagnosticStatus.STALE)
    assert int(values(status)['incompatible_endpoints']) >= 1
    time.sleep(2.5)
    log = supervisor.log('command_guard')
    assert log.count(told) == (2 if kind == 'durability' else 1), log  # two read session/state


@pytest.mark.slow
def test_what_fits_is_not_complained_about(supervisor, observer, statuses, arm):
    supervisor.start('command_guard')
    supervisor.wait_ready()
    arm()
    observer.node.create_publisher(JointState, 'joint_states', BEST_EFFORT)
    observer.node.create_subscription(JointTrajectory, 'command_guard/applied', print, BEST_EFFORT)
    statuses.of('command_guard', lambda s: s.level != DiagnosticStatus.STALE)
    time.sleep(2.5)
    assert values(statuses.of('command_guard'))['incompatible_endpoints'] == '0'
