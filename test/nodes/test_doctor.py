"""robot-rl doctor on real graphs: a healthy twin, then one fault after another."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.time import Time
from sensor_msgs.msg import CompressedImage, JointState
from std_msgs.msg import Float64MultiArray, String
from trajectory_msgs.msg import JointTrajectory

from robot_rl.nodes.doctor import graph
from robot_rl.registry import make_task
from test.nodes.conftest import LATCHED

CONTROLLER = 'forward_position_controller/commands'
URDF = """<robot name="any">
  <joint name="shoulder_pan_joint" type="revolute">
    <limit lower="-1.0" upper="6.2832" velocity="0.1" effort="1"/>
  </joint>
</robot>"""


@pytest.fixture
def examine(domain_id, monkeypatch, ur5e):
    """Return `examine(robot, namespace)`, what the doctor finds, as 'LEVEL about: found' lines."""
    monkeypatch.setenv('ROS_DOMAIN_ID', str(domain_id))

    def run(robot=ur5e, namespace='', contract=None):
        findings = graph(robot, namespace, 2.0, contract)
        assert all(f.todo for f in findings if f.level != 'OK')
        return [f'{f.level} {f.about}: {f.found}' for f in findings]

    return run


def driver(observer, names, rate_hz=100.0, velocities=True, age_s=0.0):
    """Publish joint states as a driver would, and listen to commands."""
    node = observer.node
    message = JointState(name=list(names), position=[0.0] * len(names))
    message.velocity = [0.0] * len(names) if velocities else []
    publisher = node.create_publisher(JointState, 'joint_states', 10)

    def publish():
        now = node.get_clock().now().nanoseconds - round(age_s * 1e9)
        message.header.stamp = Time(nanoseconds=now).to_msg()
        publisher.publish(message)

    node.create_timer(1.0 / rate_hz, publish)
    node.create_subscription(Float64MultiArray, CONTROLLER, print, 10)


@pytest.mark.slow
def test_a_healthy_twin_has_no_error(supervisor, examine, domain_id, tmp_path):
    for node in ('sim_robot', 'policy', 'command_guard'):
        supervisor.start(node)
    supervisor.wait_ready()
    found = examine()
    assert not [line for line in found if line.startswith('ERROR')], found
    assert 'OK graph: 3 nodes: /command_guard, /policy, /sim_robot' in found
    assert f'OK /{CONTROLLER}: commanded by /command_guard alone' in found
    assert 'OK /joint_states: has all 6 joints, with velocities' in found
    assert 'OK endpoints: QoS and types of all topics go together' in found
    assert 'OK contract: none is known: no session has an episode in hand' in found
    assert 'OK use_sim_time: the same in all nodes that say it' in found
    command = [sys.executable, '-m', 'robot_rl.cli.main', 'doctor', '--json']
    done = subprocess.run(
        [*command, '--seconds', '1', '--namespace', 'left', '--store', str(tmp_path)],
        env=supervisor.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    told = json.loads(done.stdout)
    assert done.returncode == 1 and told['counts']['ERROR'] >= 1
    assert {'level': 'ERROR', 'about': '/left/joint_states', 'found': 'nobody publishes it'} in [
        {key: finding[key] for key in ('level', 'about', 'found')} for finding in told['findings']
    ]


def test_an_empty_graph_is_no_error(examine):
    (line,) = examine()
    assert line.startswith('WARN graph: no node runs in domain')


@pytest.mark.slow
def test_a_driver_that_is_late_slow_and_without_velocities(observer, examine, ur5e):
    jaw = {'joint': 'jaw', 'open_width': 0.1, 'topic': 'jaw/commands'}
    driver(observer, ur5e.joints, rate_hz=10, velocities=False, age_s=0.5)
    observer.node.create_publisher(Float64MultiArray, CONTROLLER, 10)
    observer.node.create_publisher(Float64MultiArray, CONTROLLER, 10)
    observer.node.create_publisher(String, 'robot_description', LATCHED).publish(String(data=URDF))
    found = '\n'.join(examine(ur5e.replace(gripper=jaw)))
    assert 'WARN /joint_states: velocities are empty' in found
    assert "WARN /joint_states: the gripper's joint jaw is not beside the arm's" in found
    assert 'Hz, joint_states_rate_hz is' in found and 'OK /joint_states: 1' not in found
    assert 'ERROR stamps of /joint_states: 5' in found
    assert f'ERROR /{CONTROLLER}: 2 publishers command the arm: /observer, /observer' in found
    assert (
        'ERROR limits of shoulder_pan_joint: min_position -6.28319, the arm has -1; '
        'max_velocity 3.14159, the arm has 0.1; max_effort 150, the arm has 1 (robot_description)'
    ) in found


@pytest.mark.slow
def test_what_a_task_reads_besides_joint_states(observer, examine):
    """One pose as it should be, one that nobody publishes, one of another type, one too old."""
    task = make_task('ur5e/lift')
    driver(observer, task.robot.driver_joints)
    (cube,) = (f for f in task.contract().observation if f.source == 'cube_pose.position')
    names = ('absent', 'wrong', 'old', 'displaced')
    fields = [cube.replace(name=n, source=f'{n}_pose.position', max_age_s=0.2) for n in names]
    contract = task.contract().replace(observation=(*task.contract().observation, *fields))
    node = observer.node
    node.create_publisher(String, 'wrong_pose', 10)
    streamed = {'cube_pose': 0.0, 'target_pose': 0.0, 'old_pose': 0.5, 'displaced_pose': 0.0}
    frames = {'cube_pose': task.robot.driver_frame, 'displaced_pose': 'camera_link'}
    publishers = {topic: node.create_publisher(PoseStamped, topic, 10) for topic in streamed}

    def publish():
        for topic, age_s in streamed.items():
            now = node.get_clock().now().nanoseconds - round(age_s * 1e9)
            message = PoseStamped()
            message.header.stamp = Time(nanoseconds=now).to_msg()
            message.header.frame_id = frames.get(topic, '')
            publishers[topic].publish(message)

    node.create_timer(0.05, publish)
    found = examine(task.robot, contract=contract)
    right = 'geometry_msgs/msg/PoseStamped'
    assert f'ERROR /absent_pose: nobody publishes it ({right}), and the task reads it' in found
    assert f'ERROR /wrong_pose: is std_msgs/msg/String, right is {right}' in found
    (healthy,) = (line for line in found if 'stamps of /cube_pose' in line)
    rate = float(re.match(r'OK stamps of /cube_pose: ([\d.]+) Hz, [\d.]+ ms old', healthy)[1])
    assert 10 <= rate <= 25
    assert [line for line in found if line.startswith('ERROR stamps of /old_pose: ')]
    displaced = (
        "ERROR /displaced_pose: is in frame 'camera_link', right is 'base_link', the base of "
    )
    assert [line for line in found if line.startswith(displaced)]


@pytest.mark.slow
def test_what_the_session_s_episode_reads_and_comes_too_seldom_or_without_stamps(
    observer, examine, ur5e
):
    """The session tells the contract; pictures come at half the rate of the robot's file."""
    node = observer.node
    driver(observer, ur5e.driver_joints)
    robot = ur5e.replace(cameras=[{'name': 'wrist', 'width': 4, 'height': 4, 'rate_hz': 10.0}])
    pose = {'name': 'seldom', 'source': 'seldom_pose.position', 'shape': (3,), 'unit': 'm'}
    view = {'name': 'view', 'source': 'wrist.image', 'shape': (4, 4, 3), 'dtype': 'uint8'}
    view |= {'encoding': 'jpeg', 'max_age_s': 0.5}
    goal = pose | {'name': 'place', 'source': 'place.position', 'goal': True}
    bare = pose | {'name': 'bare', 'source': 'bare_pose.position'}
    contract = make_task('ur5e/reach').contract().to_dict()
    contract['observation'] = [pose | {'max_age_s': 0.5}, view, goal, bare]
    info = {'state': 'prepare', 'episode': 'e1', 'contract': contract}
    node.create_publisher(String, 'session/state', LATCHED).publish(String(data=json.dumps(info)))

    def stream(kind, topic, period_s, stamped=True):
        publisher = node.create_publisher(kind, topic, 10)

        def publish():
            message = kind()
            if stamped:
                message.header.stamp = observer.stamp()
            publisher.publish(message)

        node.create_timer(period_s, publish)

    stream(PoseStamped, 'seldom_pose', 0.8)
    stream(PoseStamped, 'bare_pose', 0.1, stamped=False)
    stream(CompressedImage, 'wrist/image_raw/compressed', 0.2)
    node.create_publisher(PoseStamped, 'place', LATCHED)
    found = '\n'.join(examine(robot))
    assert re.search(r'ERROR /seldom_pose: nothing for 0\.\d+ s; seldom may be 0\.5 s old', found)
    assert 'ERROR stamps of /bare_pose: ' in found and 'are empty' in found
    (rate,) = re.findall(r"WARN /wrist/image_raw/compressed: ([\d.]+) Hz, the robot's file", found)
    assert 3 < float(rate) < 7
    assert 'WARN /place: no goal has been set' in found
    assert 'ERROR image_feed: does not run: policy gets no picture' in found


