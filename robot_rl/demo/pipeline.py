"""The whole loop: simulate, learn, export, run on ROS 2, log, retrain, and judge all of it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from robot_rl import __version__, registry, resources
from robot_rl.control.runtime import load_policy
from robot_rl.demo import report
from robot_rl.demo.twin import Batch, loop_figures, run_batch
from robot_rl.errors import RobotRLError
from robot_rl.evaluation.pictures import EpisodePictures
from robot_rl.imitation.data import Episode, judge
from robot_rl.policies.export import check_parity
from robot_rl.sim.environment import HELD_OUT
from robot_rl.sim.reach import ReachTask
from robot_rl.storage.store import Store
from robot_rl.training.evaluation import evaluate
from robot_rl.training.logs import ProgressBar, read_metrics

TASK = 'ur5e/reach'
TRAINED, HALF, RANDOM = 'trained', 'half-trained', 'random'
# Held-out episode seeds, apart from those by which training decides to stop: those of the
# recorded episodes, and those of the final table.
RECORDED_SEEDS = HELD_OUT + 20_000
TABLE_SEEDS = [HELD_OUT + 10_000 + index for index in range(200)]
# How many episodes are recorded, by the tag of their policy.
RECORDED = {TRAINED: 30, HALF: 30, RANDOM: 10}
# Over config/agents/d4pg_reach.yaml: a snapshot for the half-trained policy, and no step more
# than it takes.
TRAINING = (
    'steps=100000',
    'training.snapshots=[40000]',
    'training.evaluate_every=5000',
    'training.stop_at_success=0.99',
)
# The policies that are retrained from what was recorded: name, agent, further flags.
RETRAINED = (
    ('retrained', 'crr', ()),
    ('retrained on shuffled rewards', 'crr', ('--set', 'shuffle_rewards=true')),
    ('behaviour cloning', 'bc', ()),
)


class Outcome(NamedTuple):
    """How a policy did in one place."""

    name: str
    where: str
    success_rate: float
    final_distance: float
    episodes: int


class Demo:
    """One run of the demo in one folder; `console` shows how it goes."""

    def __init__(self, folder: Path, console: Console):
        self.folder, self.console = folder, console
        self.task: ReachTask = registry.make_task(TASK)
        self.store = Store(folder / 'episodes')
        self.seconds: dict[str, float] = {}
        self.parity = math.nan

    def run(self) -> bool:
        """Run all stages; write report.html and summary.json; tell whether all gates passed."""
        self.console.print(f'five stages, 5 to 9 minutes; results in {self.folder}')
        with self._stage('train in simulation'):
            policies = self._train()
        with self._stage('run on the twin through ROS 2'):
            episodes = self._record(policies)
        with self._stage('retrain from the recorded episodes'):
            policies |= self._retrain()
        with self._stage('evaluate on held-out targets'):
            outcomes = self._evaluate(policies) + _recorded_outcomes(self.task, episodes)
        with self._stage('report'):
            summary = self._summary(outcomes, episodes)
            self._write(summary, episodes)
        self._print(summary)
        return all(gate['passed'] for gate in summary['gates'])

    def _train(self) -> dict[str, str]:
        """Train and export; return the files of the trained and the half-trained policy."""
        from robot_rl.training.config import load_run_config
        from robot_rl.training.loop import POLICY, Trainer

        folder = self.folder / 'train'
        trainer = Trainer(load_run_config('d4pg_reach', TASK, TRAINING), folder)
        if not trainer.run():
            raise KeyboardInterrupt
        card = load_policy(folder / POLICY).card
        self.parity = check_parity(folder / POLICY, trainer.state.learner.policy, card)
        half = next((folder / 'policies').glob('step-*.onnx'), None)
        if half is None:
            raise RobotRLError(f'{folder}: training ended before its snapshot; see its metrics')
        return {TRAINED: str(folder / POLICY), HALF: str(half), RANDOM: RANDOM}

    def _record(self, policies: dict[str, str]) -> list[Episode]:
        """Run and record the episodes; judge each from its columns; return those a query finds."""
        batches, seed = [], RECORDED_SEEDS
        for tag, episodes in RECORDED.items():
            batches.append(Batch(policies[tag], episodes, seed, tag))
            seed += episodes
        record(batches, self.store, self.folder / 'logs')
        return judge(self.store, self.task, f'task={TASK} source=policy')

    def _retrain(self) -> dict[str, str]:
        """Learn from the episodes recorded through ROS alone; return the policies' files."""
        names = [name for name, _, _ in RETRAINED]
        files = []
        with ThreadPoolExecutor(os.cpu_count()) as pool, ProgressBar('policies', 3) as bar:
            for file in pool.map(self._retrain_one, RETRAINED):
                files.append(file)
                bar.show(len(files))
        return dict(zip(names, files, strict=True))

    def _retrain_one(self, what: tuple[str, str, Sequence[str]]) -> str:
        name, agent, flags = what
        out = self.folder / name.replace(' ', '-')
        command = [sys.executable, '-m', 'robot_rl.cli.main', 'retrain', '--task', TASK]
        command += ['--agent', agent, '--store', str(self.store.root), '--query', f'task={TASK}']
        done = subprocess.run(
            [*command, '--out', str(out), '--json', *flags], capture_output=True, text=True
        )
        if done.returncode:
            raise RobotRLError(f'{name}: {done.stderr.strip().splitlines()[-1]}')
        return json.loads(done.stdout)['policy']

    def _evaluate(self, policies: dict[str, str]) -> list[Outcome]:
        """Run every policy in simulation on the same held-out targets."""
        outcomes = []
        contract = self.task.contract()
        environment = registry.make_environment(TASK, num_envs=50)
        files = {'constant action': 'constant', **policies}
        bar = ProgressBar('policies', len(files))
        with contextlib.closing(environment), bar:
            for done, (name, file) in enumerate(files.items()):
                bar.show(done)
                result = evaluate(load_policy(file, contract), environment, TABLE_SEEDS, self.task)
                outcomes.append(
                    _outcome(name, 'simulation', result.success, result.final_distance)
                )
        return outcomes

    def _summary(self, outcomes: list[Outcome], episodes: Sequence[Episode]) -> dict[str, Any]:
        headers = [episode.header for episode in episodes]
        figures = loop_figures(self.store, headers)
        rates = {(o.name, o.where): o.success_rate for o in outcomes}
        found = self._found()
        gates = _gates(rates, found)
        return {
            'headline': _headline(outcomes, len(episodes)),
            'passed': all(gate['passed'] for gate in gates),
            'gates': gates,
            'policies': [outcome._asdict() for outcome in outcomes],
            'ros': figures,
            'run': {
                'torch against ONNX Runtime': f'{self.parity:.1e} of the action range at most',
                'episodes found by query': found,
                **{f'{name} [s]': round(value, 1) for name, value in self.seconds.items()},
                'cores': os.cpu_count(),
                'load average': round(os.getloadavg()[0], 2),
                'date': time.strftime('%Y-%m-%d %H:%M'),
                'robot_rl': __version__,
                'git revision': resources.git_revision() or 'no checkout',
                'python': platform.python_version(),
                **{name: _version(name) for name in ('torch', 'mujoco', 'numpy', 'ros-rclpy')},
                'policy': str(self.folder / 'train' / 'policy.onnx'),
                'episodes': str(self.store.root),
            },
        }

    def _found(self) -> dict[str, int]:
        """Return how many episodes a query finds of each policy, by its tag."""
        return {tag: len(self.store.episodes(f'task={TASK} tag={tag}')) for tag in RECORDED}

    def _write(self, summary: dict[str, Any], episodes: Sequence[Episode]) -> None:
        text = json.dumps(summary, indent=2, allow_nan=False)
        (self.folder / 'summary.json').write_text(text + '\n', encoding='utf-8')
        trained = next((e for e in episodes if TRAINED in e.header.tags), episodes[0])
        report.write_report(
            self.folder / 'report.html',
            summary,
            read_metrics(self.folder / 'train' / 'metrics.jsonl'),
            EpisodePictures(self.task).of(trained.columns),
        )

    def _print(self, summary: dict[str, Any]) -> None:
        print_table(self.console, report.POLICY_HEADER, report.policy_rows(summary['policies']))
        print_table(self.console, ('through ROS 2', 'value'), report.ros_rows(summary['ros']))
        for gate in summary['gates']:
            mark = '[green]passed[/]' if gate['passed'] else '[bold red]FAILED[/]'
            self.console.print(f'{mark}  {gate["name"]}: {gate["value"]:.2f} ({gate["needs"]})')
        failed = sum(not gate['passed'] for gate in summary['gates'])
        if failed:
            self.console.print(f'[bold red]{failed} of {len(summary["gates"])} not reached[/]')
        total = sum(self.seconds.values())
        self.console.print(f'{total:.0f} s in all; report: {self.folder / "report.html"}')

    @contextlib.contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        self.console.print(f'[bold]{name}[/]')
        yield
        self.seconds[name] = time.monotonic() - started
        self.console.print(f'  done in {self.seconds[name]:.0f} s')


