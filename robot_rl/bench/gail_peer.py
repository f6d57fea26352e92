"""A run of the package imitation's GAIL, with the flags and the demonstrations of one of ours.

    python -m robot_rl.bench.gail_peer --task gym/Pendulum-v1 --agent gail --steps N --seed K \\
        --demos QUERY --store STORE --set 'learner.reward=-log(1-D)' --out FOLDER

by the Python that $ROBOT_RL_IMITATION names: one that has the package, whose dependencies are not
ours. The folder gets config.yaml, .demos and metrics.jsonl as training leaves them; what is the
learner's in the config is not for it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np

from robot_rl import registry
from robot_rl.errors import RobotRLError
from robot_rl.imitation.data import write_demonstrations
from robot_rl.registry import GYMNASIUM
from robot_rl.specs import Contract
from robot_rl.storage.shards import ShardedSteps
from robot_rl.storage.steps import ACTION, OBSERVATION
from robot_rl.storage.store import Store
from robot_rl.training.config import RunConfig, load_run_config
from robot_rl.training.evaluation import held_out_seeds
from robot_rl.training.loop import CONFIG, DEMOS

PYTHON = 'ROBOT_RL_IMITATION'


def main(argv: list[str] | None = None) -> int:
    """Lay the demonstrations out and let the other Python learn; return its exit code."""
    given = _arguments().parse_args(argv)
    python = os.environ.get(PYTHON)
    if not python:
        raise RobotRLError(
            f'{PYTHON}: not set; the path of a Python that has the package imitation is right '
            '(pip install imitation, in an environment of its own)'
        )
    if not given.task.startswith(GYMNASIUM):
        raise RobotRLError(f'{given.task}: imitation learns in Gymnasium; gym/<id> is right')
    demos = {'query': given.demos, 'store': given.store}
    options = {'steps': given.steps, 'seed': given.seed}
    config = load_run_config(given.agent, given.task, given.set, demos, **options)
    lengths = _lay_out(config, given.out)
    training = config.training
    spec = {
        'env': config.task.removeprefix(GYMNASIUM),
        'lengths': lengths,
        'steps': config.steps,
        'evaluate_every': training.evaluate_every,
        'evaluation_seeds': held_out_seeds(training.evaluation_episodes),
        'seed': config.seed,
    }
    (given.out / 'spec.json').write_text(json.dumps(spec), encoding='utf-8')
    (given.out / CONFIG).write_text(config.to_yaml(), encoding='utf-8')
    program = Path(__file__).with_name('gail_imitation.py')
    return subprocess.run([python, program, given.out]).returncode


def _lay_out(config: RunConfig, folder: Path) -> list[int]:
    """Write the demonstrations of a run into its folder; return each episode's actions."""
    environment = registry.make_environment(config.task)
    contract, demos = environment.contract, config.demos
    environment.close()
    shutil.rmtree(folder / DEMOS, ignore_errors=True)
    store = Store(demos.store, create=False)
    steps = write_demonstrations(
        folder / DEMOS, store, demos.query, None, contract, demos.action, demos.episodes
    )
    return export(steps, contract, folder)


def export(steps: ShardedSteps, contract: Contract, folder: Path) -> list[int]:
    """Write observation.npy [M + E, D] and action.npy [M, A]; return each episode's actions."""
    fields = [steps.flat[OBSERVATION + field.name] for field in contract.observation]
    joined = np.concatenate([f.take(np.arange(len(f)), axis=0) for f in fields], axis=1)
    rows = np.concatenate([np.arange(begin, end - 1) for begin, end in steps.spans.tolist()])
    np.save(folder / 'observation.npy', joined)
    np.save(folder / 'action.npy', steps.flat[ACTION].take(rows, axis=0))
    return (np.diff(steps.spans, axis=1)[:, 0] - 1).tolist()


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='gail_peer')
    for name in ('task', 'agent', 'demos', 'store'):
        parser.add_argument(f'--{name}', required=True)
    for name in ('steps', 'seed'):
        parser.add_argument(f'--{name}', type=int, required=True)
    parser.add_argument('--set', nargs='*', default=[])
    parser.add_argument('--out', type=Path, required=True)
    return parser


if __name__ == '__main__':
    try:
        raise SystemExit(main())
    except RobotRLError as error:
        raise SystemExit(f'robot-rl: {error}') from None
