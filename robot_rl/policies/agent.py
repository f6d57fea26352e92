"""What every agent is: a frozen config and a learner; and the pieces that learners share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, Protocol, Self

import numpy as np
import pydantic
import torch
from torch import Tensor, nn

from robot_rl.errors import SpecError
from robot_rl.policies.encoders import PictureEncoder
from robot_rl.policies.policy import Behaviour, Policy
from robot_rl.specs import Contract, Spec

Sizes = Annotated[tuple[pydantic.PositiveInt, ...], pydantic.Field(min_length=1)]


class LearnerConfig(Spec):
    """What every learner from n-step transitions lets one choose."""

    batch_size: pydantic.PositiveInt = 256
    """transitions in one update, or sequences where the agent has a memory"""
    n_step: pydantic.PositiveInt = 5
    """rewards summed before bootstrapping"""
    discount: float = pydantic.Field(0.99, gt=0, le=1)
    """gamma, per environment step"""
    normalize_observations: bool = False
    """by statistics of the first min_replay_size steps, or of all recorded"""
    policy_layers: Sizes = (256, 256, 256)
    """units of each layer"""
    max_gradient_norm: pydantic.PositiveFloat = 40.0
    """of each network"""

    def reward_range(self, of_the_task: tuple[float, float] | None) -> tuple[float, float] | None:
        """Return the lowest and the highest reward that is learned from; None: not known."""
        return of_the_task


class CriticConfig(Spec):
    """What a distributional critic and its target let one choose."""

    critic_layers: Sizes = (256, 256, 256)
    """units of each layer"""
    v_min: float | None = -150.0
    """smallest return that the critic can express; null: from the task's rewards and gamma"""
    v_max: float | None = 150.0
    """largest return that the critic can express; null: from the task's rewards and gamma"""
    num_atoms: int = pydantic.Field(51, ge=2)
    """places between v_min and v_max, both included"""
    target_update_period: pydantic.PositiveInt = 100
    """updates between copies to the targets"""

    @pydantic.model_validator(mode='after')
    def _support_is_ordered(self) -> Self:
        known = self.v_min is not None and self.v_max is not None
        if known and self.v_min >= self.v_max:
            raise ValueError(f'v_min {self.v_min} must be below v_max {self.v_max}')
        return self


class PictureConfig(Spec):
    """What an agent that may see pictures lets one choose."""

    encoder: Literal['conv', 'resnet'] = 'conv'
    """of pictures, where there are any: DrQ-v2's layers, or IMPALA's"""
    encoder_channels: tuple[pydantic.PositiveInt, ...] = ()
    """of each layer of 'conv', or section of 'resnet'; []: as DrQ-v2 and IMPALA have them"""
    encoder_features: pydantic.PositiveInt = 50
    """that each picture becomes"""
    random_shift: bool = True
    """whether pictures move by up to 4 of 84 pixels each time they are learned from (DrQ)"""

    def encode(self, contract: Contract, generator: torch.Generator) -> PictureEncoder | None:
        """Return an encoder of the pictures that `contract` shows; None where it shows none."""
        if not contract.pictures:
            return None
        sizes = self.encoder_channels, self.encoder_features
        return PictureEncoder(contract, self.encoder, *sizes, generator)


