"""The twin's node: a driver's topics, real time, resets."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray

from robot_rl import registry

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
    start = registry.make_task('ur5e/reach').initial(11)
    state, target = twin.states[0], twin.targets[0]
    assert state.name == list(ur5e.joints) and state.header.frame_id == ur5e.base_frame
    np.testing.assert_allclose(state.position, start.joint_position, atol=1e-3)
    np.testing.assert_allclose(twin.target(), start.target)
    assert target.pose.orientation.w == 1.0 and target.header.frame_id == ur5e.base_frame
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


def test_it_tells_how_real_its_time_is(twin, observer):
    diagnostics = observer.listen(DiagnosticArray, '/diagnostics')
    status = observer.until(lambda: diagnostics)[-1].status[0]
    values = {value.key: float(value.value) for value in status.values}
    assert status.name == 'sim_robot' and 0.5 < values['real_time_factor'] < 1.2


def test_it_refuses_to_be_another_robot(twin):
    twin.session.say('prepare', robot='fr3')
    assert twin.session.hears('error') == 'simulates ur5e, not fr3'


def test_its_whole_state_is_there_for_whoever_draws_it(supervisor, observer):
    task = registry.make_task('ur5e/reach')
    supervisor.start('sim_robot', {'seed': 11, 'publish_state': True, 'state_rate_hz': 50.0})
    supervisor.wait_ready()
    best_effort = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
    states = observer.listen(Float64MultiArray, 'sim_robot/state', best_effort)
    joints = observer.listen(JointState, 'joint_states')
    observer.until(lambda: len(states) >= 50)
    data = mujoco.MjData(task.model())
    time, qpos, qvel, marker, upright = np.split(
        np.array(states[-1].data), np.cumsum([1, data.qpos.size, data.qvel.size, 3])
    )
    assert time > 0 and qvel.shape == (data.qvel.size,)
    np.testing.assert_allclose(qpos, joints[-1].position, atol=1e-3)
    np.testing.assert_allclose(marker, task.initial(11).target)
    np.testing.assert_array_equal(upright, [1, 0, 0, 0])
    assert 1.5 < len(joints) / len(states) < 2.5
