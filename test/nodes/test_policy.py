"""The policy's node: lifecycle, ticks, stamps, and what it does with bad inputs."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest
import rclpy
from geometry_msgs.msg import PoseStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory

from robot_rl import registry
from robot_rl.control.observation import Observer
from robot_rl.control.runtime import identify, load_policy
from robot_rl.nodes.policy import PolicyNode
from robot_rl.robots.kinematics import KinematicChain


@pytest.fixture
def contract():
    return registry.make_task('ur5e/reach').contract()


@pytest.fixture
def world(observer, arm):
    """An arm at home, a target, and somebody who listens where the guard would."""

    class World:
        def __init__(self):
            self.commands = observer.listen(JointTrajectory, 'policy/command')
            self.actions = observer.listen(JointTrajectory, 'policy/action')
            self.arm = arm()
            self.pose = PoseStamped()
            self.pose.pose.position.x, self.pose.pose.position.z = 0.5, 0.4
            self._targets = observer.node.create_publisher(PoseStamped, 'target_pose', 10)
            self.targets = observer.node.create_timer(0.02, self._publish)

        def _publish(self):
            self.pose.header.stamp = observer.stamp()
            self._targets.publish(self.pose)

    return World


def run_episode(session, **fields):
    session.say('prepare', **fields)
    session.hears('ready')
    session.say('ready')
    session.say('running')
    return session.hears('done')


def test_exactly_max_steps_ticks_with_the_stamps_of_their_joint_states(
    supervisor, observer, conductor, world, policy_file, contract, ur5e
):
    supervisor.start('policy', {'policy': str(policy_file(contract, seed=3))})
    supervisor.wait_ready()
    session, world = conductor('policy'), world()
    session.say('prepare', max_steps=8)
    assert session.hears('ready') == 'random-3'
    session.say('running')
    assert session.hears('done').startswith('8 ticks')
    assert len(world.commands) == len(world.actions) == 8
    stamps = [(m.header.stamp.sec, m.header.stamp.nanosec) for m in world.actions]
    assert stamps == sorted(set(stamps)) and set(stamps) <= set(world.arm.stamps)
    command = ur5e.home_position
    for message, action in zip(world.commands, world.actions, strict=True):
        assert (message.joint_names, message.header.frame_id) == (list(ur5e.joints), 'policy')
        assert action.joint_names == list(contract.action_names)
        assert message.header.stamp == action.header.stamp
        assert message.points[0].time_from_start.nanosec == 50_000_000
        requested = np.array(action.points[0].positions)
        assert (np.abs(requested) <= contract.action_upper + 1e-6).all() and requested.any()
        command = command + requested  # joint_delta: relative to the last command
        np.testing.assert_allclose(message.points[0].positions, command, atol=1e-6)
    # A new episode starts from where the arm stands.
    run_episode(session, episode='e2', max_steps=2)
    first = np.array(world.commands[8].points[0].positions)
    np.testing.assert_allclose(first, ur5e.home_position + world.actions[8].points[0].positions)


def test_the_first_action_is_that_of_the_file_on_the_measured_pose(
    supervisor, conductor, world, policy_file, contract, ur5e
):
    path = policy_file(contract, seed=5)
    supervisor.start('policy', {'policy': str(path)})
    supervisor.wait_ready()
    session, world = conductor('policy'), world()
    run_episode(session, max_steps=1)
    streams = {
        'joint_states': {'position': ur5e.home_position, 'velocity': np.zeros(6)},
        'command': {'position': ur5e.home_position},
        'target_pose': {'position': np.array([0.5, 0.0, 0.4])},
    }
    observation = Observer(contract, KinematicChain.from_spec(ur5e)).observe(streams)
    batch = {name: values[None] for name, values in observation.items()}
    expected, _ = load_policy(path).select(batch, {})
    np.testing.assert_allclose(world.actions[0].points[0].positions, expected[0], atol=1e-6)


def test_joint_states_in_another_order_among_others_are_mapped_by_name(
    supervisor, conductor, world, ur5e
):
    supervisor.start('policy', {'policy': 'constant'})
    supervisor.wait_ready()
    session, world = conductor('policy'), world()
    names, home = [*reversed(ur5e.joints), 'gripper'], ur5e.home_position
    message = world.arm.message
    message.name, message.velocity = names, []
    message.position = [*home[::-1].tolist(), 0.04]
    run_episode(session, max_steps=2)
    np.testing.assert_allclose(world.commands[-1].points[0].positions, home, atol=1e-9)


def test_joint_states_of_another_arm_keep_it_from_getting_ready(
    supervisor, observer, conductor, world
):
    supervisor.start('policy', {'policy': 'constant'})
    supervisor.wait_ready()
    session, world = conductor('policy'), world()
    world.arm.message.name = [f'joint_{i}' for i in range(6)]
    session.say('prepare', max_steps=2)
    detail = session.hears('preparing')
    assert "['shoulder_pan_joint'" in detail and 'are missing' in detail
    assert 'joint_states: none has come' in detail and not world.commands


def test_the_joint_states_of_a_gripper_are_passed_over(supervisor, conductor, world, arm, ur5e):
    """Of two messages that waited, both were the gripper's, and the episode broke off."""
    supervisor.start('policy', {'policy': 'constant'})
    supervisor.wait_ready()
    session, world = conductor('policy'), world()
    arm(['finger_joint'], [0.02], rate_hz=500.0)
    assert run_episode(session, max_steps=40).startswith('40 ticks')
    np.testing.assert_allclose(
        world.commands[-1].points[0].positions, ur5e.home_position, atol=1e-9
    )
    assert 'finger_joint' not in supervisor.log('policy')