class OffPolicyConfig(LearnerConfig):
    """What an agent that acts and learns from a replay lets one choose."""

    samples_per_insert: pydantic.PositiveFloat = 32.0
    """times each step is sampled, on average; in sequences, those past an episode's end count"""
    min_replay_size: pydantic.PositiveInt = 1000
    """environment steps before the first update"""
    replay_size: pydantic.PositiveInt = 1_000_000
    """environment steps kept, oldest out first"""
    priority_exponent: float = pydantic.Field(0.0, ge=0, le=1)
    """alpha: how much more often surprising steps are sampled; 0: all alike"""
    importance_exponent: float = pydantic.Field(0.4, ge=0, le=1)
    """beta: how far weights in the loss make up for priorities; 1: wholly"""
    memory: pydantic.NonNegativeInt = 0
    """units of an LSTM in each network, which then learns from sequences; 0: feed-forward"""
    sequence_length: pydantic.PositiveInt = 20
    """steps of a sequence that are learned from; with a memory only"""
    burn_in: pydantic.NonNegativeInt = 10
    """steps in front of them that only bring the memory up to date"""
    updates_per_call: pydantic.PositiveInt = 1
    """updates from batches that are drawn and gathered at once"""

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
        if self.memory and self.burn_in + self.sequence_length >= self.replay_size:
            raise ValueError(
                f'burn_in {self.burn_in} and sequence_length {self.sequence_length} must come to '
                f'less than replay_size {self.replay_size}'
            )
        return self

    @property
    def steps_per_update(self) -> int:
        """How many sampled steps one update learns from."""
        return self.batch_size * (self.sequence_length if self.memory else 1)

    @property
    def priority_exponents(self) -> tuple[float, float] | None:
        """alpha and beta of prioritised sampling; None: all steps are sampled alike."""
        if self.priority_exponent == 0:
            return None
        return self.priority_exponent, self.importance_exponent


def return_bounds(
    reward_range: tuple[float, float] | None, discount: float
) -> tuple[float, float] | None:
    """Return the lowest and the highest return that rewards in `reward_range` can come to.

    That is r / (1 - gamma) for ever, or r itself, an episode of one step, where that is farther
    out. None where the task does not state its rewards, or the discount gamma is 1.
    """
    if reward_range is None or discount == 1:
        return None
    low, high = reward_range
    horizon = 1 / (1 - discount)
    return low * (horizon if low < 0 else 1), high * (horizon if high > 0 else 1)


def fit_support(
    config: CriticConfig, discount: float, reward_range: tuple[float, float] | None
) -> dict[str, float]:
    """Return v_min and v_max of `config`, worked out by `return_bounds` where they are open.

    Raises SpecError, which names the field, where a bound cannot be worked out, or where a
    support that is given cannot hold the returns.
    """
    bounds = return_bounds(reward_range, discount)
    if getattr(config, 'critic', 'categorical') == 'scalar':
        return {}  # a mean needs no support
    found = {}
    for index, (name, outward) in enumerate((('v_min', -1), ('v_max', 1))):
        given = getattr(config, name)
        if bounds is None:
            if given is None:
                why = 'the task does not state its rewards' if discount < 1 else 'discount is 1'
                raise SpecError(
                    f'learner.{name}: null leaves it to the rewards and the discount, but {why}; '
                    'a number is right'
                )
        elif given is None:
            given = bounds[index]
        elif outward * (bounds[index] - given) > 1e-6 * abs(bounds[index]):
            raise SpecError(
                f'learner.{name}: {given:g} cannot hold the returns: rewards from '
                f'{reward_range[0]:g} to {reward_range[1]:g} a step at discount {discount:g} come '
                f'to {bounds[index]:g}; {bounds[index]:g}, or null, is right'
            )
        found[name] = float(given)
    return found


class Batch(NamedTuple):
    """B transitions over k <= n steps, as storage.sampler.Transitions defines them."""

    observation: Mapping[str, Any]  # o_t      {field: [B, ...]}
    action: Any  #                    a_t      [B, A], contract units
    reward: Any  #                    R        [B]
    discount: Any  #                  gamma^k times the environment's discounts [B]
    next_observation: Mapping[str, Any]  # o_{t+k}  {field: [B, ...]}
    weight: Any = None  #             of each transition in the critic's loss [B]; None: all 1


