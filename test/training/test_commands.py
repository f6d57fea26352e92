import json

import pytest

from robot_rl.cli import evaluate, export, train
from robot_rl.errors import (
    ContractMismatch,
    RobotRLError,
    SpecError,
    StorageError,
    UnknownName,
)

SMALL = [
    'learner.batch_size=16',
    'learner.min_replay_size=40',
    'learner.policy_layers=[8]',
    'learner.critic_layers=[8]',
    'training.evaluate_every=50',
    'training.evaluation_episodes=2',
]


def run(capsys, command, *argv):
    """Run a command with --json; return its exit code and its one object."""
    code = command.main([*map(str, argv), '--json'])
    (line,) = capsys.readouterr().out.splitlines()
    return code, json.loads(line)


def test_train_evaluate_and_export_hand_on_to_one_another(lines, tmp_path, capsys):
    out = tmp_path / 'run'
    argv = ['--task', 'suite/line', '--agent', 'd4pg', '--steps', 100, '--seed', 3, '--out', out]
    code, told = run(capsys, train, *argv, '--set', *SMALL)
    assert (code, told['finished'], told['env_steps']) == (0, True, 100)
    assert {path.name for path in out.iterdir()} >= {
        'config.yaml',
        'metrics.jsonl',
        'checkpoint.pt',
        'policy.onnx',
    }
    _, result = run(
        capsys, evaluate, '--policy', told['policy'], '--task', 'suite/line', '--episodes', 5
    )
    assert len(result['returns']) == 5
    assert result['mean'] == pytest.approx(sum(result['returns']) / 5)
    assert result['std'] >= 0
    # The file knows its task.
    assert run(capsys, evaluate, '--policy', told['policy'], '--episodes', 5)[1] == result
    run(capsys, export, '--checkpoint', out, '--out', tmp_path / 'again.onnx')
    _, again = run(capsys, evaluate, '--policy', tmp_path / 'again.onnx', '--episodes', 5)
    assert again['returns'] == result['returns']
    assert run(capsys, train, '--resume', '--out', out, '--steps', 150)[1]['env_steps'] == 150


def test_train_leaves_a_folder_that_has_the_steps_already_as_it_is(lines, tmp_path, capsys):
    out = tmp_path / 'run'
    argv = ['--task', 'suite/line', '--agent', 'd4pg', '--out', out, '--set', *SMALL]
    run(capsys, train, '--steps', 100, *argv)
    before = {path: path.stat().st_mtime_ns for path in out.rglob('*')}
    for fewer in (100, 60):
        code, told = run(capsys, train, '--steps', fewer, *argv)
        assert (code, told['finished'], told['env_steps']) == (0, True, 100)
    train.main([*map(str, ['--resume', '--out', out, '--steps', 60])])
    assert f'{out} has 100 steps already' in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob('*')} == before


def test_evaluate_knows_random_and_constant_actions(lines, capsys):
    _, constant = run(capsys, evaluate, '--policy', 'constant', '--task', 'suite/line')
    _, random = run(capsys, evaluate, '--policy', 'random', '--task', 'suite/line')
    assert constant['episodes'] == random['episodes'] == 10
    assert constant['returns'] != random['returns']


def test_evaluate_an_arm_adds_the_success_rate(capsys):
    _, result = run(
        capsys, evaluate, '--policy', 'constant', '--task', 'ur5e/reach', '--episodes', 3
    )
    assert result['success_rate'] == 0
    assert 0.1 < result['final_distance_mean'] < 1


@pytest.mark.parametrize(
    ('argv', 'error', 'message'),
    [
        ([], RobotRLError, '--task is missing'),
        (['--task', 'suite/cartpole-swingupp'], UnknownName, "did you mean 'suite/cartpole-s"),
        (['--task', 'suite/line', '--agent', 'd4gp'], UnknownName, "did you mean 'd4pg'"),
        (['--task', 'suite/line', '--set', 'learner.sigm=1'], SpecError, 'sigm: unknown key'),
        (['--resume'], RobotRLError, '--resume needs --out'),
        (['--resume', '--out', 'nowhere'], SpecError, 'nowhere/config.yaml: cannot be read'),
        (['--steps', 'many'], RobotRLError, 'many'),
    ],
)
def test_train_says_what_is_wrong_in_one_line(argv, error, message):
    with pytest.raises(error, match=message) as caught:
        train.main(argv)
    assert '\n' not in str(caught.value)


def test_evaluate_and_export_say_what_is_wrong_in_one_line(tmp_path):
    with pytest.raises(ContractMismatch, match='needs the contract of a task'):
        evaluate.main(['--policy', 'random'])
    with pytest.raises(RobotRLError, match=r'nothing\.onnx'):
        evaluate.main(['--policy', str(tmp_path / 'nothing.onnx'), '--task', 'ur5e/reach'])
    with pytest.raises(StorageError, match=r'checkpoint\.pt'):
        export.main(['--checkpoint', str(tmp_path), '--out', str(tmp_path / 'x.onnx')])
