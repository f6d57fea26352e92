"""D4PG: a deterministic policy and a distributional critic, learned off policy.

Barth-Maron et al. 2018, "Distributed Distributional Deterministic Policy Gradients", as in Acme
(acme/agents/jax/d4pg); the defaults are its baseline script's (rl_continuous/run_d4pg.py). With a
scalar critic and one step it is DDPG (Lillicrap et al. 2016). The penalty of pre-activations is
that of Andrychowicz et al. 2017, "Hindsight experience replay", appendix A.
M rows, N environments, A action size, K atoms.
"""

from __future__ import annotations

import pydantic
import torch
from torch import Tensor, nn

from robot_rl.errors import SpecError
from robot_rl.policies import losses
from robot_rl.policies.actor_critic import ActorCritic, ActorCriticConfig, Losses, Rows, View
from robot_rl.policies.agent import Agent
from robot_rl.policies.networks import DeterministicPolicy
from robot_rl.policies.policy import Behaviour


class D4PGConfig(ActorCriticConfig):
    """What D4PG lets one choose."""

    sigma: pydantic.NonNegativeFloat = 0.2
    """deviation of the exploration noise; actions span [-1, 1]"""
    noise_ladder: tuple[pydantic.NonNegativeFloat, pydantic.NonNegativeFloat] | None = None
    """sigma of the first and the last environment, evenly spaced between; in place of sigma"""
    max_action_gradient_norm: pydantic.PositiveFloat = 1.0
    """of dq/da, for each row of a batch"""
    preactivation_penalty: pydantic.NonNegativeFloat = 0.0
    """weight of the squares of what actions are the tanh of: no policy stays at their ends"""


class D4PGLearner(ActorCritic):
    """Policy, critic, their targets, and the update of all."""

    config: D4PGConfig

    def behaviour(self, num_envs: int) -> Behaviour:
        """Return the policy with Gaussian noise, of one size or of the ladder's."""
        ladder = self.config.noise_ladder
        if ladder and num_envs == 1:
            raise SpecError(
                f'learner.noise_ladder: {list(ladder)} for one environment; training.num_envs of '
                'at least 2, or learner.sigma, is right'
            )
        ends = ladder or (self.config.sigma, self.config.sigma)
        sigma = torch.linspace(*ends, num_envs, device=self.device)
        return Behaviour(self.policy, sigma, self._memory('critic'))

    def _policy_network(self, feature_size: int, generator: torch.Generator) -> nn.Module:
        size, layers = self.contract.action_size, self.config.policy_layers
        return DeterministicPolicy(feature_size, size, layers, generator)

    def _losses(self, rows: Rows, online: View, target: View) -> Losses:
        with torch.no_grad():
            next_action = self._target['policy'](target.policy.next)
            critic = self._target['critic']
            next_belief = critic.belief(critic(target.critic.next, next_action))
        critic_loss, metrics, surprise = self._critic_loss(rows, online.critic.now, next_belief)
        policy_loss, value = self._policy_loss(rows, online)
        metrics |= {'policy_loss': policy_loss.detach(), 'value': value}
        return Losses(critic_loss + policy_loss, metrics, surprise)

    def _policy_loss(self, rows: Rows, online: View) -> tuple[Tensor, Tensor]:
        """Return the loss [] of the policy at o_{t+k} and the mean value [] that it reaches."""
        unsquashed = self._online['policy'].unsquashed(online.policy.next)
        action = unsquashed.tanh()
        features, critic = online.critic.next.detach(), self._frozen_critic

        def value(action: Tensor) -> tuple[Tensor, Tensor]:
            values = critic.value(critic.belief(critic(features, action)))
            return values.sum(), values

        # Not torch.autograd.grad: a compiled graph cannot hold it.
        gradient, values = torch.func.grad(value, has_aux=True)(action.detach())
        loss = losses.dpg_loss(action, gradient, self.config.max_action_gradient_norm)
        if self.config.preactivation_penalty:
            loss = loss + self.config.preactivation_penalty * unsquashed.square().sum(dim=1)
        return (rows.valid * loss).mean(), (rows.valid * values.detach()).mean()


D4PG = Agent(D4PGConfig, D4PGLearner)
