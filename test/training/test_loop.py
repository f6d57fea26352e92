import json
import os
import signal
import threading

import numpy as np
import onnxruntime
import pytest
import yaml

from robot_rl.errors import RobotRLError, SpecError, StorageError
from robot_rl.sim.environment import HELD_OUT
from robot_rl.specs import PolicyCard
from robot_rl.training import loop
from robot_rl.training.config import RunConfig
from robot_rl.training.logs import MetricsLog, read_metrics
from robot_rl.training.loop import Trainer

KEYS = {
    'env_steps',
    'learner_steps',
    'wall_s',
    'eval_return_mean',
    'eval_return_std',
    'updates_per_s',
    'env_steps_per_s',
}


@pytest.fixture
def no_export(monkeypatch):
    """Leave the export out, which takes a second; the list holds the paths asked for."""
    asked = []
    monkeypatch.setattr(loop, 'export_onnx', lambda policy, card, path: asked.append(path.name))
    return asked


@pytest.fixture
def no_board(monkeypatch):
    """Leave TensorBoard out, whose import takes seconds."""
    monkeypatch.setattr('torch.utils.tensorboard.SummaryWriter', Board, raising=False)


class Board:
    def __init__(self, *args, **options):
        pass

    def add_scalar(self, *args):
        pass

    def close(self):
        pass


def learned(path):
    """The rows of metrics without those of the clock."""
    clock = {'wall_s', 'updates_per_s', 'env_steps_per_s'}
    return [{k: v for k, v in row.items() if k not in clock} for row in read_metrics(path)]


def test_a_run_leaves_config_metrics_checkpoint_board_and_policies(lines, run_config, tmp_path):
    config = run_config(training={'snapshots': [0, 99], 'num_envs': 2})
    trainer = Trainer(config, tmp_path)
    assert trainer.run()
    assert all(environment.closed for environment in lines)
    assert RunConfig.from_yaml(tmp_path / 'config.yaml') == config
    rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert [row['env_steps'] for row in rows] == [100, 200, 300]
    assert [row['learner_steps'] for row in rows] == [15, 40, 65]  # (steps - 40) * 4 / 16
    assert all(row.keys() >= KEYS for row in rows)
    assert any((tmp_path / 'tensorboard').iterdir())
    assert (tmp_path / 'checkpoint.pt').is_file()
    session = onnxruntime.InferenceSession(tmp_path / 'policy.onnx')
    card = PolicyCard.from_metadata(session.get_modelmeta().custom_metadata_map)
    assert card.id == 'suite-line-d4pg-seed0-step300'
    assert card.training == {'seed': 0, 'env_steps': 300, 'last_evaluation': rows[-1]}
    assert sorted(os.listdir(tmp_path / 'policies')) == [
        'step-00000000.onnx',
        'step-00000099.onnx',
    ]
    observation = lines[0].reset([5, 6, 7]).observation
    (action,) = session.run(['action'], observation)
    np.testing.assert_allclose(
        action, trainer.state.learner.policy.select(observation)[0], atol=2e-5
    )


def test_training_and_evaluation_draw_from_different_seeds(
    lines, run_config, tmp_path, no_export, no_board
):
    Trainer(run_config(), tmp_path).run()
    held_out, training = lines
    assert max(training.seeds_drawn) < HELD_OUT
    evaluated = [seed for seed in held_out.seeds_drawn if seed >= HELD_OUT]
    assert evaluated == [HELD_OUT, HELD_OUT + 1, HELD_OUT + 2] * 3


@pytest.mark.parametrize('num_envs', [1, 4])
def test_two_runs_of_one_seed_give_the_same_numbers(
    lines, run_config, tmp_path, no_export, no_board, num_envs
):
    config = run_config(training={'num_envs': num_envs})
    for name in ('a', 'b'):
        Trainer(config, tmp_path / name).run()
    Trainer(config.replace(seed=1), tmp_path / 'c').run()
    first, second, third = (learned(tmp_path / name / 'metrics.jsonl') for name in 'abc')
    assert first == second != third


