"""The deployable policy: observation fields in, action in contract units out. B batch, D, A sizes.

Normaliser, network, squashing, scaling and clipping are all inside, so that whoever runs the
policy (training, evaluation, ONNX Runtime beside an arm) adds nothing and forgets nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robot_rl.errors import ContractMismatch, SpecError
from robot_rl.policies.encoders import PictureEncoder
from robot_rl.policies.networks import Memory
from robot_rl.policies.normalizer import Normalizer
from robot_rl.specs import Contract, StateField

State = dict[str, Tensor]
Arrays = dict[str, np.ndarray]

# The parts of a memory's state by name, and what stands before those of a critic's.
STATE, CRITIC = ('hidden', 'cell'), 'critic_'


class ObservationVector(nn.Module):
    """Observation fields {name: [B, ...]} -> one vector [B, D], in the contract's order.

    `beside_encoder`: pictures are left out, for an encoder to read; D may be 0 then. Raises
    SpecError for another field of pixels: it needs a network of its own.
    """

    def __init__(self, contract: Contract, normalize: bool = False, beside_encoder: bool = False):
        super().__init__()
        fields = [f for f in contract.observation if not (beside_encoder and f.is_picture)]
        for field in fields:
            if field.dtype != 'float32':
                raise SpecError(
                    f'observation {field.name}: dtype {field.dtype} cannot be joined to a vector; '
                    f'this agent takes float32 fields{" and pictures" if beside_encoder else ""}'
                )
        self.sizes = [(field.name, field.size) for field in fields]
        self.size = sum(field.size for field in fields)
        self.normalizer = Normalizer(self.size) if normalize and self.size else None

    def forward(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Return the joined and normalised observation."""
        vector = self.join(observation)
        return vector if self.normalizer is None else self.normalizer(vector)

    @torch.no_grad()
    def fit(self, observation: Mapping[str, Any]) -> None:
        """Fix the normaliser, if there is one, from fields {name: [M, ...]}."""
        if self.normalizer is not None:
            fields = {name: torch.as_tensor(value) for name, value in observation.items()}
            self.normalizer.fit(self.join(fields))

    def join(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Return the joined observation as it is."""
        return torch.cat([observation[name].reshape(-1, size) for name, size in self.sizes], dim=1)


class ActionScale(nn.Module):
    """Actions [B, A] between [-1, 1], where networks work, and the contract's bounds."""

    lower: Tensor
    upper: Tensor

    def __init__(self, contract: Contract):
        super().__init__()
        lower, upper = contract.action_lower, contract.action_upper
        for name, values in (
            ('lower', lower),
            ('upper', upper),
            ('middle', (upper + lower) / 2),
            ('half_range', (upper - lower) / 2),
        ):
            self.register_buffer(name, torch.as_tensor(values, dtype=torch.float32))

    def to_contract(self, action: Tensor) -> Tensor:
        """Return the action in contract units, inside the bounds."""
        return (self.middle + self.half_range * action).clamp(self.lower, self.upper)

    def to_unit(self, action: Tensor) -> Tensor:
        """Return an action in contract units as one in [-1, 1]."""
        return (action - self.middle) / self.half_range


class Policy(nn.Module):
    """(observation, state) -> (action, state) as a torch module, and `select` on arrays.

    `network` maps features [B, F] to actions [B, A]; what lies outside [-1, 1] is clipped. The
    features are the observation's vector [B, D], with what an `encoder` makes of its pictures
    beside it; a `memory` adds what was seen before, and its state then goes in and out of every
    call. A feed-forward policy's states are empty.
    """

    def __init__(
        self,
        contract: Contract,
        vector: ObservationVector,
        network: nn.Module,
        memory: Memory | None = None,
        encoder: PictureEncoder | None = None,
    ):
        super().__init__()
        self.contract = contract
        self.vector, self.network, self.scale = vector, network, ActionScale(contract)
        self.memory, self.encoder = memory, encoder

    def forward(self, observation: Mapping[str, Tensor], state: State) -> tuple[Tensor, State]:
        """Return actions [B, A] in contract units, and the next state."""
        features, state = remember(self.memory, self.see(observation), state)
        return self.scale.to_contract(self.network(features)), state

    def see(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Return an observation's vector with the features of its pictures [B, D]."""
        vector = self.vector(observation) if self.vector.size else None
        return vector if self.encoder is None else beside(vector, self.encoder(observation))

    @property
    def recurrent_state(self) -> tuple[StateField, ...]:
        """The state that goes in and out, as a PolicyCard describes it."""
        size = self.memory.hidden_size if self.memory is not None else 0
        fields = (StateField(name=n, shape=(size,), initial=(0.0,) * size) for n in STATE if size)
        return tuple(fields)

    def initial_state(self, batch: int) -> Arrays:
        """Return the state that an episode begins with: zeros."""
        shapes = {field.name: (batch, *field.shape) for field in self.recurrent_state}
        return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}

    @torch.inference_mode()
    def select(
        self, observation: Mapping[str, Any], state: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, Arrays]:
        """Return float32 actions [B, A] for arrays {field: [B, ...]}, and the next state.

        Raises ContractMismatch where a field is missing or has another shape.
        """
        tensors = self.tensors(observation)
        action, following = self(tensors, self.state_tensors(state or {}))
        return action.cpu().numpy(), _arrays(following)

    def tensors(self, observation: Mapping[str, Any]) -> State:
        """Return the contract's fields of an observation on the policy's device."""
        tensors, device = {}, self.scale.lower.device
        for field in self.contract.observation:
            value = observation.get(field.name)
            if value is None or tuple(np.shape(value)[1:]) != field.full_shape:
                found = 'nothing' if value is None else f'{list(np.shape(value))}'
                raise ContractMismatch(
                    f'observation {field.name}: found {found}, expected a batch of '
                    f'{list(field.full_shape)}'
                )
            dtype = getattr(torch, field.dtype)
            tensors[field.name] = torch.as_tensor(value, dtype=dtype, device=device)
        return tensors

    def state_tensors(self, state: Mapping[str, Any]) -> State:
        """Return a recurrent state on the policy's device."""
        device = self.scale.lower.device
        return {name: torch.as_tensor(value, device=device) for name, value in state.items()}


class Behaviour(nn.Module):
    """A policy with exploration, as it acts in N environments: normal noise around its action.

    The deviation is `sigma` [N], of a range of [-1, 1], or the network's own (`gaussian`) where
    sigma is None. A critic with a memory remembers along: what its memory held at each step is
    stored with the step, and learning starts from there.
    """

    def __init__(self, policy: Policy, sigma: Tensor | None, critic_memory: Memory | None = None):
        super().__init__()
        self.policy, self.critic_memory = policy, critic_memory
        self.register_buffer('sigma', None if sigma is None else sigma[:, None])

    def initial_state(self, batch: int) -> Arrays:
        """Return the state that an episode begins with: that of policy and critic."""
        state = self.policy.initial_state(batch)
        if self.critic_memory is None:
            return state
        return state | {CRITIC + name: value.copy() for name, value in state.items()}

    @torch.inference_mode()
    def select(
        self, observation: Mapping[str, Any], state: Mapping[str, Any], noise: np.ndarray
    ) -> tuple[np.ndarray, Arrays]:
        """Return float32 actions [N, A] in contract units and the next state.

        `noise` [N, A] is drawn from a standard normal by whoever keeps the random state.
        """
        policy, given = self.policy, self.policy.state_tensors(state)
        vector = policy.see(policy.tensors(observation))
        features, following = remember(policy.memory, vector, given)
        if self.sigma is None:
            mean, deviation = policy.network.gaussian(features)
        else:
            mean, deviation = policy.network(features), self.sigma
        action = mean + deviation * torch.as_tensor(noise, device=mean.device)
        _, also = remember(self.critic_memory, vector, given, CRITIC)
        return policy.scale.to_contract(action).cpu().numpy(), _arrays(following | also)


def beside(vector: Tensor | None, features: Tensor) -> Tensor:
    """Return what an encoder makes of pictures [..., F] behind the vector [..., D], if any."""
    return features if vector is None else torch.cat([vector, features], dim=-1)


def remember(
    memory: Memory | None, vector: Tensor, state: State, prefix: str = ''
) -> tuple[Tensor, State]:
    """Return features [B, F] of an observation's vector [B, D], and the next state."""
    if memory is None:
        return vector, {}
    names = [prefix + name for name in STATE]
    features, following = memory.step(vector, tuple(state[name] for name in names))
    return features, dict(zip(names, following, strict=True))


def _arrays(state: State) -> Arrays:
    return {name: value.cpu().numpy() for name, value in state.items()}