def under_way(conductor, world, observer):
    """Return the session and the world of an episode in which the policy commands."""
    session, world = conductor('policy'), world()
    session.say('prepare', max_steps=1000)
    session.hears('ready')
    session.say('running')
    observer.until(lambda: len(world.commands) >= 3)
    return session, world


def test_when_joint_states_stop_it_breaks_the_episode_off(supervisor, observer, conductor, world):
    supervisor.start('policy', {'policy': 'random'})
    supervisor.wait_ready()
    session, world = under_way(conductor, world, observer)
    world.arm.stop()
    told = session.hears('error')
    assert 'joint_states is 0.' in told and 's old, at most 0.25 s' in told
    count = len(world.commands)
    assert count < 15
    session.say('ended', result='truncated')
    session.say('prepare', episode='e2')
    assert 'joint_states: none has come' in session.hears('preparing')
    assert len(world.commands) == count


def test_joint_states_from_the_future_break_the_episode_off(
    supervisor, observer, conductor, world
):
    supervisor.start('policy', {'policy': 'random'})
    supervisor.wait_ready()
    session, world = conductor('policy'), world()
    session.say('prepare', max_steps=100)
    session.hears('ready')
    session.say('running')
    observer.until(lambda: len(world.commands) >= 3)
    now = observer.stamp

    def ahead():
        stamp = now()
        stamp.sec += 1
        return stamp

    observer.stamp = ahead
    assert ' s in the future, at most 0.25 s' in session.hears('error')


def with_goals(contract):
    """Return a contract whose target is set, and so is a posture for two of the joints."""
    fields = [field.to_dict() for field in contract.observation]
    fields[-1] |= {'source': 'target_pose.position', 'max_age_s': None}
    posture = {'name': 'posture', 'source': 'posture.position', 'shape': [2], 'goal': True}
    posture |= {'names': ['wrist_3_joint', 'elbow_joint']}
    return contract.replace(observation=[*fields, posture])


@pytest.fixture
def setting(observer, ur5e):
    """Return `set_goals(x)`, which sets both once, latched, as a person would."""
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    place = observer.node.create_publisher(PoseStamped, 'target_pose', latched)
    posture = observer.node.create_publisher(JointState, 'posture', latched)

    def set_goals(x: float, frame: str = '') -> None:
        pose = PoseStamped()
        pose.header.frame_id = frame
        pose.pose.position.x = x
        place.publish(pose)
        posture.publish(JointState(name=ur5e.joints[::-1], position=[x, 2, 3, 4, 5.0, 6]))

    return set_goals


