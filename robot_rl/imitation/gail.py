"""GAIL off policy: a critic and a policy that learn from what a discriminator says.

Ho and Ermon 2016 (arXiv 1606.03476), off policy as in Kostrikov et al. 2019 (DAC, arXiv
1809.02925) and Orsini et al. 2021 (What matters for adversarial imitation learning?, arXiv
2106.00672). The agent below it is D4PG or DMPO, unchanged but for its rewards.
B batch, X size of what the discriminator judges, D and A sizes of observation and action.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import pydantic
import torch
from torch import Tensor, nn

from robot_rl.errors import RobotRLError, SpecError
from robot_rl.imitation import discriminator as d
from robot_rl.policies.actor_critic import ActorCritic
from robot_rl.policies.agent import Agent, Sizes, descend
from robot_rl.policies.d4pg import D4PGConfig, D4PGLearner
from robot_rl.policies.encoders import randomly_moved
from robot_rl.policies.mpo import DMPOConfig, MPOLearner
from robot_rl.policies.policy import ObservationVector, beside
from robot_rl.specs import Contract, Spec

# Mean certainty from which a discriminator's rewards hardly differ any more.
_SATURATED = 0.99


class Judged(NamedTuple):
    """B steps to judge: what was seen, done and seen next, as tensors or arrays."""

    observation: Mapping[str, Any]  # o_t  {field: [B, ...]}
    action: Any  #                    a_t  [B, A], contract units
    next_observation: Mapping[str, Any]  # o_{t+1}  {field: [B, ...]}
    discount: Any  #                  [B] of the environment: 0 after a termination


class DiscriminatorConfig(Spec):
    """What a discriminator lets one choose, beside the agent that learns from it."""

    v_min: float | None = None
    """smallest return that the critic can express; null: from the learned rewards and gamma"""
    v_max: float | None = None
    """largest return that the critic can express; null: from the learned rewards and gamma"""
    reward: d.RewardForm
    """-log(1-D): where episodes are cut off on failure; log D: on success; airl: either sign"""
    max_reward: pydantic.PositiveFloat = 3.0
    """rewards are cut to its size"""
    task_reward: pydantic.NonNegativeFloat = 0.0
    """weight of the task's own reward, which is added to the discriminator's"""
    judges: Literal['observation_action', 'observation', 'transition'] = 'observation_action'
    """o_t and a_t; o_{t+1} alone; or o_t and o_{t+1}"""
    pictures_for: Literal['all', 'discriminator'] = 'all'
    """who looks at pictures: critic and policy too; or D alone, and no camera is needed to act"""
    horizon: Literal['fixed', 'absorbing'] = 'fixed'
    """fixed: no episode terminates; absorbing: what follows a termination is judged as well"""
    discriminator_layers: Sizes = (64,)
    """units of each layer"""
    discriminator_learning_rate: pydantic.PositiveFloat = 1e-4
    """of AdamW"""
    discriminator_weight_decay: pydantic.NonNegativeFloat = 0.0
    """as AdamW has it"""
    discriminator_batch_size: pydantic.PositiveInt = 256
    """steps of experts, and as many of the agent, in one update; there is one for each update"""
    spectral_norm: bool = True
    """whether each layer is divided by its largest singular value"""
    gradient_penalty: pydantic.NonNegativeFloat = 10.0
    """weight of the gradient penalty at interpolates"""
    gradient_target: pydantic.NonNegativeFloat = 1.0
    """size of the gradient that is not penalised"""
    entropy_bonus: pydantic.NonNegativeFloat = 1e-3
    """weight of the mean entropy of D"""
    input_dropout: float = pydantic.Field(0.0, ge=0, lt=1)
    """part of what is judged that is left out in training"""
    dropout: float = pydantic.Field(0.0, ge=0, lt=1)
    """part of each hidden layer that is left out in training"""
    augmentation: pydantic.NonNegativeFloat = 0.0
    """deviation of noise on what is judged in training, in the data's deviations"""

    def reward_range(self, of_the_task: tuple[float, float] | None) -> tuple[float, float] | None:
        """Return the lowest and the highest reward that is learned from; None: not known."""
        judged = d.reward_bounds(self.reward, self.max_reward)
        if not self.task_reward:
            return judged
        if of_the_task is None:
            return None
        low, high = (j + self.task_reward * t for j, t in zip(judged, of_the_task, strict=True))
        return low, high


