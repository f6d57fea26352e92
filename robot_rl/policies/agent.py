"""What every agent is: a frozen config and a learner; and the pieces that learners share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import pydantic
import torch
from torch import Tensor, nn

from robot_rl.policies.policy import Policy
from robot_rl.specs import Spec


class OffPolicyConfig(Spec):
    """What an agent that learns from replayed n-step transitions lets one choose."""

    batch_size: pydantic.PositiveInt = 256  # transitions in one update
    n_step: pydantic.PositiveInt = 5  # rewards summed before bootstrapping
    discount: float = pydantic.Field(0.99, gt=0, le=1)  # gamma, per environment step
    samples_per_insert: pydantic.PositiveFloat = 32.0  # times each step is sampled, on average
    min_replay_size: pydantic.PositiveInt = 1000  # environment steps before the first update
    replay_size: pydantic.PositiveInt = 1_000_000  # environment steps kept, oldest out first
    sigma: pydantic.NonNegativeFloat = 0.2  # exploration noise; actions span [-1, 1]
    normalize_observations: bool = False  # by statistics of the first min_replay_size steps

    @pydantic.model_validator(mode='after')
    def _replay_holds_what_is_asked(self) -> Self:
        if self.min_replay_size > self.replay_size:
            raise ValueError(
                f'min_replay_size {self.min_replay_size} must not exceed '
                f'replay_size {self.replay_size}'
            )
        if self.n_step >= self.min_replay_size:
            raise ValueError(
                f'n_step {self.n_step} must be below min_replay_size {self.min_replay_size}'
            )
        return self


class Batch(NamedTuple):
    """B transitions over k <= n steps, as storage.sampler.Transitions defines them."""

    observation: Mapping[str, Any]  # o_t      {field: [B, ...]}
    action: Any  #                    a_t      [B, A], contract units
    reward: Any  #                    R        [B]
    discount: Any  #                  gamma^k times the environment's discounts [B]
    next_observation: Mapping[str, Any]  # o_{t+k}  {field: [B, ...]}


class Learner(Protocol):
    """What the training loop and offline learning ask of an algorithm."""

    policy: Policy  # what acts, is evaluated and is exported; follows the learning in place
    steps: int  # updates done

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Do one step of gradient descent; metrics stay tensors, so that nothing waits."""

    def fit_normalizer(self, observation: Mapping[str, np.ndarray]) -> None:
        """Fix the observation statistics, before the first update."""

    def save(self) -> dict[str, Any]:
        """Return all that the next update depends on."""

    def restore(self, saved: dict[str, Any]) -> None:
        """Take back what `save` returned: the next update is bitwise the same."""


class Agent(NamedTuple):
    """An algorithm by its two parts; `learner(contract, config, seed)` makes a Learner."""

    config: type[OffPolicyConfig]
    learner: type[Learner]


def as_tensors(batch: Batch, device: torch.device) -> Batch:
    """Return `batch` (of arrays or tensors) as float32 tensors on `device`."""

    def tensor(value: Any) -> Tensor:
        return torch.as_tensor(value, dtype=torch.float32, device=device)

    return Batch(
        {name: tensor(value) for name, value in batch.observation.items()},
        tensor(batch.action),
        tensor(batch.reward),
        tensor(batch.discount),
        {name: tensor(value) for name, value in batch.next_observation.items()},
    )


@torch.no_grad()
def copy_parameters(source: nn.Module, target: nn.Module) -> None:
    """Copy all parameters in one fused pass (a hard target update)."""
    torch._foreach_copy_(list(target.parameters()), list(source.parameters()))


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, max_norm: float) -> Tensor:
    """Take one step down `loss` [] with the gradient's global norm cut to `max_norm`.

    Returns that norm [] as it was before the cut.
    """
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = [parameter for group in optimizer.param_groups for parameter in group['params']]
    norm = nn.utils.clip_grad_norm_(parameters, max_norm, foreach=True)
    optimizer.step()
    return norm