def test_goals_are_set_once_stay_and_are_taken_at_the_next_tick(
    supervisor, observer, conductor, arm, setting, policy_file, contract, ur5e
):
    contract = with_goals(contract)
    path = policy_file(contract, seed=4)
    setting(0.25)  # before anybody listens
    supervisor.start('policy', {'policy': str(path)})
    supervisor.wait_ready()
    session = conductor('policy')
    commands = observer.listen(JointTrajectory, 'policy/command')
    actions = observer.listen(JointTrajectory, 'policy/action')
    arm()

    def expected(x: float, command: np.ndarray) -> np.ndarray:
        streams = {
            'joint_states': {'position': ur5e.home_position, 'velocity': np.zeros(6)},
            'command': {'position': command},
            'target_pose': {'position': np.array([x, 0.0, 0.0])},
            'posture': {'position': np.array([6, 5.0, 4, 3, 2, x])},
        }
        seen = Observer(contract, KinematicChain.from_spec(ur5e)).observe(streams)
        batch = {name: values[None] for name, values in seen.items()}
        return load_policy(path).select(batch, {})[0][0]

    for episode in ('e1', 'e2'):  # the second has the goals of the first
        run_episode(session, episode=episode, max_steps=1)
        np.testing.assert_allclose(
            actions[-1].points[0].positions, expected(0.25, ur5e.home_position), atol=1e-6
        )
    count = len(commands)
    session.say('prepare', episode='e3', max_steps=1000)
    session.hears('ready')
    session.say('running')
    observer.until(lambda: len(actions) > count + 3)
    setting(-0.5)
    observer.until(lambda: len(actions) > count + 16)
    k = count + 14  # far enough from both ends of the lists
    last = np.array(commands[k - 1].points[0].positions)
    now = actions[k].points[0].positions
    np.testing.assert_allclose(now, expected(-0.5, last), atol=1e-6)
    assert np.abs(now - expected(0.25, last)).max() > 1e-3
    setting(0.9, frame='camera_link')
    told = session.hears('error')
    assert "target_pose: is in frame 'camera_link', right is 'base_link'" in told
    session.say('prepare', episode='e4', max_steps=1)
    told = session.hears('preparing')  # the goal before it is not gone on with
    assert "'camera_link'" in told and 'nothing comes' not in told
    setting(0.9)
    session.hears('ready')


def test_a_goal_that_nobody_sets_or_that_is_streamed_is_told(
    supervisor, observer, conductor, world, policy_file, contract
):
    supervisor.start('policy', {'policy': str(policy_file(with_goals(contract)))})
    supervisor.wait_ready()
    session, _ = conductor('policy'), world()
    session.say('prepare', max_steps=2)
    told = session.hears('preparing')
    assert 'target_pose: none has come; posture: none has come' in told
    assert '/target_pose is streamed; a goal is set: right is transient_local, reliable' in told
    assert 'nobody publishes /posture (sensor_msgs/msg/JointState)' in told


def test_each_field_is_held_to_its_own_age_while_the_episode_runs(
    supervisor, observer, conductor, arm, world, policy_file, contract
):
    fields = [field.to_dict() for field in contract.observation]
    fields[-1] |= {'max_age_s': 0.4}
    contract = contract.replace(observation=fields)
    supervisor.start('policy', {'policy': str(policy_file(contract)), 'max_age_s': 1.0})
    supervisor.wait_ready()
    session, world = under_way(conductor, world, observer)
    world.targets.cancel()
    told = session.hears('error')
    assert re.search(
        r'target_from_tool: the newest of target_pose is 0\.\d+ s old, at most 0\.4 s', told
    )
    assert 'joint_states is' not in told