@pytest.mark.slow
def test_a_driver_of_other_joints_a_reader_of_other_qos_and_time_from_nowhere(
    observer, examine, ur5e
):
    driver(observer, ur5e.joints[1:])
    other = Node('other', context=observer.node.context)
    observer._executor.add_node(other)
    other.set_parameters([Parameter('use_sim_time', value=True)])
    best_effort = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    observer.node.create_publisher(JointTrajectory, 'policy/command', best_effort)
    observer.node.create_subscription(JointTrajectory, 'policy/command', print, 10)
    found = '\n'.join(examine())
    observer._executor.remove_node(other)
    other.destroy_node()
    assert f'ERROR /joint_states: joints {[ur5e.joints[0]]} are missing' in found
    assert f'WARN /{CONTROLLER}: nobody commands the arm' in found
    assert (
        'WARN /policy/command: /observer publishes, /observer reads: QoS reliability best_effort, '
        'wanted reliable'
    ) in found
    assert 'ERROR use_sim_time: no /clock, for /other' in found


@pytest.mark.slow
def test_wrong_types_and_limits_of_the_controller_manager(observer, examine, ur5e):
    node = observer.node
    node.create_publisher(String, 'joint_states', 10)
    node.create_publisher(JointTrajectory, CONTROLLER, 10)
    manager = Node('controller_manager', context=node.context)
    observer._executor.add_node(manager)
    planner = Node('move_group', context=node.context)
    observer._executor.add_node(planner)
    for joint in ur5e.joints:
        manager.declare_parameter(f'joint_limits.{joint}.max_velocity', 0.5)
        manager.declare_parameter(f'joint_limits.{joint}.max_effort', 1.0)
        manager.declare_parameter(f'joint_limits.{joint}.has_effort_limits', False)
        where = f'robot_description_planning.joint_limits.{joint}.max_acceleration'
        planner.declare_parameter(where, 2)
    try:
        found = '\n'.join(examine())
    finally:
        for other in (manager, planner):
            observer._executor.remove_node(other)
            other.destroy_node()
    assert 'ERROR /joint_states: is std_msgs/msg/String, right is sensor_msgs/msg/JointS' in found
    assert 'ERROR /joint_states: nothing came within 2 s' in found
    assert f'ERROR /{CONTROLLER}: is trajectory_msgs/msg/JointTrajectory, right is' in found
    assert f'ERROR /{CONTROLLER}: no arm listens' in found
    assert 'the arm has 0.5 (/controller_manager)' in found and 'max_effort' not in found
    planned = 'above what /move_group plans with: shoulder_pan_joint 3.14159, there 2; '
    assert f'WARN accelerations: {planned}' in found
    assert found.count('ERROR limits of') == len(ur5e.joints)


