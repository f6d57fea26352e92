"""The learning runs behind docs/results.md: a queue that goes on where it stopped.

python -m robot_rl.bench.results [--only NAME] runs what results/queue.yaml asks for and is not
finished, keeps each run's evaluations in results/<name>/seed-<k>.json, and writes
docs/results.md and its curves. The benchmarks are run likewise where results/bench.jsonl is
missing: remove it, or a seed's file, to measure again.
"""

from __future__ import annotations

import importlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydantic
import tyro

from robot_rl.control.runtime import load_policy
from robot_rl.errors import SpecError
from robot_rl.specs import Spec
from robot_rl.specs.base import load_yaml
from robot_rl.training.logs import METRICS, read_metrics
from robot_rl.training.loop import POLICY

RESULTS, DOCS = Path('results'), Path('docs')
BENCH = RESULTS / 'bench.jsonl'
_KEPT = (
    'env_steps',
    'learner_steps',
    'wall_s',
    'eval_return_mean',
    'eval_return_std',
    'eval_success_rate',
    'load_average',
)


class Needs(Spec):
    """A mean evaluation return that each seed has to reach within so many steps."""

    return_: float = pydantic.Field(alias='return')
    within: pydantic.PositiveInt  # environment steps


class Entry(Spec):
    """One line of the queue: a run with `seeds` seeds, from 0 on."""

    name: str
    task: str
    agent: str
    steps: pydantic.PositiveInt
    seeds: pydantic.PositiveInt
    needs: Needs


def read_queue(path: Path) -> list[Entry]:
    """Read the queue. Raises SpecError."""
    data = load_yaml(path)
    if not isinstance(data, list):
        raise SpecError(f'{path}: expected a list of runs')
    return [Entry.parse(item, f'{path}: run {number}') for number, item in enumerate(data)]


def run(entry: Entry, seed: int, runs: Path) -> None:
    """Run one seed, or go on with it, and keep its evaluations."""
    kept = RESULTS / entry.name / f'seed-{seed}.json'
    if kept.exists():
        return
    folder = runs / entry.name / f'seed-{seed}'
    flags = f'--task {entry.task} --agent {entry.agent} --steps {entry.steps} --seed {seed}'
    command = f'robot-rl train {flags} --out {folder}'
    argv = [sys.executable, '-m', 'robot_rl.cli.main', *shlex.split(command)[1:]]
    print(command, flush=True)
    subprocess.run(argv, check=True, env=os.environ | {'OMP_NUM_THREADS': '1'})
    card = load_policy(folder / POLICY).card
    data = {
        'command': command,
        'git_revision': card.git_revision,
        'cores': os.cpu_count(),
        'rows': [
            {key: round(row[key], 2) for key in _KEPT if key in row}
            for row in read_metrics(folder / METRICS)
        ],
    }
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(data, indent=1) + '\n', encoding='utf-8')


def run_benches() -> None:
    """Run every benchmark and keep its rows, each with the load of the machine."""
    rows = []
    for name in ('learner', 'sim', 'deploy'):
        load = round(os.getloadavg()[0], 2)
        module = importlib.import_module(f'robot_rl.bench.{name}')
        rows += [row | {'load_average': load} for row in module.run(seconds=20.0)]
    BENCH.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')


def write_docs(queue: Sequence[Entry]) -> None:
    """Write docs/results.md and a curve for each run that has results."""
    parts = [_HEAD]
    for entry in queue:
        seeds = [_load(path) for path in sorted((RESULTS / entry.name).glob('seed-*.json'))]
        if seeds:
            parts += [_section(entry, seeds), _curve(entry, seeds)]
    if BENCH.exists():
        parts.append(_bench_table([json.loads(line) for line in BENCH.read_text().splitlines()]))
    (DOCS / 'results.md').write_text('\n'.join(parts), encoding='utf-8')


_HEAD = """# Results

Measured, not quoted; written by `make results` from the small files in `results/`. A return is the
mean over noiseless evaluation episodes from held-out initial conditions.
"""


def _section(entry: Entry, seeds: Sequence[dict[str, Any]]) -> str:
    wanted = entry.needs.return_
    lines = [
        f'## {entry.name}',
        '',
        f'Required: {wanted:g} within {entry.needs.within:,} environment steps, every seed.',
        '',
        f'| seed | first at {wanted:g} [env steps] | best | last | wall [s] | cores | load |',
        '|---|---|---|---|---|---|---|',
    ]
    for number, seed in enumerate(seeds):
        rows = seed['rows']
        returns = [row['eval_return_mean'] for row in rows]
        reached = [row['env_steps'] for row in rows if row['eval_return_mean'] >= wanted]
        lines.append(
            f'| {number} | {reached[0] if reached else "not reached"} | {max(returns):.1f} | '
            f'{returns[-1]:.1f} | {rows[-1]["wall_s"]:.0f} | {seed["cores"]} | {_load_of(rows)} |'
        )
    lines += ['', f'    {seeds[0]["command"]}', '', f'Revision {seeds[0]["git_revision"]}.', '']
    return '\n'.join(lines)


def _load_of(rows: Sequence[dict[str, Any]]) -> str:
    """Return the machine's mean load average over the run, where it was noted."""
    loads = [row['load_average'] for row in rows if 'load_average' in row]
    return f'{sum(loads) / len(loads):.1f}' if loads else 'not noted'


def _curve(entry: Entry, seeds: Sequence[dict[str, Any]]) -> str:
    """Draw the seeds' curves as docs/results/<name>.png; return the line that shows it."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3), dpi=100)
    for number, seed in enumerate(seeds):
        steps = [row['env_steps'] for row in seed['rows']]
        axes.plot(steps, [row['eval_return_mean'] for row in seed['rows']], label=f'seed {number}')
    axes.axhline(entry.needs.return_, color='grey', linewidth=0.8, linestyle='--')
    axes.set(xlabel='environment steps', ylabel='return')
    axes.legend(frameon=False)
    path = DOCS / 'results' / f'{entry.name}.png'
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, bbox_inches='tight')
    plt.close(figure)
    return f'![learning curves](results/{entry.name}.png)\n'


def _bench_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        '## Speed',
        '',
        'Each figure beside a floor measured in the same run (`robot-rl bench`).',
        '',
        '| bench | metric | value | unit | reference | ratio | load |',
        '|---|---|---|---|---|---|---|',
    ]
    keys = ('bench', 'metric', 'value', 'unit', 'reference', 'ratio', 'load_average')
    for row in rows:
        cells = (row[key] for key in keys)
        lines.append('| ' + ' | '.join(_cell(cell) for cell in cells) + ' |')
    return '\n'.join([*lines, ''])


def _cell(value: Any) -> str:
    if value is None:
        return ''
    return f'{value:.4g}' if isinstance(value, float) else str(value)


def _load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding='utf-8'))


def main(only: str = '', runs: Path = Path('runs/results')) -> None:
    """Run the queue (or only the entry of that name) and write the documents."""
    queue = read_queue(RESULTS / 'queue.yaml')
    for entry in queue:
        if only in ('', entry.name):
            for seed in range(entry.seeds):
                run(entry, seed, runs)
    if not (only or BENCH.exists()):
        run_benches()
    write_docs(queue)


if __name__ == '__main__':
    tyro.cli(main)
