"""The recorder's node, with publishers of the test."""

from __future__ import annotations

import itertools
import json
import os
import resource
import shutil
import signal
import time

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Float64MultiArray, String
from trajectory_msgs.msg import JointTrajectory

import robot_rl
from robot_rl import registry
from robot_rl.control.session import SessionInfo
from robot_rl.nodes.episode_recorder import EpisodeRecorder
from robot_rl.resources import git_revision
from robot_rl.sim.arm import ArmEnvironment
from robot_rl.storage.checksums import check
from robot_rl.storage.episode import EpisodeReader, read_header
from robot_rl.storage.recovery import recover

CONTROLLER = 'forward_position_controller/commands'


@pytest.fixture
def recorder(supervisor, observer, conductor, arm, tmp_path):
    class Recorder:
        def __init__(self, **parameters):
            self.root = tmp_path / 'episodes'
            self.child = supervisor.start(
                'episode_recorder', {'root': str(self.root)} | parameters
            )
            supervisor.wait_ready()
            self.session = conductor('episode_recorder')
            contract = registry.make_task('ur5e/reach').contract().to_dict()
            self.session.fields |= {'contract': contract, 'seed': 9, 'operator': 'ada'}

        def graph(self):
            """Let everything that an episode needs be published."""
            self.arm = arm()
            best_effort = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
            make = observer.node.create_publisher
            make(PoseStamped, 'target_pose', best_effort)
            make(Float64MultiArray, CONTROLLER, 1)
            make(JointTrajectory, 'command_guard/applied', 10)
            make(JointTrajectory, 'policy/command', 1)
            self.actions = make(JointTrajectory, 'policy/action', 10)

        def episode(self, name, actions=5):
            self.session.say('prepare', episode=name)
            self.session.hears('ready')
            self.session.say('running')
            for step in range(actions):
                message = JointTrajectory()
                message.header.stamp.sec = 100 + step
                self.actions.publish(message)
                time.sleep(0.02)

        def end(self, result='truncated', **fields):
            self.session.say('ended', result=result, **fields)
            return json.loads(self.session.hears('done'))

    return Recorder


def test_the_pictures_that_a_policy_sees_are_recorded_as_they_came(recorder, observer):
    recorder = recorder()
    contract = registry.make_task('ur5e/reach').contract()
    view = {'name': 'view', 'source': 'wrist.image', 'shape': [24, 32, 3], 'dtype': 'uint8'}
    fields = [*(f.to_dict() for f in contract.observation), view | {'encoding': 'jpeg'}]
    contract = contract.replace(observation=fields).to_dict()
    recorder.graph()
    recorder.session.say('prepare', episode='e1', contract=contract)
    told = recorder.session.hears('preparing')
    assert '/wrist/image_raw/compressed' in told
    pictures = observer.node.create_publisher(CompressedImage, 'wrist/image_raw/compressed', 5)
    recorder.session.hears('ready')
    recorder.session.say('running')
    for value in range(3):
        pictures.publish(CompressedImage(format='jpeg', data=[value] * 100))
        time.sleep(0.02)
    recorder.end()
    topic = '/wrist/image_raw/compressed'
    found = [m.message for m in EpisodeReader(recorder.root / 'e1').messages() if m.topic == topic]
    assert [bytes(message.data) for message in found] == [bytes([v] * 100) for v in range(3)]


def test_a_goal_that_was_set_once_is_in_every_episode_and_is_never_silent(
    recorder, observer, supervisor
):
    recorder = recorder(silent_s=0.1)
    fields = [f.to_dict() for f in registry.make_task('ur5e/reach').contract().observation]
    goal = {'name': 'place', 'source': 'place.position', 'shape': [3], 'goal': True}
    contract = recorder.session.fields['contract'] | {'observation': [*fields, goal]}
    recorder.session.fields |= {'contract': contract}
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    places = observer.node.create_publisher(PoseStamped, 'place', latched)

    def place(x):
        pose = PoseStamped()
        pose.pose.position.x = x
        places.publish(pose)

    place(0.5)
    recorder.graph()
    for episode in ('e1', 'e2'):
        recorder.episode(episode)
        observer.until(lambda: '/target_pose: silent for' in supervisor.log('episode_recorder'))
        recorder.end()
    place(0.7)
    recorder.episode('e3')
    recorder.end()
    assert '/place: silent' not in supervisor.log('episode_recorder')
    found = {}
    for episode in ('e1', 'e2', 'e3'):
        messages = EpisodeReader(recorder.root / episode).messages()
        found[episode] = [m.message.pose.position.x for m in messages if m.topic == '/place']
    assert (found['e1'], found['e2'], found['e3'][-1]) == ([0.5], [0.5], 0.7)