class SequenceBatch(NamedTuple):
    """B sequences, time first, as storage.sampler.Sequences defines them.

    L = burn_in + T + n rows: some to burn in, T to learn from, n to bootstrap from.
    """

    observation: Mapping[str, Any]  # {field: [L, B, ...]}
    real: Any  #      [burn_in, B] bool: False where a row in front only fills the shape
    state: Mapping[str, Any]  # {name: [B, ...]} recurrent state before the first real row
    action: Any  #    [T, B, A], contract units
    reward: Any  #    [T, B] n-step returns
    discount: Any  #  [T, B] gamma^k times the environment's discounts
    following: Any  # [T, B] k: o_{t+k} is row burn_in + t + k
    valid: Any  #     [T, B] bool: whether there is something to learn at this step
    weight: Any = None  # [B]


class Learner(Protocol):
    """What offline learning asks of an algorithm."""

    config: LearnerConfig
    policy: Policy  # what is evaluated and exported; follows the learning in place

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Do one step of gradient descent; metrics stay tensors, so that nothing waits."""

    def fit_normalizer(self, observation: Mapping[str, np.ndarray]) -> None:
        """Fix the observation statistics, before the first update."""


class ActingLearner(Learner, Protocol):
    """What the training loop asks besides: it explores, can be stopped and gone on with.

    Of a learner that never acts (its config is no OffPolicyConfig) neither `priorities`,
    `behaviour` nor `start_from` is asked.
    """

    config: OffPolicyConfig
    steps: int  # updates done
    priorities: Tensor | None  # [B]: how far off each transition of the last batch was

    def behaviour(self, num_envs: int) -> Behaviour:
        """Return what acts in `num_envs` environments; it follows the learning in place."""

    def save(self) -> dict[str, Any]:
        """Return all that the next update depends on."""

    def restore(self, saved: dict[str, Any]) -> None:
        """Take back what `save` returned: the next update is bitwise the same."""

    def restore_policy(self, saved: dict[str, Any]) -> None:
        """Take back what acts, and nothing that only a further update depends on."""

    def start_from(self, policy: Mapping[str, Tensor]) -> None:
        """Begin with another policy's parameters and observation statistics, by its state_dict.

        Raises SpecError where its networks are others.
        """

    def remarks(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """Return what a person should know of an evaluation's metrics, {subject: one line}."""


class Agent(NamedTuple):
    """An algorithm by its two parts; `learner(contract, config, seed)` makes a Learner."""

    config: type[LearnerConfig]
    learner: type[Learner]


def as_tensors(batch: Any, device: torch.device) -> Batch | SequenceBatch:
    """Return transitions or sequences (of arrays or tensors) as tensors on `device`.

    Floating point becomes float32; whole and truth values keep their type.
    """

    def tensor(value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, Mapping):
            return {name: tensor(part) for name, part in value.items()}
        value = torch.as_tensor(value)
        dtype = torch.float32 if value.is_floating_point() else value.dtype
        return value.to(device, dtype, non_blocking=True)

    kind = SequenceBatch if hasattr(batch, 'following') else Batch
    return kind(*(tensor(getattr(batch, name, None)) for name in kind._fields))


def require_same_shapes(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str
) -> None:
    """Raise SpecError, which names the first that differs, for parameters of another network."""
    for name in [*wanted, *found]:
        here, there = ([*part[name].shape] if name in part else None for part in (wanted, found))
        if here != there:
            raise SpecError(
                f'{what}: {name} has the shape {there}, {here} is needed (None: it is not there); '
                'policy_layers, memory, normalize_observations and the kind of policy must be the '
                'same'
            )


@torch.no_grad()
def copy_parameters(source: nn.Module, target: nn.Module) -> None:
    """Copy all parameters in one fused pass (a hard target update)."""
    torch._foreach_copy_(list(target.parameters()), list(source.parameters()))


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, max_norm: float) -> list[Tensor]:
    """Take one step down `loss` [], the gradient's norm in each parameter group cut to `max_norm`.

    Returns those norms, each [], as they were before the cut.
    """
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norms = [
        nn.utils.clip_grad_norm_(group['params'], max_norm, foreach=True)
        for group in optimizer.param_groups
    ]
    optimizer.step()
    return norms
