"""The guard's node: what it lets through to the arm, and what not."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from std_msgs.msg import Bool, Empty, Float64MultiArray, String
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from robot_rl import registry
from robot_rl.nodes.support import LATCHED_READER as READER
from robot_rl.nodes.wiring import may_be_an_arm

CONTROLLER = 'forward_position_controller/commands'


@pytest.fixture
def guard(supervisor, observer, arm):
    """A running guard with an arm at home in front of it."""

    class Guard:
        def __init__(self):
            supervisor.start('command_guard')
            supervisor.wait_ready()
            self.arm = arm()
            self.to_arm = observer.listen(Float64MultiArray, CONTROLLER)
            self.applied = observer.listen(JointTrajectory, 'command_guard/applied')
            self.commands = {
                source: observer.publisher(JointTrajectory, f'{source}/command')
                for source in ('policy', 'teleop')
            }
            observer.until(lambda: observer.node.count_publishers(CONTROLLER), 'no guard')
            observer.until(lambda: self.arm.heard > 10, 'the guard hears no joint states')
            self.says = observer.listen(String, 'command_guard/source', READER)
            observer.until(lambda: self.says and self.says[-1].data == 'idle', 'it listens still')

        def command(self, positions, names=None, points=1, source='policy'):
            message = JointTrajectory(joint_names=list(names or self.arm.message.name))
            message.header.stamp = observer.stamp()
            point = JointTrajectoryPoint(positions=[float(p) for p in positions])
            point.time_from_start.nanosec = 50_000_000
            message.points = [point] * points
            self.commands[source].publish(message)
            return message.header.stamp

        def lead(self, positions, names=None, source='policy'):
            """Command as a source does, again and again, until it is applied."""
            stamps = []

            def arrived():
                stamps.append(self.command(positions, names, source=source))
                time.sleep(0.03)
                wanted = dict(zip(names or self.arm.message.name, positions, strict=True))
                return self.applied and self.arrived(list(map(wanted.get, self.arm.message.name)))

            observer.until(arrived)
            return stamps

        def arrived(self, target):
            return np.allclose(self.applied[-1].points[0].positions, target, rtol=0, atol=1e-9)

        def rests(self):
            """Wait until the arm is told to stand still, and return where."""
            told = self.to_arm
            observer.until(lambda: len(told) > 20 and told[-1].data == told[-20].data)
            return list(told[-1].data)

        def refuses(self, words):
            observer.until(lambda: words in supervisor.log('command_guard'), words)

    return Guard()


def test_a_target_is_interpolated_and_kept_within_the_limits_of_speed_and_acceleration(
    guard, observer, conductor, ur5e
):
    session = conductor('command_guard')
    session.say('prepare')
    session.hears('ready')
    target = ur5e.home_position + 0.09
    stamps = guard.lead(target)
    way = np.array([message.points[0].positions for message in guard.applied])
    assert len(way) >= 3 and (np.diff(way, axis=0) >= -1e-12).all()
    assert (np.abs(np.diff(way, axis=0)) <= ur5e.max_velocity * 0.02 + 1e-9).all()
    assert guard.applied[0].header.stamp == stamps[0]
    assert guard.applied[0].header.frame_id == 'policy'
    assert guard.applied[0].joint_names == list(ur5e.joints)
    speeds = np.array([message.points[0].velocities for message in guard.applied])
    assert 0 < speeds.max() <= ur5e.max_velocity.max() + 1e-9
    assert (np.abs(np.diff(speeds, axis=0)) <= ur5e.max_acceleration * 0.02 + 1e-9).all()
    # Nobody commands any more: it holds the last command, and says so.
    observer.until(lambda: guard.applied[-1].header.frame_id == 'hold')
    np.testing.assert_allclose(guard.to_arm[-1].data, target, rtol=0, atol=1e-9)
    assert guard.applied[-1].header.stamp in stamps[-2:]


def test_bad_commands_are_refused_in_words_and_change_nothing(guard, observer, ur5e):
    home = ur5e.home_position
    guard.command(home + 0.01)
    observer.until(lambda: guard.applied and guard.applied[-1].header.frame_id == 'hold')
    held = list(guard.to_arm[-1].data)
    guard.command([*home[:5], np.nan])
    guard.refuses('refused: policy: not finite')
    guard.command(home, names=['a', *ur5e.joints[1:]])
    observer.until(lambda: guard.applied[-1].header.frame_id == 'hold')
    guard.command(home, points=2)
    guard.command(home[:5])
    count = len(guard.to_arm)
    observer.until(lambda: len(guard.to_arm) > count + 20)
    assert all(list(message.data) == held for message in guard.to_arm[count:])


def test_commands_by_name_may_come_in_any_order(guard, observer, ur5e):
    names = list(reversed(ur5e.joints))
    target = ur5e.home_position + np.linspace(0.01, 0.06, 6)
    guard.lead(target[::-1].tolist(), names)
    observer.until(lambda: np.allclose(guard.to_arm[-1].data, target, rtol=0, atol=1e-9))
    np.testing.assert_allclose(guard.to_arm[-1].data, target, rtol=0, atol=1e-9)


def test_the_emergency_stop_latches_until_a_person_resets_it(guard, observer, conductor, ur5e):
    session = conductor('command_guard')
    session.say('prepare')
    session.hears('ready')
    guard.command(ur5e.home_position + 0.01)
    observer.until(lambda: guard.applied)
    assert observer.call('command_guard/estop').success
    assert session.hears('error').startswith('estop')
    observer.until(lambda: guard.applied[-1].header.frame_id == 'estop')
    held = guard.rests()
    guard.command(ur5e.home_position + 0.05)
    guard.refuses('the emergency stop is latched; reset it first')
    assert list(guard.to_arm[-1].data) == held
    session.say('prepare', episode='e2')
    assert 'estop_reset' in session.hears('error')
    observer.until(lambda: observer.call('command_guard/estop_reset').success)
    assert not observer.call('command_guard/estop_reset').success
    session.say('prepare', episode='e3')
    session.hears('ready')


def test_a_person_takes_over_and_gives_back(guard, observer, ur5e):
    """teleop commands while policy goes on: nobody hears policy until teleop is quiet."""
    home = ur5e.home_position
    says = guard.says

    def drive(until, **targets):
        def commanding():
            for source, offset in targets.items():
                guard.command(home + offset, source=source)
            time.sleep(0.03)
            return until()

        observer.until(commanding)

    drive(lambda: says[-1].data == 'policy', policy=0.02)
    # Not far: this arm stands at home, whatever it is told.
    drive(lambda: guard.arrived(home - 0.03), policy=0.02, teleop=-0.03)
    assert says[-1].data == 'teleop'
    drive(lambda: guard.arrived(home + 0.02), policy=0.02)
    heard = [message.data for message in says if message.data != 'starting']
    assert heard[:3] == ['idle', 'policy', 'teleop'] and heard[-1] == 'policy'
    way = np.array([message.points[0].positions for message in guard.applied])
    assert np.abs(np.diff(way, axis=0)).max() < 0.03  # no jump at either hand-over
    late = observer.listen(String, 'command_guard/source', READER)
    observer.until(lambda: late and late[-1].data == 'hold')


def test_a_message_stops_the_arm_but_does_not_release_it(guard, observer, ur5e):
    stop = observer.publisher(Empty, 'estop')
    active = observer.listen(Bool, 'command_guard/estop_active', READER)
    guard.command(ur5e.home_position + 0.01)
    observer.until(lambda: guard.applied and active and active[-1].data is False)
    stop.publish(Empty())
    observer.until(lambda: active[-1].data is True)
    observer.until(lambda: guard.applied[-1].header.frame_id == 'estop')
    held = guard.rests()
    diagnostics = observer.listen(DiagnosticArray, '/diagnostics')
    observer.until(lambda: len(diagnostics) >= 2)
    values = {value.key: value.value for value in diagnostics[-1].status[0].values}
    assert values['estopped'] == '1'
    stop.publish(Empty())
    guard.command(ur5e.home_position + 0.05)
    guard.refuses('the emergency stop is latched; reset it first')
    assert list(guard.to_arm[-1].data) == held
    observer.until(lambda: observer.call('command_guard/estop_reset').success)
    observer.until(lambda: active[-1].data is False)


@pytest.mark.parametrize('kind', ['forward_velocity', 'joint_trajectory'])
def test_the_arm_is_told_in_what_its_controller_takes(
    kind, supervisor, observer, arm, ur5e, tmp_path
):
    controller = {'kind': kind, 'topic': 'controller/commands', 'driver_timeout_s': 0.1}
    robot = tmp_path / 'robot.yaml'
    robot.write_text(ur5e.replace(controller=controller).to_yaml())
    supervisor.start('command_guard', {'robot': str(robot)})
    supervisor.wait_ready()
    arm()
    message = Float64MultiArray if kind == 'forward_velocity' else JointTrajectory
    to_arm = observer.listen(message, 'controller/commands')
    commands = observer.publisher(JointTrajectory, 'policy/command')
    observer.until(lambda: observer.node.count_publishers('controller/commands'))
    point = JointTrajectoryPoint(positions=(ur5e.home_position + 0.05).tolist())
    point.time_from_start.nanosec = 50_000_000

    def told():
        commands.publish(JointTrajectory(joint_names=list(ur5e.joints), points=[point]))
        time.sleep(0.02)
        return len(to_arm) > 50

    observer.until(told)
    if kind == 'forward_velocity':
        # The command speeds up half the way and slows down, with what making up for lag leaves;
        # the arm stands still, and is told besides what makes up for being behind.
        fastest, gain = np.sqrt(0.8 * ur5e.max_acceleration[0] * 0.05), 2.0
        expected = fastest + gain * 0.05 / 2
        assert max(max(m.data) for m in to_arm) == pytest.approx(expected, abs=0.05)
        np.testing.assert_allclose(to_arm[-1].data, gain * 0.05, atol=0.02)
    else:
        assert to_arm[-1].joint_names == list(ur5e.joints) and len(to_arm[-1].points) == 1
        assert to_arm[-1].points[0].time_from_start.nanosec == 20_000_000
        assert (to_arm[-1].header.stamp.sec, to_arm[-1].header.stamp.nanosec) == (0, 0)
        np.testing.assert_allclose(to_arm[-1].points[0].positions, point.positions, atol=1e-3)


def test_after_a_reset_nothing_is_published_until_the_next_command(guard, observer, ur5e):
    guard.command(ur5e.home_position + 0.01)
    observer.until(lambda: guard.to_arm)
    assert observer.call('command_guard/reset').success
    diagnostics = observer.listen(DiagnosticArray, '/diagnostics')
    observer.until(lambda: len(diagnostics) >= 2)
    count = len(guard.to_arm)
    observer.until(lambda: len(diagnostics) >= 3)
    assert len(guard.to_arm) == count
    status = diagnostics[-1].status[0]
    assert (status.name, status.message, status.hardware_id) == ('command_guard', 'idle', 'ur5e')
    assert {value.key: value.value for value in status.values}['accepted'] == '1'


def test_the_guard_is_not_ready_while_it_brakes(guard, observer, conductor, ur5e):
    """A twin that was placed anew was led back by what the guard still said of the old place."""
    session = conductor('command_guard')
    for _ in range(15):
        guard.command(ur5e.home_position + 0.3)
        time.sleep(0.03)
    moving = np.abs(np.diff([guard.to_arm[-2].data, guard.to_arm[-1].data], axis=0))
    assert moving.max() > 1e-3
    session.say('prepare')
    session.hears('ready')
    time.sleep(0.02)  # what is on its way
    count = len(guard.to_arm)
    time.sleep(0.3)
    assert len(guard.to_arm) == count


def test_the_guard_is_not_ready_before_it_knows_where_the_arm_stands(
    supervisor, observer, conductor, arm, ur5e
):
    supervisor.start('command_guard')
    supervisor.wait_ready()
    session = conductor('command_guard')
    session.say('prepare')
    assert 'joint states' in session.hears('preparing')
    other = arm(['a', 'b', *ur5e.joints[2:]])
    observer.until(lambda: 'refused: joint states: joint names' in supervisor.log('command_guard'))
    observer.listen(Float64MultiArray, CONTROLLER)
    other.stop()
    order = [*reversed(ur5e.joints), 'gripper']
    arm(order, [*reversed(ur5e.home_position.tolist()), 0.02])
    session.hears('ready')


def counts(observer):
    """Return what the guard has counted, as it says it next."""
    diagnostics = observer.listen(DiagnosticArray, '/diagnostics')
    observer.until(lambda: len(diagnostics) >= 2)
    return {value.key: value.value for value in diagnostics[-1].status[0].values}


def test_the_joint_states_of_a_gripper_do_not_hide_the_arms(guard, observer, arm, ur5e):
    """The last message won: a second publisher on the topic, and the guard refused and held."""
    gripper = arm(['finger_joint'], [0.02], rate_hz=500.0)
    observer.until(lambda: gripper.heard > 50, 'nobody hears the gripper')
    before = counts(observer)
    for tick in range(40):
        guard.command(ur5e.home_position + 0.002 * tick)
        time.sleep(0.03)
    led = guard.applied[-1].points[0].positions
    np.testing.assert_allclose(led, ur5e.home_position + 0.078, rtol=0, atol=0.01)
    now = counts(observer)
    assert int(now['accepted']) > 30 and now['refused'] == before['refused'] == '0'
    assert float(now['joint_states.age_ms']) < 100
    guard.arm.stop()
    session = observer.listen(DiagnosticArray, '/diagnostics')
    observer.until(lambda: any("only ['finger_joint']" in m.status[0].message for m in session))


def test_an_arm_whose_joint_states_are_repeated_under_one_stamp_is_not_commanded(
    guard, observer, ur5e
):
    stamp = observer.stamp()
    observer.stamp = lambda: stamp
    time.sleep(0.3)
    guard.command(ur5e.home_position + 0.01)
    guard.refuses('refused: policy: joint states come, but their stamp has stood still for 0.')
    assert not guard.to_arm
    del observer.stamp  # the method is back
    guard.lead(ur5e.home_position + 0.01)


@pytest.mark.parametrize('kind', ['RELIABLE', 'BEST_EFFORT'])
def test_an_emergency_stop_of_either_kind_of_publisher_is_heard_and_counts_once(
    guard, observer, supervisor, kind
):
    """The reliable reader heard nothing of a best-effort publisher, as of a button's driver."""
    qos = QoSProfile(depth=1, reliability=ReliabilityPolicy[kind])
    stop = observer.publisher(Empty, 'estop', qos)
    active = observer.listen(Bool, 'command_guard/estop_active', READER)

    def stopped():
        stop.publish(Empty())
        time.sleep(0.02)
        return active[-1].data

    observer.until(lambda: active)
    observer.until(stopped)
    stop.publish(Empty())
    assert counts(observer)['estopped'] == '1'
    assert supervisor.log('command_guard').count('the emergency stop was called') == 1
    assert observer.call('command_guard/estop_reset').success
    observer.until(lambda: not active[-1].data)
    observer.until(stopped)
    now = counts(observer)
    assert now['estopped'] == '2' and now['incompatible_endpoints'] == '0'