def test_an_episode_is_committed_with_every_message_and_true_times(recorder, observer):
    recorder = recorder()
    recorder.session.say('prepare', episode='e1')
    assert '/policy/action' in recorder.session.hears('preparing')
    before = time.time_ns()
    recorder.graph()
    recorder.session.hears('ready')
    recorder.episode('e1')
    about = recorder.end('success', reason='a person said so')
    episode = EpisodeReader(recorder.root / 'e1')
    header = episode.header
    assert about == {
        'path': str(recorder.root / 'e1'),
        'messages': sum(topic.count for topic in header.topics.values()),
        'lost': 0,
    }
    assert (header.result, header.success, header.termination) == (
        'success',
        True,
        'a person said so',
    )
    assert (header.seed, header.operator, header.robot, header.world) == (9, 'ada', 'ur5e', 'sim')
    assert header.robot_spec.name == 'ur5e' and header.contract.rate_hz == 20
    assert (header.code_version, header.git_revision) == (robot_rl.__version__, git_revision())
    assert header.topics['/policy/action'].count == 5
    assert header.topics['/joint_states'].type == 'sensor_msgs/msg/JointState'
    messages = list(episode.messages())
    actions = [m for m in messages if m.topic == '/policy/action']
    assert [m.message.header.stamp.sec for m in actions] == [100, 101, 102, 103, 104]
    assert [m.sequence for m in actions] == list(
        range(actions[0].sequence, actions[0].sequence + 5)
    )
    for message in (m for m in messages if m.topic != '/session/state'):
        assert before <= message.publish_time_ns <= message.log_time_ns <= time.time_ns()
    states = [m for m in messages if m.topic == '/joint_states']
    assert {(m.message.header.stamp.sec, m.message.header.stamp.nanosec) for m in states} <= set(
        recorder.arm.stamps
    )
    assert {m.topic for m in messages} >= {'/session/state'}


def test_the_first_commands_of_a_policy_in_the_place_of_a_person_are_waited_for(
    recorder, observer
):
    """A person takes time before the first; a demonstrator's were passed over."""
    recorder = recorder()
    recorder.graph()
    recorder.session.say('prepare', episode='e1', source='teleop', policy='')
    recorder.session.hears('ready')
    recorder.session.say('prepare', episode='e2', source='teleop', policy='scripted')
    assert '/teleop/command' in recorder.session.hears('preparing')
    time.sleep(0.5)
    assert json.loads(recorder.session.answers[-1].data)['state'] == 'preparing'
    observer.node.create_publisher(JointTrajectory, 'teleop/command', 1)
    recorder.session.hears('ready')


def test_two_publishers_on_one_topic_are_not_taken_for_losses(recorder, arm):
    recorder = recorder()
    recorder.graph()
    arm(['finger_joint'], [0.02], rate_hz=300.0)
    recorder.episode('e1')
    assert recorder.end()['lost'] == 0
    states = list(EpisodeReader(recorder.root / 'e1').messages(['/joint_states']))
    assert {len(state.message.name) for state in states} == {1, 6}
    # As the numbers of one publisher they would tell of losses.
    assert any(b.sequence - a.sequence > 1 for a, b in itertools.pairwise(states))


def test_discarded_and_failed_episodes_are_kept_apart(recorder):
    recorder = recorder()
    recorder.graph()
    recorder.episode('e1')
    assert recorder.end('discarded')['path'].endswith('e1.discarded')
    recorder.episode('e2')
    recorder.end('failure')
    assert EpisodeReader(recorder.root / 'e2').header.success is False
    assert sorted(path.name for path in recorder.root.iterdir()) == ['e1.discarded', 'e2']


def test_a_recorder_that_is_stopped_commits_what_it_has(recorder):
    recorder = recorder()
    recorder.graph()
    recorder.episode('e1', actions=3)
    recorder.child.send_signal(signal.SIGINT)
    assert recorder.child.wait(20) == 0
    header = EpisodeReader(recorder.root / 'e1').header
    assert (header.result, header.termination) == ('truncated', 'the recorder was stopped')
    assert header.topics['/policy/action'].count == 3


