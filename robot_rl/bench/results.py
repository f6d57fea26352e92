"""The learning runs behind docs/results.md: a queue that goes on where it stopped.

results/queue.yaml names the runs, runs/results/<name>/seed-<k> is the folder of one, and
results/<name>/seed-<k>.json keeps what a finished one gave; remove that file to run it again.
What a run learns from is collected first, into runs/demonstrations/<name>, by a command that is
kept as well. Who works on a folder holds its lock, so that several processes can work on one
queue.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import importlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Annotated, Any, Literal, Self

import pydantic

from robot_rl import resources
from robot_rl.errors import RobotRLError, SpecError, UnknownName, did_you_mean
from robot_rl.specs import Spec
from robot_rl.specs.base import load_yaml
from robot_rl.training.logs import METRICS, read_metrics

RESULTS, RUNS, SHOWN = Path('results'), Path('runs/results'), Path('runs/demonstrations')
QUEUE, BENCH = RESULTS / 'queue.yaml', RESULTS / 'bench.jsonl'
BENCHES = ('learner', 'sim', 'workers', 'deploy', 'index', 'storage', 'record')
LOCK = 'lock'
PEER = 'robot_rl.bench.gail_peer'
# How many evaluations of a run are kept, about.
_ROWS = 60
_COLUMNS = (
    'env_steps',
    'learner_steps',
    'wall_s',
    'eval_return_mean',
    'eval_return_std',
    'eval_success_rate',
    'load_average',
)

# The agents of which results/published.yaml has curves.
PublishedAgent = Literal['D4PG', 'MPO', 'DMPO', 'DDPG']


class Needs(Spec):
    """A mean evaluation return that each seed has to reach within so many steps."""

    return_: float = pydantic.Field(alias='return')
    within: pydantic.PositiveInt  # environment steps


Name = Annotated[str, pydantic.Field(pattern=r'^[\w.-]+$')]  # a folder's


class Demonstrations(Spec):
    """Episodes to learn from, which `robot-rl collect` makes; entries may share them."""

    name: Name
    policy: str = ''  # as collect --policy takes it
    of: str = ''  # in place of it: an entry whose policy it is
    task: str = ''  # what they show, where it is not called as the task that they are for
    seed: pydantic.NonNegativeInt = 0  # of the entry
    episodes: pydantic.PositiveInt
    through: Literal['process', 'ros'] = 'process'
    show: tuple[str, ...] = ()  # what is shown besides, as collect --show takes it

    @pydantic.model_validator(mode='after')
    def _has_one_source(self) -> Self:
        if bool(self.policy) == bool(self.of):
            raise ValueError('one of policy and of says who demonstrates')
        return self

    @property
    def folder(self) -> Path:
        """The store that they are in."""
        return SHOWN / self.name

    def command(self, task: str, folder: Path) -> str:
        """Return the command that collects them for `task`, into the store `folder`."""
        policy = self.policy or RUNS / self.of / f'seed-{self.seed}' / 'policy.onnx'
        flags = {'task': self.task or task, 'policy': policy, 'episodes': self.episodes}
        flags |= {'through': self.through} if self.through == 'ros' else {}
        flags |= {'tag': self.name, 'store': folder}
        shown = [shlex.join(['--show', *self.show])] if self.show else []
        return ' '.join([f'robot-rl collect {_worded(flags)}', *shown])


class Entry(Spec):
    """One line of the queue: a run with `seeds` seeds, from 0 on."""

    name: Name
    task: str  # as `robot-rl tasks` lists it
    agent: str  # a file of config/agents
    steps: pydantic.PositiveInt  # environment steps; updates, of an agent that does not act
    seeds: pydantic.PositiveInt
    demos: Demonstrations | None = None
    package: Literal['imitation'] | None = None  # whose GAIL learns in the place of ours
    set: tuple[str, ...] = ()  # changes to the config, as train --set takes them
    needs: Needs | None = None
    published: PublishedAgent | None = None  # whose published curve it stands beside
    beside: str = ''  # another entry whose mean curve is drawn along
    group: str = ''  # of entries in one table, in place of a section each; its heading
    title: str = ''  # of the section in the document, or of its row; the name without it
    note: str = ''  # a paragraph below the heading

    @pydantic.field_validator('agent')
    @classmethod
    def _is_known(cls, value: str) -> str:
        try:
            resources.find('config/agents', value)
        except UnknownName as error:
            raise ValueError(str(error)) from None
        return value


class Shown(Spec):
    """What is kept of the demonstrations that a run learned from."""

    command: str  # that collected them
    episodes: int  # of them that were learned from
    return_mean: float
    return_std: float  # over episodes
    success_rate: float | None = None  # where the task tells


class Kept(Spec):
    """What is kept of one finished run."""

    command: str
    demos: Shown | None = None
    git_revision: str
    cores: int
    samples_per_insert: float | None  # of the run's config; None where the agent has no such thing
    updates: int  # of the learner
    rows: tuple[dict[str, int | float], ...] = pydantic.Field(min_length=1)  # its evaluations


@dataclasses.dataclass(frozen=True)
class Run:
    """One seed of an entry."""

    entry: Entry
    seed: int

    @property
    def folder(self) -> Path:
        """Where it runs."""
        return RUNS / self.entry.name / f'seed-{self.seed}'

    @property
    def path(self) -> Path:
        """Where what it gave is kept."""
        return RESULTS / self.entry.name / f'seed-{self.seed}.json'

    @property
    def done(self) -> bool:
        """Whether it is finished and kept."""
        return self.path.exists()

    @property
    def command(self) -> str:
        """The command that runs it, or goes on with it."""
        entry = self.entry
        flags = {'task': entry.task, 'agent': entry.agent, 'steps': entry.steps, 'seed': self.seed}
        if entry.demos:
            flags |= {'demos': f'tag={entry.demos.name}', 'store': entry.demos.folder}
        words = [_worded(flags)]
        words += [shlex.join(['--set', *entry.set])] if entry.set else []
        program = f'python -m {PEER}' if entry.package else 'robot-rl train'
        return ' '.join([program, *words, f'--out {self.folder}'])

    def load(self) -> Kept:
        """Read what is kept of it. Raises SpecError."""
        return Kept.from_json(self.path.read_text(encoding='utf-8'), str(self.path))


def read_queue(only: str = '') -> list[Entry]:
    """Read the queue, or the entry called `only`. Raises SpecError and UnknownName."""
    data = load_yaml(QUEUE)
    if not isinstance(data, list):
        raise SpecError(f'{QUEUE}: expected a list of runs')
    queue = [Entry.parse(item, f'{QUEUE}: run {number}') for number, item in enumerate(data)]
    names = [entry.name for entry in queue]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise SpecError(f'{QUEUE}: run {number}: the name {name!r} is taken')
    for number, entry in enumerate(queue):
        named = {'beside': entry.beside, 'demos: of': entry.demos.of if entry.demos else ''}
        for field, name in named.items():
            if name and name not in names:
                near = did_you_mean(name, names)
                raise SpecError(f'{QUEUE}: run {number}: {field}: no run {name!r}{near}')
    _require_one_meaning(queue)
    if only and only not in names:
        raise UnknownName('run', only, names, 'robot-rl results --status')
    return [entry for entry in queue if only in ('', entry.name)]


def _require_one_meaning(queue: Sequence[Entry]) -> None:
    """Raise SpecError where two entries mean different demonstrations by one name."""
    meant: dict[str, Demonstrations] = {}
    for number, entry in enumerate(queue):
        if entry.demos:
            mine = entry.demos.replace(task=entry.demos.task or entry.task)
            if meant.setdefault(entry.demos.name, mine) != mine:
                raise SpecError(
                    f'{QUEUE}: run {number}: demos: other ones are called {entry.demos.name!r}'
                )


def runs(queue: Sequence[Entry]) -> list[Run]:
    """Return all runs in their order: by entry, then by seed."""
    return [Run(entry, seed) for entry in queue for seed in range(entry.seeds)]


def run_next(queue: Sequence[Entry]) -> Run | None:
    """Run the first missing run that no other process has; return it, or None without one.

    Raises KeyboardInterrupt where a signal stopped it, and RobotRLError where it failed; the
    next call goes on with it.
    """
    for run in runs(queue):
        if run.done:
            continue
        with _locked(run.folder) as lock:
            # Not done still: the process that held the lock until now may have finished it.
            if lock is not None and not run.done and _demonstrated(run.entry):
                stopped = _execute(run.command, lock)
                _keep(run)
                if stopped:  # while it ended anyway
                    raise KeyboardInterrupt
                return run
    return None


def status(run: Run) -> dict[str, Any]:
    """Return how far a run is, as plain data; what is not known yet is None."""
    rows = run.load().rows if run.done else read_metrics(run.folder / METRICS)
    returns = [row['eval_return_mean'] for row in rows]
    state = 'half-done' if rows else 'missing'
    if run.done:
        state = 'done'
    elif _is_running(run.folder):
        state = 'running'
    return {
        'name': run.entry.name,
        'seed': run.seed,
        'state': state,
        'env_steps': steps_of(rows[-1]) if rows else 0,
        'steps': run.entry.steps,
        'last_return': returns[-1] if rows else None,
        'best_return': max(returns) if rows else None,
        'wall_s': rows[-1]['wall_s'] if rows else None,
    }


def run_benches() -> int:
    """Run every benchmark, as long as it is made for, and keep its rows; return how many."""
    return sum(len(keep_bench(name)) for name in BENCHES)


def keep_bench(name: str, **options: Any) -> list[dict[str, Any]]:
    """Run a benchmark and keep its rows, each with the machine's load, in place of older ones."""
    load = round(os.getloadavg()[0], 2)
    module = importlib.import_module(f'robot_rl.bench.{name}')
    rows = [row | {'load_average': load} for row in module.run(**options)]
    kept = [json.loads(line) for line in BENCH.read_text().splitlines()] if BENCH.exists() else []
    found = {bench: [row for row in kept if row['bench'] == bench] for bench in BENCHES}
    lines = [json.dumps(row) + '\n' for part in (found | {name: rows}).values() for row in part]
    write_text(BENCH, ''.join(lines))
    return rows


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[IO[bytes] | None]:
    """Hold a run's lock, and give its open file; None where another process has it.

    The kernel frees it with the last process that has the file open, however that ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, 'ab') as file:
        yield file if _try(file, fcntl.LOCK_EX) else None


def _is_running(folder: Path) -> bool:
    # For an instant a shared lock is in the way of who takes the run: that one tries the next.
    if not (folder / LOCK).exists():
        return False
    with open(folder / LOCK, 'rb') as file:
        return not _try(file, fcntl.LOCK_SH)


def _try(file: IO[bytes], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _demonstrated(entry: Entry) -> bool:
    """Collect what an entry learns from, where it is not there; False where another process does.

    Who demonstrates may have to be trained first, also where what that gave is kept: its policy
    is not.
    """
    demos = entry.demos
    if demos is None or demos.folder.is_dir():
        return True
    with _locked(demos.folder.with_name(f'.{demos.name}')) as lock:
        if lock is None or not (demos.policy or _trained(demos.of, demos.seed)):
            return False
        if not demos.folder.is_dir():
            partial = demos.folder.with_name(f'{demos.name}.partial')
            shutil.rmtree(partial, ignore_errors=True)
            stopped = _execute(demos.command(entry.task, partial), lock)
            partial.rename(demos.folder)
            if stopped:
                raise KeyboardInterrupt
    return True


def _trained(name: str, seed: int) -> bool:
    """Train a seed of the entry called `name`, where its policy is not there.

    False where another process is at it.
    """
    (entry,) = read_queue(name)
    run = Run(entry, seed)
    with _locked(run.folder) as lock:
        if lock is None or not _demonstrated(entry):
            return False
        if not (run.folder / 'policy.onnx').exists():
            stopped = _execute(run.command, lock)
            if not run.done:
                _keep(run)
            if stopped:
                raise KeyboardInterrupt
    return True


def _execute(command: str, lock: IO[bytes]) -> bool:
    """Run one of our commands in a process of its own.

    Returns whether a signal came that it did not need: SIGINT and SIGTERM go on to it, and it
    saves and ends. It inherits the lock: where this process is killed alone, its folder is still
    taken.
    """
    print(command, file=sys.stderr, flush=True)
    stopped = False
    with _signals() as received:
        # A session of its own: Ctrl-C in a terminal would reach it twice, and the second one does
        # not wait for the checkpoint. Its output goes to stderr: stdout is this command's.
        child = subprocess.Popen(
            _argv(command),
            stdout=2,
            env=os.environ | {'OMP_NUM_THREADS': '1'},
            pass_fds=(lock.fileno(),),
            start_new_session=True,
        )
        while child.poll() is None:
            while received:
                stopped = True
                child.send_signal(received.pop(0))
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=0.2)
    if child.returncode in (130, -signal.SIGINT, -signal.SIGTERM):
        raise KeyboardInterrupt
    if child.returncode:
        raise RobotRLError(f'exit code {child.returncode}; the command was: {command}')
    return stopped or bool(received)


def _argv(command: str) -> list[str]:
    program, *words = shlex.split(command)
    return [
        sys.executable,
        *(['-m', 'robot_rl.cli.main'] if program == 'robot-rl' else []),
        *words,
    ]


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of acting on them."""
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {
        number: signal.signal(number, lambda number, frame: received.append(number))
        for number in numbers
    }
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _keep(run: Run) -> None:
    """Keep what a finished run gave."""
    revision, config = _made_by(run)
    rows = read_metrics(run.folder / METRICS)
    kept = Kept(
        command=run.command,
        demos=_shown(run),
        git_revision=revision,
        cores=os.cpu_count(),
        samples_per_insert=config['learner'].get('samples_per_insert'),
        updates=rows[-1]['learner_steps'],
        rows=tuple(
            {key: round(row[key], 2) for key in _COLUMNS if key in row} for row in _thinned(rows)
        ),
    )
    write_text(run.path, json.dumps(kept.to_dict(), indent=1) + '\n')


