"""The twin's node: a driver's topics, real time, resets."""

from __future__ import annotations

import json
import time

import mujoco
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray, String
from std_srvs.srv import SetBool
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from robot_rl import registry
from robot_rl.imitation.data import judge
from robot_rl.nodes.supervisor import NodeFailure
from robot_rl.sim.environment import HELD_OUT
from robot_rl.specs import RobotSpec
from robot_rl.storage.store import Store

READER = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
CONTROLLER = 'forward_position_controller/commands'


@pytest.fixture
def twin(supervisor, observer, conductor):
    class Twin:
        def __init__(self):
            supervisor.start('sim_robot', {'seed': 11})
            supervisor.wait_ready()
            self.states = observer.listen(JointState, 'joint_states')
            self.targets = observer.listen(PoseStamped, 'target_pose')
            self.commands = observer.publisher(Float64MultiArray, CONTROLLER)
            self.session = conductor('sim_robot')
            observer.until(lambda: self.states and self.targets)

        def position(self):
            return np.array(self.states[-1].position)

        def target(self):
            p = self.targets[-1].pose.position
            return [p.x, p.y, p.z]

    return Twin()


def test_it_speaks_as_the_driver_and_starts_at_its_seed(twin, observer, ur5e):
    worlds = observer.listen(String, 'sim_robot/world', READER)
    start = registry.make_task('ur5e/reach').initial(11)
    state, target = twin.states[0], twin.targets[0]
    assert state.name == list(ur5e.joints) and state.header.frame_id == ur5e.base_frame
    np.testing.assert_allclose(state.position, start.joint_position, atol=1e-3)
    np.testing.assert_allclose(twin.target(), start.target)
    assert target.pose.orientation.w == 1.0 and target.header.frame_id == ur5e.base_frame
    observer.until(lambda: worlds)
    assert json.loads(worlds[0].data) == {'seed': 11}  # and nothing that differs from the model
    observer.until(lambda: len(twin.states) >= 100)
    stamps = np.array([m.header.stamp.sec + m.header.stamp.nanosec * 1e-9 for m in twin.states])
    assert (np.diff(stamps) > 0).all() and np.median(np.diff(stamps)) < 0.02
    assert 3 < len(twin.states) / len(twin.targets) < 7


def test_it_follows_commands_and_drops_bad_ones(twin, supervisor, observer, ur5e):
    goal = ur5e.home_position + 0.3
    for bad in ([float('nan')] * 6, [0.0] * 5):
        twin.commands.publish(Float64MultiArray(data=bad))
        observer.until(lambda: 'takes 6 finite joint positions' in supervisor.log('sim_robot'))
    twin.commands.publish(Float64MultiArray(data=goal.tolist()))
    observer.until(lambda: np.abs(twin.position() - goal).max() < 0.01)
    np.testing.assert_allclose(twin.position(), goal, atol=0.01)


def test_an_episode_starts_at_its_seed_and_old_commands_do_not_move_it(twin, observer, ur5e):
    far = (ur5e.home_position + 0.5).tolist()
    twin.session.say('prepare', seed=77)
    twin.session.hears('ready')
    start = registry.make_task('ur5e/reach').initial(77)
    twin.commands.publish(Float64MultiArray(data=far))
    observer.until(lambda: np.allclose(twin.target(), start.target))
    count = len(twin.states)
    observer.until(lambda: len(twin.states) > count + 20)
    np.testing.assert_allclose(twin.position(), start.joint_position, atol=2e-3)
    twin.session.say('ready')
    observer.until(lambda: len(twin.states) > count + 40)
    np.testing.assert_allclose(twin.position(), start.joint_position, atol=2e-3)
    twin.session.say('running')
    twin.commands.publish(Float64MultiArray(data=far))
    observer.until(lambda: np.abs(twin.position() - far).max() < 0.01)
    assert observer.call('sim_robot/reset').success
    start = registry.make_task('ur5e/reach').initial(11)
    observer.until(lambda: np.allclose(twin.position(), start.joint_position, atol=2e-3))


def test_an_arm_that_is_not_placed_is_led_on_while_an_episode_is_prepared(twin, observer, ur5e):
    """It heard no command any more, and an arm in motion stopped at once instead of braking."""
    goal = ur5e.home_position + 0.3
    twin.session.say('prepare')
    twin.session.hears('ready')
    twin.commands.publish(Float64MultiArray(data=goal.tolist()))
    off = lambda: np.abs(twin.position() - goal).max()  # noqa: E731
    observer.until(lambda: off() < 0.01, 'it hears nothing')
    assert off() < 0.02  # and stays there