def record(
    batches: Sequence[Batch],
    store: Store,
    logs: Path,
    each: Callable[[dict[str, Any]], None] = lambda line: None,
) -> None:
    """Run the batches through ROS with a progress bar; `each` is given every ended episode."""
    total = sum(batch.episodes for batch in batches)
    with ProgressBar('episodes', total) as bar:
        done = 0
        for batch in batches:
            bar.note(batch.tag)
            for line in run_batch(batch, TASK, store.root, logs):
                done += 1
                bar.show(done)
                each(line)


def print_table(console: Console, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text."""
    table = Table(*header)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _recorded_outcomes(task: ReachTask, episodes: Sequence[Episode]) -> list[Outcome]:
    """Return how the policies did through ROS, each by its tag, and all of the data together."""
    parts = {name: [e for e in episodes if name in e.header.tags] for name in RECORDED}
    outcomes = []
    for name, part in {'behaviour mean of the data': list(episodes), **parts}.items():
        success = [episode.header.success for episode in part]
        distance = [task.final_distance(episode.columns) for episode in part]
        outcomes.append(_outcome(name, 'ROS 2', np.array(success), np.array(distance)))
    return outcomes


def _outcome(name: str, where: str, success: np.ndarray, distance: np.ndarray) -> Outcome:
    if not len(success):
        raise RobotRLError(f'{name}: no episode was recorded; the logs of the nodes say why')
    return Outcome(name, where, float(success.mean()), float(distance.mean()), len(success))


def _gates(rates: dict[tuple[str, str], float], found: dict[str, int]) -> list[dict[str, Any]]:
    """Return what has to hold for the demo to have worked."""
    share = min(found[tag] / wanted for tag, wanted in RECORDED.items())
    retrained = rates['retrained', 'simulation']
    over_mean = retrained - rates['behaviour mean of the data', 'ROS 2']
    over_control = retrained - rates['retrained on shuffled rewards', 'simulation']
    constant = rates['constant action', 'simulation']
    trained = rates[TRAINED, 'ROS 2']
    rows = (
        ('share of the episodes that were recorded', share, 'at least 1.00', share >= 1),
        ('success, trained, through ROS 2', trained, 'at least 0.90', trained >= 0.9),
        ('success, constant action', constant, 'below 0.10', constant < 0.1),
        ('retrained over behaviour mean', over_mean, 'at least 0.15', over_mean >= 0.15),
        ('retrained over shuffled rewards', over_control, 'at least 0.15', over_control >= 0.15),
    )
    return [
        {'name': name, 'value': value, 'needs': needs, 'passed': bool(passed)}
        for name, value, needs, passed in rows
    ]


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:  # ROS from a distribution's packages
        return 'not from a wheel'


def _headline(outcomes: Sequence[Outcome], recorded: int) -> str:
    rate = {(o.name, o.where): o.success_rate for o in outcomes}
    return (
        f'A UR5e learned to reach in simulation and reached {rate[TRAINED, "ROS 2"]:.0%} of '
        f'held-out targets through ROS 2 nodes. From the {recorded} episodes recorded there, good '
        f'and bad, a policy learned offline that reaches {rate["retrained", "simulation"]:.0%}.'
    )


def pretrained_policy() -> Path:
    """Return the policy that ships with the package."""
    return resources.find('pretrained', 'ur5e_reach', '.onnx')