def test_an_episode_that_never_ran_is_discarded_when_the_recorder_is_stopped(recorder):
    recorder = recorder()
    recorder.graph()
    recorder.session.say('prepare', episode='e1')
    recorder.session.hears('ready')
    recorder.session.say('prepare', episode='e2')
    recorder.session.hears('ready')
    recorder.session.say('ready')
    recorder.child.send_signal(signal.SIGINT)
    assert recorder.child.wait(20) == 0
    names = sorted(path.name for path in recorder.root.iterdir())
    assert names == ['e1.discarded', 'e2.discarded']
    header = EpisodeReader(recorder.root / 'e2.discarded').header
    assert (header.result, header.termination) == ('discarded', 'the recorder was stopped')


def test_further_topics_are_recorded_and_a_prepared_successor_ends_an_episode(recorder, observer):
    recorder = recorder(topics=['notes'])
    recorder.graph()
    notes = observer.node.create_publisher(String, 'notes', 1)
    recorder.episode('e1')
    notes.publish(String(data='hello'))
    time.sleep(0.2)
    recorder.episode('e2')
    first = EpisodeReader(recorder.root / 'e1')
    assert first.header.termination == 'the next episode was prepared'
    assert [m.message.data for m in first.messages(['/notes'])] == ['hello']
    assert (recorder.root / 'e2.partial').is_dir()


def test_a_device_that_comes_when_the_episode_runs_is_recorded(recorder, observer):
    recorder = recorder(topics=['notes'])
    recorder.graph()
    recorder.episode('e1')
    device = observer.node.create_publisher(JointTrajectory, 'teleop/command', 1)
    notes = observer.node.create_publisher(String, 'notes', 1)
    for publisher in (device, notes):
        observer.until(lambda p=publisher: p.get_subscription_count() == 1)
    for step in range(5):
        message = JointTrajectory()
        message.header.stamp.sec = 200 + step
        device.publish(message)
        time.sleep(0.02)
    notes.publish(String(data='late'))
    time.sleep(0.1)
    recorder.end()
    episode = EpisodeReader(recorder.root / 'e1')
    stamps = [m.message.header.stamp.sec for m in episode.messages(['/teleop/command'])]
    assert stamps == [200, 201, 202, 203, 204]
    assert [m.message.data for m in episode.messages(['/notes'])] == ['late']
    assert episode.header.topics['/teleop/command'].lost == 0


def test_a_disk_that_gets_short_ends_the_episode_as_truncated_and_refuses_the_next(
    recorder, tmp_path
):
    recorder = recorder(min_free_gb=shutil.disk_usage(tmp_path).free / 1e9 - 0.5)
    recorder.graph()
    recorder.episode('e1')
    with (tmp_path / 'filling').open('wb') as file:
        os.posix_fallocate(file.fileno(), 0, 10**9)
    assert 'GB free' in recorder.session.hears('error')
    episode = EpisodeReader(recorder.root / 'e1')
    assert episode.damage() is None and episode.header.result == 'truncated'
    assert 'GB free' in episode.header.termination
    assert [m.topic for m in episode.messages(['/policy/action'])] == ['/policy/action'] * 5
    recorder.session.say('prepare', episode='e2')
    assert 'GB are wanted (parameter min_free_gb)' in recorder.session.hears('error')
    assert [path.name for path in recorder.root.iterdir()] == ['e1']
    (tmp_path / 'filling').unlink()


@pytest.mark.slow
def test_a_file_that_cannot_be_written_any_more_ends_the_episode_as_truncated(
    recorder, observer, supervisor
):
    """What had been written stayed partial until somebody recovered it."""
    recorder = recorder()
    recorder.graph()
    recorder.episode('e1')
    streams = recorder.root / 'e1.partial' / 'streams.mcap'
    actions = b'/policy/action'
    observer.until(lambda: actions in streams.read_bytes() or streams.stat().st_size > 5000)
    # As a disk that is full: for this process no file grows beyond what there is, and a little.
    limit = max(2**16, streams.stat().st_size) + 2**14
    resource.prlimit(recorder.child.pid, resource.RLIMIT_FSIZE, (limit, limit))
    told = recorder.session.hears('error')
    assert 'streams.mcap: cannot be written (File too large)' in told
    observer.until(lambda: (recorder.root / 'e1').exists(), 'it is not committed')
    episode = EpisodeReader(recorder.root / 'e1')
    assert episode.damage() is None and episode.header.result == 'truncated'
    assert 'File too large' in episode.header.termination
    assert len(list(episode.messages(['/joint_states']))) > 10
    resource.prlimit(recorder.child.pid, resource.RLIMIT_FSIZE, (2**12, limit))
    recorder.session.say('prepare', episode='e2')
    assert 'no episode can be recorded here (File too large)' in recorder.session.hears('error')
    assert [path.name for path in recorder.root.iterdir()] == ['e1']
    resource.prlimit(recorder.child.pid, resource.RLIMIT_FSIZE, (limit, limit))
    recorder.episode('e3')
    recorder.end()
    assert EpisodeReader(recorder.root / 'e3').damage() is None


