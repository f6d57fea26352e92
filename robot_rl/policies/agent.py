"""What every agent is: a frozen config and a learner; and the pieces that learners share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, Protocol, Self

import numpy as np
import pydantic
import torch
from torch import Tensor, nn

from robot_rl.policies.policy import Policy
from robot_rl.specs import Spec

Sizes = Annotated[tuple[pydantic.PositiveInt, ...], pydantic.Field(min_length=1)]


class LearnerConfig(Spec):
    """What every learner from n-step transitions lets one choose."""

    batch_size: pydantic.PositiveInt = 256  # transitions in one update
    n_step: pydantic.PositiveInt = 5  # rewards summed before bootstrapping
    discount: float = pydantic.Field(0.99, gt=0, le=1)  # gamma, per environment step
    normalize_observations: bool = False  # by statistics of the first steps, or of all recorded
    policy_layers: Sizes = (256, 256, 256)  # units of each layer
    max_gradient_norm: pydantic.PositiveFloat = 40.0  # of each network


class CriticConfig(Spec):
    """What a distributional critic and its target let one choose."""

    critic_layers: Sizes = (256, 256, 256)  # units of each layer
    v_min: float = -150.0  # smallest return that the critic can express
    v_max: float = 150.0  # largest return that the critic can express
    num_atoms: int = pydantic.Field(51, ge=2)  # places between v_min and v_max, both included
    target_update_period: pydantic.PositiveInt = 100  # updates between copies to the targets

    @pydantic.model_validator(mode='after')
    def _support_is_ordered(self) -> Self:
        if self.v_min >= self.v_max:
            raise ValueError(f'v_min {self.v_min} must be below v_max {self.v_max}')
        return self


class OffPolicyConfig(LearnerConfig):
    """What an agent that acts and learns from a replay lets one choose."""

    samples_per_insert: pydantic.PositiveFloat = 32.0  # times each step is sampled, on average
    min_replay_size: pydantic.PositiveInt = 1000  # environment steps before the first update
    replay_size: pydantic.PositiveInt = 1_000_000  # environment steps kept, oldest out first
    sigma: pydantic.NonNegativeFloat = 0.2  # exploration noise; actions span [-1, 1]

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
    """What offline learning asks of an algorithm."""

    config: LearnerConfig
    policy: Policy  # what acts, is evaluated and is exported; follows the learning in place

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Do one step of gradient descent; metrics stay tensors, so that nothing waits."""

    def fit_normalizer(self, observation: Mapping[str, np.ndarray]) -> None:
        """Fix the observation statistics, before the first update."""


class ResumableLearner(Learner, Protocol):
    """What the training loop asks besides: it can be stopped and gone on with."""

    steps: int  # updates done

    def save(self) -> dict[str, Any]:
        """Return all that the next update depends on."""

    def restore(self, saved: dict[str, Any]) -> None:
        """Take back what `save` returned: the next update is bitwise the same."""


class Agent(NamedTuple):
    """An algorithm by its two parts; `learner(contract, config, seed)` makes a Learner."""

    config: type[LearnerConfig]
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