def test_velocities_that_are_differences_are_those_of_neighbouring_samples(
    domain_id, observer, ur5e
):
    rclpy.init(args=['--ros-args', '-p', 'policy:=constant'], domain_id=domain_id)
    node = PolicyNode()
    try:
        node._configure()
        arm, home = observer.publisher(JointState, 'joint_states'), ur5e.home_position
        observer.until(lambda: node.count_publishers('joint_states'))
        # The last two come between the same two ticks.
        for moved, elapsed_ms in ((0.0, 0), (0.4, 40), (0.41, 50)):
            message = JointState(name=ur5e.joints, position=(home + moved).tolist())
            message.header.stamp.sec, message.header.stamp.nanosec = 10, elapsed_ms * 1_000_000
            arm.publish(message)
            if not elapsed_ms:
                observer.until(
                    lambda: node._streams.poll() or node._loop.observations.latest('joint_states')
                )
        time.sleep(0.3)
        node._streams.poll()
        sample = node._loop.observations.latest('joint_states')
        np.testing.assert_allclose(sample['position'], home + 0.41)
        np.testing.assert_allclose(sample['velocity'], 0.01 / 0.01)
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


def test_nan_joint_states_are_no_samples(supervisor, observer, conductor, world):
    supervisor.start('policy', {'policy': 'constant'})
    supervisor.wait_ready()
    session, world = conductor('policy'), world()
    world.arm.message.position = [float('nan')] * 6
    session.say('prepare', max_steps=2)
    assert 'not finite' in session.hears('preparing')


def test_a_pose_in_another_frame_than_the_base_s_is_no_sample(
    supervisor, observer, conductor, world, policy_file, contract, ur5e
):
    supervisor.start('policy', {'policy': str(policy_file(contract))})
    supervisor.wait_ready()
    session, world = conductor('policy'), world()
    world.pose.header.frame_id = 'camera_link'
    session.say('prepare', max_steps=2)
    told = session.hears('preparing')
    assert "target_pose: is in frame 'camera_link', right is 'base_link', the base of ur5e" in told
    world.pose.header.frame_id = ur5e.driver_frame
    session.hears('ready')


def test_lifecycle_configure_activate_deactivate_cleanup(
    supervisor, observer, conductor, world, policy_file, contract
):
    supervisor.start('policy', {'policy': 'no/such.onnx', 'autostart': False})
    supervisor.wait_ready()

    def change(transition: int) -> bool:
        request = ChangeState.Request(transition=Transition(id=transition))
        return observer.call('policy/change_state', ChangeState, request).success

    def state() -> str:
        return observer.call('policy/get_state', GetState).current_state.label

    def use(policy: str) -> None:
        value = Parameter('policy', value=policy).to_parameter_msg()
        request = SetParameters.Request(parameters=[value])
        assert observer.call('policy/set_parameters', SetParameters, request).results[0].successful

    assert state() == 'unconfigured'
    assert not change(Transition.TRANSITION_CONFIGURE) and state() == 'unconfigured'
    assert 'no/such.onnx: cannot be read' in supervisor.log('policy')
    use(str(policy_file(contract)))
    assert change(Transition.TRANSITION_CONFIGURE) and state() == 'inactive'
    session, world = conductor('policy'), world()
    session.say('prepare', max_steps=1000)
    assert change(Transition.TRANSITION_ACTIVATE) and state() == 'active'
    session.hears('ready')
    session.say('running')
    observer.until(lambda: len(world.commands) >= 3)
    assert change(Transition.TRANSITION_DEACTIVATE) and state() == 'inactive'
    assert session.hears('error') == 'policy: stopped while the episode ran'
    count = len(world.commands)
    assert change(Transition.TRANSITION_CLEANUP) and state() == 'unconfigured'
    use('constant')
    assert change(Transition.TRANSITION_CONFIGURE) and change(Transition.TRANSITION_ACTIVATE)
    assert len(world.commands) == count
    run_episode(session, episode='e2', max_steps=2)
    observer.until(lambda: len(world.commands) == count + 2)