class Adversarial(ActorCritic):
    """What makes an actor-critic a GAIL: a discriminator, its update, and its rewards.

    Whoever draws the batches calls `judge` before each of them, and asks `reward` for the reward
    of every step in them. Raises SpecError where it alone is to look at pictures, and there are
    none or nothing else.
    """

    def __init__(self, contract: Contract, config: Any, seed: int = 0, device: str = 'cpu'):
        super().__init__(acted_by(contract, config), config, seed, device)
        self._watched = contract
        vector = ObservationVector(contract, normalize=True, beside_encoder=True)
        self._judged = vector.to(device)
        weights = torch.Generator().manual_seed(seed)
        drops = int(np.random.SeedSequence([seed, 2]).generate_state(1)[0])
        self._drops = torch.Generator(device).manual_seed(drops)
        # Of its own: what tells experts apart is not what a critic looks for.
        self._judge_encoder = config.encode(contract, weights)
        self.discriminator = d.Discriminator(
            self._judged_size(),
            config.discriminator_layers,
            weights,
            self._drops,
            config.spectral_norm,
            config.input_dropout,
            config.dropout,
        ).to(device)
        networks = nn.ModuleList([self.discriminator])
        if self._judge_encoder is not None:
            networks.append(self._judge_encoder.to(device))
        self._judge_optimizer = torch.optim.AdamW(
            networks.parameters(),
            config.discriminator_learning_rate,
            weight_decay=config.discriminator_weight_decay,
        )

    @property
    def early_frames(self) -> int:
        """How many steps at the start of episodes `judge` wants to be shown apart; 0: none."""
        return 0

    def judge(
        self, expert: Judged, agent: Judged, early: tuple[Judged, Judged] | None = None
    ) -> dict[str, Tensor]:
        """Take one step of the discriminator on as many samples of experts and of the agent.

        `early` are samples of each from the first `early_frames` of episodes. Returns metrics,
        each []: its loss, and apart for experts and agent how often it is right and the mean of D.
        """
        self.discriminator.train()
        samples = [self._blurred(judged) for judged in (expert, agent)]
        logits = [self._logits(x) for x in samples]
        config = self.config
        loss = self._divergence(logits, [self._absorbed(judged) for judged in (expert, agent)])
        penalty = torch.zeros((), device=self.device)
        if config.gradient_penalty:
            share = torch.rand(len(samples[0]), 1, generator=self._drops, device=self.device)
            # Of pictures between their features: the encoder has no part in it.
            penalty = d.gradient_penalty(
                self.discriminator, *samples, share, config.gradient_target
            )
        bonus = d.entropy(torch.cat(logits)).mean()
        constraint, metrics = self._constraint(early)
        total = loss + config.gradient_penalty * penalty - config.entropy_bonus * bonus
        self._descend(total + constraint)
        probability = [x.detach().sigmoid().mean() for x in logits]
        return metrics | {
            'discriminator_loss': loss.detach(),
            'gradient_penalty': penalty.detach(),
            'discriminator_entropy': bonus.detach(),
            'accuracy_expert': (logits[0].detach() > 0).float().mean(),
            'accuracy_agent': (logits[1].detach() <= 0).float().mean(),
            'd_expert': probability[0],
            'd_agent': probability[1],
        }

    @torch.no_grad()
    def reward(self, judged: Judged) -> Tensor:
        """Return the present reward of each step [B]; what is behind a termination is in it."""
        self.discriminator.eval()
        config = self.config
        reward = d.reward_of(self._logits(self._sample(judged)), config.reward, config.max_reward)
        if config.horizon == 'absorbing':
            reward = reward + self._ended(judged) * self._weight * self._absorbing_reward()
        return reward

    def fit_normalizer(self, observation: Mapping[str, np.ndarray]) -> None:
        """Fix the statistics of what is seen and of what is judged, from {name: [M, ...]}."""
        super().fit_normalizer(observation)
        self._judged.fit(observation)

    def save(self) -> dict[str, Any]:
        """Return all that the next update depends on, as tensors and numbers."""
        return super().save() | {
            'judged': self._judged.state_dict(),
            'discriminator': self.discriminator.state_dict(),
            'judge_optimizer': self._judge_optimizer.state_dict(),
            'drops': self._drops.get_state(),
            'judge_encoder': self._judge_encoder and self._judge_encoder.state_dict(),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Take back what `save` returned: the next update is bitwise the same."""
        super().restore(saved)
        self._judged.load_state_dict(saved['judged'])
        self.discriminator.load_state_dict(saved['discriminator'])
        self._judge_optimizer.load_state_dict(saved['judge_optimizer'])
        self._drops.set_state(saved['drops'])
        if self._judge_encoder is not None:
            self._judge_encoder.load_state_dict(saved['judge_encoder'])

    def remarks(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """Say of a discriminator that is sure of everything what may help."""
        certainty = metrics.get('d_expert', 0.5), 1 - metrics.get('d_agent', 0.5)
        if min(certainty) < _SATURATED:
            return {}
        told = ', '.join(f'{value:.3f}' for value in certainty)
        return {
            'saturated': (
                f'the discriminator is saturated (sure of experts and of the agent by {told}): '
                'its rewards tell little apart; more learner.gradient_penalty, spectral_norm, '
                'dropout, a lower learner.discriminator_learning_rate or fewer '
                'discriminator_layers may help, and agent trail where the demonstrations show '
                'what the agent never can'
            )
        }

    @property
    def _weight(self) -> float:
        """What the state after a termination counts against a step: gamma + gamma^2 + ..."""
        return self.config.discount / (1 - self.config.discount)

    def _constraint(
        self, early: tuple[Judged, Judged] | None
    ) -> tuple[Tensor | float, dict[str, Tensor]]:
        """Return what else the discriminator goes down, and metrics of it."""
        return 0.0, {}

    def _divergence(self, logits: list[Tensor], absorbed: list[Tensor]) -> Tensor:
        """Return the mean loss on experts plus that on the agent -> [].

        `absorbed` [] counts what follows the terminations among each; of an absorbing state there
        is but one.
        """
        parts = []
        for loss, judged, weight in zip(
            (d.expert_loss, d.agent_loss), logits, absorbed, strict=True
        ):
            part = loss(judged).mean()
            if self.config.horizon == 'absorbing':
                # A mean over the steps and, weighed by how long it lasts, what follows them.
                weight = weight / len(judged)
                following = loss(self._logits(self._absorbing())).mean()
                part = (part + weight * following) / (1 + weight)
            parts.append(part)
        return parts[0] + parts[1]

    def _absorbed(self, judged: Judged) -> Tensor:
        if self.config.horizon == 'fixed':
            return torch.zeros((), device=self.device)
        return self._ended(judged).sum() * self._weight

    def _ended(self, judged: Judged) -> Tensor:
        discount = torch.as_tensor(judged.discount, dtype=torch.float32, device=self.device)
        return (discount == 0).float()

    def _absorbing(self) -> Tensor:
        """Return the state that every termination leads to [1, X]: nothing, and that it is it."""
        return torch.nn.functional.one_hot(
            torch.tensor([self._judged_size() - 1], device=self.device), self._judged_size()
        ).float()

    def _absorbing_reward(self) -> Tensor:
        config = self.config
        return d.reward_of(self._logits(self._absorbing()), config.reward, config.max_reward)

    def _judged_size(self) -> int:
        size, actions = self._judged.size, self.contract.action_size
        size += self._judge_encoder.size if self._judge_encoder is not None else 0
        parts = {
            'observation_action': size + actions,
            'observation': size,
            'transition': 2 * size,
        }
        return parts[self.config.judges] + (self.config.horizon == 'absorbing')

    def _sample(self, judged: Judged) -> Tensor:
        """Return what the discriminator sees of each step [B, X], normalised."""
        judges = self.config.judges
        if judges == 'observation_action':
            action = torch.as_tensor(judged.action, dtype=torch.float32, device=self.device)
            unit = self.policy.scale.to_unit(action).clamp(-1, 1)
            parts = (self._see(judged.observation), unit)
        elif judges == 'observation':
            parts = (self._see(judged.next_observation),)
        else:
            parts = (self._see(judged.observation), self._see(judged.next_observation))
        if self.config.horizon == 'absorbing':
            parts = (*parts, torch.zeros_like(parts[0][:, :1]))
        return torch.cat(parts, dim=1)

    def _see(self, observation: Mapping[str, Any]) -> Tensor:
        """Return an observation's vector, normalised, with the features of its pictures [B, D]."""
        fields = {field.name: field.dtype for field in self._watched.observation}
        tensors = {
            name: torch.as_tensor(
                observation[name], dtype=getattr(torch, kind), device=self.device
            )
            for name, kind in fields.items()
        }
        vector = self._judged(tensors) if self._judged.size else None
        if self._judge_encoder is None:
            return vector
        if self.discriminator.training and self.config.random_shift:
            tensors = randomly_moved(tensors, self._watched, self._drops)
        return beside(vector, self._judge_encoder(tensors))

    def _blurred(self, judged: Judged) -> Tensor:
        """Return what is judged in training [B, X]: as it may also have looked."""
        x = self._sample(judged)
        if not self.config.augmentation:
            return x
        noise = torch.randn(x.shape, generator=self._drops, device=x.device)
        return x + self.config.augmentation * noise

    def _logits(self, x: Tensor) -> Tensor:
        return self.discriminator(x).squeeze(dim=1)

    def _descend(self, loss: Tensor) -> None:
        descend(self._judge_optimizer, loss, self.config.max_gradient_norm)


class GAILConfig(DiscriminatorConfig, D4PGConfig):
    """What GAIL on D4PG lets one choose."""


class GAILDMPOConfig(DiscriminatorConfig, DMPOConfig):
    """What GAIL on DMPO lets one choose."""


class GAILLearner(Adversarial, D4PGLearner):
    """D4PG, paid by a discriminator."""


class GAILDMPOLearner(Adversarial, MPOLearner):
    """DMPO, paid by a discriminator."""


def acted_by(contract: Contract, config: DiscriminatorConfig) -> Contract:
    """Return what of a contract critic and policy see. Raises SpecError where that is nothing."""
    if config.pictures_for == 'all':
        return contract
    pictures = [field.name for field in contract.pictures]
    if len(pictures) in (0, len(contract.observation)):
        seen = 'pictures alone are' if pictures else 'no picture is'
        raise SpecError(
            f'learner.pictures_for: discriminator, but {seen} seen; right are fields for the '
            'policy, pixels_only=false, and pictures, cameras={overview: [64, 64]}'
        )
    return contract.without(pictures)


def require_fixed_horizon(learner: Adversarial, discounts: np.ndarray, whose: str) -> None:
    """Raise RobotRLError where an episode terminated and the horizon is to be fixed.

    Ending early is then a signal of its own: -log(1-D) pays for living on, log D for ending
    (Kostrikov et al. 2019). `discounts` [M] are those of steps.
    """
    if learner.config.horizon == 'fixed' and (discounts == 0).any():
        raise RobotRLError(
            f'learner.horizon: fixed, but {whose} terminate: how long an episode lasts would tell '
            'the discriminator what it should learn from the steps; learner.horizon=absorbing is '
            'right'
        )


GAIL = Agent(GAILConfig, GAILLearner)
GAIL_DMPO = Agent(GAILDMPOConfig, GAILDMPOLearner)
