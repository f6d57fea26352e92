"""The guard in front of the twin, and a person who leads the arm by teleop/command."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray, String
from std_srvs.srv import SetBool
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from robot_rl import registry
from robot_rl.control.guard import GuardConfig
from robot_rl.control.observation import Observer as Observing
from robot_rl.control.runtime import identify, load_policy
from robot_rl.control.session import SessionInfo
from robot_rl.nodes.support import LATCHED_READER as READER
from robot_rl.nodes.support import seconds
from robot_rl.storage.columns import aligned_columns
from robot_rl.storage.episode import EpisodeReader
from robot_rl.storage.sources import HOLD, PERSON, POLICY

PERIOD_S = 0.05
# What a measured deceleration may be more than the commanded one: servos and clocks of processes.
SLACK = 1.5
# How long the twin's servos take to a command that stands still [s].
SERVO_S = 0.15


class Person:
    """Leads the arm at 20 Hz, from a thread, from where it is measured when he is heard."""

    def __init__(self, observer, robot):
        self._observer, self._robot = observer, robot
        self.states = observer.listen(JointState, 'joint_states')
        self.applied = observer.listen(JointTrajectory, 'command_guard/applied')
        self._commands = observer.publisher(JointTrajectory, 'teleop/command')
        observer.until(lambda: self.states, 'no joint states')
        says = observer.listen(String, 'command_guard/source', READER)
        observer.until(lambda: says and says[-1].data != 'starting', 'it listens still')
        self._stop, self._thread = threading.Event(), None

    def measured(self) -> np.ndarray:
        return np.array(self.states[-1].position)

    def lead(self, speed: float, seconds: float = float('inf')) -> None:
        """Turn the first joint at `speed` [rad/s] for a while, or until let_go()."""
        self._thread = threading.Thread(target=self._lead, args=(speed, seconds))
        self._thread.start()
        if seconds < float('inf'):
            self._thread.join()

    def let_go(self) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()

    def heard(self) -> bool:
        return bool(self.applied) and self.applied[-1].header.frame_id == 'teleop'

    def _lead(self, speed: float, seconds: float) -> None:
        goal, steps = self.measured(), 0
        while not self._stop.is_set() and steps * PERIOD_S < seconds:
            if not self.heard():  # far from the arm it would be approached slowly
                goal = self.measured()
            goal[0] += speed * PERIOD_S
            point = JointTrajectoryPoint(positions=goal.tolist())
            point.time_from_start.nanosec = int(PERIOD_S * 1e9)
            message = JointTrajectory(joint_names=list(self._robot.joints), points=[point])
            message.header.stamp = self._observer.stamp()
            self._commands.publish(message)
            steps += 1
            time.sleep(PERIOD_S)


@pytest.fixture
def person(observer, ur5e):
    people = []

    def make() -> Person:
        people.append(Person(observer, ur5e))
        return people[-1]

    yield make
    for one in people:
        one.let_go()


def run_an_episode(supervisor, tmp_path, policy='constant') -> None:
    """Start one of 30 s, of a policy that asks for no motion at all."""
    supervisor.start('sim_robot')
    supervisor.start('policy', {'policy': policy})
    supervisor.start('command_guard')
    supervisor.start('episode_recorder', {'root': str(tmp_path / 'episodes')})
    supervisor.wait_ready()
    given = {'policy': policy, 'episodes': 1, 'first_seed': 2**31, 'max_steps': 600}
    supervisor.start('session', given)


def pushes(observer, newtons: float, seconds: float) -> None:
    """Push the twin's tool sideways."""
    values = {'push_force_n': [0.0, newtons, 0.0], 'push_duration_s': seconds}
    request = SetParameters.Request()
    request.parameters = [Parameter(k, value=v).to_parameter_msg() for k, v in values.items()]
    done = observer.call('sim_robot/set_parameters', SetParameters, request)
    assert all(result.successful for result in done.results)
    assert observer.call('sim_robot/perturb').success


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_guard_that_is_ended_in_motion_brakes_the_arm_first(
    number, supervisor, observer, person, ur5e
):
    """It fell silent, and the arm's servos stopped it at once."""
    supervisor.start('sim_robot')
    guard = supervisor.start('command_guard')
    supervisor.wait_ready()
    person = person()
    person.lead(speed=1.0)
    observer.until(lambda: person.heard() and person.states[-1].velocity[0] > 0.9, 'it is slow')
    os.kill(guard.pid, number)
    ended = time.time()
    assert guard.wait(5) == 0
    observer.until(lambda: person.states[-1].velocity[0] < 1e-3, 'it never stands')
    # What the arm was told: slower by what its limits allow in the period before.
    told = [m.points[0] for m in person.applied if m.header.frame_id == 'hold']
    assert told, 'it was not braked'
    speeds = np.array([point.velocities[0] for point in told])
    assert speeds[0] > 0 and (np.diff(speeds) <= 1e-9).all()
    assert speeds[-1] <= ur5e.max_acceleration[0] * 0.02
    # What the twin says of itself.
    record = [s for s in list(person.states) if seconds(s.header.stamp) > ended - 0.1]
    speed = np.array([s.velocity[0] for s in record])
    times = np.array([seconds(s.header.stamp) for s in record])
    change = (speed[10:] - speed[:-10]) / (times[10:] - times[:-10])  # over 100 ms
    assert -change.min() < SLACK * ur5e.max_acceleration[0]
    assert -change.min() > 0.5 * ur5e.max_acceleration[0]


