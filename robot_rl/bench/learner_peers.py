"""Gradient steps of stable-baselines3's SAC and TD3, where it is installed."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable

import gymnasium
import numpy as np

from robot_rl.errors import RobotRLError
from robot_rl.policies.actor_critic import ActorCriticConfig

# So many in one call that what a call does besides (averages for its log) does not count.
STEPS = 10
_ROWS = 10_000


def require() -> None:
    """Raise RobotRLError where stable-baselines3 is not installed."""
    if importlib.util.find_spec('stable_baselines3') is None:
        raise RobotRLError(
            'bench learner --peers: stable-baselines3 is not installed; '
            'pip install stable-baselines3'
        )


def sides(
    config: ActorCriticConfig, observation_size: int, action_size: int, device: str
) -> dict[str, Callable[[], None]]:
    """Return by name what takes STEPS gradient steps, with the batch and the widths of `config`.

    A step draws its batch from a full replay. All else is stable-baselines3's default.
    """
    from stable_baselines3 import SAC, TD3
    from stable_baselines3.common.logger import configure

    widths = {'pi': list(config.policy_layers), 'qf': list(config.critic_layers)}
    found = {}
    for name, algorithm in {'peer_sac': SAC, 'peer_td3': TD3}.items():
        model = algorithm(
            'MlpPolicy',
            Noise(observation_size, action_size),
            buffer_size=_ROWS,
            policy_kwargs={'net_arch': widths},
            seed=0,
            device=device,
        )
        model.set_logger(configure(None, []))  # which learn() would do
        _fill(model.replay_buffer, observation_size, action_size)
        found[name] = functools.partial(model.train, STEPS, config.batch_size)
    return found


class Noise(gymnasium.Env):
    """An environment of the right shapes, which nobody steps."""

    def __init__(self, observation_size: int, action_size: int):
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (observation_size,))
        self.action_space = gymnasium.spaces.Box(-1, 1, (action_size,))


def _fill(buffer, observation_size: int, action_size: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(_ROWS):
        now, following = rng.standard_normal((2, 1, observation_size), np.float32)
        action = rng.uniform(-1, 1, (1, action_size)).astype(np.float32)
        buffer.add(now, following, action, rng.uniform(0, 1, 1), np.zeros(1), [{}])
