"""MPO and DMPO: a Gaussian policy that is fitted to better actions within bounds on its change.

Abdolmaleki et al. 2018, "Maximum a Posteriori Policy Optimisation" (arXiv 1806.06920), with the
decoupled constraints of arXiv 1812.02256 and a penalty on actions out of bounds as in MO-MPO
(arXiv 2005.07513); as in Acme (acme/agents/tf/mpo, dmpo), the defaults are its baseline scripts'
(rl_continuous/run_mpo.py, run_dmpo.py). DMPO is MPO with a distributional critic.
M rows, N sampled actions, F feature size, A action size, K atoms.
"""

from __future__ import annotations

from typing import Literal

import pydantic
import torch
from torch import Tensor, nn
from torch.nn import functional

from robot_rl.policies import losses
from robot_rl.policies.actor_critic import ActorCritic, ActorCriticConfig, Losses, Rows, View
from robot_rl.policies.agent import Agent
from robot_rl.policies.networks import GaussianPolicy
from robot_rl.policies.policy import Behaviour

# Multipliers are softplus(log) + a little, and log stays where softplus still has a slope.
_SMALLEST, _MIN_LOG = 1e-8, -18.0


class MPOConfig(ActorCriticConfig):
    """What MPO lets one choose."""

    critic: Literal['categorical', 'scalar'] = 'scalar'
    """a distribution over returns between v_min and v_max (DMPO), or their mean alone (MPO)"""
    n_step: pydantic.PositiveInt = 4
    """rewards summed before bootstrapping"""
    samples_per_insert: pydantic.PositiveFloat = 64.0
    """times each step is sampled, on average; in sequences, those past an episode's end count"""
    num_samples: pydantic.PositiveInt = 20
    """actions sampled in each state, N"""
    initial_std: pydantic.PositiveFloat = 0.5
    """deviation of the policy at first; actions span [-1, 1]"""
    epsilon: pydantic.PositiveFloat = 0.1
    """bound on the divergence of the better actions' distribution from the policy"""
    epsilon_mean: pydantic.PositiveFloat = 0.01
    """bound on the divergence by the change of the mean, in each dimension"""
    epsilon_std: pydantic.PositiveFloat = 1e-6
    """bound on the divergence by the change of the deviation, in each dimension"""
    per_dimension: bool = True
    """whether these two bound each action dimension by itself, or their sum"""
    action_penalty: bool = True
    """whether actions out of bounds are an objective of their own (MO-MPO)"""
    epsilon_penalty: pydantic.PositiveFloat = 0.001
    """bound on the divergence that this objective may cause"""
    initial_log_temperature: float = 10.0
    """temperatures at first, as softplus(log)"""
    initial_log_alpha_mean: float = 10.0
    """multiplier of the mean's bound at first, as softplus(log)"""
    initial_log_alpha_std: float = 1000.0
    """multiplier of the deviation's bound at first, as softplus(log)"""
    dual_learning_rate: pydantic.PositiveFloat = 1e-2
    """of Adam, for temperatures and multipliers"""


class DMPOConfig(MPOConfig):
    """What DMPO lets one choose."""

    critic: Literal['categorical', 'scalar'] = 'categorical'
    """a distribution over returns between v_min and v_max (DMPO), or their mean alone (MPO)"""


