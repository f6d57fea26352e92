"""The queue of learning runs, and the document that is made of what they gave.

Training is a stand-in: a process that writes a run's files, waits for a file called `go` where
there is none, and saves and ends at SIGINT and SIGTERM as training does.
"""

import contextlib
import functools
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest

from robot_rl.bench import curves, results, results_docs, sim
from robot_rl.cli import main
from robot_rl.errors import SpecError, UnknownName

ROOT = Path(__file__).parents[2]
ENTRY = {'name': 'a-run', 'task': 'ur5e/reach', 'agent': 'd4pg', 'steps': 20, 'seeds': 2}
OTHER = ENTRY | {'name': 'b-run', 'seeds': 1}
KEPT = {
    'command': 'robot-rl train',
    'git_revision': 'abc',
    'cores': 2,
    'samples_per_insert': 32,
    'updates': 7,
}

TRAINING = """
import json, os, signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
metrics = folder / 'metrics.jsonl'
lines = metrics.read_text().splitlines() if metrics.exists() else []

def write(step):
    row = {'env_steps': step, 'learner_steps': step // 2, 'wall_s': 1.0, 'eval_return_mean': 3.0}
    lines.append(json.dumps(row))
    metrics.write_text(''.join(line + '\\n' for line in lines))

def stop(number, frame):
    (folder / 'saved').write_text(signal.Signals(number).name)
    sys.exit(130)

signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
write(10 * (len(lines) + 1))
(folder / 'pid').write_text(str(os.getpid()))
while not Path('go').exists():
    time.sleep(0.02)
if Path('fail').exists():
    sys.exit(3)
write(10 * (len(lines) + 1))
"""