def test_it_tells_how_real_its_time_is(twin, observer):
    diagnostics = observer.listen(DiagnosticArray, '/diagnostics')
    status = observer.until(lambda: diagnostics)[-1].status[0]
    values = {value.key: float(value.value) for value in status.values}
    assert status.name == 'sim_robot' and 0.5 < values['real_time_factor'] < 1.2


def test_it_refuses_to_be_another_robot(twin):
    twin.session.say('prepare', robot='fr3')
    told = twin.session.hears('error')
    assert told.startswith('simulates ur5e, not fr3 ') and "'robot: ur5e' is right" in told


def test_its_whole_state_is_there_for_whoever_draws_it(supervisor, observer):
    task = registry.make_task('ur5e/reach')
    supervisor.start('sim_robot', {'seed': 11, 'publish_state': True, 'state_rate_hz': 50.0})
    supervisor.wait_ready()
    best_effort = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
    states = observer.listen(Float64MultiArray, 'sim_robot/state', best_effort)
    joints = observer.listen(JointState, 'joint_states')
    observer.until(lambda: len(states) >= 50)
    data = mujoco.MjData(task.model())
    now, qpos, qvel, marker, upright, seed = np.split(
        np.array(states[-1].data), np.cumsum([1, data.qpos.size, data.qvel.size, 3, 4])
    )
    assert now > 0 and seed == 11 and qvel.shape == (data.qvel.size,)
    np.testing.assert_allclose(qpos, joints[-1].position, atol=1e-3)
    np.testing.assert_allclose(marker, task.initial(11).target)
    np.testing.assert_array_equal(upright, [1, 0, 0, 0])
    assert 1.5 < len(joints) / len(states) < 2.5


@pytest.fixture
def alone(supervisor, observer):
    """Return `start(robot, **parameters)`: a twin without a task, and what it publishes."""

    class Alone:
        def __init__(self, robot, **parameters):
            supervisor.start('sim_robot', {'robot': robot, **parameters})
            supervisor.wait_ready()
            self.spec = RobotSpec.load(robot)
            self.states = observer.listen(JointState, self.spec.joint_states_topic)
            observer.until(lambda: self.states)

        def position(self):
            """The arm's joints, whatever their order, and after them the gripper's."""
            state = self.states[-1]
            values = dict(zip(state.name, state.position, strict=True))
            return np.array([values[name] for name in self.spec.driver_joints])

        def jaw(self):
            state = self.states[-1]
            return state.position[list(state.name).index(self.spec.tf_prefix + 'jaw')]

        def passes(self, count):
            """Wait for so many further joint states and return them."""
            start = len(self.states)
            observer.until(lambda: len(self.states) >= start + count)
            return self.states[start : start + count]

    return Alone


class Teleop:
    """Commands the guard at 50 Hz, as somebody who jogs one joint after the other does."""

    def __init__(self, observer, twin):
        self.twin, self.velocity = twin, np.zeros(len(twin.spec.joints))
        self.goal = twin.position()
        self._message = JointTrajectory(joint_names=list(twin.spec.joints))
        self._message.points = [JointTrajectoryPoint()]
        self._message.points[0].time_from_start.nanosec = 20_000_000
        self._observer = observer
        self._publisher = observer.publisher(JointTrajectory, 'teleop/command', 1)
        self._timer = observer.node.create_timer(0.02, self._publish)

    def jog(self, joint, speed, seconds):
        self.velocity[joint] = speed
        start = self._observer.node.get_clock().now()
        self._observer.until(
            lambda: (self._observer.node.get_clock().now() - start).nanoseconds > seconds * 1e9
        )
        self.velocity[:] = 0

    def stands(self):
        """Wait until the arm stands where it was led, and return its joints.

        Near there is not enough: what one joint still had to go would count as moved by the next.
        """

        def stands():
            states = self.twin.passes(20)
            ways = np.ptp([state.position for state in states], axis=0)
            return ways.max() < 1e-3 and np.abs(self.twin.position() - self.goal).max() < 0.01

        self._observer.until(stands)
        return self.twin.position()

    def _publish(self):
        self.goal = self.goal + 0.02 * self.velocity
        self._message.header.stamp = self._observer.stamp()
        self._message.points[0].positions = self.goal.tolist()
        self._publisher.publish(self._message)


