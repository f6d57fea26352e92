"""The node teleop with the guard and the twin, in real processes."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import time

import numpy as np
import pytest
from geometry_msgs.msg import TwistStamped
from rcl_interfaces.srv import SetParameters
from rclpy.duration import Duration
from rclpy.parameter import Parameter
from sensor_msgs.msg import JointState, Joy
from std_msgs.msg import Bool, Float64MultiArray, String
from trajectory_msgs.msg import JointTrajectory

from robot_rl.nodes.support import LATCHED_READER as READER
from robot_rl.nodes.teleop import SOURCE_NAME

DEAD_MAN, FORWARD = 4, 1  # of config/teleop/gamepad.yaml


class Watched:
    """The twin behind the guard, and what is said of it."""

    def __init__(self, supervisor, observer, device: str, robot='ur5e', **given):
        self.observer = observer
        supervisor.start('sim_robot', {'robot': robot})
        supervisor.start('command_guard', {'robot': robot})
        supervisor.start('teleop', {'robot': robot, 'device': device} | given)
        self.states = observer.listen(JointState, 'joint_states')
        self.applied = observer.listen(JointTrajectory, 'command_guard/applied')
        self.asked = observer.listen(JointTrajectory, 'teleop/command')
        self.says = observer.listen(String, 'command_guard/source', READER)
        self.stopped = observer.listen(Bool, 'command_guard/estop_active', READER)
        supervisor.wait_ready()
        observer.until(lambda: self.source not in ('', 'starting'), 'the guard listens still')
        observer.until(lambda: self.states, 'no joint states')

    @property
    def source(self) -> str:
        return self.says[-1].data if self.says else ''

    def measured(self) -> np.ndarray:
        return np.array(self.states[-1].position)

    def moves_within(self, seconds: float) -> float:
        before, until = self.measured(), time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(0.01)
        return float(np.abs(self.measured() - before).max())

    def waits_for_motion(self) -> None:
        begun = self.measured()
        self.observer.until(
            lambda: np.abs(self.measured() - begun).max() > 0.05, 'the arm does not move'
        )
        assert self.source == SOURCE_NAME

    def waits_for_rest(self) -> None:
        """The arm comes to rest, and stays there."""
        self.observer.until(lambda: self.source != SOURCE_NAME, 'teleop is followed still')
        self.observer.until(lambda: self.moves_within(0.2) < 1e-3, 'the arm does not rest')
        assert self.moves_within(0.5) < 1e-3

    def assert_no_jump(self, robot) -> None:
        """What the guard let through is continuous: its steps are within the joints' speed."""
        path = np.array([message.points[0].positions for message in self.applied])
        speed = np.abs(np.diff(path, axis=0)) * 100.0
        assert (speed.max(axis=0) < robot.max_velocity).all()


class Pilot:
    """Holds a gamepad, and publishes its state 50 times a second."""

    def __init__(self, observer):
        self._observer = observer
        self.message = Joy(axes=[0.0] * 8, buttons=[0] * 11)
        self._publisher = observer.publisher(Joy, 'joy')
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._publish, daemon=True)
        self._thread.start()

    def hold(self, *buttons: int, forward: float = 0.0) -> None:
        """Hold that until told otherwise; return when teleop has heard of it."""
        axes = [0.0] * 8
        axes[FORWARD] = forward
        self.message = Joy(axes=axes, buttons=[int(i in buttons) for i in range(11)])
        self._publisher.publish(self.message)
        self._observer.until(lambda: self._publisher.wait_for_all_acked(Duration()), 'not heard')

    def die(self) -> None:
        self._stop.set()
        self._thread.join()

    def _publish(self) -> None:
        while not self._stop.wait(0.02):
            self._publisher.publish(self.message)


@pytest.fixture
def pilot(observer):
    pilots = []

    def make() -> Pilot:
        pilots.append(Pilot(observer))
        return pilots[-1]

    yield make
    for one in pilots:
        one.die()