def test_a_policy_goes_on_from_where_a_person_has_led_the_arm(
    supervisor, observer, person, tmp_path
):
    """It went on from its own last command: it led the arm all the way back."""
    run_an_episode(supervisor, tmp_path)
    person = person()
    applied = person.applied
    observer.until(lambda: applied and applied[-1].header.frame_id == 'policy', 'no policy')
    began = person.measured()
    person.lead(speed=0.3, seconds=1.0)
    observer.until(lambda: applied[-1].header.frame_id == 'policy', 'it never takes over')
    count, led = len(applied), np.array(applied[-1].points[0].positions)
    assert led[0] - began[0] > 0.25
    observer.until(lambda: len(applied) > count + 200)
    after = [m for m in applied[count:] if m.header.frame_id == 'policy']
    assert len(after) > 150
    way = np.array([m.points[0].positions for m in after])
    np.testing.assert_allclose(way, np.broadcast_to(led, way.shape), atol=1e-3)
    np.testing.assert_allclose(person.measured(), led, atol=0.01)


def test_an_intervention_has_no_jump_and_every_step_of_it_its_source(
    supervisor, observer, person, ur5e, tmp_path
):
    run_an_episode(supervisor, tmp_path, policy='scripted')
    person = person()
    applied = person.applied

    def moves(source):
        point = applied[-1].points[0] if applied else None
        return (
            point
            and applied[-1].header.frame_id == source
            and max(map(abs, point.velocities)) > 0.3
        )

    observer.until(lambda: moves('policy'), 'the policy does not move')
    person.lead(speed=0.6, seconds=1.0)
    observer.until(lambda: moves('policy'), 'it does not go on')
    count = len(applied)
    observer.until(lambda: len(applied) > count + 50)
    assert observer.call('session/stop').success
    (line,) = supervisor.follow('session', 40)
    assert (line['result'], line['reason']) == ('truncated', 'stop')
    episode = EpisodeReader(Path(line['path']))
    assert episode.header.interventions == 1
    told = [m.message for m in episode.messages(['/command_guard/applied'])]
    by = [message.header.frame_id for message in told]
    begins = by.index('policy')
    ends = len(by) - by[::-1].index('policy')
    order = [source for source, _ in itertools.groupby(by[begins:ends])]
    assert order == ['policy', 'teleop', 'hold', 'policy']
    # A period that was late is made up for by two at most.
    path, speed = (
        np.array([getattr(message.points[0], name) for message in told[begins:ends]])
        for name in ('positions', 'velocities')
    )
    period_s = 2 * ur5e.controller.period_s
    assert (np.abs(np.diff(path, axis=0)) <= ur5e.max_velocity * period_s + 1e-9).all()
    assert (np.abs(np.diff(speed, axis=0)) <= ur5e.max_acceleration * period_s + 1e-9).all()
    columns = aligned_columns(episode)
    spells = [(n, len([*spell])) for n, spell in itertools.groupby(columns['source'].tolist())]
    assert [number for number, _ in spells] == [POLICY, PERSON, HOLD, POLICY]
    assert spells[1][1] == pytest.approx(20, abs=4) and spells[2][1] == pytest.approx(9, abs=4)
    # What was applied, step after step, leads where the guard held the arm, as the person wanted.
    led = columns['source'] == PERSON
    assert (columns['action/requested'][led, 0] > 0).all()
    way = columns['joint_states.position'][0] + columns['action/applied'].cumsum(axis=0)
    held = [message.points[0].positions for message in told if message.header.frame_id == 'hold']
    reached = way[np.flatnonzero(columns['source'] == HOLD)[-1]]
    assert np.abs(np.array(held) - reached).max(axis=1).min() < 1e-9
    *_, last = (m.message.points[0].positions for m in episode.messages(['/teleop/command']))
    np.testing.assert_allclose(reached, last, atol=0.1)  # it was still catching up, and brakes


