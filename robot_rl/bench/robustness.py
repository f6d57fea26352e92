"""How policies that learned in different worlds do in shifted ones: a table of docs/results.md.

results/robustness.yaml names runs of results/queue.yaml and shifts of their task's simulated
world; what their policies reached there is kept in results/robustness.json.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import pydantic

from robot_rl import registry
from robot_rl.bench.results import RESULTS, Entry, Run, write_text
from robot_rl.errors import RobotRLError, UnknownName
from robot_rl.resources import git_revision
from robot_rl.specs import Spec

PLAN, KEPT = RESULTS / 'robustness.yaml', RESULTS / 'robustness.json'
COMMAND = 'robot-rl results robustness'
_AT_ONCE = 50  # environments


class Shift(Spec):
    """A world that differs from the task's model."""

    name: str
    set: tuple[str, ...] = ()  # changes to the task, as evaluate --set takes them


class Plan(Spec):
    """Which policies are evaluated in which worlds."""

    schema_version: Literal[1] = 1
    task: str
    episodes: pydantic.PositiveInt = 100  # in each world, from held-out initial conditions
    # What the table calls it: the entry of the queue whose seed 0 left the policy.
    policies: dict[str, str] = pydantic.Field(min_length=1)
    shifts: tuple[Shift, ...] = pydantic.Field(min_length=1)


class Reached(Spec):
    """What one policy reached in one world."""

    shift: Shift
    policy: str
    success_rate: float
    final_distance_mean: float  # [m]
    mean: float  # return


class Robustness(Spec):
    """What is kept of an evaluation of all."""

    schema_version: Literal[1] = 1
    plan: Plan
    git_revision: str
    load_average: float
    cores: int
    trained: dict[str, str]  # policy: the command that made it, and the revision
    reached: tuple[Reached, ...]


def evaluate_plan(queue: Sequence[Entry], show: Callable[[Reached], None]) -> Robustness:
    """Evaluate every policy in every world and keep what each reached, of which `show` is told.

    Raises RobotRLError for a policy that is not there.
    """
    plan = Plan.from_yaml(PLAN)
    runs = {name: _run(entry, queue) for name, entry in plan.policies.items()}
    reached = []
    for one in _evaluated(plan, runs):
        reached.append(one)
        show(one)
    kept = Robustness(
        plan=plan,
        git_revision=git_revision(),
        load_average=round(os.getloadavg()[0], 2),
        cores=os.cpu_count(),
        trained={name: f'{run.command} ({_revision(run)})' for name, run in runs.items()},
        reached=tuple(reached),
    )
    write_text(KEPT, json.dumps(kept.to_dict(), indent=1) + '\n')
    return kept


def _evaluated(plan: Plan, runs: dict[str, Run]) -> Iterator[Reached]:
    # Here, and not above: what is kept is read without them.
    from robot_rl.control.runtime import load_policy
    from robot_rl.training.evaluation import evaluate, held_out_seeds, task_of

    task, seeds = task_of(plan.task), held_out_seeds(plan.episodes)
    policies = {name: load_policy(_policy_of(run)) for name, run in runs.items()}
    for shift in plan.shifts:
        environment = registry.make_environment(
            plan.task, num_envs=min(plan.episodes, _AT_ONCE), changes=shift.set
        )
        for name, policy in policies.items():
            found = evaluate(policy, environment, seeds, task).summary()
            numbers = {key: found[key] for key in ('success_rate', 'final_distance_mean', 'mean')}
            rounded = {key: round(value, 6) for key, value in numbers.items()}
            yield Reached(shift=shift, policy=name, **rounded)
        environment.close()


def _run(entry: str, queue: Sequence[Entry]) -> Run:
    known = {item.name: item for item in queue}
    if entry not in known:
        raise UnknownName('run', entry, known, 'robot-rl results --status')
    return Run(known[entry], 0)


def _policy_of(run: Run) -> Path:
    path = run.folder / 'policy.onnx'
    if not path.is_file():
        raise RobotRLError(f'{path} is missing: its run was elsewhere; {run.command}')
    return path


def _revision(run: Run) -> str:
    from robot_rl.control.runtime import load_policy

    return f'revision {load_policy(_policy_of(run)).card.git_revision or "not known"}'