def test_a_finished_run_is_continued_when_steps_are_raised(
    lines, run_config, tmp_path, no_export, no_board
):
    config = run_config()
    first = Trainer(config, tmp_path)
    first.run()
    done = Trainer(config, tmp_path)
    assert done.finished
    done.run()
    longer = Trainer(config.replace(steps=500), tmp_path)
    assert (longer.state.env_steps, longer.state.learner.steps) == (300, 65)
    assert longer.run()
    assert [row['env_steps'] for row in read_metrics(tmp_path / 'metrics.jsonl')] == [
        100, 200, 300, 400, 500,
    ]  # fmt: skip
    walls = [row['wall_s'] for row in read_metrics(tmp_path / 'metrics.jsonl')]
    assert walls == sorted(walls)
    assert lines[1].seeds_drawn[0] != lines[-1].seeds_drawn[0]  # other episodes than at first


def test_a_folder_with_another_run_is_refused(lines, run_config, tmp_path, no_export, no_board):
    Trainer(run_config(steps=100), tmp_path).run()
    before = (tmp_path / 'config.yaml').read_bytes()
    with pytest.raises(SpecError, match=r'another learner.sigma, seed; choose another folder'):
        Trainer(run_config(seed=1, learner={'sigma': 0.5}), tmp_path)
    assert (tmp_path / 'config.yaml').read_bytes() == before


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_leaves_and_the_run_goes_on(
    lines, run_config, tmp_path, no_export, no_board, capfd, number
):
    config = run_config(steps=100_000)
    handler = signal.getsignal(number)
    trainer = Trainer(config, tmp_path)
    timer = threading.Timer(0.3, os.kill, [os.getpid(), number])
    timer.start()
    assert not trainer.run()
    assert signal.getsignal(number) is handler
    assert 'robot-rl: stopping and saving\n' in capfd.readouterr().err
    steps = trainer.state.env_steps
    assert 0 < steps < 100_000
    assert no_export == ['policy.onnx']
    again = Trainer(config, tmp_path)
    assert again.state.env_steps == steps
    assert not again.finished


def test_diverging_stops_the_run_and_keeps_the_checkpoint(
    lines, run_config, tmp_path, no_export, no_board, monkeypatch
):
    trainer = Trainer(run_config(), tmp_path)
    trainer.run()
    before = (tmp_path / 'checkpoint.pt').read_bytes()
    worse = Trainer(run_config(steps=600), tmp_path)
    update = worse.state.learner.update
    monkeypatch.setattr(
        worse.state.learner, 'update', lambda batch: update(batch) | {'critic_loss': float('nan')}
    )
    with pytest.raises(RobotRLError, match='not finite after 400 steps: critic_loss'):
        worse.run()
    assert (tmp_path / 'checkpoint.pt').read_bytes() == before


def test_success_that_is_enough_ends_the_run(
    lines, run_config, tmp_path, no_export, no_board, monkeypatch
):
    class Task:
        robot = type('Robot', (), {'name': 'arm'})

        def success(self, columns):
            return True

        def final_distance(self, columns):
            return 0.01

    monkeypatch.setattr(loop, 'task_of', lambda name: Task())
    config = run_config(training={'stop_at_success': 1.0})
    trainer = Trainer(config, tmp_path)
    assert trainer.run()
    assert trainer.state.env_steps == 100
    (row,) = read_metrics(tmp_path / 'metrics.jsonl')
    assert (row['eval_success_rate'], row['eval_final_distance_mean']) == (1.0, 0.01)
    assert Trainer(config, tmp_path).finished


def test_success_is_not_asked_of_a_task_that_has_none(lines, run_config, tmp_path):
    with pytest.raises(SpecError, match='stop_at_success: suite/line defines rewards'):
        Trainer(run_config(training={'stop_at_success': 0.9}), tmp_path)


def test_a_folder_that_cannot_be_written_is_named(lines, run_config, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(StorageError, match='file/run: cannot be written'):
        Trainer(run_config(), tmp_path / 'file' / 'run').run()


def test_metrics_past_the_checkpoint_are_dropped_and_cut_lines_survived(tmp_path, no_board):
    path = tmp_path / 'metrics.jsonl'
    path.write_text('{"env_steps": 100}\n{"env_steps": 200}\n{"env_steps": 300}\n{"env_st')
    log = MetricsLog(tmp_path, env_steps=200)
    log.write({'env_steps': 250, 'x': 1.5})
    log.close()
    assert [row['env_steps'] for row in read_metrics(path)] == [100, 200, 250]


def test_the_written_config_is_plain_yaml(lines, run_config, tmp_path, no_export, no_board):
    Trainer(run_config(steps=50), tmp_path).run()
    data = yaml.safe_load((tmp_path / 'config.yaml').read_text())
    assert data['learner']['policy_layers'] == [16, 16]