DRIVER = """
import sys
from robot_rl.bench import results
from robot_rl.cli import main
results._argv = lambda command: [sys.executable, 'training.py', command.split()[-1]]
results._shown = lambda run: None
results._made_by = lambda run: ('abc', {'learner': {'samples_per_insert': 32}})
sys.exit(main.main(['results', *sys.argv[1:]]))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return an empty working folder with a queue of three runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'docs').mkdir()
    (tmp_path / 'results').mkdir()
    (tmp_path / 'training.py').write_text(TRAINING)
    queue(ENTRY, OTHER)
    return tmp_path


@pytest.fixture
def start(folder):
    """Return `start(*words)`, which starts `robot-rl results` with the stand-in."""
    processes = []

    def begin(*words):
        processes.append(
            subprocess.Popen(
                [sys.executable, '-c', DRIVER, *words],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {'PYTHONPATH': str(ROOT)},
            )
        )
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.communicate()
    for path in folder.rglob('pid'):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(path.read_text()), signal.SIGKILL)


def queue(*entries):
    results.QUEUE.write_text(json.dumps(entries))  # which is YAML as well


def keep(name, seed, rows, **changes):
    path = results.RESULTS / name / f'seed-{seed}.json'
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(KEPT | {'rows': rows} | changes))


def row(step, value, **more):
    return {'env_steps': step, 'eval_return_mean': value, 'wall_s': 3.0 * step} | more


def wait_for(condition, what):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def training(name, seed):
    """Wait until the stand-in of a run is there; return the id of its process."""
    path = results.RUNS / name / f'seed-{seed}' / 'pid'
    wait_for(lambda: path.exists() and path.read_text(), f'{path} is not written')
    return int(path.read_text())


def states():
    return [results.status(run)['state'] for run in results.runs(results.read_queue())]


@pytest.mark.slow
def test_bench_sim_yields_complete_rows():
    rows = list(sim.run(seconds=1.0))
    assert rows
    for found in rows:
        assert found.keys() >= {'bench', 'metric', 'value', 'unit', 'reference', 'ratio'}
        assert found['bench'] == 'sim' and found['value'] > 0 and found['ratio'] > 0


def test_runs_come_by_entry_and_then_by_seed(folder):
    runs = results.runs(results.read_queue())
    assert [(run.entry.name, run.seed) for run in runs] == [
        ('a-run', 0),
        ('a-run', 1),
        ('b-run', 0),
    ]
    assert [run.seed for run in results.runs(results.read_queue('b-run'))] == [0]


def test_a_command_quotes_what_is_set():
    entry = results.Entry.parse(ENTRY | {'set': ['learner.sigma=0.3', 'learner.x=[1, 2]']})
    assert results.Run(entry, 4).command == (
        'robot-rl train --task ur5e/reach --agent d4pg --steps 20 --seed 4 '
        "--set learner.sigma=0.3 'learner.x=[1, 2]' --out runs/results/a-run/seed-4"
    )


@pytest.mark.parametrize(
    ('change', 'told'),
    [
        ({'nam': 'x'}, r"run 1: nam: unknown key; did you mean 'name'"),
        ({'agent': 'd4gp'}, r"run 1: agent: unknown agent 'd4gp'; did you mean 'd4pg'"),
        ({'published': 'D4GP'}, r"run 1: published: unknown value 'D4GP'; did you mean 'D4PG'"),
        ({'name': 'a-run'}, r"run 1: the name 'a-run' is taken"),
        ({'name': '../up'}, r'run 1: name: '),
        ({'seeds': 0}, r'run 1: seeds: must be greater than 0'),
        ({'beside': 'a-rnu'}, r"run 1: beside: no run 'a-rnu'; did you mean 'a-run'"),
        (
            {'demos': {'name': 'd', 'of': 'a-rnu', 'episodes': 1}},
            r"run 1: demos: of: no run 'a-rnu'; did you mean 'a-run'",
        ),
        (
            {'demos': {'name': 'd', 'of': 'a-run', 'policy': 'random', 'episodes': 1}},
            'run 1: demos: .*one of policy and of',
        ),
    ],
)
def test_a_bad_line_of_the_queue_names_the_run(folder, change, told):
    queue(ENTRY, OTHER | change)
    with pytest.raises(SpecError, match=f'results/queue.yaml: {told}'):
        results.read_queue()


def test_an_unknown_name_and_a_queue_that_is_no_list(folder):
    with pytest.raises(UnknownName, match="unknown run 'a-rnu'; did you mean 'a-run'"):
        results.read_queue('a-rnu')
    results.QUEUE.write_text('name: x\n')
    with pytest.raises(SpecError, match='expected a list of runs'):
        results.read_queue()


def test_the_stored_queue_and_what_is_published_fit(monkeypatch):
    monkeypatch.chdir(ROOT)
    entries, published = results.read_queue(), curves.read_published()
    assert sum(curves.reference_of(entry, published) is not None for entry in entries) == 54
    for run in results.runs(entries):
        assert not run.done or results.steps_of(run.load().rows[-1]) >= run.entry.steps


def test_a_run_is_kept_and_the_next_call_takes_the_next(folder, start):
    (folder / 'go').touch()
    keep('a-run', 0, [row(20, 1.0)])
    out, err = start('run', '--next', '--json').communicate(timeout=30)
    assert json.loads(out) == {'ran': ['results/a-run/seed-1.json'], 'missing': 1}
    assert 'robot-rl train --task ur5e/reach' in err
    kept = json.loads((folder / 'results/a-run/seed-1.json').read_text())
    assert kept['rows'] == [
        {'env_steps': step, 'learner_steps': step // 2, 'wall_s': 1.0, 'eval_return_mean': 3.0}
        for step in (10, 20)
    ]
    assert kept | KEPT | {'updates': 10} == kept | {'command': 'robot-rl train'}
    assert '--seed 1 --out runs/results/a-run/seed-1' in kept['command']


def test_run_goes_on_until_none_is_missing(folder, start):
    (folder / 'go').touch()
    out, _ = start('--only', 'a-run').communicate(timeout=30)
    assert states() == ['done', 'done', 'missing']
    assert out.endswith('2 run, 0 missing; robot-rl results --status\n')
    out, _ = start().communicate(timeout=30)
    assert states() == ['done'] * 3
    assert out.startswith('results/b-run/seed-0.json\n1 run, 0 missing')


def test_two_processes_take_different_runs(folder, start):
    one = start('run', '--next')
    training('a-run', 0)
    two = start('run', '--next')
    training('a-run', 1)
    assert states() == ['running', 'running', 'missing']
    (folder / 'go').touch()
    assert [process.wait(timeout=30) for process in (one, two)] == [0, 0]
    assert states() == ['done', 'done', 'missing']
    assert not (results.RUNS / 'b-run').exists()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_training_cleanly_and_the_next_call_goes_on(folder, start, number):
    process = start('run')
    training('a-run', 0)
    process.send_signal(number)
    assert process.wait(timeout=30) == 130
    assert (results.RUNS / 'a-run/seed-0/saved').read_text() == number.name
    assert states() == ['half-done', 'missing', 'missing']
    (folder / 'go').touch()
    assert start('run', '--next').wait(timeout=30) == 0
    kept = results.runs(results.read_queue())[0].load()
    assert [found['env_steps'] for found in kept.rows] == [10, 20, 30]


def test_who_demonstrates_is_trained_and_recorded_first(folder, start):
    (folder / 'go').touch()
    shown = {'name': 'shown', 'of': 'a-run', 'episodes': 3}
    learner = OTHER | {'demos': shown, 'set': ['demos.episodes=2']}
    queue(learner, ENTRY)  # who learns stands before who demonstrates
    _, err = start('run', '--next').communicate(timeout=30)
    assert [line for line in err.splitlines() if line.startswith('robot-rl')] == [
        'robot-rl train --task ur5e/reach --agent d4pg --steps 20 --seed 0 '
        '--out runs/results/a-run/seed-0',
        'robot-rl collect --task ur5e/reach --policy runs/results/a-run/seed-0/policy.onnx '
        '--episodes 3 --tag shown --store runs/demonstrations/shown.partial',
        'robot-rl train --task ur5e/reach --agent d4pg --steps 20 --seed 0 --demos tag=shown '
        '--store runs/demonstrations/shown --set demos.episodes=2 --out runs/results/b-run/seed-0',
    ]
    assert states() == ['done', 'done', 'missing']
    queue(learner | {'name': 'c-run'}, ENTRY)
    _, err = start('run', '--next').communicate(timeout=30)
    commands = [line for line in err.splitlines() if line.startswith('robot-rl')]
    assert len(commands) == 1 and 'c-run' in commands[0]  # what it needs is there


def test_demonstrations_of_one_name_are_the_same_ones(folder):
    shown = {'name': 'shown', 'policy': 'random', 'episodes': 3}
    queue(ENTRY | {'demos': shown}, OTHER | {'demos': shown | {'episodes': 4}})
    with pytest.raises(SpecError, match="run 1: demos: other ones are called 'shown'"):
        results.read_queue()
    paid = OTHER | {'task': ENTRY['task'] + '_sparse'}
    queue(ENTRY | {'demos': shown}, paid | {'demos': shown})
    with pytest.raises(SpecError, match="run 1: demos: other ones are called 'shown'"):
        results.read_queue()
    shown |= {'task': ENTRY['task']}
    queue(ENTRY | {'demos': shown}, paid | {'demos': shown})
    commands = [e.demos.command(e.task, e.demos.folder) for e in results.read_queue()]
    assert commands[0] == commands[1] and f'--task {ENTRY["task"]} ' in commands[0]


def test_what_demonstrations_show_besides_are_words_of_one_flag():
    words = ['constants={cue: 1}', 'marker=[255, 0, 0]']
    data = {'name': 'shown', 'policy': 'random', 'episodes': 3, 'show': words}
    command = results.Demonstrations.parse(data, 'here').command('suite/a-task', Path('store'))
    assert shlex.split(command)[-3:] == ['--show', *words]


def test_another_package_learns_with_the_same_flags(folder):
    shown = {'name': 'shown', 'policy': 'random', 'episodes': 3}
    queue(OTHER | {'demos': shown}, OTHER | {'demos': shown, 'package': 'imitation', 'name': 'p'})
    ours, theirs = (run.command for run in results.runs(results.read_queue()))
    assert theirs == ours.replace('robot-rl train', 'python -m robot_rl.bench.gail_peer').replace(
        'b-run', 'p'
    )
    assert results._argv(theirs)[:3] == [sys.executable, '-m', 'robot_rl.bench.gail_peer']


def test_a_killed_process_leaves_its_run_taken_while_training_lives(folder, start):
    process = start('run', '--next')
    pid = training('a-run', 0)
    process.kill()
    process.wait(timeout=30)
    assert states()[0] == 'running'
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: states()[0] == 'half-done', 'the lock is stale')


def test_failed_training_is_one_line_and_keeps_nothing(folder, start):
    (folder / 'go').touch()
    (folder / 'fail').touch()
    process = start('run')
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    told = err.splitlines()[-1]
    assert 'exit code 3' in told and '--out runs/results/a-run/seed-0' in told
    assert states() == ['half-done', 'missing', 'missing']


def test_status_shows_every_run(folder, capsys):
    keep('a-run', 0, [row(10, 2.5), row(20, 1.25)])
    half = results.RUNS / 'a-run' / 'seed-1'
    half.mkdir(parents=True)
    (half / 'metrics.jsonl').write_text(json.dumps(row(10, 4.0)) + '\n{"env_st')
    assert main.main(['results', '--status']) == 0
    lines = [line.split('  ') for line in capsys.readouterr().out.splitlines()]
    lines = [[cell.strip() for cell in line if cell] for line in lines]
    assert lines == [
        ['run', 'seed', 'steps', 'state', 'last', 'best', 'wall [s]'],
        ['a-run', '0', '20', 'done', '1.2', '2.5', '60'],
        ['a-run', '1', '20', 'half-done at step 10', '4.0', '4.0', '30'],
        ['b-run', '0', '20', 'missing'],
        ['1 done, 0 running, 1 half-done, 1 missing'],
    ]
    assert main.main(['results', 'run', '--status', '--only', 'b-run', '--json']) == 0
    data = json.loads(capsys.readouterr().out)
    assert data['counts'] == {'done': 0, 'running': 0, 'half-done': 0, 'missing': 1}
    assert data['runs'][0]['last_return'] is None


def test_a_run_that_does_not_act_is_counted_in_updates(folder):
    queue(OTHER)
    keep('b-run', 0, [row(0, 2.5, learner_steps=10), row(0, 1.25, learner_steps=20)])
    (run,) = results.runs(results.read_queue())
    assert results.status(run)['env_steps'] == 20
    assert curves.curve_of(run.load().rows).steps.tolist() == [10, 20]
    results_docs.write_docs(results.read_queue())
    assert '| 0 | 2.5 | 1.2 | 7 |' in (folder / 'docs' / 'results.md').read_text()


def test_entries_of_a_group_stand_in_one_table(folder):
    queue(ENTRY | {'group': 'How many', 'note': 'Why.'}, OTHER | {'group': 'How many'})
    shown = {'command': 'robot-rl collect --policy scripted', 'episodes': 4}
    shown |= {'return_mean': 9.0, 'return_std': 1.0, 'success_rate': 0.75}
    for seed, last in enumerate((2.0, 6.0)):
        rows = [row(60, 8.0, eval_success_rate=0.5), row(120, last, eval_success_rate=0.25)]
        keep('a-run', seed, rows, demos=shown)
    results_docs.write_docs(results.read_queue())
    text = (folder / 'docs' / 'results.md').read_text()
    assert '## How many\n\nWhy.\n\n' in text
    # 4 ± 2 of 2 and 6; 360 seconds each.
    cells = 'd4pg | 4 | 9 ± 1 | 75% | 2 of 2 | 4 ± 2 | 8 ± 0 | 25% | 50% | 20 | 6.0 | 2 |'
    assert f'| a-run | {cells}' in text
    assert '| b-run | d4pg |  |  |  | in the queue |' in text
    assert '    robot-rl collect --policy scripted\n    robot-rl train\n' in text
    assert '## a-run' not in text
    keep('a-run', 0, [row(120, 2.0)], demos=shown | {'success_rate': None})
    queue(ENTRY | {'group': 'How many', 'seeds': 1})
    results_docs.write_docs(results.read_queue())
    text = (folder / 'docs' / 'results.md').read_text()
    # One seed has no deviation; and nobody says anything of success.
    assert '| a-run | d4pg | 4 | 9 ± 1 | 1 of 1 | 2 | 2 | 20 | 6.0 | 2 |' in text


def test_what_a_run_learned_from_is_kept(folder):
    """Returns of the two episodes that were used, of three that were shown."""
    from robot_rl.storage.episode import EpisodeHeader, EpisodeWriter
    from robot_rl.storage.shards import ShardWriter

    shown = {'name': 'shown', 'policy': 'scripted', 'episodes': 3}
    queue(OTHER | {'demos': shown})
    (run,) = results.runs(results.read_queue())
    for success in (True, False, False):
        header = EpisodeHeader(source='policy', tags=('shown',))
        with EpisodeWriter(run.entry.demos.folder, header) as writer:
            writer.commit(result='ended', success=success)
    with ShardWriter(run.folder / '.demos') as shards:
        for rewards in ([1.0, 2.0, 0.0], [4.0, 1.0, 0.0]):
            column = np.array(rewards, np.float32)
            kinds = np.array([0, 1, 2], np.int8)
            shards.append(
                {'action': column, 'reward': column, 'discount': column, 'step_type': kinds}
            )
    found = results._shown(run)
    assert (found.episodes, found.return_mean, found.return_std) == (2, 4.0, 1.0)
    assert found.success_rate == 0.5
    assert found.command == (
        'robot-rl collect --task ur5e/reach --policy scripted --episodes 3 --tag shown '
        '--store runs/demonstrations/shown'
    )


def test_options_of_run_are_refused_elsewhere(folder, capsys):
    assert main.main(['results', 'write', '--next']) == 2
    assert 'results write: --next, --only and --status are for run' in capsys.readouterr().err


@pytest.mark.parametrize('count', [1, 59, 60, 61, 120, 121, 1000])
def test_thinned_rows_are_few_even_and_end_with_the_last(count):
    steps = [found['step'] for found in results._thinned([{'step': n} for n in range(count)])]
    assert steps[-1] == count - 1
    assert len({after - before for before, after in itertools.pairwise(steps)}) <= 1
    assert min(count, 31) <= len(steps) <= 60


def test_a_damaged_kept_file_is_named(folder):
    keep('a-run', 0, [])
    with pytest.raises(SpecError, match=r'results/a-run/seed-0\.json: rows: at least one'):
        results.runs(results.read_queue())[0].load()


def test_the_document_says_what_each_seed_gave(folder):
    queue(
        ENTRY | {'needs': {'return': 2.0, 'within': 20}, 'title': 'A run', 'note': 'Why.'}, OTHER
    )
    rows = [row(10, 1.5, load_average=1.0), row(20, 2.5, load_average=2.0)]
    keep('a-run', 1, rows)
    bench = {'bench': 'sim', 'metric': 'm', 'value': 0.5, 'unit': '1/s'}
    bench |= {'reference': None, 'ratio': None, 'load_average': 0.1}
    results.BENCH.write_text(json.dumps(bench) + '\n')
    assert main.main(['results', 'write']) == 0
    text = (folder / 'docs' / 'results.md').read_text()
    assert '## A run\n\nWhy.\n\nRequired: 2 within 20 environment steps, every seed.' in text
    assert '| 1 | 20 | 2.5 | 2.5 | 7 | 32 | 60 | 2 | 1.5 |' in text
    assert '| sim | m | 0.5 | 1/s |  |  | 0.1 |' in text
    assert 'b-run' not in text  # it is neither run nor compared
    assert (folder / 'docs' / 'results' / 'a-run.png').stat().st_size < 40_000


def test_the_document_says_when_a_run_first_succeeded(folder):
    rates = {10: 0.2, 20: 0.96, 30: 0.94}
    rows = [row(step, 1.0, eval_success_rate=rate) for step, rate in rates.items()]
    rows[1]['wall_s'] = 90.0
    keep('a-run', 0, rows)
    keep('a-run', 1, rows[:1])
    results_docs.write_docs(results.read_queue())
    text = (folder / 'docs' / 'results.md').read_text()
    assert '| seed | 95% success at [env steps] | after [min] | success at last |' in text
    assert '| 0 | 20 | 1.5 | 94% |' in text
    assert '| 1 | not reached |  | 20% |' in text


def test_a_figure_shows_the_mean_of_the_entry_beside_it(folder):
    rows = [row(10, 1.5), row(20, 2.5)]
    queue(ENTRY, OTHER)
    keep('a-run', 0, rows)
    results_docs.write_docs(results.read_queue())
    alone = (folder / 'docs' / 'results' / 'a-run.png').read_bytes()
    queue(ENTRY | {'beside': 'b-run'}, OTHER)
    results_docs.write_docs(results.read_queue())  # of which nothing is kept yet
    assert (folder / 'docs' / 'results' / 'a-run.png').read_bytes() == alone
    keep('b-run', 0, rows)
    results_docs.write_docs(results.read_queue())
    assert (folder / 'docs' / 'results' / 'a-run.png').read_bytes() != alone


def test_the_document_compares_with_what_is_published(folder):
    published = {'mean': 9.0, 'std': 1.0, 'reached': 60, 'curve': [2, 6, 8, 9, 10]}
    task = {'threshold': 8, 'agents': {'MPO': published}}
    data = {'first_step': 40, 'every': 10, 'tasks': {'suite/a': task}}
    curves.PUBLISHED.write_text(json.dumps(data))
    compared = ENTRY | {'task': 'suite/a', 'published': 'MPO', 'steps': 80}
    queue(compared, compared | {'name': 'short'}, compared | {'name': 'waiting'})
    keep('a-run', 0, [row(40, 4.0), row(80, 12.0)])
    keep('a-run', 1, [row(40, 2.0), row(80, 8.0)], cores=4)
    keep('short', 0, [row(40, 4.0), row(70, 7.0)])
    results_docs.write_docs(results.read_queue())
    lines = (folder / 'docs' / 'results.md').read_text().splitlines()
    whole, short, waiting = (
        [cell.strip() for cell in line.split('|')[3:-1]]
        for line in lines
        if line.startswith('| suite/a |')
    )
    # The mean is 3 up to step 40 and 10 at step 80: 9.125 at 75.
    level = (40 * 3 + 35 * (3 + 9.125) / 2) / 75
    reference = (40 * 2 + 10 * 4 + 10 * 7 + 10 * 8.5 + 5 * 9.25) / 75
    levels = [f'{level:.0f}', f'{reference:.0f}', f'{level / reference:.2f}']
    assert whole[:6] == ['2 of 2', '32', '8', '80', '60', '75']
    assert whole[6:] == [*levels, '10 ± 2', '9 ± 1', '4', '2, 4']
    # It ended at step 70: no level up to 75, no last return to compare.
    assert short[:7] == ['1 of 2', '32', '8', 'not reached', '60', '75', '']
    assert short[8:10] == ['', '']
    assert waiting[:4] == ['in the queue', '', '8', '']
    assert not any('waiting' in line for line in lines)


def test_rows_of_a_benchmark_take_the_place_of_its_older_ones_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('results').mkdir()
    given = {'learner': [{'bench': 'learner', 'metric': 'a'}], 'storage': []}
    for name in given:
        run = functools.partial(lambda name, seconds: given[name], name)
        module = types.SimpleNamespace(run=run)
        monkeypatch.setitem(sys.modules, f'robot_rl.bench.{name}', module)
    results.keep_bench('learner', seconds=1)
    given['storage'] = [{'bench': 'storage', 'metric': 'b'}, {'bench': 'storage', 'metric': 'c'}]
    results.keep_bench('storage', seconds=1)
    given['learner'] = [{'bench': 'learner', 'metric': 'd'}]
    results.keep_bench('learner', seconds=1)
    rows = [json.loads(line) for line in results.BENCH.read_text().splitlines()]
    assert [row['metric'] for row in rows] == ['d', 'b', 'c']
    assert all(row['load_average'] >= 0 for row in rows)