def test_a_policy_that_cannot_be_loaded_leaves_the_former_and_the_next_one_runs(
    supervisor, observer, conductor, world, policy_file, contract, tmp_path
):
    """It was deactivated first, and heard of no policy any more until it was started anew."""
    first, second = (policy_file(contract, seed=seed) for seed in (1, 2))
    broken, unfit = tmp_path / 'broken.onnx', contract.action[0].replace(kind='effort')
    broken.write_bytes(first.read_bytes()[:1000])
    supervisor.start('policy', {'policy': str(first)})
    supervisor.wait_ready()
    session, _ = conductor('policy'), world()

    def wanted(path):
        file, digest = identify(path)
        return {'policy_file': file, 'policy_sha256': digest, 'max_steps': 2}

    session.say('prepare', episode='e1', **wanted(broken))
    assert 'broken.onnx: ' in session.hears('error')
    session.say('ended', result='discarded')
    unfit = policy_file(contract.replace(action=[unfit.to_dict()]))
    session.say('prepare', episode='e2', **wanted(unfit))
    assert "kind 'effort'" in session.hears('error')
    session.say('ended', result='discarded')
    session.say('prepare', episode='e3', **wanted(second) | {'policy_sha256': '0'})
    assert 'is another file by now' in session.hears('error')
    session.say('ended', result='discarded')
    for episode, path, card in (('e4', first, 'random-1'), ('e5', second, 'random-2')):
        session.say('prepare', episode=episode, **wanted(path))
        assert session.hears('ready') == card
        session.say('running')
        assert session.hears('done').startswith('2 ticks')
        session.say('ended', result='truncated')


def test_a_policy_that_was_loaded_within_a_tick_broke_its_own_episode_off(
    supervisor, conductor, world, policy_file, contract
):
    """The former one's loop was stopped before it had seen its own episode's end."""
    files = [identify(policy_file(contract.replace(rate_hz=4.0), seed=seed)) for seed in (3, 4)]
    supervisor.start('policy', {'policy': files[1][0]})
    supervisor.wait_ready()
    session, world = conductor('policy'), world()
    for k in range(8):
        file, digest = files[k % 2]
        session.say(
            'prepare', episode=f'e{k}', policy_file=file, policy_sha256=digest, max_steps=50
        )
        session.hears('ready')
        session.say('running')
        session.hears('running')
    assert 'stopped while the episode ran' not in supervisor.log('policy')


def test_a_policy_is_loaded_where_none_is_but_not_where_a_person_has_deactivated_it(
    supervisor, observer, conductor, world, policy_file, contract
):
    supervisor.start('policy', {'policy': 'constant'})
    supervisor.wait_ready()
    file, digest = identify(policy_file(contract, seed=3))
    session, _ = conductor('policy'), world()

    def change(transition: int) -> bool:
        request = ChangeState.Request(transition=Transition(id=transition))
        return observer.call('policy/change_state', ChangeState, request).success

    assert change(Transition.TRANSITION_DEACTIVATE)
    session.say('prepare', policy_file=file, policy_sha256=digest, max_steps=2)
    time.sleep(0.5)
    assert observer.call('policy/get_state', GetState).current_state.label == 'inactive'
    assert change(Transition.TRANSITION_CLEANUP)
    session.say('ended', result='discarded')
    session.say('prepare', episode='e2')
    assert session.hears('ready') == 'random-3'
    session.say('running')
    assert session.hears('done').startswith('2 ticks')


@pytest.mark.parametrize('wrong', ['joints', 'stream', 'kind'])
def test_a_policy_that_does_not_fit_the_robot_is_refused_at_the_start(
    supervisor, policy_file, contract, wrong
):
    field = contract.action[0].to_dict()
    observation = [f.to_dict() for f in contract.observation]
    if wrong == 'joints':
        field['names'] = ['a', *field['names'][1:]]
    elif wrong == 'stream':
        observation[4]['source'] = 'env.target'
    else:
        field['kind'] = 'effort'
    other = contract.replace(action=[field], observation=observation)
    child = supervisor.start('policy', {'policy': str(policy_file(other))})
    assert child.wait(30) == 2
    words = {'joints': "joints ['a'] are not commanded", 'stream': "no stream 'env'"}
    lines = supervisor.log('policy').splitlines()
    assert len(lines) == 1 and words.get(wrong, "kind 'effort'") in lines[0]
