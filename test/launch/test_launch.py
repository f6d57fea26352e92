"""The launch files with real `ros2 launch`, where it is installed (it is not on PyPI)."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

pytest.importorskip('launch_ros', reason='launch_ros is not installed: it comes with ROS 2')
if shutil.which('ros2') is None:
    pytest.skip('no ros2 command on the PATH', allow_module_level=True)

from launch import LaunchContext
from launch.actions import OpaqueFunction

from robot_rl import resources
from robot_rl.nodes.supervisor import reserved_domain_id

ARGUMENTS = {
    'train': {'task', 'agent', 'steps', 'seed', 'out'},
    'evaluate': {
        'robot',
        'policy',
        'task',
        'episodes',
        'real',
        'perturb',
        'judge',
        'reset',
        'out',
    },
    'sim_robot': {
        'robot',
        'task',
        'seed',
        'namespace',
        'params_file',
        'log_level',
        'use_sim_time',
    },
    'deploy': {'sim', 'robot', 'task', 'policy', 'episodes', 'manual', 'record', 'storage'},
    'record': {'sim', 'robot', 'task', 'episodes', 'operator', 'storage', 'teleop', 'screen'},
    'replay': {'sim', 'robot', 'task', 'episode', 'seed', 'params_file'},
}


@pytest.fixture
def domain_id():
    with reserved_domain_id() as domain_id:
        yield domain_id


@pytest.fixture
def launch(workspace, tmp_path, domain_id):
    """Return `start(file, *arguments)`, which starts `ros2 launch robot_rl <file>`."""
    started = []

    def start(file: str, *arguments: str) -> subprocess.Popen:
        environment = workspace.environment | {
            'ROS_DOMAIN_ID': str(domain_id),
            'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST',
            'ROS_LOG_DIR': str(tmp_path / 'log'),
        }
        process = subprocess.Popen(
            ['ros2', 'launch', 'robot_rl', f'{file}.launch.py', *arguments],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def orphans(workspace) -> list[str]:
    """Return the command lines of processes that run out of the workspace."""
    found = []
    for path in Path('/proc').glob('[0-9]*/cmdline'):
        try:
            command = path.read_text().replace('\0', ' ')
        except OSError:
            continue
        if str(workspace.prefix / 'lib' / 'robot_rl') in command:
            found.append(command)
    return found


@pytest.mark.parametrize('file', ARGUMENTS)
def test_show_args_describes_every_argument(launch, file):
    process = launch(file, '--show-args')
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0, text
    missing = {name for name in ARGUMENTS[file] if f"'{name}':" not in text}
    assert missing == set()
    assert 'no description given' not in text


def test_deploy_runs_its_episodes_and_ends(launch, workspace, tmp_path):
    storage = tmp_path / 'episodes'
    process = launch(
        'deploy', 'policy:=random', 'episodes:=1', f'storage:={storage}', 'operator:=007'
    )
    text, _ = process.communicate(timeout=100)
    assert process.returncode == 0 and 'Traceback' not in text, text
    assert 'process has died' not in text, text
    (episode,) = storage.iterdir()
    header = json.loads((episode / 'episode.json').read_text())
    assert (header['policy'], header['operator'], header['world']) == ('random', '007', 'sim')
    assert orphans(workspace) == []


def test_replay_gives_the_commands_of_an_episode_again(launch, workspace, tmp_path):
    storage = tmp_path / 'episodes'
    deploy = launch('deploy', 'policy:=random', 'episodes:=1', f'storage:={storage}')
    text, _ = deploy.communicate(timeout=100)
    assert deploy.returncode == 0, text
    (episode,) = storage.glob('2*')
    header = json.loads((episode / 'episode.json').read_text())
    process = launch('replay', f'episode:={episode}', f'seed:={header["seed"]}')
    text, _ = process.communicate(timeout=100)
    assert process.returncode == 0 and 'Traceback' not in text, text
    assert 'process has died' not in text, text
    (told,) = (line for line in text.splitlines() if '"commands"' in line)
    told = json.loads(told[told.index('{') :])
    assert told['episode'] == header['id']
    assert told['commands'] == header['topics']['/policy/command']['count']
    assert orphans(workspace) == []


def test_replay_of_what_is_no_episode_ends_with_one_clear_line(launch, workspace):
    process = launch('replay', 'episode:=no/such')
    text, _ = process.communicate(timeout=60)
    assert 'no/such/episode.json: cannot be read (No such file or directory)' in text
    assert 'Traceback' not in text and orphans(workspace) == []


@pytest.mark.parametrize('file', ['deploy', 'record', 'sim_robot'])
def test_ctrl_c_ends_everything_cleanly(launch, workspace, tmp_path, file):
    arguments = {
        'deploy': ['policy:=random', 'episodes:=0', f'storage:={tmp_path / "episodes"}'],
        'record': [f'storage:={tmp_path / "episodes"}', 'namespace:=arm1', 'teleop:=twist'],
        'sim_robot': ['seed:=3', 'log_level:=warn'],
    }
    process = launch(file, *arguments[file])
    # A recorded episode, or a node that has had the time to start, shows that all is well.
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline and not list(tmp_path.glob('episodes/*.partial')):
        if file == 'sim_robot' and len(orphans(workspace)) == 1:
            time.sleep(3)
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and 'Traceback' not in text, text
    assert 'process has died' not in text, text
    assert orphans(workspace) == []


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_a_launch_that_was_killed_left_its_nodes_behind(launch, workspace, tmp_path, number):
    """The guard among them, and a policy that went on with its episode (ros2/launch issue 666)."""
    storage = tmp_path / 'episodes'
    process = launch('deploy', 'policy:=random', 'episodes:=0', f'storage:={storage}')
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline and not list(storage.glob('*.partial')):
        time.sleep(0.1)
    time.sleep(1.0)
    assert len(orphans(workspace)) == 5
    os.kill(process.pid, number)
    deadline = time.monotonic() + 20
    while orphans(workspace) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert orphans(workspace) == [] and not list(storage.glob('*.partial'))


def test_a_namespace_that_is_none_ends_the_launch_with_one_clear_line(launch, workspace):
    process = launch('deploy', 'namespace:=a-b')
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and text.count('ERROR') == 1, text
    assert "namespace: 'a-b' is no ROS namespace: letters, digits and _" in text


def test_a_missing_policy_ends_the_launch_with_one_clear_line(launch, workspace):
    process = launch('deploy', 'policy:=no/such.onnx', 'record:=false')
    text, _ = process.communicate(timeout=60)
    assert 'no/such.onnx: cannot be read (No such file or directory)' in text
    assert 'Traceback' not in text and orphans(workspace) == []


@pytest.mark.parametrize(
    ('task', 'agent', 'used'),
    [
        ('ur5e/reach', '', 'd4pg_reach'),
        ('ur5e/reach', 'my.yaml', 'my.yaml'),
        ('suite/cartpole-swingup', '', None),  # what robot-rl train takes by itself
    ],
)
def test_train_takes_the_agent_that_is_made_for_the_task(task, agent, used):
    path = resources.find('launch', 'train', '.launch.py')
    spec = importlib.util.spec_from_file_location('train_launch', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    defaults = {name: default for name, (default, _) in module.ARGUMENTS.items()}
    context = LaunchContext()
    context.launch_configurations.update(defaults | {'task': task, 'agent': agent})
    (function,) = (e for e in module.generate_launch_description().entities
                   if isinstance(e, OpaqueFunction))  # fmt: skip
    (action,) = function.execute(context)
    words = [part.text for word in action.cmd[1:] for part in word]
    options = dict(zip(words[1::2], words[2::2], strict=True))
    assert (options['--task'], options.get('--agent')) == (task, used)


def test_evaluate_runs_trials_and_ends(launch, workspace, tmp_path):
    storage = tmp_path / 'episodes'
    words = ['policy:=random', 'task:=ur5e/reach', 'episodes:=1', f'store:={storage}', 'out:=out']
    process = launch('evaluate', *words)
    text, _ = process.communicate(timeout=100)
    assert process.returncode == 0 and 'Traceback' not in text, text
    assert 'process has died' not in text, text
    (episode,) = storage.glob('2*')
    header = json.loads((episode / 'episode.json').read_text())
    assert 'evaluation' in header['tags'] and header['success'] is False
    assert (tmp_path / 'out' / 'report.html').is_file()
    assert orphans(workspace) == []


def test_train_starts_training(launch, workspace, tmp_path):
    process = launch('train', 'task:=ur5e/reech')
    text, _ = process.communicate(timeout=60)
    assert "robot-rl: unknown task 'ur5e/reech'; did you mean 'ur5e/reach'" in text
    assert orphans(workspace) == []
