"""Wrong input at the command line: one line that says what, where and what is right; code 2."""

import contextlib
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import yaml
from onnx import TensorProto, helper

from robot_rl import resources
from robot_rl.cli.main import main
from robot_rl.specs.base import load_yaml

POLICY = resources.share() / 'pretrained' / 'ur5e_reach.onnx'


def refused(*argv, cwd='.') -> str:
    """Run robot-rl, which must refuse in one line, and return that line."""
    told = io.StringIO()
    with contextlib.chdir(cwd), contextlib.redirect_stderr(told):
        code = main([str(word) for word in argv])
    assert code == 2, told.getvalue()
    (line,) = told.getvalue().splitlines()
    assert line.startswith('robot-rl: ')
    return line


@pytest.fixture
def foreign(tmp_path) -> Path:
    """An ONNX file that nobody exported as a policy."""
    node = helper.make_node('Identity', ['x'], ['y'])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in 'xy')
    path = tmp_path / 'foreign.onnx'
    onnx.save(helper.make_model(helper.make_graph([node], 'g', [x], [y])), path)
    return path


@pytest.mark.parametrize(
    ('agent', 'words', 'told'),
    [
        ('bc', [], 'demos: agent bc learns from demonstrations; --demos QUERY says which'),
        ('gail', ['--demos', 'tag=a'], "reward: this field is required and missing; one of '-log"),
        ('d4pg', ['--store', 'x'], '--store holds demonstrations; --demos QUERY says which'),
        ('bc', ['--demos', 'tag=a', '--store', 'nowhere'], 'nowhere: no folder of episodes here'),
        (
            'bc',
            ['--demos', 'tag=a', '--store', '.'],
            "no usable demonstration for the query 'tag=a",
        ),
        ('bc', ['--demos', 'tga=a', '--store', '.'], "did you mean 'tag'"),
    ],
)
def test_demonstrations_that_are_not_there(agent, words, told, tmp_path):
    line = refused(
        'train', '--task', 'gym/Pendulum-v1', '--agent', agent, *words, '--out', 'o', cwd=tmp_path
    )
    assert told in line


@pytest.mark.parametrize('command', ['evaluate', 'play'])
def test_a_missing_policy_file(command, tmp_path):
    path = tmp_path / 'no-such.onnx'
    assert str(path) in refused(command, '--policy', path, '--task', 'ur5e/reach')