def test_an_arm_that_is_held_off_its_path_ends_the_episode_and_is_held(
    supervisor, observer, person, tmp_path
):
    run_an_episode(supervisor, tmp_path)
    person = person()
    diagnostics = observer.listen(DiagnosticArray, '/diagnostics')
    applied = person.applied
    observer.until(lambda: len(applied) > 20 and applied[-1].header.frame_id == 'policy')
    pushes(observer, 1000.0, 4.0)
    (line,) = supervisor.follow('session', 40)
    assert line['result'] == 'truncated' and 'the arm does not follow' in line['reason']

    def said():
        states = [array.status[0] for array in list(diagnostics)]
        return [s for s in states if s.name == 'command_guard' and 'not follow' in s.message]

    status = observer.until(said)[-1]
    assert status.level == DiagnosticStatus.ERROR
    values = {value.key: value.value for value in status.values}
    assert values['astray'] == '1' and values['blocked'] == status.message
    # After the episode too, until somebody has looked.
    person.lead(speed=0.0, seconds=0.5)
    assert not person.heard()
    assert 'refused: teleop: the arm does not follow' in supervisor.log('command_guard')
    observer.until(lambda: observer.call('command_guard/reset').success)
    person.lead(speed=0.0)
    observer.until(person.heard, 'it stays blocked')


def test_an_arm_that_was_paused_does_not_go_after_what_it_has_missed(supervisor, observer, person):
    """It was told the held command, 0.5 s ahead, until it was heard; and then nothing else."""
    supervisor.start('sim_robot')
    supervisor.start('command_guard')
    supervisor.wait_ready()
    person = person()
    person.lead(speed=1.0)
    observer.until(lambda: person.heard() and person.states[-1].velocity[0] > 0.9, 'it is slow')
    assert observer.call('sim_robot/pause', SetBool, SetBool.Request(data=True)).success
    observer.until(lambda: person.applied[-1].header.frame_id == 'hold', 'it is heard for ever')
    person.let_go()
    stands, count = person.measured(), len(person.states)
    observer.until(lambda: person.applied[-1].points[0].velocities[0] == 0)
    assert person.applied[-1].points[0].positions[0] > stands[0] + 0.2
    time.sleep(0.5)
    assert observer.call('sim_robot/pause', SetBool, SetBool.Request(data=False)).success
    observer.until(lambda: len(person.states) > count + 100)
    # It was in motion, and has been told the old pose for some ticks.
    way = np.array([s.position[0] for s in list(person.states)[count:]]) - stands[0]
    assert np.abs(way).max() < 0.15
    assert abs(person.applied[-1].points[0].positions[0] - person.measured()[0]) < 0.05


def test_a_person_who_leads_all_the_time_does_not_keep_an_episode_from_being_ready(
    supervisor, observer, conductor, person
):
    """The guard was never without a command, so never ready, and did not say why."""
    supervisor.start('sim_robot')
    supervisor.start('command_guard')
    supervisor.wait_ready()
    person = person()
    person.lead(speed=0.6)
    observer.until(lambda: person.heard() and person.states[-1].velocity[0] > 0.5, 'it is slow')
    session = conductor('command_guard')
    session.say('prepare')
    session.hears('preparing')
    session.hears('ready')
    assert 'refused: teleop: an episode is being prepared' in supervisor.log('command_guard')
    observer.until(person.heard, 'the person is not heard again')