class MPOLearner(ActorCritic):
    """Policy, critic, their targets, the multipliers of all bounds, and the update of all."""

    config: MPOConfig

    def behaviour(self, num_envs: int) -> Behaviour:
        """Return the policy as it samples."""
        del num_envs  # every one of them draws from the same distribution
        return Behaviour(self.policy, None, self._memory('critic'))

    def _policy_network(self, feature_size: int, generator: torch.Generator) -> nn.Module:
        config, size = self.config, self.contract.action_size
        return GaussianPolicy(
            feature_size, size, config.policy_layers, generator, config.initial_std
        )

    def _networks(self, generator: torch.Generator) -> nn.ModuleDict:
        networks = super()._networks(generator)
        networks['duals'] = Duals(self.config, self.contract.action_size)
        return networks

    def _parameter_groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        duals = list(self._online['duals'].parameters()), self.config.dual_learning_rate
        return super()._parameter_groups() | {'dual': duals}

    def _noise(self, rows: int) -> Tensor:
        shape = self.config.num_samples, rows, self.contract.action_size
        return torch.randn(shape, generator=self._generator, device=self.device)

    @torch.no_grad()
    def _after_step(self) -> None:
        for parameter in self._online['duals'].parameters():
            parameter.clamp_(min=_MIN_LOG)

    def _losses(self, rows: Rows, online: View, target: View) -> Losses:
        with torch.no_grad():
            mean, std = self._target['policy'].gaussian(target.policy.next)
            action = mean + std * rows.noise  # [N, M, A]
            values, next_belief = self._judge(target.critic.next, action)
        critic_loss, metrics, surprise = self._critic_loss(rows, online.critic.now, next_belief)
        weight, temperature_loss = self._improve(rows, values, action)
        new_mean, new_std = self._online['policy'].gaussian(online.policy.next)
        # Decoupled: each of mean and deviation is fitted with the other as it was.
        policy_loss = losses.weighted_likelihood_loss(action, weight, new_mean, std)
        policy_loss = policy_loss + losses.weighted_likelihood_loss(action, weight, mean, new_std)
        policy_loss = (rows.valid * policy_loss).mean()
        penalty, divergences = self._hold_back(rows, (mean, std), (new_mean, new_std))
        total = critic_loss + policy_loss + penalty + temperature_loss
        metrics |= divergences | {
            'policy_loss': policy_loss.detach(),
            'value': (rows.valid * values.mean(dim=0)).mean(),
            'std': (rows.valid[:, None] * new_std.detach()).mean(),
        }
        return Losses(total, metrics, surprise)

    def _judge(self, features: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return the target critic's values [N, M] of `action` [N, M, A], and its mean belief.

        The belief about what the policy does next is the mixture over its samples. Sample by
        sample the intermediate results stay in a CPU's cache.
        """
        critic, action = self._target['critic'], action.clamp(-1, 1)
        if self.config.execution == 'plain' or self.device.type != 'cpu':
            repeated = features.repeat(len(action), 1)
            belief = critic.belief(critic(repeated, action.flatten(0, 1)))
            values = critic.value(belief).view(action.shape[:2])
            return values, belief.view(*action.shape[:2], -1).mean(dim=0)
        values, mean = [], 0.0
        for sample in action:
            belief = critic.belief(critic(features, sample))
            values.append(critic.value(belief))
            mean = mean + belief / len(action)
        return torch.stack(values), mean

    def _improve(self, rows: Rows, values: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return the better actions' weights [N, M], and the temperatures' loss []."""
        config, duals = self.config, self._online['duals']
        objectives = [(values, duals.temperature, config.epsilon)]
        if config.action_penalty:
            cost = losses.out_of_bounds_cost(action)
            objectives.append((cost, duals.penalty_temperature, config.epsilon_penalty))
        weight, loss = 0.0, 0.0
        for objective, temperature, epsilon in objectives:
            weight = weight + losses.importance_weights(objective, temperature)
            dual = losses.temperature_loss(objective, temperature, epsilon)
            loss = loss + (rows.valid * dual).mean()
        return weight, loss

    def _hold_back(
        self, rows: Rows, old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the penalty [] on the policy's change and its multipliers' loss, and metrics."""
        config, duals = self.config, self._online['duals']
        (mean, std), (new_mean, new_std) = old, new
        divergences = {
            'mean': losses.mean_divergence(mean, std, new_mean),
            'std': losses.deviation_divergence(std, new_std),
        }
        penalty, metrics = 0.0, {'temperature': duals.temperature.detach()}
        for name, divergence in divergences.items():
            if not config.per_dimension:
                divergence = divergence.sum(dim=1, keepdim=True)
            divergence = (rows.valid[:, None] * divergence).mean(dim=0)
            alpha, epsilon = getattr(duals, f'alpha_{name}'), getattr(config, f'epsilon_{name}')
            penalty = penalty + losses.divergence_penalty(divergence, alpha, epsilon)
            metrics[f'alpha_{name}'] = alpha.detach().mean()
            metrics[f'kl_{name}_relative'] = divergence.detach().mean() / epsilon
        return penalty, metrics


class Duals(nn.Module):
    """Temperatures and multipliers as softplus(log) + 1e-8: [], and [A] or [1] for the bounds."""

    def __init__(self, config: MPOConfig, action_size: int):
        super().__init__()
        size = action_size if config.per_dimension else 1

        def parameter(log: float, *shape: int) -> nn.Parameter:
            return nn.Parameter(torch.full(shape, log))

        self.log_temperature = parameter(config.initial_log_temperature)
        if config.action_penalty:
            self.log_penalty_temperature = parameter(config.initial_log_temperature)
        self.log_alpha_mean = parameter(config.initial_log_alpha_mean, size)
        self.log_alpha_std = parameter(config.initial_log_alpha_std, size)

    @property
    def temperature(self) -> Tensor:
        """Of the values [], in units of return."""
        return functional.softplus(self.log_temperature) + _SMALLEST

    @property
    def penalty_temperature(self) -> Tensor:
        """Of the cost of actions out of bounds []."""
        return functional.softplus(self.log_penalty_temperature) + _SMALLEST

    @property
    def alpha_mean(self) -> Tensor:
        """Of the bound on the mean's change, [A] or [1]."""
        return functional.softplus(self.log_alpha_mean) + _SMALLEST

    @property
    def alpha_std(self) -> Tensor:
        """Of the bound on the deviation's change, [A] or [1]."""
        return functional.softplus(self.log_alpha_std) + _SMALLEST


MPO = Agent(MPOConfig, MPOLearner)
DMPO = Agent(DMPOConfig, MPOLearner)