def test_what_came_is_held_against_what_is_required(recorder, observer, arm):
    recorder = recorder()
    fields = registry.make_task('ur5e/reach').contract().to_dict()
    recorder.graph()
    recorder.arm.stop()
    arm(rate_hz=60.0)  # of the 100 Hz that the robot's file tells
    recorder.session.say('prepare', episode='e1', contract=fields)
    recorder.session.hears('ready')
    recorder.session.say('running')
    for _ in range(40):  # at the contract's 20 Hz
        recorder.actions.publish(JointTrajectory())
        time.sleep(0.05)
    recorder.end()
    header = EpisodeReader(recorder.root / 'e1').header
    states, actions = header.topics['/joint_states'], header.topics['/policy/action']
    assert (states.required_hz, actions.required_hz) == (100, 20)
    assert states.expected > 190 and states.got < states.count
    assert actions.count == 40 and actions.got >= 38 and actions.expected >= 38
    # Nobody commanded: what the guard tells is asked for from its first message on.
    assert header.topics['/command_guard/applied'].expected == 0
    flagged = [line.split(':')[0] for line in header.flags]
    assert '/joint_states' in flagged and '/policy/command' in flagged
    assert '/command_guard/applied' not in flagged and '/target_pose' not in flagged
    assert 0 <= states.delay_s <= states.longest_delay_s < 5


def test_diagnostics_tell_how_many_episodes_still_fit(recorder, observer):
    recorder = recorder()
    heard = observer.listen(DiagnosticArray, '/diagnostics')

    def left():
        about = [s for array in heard for s in array.status if s.name == 'episode_recorder']
        return {v.key: v.value for v in about[-1].values}['episodes_left'] if about else None

    observer.until(lambda: left() == '')  # none of any kind
    recorder.graph()
    recorder.episode('e1', actions=30)
    recorder.end()
    del heard[:]
    observer.until(lambda: left())
    free = shutil.disk_usage(recorder.root).free - 10**9
    size = (recorder.root / 'e1' / 'streams.mcap').stat().st_size
    assert int(left()) == pytest.approx(free / size, rel=0.05)


def test_a_folder_that_cannot_be_written_is_an_answer_not_an_end(recorder, tmp_path):
    (tmp_path / 'file').write_text('in the way')
    recorder = recorder(root=str(tmp_path / 'file' / 'episodes'))
    recorder.session.say('prepare', episode='e1')
    assert 'no episode can be recorded here' in recorder.session.hears('error')
    assert recorder.child.poll() is None


@pytest.mark.slow
def test_a_killed_recorder_loses_the_episode_in_hand_at_most(recorder, supervisor):
    recorder = recorder()
    recorder.graph()
    recorder.episode('e1')
    recorder.end()
    recorder.episode('e2', actions=60)  # longer than two flushes
    recorder.child.kill()
    recorder.child.wait(20)
    assert sorted(path.name for path in recorder.root.iterdir()) == ['e1', 'e2.partial']
    whole, cut = (EpisodeReader(recorder.root / name) for name in ('e1', 'e2.partial'))
    assert whole.damage() is None and cut.damage() is not None
    rescued = []
    with pytest.raises(Exception, match='cut off or damaged'):
        rescued.extend(m.topic for m in cut.messages())
    assert cut.header.operator == 'ada' and '/policy/action' in rescued


def test_an_episode_that_is_recorded_again_is_set_aside_and_kept(recorder):
    recorder = recorder()
    recorder.graph()
    recorder.episode('first')
    recorder.end('success')
    recorder.session.fields['instead_of'] = 'first'
    recorder.episode('second')
    recorder.end('failure')
    names = sorted(path.name for path in recorder.root.iterdir())
    assert names == ['first.discarded', 'second']
    assert EpisodeReader(recorder.root / 'first.discarded').damage() is None
    recorder.session.fields['instead_of'] = 'no such'  # which is told, and is no obstacle
    recorder.episode('third')
    recorder.end('success')
    assert (recorder.root / 'third').is_dir()


