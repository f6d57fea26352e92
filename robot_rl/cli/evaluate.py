"""Run a policy on held-out episodes and say what it reached: in simulation, or through ROS.

Without --robot the episodes are simulated in this process, as fast as it goes. With --robot they
are trials: the nodes beside an arm run and record them in real time, on its twin or (--real) on
the arm itself; docs/evaluate_on_the_arm.md tells how.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pydantic

from robot_rl.cli import common
from robot_rl.errors import RobotRLError

EXAMPLE = (
    'robot-rl evaluate --policy runs/reach/policy.onnx\n'
    'example: robot-rl evaluate --robot ur5e --policy ur5e_reach --episodes 20 --perturb target'
)
# What a person's words, or a script's, may ask for only where there are trials.
_OF_TRIALS = (
    'real', 'perturb', 'judge', 'reset', 'operator', 'tag', 'store', 'out', 'params_file'
)  # fmt: skip


class Options(common.TaskOptions):
    """Which policy, in which task, how often, and where."""

    policy: str = pydantic.Field(
        description="an .onnx file, a promoted name or one in pretrained/, 'random', 'constant' "
        "or 'scripted'"
    )
    task: str | None = pydantic.Field(
        None, description='see robot-rl tasks; the task that the file was trained on without it'
    )
    episodes: pydantic.PositiveInt = pydantic.Field(
        10, description='how many, from initial conditions that training never draws'
    )
    seed: common.Seed = pydantic.Field(0, description="of the policy 'random'")
    robot: str | None = pydantic.Field(
        None,
        description='trials through ROS, on this robot of config/robots or of a YAML file '
        '(@<tf_prefix> may follow); what follows is for trials',
    )
    real: bool = pydantic.Field(
        False, description='on the arm, whose driver runs already; its twin without'
    )
    perturb: tuple[str, ...] = pydantic.Field(
        (),
        description='evaluate without and then with each of these perturbations of the twin: '
        'target (it is moved), knock (of an object), camera (each is shifted)',
    )
    judge: Literal['task', 'human'] = pydantic.Field(
        'task',
        description="who says whether a trial succeeded: the task's predicate on the recorded "
        'columns, or a person, asked here',
    )
    reset: Literal['seeds', 'ask'] | None = pydantic.Field(
        None,
        description="how a trial begins: 'seeds' puts the twin's arm and objects in place, 'ask' "
        'waits until a person has; a real arm always does',
    )
    operator: str = pydantic.Field('', description='the person beside the arm, for the record')
    tag: tuple[str, ...] = pydantic.Field((), description='further tags of the episodes')
    store: Path = pydantic.Field(
        default_factory=common.store_folder,
        description='the folder of the episodes, made where it is missing; $ROBOT_RL_STORE, or '
        './episodes',
    )
    out: Path | None = pydantic.Field(
        None,
        description='folder of report.html, report.json and the logs; runs/evaluations/<run> '
        'without it',
    )
    params_file: str = pydantic.Field(
        '', description="of the nodes, as robot-rl up deploy's params_file"
    )


def main(argv: list[str]) -> int:
    """Print what the episodes reached."""
    options = common.parse(Options, argv, 'evaluate', __doc__, EXAMPLE)
    if options.robot is None:
        _refuse_what_is_of_trials(options)
        return _simulate(options)
    from robot_rl.cli import evaluate_trials

    return evaluate_trials.run(options)


def task_of(options: Options) -> str:
    """Return the task's name, as given or as the policy's file says."""
    from robot_rl import registry
    from robot_rl.control.runtime import load_policy

    if options.task:
        return options.task
    if options.policy == registry.SCRIPTED:
        raise RobotRLError(f'evaluate: {options.policy} serves several tasks; give --task')
    task = load_policy(options.policy).card.task
    if not task:
        raise RobotRLError(f'evaluate: {options.policy} does not say its task; give --task')
    return task


def _refuse_what_is_of_trials(options: Options) -> None:
    """Raise RobotRLError for an option that simulation in this process has not."""
    for name in _OF_TRIALS:
        if name in options.model_fields_set and getattr(options, name) != _default(name):
            flag = f'--{name.replace("_", "-")}'
            raise RobotRLError(f'{flag} is for trials through ROS: give --robot as well')


def _default(name: str) -> object:
    return Options.model_fields[name].get_default(call_default_factory=True)


def _simulate(options: Options) -> int:
    """Print returns, mean and std, and for arms the success rate and the final distance."""
    from robot_rl import registry
    from robot_rl.evaluation.interval import wilson
    from robot_rl.training import evaluation

    task = task_of(options)
    view = registry.view_for(options.policy, task)
    environment = registry.make_environment(
        task, num_envs=min(options.episodes, 32), changes=options.set, **view
    )
    seeds = evaluation.held_out_seeds(options.episodes)
    try:
        policy = registry.make_policy(options.policy, task, environment.contract, options.seed)
        result = evaluation.evaluate(policy, environment, seeds, evaluation.task_of(task))
    finally:
        environment.close()
    data = {'policy': options.policy, 'task': task} | result.summary()
    text = f'{task}: return {data["mean"]:.1f} +- {data["std"]:.1f} in {data["episodes"]} episodes'
    if result.success is not None:
        low, high = wilson(int(result.success.sum()), options.episodes)
        data['success_interval'] = [low, high]
        text += (
            f'; success {data["success_rate"]:.0%} (95 %: {low:.0%} to {high:.0%}), '
            f'final distance {100 * data["final_distance_mean"]:.1f} cm'
        )
    common.emit(data, options.as_json, text)
    return 0