def test_a_velocity_controller_is_told_0_when_the_guard_falls_silent_or_ends(
    supervisor, observer, person, ur5e, tmp_path
):
    controller = {'kind': 'forward_velocity', 'topic': 'speed', 'driver_timeout_s': 0.1}
    robot = tmp_path / 'robot.yaml'
    robot.write_text(ur5e.replace(controller=controller).to_yaml())
    supervisor.start('sim_robot', {'task': '', 'robot': str(robot)})
    guard = supervisor.start('command_guard', {'robot': str(robot)})
    supervisor.wait_ready()
    told = observer.listen(Float64MultiArray, 'speed')
    person, most = person(), 2 * ur5e.max_acceleration * 0.01  # in two periods at most
    person.lead(speed=0.8)
    observer.until(lambda: told and told[-1].data[0] > 0.7, 'it is slow')
    assert (np.abs(told[0].data) <= most + 1e-9).all()
    os.kill(guard.pid, signal.SIGTERM)
    assert guard.wait(5) == 0
    way = np.array([message.data for message in told])
    assert not way[-1].any()
    assert (np.abs(np.diff(way, axis=0)) <= most + 1e-9).all()
    assert len(way) - np.argmax(way[:, 0]) > 0.7 / (ur5e.max_acceleration[0] * 0.01) / 2


def test_an_arm_that_takes_velocities_stops_by_itself_when_the_guard_dies(
    supervisor, observer, person, ur5e, tmp_path
):
    timeout_s = 0.4
    controller = {'kind': 'forward_velocity', 'topic': 'speed', 'driver_timeout_s': timeout_s}
    robot = tmp_path / 'robot.yaml'
    robot.write_text(ur5e.replace(controller=controller).to_yaml())
    supervisor.start('sim_robot', {'task': '', 'robot': str(robot)})
    supervisor.start('command_guard', {'robot': str(robot)})
    supervisor.wait_ready()
    told = observer.listen(Float64MultiArray, 'speed')
    person = person()
    person.lead(speed=0.8)
    moves = lambda: told[-1].data[0] > 0.7 and person.states[-1].velocity[0] > 0.6  # noqa: E731
    observer.until(lambda: told and moves(), 'it is slow')
    os.kill(supervisor.children.pop('command_guard').pid, signal.SIGKILL)
    died, stands_s = time.time(), timeout_s + 0.3  # what the servos take, and a busy machine
    observer.until(lambda: seconds(person.states[-1].header.stamp) > died + stands_s + 0.5)
    last = told[-1].data[0]
    assert last > 0.7, 'it was told to stop'
    # What the twin says of itself: it goes on as it was told last, and then stands.
    record = [s for s in list(person.states) if seconds(s.header.stamp) > died]
    times = np.array([seconds(s.header.stamp) for s in record]) - died
    speed = np.array([s.velocity[0] for s in record])
    place = np.array([s.position[0] for s in record])
    stands = times > stands_s
    assert speed[times < timeout_s / 2].min() > 0.5, 'it stops before'
    assert np.abs(speed[stands]).max() < 0.02 and np.ptp(place[stands]) < 2e-3
    assert last * timeout_s / 2 < place[-1] - place[0] < last * stands_s


class Watched:
    """What the arm is told and does, by the clocks of those who say it."""

    def __init__(self, observer, robot):
        self._robot = robot
        self.applied = observer.listen_timed(JointTrajectory, 'command_guard/applied')
        self.states = observer.listen(JointState, 'joint_states')
        self._to_arm = observer.listen(Float64MultiArray, robot.controller.topic)

    def moves(self, speed: float = 0.3) -> bool:
        """Tell whether a policy moves a joint faster than `speed` [rad/s] now."""
        if not self.applied or self.applied[-1][1].header.frame_id != 'policy':
            return False
        return max(map(abs, self.applied[-1][1].points[0].velocities)) > speed

    def require_guarded(self, ready_s: float) -> None:
        """Assert that the arm was commanded within its limits, and all the time that it moved.

        By `ready_s` the guard has brought it to rest, and is silent until the next command.
        """
        robot, period_s = self._robot, self._robot.controller.period_s
        to_arm, applied, states = list(self._to_arm), list(self.applied), list(self.states)
        points = [message.points[0] for _, message in applied]
        assert {tuple(m.data) for m in to_arm} <= {tuple(p.positions) for p in points}
        path, speeds = (
            np.array([getattr(p, name) for p in points]) for name in ('positions', 'velocities')
        )
        # A period that was late is made up for by two at most.
        change, way = robot.max_acceleration * 2 * period_s, robot.max_velocity * 2 * period_s
        assert (np.abs(np.diff(speeds, axis=0)) <= change + 1e-9).all()
        times = np.array([sent_s for sent_s, _ in applied])
        last = np.searchsorted(times, ready_s) - 1  # before the silence
        assert (np.abs(speeds[last]) <= change).all(), 'it fell silent in motion'
        gaps, steps = np.diff(times), np.abs(np.diff(path, axis=0))
        assert (steps[last] < 0.02).all(), 'it did not go on where the arm stands'
        gaps, steps = np.delete(gaps, last), np.delete(steps, last, axis=0)
        assert gaps.max() < GuardConfig().timeout_s and gaps.mean() < 1.2 * period_s
        assert (steps <= way + 1e-9).all()
        # And the twin, by its own record: it stands while nothing is said.
        stamps = np.array([seconds(state.header.stamp) for state in states])
        measured = np.abs([state.velocity for state in states])
        assert (measured <= robot.max_velocity).all()
        silent = (times[last] + SERVO_S < stamps) & (stamps < times[last + 1])
        assert (measured[silent] < 0.02).all()


