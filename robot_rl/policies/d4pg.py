"""D4PG: a deterministic policy and a distributional critic, learned off policy.

Barth-Maron et al. 2018, "Distributed Distributional Deterministic Policy Gradients", as in Acme
(acme/agents/jax/d4pg); the defaults are its baseline script's (rl_continuous/run_d4pg.py).
B batch, D observation size, A action size, K atoms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pydantic
import torch
from torch import Tensor, nn

from robot_rl.policies import losses
from robot_rl.policies.agent import (
    Agent,
    Batch,
    CriticConfig,
    OffPolicyConfig,
    as_tensors,
    copy_parameters,
    descend,
)
from robot_rl.policies.networks import CategoricalCritic, DeterministicPolicy
from robot_rl.policies.policy import ObservationVector, Policy
from robot_rl.specs import Contract


class D4PGConfig(OffPolicyConfig, CriticConfig):
    """What D4PG lets one choose."""

    policy_learning_rate: pydantic.PositiveFloat = 3e-4  # of Adam
    critic_learning_rate: pydantic.PositiveFloat = 3e-4  # of Adam
    max_action_gradient_norm: pydantic.PositiveFloat = 1.0  # of dq/da, for each row of a batch


class D4PGLearner:
    """Policy, critic, their targets and optimisers, and the update of all four.

    `policy` acts by the target network, as Acme serves it to its actors.
    """

    def __init__(self, contract: Contract, config: D4PGConfig, seed: int = 0, device: str = 'cpu'):
        self.config, self.contract = config, contract
        self.device = torch.device(device)
        self.steps = 0
        generator = torch.Generator().manual_seed(seed)
        self._vector = ObservationVector(contract, config.normalize_observations).to(device)
        self._online = self._networks(generator).to(device)
        self._target = self._networks(generator).to(device).requires_grad_(False)
        self._target.load_state_dict(self._online.state_dict())
        self.policy = Policy(contract, self._vector, self._target['policy']).to(device)
        self._optimizers = {
            'policy': _adam(self._online['policy'], config.policy_learning_rate),
            'critic': _adam(self._online['critic'], config.critic_learning_rate),
        }

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Take one step on critic and policy from the same `batch`; return metrics, each [].

        As in Acme both losses are taken before either step, and the policy's at o_{t+n}.
        """
        batch = as_tensors(batch, self.device)
        observation = self._vector(batch.observation)
        next_observation = self._vector(batch.next_observation)
        critic_loss = self._critic_loss(batch, observation, next_observation)
        policy_loss, value = self._policy_loss(next_observation)
        limit = self.config.max_gradient_norm
        critic_norm = descend(self._optimizers['critic'], critic_loss, limit)
        policy_norm = descend(self._optimizers['policy'], policy_loss, limit)
        self.steps += 1
        if self.steps % self.config.target_update_period == 0:
            copy_parameters(self._online, self._target)
        return {
            'critic_loss': critic_loss.detach(),
            'policy_loss': policy_loss.detach(),
            'critic_gradient_norm': critic_norm,
            'policy_gradient_norm': policy_norm,
            'value': value,
        }

    def fit_normalizer(self, observation: Mapping[str, np.ndarray]) -> None:
        """Fix the observation statistics from fields {name: [M, ...]}; nothing without any."""
        self._vector.fit(observation)

    def save(self) -> dict[str, Any]:
        """Return all that the next update depends on, as tensors and numbers."""
        return {
            'steps': self.steps,
            'vector': self._vector.state_dict(),
            'online': self._online.state_dict(),
            'target': self._target.state_dict(),
            'optimizers': {name: opt.state_dict() for name, opt in self._optimizers.items()},
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Take back what `save` returned: the next update is bitwise the same."""
        self.steps = saved['steps']
        self._vector.load_state_dict(saved['vector'])
        self._online.load_state_dict(saved['online'])
        self._target.load_state_dict(saved['target'])
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(saved['optimizers'][name])

    def _networks(self, generator: torch.Generator) -> nn.ModuleDict:
        config = self.config
        sizes = self._vector.size, self.contract.action_size
        support = torch.linspace(config.v_min, config.v_max, config.num_atoms)
        critic = CategoricalCritic(*sizes, config.critic_layers, support, generator)
        policy = DeterministicPolicy(*sizes, config.policy_layers, generator)
        return nn.ModuleDict({'policy': policy, 'critic': critic})

    def _critic_loss(self, batch: Batch, observation: Tensor, next_observation: Tensor) -> Tensor:
        with torch.no_grad():
            next_action = self._target['policy'](next_observation)
            next_logits = self._target['critic'](next_observation, next_action)
        critic = self._online['critic']
        logits = critic(observation, self.policy.scale.to_unit(batch.action))
        return losses.categorical_td_loss(
            logits, critic.support, batch.reward, batch.discount, next_logits.softmax(dim=1)
        ).mean()

    def _policy_loss(self, next_observation: Tensor) -> tuple[Tensor, Tensor]:
        action = self._online['policy'](next_observation)
        probe = action.detach().requires_grad_()
        critic = self._online['critic']
        value = critic(next_observation, probe).softmax(dim=1) @ critic.support
        # With `inputs` given, autograd skips the gradients of the critic's own weights.
        (action_gradient,) = torch.autograd.grad(value.sum(), probe)
        loss = losses.dpg_loss(action, action_gradient, self.config.max_action_gradient_norm)
        return loss.mean(), value.detach().mean()


def _adam(module: nn.Module, learning_rate: float) -> torch.optim.Adam:
    return torch.optim.Adam(module.parameters(), lr=learning_rate, fused=True)


D4PG = Agent(D4PGConfig, D4PGLearner)
