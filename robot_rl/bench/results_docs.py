"""docs/results.md and its figures, from the small files in results/ alone."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robot_rl.bench.curves import Curve, Reference, curve_of, mean_of, read_published, reference_of
from robot_rl.bench.results import BENCH, Entry, Kept, runs

DOCS = Path('docs')
PAGE = DOCS / 'results.md'

_HEAD = """# Results

Measured, not quoted; written by `make results` from the small files in `results/`. A return is the
mean over noiseless evaluation episodes from held-out initial conditions.
"""

_COMPARED = """## Beside published curves

Published: ten seeds of each agent, from the repository of DreamerV3, averaged over 30,000 steps
around each point; `results/published.yaml` has the curves and says how they were made. Ours: the
mean over the seeds that are done, each interpolated linearly at the steps of the evaluations.

- Reached at: the first such step at which the mean, of ours not averaged over steps, is at least
  the threshold.
- Level: the area below the mean curve over the number of steps, from 0 to 1.25 times the step at
  which the published one reaches the threshold, or to its end at 500,000 where it has none or
  does not reach it. Before a curve's first point (ours after 10,000 steps, published after
  40,000) the return of that point counts, for both.
- Last: the mean ± standard deviation over seeds of the last return, beside the published mean of
  450,000 to 500,000 steps; only for runs of 500,000 steps.
- Wall time: of one seed, on average, in minutes.
"""


def write_docs(queue: Sequence[Entry]) -> int:
    """Write the document and a figure for each entry with results; return how many have any."""
    published = read_published() if any(entry.published for entry in queue) else None
    kept = {
        entry.name: {run.seed: run.load() for run in runs([entry]) if run.done} for entry in queue
    }
    means = {
        name: mean_of([curve_of(seed.rows) for seed in seeds.values()])
        for name, seeds in kept.items()
        if seeds
    }
    rows, sections = [], []
    for entry in queue:
        seeds = kept[entry.name]
        reference = reference_of(entry, published)
        if reference:
            rows.append(_compare(entry, list(seeds.values()), reference))
        if seeds and not entry.group:
            sections += [_section(entry, seeds, reference)]
            _draw(entry, seeds, reference, means)
    for group in dict.fromkeys(entry.group for entry in queue if entry.group):
        members = [entry for entry in queue if entry.group == group]
        if any(kept[entry.name] for entry in members):
            sections += [_group(group, members, kept)]
    parts = [_HEAD, *([_COMPARED, _table(rows)] if rows else []), *sections]
    if BENCH.exists():
        parts.append(_speed([json.loads(line) for line in BENCH.read_text().splitlines()]))
    PAGE.write_text('\n'.join(parts), encoding='utf-8')
    return len(sections)


def _compare(entry: Entry, seeds: Sequence[Kept], reference: Reference) -> dict[str, str]:
    """Return an entry's row of the table beside published curves."""
    mean = mean_of([curve_of(seed.rows) for seed in seeds]) if seeds else None
    level = mean.level(reference.until) if mean else None
    published = reference.curve.level(reference.until)
    whole = mean is not None and mean.steps[-1] >= reference.curve.steps[-1]
    return {
        'task': entry.task,
        'agent': ' '.join([entry.agent, *entry.set]),
        'seeds': f'{len(seeds)} of {entry.seeds}' if seeds else 'in the queue',
        'samples per insert': _all_of(seed.samples_per_insert for seed in seeds),
        'threshold': _number(reference.threshold),
        'reached at': _reached(mean, reference.threshold) if mean else '',
        'published step': '' if reference.threshold is None else _step(reference.reached),
        'level up to': f'{reference.until:.0f}',
        'level': _number(level),
        'published level': _number(published),
        'ratio': f'{level / published:.2f}' if level is not None and published else '',
        'last': _last(seeds) if whole else '',
        'published last': f'{reference.mean:.0f} ± {reference.std:.0f}',
        'wall [min]': _number(_mean_wall(seeds) / 60) if seeds else '',
        'cores': _all_of(seed.cores for seed in seeds),
    }