def _shown(run: Run) -> Shown | None:
    """Return what is kept of the demonstrations that a finished run learned from."""
    demos = run.entry.demos
    if demos is None:
        return None
    import numpy as np

    from robot_rl.storage.shards import ShardedSteps
    from robot_rl.storage.steps import REWARD
    from robot_rl.storage.store import Store
    from robot_rl.training.loop import DEMOS

    steps = ShardedSteps(run.folder / DEMOS)
    # A LAST row has no reward: it is 0 there.
    returns = [float(steps.flat[REWARD][slice(*span)].sum()) for span in steps.spans]
    # Oldest first, as training takes them.
    headers = Store(demos.folder, create=False).episodes(f'tag={demos.name}')[: len(returns)]
    judged = [header.success for header in headers if header.success is not None]
    return Shown(
        command=demos.command(run.entry.task, demos.folder),
        episodes=len(returns),
        return_mean=round(float(np.mean(returns)), 2),
        return_std=round(float(np.std(returns)), 2),
        success_rate=sum(judged) / len(judged) if judged else None,
    )


def _made_by(run: Run) -> tuple[str, dict[str, Any]]:
    """Return the revision that trained a run's policy, and the run's config."""
    if run.entry.package:
        return resources.git_revision(), {'learner': {}}
    # Here, and not above: torch takes seconds, and what is kept is read without it.
    from robot_rl.control.runtime import load_policy
    from robot_rl.training.loop import CONFIG, POLICY

    return load_policy(run.folder / POLICY).card.git_revision, load_yaml(run.folder / CONFIG)


def steps_of(row: Mapping[str, Any]) -> int:
    """Return what a row of metrics counts a run in: updates, where the agent does not act."""
    return row['env_steps'] or row.get('learner_steps', 0)


def _worded(flags: Mapping[str, Any]) -> str:
    return ' '.join(f'--{name} {shlex.quote(str(value))}' for name, value in flags.items())


def _thinned(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return at most _ROWS evenly spaced rows, the last one always."""
    every = -(-len(rows) // _ROWS)
    return list(rows[::-1][:: max(every, 1)][::-1])


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + '.partial')
    partial.write_text(text, encoding='utf-8')
    os.replace(partial, path)
