"""GAIL as the package imitation has it. A program for a Python that has the package.

It imports nothing of robot_rl, which need not be installed there:

    python gail_imitation.py FOLDER

FOLDER holds demonstrations, observation [M + E, D], action [M, A] of E episodes one after another,
as <name>.npy, and spec.json: {env (of Gymnasium), lengths (actions of each episode), steps,
evaluate_every, evaluation_seeds, seed}. It writes FOLDER/metrics.jsonl. The generator and the
numbers are those of imitation's own example (docs/algorithms/gail.rst), PPO in 8 environments, but
for rounds of 2048 steps in the place of 16384, so that there are some.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

_ENVS = 8


def main(folder: Path) -> None:
    """Learn, and write a row of metrics at every evaluation."""
    import torch
    from imitation.algorithms.adversarial.gail import GAIL
    from imitation.data.wrappers import RolloutInfoWrapper
    from imitation.rewards.reward_nets import BasicRewardNet
    from imitation.util import logger, networks
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv

    spec = json.loads((folder / 'spec.json').read_text())
    torch.set_num_threads(1)
    venv = DummyVecEnv([lambda: RolloutInfoWrapper(gymnasium.make(spec['env']))] * _ENVS)
    venv.seed(spec['seed'])
    numbers = {'n_steps': 256, 'batch_size': 64, 'n_epochs': 5, 'gamma': 0.95, 'ent_coef': 0.0}
    ppo = PPO('MlpPolicy', venv, learning_rate=4e-4, seed=spec['seed'], **numbers)
    spaces = venv.observation_space, venv.action_space
    trainer = GAIL(
        demonstrations=_trajectories(folder, spec['lengths']),
        demo_batch_size=1024,
        gen_replay_buffer_capacity=512,
        n_disc_updates_per_round=8,
        venv=venv,
        gen_algo=ppo,
        reward_net=BasicRewardNet(*spaces, normalize_input_layer=networks.RunningNorm),
        # Else it writes into the temporary folder and to stdout.
        custom_logger=logger.configure(folder / 'log', ['csv']),
    )
    start, done = time.monotonic(), 0
    with (folder / 'metrics.jsonl').open('w', encoding='utf-8') as file:

        def evaluate(number: int) -> None:
            nonlocal done
            steps = (number + 1) * trainer.gen_train_timesteps
            if steps // spec['evaluate_every'] == done // spec['evaluate_every']:
                return
            done = steps
            row = {'env_steps': steps, 'learner_steps': number + 1}
            row |= {'wall_s': time.monotonic() - start, 'load_average': os.getloadavg()[0]}
            file.write(json.dumps(row | _evaluated(ppo, spec)) + '\n')
            file.flush()

        trainer.train(spec['steps'], evaluate)


def _trajectories(folder: Path, lengths: list[int]) -> list[Any]:
    from imitation.data.types import Trajectory

    observation, action = (np.load(folder / f'{name}.npy') for name in ('observation', 'action'))
    found, row, step = [], 0, 0
    for length in lengths:
        seen, taken = observation[row : row + length + 1], action[step : step + length]
        found.append(Trajectory(obs=seen, acts=taken, infos=None, terminal=True))
        row, step = row + length + 1, step + length
    return found


def _evaluated(policy: Any, spec: dict[str, Any]) -> dict[str, float]:
    """Return mean and deviation of the returns of episodes without exploration."""
    env, returns = gymnasium.make(spec['env']), []
    for seed in spec['evaluation_seeds']:
        observation, _ = env.reset(seed=seed)
        total, ended = 0.0, False
        while not ended:
            action, _ = policy.predict(observation, deterministic=True)
            observation, reward, terminated, truncated, _ = env.step(action)
            total, ended = total + float(reward), terminated or truncated
        returns.append(total)
    return {
        'eval_return_mean': float(np.mean(returns)),
        'eval_return_std': float(np.std(returns)),
    }


if __name__ == '__main__':
    main(Path(sys.argv[1]))