def _section(entry: Entry, seeds: dict[int, Kept], reference: Reference | None) -> str:
    """Return what is said of one entry: how it was run, and what each seed gave."""
    first = next(iter(seeds.values()))
    revisions = dict.fromkeys(seed.git_revision or 'not known' for seed in seeds.values())
    required = []
    if entry.needs:
        within = f'{entry.needs.within:,} environment steps'
        required = [f'Required: {entry.needs.return_:g} within {within}, every seed.', '']
    wanted = _threshold(entry, reference)
    return '\n'.join(
        [
            f'## {entry.title or entry.name}',
            '',
            *([entry.note.strip(), ''] if entry.note else []),
            *required,
            _table([_seed_row(number, seed, wanted) for number, seed in seeds.items()]),
            f'    {first.command}',
            '',
            f'Revision {", ".join(revisions)}.',
            '',
            f'![learning curves]({_figure(entry).relative_to(DOCS)})',
            '',
        ]
    )


def _group(name: str, entries: Sequence[Entry], kept: Mapping[str, dict[int, Kept]]) -> str:
    """Return what is said of entries that stand in one table: a row each, and the commands."""
    notes = [entry.note.strip() for entry in entries if entry.note]
    done = [seed for entry in entries for seed in kept[entry.name].values()]
    commands = [seed.demos.command for seed in done if seed.demos]
    commands += [next(iter(kept[e.name].values())).command for e in entries if kept[e.name]]
    revisions = dict.fromkeys(seed.git_revision or 'not known' for seed in done)
    return '\n'.join(
        [
            f'## {name}',
            '',
            *(line for note in notes for line in (note, '')),
            'Mean ± standard deviation over seeds of the last and of the best evaluation; of the '
            "demonstrations over episodes. Steps are the environment's; of bc, which does not "
            'act, updates.',
            '',
            _table(_filled([_group_row(e, list(kept[e.name].values())) for e in entries])),
            *(f'    {command}' for command in dict.fromkeys(commands)),
            '',
            f'Revision {", ".join(revisions)}.',
            '',
        ]
    )


