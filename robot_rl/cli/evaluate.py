"""Run a policy in simulation, on held-out episodes, and say what it reached."""

from __future__ import annotations

import pydantic

from robot_rl.cli import common
from robot_rl.errors import RobotRLError

EXAMPLE = 'robot-rl evaluate --policy runs/swingup/policy.onnx --task suite/cartpole-swingup'


class Options(common.TaskOptions):
    """Which policy, in which task, how often."""

    policy: str = pydantic.Field(
        description="an .onnx file, a name in pretrained/, 'random', 'constant' or 'scripted'"
    )
    task: str | None = pydantic.Field(
        None, description='see robot-rl tasks; the task that the file was trained on without it'
    )
    episodes: pydantic.PositiveInt = pydantic.Field(
        10, description='how many, from initial conditions that training never draws'
    )
    seed: int = pydantic.Field(0, description="of the policy 'random'")


def main(argv: list[str]) -> int:
    """Print returns, mean and std, and for arms the success rate and the final distance."""
    options = common.parse(Options, argv, 'evaluate', __doc__, EXAMPLE)
    from robot_rl import registry
    from robot_rl.control.runtime import load_policy
    from robot_rl.training.evaluation import evaluate, held_out_seeds, task_of

    task = options.task or load_policy(options.policy).card.task
    if not task:
        raise RobotRLError(f'evaluate: {options.policy} does not say its task; give --task')
    view = registry.view_for(options.policy, task)
    environment = registry.make_environment(
        task, num_envs=min(options.episodes, 32), changes=options.set, **view
    )
    try:
        policy = registry.make_policy(options.policy, task, environment.contract, options.seed)
        result = evaluate(policy, environment, held_out_seeds(options.episodes), task_of(task))
    finally:
        environment.close()
    data = {'policy': options.policy, 'task': task} | result.summary()
    text = f'{task}: return {data["mean"]:.1f} +- {data["std"]:.1f} in {data["episodes"]} episodes'
    if 'success_rate' in data:
        text += (
            f'; success {data["success_rate"]:.0%}, '
            f'final distance {100 * data["final_distance_mean"]:.1f} cm'
        )
    common.emit(data, options.as_json, text)
    return 0
