"""Work on the queue of learning runs behind docs/results.md, and write that page.

`run` does the runs that are not finished yet, one after another, and goes on with a stopped one.
`write` makes the page and its figures from the files in results/ alone. `bench` runs all
benchmarks, for the page's table of speeds. `robustness` evaluates policies of the queue's runs in
worlds that differ from their model, for the page's table of those. `demonstrators` measures how
often the scripted ones succeed, for docs/tasks.md.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal

import pydantic
import tyro

from robot_rl.bench import results
from robot_rl.cli import common
from robot_rl.errors import RobotRLError

EXAMPLE = 'robot-rl results run --next'


class Options(common.Options):
    """What to do, and with which runs of results/queue.yaml."""

    action: Annotated[
        Literal['run', 'write', 'bench', 'robustness', 'demonstrators'], tyro.conf.Positional
    ] = pydantic.Field(
        'run',
        description='run: what is missing; write: the page; bench: the table of speeds; '
        'robustness: that of shifted worlds; demonstrators: the success of those that are not '
        'measured yet, from 100 starts',
    )
    next: Annotated[bool, tyro.conf.FlagCreatePairsOff] = pydantic.Field(
        False, description='run only the next missing run that no other process has'
    )
    only: str = pydantic.Field('', description='only the runs of the entry of this name')
    status: Annotated[bool, tyro.conf.FlagCreatePairsOff] = pydantic.Field(
        False, description='run nothing; show how far each run is'
    )


def main(argv: list[str]) -> int:
    """Run one action in the folder that holds results/ and docs/."""
    options = common.parse(Options, argv, 'results', __doc__, EXAMPLE)
    if options.action != 'run' and (options.next or options.only or options.status):
        raise RobotRLError(f'results {options.action}: --next, --only and --status are for run')
    if options.status:
        _status(options)
    else:
        actions = {
            'run': _run,
            'write': _write,
            'bench': _bench,
            'robustness': _robustness,
            'demonstrators': _demonstrators,
        }
        actions[options.action](options)
    return 0


def _run(options: Options) -> None:
    ran: list[str] = []
    # Read anew each time: the queue may change in the hours that a run takes.
    while run := results.run_next(results.read_queue(options.only)):
        ran.append(str(run.path))
        if options.next:
            break
    queue = results.read_queue(options.only)
    left = sum(not run.done for run in results.runs(queue))
    text = '\n'.join([*ran, f'{len(ran)} run, {left} missing; robot-rl results --status'])
    common.emit({'ran': ran, 'missing': left}, options.as_json, text)


def _status(options: Options) -> None:
    rows = [results.status(run) for run in results.runs(results.read_queue(options.only))]
    counts = {state: 0 for state in ('done', 'running', 'half-done', 'missing')}
    for row in rows:
        counts[row['state']] += 1
    lines = common.table([_cells(row) for row in rows])
    lines.append(', '.join(f'{count} {state}' for state, count in counts.items()))
    common.emit({'runs': rows, 'counts': counts}, options.as_json, '\n'.join(lines))


def _cells(row: dict[str, Any]) -> dict[str, str]:
    """Return a run's line of the table."""
    state = row['state']
    if row['env_steps'] and state != 'done':
        state += f' at step {row["env_steps"]}'

    def number(key: str, form: str) -> str:
        return '' if row[key] is None else format(row[key], form)

    return {
        'run': row['name'],
        'seed': str(row['seed']),
        'steps': str(row['steps']),
        'state': state,
        'last': number('last_return', '.1f'),
        'best': number('best_return', '.1f'),
        'wall [s]': number('wall_s', '.0f'),
    }


def _write(options: Options) -> None:
    # Here, and not above: it loads NumPy.
    from robot_rl.bench.results_docs import PAGE, write_docs

    queue = results.read_queue()
    count = write_docs(queue)
    text = f'{PAGE}: {count} of {len(queue)} entries have results'
    common.emit({'page': str(PAGE), 'entries': len(queue), 'shown': count}, options.as_json, text)


def _bench(options: Options) -> None:
    count = results.run_benches()
    text = f'{results.BENCH}: {count} rows; robot-rl results write shows them'
    common.emit({'file': str(results.BENCH), 'rows': count}, options.as_json, text)


def _robustness(options: Options) -> None:
    from robot_rl.bench import robustness

    def show(one: robustness.Reached) -> None:
        told = f'{one.shift.name}, {one.policy}: success {one.success_rate:.0%}'
        print(told, file=sys.stderr, flush=True)

    count = len(robustness.evaluate_plan(results.read_queue(), show).reached)
    text = f'{robustness.KEPT}: {count} rows; robot-rl results write shows them'
    data = {'file': str(robustness.KEPT), 'rows': count}
    common.emit(data, options.as_json, text)


def _demonstrators(options: Options) -> None:
    from robot_rl.bench import demonstrators

    measured, file = demonstrators.measure(), str(demonstrators.FILE)
    text = f'{file}: {len(measured)} measured; robot-rl tasks --write docs/tasks.md shows them'
    common.emit({'file': file, 'measured': measured}, options.as_json, text)
