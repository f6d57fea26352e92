import json
import os
import signal
import threading

import numpy as np
import onnxruntime
import pytest
import yaml

from robot_rl import registry
from robot_rl.control.runtime import OnnxPolicy
from robot_rl.errors import RobotRLError, SpecError, StorageError
from robot_rl.sim.environment import HELD_OUT
from robot_rl.specs import PolicyCard
from robot_rl.training import loop
from robot_rl.training.config import RunConfig
from robot_rl.training.evaluation import evaluate, held_out_seeds
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


def learned(path):
    """The rows of metrics without those of the clock and of the machine."""
    clock = {'wall_s', 'updates_per_s', 'env_steps_per_s', 'load_average'}
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


@pytest.mark.parametrize('agent', ['d4pg', 'mpo'])
def test_a_memory_goes_into_the_file_and_begins_anew_with_each_episode(
    lines, run_config, tmp_path, agent, no_board
):
    """The trained module and the file beside the arm give the same returns, episode by episode."""
    recurrent = {'memory': 6, 'sequence_length': 5, 'burn_in': 3}
    trainer = Trainer(run_config(agent=agent, learner=recurrent, hide=['clock']), tmp_path)
    assert trainer.run()
    policy = OnnxPolicy(tmp_path / 'policy.onnx')
    assert list(policy.contract.observation_shapes) == ['position']
    assert [(f.name, f.shape) for f in policy.card.recurrent_state] == [
        ('hidden', (6,)),
        ('cell', (6,)),
    ]
    seeds = held_out_seeds(6)
    module = evaluate(trainer.state.learner.policy, lines[0].__class__(3), seeds)
    file = evaluate(policy, lines[0].__class__(2), seeds)
    np.testing.assert_allclose(file.returns, module.returns, rtol=1e-4)
    assert read_metrics(tmp_path / 'metrics.jsonl')[-1]['eval_return_mean'] == pytest.approx(
        module.returns[:3].mean(), rel=1e-4
    )


def test_a_policy_names_all_revisions_that_trained_it(
    lines, run_config, tmp_path, no_board, monkeypatch
):
    """It named the one that stood there when it was exported."""
    for steps, revision in ((100, 'aaa'), (150, 'aaa'), (200, 'bbb-dirty')):
        monkeypatch.setattr(loop, 'git_revision', lambda r=revision: r)
        trainer = Trainer(run_config(steps=steps), tmp_path)
        monkeypatch.setattr(loop, 'git_revision', lambda: 'later')
        trainer.run()
    assert OnnxPolicy(tmp_path / 'policy.onnx').card.git_revision == 'aaa, bbb-dirty'
    loop.export_checkpoint(tmp_path, tmp_path / 'again.onnx')
    assert OnnxPolicy(tmp_path / 'again.onnx').card.git_revision == 'aaa, bbb-dirty'


def test_hidden_fields_are_not_seen_and_misspelt_ones_named(lines, run_config, tmp_path):
    trainer = Trainer(run_config(hide=['clock']), tmp_path)
    assert list(trainer.state.learner.policy.contract.observation_shapes) == ['position']
    with pytest.raises(SpecError, match="hide: no observation field 'clok'; did you mean 'clock'"):
        Trainer(run_config(hide=['clok']), tmp_path)
    with pytest.raises(SpecError, match='leave nothing to see'):
        Trainer(run_config(hide=['clock', 'position']), tmp_path)


def test_probability_at_an_end_of_the_support_is_warned_of_once(
    lines, run_config, tmp_path, no_export, no_board, capfd
):
    """Rewards of at most 1 at discount 0.9 come to 10: mass there is right, at 1000 it is not."""
    learner = {'v_min': 0, 'v_max': 10, 'discount': 0.9, 'num_atoms': 2}
    Trainer(run_config(learner=learner), tmp_path / 'right').run()
    assert 'learner.v_m' not in capfd.readouterr().err
    learner |= {'v_max': 20}
    Trainer(run_config(learner=learner), tmp_path / 'far').run()
    told = [line for line in capfd.readouterr().err.splitlines() if 'learner.v_m' in line]
    assert len(told) == 1
    assert 'learner.v_max: ' in told[0] and 'at this end of its support, 20' in told[0]


def test_a_support_that_cannot_hold_the_returns_is_refused_before_the_first_step(
    lines, run_config, tmp_path
):
    with pytest.raises(SpecError, match=r'learner.v_max: 12 cannot hold .* 100, or null'):
        Trainer(run_config(learner={'v_max': 12}), tmp_path)
    config = Trainer(run_config(learner={'v_min': None, 'v_max': None}), tmp_path).config
    assert (config.learner['v_min'], config.learner['v_max']) == (0, pytest.approx(100))


@pytest.mark.parametrize(
    ('field', 'message'),
    [('reward', 'reward: NaN or infinite in environment 0 after 5 steps'),
     ('position', 'observation position: NaN or infinite in environment 0 after 5 steps')],
)  # fmt: skip
def test_nan_from_a_task_ends_the_run_with_the_field_and_keeps_what_was_learned(
    lines, run_config, tmp_path, no_export, no_board, field, message
):
    trainer = Trainer(run_config(), tmp_path)
    step, count = lines[1].step, iter(range(1000))

    def broken(action):
        timestep = step(action)
        if next(count) == 5:
            values = timestep.reward if field == 'reward' else timestep.observation[field]
            values[:] = np.nan
        return timestep

    lines[1].step = broken
    with pytest.raises(RobotRLError, match=message):
        trainer.run()


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
    log = MetricsLog(tmp_path, steps=200)
    log.write({'env_steps': 250, 'x': 1.5})
    log.close()
    assert [row['env_steps'] for row in read_metrics(path)] == [100, 200, 250]


def test_the_written_config_is_plain_yaml(lines, run_config, tmp_path, no_export, no_board):
    Trainer(run_config(steps=50), tmp_path).run()
    data = yaml.safe_load((tmp_path / 'config.yaml').read_text())
    assert data['learner']['policy_layers'] == [16, 16]


@pytest.mark.parametrize(
    ('asked', 'num_envs', 'cores', 'expected'),
    [
        (None, 16, 2, 2),
        (None, 15, 2, 0),
        (None, 64, 4, 4),
        (None, 64, 1, 0),
        (0, 64, 4, 0),
        (3, 4, 2, 3),
    ],
)
def test_workers_are_those_asked_for_or_one_a_core_where_it_pays(
    run_config, monkeypatch, asked, num_envs, cores, expected
):
    made = []
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(cores)))
    monkeypatch.setattr(registry, 'make_environment', lambda task, **options: made.append(options))
    loop._environment(run_config(training={'workers': asked}), num_envs)
    assert made[0].get('workers', 0) == expected