def test_a_gamepad_moves_the_arm_only_while_its_button_is_held(supervisor, observer, pilot, ur5e):
    arm = Watched(supervisor, observer, 'joy')
    hand = pilot()
    hand.hold(forward=1.0)
    assert arm.moves_within(0.5) < 1e-3 and not arm.asked
    hand.hold(DEAD_MAN, forward=1.0)
    arm.waits_for_motion()
    hand.hold(forward=1.0)  # let go
    arm.waits_for_rest()
    silent = len(arm.asked)
    assert arm.moves_within(0.3) < 1e-3 and len(arm.asked) == silent
    hand.hold(DEAD_MAN, forward=-1.0)
    arm.waits_for_motion()
    hand.die()  # its last word is that it is held
    arm.waits_for_rest()

    hand = pilot()
    hand.hold()
    hand.hold(DEAD_MAN, forward=1.0)
    arm.waits_for_motion()
    os.kill(supervisor.children['teleop'].pid, signal.SIGKILL)
    arm.waits_for_rest()
    arm.assert_no_jump(ur5e)


def test_a_button_stops_and_what_is_asked_then_moves_nothing(supervisor, observer, pilot):
    arm = Watched(supervisor, observer, 'joy')
    hand = pilot()
    hand.hold()
    hand.hold(DEAD_MAN, forward=1.0)
    arm.waits_for_motion()
    hand.hold(DEAD_MAN, 8, forward=1.0)  # the emergency stop
    observer.until(lambda: arm.stopped[-1].data, 'no emergency stop')
    observer.until(lambda: arm.moves_within(0.2) < 1e-3, 'the arm does not rest')
    assert arm.moves_within(0.5) < 1e-3
    # Nor does it go on by itself: what has been held all the time has to be let go first.
    assert observer.call('command_guard/estop_reset').success
    assert arm.moves_within(1.0) < 1e-3
    assert 'let go, and hold again' in supervisor.log('teleop')
    hand.hold()
    hand.hold(DEAD_MAN, forward=-1.0)
    arm.waits_for_motion()


@pytest.mark.slow
def test_a_twist_in_the_tools_frame_and_a_speed_that_is_set_meanwhile(supervisor, observer):
    arm = Watched(supervisor, observer, 'twist', 'ur5e_gripper', twist_stamped=True)
    publisher = observer.publisher(TwistStamped, 'teleop/twist')
    message = TwistStamped()
    message.header.frame_id = 'tool/pinch'
    message.twist.linear.z = -0.1  # up: the tool points down
    timer = observer.node.create_timer(0.02, lambda: publisher.publish(message))
    arm.waits_for_motion()
    request = SetParameters.Request()
    request.parameters = [Parameter('speed_scale', value=0.05).to_parameter_msg()]
    (result,) = observer.call('teleop/set_parameters', SetParameters, request).results
    assert result.successful
    time.sleep(0.5)
    slow = arm.moves_within(0.5)
    assert 1e-4 < slow < 0.03
    request.parameters = [Parameter('speed_scale', value=2.0).to_parameter_msg()]
    (result,) = observer.call('teleop/set_parameters', SetParameters, request).results
    assert not result.successful
    message.header.frame_id = 'nowhere'
    arm.waits_for_rest()
    assert "twist in frame 'nowhere'" in supervisor.log('teleop')
    timer.cancel()


def test_a_leader_is_followed_once_it_is_near(supervisor, observer, ur5e):
    names = [f'leader_{index}' for index in range(6)]
    jaw = {'leader_gripper': 'jaw', 'leader_gripper_range': [0.0, 2.0]}
    arm = Watched(supervisor, observer, 'leader', 'ur5e_gripper', leader_joints=names, **jaw)
    fingers = observer.listen(Float64MultiArray, 'gripper_controller/commands')
    states = observer.publisher(JointState, 'leader/joint_states')
    switch = observer.publisher(Bool, 'leader/enabled')
    leader = JointState(name=['jaw', *names[::-1]])
    held = Bool(data=True)

    def bring(positions: np.ndarray) -> None:
        leader.position = [0.5, *positions[::-1]]

    bring(arm.measured()[:6] + np.array([0, 0, 0.5, 0, 0, 0]))
    timer = observer.node.create_timer(
        0.02, lambda: (states.publish(leader), switch.publish(held))
    )
    observer.until(
        lambda: "the leader's elbow_joint is 0.50 away" in supervisor.log('teleop'), 'not told'
    )
    assert arm.moves_within(0.3) < 1e-3 and not arm.asked
    home = arm.measured()[:6]
    bring(home + np.array([0.08, 0, 0, 0, 0, 0]))
    observer.until(lambda: arm.measured()[0] - home[0] > 0.07, 'it is not followed')
    bring(home + np.array([0.3, 0, 0, 0, 0, 0]))
    observer.until(lambda: arm.measured()[0] - home[0] > 0.28, 'it is not followed')
    # A quarter of the way from closed to open, of which one finger goes half.
    observer.until(lambda: fingers and abs(fingers[-1].data[0] - 0.085 / 8) < 1e-6, 'no gripper')
    held.data = False
    bring(home)
    arm.waits_for_rest()
    assert arm.measured()[0] - home[0] > 0.28
    arm.assert_no_jump(ur5e)
    timer.cancel()