def _filled(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Return rows without the columns in which none says anything: success, say."""
    filled = [key for key in rows[0] if any(row[key] for row in rows)]
    return [{key: row[key] for key in filled} for row in rows]


def _group_row(entry: Entry, seeds: Sequence[Kept]) -> dict[str, str]:
    returns = [[row['eval_return_mean'] for row in seed.rows] for seed in seeds]
    successes = [[row.get('eval_success_rate') for row in seed.rows] for seed in seeds]
    judged = bool(seeds) and None not in (value for part in successes for value in part)
    shown = seeds[0].demos if seeds else None
    return {
        'run': entry.title or entry.name,
        'agent': entry.agent,
        'demonstrations': str(shown.episodes) if shown else '',
        'their return': f'{shown.return_mean:.0f} ± {shown.return_std:.0f}' if shown else '',
        'their success': _percent([shown.success_rate] if shown else []),
        'seeds': f'{len(seeds)} of {entry.seeds}' if seeds else 'in the queue',
        'last return': _spread([part[-1] for part in returns]),
        'best return': _spread([max(part) for part in returns]),
        'last success': _percent([part[-1] for part in successes] if judged else []),
        'best success': _percent([max(part) for part in successes] if judged else []),
        'steps': str(entry.steps),
        'wall [min]': f'{_mean_wall(seeds) / 60:.1f}' if seeds else '',
        'cores': _all_of(seed.cores for seed in seeds),
    }


def _spread(values: Sequence[float]) -> str:
    """Return mean ± standard deviation; of one value, that."""
    if len(values) < 2:
        return ''.join(map(_number, values))
    return f'{statistics.fmean(values):.0f} ± {statistics.pstdev(values):.0f}'


def _percent(rates: Sequence[float | None]) -> str:
    """Return the mean of some rates; nothing where the task does not tell success."""
    return f'{statistics.fmean(rates):.0%}' if rates and None not in rates else ''


def _seed_row(number: int, seed: Kept, wanted: float | None) -> dict[str, str]:
    curve = curve_of(seed.rows)
    first = {}
    if wanted is not None:
        first = {f'first at {wanted:g} [env steps]': _reached(curve, wanted)}
    return {
        'seed': str(number),
        **first,
        'best': f'{curve.returns.max():.1f}',
        'last': f'{curve.returns[-1]:.1f}',
        'updates': str(seed.updates),
        'samples per insert': _all_of([seed.samples_per_insert]),
        'wall [s]': f'{seed.rows[-1]["wall_s"]:.0f}',
        'cores': str(seed.cores),
        'load': _load_of(seed.rows),
    }


def _draw(
    entry: Entry,
    seeds: dict[int, Kept],
    reference: Reference | None,
    means: Mapping[str, Curve],
) -> None:
    """Draw the seeds' curves thin, their mean bold, and dashed what they are compared with."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.5, 2.8), dpi=80)
    curves = [curve_of(seed.rows) for seed in seeds.values()]
    for curve in curves:
        axes.plot(*curve, color='C0', linewidth=0.8, alpha=0.6)
    label = 'mean of the seeds' if len(curves) > 1 else f'seed {next(iter(seeds))}'
    axes.plot(*means[entry.name], color='C0', linewidth=2.2, label=label)
    if entry.beside in means:
        axes.plot(*means[entry.beside], color='C2', linestyle='--', label=entry.beside)
    if reference:
        shown = reference.curve.steps <= max(curve.steps[-1] for curve in curves)
        published = (part[shown] for part in reference.curve)
        axes.plot(*published, color='C1', linestyle='--', label=f'{entry.published}, published')
    wanted = _threshold(entry, reference)
    if wanted is not None:
        axes.axhline(wanted, color='grey', linewidth=0.8, linestyle=':')
    acts = any(row['env_steps'] for seed in seeds.values() for row in seed.rows)
    axes.set(xlabel='environment steps' if acts else 'updates', ylabel='return')
    axes.legend(frameon=False)
    path = _figure(entry)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without its version: the same curves give the same file.
    figure.savefig(path, bbox_inches='tight', metadata={'Software': None})
    plt.close(figure)


def _figure(entry: Entry) -> Path:
    return DOCS / 'results' / f'{entry.name}.png'


def _threshold(entry: Entry, reference: Reference | None) -> float | None:
    """Return the return to reach: the entry's own, or else the published curves'."""
    if entry.needs:
        return entry.needs.return_
    return reference.threshold if reference else None


def _reached(curve: Curve, wanted: float | None) -> str:
    return '' if wanted is None else _step(curve.first_at(wanted))


def _step(step: int | None) -> str:
    return 'not reached' if step is None else str(step)


def _last(seeds: Sequence[Kept]) -> str:
    return _spread([seed.rows[-1]['eval_return_mean'] for seed in seeds])


def _mean_wall(seeds: Sequence[Kept]) -> float:
    return statistics.fmean(seed.rows[-1]['wall_s'] for seed in seeds)


def _load_of(rows: Sequence[dict[str, Any]]) -> str:
    """Return the machine's mean load average over the run, where it was noted."""
    loads = [row['load_average'] for row in rows if 'load_average' in row]
    return f'{statistics.fmean(loads):.1f}' if loads else 'not noted'


def _all_of(values: Any) -> str:
    """Return the different values, which are one where the seeds were run alike."""
    return ', '.join(dict.fromkeys('none' if value is None else f'{value:g}' for value in values))


def _number(value: float | None) -> str:
    return '' if value is None else f'{value:.0f}'


def _speed(rows: Sequence[dict[str, Any]]) -> str:
    keys = ('bench', 'metric', 'value', 'unit', 'reference', 'ratio')
    cells = [
        {key: _cell(row[key]) for key in keys} | {'load': _cell(row['load_average'])}
        for row in rows
    ]
    text = 'Each figure beside a floor measured in the same run (`robot-rl bench`).'
    return '\n'.join(['## Speed', '', text, '', _table(cells)])


def _cell(value: Any) -> str:
    if value is None:
        return ''
    return f'{value:.4g}' if isinstance(value, float) else str(value)


def _table(rows: Sequence[dict[str, str]]) -> str:
    """Return rows with the same keys as a table in Markdown."""
    lines = [rows[0].keys(), ['---'] * len(rows[0]), *(row.values() for row in rows)]
    return '\n'.join([*('| ' + ' | '.join(line) + ' |' for line in lines), ''])
