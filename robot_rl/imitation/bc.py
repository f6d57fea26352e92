"""Behaviour cloning: regression from recorded observations to recorded actions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pydantic
import torch
from torch import Tensor

from robot_rl.policies.agent import Agent, Batch, LearnerConfig, as_tensors, descend
from robot_rl.policies.networks import DeterministicPolicy
from robot_rl.policies.policy import ObservationVector, Policy
from robot_rl.specs import Contract


class BCConfig(LearnerConfig):
    """What behaviour cloning lets one choose; rewards and what follows them are not read."""

    n_step: pydantic.PositiveInt = 1
    """every step is imitated, also the last ones of an episode"""
    normalize_observations: bool = True
    """by the statistics of the recorded data"""
    learning_rate: pydantic.PositiveFloat = 3e-4
    """of AdamW"""
    weight_decay: pydantic.NonNegativeFloat = 0.0
    """as AdamW has it"""


class BCLearner:
    """A deterministic policy that imitates the data's actions in the mean square."""

    def __init__(self, contract: Contract, config: BCConfig, seed: int = 0, device: str = 'cpu'):
        self.config, self.contract = config, contract
        self.device = torch.device(device)
        generator = torch.Generator().manual_seed(seed)
        self._vector = ObservationVector(contract, config.normalize_observations).to(device)
        network = DeterministicPolicy(
            self._vector.size, contract.action_size, config.policy_layers, generator
        )
        self.policy = Policy(contract, self._vector, network).to(device)
        self._optimizer = torch.optim.AdamW(
            network.parameters(),
            config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Take one step on the mean square error of unit actions; return metrics, each []."""
        batch = as_tensors(batch, self.device)
        action = self.policy.network(self._vector(batch.observation))
        error = action - self.policy.scale.to_unit(batch.action)
        loss = error.square().sum(dim=1).mean()
        descend(self._optimizer, loss, self.config.max_gradient_norm)
        return {'policy_loss': loss.detach()}

    def fit_normalizer(self, observation: Mapping[str, np.ndarray]) -> None:
        """Fix the observation statistics from fields {name: [M, ...]}; nothing without any."""
        self._vector.fit(observation)


BC = Agent(BCConfig, BCLearner)
