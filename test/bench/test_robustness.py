"""Policies in shifted worlds: what is kept is what `evaluate` says, and the page shows it."""

import json
import shutil
from pathlib import Path

import pytest

from robot_rl import registry, resources
from robot_rl.bench import results, robustness
from robot_rl.cli.main import main

POLICY = resources.share() / 'pretrained' / 'ur5e_reach.onnx'
ENTRY = {'name': 'shipped', 'task': 'ur5e/reach', 'agent': 'd4pg', 'steps': 20, 'seeds': 1}
LATE = 'randomisation.command_delay=8'
PLAN = {
    'task': 'ur5e/reach',
    'episodes': 2,
    'policies': {'one': 'shipped'},
    'shifts': [{'name': 'as modelled'}, {'name': 'late', 'set': [LATE]}],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a working folder with a queue of one run, and a plan."""
    monkeypatch.chdir(tmp_path)
    for name in ('docs', 'results'):
        (tmp_path / name).mkdir()
    results.QUEUE.write_text(json.dumps([ENTRY]))
    robustness.PLAN.write_text(json.dumps(PLAN))
    return tmp_path


def test_the_table_has_what_evaluate_says(folder, capsys):
    place = folder / 'runs/results/shipped/seed-0/policy.onnx'
    place.parent.mkdir(parents=True)
    shutil.copy(POLICY, place)
    assert main(['results', 'robustness', '--json']) == 0
    assert json.loads(capsys.readouterr().out)['rows'] == 2
    kept = robustness.Robustness.from_json(robustness.KEPT.read_text())
    cells = []
    for reached, changes in zip(kept.reached, ([], ['--set', LATE]), strict=True):
        assert (
            main(['evaluate', '--policy', str(POLICY), '--episodes', '2', *changes, '--json']) == 0
        )
        told = json.loads(capsys.readouterr().out)
        for key in ('success_rate', 'final_distance_mean', 'mean'):
            assert getattr(reached, key) == pytest.approx(told[key], abs=1e-3)
        millimetres = round(1e3 * told['final_distance_mean'])
        cells.append(f'{round(100 * told["success_rate"])}%, {millimetres} mm')
    assert cells[0].startswith('100%') and cells[1].startswith('0%')
    assert main(['results', 'write']) == 0
    page = (folder / 'docs' / 'results.md').read_text()
    assert f'| as modelled |  | {cells[0]} |' in page
    assert f'| late | `command_delay=8` | {cells[1]} |' in page


@pytest.mark.parametrize(
    ('policies', 'told'),
    [
        ({'one': 'shiped'}, "unknown run 'shiped'; did you mean 'shipped'"),
        ({'one': 'shipped'}, 'runs/results/shipped/seed-0/policy.onnx is missing'),
        ({}, 'robustness.yaml: policies: '),
    ],
)
def test_a_policy_that_is_not_there_is_one_line(folder, capsys, policies, told):
    robustness.PLAN.write_text(json.dumps(PLAN | {'policies': policies}))
    assert main(['results', 'robustness']) == 2
    error = capsys.readouterr().err
    assert told in error and error.count('\n') == 1


def test_the_plan_of_this_project_is_of_runs_in_its_queue(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    plan = robustness.Plan.from_yaml(robustness.PLAN)
    queue = {entry.name: entry for entry in results.read_queue()}
    assert {queue[name].task for name in plan.policies.values()} == {plan.task}
    assert len(plan.shifts) == len({shift.name for shift in plan.shifts})
    for shift in plan.shifts:
        task = registry.make_task(plan.task, shift.set)
        assert task.randomisation.is_on == bool(shift.set)