@pytest.mark.parametrize(
    ('model', 'tolerance'),
    [
        pytest.param('arm', 6e-3, marks=pytest.mark.slow),
        pytest.param('scene', 6e-3, marks=pytest.mark.slow),
        pytest.param('motors', 1e-3, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_any_arm_is_held_at_home_and_jogged_through_the_guard(
    maker_arm, supervisor, alone, observer, model, tolerance
):
    robot = maker_arm(model)
    twin = alone(robot)
    assert twin.states[0].name == [*twin.spec.joints, 'jaw', 'finger_joint2']
    for state in twin.passes(100):
        held = np.array(state.position[:4]) - twin.spec.home_position
        assert np.abs(held).max() < tolerance
    supervisor.start('command_guard', {'robot': robot})
    supervisor.wait_ready()
    sources = observer.listen(String, 'command_guard/source', READER)
    teleop = Teleop(observer, twin)
    observer.until(lambda: sources and sources[-1].data == 'teleop')
    before = teleop.stands()
    for joint, speed in enumerate((0.4, -0.2, -0.3, 0.5)):
        teleop.jog(joint, speed, 0.6)
        after = teleop.stands()
        moved, before = after - before, after
        assert (
            np.sign(moved[joint]) == np.sign(speed) and abs(moved[joint]) > 0.5 * abs(speed) * 0.6
        )
        assert np.abs(np.delete(moved, joint)).max() < 0.01


@pytest.mark.slow
def test_the_gripper_is_moved_through_the_guard(maker_arm, supervisor, alone, observer):
    robot = maker_arm()
    twin = alone(robot)
    supervisor.start('command_guard', {'robot': robot})
    supervisor.wait_ready()
    widths = observer.publisher(Float64MultiArray, 'teleop/gripper')
    told = observer.listen(Float64MultiArray, 'gripper_controller/commands')

    def opens(width):
        widths.publish(Float64MultiArray(data=[width]))  # again and again, as teleoperation does
        return abs(twin.jaw() - 0.04) < 1e-3

    observer.until(lambda: opens(0.5))  # no wider than it can
    assert {message.data[0] for message in told} == {0.08}
    assert observer.call('command_guard/estop').success
    count = len(told)
    widths.publish(Float64MultiArray(data=[0.0]))
    observer.until(lambda: 'gripper: the emergency stop' in supervisor.log('command_guard'))
    twin.passes(100)
    assert len(told) == count and abs(twin.jaw() - 0.04) < 1e-3


def test_order_prefix_gripper_and_topics_are_its_drivers(maker_arm, alone, observer):
    twin = alone(maker_arm() + '@left_', joint_states_order='alphabetical')
    names = list(twin.states[0].name)
    assert names == sorted(f'left_{n}' for n in [*twin.spec.joints, 'jaw', 'finger_joint2'])
    np.testing.assert_allclose(twin.position(), twin.spec.home_position, atol=6e-3)
    assert 'target_pose' not in [
        name.lstrip('/') for name, _ in observer.node.get_topic_names_and_types()
    ]
    jaw = observer.publisher(Float64MultiArray, 'gripper_controller/commands')
    for wrong in ([0.02, 0.02], [0.09], [float('nan')]):
        jaw.publish(Float64MultiArray(data=wrong))
    jaw.publish(Float64MultiArray(data=[0.05]))
    observer.until(lambda: abs(twin.jaw() - 0.025) < 1e-3)


def test_a_task_stays_where_the_robot_is_its_own(alone, observer):
    twin = alone('ur5e', seed=11)
    targets = observer.listen(PoseStamped, 'target_pose')
    observer.until(lambda: targets)
    start = registry.make_task('ur5e/reach').initial(11)
    np.testing.assert_allclose(twin.position(), start.joint_position, atol=2e-3)


@pytest.mark.slow
def test_imperfections_are_parameters(maker_arm, alone, observer):
    twin = alone(
        maker_arm(),
        position_noise=[0.01, 0.02, 0.03, 0.04],
        dropout=0.5,
        command_delay_s=0.3,
        gain=0.5,
    )
    states = twin.passes(300)
    noise = np.array([state.position[:4] for state in states]).std(axis=0)
    np.testing.assert_allclose(noise, [0.01, 0.02, 0.03, 0.04], rtol=0.3)
    stamps = np.array([s.header.stamp.sec + s.header.stamp.nanosec * 1e-9 for s in states])
    assert 1.5 < (stamps[-1] - stamps[0]) / 0.01 / 300 < 2.5
    commands = observer.publisher(Float64MultiArray, 'arm_controller/commands')
    told = observer.node.get_clock().now().nanoseconds * 1e-9
    commands.publish(Float64MultiArray(data=(twin.spec.home_position + 0.4).tolist()))
    observer.until(lambda: twin.position()[0] > twin.spec.home_position[0] + 0.1)
    stamp = twin.states[-1].header.stamp
    assert 0.3 < stamp.sec + stamp.nanosec * 1e-9 - told < 1.0


def test_time_stands_still_while_it_is_paused(maker_arm, alone, observer):
    twin = alone(maker_arm())
    diagnostics = observer.listen(DiagnosticArray, '/diagnostics')
    said = observer.call('sim_robot/pause', SetBool, SetBool.Request(data=True))
    assert (said.success, said.message) == (True, 'paused')
    observer.until(lambda: diagnostics and diagnostics[-1].status[0].message == 'paused')
    values = {v.key: float(v.value) for v in diagnostics[-1].status[0].values}
    count, seen = len(twin.states), len(diagnostics)
    # Commands come to nobody: an arm that cannot move must not jump when time goes on.
    commands = observer.publisher(Float64MultiArray, 'arm_controller/commands')
    commands.publish(Float64MultiArray(data=(twin.spec.home_position + 0.5).tolist()))
    observer.until(lambda: len(diagnostics) >= seen + 2)
    assert len(twin.states) == count
    later = {v.key: float(v.value) for v in diagnostics[-1].status[0].values}
    assert later['time_s'] == values['time_s']
    assert observer.call('sim_robot/pause', SetBool, SetBool.Request(data=False)).success
    states = twin.passes(50)
    assert max(abs(np.array(states[-1].position[:4]) - twin.spec.home_position)) < 6e-3


def test_it_is_pushed_as_its_parameters_say_now(maker_arm, alone, observer):
    twin = alone(maker_arm(), push_force_n=[0.0, 0.0, 0.0])

    def far():
        return max(
            np.abs(np.array(s.position[:4]) - twin.spec.home_position).max()
            for s in twin.states[-60:]
        )

    def change(name, value):
        request = SetParameters.Request(
            parameters=[Parameter(name, value=value).to_parameter_msg()]
        )
        return observer.call('sim_robot/set_parameters', SetParameters, request).results[0]

    assert observer.call('sim_robot/perturb').success
    twin.passes(60)
    assert far() < 6e-3
    for name, value, told in (
        ('push_force_n', [2000.0, 0.0, 0.0], 'push_force_n.0: must be less than or equal to 1000'),
        ('push_force_n', [1.0], 'push_force_n'),
        ('push_duration_s', 20.0, 'push_duration_s out of range'),
        ('seed', 4, 'read-only'),
    ):
        result = change(name, value)
        assert not result.successful and told in result.reason
    assert change('push_force_n', [0.0, 150.0, 0.0]).successful
    assert change('push_duration_s', 0.3).successful
    said = observer.call('sim_robot/perturb')
    assert said.success and '150.0' in said.message
    twin.passes(50)
    assert far() > 0.02
    twin.passes(150)
    assert far() < 6e-3  # back home, by its servos


def test_simulated_time_is_told_and_passes_at_the_speed_that_is_asked(
    maker_arm, supervisor, alone, observer
):
    clock = observer.listen(
        Clock, '/clock', QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
    )
    twin = alone(maker_arm(), publish_clock=True, speed=2.0)
    twin.passes(20)
    began, first = time.monotonic(), twin.states[-1].header.stamp
    twin.passes(300)
    took, last = time.monotonic() - began, twin.states[-1].header.stamp
    simulated = (last.sec - first.sec) + (last.nanosec - first.nanosec) * 1e-9
    assert simulated == pytest.approx(3.0, abs=0.5) and 1.5 < simulated / took < 2.5
    times = [c.clock.sec + c.clock.nanosec * 1e-9 for c in clock]
    assert times == sorted(times) and times[0] < 60.0  # from 0 on, and no clock on the wall
    assert abs(times[-1] - (last.sec + last.nanosec * 1e-9)) < 0.5
    assert observer.call('sim_robot/reset').success
    states = twin.passes(5)
    assert states[-1].header.stamp.sec >= last.sec  # the clock goes on


def test_a_speed_that_nobody_would_know_of_is_refused(supervisor):
    supervisor.start('sim_robot', {'speed': 2.0})
    with pytest.raises(NodeFailure):
        supervisor.wait_ready()
    assert 'speed 2.0 needs publish_clock' in supervisor.log('sim_robot')


@pytest.mark.slow
def test_a_whole_graph_lives_by_its_clock(supervisor, tmp_path):
    by_clock = {'use_sim_time': True}
    supervisor.start('sim_robot', by_clock | {'publish_clock': True})
    supervisor.start('command_guard', by_clock)
    supervisor.start('episode_recorder', by_clock | {'root': str(tmp_path)})
    supervisor.start('policy', by_clock | {'policy': 'ur5e_reach'})
    told = {'policy': 'ur5e_reach', 'episodes': 2, 'first_seed': HELD_OUT}
    supervisor.start('session', by_clock | told)
    assert len(list(supervisor.follow('session', timeout_s=60.0))) == 2
    store = Store(tmp_path)
    judged = judge(store, registry.make_task('ur5e/reach'))
    assert [episode.header.success for episode in judged] == [True, True]
    for episode in judged:
        times = episode.columns['time']
        assert 0 < times[0] < 120 and (np.diff(times) > 0).all()
