"""How often the scripted demonstrators succeed, kept in results/demonstrators.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pydantic

from robot_rl import registry, resources
from robot_rl.errors import SpecError
from robot_rl.specs import Spec
from robot_rl.training.evaluation import evaluate, held_out_seeds

FILE = Path('results/demonstrators.json')
STARTS = 100
# Shares of the actions' bounds, see demonstrators.demonstrator; without noise first.
NOISES = (0.0, 0.05, 0.1, 0.2)
_AT_ONCE = 20


class Success(Spec):
    """The success rates of one demonstrator, from the first held-out starts."""

    git_revision: str
    starts: pydantic.PositiveInt
    rates: dict[str, float]  # by noise, a share of the actions' bounds

    @property
    def without_noise(self) -> float:
        """The rate of the demonstrator as it is."""
        return self.rates['0']


class _File(Spec):
    tasks: dict[str, Success]


def measure(file: Path = FILE) -> list[str]:
    """Measure what the file lacks, write it after each task, and return the tasks measured.

    Who wants a demonstrator measured anew takes its task out of the file.
    """
    known, measured = dict(read(file)) if file.exists() else {}, []
    for task in registry.arm_task_names():
        if task not in known:
            rates = {f'{noise:g}': _rate(task, noise) for noise in NOISES}
            revision = resources.git_revision()
            known[task] = Success(git_revision=revision, starts=STARTS, rates=rates)
            data = _File(tasks=dict(sorted(known.items()))).to_dict()
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps(data, indent=1) + '\n', encoding='utf-8')
            measured.append(task)
    return measured


def read(file: Path = FILE) -> Mapping[str, Success]:
    """Return what was measured, by task. Raises SpecError."""
    try:
        text = file.read_text(encoding='utf-8')
    except OSError:
        raise SpecError(f'{file}: missing; robot-rl results demonstrators makes it') from None
    return _File.from_json(text, str(file)).tasks


def _rate(task: str, noise: float) -> float:
    environment = registry.make_environment(task, num_envs=_AT_ONCE)
    try:
        policy = registry.make_demonstrator(task, noise)
        found = evaluate(policy, environment, held_out_seeds(STARTS), registry.make_task(task))
    finally:
        environment.close()
    return float(found.success.mean())