def test_where_nothing_can_be_recorded_no_episode_is_set_aside(recorder):
    recorder = recorder()
    recorder.graph()
    recorder.episode('first')
    recorder.end('success')
    resource.prlimit(recorder.child.pid, resource.RLIMIT_FSIZE, (2**12, -1))  # as a full disk
    recorder.session.say('prepare', episode='second', instead_of='first')
    assert 'no episode can be recorded here' in recorder.session.hears('error')
    assert [path.name for path in recorder.root.iterdir()] == ['first']


@pytest.mark.slow
def test_kills_at_random_moments_leave_every_episode_whole_or_recoverable(recorder, supervisor):
    """The node itself, ten times: while it prepares, records, commits or rests."""
    rng, recorder = np.random.default_rng(), recorder()
    recorder.graph()
    whole: dict[str, bytes] = {}  # as they were committed
    cut, lost_s = 0, []
    for number in range(10):
        id = f'e{number}'
        recorder.session.say('prepare', episode=id)
        recorder.session.hears('ready')
        recorder.session.say('running')
        ends = number % 3 == 0
        time.sleep(rng.uniform(0.0, 1.5) + ends)
        if ends:
            recorder.session.say('ended', result='truncated')
            time.sleep(rng.uniform(0.0, 0.15))  # in the middle of the commit, or after it
        supervisor.children['episode_recorder'].kill()
        killed_ns = time.time_ns()
        supervisor.restart('episode_recorder')
        supervisor.wait_ready()
        for name, data in whole.items():
            assert (recorder.root / name / 'streams.mcap').read_bytes() == data
        if (partial := recorder.root / f'{id}.partial').exists():
            cut += 1
            recover(partial)
            lost_s.append((killed_ns - read_header(recorder.root / id).end_time_ns) * 1e-9)
        episode = EpisodeReader(recorder.root / id)
        assert check(episode.path).damaged == () and episode.damage() is None
        assert episode.header.topics['/joint_states'].count > 0
        whole[id] = episode.streams_path.read_bytes()
    assert cut >= 6 and max(lost_s) < 1.0, lost_s
    assert sorted(path.name for path in recorder.root.iterdir()) == sorted(whole)


def test_the_world_that_a_twin_drew_is_in_the_header(
    recorder, observer, supervisor, conductor, tmp_path
):
    ranges = {'gain': (0.5, 1.0), 'command_delay': (0, 3), 'mass': {'*_link': (0.8, 1.3)}}
    task = registry.make_task('ur5e/reach')
    task = type(task)(task.config.replace(randomisation=ranges))
    path = tmp_path / 'shaken.yaml'
    path.write_text(task.config.to_yaml())
    supervisor.start('sim_robot', {'task': str(path)})
    recorder = recorder()
    recorder.graph()
    twin, simulated = conductor('sim_robot'), ArmEnvironment(task)
    for seed in (9, 10):
        recorder.session.fields |= {'seed': seed}
        recorder.episode(f'e{seed}')
        twin.hears('ready', episode=f'e{seed}')
        recorder.end()
        extra = read_header(recorder.root / f'e{seed}').extra
        simulated.reset([seed])
        assert extra['domain'] == simulated.domains[0].to_dict()
        again = type(task)(task.config.replace(randomisation=extra['randomisation']))
        assert again.randomisation == task.randomisation
    # What is no such word is told, and the recorder goes on.
    latched = QoSProfile(depth=2, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    worlds = observer.publisher(String, 'sim_robot/world', latched)
    for wrong in ('no JSON', '3'):
        worlds.publish(String(data=wrong))
    observer.until(lambda: supervisor.log('episode_recorder').count('no JSON object') == 2)
    # Without a seed the arm stands where it is, in the world that it is in.
    recorder.session.fields |= {'seed': None}
    recorder.episode('e11')
    recorder.end()
    assert read_header(recorder.root / 'e11').extra == extra


def test_what_is_prepared_while_the_recorder_ends_is_not_opened(domain_id, tmp_path):
    """Messages come until the last moment: nobody would have committed that episode."""
    rclpy.init(args=['--ros-args', '-p', f'root:={tmp_path}'], domain_id=domain_id)
    try:
        node = EpisodeRecorder()
        about = {'task': 'ur5e/reach', 'source': 'policy', 'policy': 'random', 'robot': 'ur5e'}
        node._on_session(SessionInfo(state='prepare', episode='e1', **about))
        assert [path.name for path in tmp_path.iterdir()] == ['e1.partial']
        node.close()
        node._on_session(SessionInfo(state='prepare', episode='e2', **about))
        assert [path.name for path in tmp_path.iterdir()] == ['e1.discarded']  # it had not run
        node.destroy_node()
    finally:
        rclpy.try_shutdown()
