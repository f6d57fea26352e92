"""robot-rl up: the graphs of the launch files without ros2 launch."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from robot_rl.registry import make_task


@pytest.fixture
def up(command, tmp_path):
    """Return `start(*arguments)`, which starts `robot-rl up` in an empty folder."""
    logs = '--log-dir', str(tmp_path / 'logs')
    return lambda *arguments: command('up', *arguments, *logs)


def nodes_of(folder: Path) -> dict[str, int]:
    """Return the pids of nodes whose parameters lie in `folder`, by name."""
    found = {}
    for path in Path('/proc').glob('[0-9]*/cmdline'):
        try:
            words = path.read_text().split('\0')
        except OSError:
            continue
        if any(word.startswith(str(folder)) for word in words) and 'robot_rl.nodes' in words:
            found[words[words.index('robot_rl.nodes') + 1]] = int(path.parent.name)
    return found


def until(condition, what, deadline_s=40.0):
    end = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.05)
    return found


def test_a_deployment_runs_its_episodes_and_ends_with_the_session(up, tmp_path):
    storage = tmp_path / 'episodes'
    process = up('deploy', 'policy:=random', 'episodes:=1', f'storage:={storage}', 'operator:=007')
    text, _ = process.communicate(timeout=90)
    assert process.returncode == 0 and 'Traceback' not in text, text
    assert '[policy] ' in text and '[session] {"episode"' in text
    (episode,) = storage.iterdir()
    header = json.loads((episode / 'episode.json').read_text())
    assert (header['policy'], header['operator'], header['world']) == ('random', '007', 'sim')
    assert nodes_of(tmp_path) == {}


@pytest.mark.parametrize(
    'number', [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_signal_ends_all_nodes_and_the_guard_is_started_anew(up, tmp_path, number):
    process = up('deploy', 'policy:=random', 'episodes:=0', f'storage:={tmp_path / "episodes"}')
    names = {'policy', 'command_guard', 'sim_robot', 'episode_recorder', 'session'}
    nodes = until(lambda: set(n := nodes_of(tmp_path)) == names and n, 'not all nodes are there')
    until(lambda: list(tmp_path.glob('episodes/*')), 'no episode')
    os.kill(nodes['command_guard'], signal.SIGKILL)

    def anew():
        return nodes_of(tmp_path).get('command_guard', nodes['command_guard'])

    until(lambda: anew() != nodes['command_guard'], 'the guard is not started anew')
    until((tmp_path / 'logs' / 'command_guard.ready').exists, 'it does not get to work')
    process.send_signal(number)
    text, _ = process.communicate(timeout=30)
    assert process.returncode == 0 and 'Traceback' not in text, text
    assert nodes_of(tmp_path) == {}


def test_a_node_that_cannot_start_ends_all_with_its_words(up, tmp_path):
    process = up('deploy', 'policy:=no_such_policy')
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 2, text
    assert "unknown policy 'no_such_policy'" in text
    assert nodes_of(tmp_path) == {}


def test_a_policy_of_another_task_is_refused_before_it_waits_for_what_never_comes(
    up, policy_file, tmp_path
):
    """All joints were there, and after 30 s it was told that no cube had been seen."""
    file = policy_file(make_task('ur5e/push').contract())
    process = up('deploy', f'policy:={file}', 'task:=ur5e/reach', 'robot:=ur5e')
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 2, text
    last = text.splitlines()[-1]
    assert last.startswith(
        'robot-rl: session has ended with code 2: task ur5e/reach: the contract'
    )
    assert "no stream 'cube_pose'" in last and last.endswith('logs/session.log)')


def test_why_nothing_runs_is_the_last_line(command, tmp_path):
    """That the page's port is in use was one line among those of six nodes."""
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        file = tmp_path / 'my.yaml'
        file.write_text(f'/**/teleop:\n  ros__parameters:\n    page_port: {port}\n')
        words = '--task', 'ur5e/reach', '--teleop', 'page', '--store', 'e', '--log-dir', 'logs'
        process = command('record', *words, f'params_file:={file}')
        text, _ = process.communicate(timeout=60)
    assert process.returncode == 2, text
    assert text.splitlines()[-1].startswith(
        f'robot-rl: teleop has ended with code 2: page_host 127.0.0.1, page_port {port}: '
        'Address already in use'
    )


@pytest.mark.parametrize(
    ('arguments', 'told'),
    [
        (['deplyo'], "unknown graph 'deplyo'; did you mean 'deploy'"),
        (['deploy', 'polcy:=x'], "polcy: no such argument; did you mean 'policy'"),
        (['deploy', 'policy=x'], "'policy=x': <name>:=<value> is right"),
        (['deploy', 'sim:=yes'], "sim: one of 'true', 'false', found 'yes'"),
    ],
)
def test_wrong_arguments_are_told_before_anything_starts(up, arguments, told, tmp_path):
    text, _ = (process := up(*arguments)).communicate(timeout=30)
    assert process.returncode == 2 and told in text and text.count('\n') == 1, text
    assert not (tmp_path / 'logs').exists()


def test_no_two_graphs_command_one_arm(command, tmp_path):
    words = 'record', '--task', 'ur5e/reach', '--teleop', 'none', '--store', 'e', '--log-dir'
    first = command(*words, str(tmp_path / 'first'))
    until((tmp_path / 'first' / 'command_guard.yaml').exists, 'nothing is started')
    text, _ = (second := command(*words, str(tmp_path / 'second'))).communicate(timeout=30)
    assert second.returncode == 2 and text.count('\n') == 1, text
    assert 'another robot-rl commands the arm in ROS domain' in text
    assert not (tmp_path / 'second').exists() and first.poll() is None
    first.send_signal(signal.SIGINT)
    assert first.wait(30) == 0
    third = command(*words, str(tmp_path / 'third'), 'namespace:=left')
    fourth = command(*words, str(tmp_path / 'fourth'), 'namespace:=right')
    for name, process in (('third', third), ('fourth', fourth)):
        until((tmp_path / name / 'command_guard.yaml').exists, 'nothing is started')
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_arguments_are_listed(up):
    text, _ = (process := up('record', '--show-args')).communicate(timeout=30)
    assert process.returncode == 0
    assert 'params_file' in text and 'config/nodes/record.yaml' in text


def test_record_says_what_nodes_say_where_there_is_no_terminal_and_ends_on_a_signal(
    command, tmp_path
):
    logs = '--log-dir', str(tmp_path / 'logs')
    process = command(
        'record', '--task', 'ur5e/reach', '--teleop', 'none', '--store', str(tmp_path / 'e'), *logs
    )
    said = tmp_path / 'logs' / 'session.log'
    until(lambda: said.exists() and 'ready: call ~/start' in said.read_text(), 'not ready')
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=30)
    assert process.returncode == 0 and 'Traceback' not in text, text
    assert '[session] ' in text and text.endswith(f'0 episodes in {tmp_path / "e"}\n')
    assert nodes_of(tmp_path) == {}
