"""Behaviour cloning: regression from recorded observations to recorded actions.

M rows, B sequences, T and L rows in time, D, F and A sizes of observation, features and action.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pydantic
import torch
from torch import Tensor, nn

from robot_rl.policies import losses
from robot_rl.policies.agent import (
    Agent,
    Batch,
    LearnerConfig,
    PictureConfig,
    SequenceBatch,
    as_tensors,
    descend,
)
from robot_rl.policies.encoders import randomly_moved
from robot_rl.policies.networks import (
    DeterministicPolicy,
    GaussianPolicy,
    Memory,
    MixturePolicy,
)
from robot_rl.policies.policy import ObservationVector, Policy
from robot_rl.specs import Contract


class BCConfig(PictureConfig, LearnerConfig):
    """What behaviour cloning lets one choose; rewards and what follows them are not read."""

    n_step: pydantic.PositiveInt = 1
    """every step is imitated, also the last ones of an episode"""
    normalize_observations: bool = True
    """by the statistics of the recorded data"""
    head: Literal['deterministic', 'gaussian', 'mixture'] = 'deterministic'
    """squared error; or the likelihood of a normal, or of a mixture of some"""
    modes: pydantic.PositiveInt = 5
    """of the mixture; the policy takes the mean of the likeliest"""
    min_std: pydantic.PositiveFloat = 1e-2
    """deviations stay above it: a smaller one makes single steps dominate a likelihood"""
    learning_rate: pydantic.PositiveFloat = 3e-4
    """of AdamW"""
    weight_decay: pydantic.NonNegativeFloat = 0.0
    """as AdamW has it"""
    memory: pydantic.NonNegativeInt = 0
    """units of an LSTM, which then learns from sequences; 0: feed-forward"""
    sequence_length: pydantic.PositiveInt = 10
    """steps of a sequence that are learned from; with a memory only"""
    burn_in: pydantic.NonNegativeInt = 10
    """steps in front of them that only bring the memory up to date"""


class BCLearner:
    """A policy that imitates the data's actions; it acts by the mean, or the likeliest mode's."""

    def __init__(self, contract: Contract, config: BCConfig, seed: int = 0, device: str = 'cpu'):
        self.config, self.contract = config, contract
        self.device = torch.device(device)
        self.steps = 0
        generator = torch.Generator().manual_seed(seed)
        # Not the stream that the weights come from.
        shifts = int(np.random.SeedSequence([seed, 1]).generate_state(1)[0])
        self._generator = torch.Generator(device).manual_seed(shifts)
        normalize = config.normalize_observations
        self._vector = ObservationVector(contract, normalize, beside_encoder=True).to(device)
        size, memory = self._vector.size, None
        encoder = config.encode(contract, generator)
        if encoder is not None:
            size += encoder.size
        if config.memory:
            memory = Memory(size, config.memory, generator)
            size = memory.feature_size
        network = self._network(size, generator)
        self.policy = Policy(contract, self._vector, network, memory, encoder).to(device)
        self._optimizer = torch.optim.AdamW(
            self.policy.parameters(),
            config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )

    def update(self, batch: Batch | SequenceBatch) -> dict[str, Tensor]:
        """Take one step on the loss of unit actions; return metrics, each []."""
        batch = as_tensors(batch, self.device)
        action = self.policy.scale.to_unit(batch.action).flatten(0, -2)
        valid = torch.ones(len(action), device=self.device)
        if isinstance(batch, SequenceBatch):
            valid = batch.valid.float().flatten()
        loss = (valid * self._losses(self._features(batch), action)).sum() / valid.sum()
        (norm,) = descend(self._optimizer, loss, self.config.max_gradient_norm)
        self.steps += 1
        return {'policy_loss': loss.detach(), 'policy_gradient_norm': norm}

    def fit_normalizer(self, observation: Mapping[str, np.ndarray]) -> None:
        """Fix the observation statistics from fields {name: [M, ...]}; nothing without any."""
        self._vector.fit(observation)

    def save(self) -> dict[str, Any]:
        """Return all that the next update depends on, as tensors and numbers."""
        return {
            'steps': self.steps,
            'policy': self.policy.state_dict(),
            'optimizer': self._optimizer.state_dict(),
            'generator': self._generator.get_state(),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Take back what `save` returned: the next update is bitwise the same."""
        self.steps = saved['steps']
        self.restore_policy(saved)
        self._optimizer.load_state_dict(saved['optimizer'])
        if 'generator' in saved:  # not of before there were pictures
            self._generator.set_state(saved['generator'])

    def restore_policy(self, saved: dict[str, Any]) -> None:
        """Take back what acts."""
        self.policy.load_state_dict(saved['policy'])

    def remarks(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """Return nothing: a loss says little of how well a policy does."""
        return {}

    def _network(self, size: int, generator: torch.Generator) -> nn.Module:
        config, shape = self.config, (size, self.contract.action_size)
        if config.head == 'mixture':
            return MixturePolicy(
                *shape, config.policy_layers, generator, config.modes, min_std=config.min_std
            )
        if config.head == 'gaussian':
            # As MPO's, which can begin with it.
            return GaussianPolicy(*shape, config.policy_layers, generator, min_std=config.min_std)
        return DeterministicPolicy(*shape, config.policy_layers, generator)

    def _features(self, batch: Batch | SequenceBatch) -> Tensor:
        """Return what the network sees at each step [M, F]: M = B, or T * B with a memory."""
        observation, memory = batch.observation, self.policy.memory
        if self.policy.encoder is not None and self.config.random_shift:
            observation = randomly_moved(observation, self.contract, self._generator)
        joined = self.policy.see(observation)
        if memory is None:
            return joined
        burned, (length, lanes) = len(batch.real), batch.reward.shape
        sequence = joined.view(-1, lanes, joined.shape[1])
        # Nothing was remembered when the data were recorded: as at the start of an episode.
        zeros = sequence.new_zeros(lanes, memory.hidden_size)
        state = memory.burn_in(sequence[:burned], batch.real, (zeros, zeros))
        return memory.unroll(sequence[burned : burned + length], state).flatten(0, 1)

    def _losses(self, features: Tensor, action: Tensor) -> Tensor:
        """Return each step's loss [M] for the unit actions [M, A] that were taken."""
        network = self.policy.network
        if self.config.head == 'mixture':
            return -losses.mixture_log_likelihood(action, *network.mixture(features))
        if self.config.head == 'gaussian':
            ones = torch.ones(1, len(action), device=self.device)
            return losses.weighted_likelihood_loss(action[None], ones, *network.gaussian(features))
        return (network(features) - action).square().sum(dim=1)


BC = Agent(BCConfig, BCLearner)
