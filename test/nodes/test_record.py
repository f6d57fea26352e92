"""robot-rl record, by somebody who sees the twin's state and presses keys of a terminal."""

from __future__ import annotations

import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import JointState
from std_msgs.msg import String

from robot_rl.cli.main import main
from robot_rl.imitation.data import find_episodes
from robot_rl.nodes.keys import GEAR
from robot_rl.registry import make_task
from robot_rl.robots.kinematics import KinematicChain
from robot_rl.storage.episode import read_header
from robot_rl.storage.store import Store
from test.nodes.conftest import READER
from test.nodes.test_up import nodes_of, until

# The keys that move the tool along x, y and z of the base: with the axis, and against it.
MOVES = ((b'\x1b[A', b'\x1b[B'), (b'\x1b[D', b'\x1b[C'), (b'w', b's'))
# A terminal repeats a key so often [s].
REPEATS_S = 0.04
# How long the tool rests before a person is content, and when that has taken too long [s].
RESTS_S, LED_WITHIN_S = 0.5, 40.0


class Operator:
    """Leads the tool by keys, with no other means than eyes and fingers have."""

    def __init__(self, observer, terminal, robot):
        self._observer, self._terminal, self._robot = observer, terminal, robot
        self._chain, self._gear = KinematicChain.from_spec(robot), 0
        self._states = observer.listen(JointState, 'joint_states', 1)
        self._targets = observer.listen(PoseStamped, 'target_pose', 1)
        self._cubes = observer.listen(PoseStamped, 'cube_pose', 1)
        self._sessions = observer.listen(String, 'session/state', READER)

    def waits_for(self, state: str, index: int, but: str = '', key: bytes = b'') -> str:
        """Wait for an episode, other than `but`, in a state; return its id.

        Meanwhile press a `key` once a second: what is asked for too early, nobody hears.
        """
        pressed_at = -math.inf

        def there():
            nonlocal pressed_at
            if key and time.monotonic() > pressed_at + 1.0:
                pressed_at = time.monotonic()
                self._terminal.type(key)
            info = json.loads(self._sessions[-1].data) if self._sessions else {}
            there = (info.get('state'), info.get('index')) == (state, index)
            return there and info['episode'] != but and info['episode']

        return self._observer.until(there, f'no episode {index} is {state}', 60.0)

    def shows_reach(self, index: int, but: str = '') -> str:
        """Lead the tool to the target in an episode; return its id."""
        id = self._starts(index, but)
        self.leads_to(self.target)
        return id

    def shows_lift(self, index: int) -> str:
        """Take the cube and hold it up in an episode; return its id."""
        id, over = self._starts(index), np.array([0, 0, 0.1])
        self._holds(b'v', 0.8)  # open
        stood = self.cube()
        self.leads_to(lambda: self.cube() + over, 0.02, rests_s=0.1)
        self.leads_to(self.cube, rests_s=0.1)
        self._holds(b'c', 0.8)  # close
        # It slips a little: the cube is what is looked at.
        self.leads_to(lambda: self.tool() + stood + over - self.cube(), 0.006)
        return id

    def target(self) -> np.ndarray:
        """Where the target is seen [3] [m]."""
        return _place(self._targets)

    def cube(self) -> np.ndarray:
        """Where the cube is seen [3] [m]."""
        return _place(self._cubes)

    def leads_to(
        self, place: Callable[[], np.ndarray], within_m: float = 0.01, rests_s: float = RESTS_S
    ) -> None:
        """Press keys until the tool rests at a place [3] [m]."""
        end, near_since = time.monotonic() + LED_WITHIN_S, math.inf
        while time.monotonic() < near_since + rests_s:
            error = place() - self.tool()
            assert time.monotonic() < end, f'it is {error} off'
            axis = int(np.abs(error).argmax())
            if np.linalg.norm(error) > within_m:
                near_since = math.inf
                self._shift(abs(error[axis]) * 8)
                self._terminal.type(MOVES[axis][int(error[axis] < 0)])
            else:
                near_since = min(near_since, time.monotonic())
            time.sleep(REPEATS_S)

    def tool(self) -> np.ndarray:
        """Where the tool is seen [3] [m]."""
        by_name = dict(zip(self._states[-1].name, self._states[-1].position, strict=True))
        return self._chain.position(np.array([by_name[name] for name in self._robot.joints]))

    def _starts(self, index: int, but: str = '') -> str:
        """Start an episode once it is ready; return its id."""
        self.waits_for('ready', index, but)
        seen = lambda: self._states and (self._targets or self._cubes)  # noqa: E731
        self._observer.until(seen, 'nothing is seen')
        return self.waits_for('running', index, but, key=b'\r')

    def _holds(self, key: bytes, seconds: float) -> None:
        """Hold a key that repeats."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._terminal.type(key)
            time.sleep(REPEATS_S)

    def _shift(self, speed: float) -> None:
        """Go at a share of full speed, near the target more slowly."""
        gear = round(-math.log(min(max(speed, 0.06), 1.0), GEAR))
        change, self._gear = gear - self._gear, gear
        self._terminal.type((b'-' if change > 0 else b'+') * abs(change))


def _place(poses: list[PoseStamped]) -> np.ndarray:
    at = poses[-1].pose.position
    return np.array([at.x, at.y, at.z])


@pytest.fixture
def record(terminal, domain_id, tmp_path):
    """Return `start(*words)`, which starts `robot-rl record <words>` on the terminal."""
    started = []

    def start(*words: str) -> subprocess.Popen:
        fcntl.ioctl(terminal.theirs, termios.TIOCSWINSZ, b'\x28\0\x64\0\0\0\0\0')  # 40 x 100
        process = subprocess.Popen(
            [sys.executable, '-m', 'robot_rl.cli.main', 'record', *words],
            cwd=tmp_path,
            env=os.environ | {'ROS_DOMAIN_ID': str(domain_id)},
            stdin=terminal.theirs,
            stdout=terminal.theirs,
            stderr=terminal.theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
        process.wait(30)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_is_shown_by_keys_is_recorded_and_can_be_cloned(
    record, observer, terminal, ur5e, tmp_path, capsys
):
    store, logs = tmp_path / 'shown', tmp_path / 'logs'
    process = record(
        '--task', 'ur5e/reach', '--episodes', '3', '--operator', 'ada', '--tag', 'keys',
        '--store', str(store), '--log-dir', str(logs),
    )  # fmt: skip
    operator = Operator(observer, terminal, ur5e)
    aside = operator.shows_reach(0)
    operator.waits_for('ready', 1, key=b'y')
    operator.waits_for('prepare', 0, aside, key=b'r')  # it did not please, and is shown again
    ids = [operator.shows_reach(0, aside)]
    for index in (1, 2):
        operator.waits_for('ready', index, key=b'y')
        ids.append(operator.shows_reach(index))
    terminal.type(b'y')
    assert process.wait(60) == 0, terminal.text()[-3000:]
    assert 'Traceback' not in terminal.text()
    observer.until(lambda: f'3 episodes in {store}: 3 success' in terminal.text())
    assert terminal.drawn.count(b'\a') == 8
    for words in ('episode 3 of 3', '/joint_states', 'EMERGENCY STOP', 'start: start'):
        assert words in terminal.text(), words

    assert read_header(store / f'{aside}.discarded').result == 'discarded'
    task = make_task('ur5e/reach')
    assert Store(store).episodes('source=teleop success=true tag=keys').ids == sorted(ids)
    episodes = find_episodes(Store(store), task, task.contract(), 'source=teleop')
    for number, (header, columns) in enumerate(episodes):
        assert (header.result, header.success, header.seed) == ('success', True, number)
        assert (header.task, header.operator, header.world) == ('ur5e/reach', 'ada', 'sim')
        assert task.success(columns)  # and not by the person's word alone
        steps = len(columns['action/requested'])
        assert 20 < steps <= header.duration_s * 20 + 1
        # The commanded joints went where the arm was measured to go.
        told = columns['action/applied'].sum(axis=0)
        gone = columns['joint_states.position'][-1] - columns['joint_states.position'][0]
        np.testing.assert_allclose(told, gone, atol=0.03)
        assert np.abs(told).max() > 0.05

    out = tmp_path / 'cloned'
    words = ['--store', str(store), '--query', 'source=teleop success=true', '--out', str(out)]
    assert main(['retrain', '--task', 'ur5e/reach', '--agent', 'bc_by_hand', *words]) == 0
    capsys.readouterr()
    tried = ['--policy', str(out / 'policy.onnx'), '--episodes', '20', '--set', 'duration_s=8']
    assert main(['evaluate', *tried, '--json']) == 0
    result = json.loads(capsys.readouterr().out)
    # Three are few; without having learned anything it would be 0.
    assert result['success_rate'] >= 0.2, result


@pytest.mark.slow
def test_a_cube_is_lifted_by_keys_and_the_gripper_recorded(record, observer, terminal, tmp_path):
    task, store = make_task('ur5e/lift'), tmp_path / 'shown'
    words = '--store', str(store), '--log-dir', str(tmp_path / 'logs')
    process = record('--task', task.name, '--episodes', '2', *words)
    operator = Operator(observer, terminal, task.robot)
    operator.shows_lift(0)
    operator.waits_for('ready', 1, key=b'y')
    operator.shows_lift(1)
    terminal.type(b'y')
    assert process.wait(60) == 0, terminal.text()[-3000:]
    episodes = find_episodes(Store(store), task, task.contract(), 'source=teleop success=true')
    assert len(episodes) == 2
    for _, columns in episodes:
        assert task.success(columns)  # and not by the person's word alone
        width = columns['action/applied'][:, -1]
        assert width.max() > 0.08 and width[-1] < 0.005  # opened, and told to close
        assert 0.035 < columns['gripper.width'][-1, 0] < 0.06  # the cube is between, askew or not


@pytest.mark.slow
@pytest.mark.parametrize('node', ['teleop', 'screen'])
def test_a_terminal_is_given_back_where_who_reads_it_or_draws_is_killed(
    record, observer, terminal, node
):
    former = termios.tcgetattr(terminal.theirs)
    process = record('--task', 'ur5e/reach')
    hidden, shown = b'\x1b[?25l', b'\x1b[?25h'  # the cursor

    def is_used() -> bool:
        return termios.tcgetattr(terminal.theirs) != former and hidden in terminal.drawn

    observer.until(is_used, 'no keys are read, or nothing is drawn', 60.0)
    os.kill(child_of(process, node), signal.SIGKILL)
    assert process.wait(60) != 0
    assert termios.tcgetattr(terminal.theirs) == former
    observer.until(lambda: f'{node} has ended with code -9' in terminal.text())
    assert terminal.drawn.rindex(shown) > terminal.drawn.rindex(hidden)


def child_of(process: subprocess.Popen, node: str) -> int:
    """Return the pid of a node that a process has started."""
    children = Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
    words = {int(pid): Path(f'/proc/{pid}/cmdline').read_bytes().split(b'\0') for pid in children}
    (pid,) = [pid for pid, command in words.items() if node.encode() in command]
    return pid


def test_a_terminal_is_given_back_and_what_was_wrong_is_told(record, terminal):
    former = termios.tcgetattr(terminal.theirs)
    process = record('--task', 'ur5e/reach', 'params_file:=no/such.yaml')
    assert process.wait(60) != 0
    assert termios.tcgetattr(terminal.theirs) == former
    assert 'no/such.yaml' in terminal.text() and 'Traceback' not in terminal.text()


@pytest.mark.slow
def test_a_terminal_is_given_back_and_an_episode_kept_where_teleop_was_killed(
    record, observer, terminal, ur5e, tmp_path
):
    former, store = termios.tcgetattr(terminal.theirs), tmp_path / 'shown'
    words = '--store', str(store), '--log-dir', str(tmp_path / 'logs')
    process = record('--task', 'ur5e/reach', *words)
    operator = Operator(observer, terminal, ur5e)
    operator.waits_for('ready', 0)
    id = operator.waits_for('running', 0, key=b'\r')
    assert termios.tcgetattr(terminal.theirs) != former
    os.kill(nodes_of(tmp_path)['teleop'], signal.SIGKILL)
    assert process.wait(60) == 1
    assert termios.tcgetattr(terminal.theirs) == former
    until(lambda: 'teleop has ended with code -9' in terminal.text(), terminal.text()[-2000:])
    assert read_header(store / id).result == 'truncated'


def test_without_a_terminal_or_a_store_nothing_is_started(tmp_path):
    (tmp_path / 'file').touch()
    for words, told in (
        ((), '/dev/tty: no terminal to read keys from'),
        (('--store', 'file'), 'file: not a folder for episodes (File exists)'),
    ):
        done = subprocess.run(
            [sys.executable, '-m', 'robot_rl.cli.main', 'record', '--task', 'ur5e/reach', *words],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            start_new_session=True,  # which has no terminal
        )
        assert done.returncode == 2 and told in done.stderr, done.stderr
        assert done.stderr.count('\n') == 1 and not done.stdout