def test_keys_of_a_terminal_move_the_arm_and_its_gripper(supervisor, observer):
    master, slave = pty.openpty()
    former = termios.tcgetattr(slave)
    arm = Watched(supervisor, observer, 'keyboard', 'ur5e_gripper', terminal=os.ttyname(slave))
    fingers = observer.listen(Float64MultiArray, 'gripper_controller/commands')

    def repeat(key: bytes, until) -> None:
        def pressed():
            os.write(master, key)
            time.sleep(0.03)
            return until()

        observer.until(pressed, f'{key} has no effect')

    begun = arm.measured()
    repeat(b'w', lambda: np.abs(arm.measured() - begun).max() > 0.1)
    arm.waits_for_rest()
    os.write(master, b'm2')
    begun = arm.measured()
    repeat(b'\x1b[A', lambda: arm.measured()[1] - begun[1] > 0.1)
    arm.waits_for_rest()
    moved = arm.measured() - begun
    assert np.abs(np.delete(moved[:6], 1)).max() < 5e-3  # one joint
    repeat(b'c', lambda: fingers and fingers[-1].data[0] < 0.005)
    os.write(master, b' ')
    observer.until(lambda: arm.stopped[-1].data, 'no emergency stop')
    time.sleep(0.6)  # its cooldown
    os.write(master, b'Z')
    observer.until(lambda: not arm.stopped[-1].data, 'it is not released')
    supervisor.stop()
    assert termios.tcgetattr(slave) == former
    os.close(master)
    os.close(slave)


@pytest.mark.parametrize('end', ['ctrl-c', signal.SIGTERM])
def test_the_terminal_it_runs_on_is_given_back_however_it_ends(domain_id, tmp_path, end):
    words = ['-m', 'robot_rl.nodes', 'teleop', '--ros-args', '-p', 'device:=keyboard']
    master, slave = pty.openpty()
    former = termios.tcgetattr(slave)
    process = subprocess.Popen(
        [sys.executable, *words],
        env=os.environ | {'ROS_DOMAIN_ID': str(domain_id), 'ROS_LOG_DIR': str(tmp_path)},
        stdin=slave,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # /dev/tty is this one
    )
    until = time.monotonic() + 20
    while termios.tcgetattr(slave)[3] & termios.ECHO and time.monotonic() < until:
        time.sleep(0.05)
    assert not termios.tcgetattr(slave)[3] & termios.ECHO, process.poll()
    os.write(master, b'\x1c\x1a')  # Ctrl-\ and Ctrl-Z are no ends
    time.sleep(0.1)
    if end == 'ctrl-c':
        os.write(master, b'\x03')
    else:
        process.send_signal(end)
    _, told = process.communicate(timeout=20)
    assert process.returncode == 0 and 'Traceback' not in told
    assert termios.tcgetattr(slave) == former
    os.close(master)
    os.close(slave)


@pytest.mark.parametrize(
    ('given', 'told'),
    [
        ({'device': 'keyboard'}, 'no terminal to read keys from'),
        ({'device': 'keybord'}, "did you mean 'keyboard'"),
        ({'device': 'joy', 'mapping': 'gamepd'}, "unknown mapping 'gamepd'; did you mean"),
        ({'device': 'leader', 'leader_joints': '[a, b]'}, 'leader_joints: 2 names, 6 are right'),
    ],
)
def test_what_cannot_be_is_one_line(domain_id, tmp_path, given, told):
    words = [word for pair in given.items() for word in ('-p', ':='.join(pair))]
    done = subprocess.run(
        [sys.executable, '-m', 'robot_rl.nodes', 'teleop', '--ros-args', *words],
        env=os.environ | {'ROS_DOMAIN_ID': str(domain_id), 'ROS_LOG_DIR': str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
    )
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    assert told in done.stderr
