"""How often the scripted demonstrators succeed, kept in results/demonstrators.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from robot_rl import registry, resources
from robot_rl.errors import SpecError
from robot_rl.specs import Spec
from robot_rl.training.evaluation import evaluate, held_out_seeds

FILE = Path('results/demonstrators.json')
STARTS = 100
# Shares of the actions' bounds, see demonstrators.demonstrator; without noise first.
NOISES = (0.0, 0.05, 0.1, 0.2)
_AT_ONCE = 20


class Measured(Spec):
    """The success rates of all demonstrators, from the held-out starts of `evaluate`."""

    git_revision: str
    starts: int
    noises: tuple[float, ...]
    success: dict[str, tuple[float, ...]]  # of each task, a rate for each of `noises`


def measure(starts: int = STARTS, noises: Sequence[float] = NOISES) -> Measured:
    """Run every demonstrator from `starts` starts with each of `noises`, and keep the rates."""
    rates = {
        task: tuple(_success(task, noise, starts) for noise in noises)
        for task in registry.arm_task_names()
    }
    measured = Measured(
        git_revision=resources.git_revision(), starts=starts, noises=tuple(noises), success=rates
    )
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(measured.to_dict(), indent=1) + '\n', encoding='utf-8')
    return measured


def read(path: Path = FILE) -> Measured:
    """Return what was kept. Raises SpecError that says how to measure."""
    try:
        text = path.read_text(encoding='utf-8')
    except OSError:
        raise SpecError(f'{path}: missing; robot-rl results demonstrators makes it') from None
    return Measured.from_json(text, str(path))


def rows(measured: Measured) -> list[dict[str, str]]:
    """Return the rates as rows of a table, in percent."""
    heads = ['without', *(f'`--noise {noise:g}`' for noise in measured.noises[1:])]
    return [
        {'task': f'`{task}`'} | {h: f'{100 * r:.0f} %' for h, r in zip(heads, rates, strict=True)}
        for task, rates in measured.success.items()
    ]


def _success(task: str, noise: float, starts: int) -> float:
    made = registry.make_task(task)
    environment = registry.make_environment(task, num_envs=min(starts, _AT_ONCE))
    try:
        policy = registry.make_demonstrator(task, noise)
        found = evaluate(policy, environment, held_out_seeds(starts), made)
    finally:
        environment.close()
    return float(found.success.mean())