@pytest.mark.slow
def test_a_driver_whose_clock_is_ahead(observer, examine, ur5e):
    driver(observer, ur5e.joints, age_s=-1.0)
    found = '\n'.join(examine())
    assert 'ERROR stamps of /joint_states: 1.0' in found or '0.99' in found


@pytest.mark.slow
def test_a_controller_of_joints_in_another_order_and_a_recorder_that_is_no_arm(
    observer, examine, ur5e
):
    """Positions have no names: in another order each would go to another joint."""
    context = observer.node.context
    names = ['forward_position_controller', 'rosbag2_recorder']
    controller, recorder = nodes = [Node(name, context=context) for name in names]
    for node in nodes:
        observer._executor.add_node(node)
    recorder.create_subscription(Float64MultiArray, CONTROLLER, print, 10)
    assert f'ERROR /{CONTROLLER}: no arm listens, only /rosbag2_recorder' in examine()
    controller.create_subscription(Float64MultiArray, CONTROLLER, print, 10)
    joints, right = sorted(ur5e.joints), list(ur5e.joints)
    about = 'joints of /forward_position_controller'
    for given, told in (
        (joints, f'ERROR {about}: {joints}, in another order than {right}'),
        (right[:5], f'ERROR {about}: {right[:5]}, other ones than {right}'),
        (right, f'OK {about}: are those of the robot, in its order'),
    ):
        if controller.has_parameter('joints'):
            controller.undeclare_parameter('joints')
        controller.declare_parameter('joints', given)
        found = examine()
        assert told in found, found
        assert not [line for line in found if 'no arm listens' in line]
    by_name = ur5e.replace(controller={'kind': 'joint_trajectory', 'topic': CONTROLLER})
    controller.set_parameters([Parameter('joints', value=joints)])
    assert f'OK {about}: are those of the robot' in examine(by_name)
    jaw = {'joint': 'jaw', 'open_width': 0.1, 'topic': 'jaw/commands', 'kind': 'forward_position'}
    assert 'ERROR /jaw/commands: no gripper listens' in examine(ur5e.replace(gripper=jaw))
    controller.create_subscription(Float64MultiArray, 'jaw/commands', print, 10)
    found = examine(ur5e.replace(gripper=jaw))
    assert 'WARN /jaw/commands: nobody commands the gripper' in found
    assert f"ERROR {about}: {joints}, other ones than ['jaw']" in found
    for node in nodes:
        observer._executor.remove_node(node)
        node.destroy_node()
