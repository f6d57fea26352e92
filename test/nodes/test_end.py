"""Every node ends cleanly on SIGINT and SIGTERM, at any time, and says what keeps it from work."""

from __future__ import annotations

import io
import os
import queue
import signal
import subprocess
import sys
import threading
import time

import pytest

from robot_rl.errors import RobotRLError
from robot_rl.nodes.main import NODES
from robot_rl.nodes.supervisor import NodeFailure
from robot_rl.nodes.support import Worker

WAITING = {'session': {'participants': ['nobody']}}


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_every_node_ends_with_code_0(supervisor, tmp_path, still_episode, terminal, number):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a shell's background job
    try:
        given = WAITING | {
            'episode_recorder': {'root': str(tmp_path / 'episodes')},
            'replay': {'episode': str(still_episode())},
            'screen': {'terminal': terminal.path},
            'teleop': {'device': 'twist'},  # there is no terminal for a keyboard
        }
        for node in NODES:
            supervisor.start(node, given.get(node))
    finally:
        signal.signal(signal.SIGINT, before)
    supervisor.wait_ready()
    for child in supervisor.children.values():
        os.kill(child.pid, number)
    codes = {name: child.wait(20) for name, child in supervisor.children.items()}
    wrong = {name: supervisor.log(name)[-3000:] for name, code in codes.items() if code}
    assert codes == dict.fromkeys(NODES, 0), wrong
    for node in NODES:
        assert 'Traceback' not in supervisor.log(node)


def test_a_full_collection_of_garbage_halts_no_node(supervisor):
    """One that went through all modules took 50 to 100 ms, in which a guard said nothing."""
    script = (
        'import gc\n'
        'from robot_rl.nodes import main, support\n'
        'from robot_rl.nodes.command_guard import CommandGuardNode\n'
        'class Node(CommandGuardNode):\n'
        '    def start(self, end):\n'
        '        print(len(gc.get_objects()), gc.get_freeze_count(), flush=True)\n'
        '        super().start(end)\n'
        '        end(0)\n'
        'support.run(Node, None, main.End())\n'
    )
    assert supervisor.start_command('guard', [sys.executable, '-c', script]).wait(60) == 0
    looked_through, frozen = map(int, (supervisor.log_dir / 'guard.out').read_text().split())
    assert looked_through < 1000 < 50_000 < frozen


def test_a_second_signal_does_not_turn_the_end_into_a_death(supervisor):
    child = supervisor.start('command_guard')
    supervisor.wait_ready()
    while child.poll() is None:
        os.kill(child.pid, signal.SIGINT)
        time.sleep(0.002)
    assert child.returncode == 0


def test_what_hangs_with_pythons_lock_held_does_not_keep_the_process_alive():
    """A thread could not end it: a deadlock inside DDS left a node that no signal but 9 ended."""
    script = (
        'import ctypes\n'
        'from robot_rl.nodes import main\n'
        'main._CLOSE_WITHIN_S = 0.3\n'
        'end = main.End()\n'
        'end(0)\n'
        'end.wait()\n'
        'ctypes.PyDLL(None).sleep(60)\n'
    )
    done = subprocess.run([sys.executable, '-c', script], timeout=20, capture_output=True)
    assert done.returncode == 1 and b'Timeout' in done.stderr


@pytest.mark.parametrize('code', [0, 2])
def test_a_goodbye_that_hangs_in_dds_does_not_change_the_exit_code(code):
    """Nodes that ended all at once hung, one in some hundred, with Python's lock held."""
    script = (
        'import ctypes\n'
        'from robot_rl.nodes.main import leave_within\n'
        'print("said", end="")\n'
        f'leave_within(1, {code})\n'
        'ctypes.PyDLL(None).sleep(60)\n'
    )
    done = subprocess.run([sys.executable, '-c', script], timeout=20, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (code, b'said', b'')


def test_a_signal_is_heard_whichever_thread_gets_it_and_whatever_the_main_thread_does():
    """One that came just before the main thread waited was lost: the node went on for ever."""
    script = (
        'import signal, threading, time\n'
        'from robot_rl.nodes.main import End\n'
        'end = End()\n'
        'def interrupt():\n'
        '    time.sleep(0.3)\n'
        '    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)\n'
        'threading.Thread(target=interrupt).start()\n'
        'end.wait()\n'
        'print(end.asked, end.code)\n'
    )
    done = subprocess.run([sys.executable, '-c', script], timeout=20, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b'True 0\n', b'')


@pytest.mark.parametrize('after_s', [0.15, 0.4, 0.8])
def test_a_signal_while_the_node_is_still_starting_ends_it(supervisor, after_s):
    child = supervisor.start('policy')
    time.sleep(after_s)
    child.send_signal(signal.SIGTERM)
    # Until Python runs the first line of ours, it is the system that ends the process.
    assert child.wait(20) in (0, -signal.SIGTERM)
    assert 'Traceback' not in supervisor.log('policy')


@pytest.mark.parametrize(
    ('node', 'parameters', 'words'),
    [
        ('sim_robot', {'task': 'ur5e/reech'}, "unknown task 'ur5e/reech'; did you mean"),
        ('sim_robot', {'seed': -1}, 'parameters of sim_robot: seed: must be greater'),
        ('policy', {'polcy': 'random'}, 'parameter polcy: policy has none of that name; did you'),
        ('policy', {'policy': 'no/such.onnx'}, 'no/such.onnx: cannot be read'),
        ('policy', {'policy': 'ur5e_raech'}, "unknown policy 'ur5e_raech'"),
        ('command_guard', {'robot': 'ur55e'}, "unknown robot 'ur55e'; did you mean 'ur5e'"),
        ('command_guard', {'start': 'jump'}, "start: unknown value 'jump'; known: ramp, refuse"),
        ('episode_recorder', {'min_free_gb': 1e9}, 'GB are wanted (parameter min_free_gb)'),
        ('session', {'policy': 'no/such.onnx'}, 'no/such.onnx: cannot be read'),
    ],
)
def test_a_node_that_cannot_work_says_so_in_one_line_and_ends_with_code_2(
    supervisor, node, parameters, words
):
    child = supervisor.start(node, parameters)
    assert child.wait(30) == 2
    lines = [line for line in supervisor.log(node).splitlines() if line.strip()]
    assert len(lines) == 1 and words in lines[0], lines
    with pytest.raises(NodeFailure, match='ended with code 2'):
        supervisor.wait_ready()


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['polcy'], "unknown node 'polcy'; did you mean 'policy'?"),
        (['session', '--ros-args', '--pram'], "unknown ROS arguments: ['--pram']"),
        (
            ['session', '--ros-args', '-p', 'nothing'],
            "Couldn't parse parameter override rule: '-p nothing'",
        ),
    ],
)
def test_a_wrong_command_line_is_told_in_one_line(arguments, words):
    command = [sys.executable, '-m', 'robot_rl.nodes', *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    *_, line = done.stderr.strip().splitlines()  # rcl may have its own line before
    assert line.startswith('robot_rl.nodes: ') and words in line, done.stderr
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize(('mistake', 'code'), [(RobotRLError('wrong'), 2), (ValueError('bug'), 1)])
def test_a_node_whose_output_nobody_reads_any_more_did_not_end(monkeypatch, mistake, code):
    """What it wanted to say could not be printed, and the end after it was never asked for."""

    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    def fail(stop):
        raise mistake

    codes = queue.Queue()
    monkeypatch.setattr(threading, 'excepthook', lambda _: None)
    monkeypatch.setattr(sys, 'stderr', Closed())
    Worker(fail, codes.put).start()
    assert codes.get(timeout=10) == code