def test_a_truncated_policy_file(tmp_path):
    path = tmp_path / 'cut.onnx'
    path.write_bytes(POLICY.read_bytes()[: POLICY.stat().st_size // 2])
    assert str(path) in refused('evaluate', '--policy', path)


def test_a_foreign_onnx_file(foreign):
    line = refused('evaluate', '--policy', foreign)
    assert str(foreign) in line and 'policy card' in line


def test_a_text_file_for_a_policy(tmp_path):
    path = tmp_path / 'policy.onnx'
    path.write_text('not a policy')
    assert str(path) in refused('evaluate', '--policy', path)


def test_a_policy_for_another_task():
    line = refused('evaluate', '--policy', POLICY, '--task', 'suite/cartpole-swingup')
    assert 'contract' in line or 'observation' in line


def test_an_unknown_task_names_near_ones():
    line = refused('train', '--task', 'suite/cartpole-swingpu')
    assert 'suite/cartpole-swingup' in line


def test_an_unknown_task_names_the_command_that_lists_them():
    assert refused('train', '--task', 'nope').endswith(
        "unknown task 'nope'; robot-rl tasks lists them"
    )


def test_an_unknown_agent_names_the_known():
    assert 'd4pg' in refused('train', '--task', 'ur5e/reach', '--agent', 'd4gp')


def test_an_unknown_offline_agent_names_the_known(tmp_path):
    line = refused('retrain', '--task', 'ur5e/reach', '--store', tmp_path, '--agent', 'ccr')
    assert "unknown agent 'ccr'" in line and 'crr' in line


@pytest.mark.parametrize('command', ['train', 'retrain'])
def test_a_file_where_a_folder_is_needed(command, tmp_path):
    out = tmp_path / 'file'
    out.write_text('mine')
    line = refused(command, '--task', 'ur5e/reach', '--out', out)
    assert line == f'robot-rl: --out: {out} is a file; a folder is needed'
    assert out.read_text() == 'mine'


def test_retrain_overwrites_no_earlier_policy(tmp_path):
    (tmp_path / 'policy.onnx').write_text('mine')
    line = refused('retrain', '--task', 'ur5e/reach', '--out', tmp_path)
    assert str(tmp_path) in line and 'policy.onnx' in line
    assert (tmp_path / 'policy.onnx').read_text() == 'mine'


def test_a_wrong_value_is_blamed_on_its_flag(tmp_path):
    argv = ('--task', 'ur5e/reach', '--store', tmp_path, '--out', tmp_path / 'new')
    line = refused('retrain', *argv, '--updates', '-5')
    assert line == 'robot-rl: --updates: must be greater than 0, found -5'
    line = refused('retrain', *argv, '--set', 'shufle_rewards=true')
    assert line.startswith('robot-rl: --set shufle_rewards=true: ') and 'shuffle_rewards' in line


def test_retrain_reads_the_store_that_the_environment_names(tmp_path, monkeypatch):
    monkeypatch.setenv('ROBOT_RL_STORE', str(tmp_path / 'none'))
    line = refused('retrain', '--task', 'ur5e/reach', '--out', tmp_path / 'new')
    assert line.startswith(f'robot-rl: {tmp_path / "none"}: no folder of episodes here; --store')


@pytest.mark.parametrize(
    ('text', 'told'),
    [
        ('learner: {sigmaa: 0.3}', 'sigma'),
        ('trainig: {}', 'training'),
        ('learner: {sigma: [', 'line'),
        ('learner: {v_min: 5, v_max: 1}', 'v_max'),
    ],
)
def test_a_wrong_agent_file_names_file_and_key(text, told, tmp_path):
    path = tmp_path / 'mine.yaml'
    path.write_text(f'agent: d4pg\n{text}\n')
    line = refused('train', '--task', 'ur5e/reach', '--agent', path, '--out', tmp_path / 'run')
    assert str(path) in line and told in line
    assert not (tmp_path / 'run').exists()


def test_a_task_file_with_a_misspelt_key(tmp_path):
    path = tmp_path / 'task.yaml'
    shutil.copy(resources.share() / 'config' / 'tasks' / 'ur5e_reach.yaml', path)
    path.write_text(path.read_text().replace('duration_s', 'duratoin_s'))
    line = refused('evaluate', '--policy', POLICY, '--task', path)
    assert str(path) in line and 'duration_s' in line


@pytest.mark.parametrize(
    ('changes', 'told'),
    [
        ({'start.width': [0.06, 0.01]}, 'start.width: lower 0.06 must not be above upper 0.01'),
        ({'start.width': [0.5, 0.6]}, 'start.width [0.5, 0.6]: ur5e_gripper opens 0.085 m'),
        ({'start.yaw': [1, -1]}, 'start.yaw: lower 1 must not be above upper -1'),
        ({'cube.yaw': [1, -1]}, 'cube.yaw: lower 1 must not be above upper -1'),
        ({'max_twist': {}}, 'max_twist: at least one is needed'),
        ({'cube.size': [0.2, 0.04, 0.04]}, 'cube.size [0.2, 0.04, 0.04]: in the scene ur5e/lift'),
        ({'duration_s': 0.01}, 'duration_s 0.01 is over before the first decision of 0.05 s'),
        ({'success_rows': 500}, 'success_rows 500: an episode of 6 s has 121 rows'),
        (
            {'randomisation': {'sensor_delay': 600}},
            'randomisation.sensor_delay 600: periods of 0.01 s, so that at most 500 are',
        ),
        ({'randomisation': {'friction': [0, 1e4]}}, 'randomisation.friction.1: must be less than'),
    ],
)
def test_a_task_file_that_cannot_be(changes, told, tmp_path):
    data = load_yaml(resources.share() / 'config' / 'tasks' / 'ur5e_lift.yaml')
    for key, value in changes.items():
        *section, last = key.split('.')
        (data[section[0]] if section else data)[last] = value
    path = tmp_path / 'task.yaml'
    path.write_text(yaml.safe_dump(data))
    assert told in refused('evaluate', '--policy', 'scripted', '--task', path)


@pytest.mark.parametrize('change', ['action=joint_velocity', 'success_rows=59', 'name=foo'])
@pytest.mark.parametrize('command', ['collect', 'evaluate', 'play'])
def test_of_a_task_only_its_randomisation_and_duration_are_set(command, change, tmp_path):
    """The environment was another one then, and whoever acted and judged was of the file's."""
    words = command, '--policy', 'scripted', '--task', 'ur5e/reach', '--set', change
    told = refused(*words, cwd=tmp_path)
    assert f'--set {change}: of a task only randomisation.<key> and duration_s are' in told
    assert list(tmp_path.iterdir()) == []


def test_a_renderer_that_does_not_exist():
    done = subprocess.run(
        [sys.executable, '-m', 'robot_rl.cli.main', 'evaluate', '--policy', str(POLICY)],
        env=os.environ | {'MUJOCO_GL': 'foo'},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.count('\n') == 1, done.stderr
    assert 'MUJOCO_GL: foo; right are egl, osmesa and glfw' in done.stderr


@pytest.mark.parametrize('command', ['collect', 'evaluate', 'play'])
@pytest.mark.parametrize('seed', [-1, 2**31])
def test_a_seed_that_is_none(command, seed, tmp_path):
    words = command, '--policy', 'random', '--task', 'ur5e/reach', '--seed', seed
    assert '--seed: must be ' in refused(*words, cwd=tmp_path)


@pytest.mark.parametrize('size', [('--width', '100000'), ('--height', '1')])
def test_a_film_of_no_size_that_can_be_written(size, tmp_path):
    words = '--policy', 'random', '--task', 'ur5e/reach', '--out', 'film.mp4'
    assert f'{size[0]}: must be ' in refused('play', *words, *size, cwd=tmp_path)
    assert not (tmp_path / 'film.mp4').exists()


@pytest.mark.parametrize('domain', ['abc', '500', '-1'])
def test_a_ros_domain_that_is_none(domain, monkeypatch):
    monkeypatch.setenv('ROS_DOMAIN_ID', domain)
    line = refused('up', 'sim_robot')
    assert line == f'robot-rl: ROS_DOMAIN_ID={domain}: right is a number from 0 to 232'


def test_a_folder_that_cannot_be_written(tmp_path):
    blocked = tmp_path / 'file'
    blocked.write_text('in the way')
    line = refused('train', '--task', 'ur5e/reach', '--steps', '100', '--out', blocked / 'run')
    assert str(blocked) in line
    assert blocked.read_text() == 'in the way'


@pytest.mark.parametrize(
    'argv', [('episodes', 'ls'), ('retrain', '--task', 'ur5e/reach')], ids=['episodes', 'retrain']
)
def test_a_store_that_is_not_there(argv, tmp_path):
    store = tmp_path / 'none'
    assert str(store) in refused(*argv, '--store', store)
    assert not store.exists()


def test_a_checkpoint_that_is_not_there(tmp_path):
    line = refused('export', '--checkpoint', tmp_path, '--out', tmp_path / 'policy.onnx')
    assert str(tmp_path) in line


TRIALS = ('evaluate', '--robot', 'ur5e', '--policy')


@pytest.mark.parametrize(
    ('words', 'told'),
    [
        ((*TRIALS, POLICY, '--perturb', 'wind'), "unknown perturbation 'wind'"),
        ((*TRIALS, POLICY, '--perturb', 'target,targte'), "did you mean 'target'"),
        ((*TRIALS, POLICY, '--perturb', 'camera'), 'sees no pictures: it would not notice'),
        ((*TRIALS, POLICY, '--perturb', 'knock'), 'task ur5e/reach has no object'),
        ((*TRIALS, POLICY, '--real', '--perturb', 'target'), 'target is of the twin'),
        ((*TRIALS, POLICY, '--real', '--reset', 'seeds'), 'no seed puts the things beside a real'),
        ((*TRIALS, POLICY, '--set', 'randomisation.gain=1'), '--set is for simulation'),
        ((*TRIALS, POLICY, '--episodes', '0'), '--episodes'),
        ((*TRIALS, 'ur5e_raech'), "unknown policy 'ur5e_raech'; did you mean 'ur5e_reach'"),
        ((*TRIALS, 'no/such.onnx'), 'no/such.onnx'),
        ((*TRIALS, 'scripted'), 'scripted serves several tasks; give --task'),
        ((*TRIALS, POLICY, '--task', 'suite/cartpole-swingup'), 'suite/cartpole-swingup'),
        (
            ('evaluate', '--robot', 'fr3', '--policy', POLICY),
            'task ur5e/reach is of robot ur5e, not of fr3; give --robot ur5e, or another --task',
        ),
        (('evaluate', '--policy', POLICY, '--perturb', 'target'), '--perturb is for trials'),
        (('evaluate', '--policy', POLICY, '--real'), '--real is for trials through ROS'),
    ],
)
def test_an_evaluation_that_cannot_be(words, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(list(map(str, words))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('robot-rl: ') and told in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('name', ['a-b', '9th', 'left/', 'a//b', '~/a'])
def test_a_namespace_that_is_none(name):
    told = f'namespace: {name!r} is no ROS namespace'
    assert told in refused('doctor', '--namespace', name)
    pytest.importorskip('rclpy')
    assert told in refused('up', 'deploy', f'namespace:={name}')
