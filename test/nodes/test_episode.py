"""The whole graph: twin, policy, guard, recorder and session, each a process of its own."""

from __future__ import annotations

import hashlib
import json
import time
from collections import defaultdict

import numpy as np
import pytest
import yaml
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from robot_rl import registry, resources
from robot_rl.control.observation import Observer
from robot_rl.control.runtime import load_policy
from robot_rl.control.shelf import ROOT_VARIABLE, PolicyShelf
from robot_rl.sim.recorded import with_tool
from robot_rl.specs.base import load_yaml
from robot_rl.storage.columns import aligned_columns
from robot_rl.storage.episode import EpisodeReader

SEED = 2**31


@pytest.fixture
def graph(supervisor, tmp_path):
    """Return `start(policy, **session)`, which starts all nodes and then the session."""

    def start(policy: str, namespace: str = '', **session):
        supervisor.namespace = namespace
        supervisor.start('sim_robot')
        supervisor.start('policy', {'policy': policy})
        supervisor.start('command_guard')
        supervisor.start('episode_recorder', {'root': str(tmp_path / 'episodes')})
        supervisor.wait_ready()
        return supervisor.start(
            'session', {'policy': policy, 'first_seed': SEED, 'max_steps': 15} | session
        )

    return start


@pytest.mark.parametrize('memory', [pytest.param(0, marks=pytest.mark.slow), 8])
def test_episodes_of_a_policy_file_are_committed_and_what_it_saw_led_to_what_it_did(
    graph, supervisor, policy_file, tmp_path, memory
):
    task = registry.make_task('ur5e/reach')
    path = policy_file(task.contract(), seed=1, memory=memory)
    graph(str(path), episodes=2, tags=['smoke'], namespace='arm1')
    lines = list(supervisor.follow('session', 40))
    assert [line['seed'] for line in lines] == [SEED, SEED + 1]
    assert sorted(tmp_path.joinpath('episodes').iterdir()) == [
        tmp_path / 'episodes' / line['episode'] for line in lines
    ]
    for line in lines:
        episode = EpisodeReader(line['path'])
        header, columns = episode.header, aligned_columns(episode)
        assert (header.task, header.source, header.policy) == ('ur5e/reach', 'policy', 'random-1')
        assert header.policy_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (header.result, header.tags, header.robot) == ('truncated', ('smoke',), 'ur5e')
        assert header.contract == task.contract() and episode.damage() is None
        assert columns['action/requested'].shape == (15, 6)
        start = task.initial(header.seed)
        np.testing.assert_allclose(columns['joint_states.position'][0], start.joint_position)
        np.testing.assert_allclose(columns['target_pose.position'] - start.target, 0, atol=1e-12)
        _require_same_decisions(columns, task, load_policy(path))
        assert {t for t in header.topics if not t.startswith('/arm1/')} == set()
    assert supervisor.children['session'].returncode == 0
    assert set(supervisor.stop().values()) == {0}


@pytest.mark.slow
def test_another_policy_is_taken_with_the_next_episode(
    graph, supervisor, observer, policy_file, tmp_path, monkeypatch
):
    """By promotion, by rollback, by parameter; one that there is not is refused."""
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / 'shelf'))
    shelf, contract = PolicyShelf(), registry.make_task('ur5e/reach').contract()
    files = {seed: policy_file(contract, seed=seed) for seed in (1, 2)}
    shelf.promote(files[1], 'reach', 'random-1')
    graph('reach', episodes=0, max_steps=4)
    lines = supervisor.follow('session', 40)

    def runs_until(policy):
        for _, line in zip(range(8), lines, strict=False):
            header = EpisodeReader(line['path']).header
            if header.policy == policy:
                return header.policy_sha256
        raise AssertionError(f'{policy} was never taken')

    def set_policy(value):
        request = SetParameters.Request()
        request.parameters = [Parameter('policy', value=value).to_parameter_msg()]
        response = observer.call('session/set_parameters', SetParameters, request)
        return response.results[0]

    assert runs_until('random-1') == shelf.history('reach')[0].sha256
    shelf.promote(files[2], 'reach', 'random-2')
    assert runs_until('random-2') == hashlib.sha256(files[2].read_bytes()).hexdigest()
    shelf.rollback('reach')
    assert runs_until('random-1')
    refused = set_policy('nobody')
    assert not refused.successful and "unknown policy 'nobody'" in refused.reason
    assert set_policy(str(files[2])).successful
    assert runs_until('random-2')
    assert set_policy('constant').successful
    assert runs_until('constant') == ''
    assert supervisor.log('policy').count('refused') == 0


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['forward_velocity', 'joint_trajectory'])
def test_the_shipped_policy_succeeds_whatever_the_controller_takes(
    kind, supervisor, tmp_path, ur5e
):
    """`make demo` shows it for forward_position."""
    controller = {'kind': kind, 'topic': f'{kind}_controller/commands', 'driver_timeout_s': 0.1}
    controller |= {'time_from_start_s': 0.01}  # trained without the lag of a second period
    robot, task = tmp_path / 'robot.yaml', tmp_path / 'task.yaml'
    robot.write_text(ur5e.replace(controller=controller).to_yaml())
    config = registry.make_task('ur5e/reach').config
    task.write_text(config.replace(robot=str(robot)).to_yaml())
    supervisor.start('sim_robot', {'task': str(task)})
    supervisor.start('policy', {'policy': 'ur5e_reach', 'robot': str(robot), 'task': str(task)})
    supervisor.start('command_guard', {'robot': str(robot)})
    root = {'root': str(tmp_path / 'episodes'), 'robot': str(robot)}
    supervisor.start('episode_recorder', root)
    supervisor.wait_ready()
    given = {'policy': 'ur5e_reach', 'task': str(task), 'first_seed': SEED, 'episodes': 5}
    supervisor.start('session', given)
    lines = list(supervisor.follow('session', 60))
    assert len(lines) == 5
    judge, done = registry.make_task(str(task)), 0
    for line in lines:
        columns = with_tool(judge, aligned_columns(EpisodeReader(line['path'])))
        done += bool(judge.success(columns))
    assert done >= 4