def test_a_policy_that_is_too_slow_for_the_timeout_is_told_before_it_runs(
    guard, conductor, observer
):
    """It was held after each command, or its commands were refused, and nobody said why."""
    session = conductor('command_guard')
    contract = registry.make_task('ur5e/reach').contract()
    slow = contract.replace(rate_hz=10.0).to_dict()
    session.say('prepare', contract=slow)
    assert 'set timeout_s: 0.2 (parameter of command_guard)' in session.hears('error')
    session.say('prepare', episode='e2', source='teleop')
    session.hears('ready')
    session.say('prepare', episode='e3', source='teleop', policy='scripted', contract=slow)
    assert 'set timeout_s: 0.2 (parameter of command_guard)' in session.hears('error')
    session.say('prepare', episode='e4', source='policy', policy='', contract=contract.to_dict())
    session.hears('ready')
    session.say('prepare', episode='e5', contract={'rate_hz': 'fast'})
    assert 'session/state: rate_hz: ' in session.hears('error')


@pytest.mark.parametrize(
    ('name', 'is_one'),
    [
        ('forward_position_controller', True),
        ('sim_robot', True),
        ('_CREATED_BY_BARE_DDS_APP_', True),  # an arm behind micro-ROS
        ('_NODE_NAME_UNKNOWN_', False),  # not yet
        ('rqt_gui_py_node_4711', False),
    ],
)
def test_who_may_be_an_arm_is_judged_by_its_name(name, is_one):
    assert may_be_an_arm(SimpleNamespace(node_name=name)) is is_one