@pytest.mark.slow
@pytest.mark.parametrize('by', ['the session', 'a person'])
def test_while_another_policy_is_loaded_the_arm_is_never_without_a_guard(
    by, supervisor, observer, ur5e, policy_file
):
    """By `ros2 param set /session policy`, or by the node's lifecycle while the arm moves."""
    task = registry.make_task('ur5e/reach')
    file, digest = identify(policy_file(task.contract(), seed=2))
    watched = Watched(observer, ur5e)
    told = observer.listen_timed(String, 'session/state', READER)
    actions = observer.listen(JointTrajectory, 'policy/action')
    targets = observer.listen(PoseStamped, 'target_pose')
    supervisor.start('sim_robot')
    supervisor.start('policy', {'policy': 'random', 'autostart': by == 'the session'})
    supervisor.start('command_guard')
    supervisor.wait_ready()

    def change(*transitions: int) -> None:
        for number in transitions:
            request = ChangeState.Request(transition=Transition(id=number))
            assert observer.call('policy/change_state', ChangeState, request).success

    def use(node: str) -> None:
        value = Parameter('policy', value=file).to_parameter_msg()
        request = SetParameters.Request(parameters=[value])
        done = observer.call(f'{node}/set_parameters', SetParameters, request)
        assert done.results[0].successful

    def second(state: str) -> list[tuple[float, SessionInfo]]:
        infos = [(at, SessionInfo.from_json(message.data)) for at, message in list(told)]
        return [(at, info) for at, info in infos if (info.index, info.state) == (1, state)]

    if by == 'a person':
        change(Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE)
    # Without seeds the twin begins where it stands, as an arm does.
    given = {'policy': 'random', 'episodes': 2, 'first_seed': -1, 'max_steps': 1000}
    given['participants'] = ['sim_robot', 'policy', 'command_guard']
    supervisor.start('session', given)
    observer.until(watched.moves, 'nothing moves')
    use('session')
    count = len(watched.applied)
    observer.until(lambda: len(watched.applied) > count + 50)  # the former one goes on
    observer.until(lambda: watched.moves(0.6), 'it is slow')
    if by == 'the session':
        assert observer.call('session/failure').success  # and the next one begins
    else:
        change(Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP)
        use('policy')
        change(Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE)
    observer.until(lambda: second('running'), 'there is no second episode')
    observer.until(watched.moves, 'the new policy does not move it')
    assert observer.call('session/failure').success
    assert [line['index'] for line in supervisor.follow('session', 40)] == [0, 1]
    observer.until(lambda: not any(watched.applied[-1][1].points[0].velocities), 'it never rests')
    ((ready_s, info),) = second('ready')
    assert (info.policy_file, info.policy_sha256) == (file, digest)
    watched.require_guarded(ready_s)
    action = next(m for m in actions if seconds(m.header.stamp) > ready_s)
    (state,) = (s for s in watched.states if s.header.stamp == action.header.stamp)
    asked = first_action(file, task, state, targets[-1].pose.position)
    np.testing.assert_allclose(action.points[0].positions, asked, atol=1e-3)


def first_action(file, task, state, place) -> np.ndarray:
    """Return what the policy in a file asks for [A] where an episode begins."""
    streams = {
        'joint_states': {'position': state.position, 'velocity': state.velocity},
        'command': {'position': state.position},
        'target_pose': {'position': np.array([place.x, place.y, place.z])},
    }
    seen = Observing(task.contract(), task.chain).observe(streams)
    batch = {name: values[None] for name, values in seen.items()}
    return load_policy(file).select(batch, {})[0][0]