def _require_same_decisions(columns, task, policy):
    """Compare every requested action with the file's, on the columns of the row before it.

    A recurrent policy's state goes from tick to tick, and begins anew with the episode.
    """
    streams = defaultdict(dict)
    for name, values in columns.items():
        stream, _, quantity = name.partition('.')
        streams[stream][quantity] = values[:-1]
    observation = Observer(task.contract(), task.chain).observe(streams)
    state, expected = policy.initial_state(1), []
    for tick in range(len(columns['action/requested'])):
        seen = {name: values[tick][None] for name, values in observation.items()}
        action, state = policy.select(seen, state)
        expected.append(action[0])
    np.testing.assert_allclose(columns['action/requested'], expected, atol=1e-5)


@pytest.fixture
def watch(observer):
    """What the arm is told and where it is, and how to wait until it stands still."""

    class Watch:
        def __init__(self):
            self.states = observer.listen(JointState, 'joint_states')
            self.applied = observer.listen(JointTrajectory, 'command_guard/applied')
            self.to_arm = observer.listen(
                Float64MultiArray, 'forward_position_controller/commands'
            )

        def moving(self):
            observer.until(lambda: len(self.applied) > 30, 'nothing is applied')

        def source(self, name):
            observer.until(lambda: self.applied[-1].header.frame_id == name, name)

    return Watch()


@pytest.mark.slow
def test_the_arm_holds_when_the_policy_is_killed(graph, supervisor, watch, observer):
    graph('random', max_steps=400, run_margin_s=1.0)
    watch.moving()
    killed = time.time()
    supervisor.children['policy'].kill()
    watch.source('hold')
    # It brakes as the limits let it, and stands.
    observer.until(lambda: watch.to_arm[-1].data == watch.to_arm[-20].data, 'it never stands')
    held, count = list(watch.to_arm[-1].data), len(watch.to_arm)
    braking = [m for m in watch.applied if m.header.frame_id == 'hold']
    speed = np.abs([m.points[0].velocities for m in braking])
    assert (np.diff(speed, axis=0) <= 1e-9).all() and speed[-1].max() == 0
    # The guard itself says when: 0.1 s without a command, and its own period.
    last = next(m for m in reversed(watch.applied) if m.header.frame_id == 'policy')
    assert last.header.stamp.sec + last.header.stamp.nanosec * 1e-9 < killed + 0.1
    observer.until(lambda: len(watch.to_arm) > count + 50, 'the guard has gone')
    assert all(list(m.data) == held for m in watch.to_arm[count:])
    observer.until(lambda: abs(np.array(watch.states[-1].position) - held).max() < 0.01)
    del supervisor.children['policy']


@pytest.mark.slow
def test_an_episode_is_broken_off_when_the_arm_dies_and_kept(graph, supervisor, watch, tmp_path):
    session = graph('random', max_steps=400)
    watch.moving()
    supervisor.children['sim_robot'].kill()
    assert session.wait(40) == 0
    line = json.loads((supervisor.log_dir / 'session.out').read_text())
    assert line['result'] == 'truncated'
    assert 'the newest of joint_states is' in line['reason'] and 'at most' in line['reason']
    assert EpisodeReader(line['path']).header.termination == line['reason']
    del supervisor.children['sim_robot']


@pytest.mark.slow
def test_two_arms_at_once_run_one_policy_and_do_not_hear_each_other(supervisor, tmp_path):
    """Namespaces and prefixes, in one ROS domain."""
    sides, policy = ('left', 'right'), 'ur5e_reach'
    task = load_yaml(resources.find('config/tasks', 'ur5e_reach'))
    for side in sides:
        robot, path = f'ur5e@{side}_', tmp_path / f'{side}.yaml'
        path.write_text(yaml.safe_dump(task | {'robot': robot}))
        supervisor.namespace = side
        nodes = {
            'sim_robot': {'task': str(path)},
            'policy': {'policy': policy, 'robot': robot},
            'command_guard': {'robot': robot},
            'episode_recorder': {'robot': robot, 'root': str(tmp_path / side)},
        }
        for node, parameters in nodes.items():
            supervisor.start(node, parameters, name=f'{node}_{side}')
    supervisor.wait_ready(60)
    for number, side in enumerate(sides):
        supervisor.namespace = side
        session = {'task': str(tmp_path / f'{side}.yaml'), 'policy': policy, 'max_steps': 60}
        session['first_seed'] = SEED + number
        supervisor.start('session', session, name=f'session_{side}')
    for number, side in enumerate(sides):
        (line,) = supervisor.follow(f'session_{side}', 60)
        episode = EpisodeReader(line['path'])
        assert episode.header.robot == f'ur5e@{side}_'
        assert all(topic.startswith(f'/{side}/') for topic in episode.header.topics)
        joints = registry.make_task('ur5e/reach').robot.joints
        for item in episode.messages((f'/{side}/joint_states',)):
            assert item.message.name == [f'{side}_{joint}' for joint in joints]
        columns, reach = aligned_columns(episode), registry.make_task('ur5e/reach')
        start = reach.initial(SEED + number)
        np.testing.assert_allclose(columns['joint_states.position'][0], start.joint_position)
        # To its own target; not all the way where twelve processes leave a machine no time.
        ends = reach.chain.position(columns['joint_states.position'][[0, -1]])
        far, near = np.linalg.norm(ends - start.target, axis=1)
        assert near < 0.25 * far