def test_a_recorder_is_no_arm_that_listens(supervisor, observer, conductor, arm):
    supervisor.start('command_guard')
    supervisor.wait_ready()
    session, _ = conductor('command_guard'), arm()
    names = ['rosbag2_recorder', '_ros2cli_77', 'episode_recorder', 'a_controller']
    nodes = [Node(name, context=observer.node.context) for name in names]
    for node in nodes[:3]:
        node.create_subscription(Float64MultiArray, CONTROLLER, print, 10)
    observer.until(lambda: observer.node.count_subscribers(CONTROLLER) == 3)
    session.say('prepare')
    assert 'no arm that listens' in session.hears('preparing')
    time.sleep(1.0)
    assert not [m for m in session.answers if '"ready"' in m.data]
    nodes[3].create_subscription(Float64MultiArray, CONTROLLER, print, 10)
    session.hears('ready')
    for node in nodes:
        node.destroy_node()


@pytest.mark.parametrize(
    ('given', 'told'),
    [
        ({'sources': ['my teleop', 'policy']}, "sources: 'my teleop' is no name of a source"),
        ({'sources': ['policy', 'policy']}, 'sources: a name stands twice'),
        ({'timeout_s': 50.0}, 'timeout_s: must be less than or equal to 1, found 50.0'),
        ({'measured_max_age_s': 9.0}, 'measured_max_age_s: must be less than or equal to 0.5'),
    ],
)
def test_a_parameter_out_of_its_range_is_one_clear_line(supervisor, given, told):
    """Any number was taken, and a source that is no name was a traceback of rclpy's."""
    child = supervisor.start('command_guard', given)
    assert child.wait(30) == 2
    (line,) = supervisor.log('command_guard').splitlines()
    assert f'parameters of command_guard: {told}' in line
