"""Benchmarks yield their rows, and the documents show what was kept."""

import json

import pytest

from robot_rl.bench import results, sim
from robot_rl.errors import SpecError

QUEUE = [
    results.Entry.parse(
        {
            'name': 'a-run',
            'task': 'ur5e/reach',
            'agent': 'd4pg',
            'steps': 20,
            'seeds': 1,
            'needs': {'return': 2.0, 'within': 20},
        }
    )
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'docs').mkdir()
    (tmp_path / 'results' / 'a-run').mkdir(parents=True)
    return tmp_path


def test_bench_sim_yields_complete_rows():
    rows = list(sim.run(seconds=1.0))
    assert rows
    for row in rows:
        assert row.keys() >= {'bench', 'metric', 'value', 'unit', 'reference', 'ratio'}
        assert row['bench'] == 'sim' and row['value'] > 0 and row['ratio'] > 0


def test_results_say_when_each_seed_reached_what_was_required(folder):
    rows = [
        {'env_steps': 10, 'eval_return_mean': 1.5, 'wall_s': 3.0, 'load_average': 1.0},
        {'env_steps': 20, 'eval_return_mean': 2.5, 'wall_s': 6.0, 'load_average': 2.0},
    ]
    kept = {'command': 'robot-rl train', 'git_revision': 'abc', 'cores': 2, 'rows': rows}
    (folder / 'results' / 'a-run' / 'seed-0.json').write_text(json.dumps(kept))
    bench = {'bench': 'sim', 'metric': 'm', 'value': 0.5, 'unit': '1/s'}
    bench |= {'reference': None, 'ratio': None, 'load_average': 0.1}
    (folder / 'results' / 'bench.jsonl').write_text(json.dumps(bench) + '\n')
    results.write_docs(QUEUE)
    text = (folder / 'docs' / 'results.md').read_text()
    assert '| 0 | 20 | 2.5 | 2.5 | 6 | 2 | 1.5 |' in text
    assert '| sim | m | 0.5 | 1/s |  |  | 0.1 |' in text
    assert (folder / 'docs' / 'results' / 'a-run.png').exists()


def test_a_finished_seed_is_not_run_again(folder, monkeypatch):
    kept = folder / 'results' / 'a-run' / 'seed-0.json'
    kept.write_text('{}')
    monkeypatch.setattr(results.subprocess, 'run', lambda *a, **k: pytest.fail('it ran'))
    results.run(QUEUE[0], 0, folder / 'runs')
    assert kept.read_text() == '{}'


def test_a_queue_with_a_misspelt_key_names_the_run(folder):
    path = folder / 'queue.yaml'
    path.write_text('- {nam: x}\n')
    with pytest.raises(SpecError, match=r'queue.yaml: run 0: .*nam'):
        results.read_queue(path)
