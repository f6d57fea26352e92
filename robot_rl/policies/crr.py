"""CRR: critic-regularised regression, a policy learned from recorded data alone.

Wang et al. 2020, "Critic Regularized Regression" (arXiv 2006.15134): the policy imitates the
recorded actions, each weighted by how much better than the policy's own the critic finds it. The
critic is distributional, as D4PG's.
B batch, D observation size, A action size, N sampled actions, K atoms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import pydantic
import torch
from torch import Tensor, nn

from robot_rl.policies import losses
from robot_rl.policies.agent import (
    Agent,
    Batch,
    CriticConfig,
    LearnerConfig,
    as_tensors,
    copy_parameters,
    descend,
)
from robot_rl.policies.networks import CategoricalCritic, GaussianPolicy
from robot_rl.policies.policy import ObservationVector, Policy
from robot_rl.specs import Contract

# A deviation below this makes single transitions dominate a likelihood.
_MIN_STD = 1e-2


class CRRConfig(LearnerConfig, CriticConfig):
    """What CRR lets one choose; the filter's constants are the paper's."""

    normalize_observations: bool = True
    """by the statistics of the recorded data"""
    learning_rate: pydantic.PositiveFloat = 3e-4
    """of Adam, policy and critic"""
    weight_decay: pydantic.NonNegativeFloat = 0.0
    """of the policy, as AdamW has it"""
    filter: Literal['binary', 'exp'] = 'exp'
    """1[A > 0], or exp(A / beta) up to max_weight"""
    beta: pydantic.PositiveFloat = 1.0
    """temperature of the exp filter, in units of return"""
    max_weight: pydantic.PositiveFloat = 20.0
    """of one transition under the exp filter"""
    num_samples: pydantic.PositiveInt = 4
    """actions that the policy's own value is averaged over"""


class CRRLearner:
    """A Gaussian policy, a distributional critic, their targets, and the update of all four.

    `policy` acts by the mean of the online policy: offline there is nobody to explore.
    """

    def __init__(self, contract: Contract, config: CRRConfig, seed: int = 0, device: str = 'cpu'):
        self.config, self.contract = config, contract
        self.device = torch.device(device)
        self.steps = 0
        self._generator = torch.Generator(device).manual_seed(seed)
        self._vector = ObservationVector(contract, config.normalize_observations).to(device)
        self._online = self._networks(seed).to(device)
        self._target = self._networks(seed).to(device).requires_grad_(False)
        self.policy = Policy(contract, self._vector, self._online['policy']).to(device)
        decays = {'policy': config.weight_decay, 'critic': 0.0}
        self._optimizers = {
            name: torch.optim.AdamW(
                network.parameters(), config.learning_rate, weight_decay=decays[name], fused=True
            )
            for name, network in self._online.items()
        }

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Take one step on critic and policy from the same `batch`; return metrics, each []."""
        batch = as_tensors(batch, self.device)
        observation = self._vector(batch.observation)
        next_observation = self._vector(batch.next_observation)
        action = self.policy.scale.to_unit(batch.action)
        logits = self._online['critic'](observation, action)
        critic_loss = self._critic_loss(logits, batch, next_observation)
        weight = self._weight(observation, logits)
        mean, std = self._online['policy'].gaussian(observation)
        policy_loss = losses.weighted_likelihood_loss(action[None], weight[None], mean, std).mean()
        limit = self.config.max_gradient_norm
        descend(self._optimizers['critic'], critic_loss, limit)
        descend(self._optimizers['policy'], policy_loss, limit)
        self.steps += 1
        if self.steps % self.config.target_update_period == 0:
            copy_parameters(self._online, self._target)
        return {
            'critic_loss': critic_loss.detach(),
            'policy_loss': policy_loss.detach(),
            'weight': weight.mean(),
        }

    def fit_normalizer(self, observation: Mapping[str, np.ndarray]) -> None:
        """Fix the observation statistics from fields {name: [M, ...]}; nothing without any."""
        self._vector.fit(observation)

    def _networks(self, seed: int) -> nn.ModuleDict:
        config = self.config
        generator = torch.Generator().manual_seed(seed)
        sizes = self._vector.size, self.contract.action_size
        support = torch.linspace(config.v_min, config.v_max, config.num_atoms)
        critic = CategoricalCritic(*sizes, config.critic_layers, generator, support)
        policy = GaussianPolicy(
            *sizes, config.policy_layers, generator, min_std=_MIN_STD, squash=True
        )
        return nn.ModuleDict({'policy': policy, 'critic': critic})

    def _critic_loss(self, logits: Tensor, batch: Batch, next_observation: Tensor) -> Tensor:
        with torch.no_grad():
            next_action = self._sample(self._target['policy'], next_observation)
            next_logits = self._target['critic'](next_observation, next_action)
        critic = self._online['critic']
        target = critic.target(batch.reward, batch.discount, critic.belief(next_logits))
        return critic.loss(logits, target).mean()

    @torch.no_grad()
    def _weight(self, observation: Tensor, logits: Tensor) -> Tensor:
        """Return f(A) [B], A = Q(s, a) - mean_j Q(s, a_j), a_j ~ policy (equations 2 to 4)."""
        critic, config = self._online['critic'], self.config
        repeated = observation.repeat(config.num_samples, 1)  # [N * B, D]
        sampled = critic(repeated, self._sample(self._online['policy'], repeated))
        value = critic.value(critic.belief(sampled)).view(config.num_samples, -1).mean(dim=0)
        advantage = critic.value(critic.belief(logits)) - value
        if config.filter == 'binary':
            return (advantage > 0).float()
        return (advantage / config.beta).exp().clamp(max=config.max_weight)

    def _sample(self, policy: nn.Module, observation: Tensor) -> Tensor:
        """Sample one action [B, A] in [-1, 1] a row, from this learner's own generator."""
        mean, std = policy.gaussian(observation)
        noise = torch.randn(mean.shape, generator=self._generator, device=observation.device)
        return (mean + std * noise).clamp(-1, 1)


CRR = Agent(CRRConfig, CRRLearner)
