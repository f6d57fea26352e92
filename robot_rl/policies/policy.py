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
from robot_rl.policies.normalizer import Normalizer
from robot_rl.specs import Contract

State = dict[str, Tensor]


class ObservationVector(nn.Module):
    """Observation fields {name: [B, ...]} -> one vector [B, D], in the contract's order.

    Raises SpecError for a field of pixels: it needs a network of its own.
    """

    def __init__(self, contract: Contract, normalize: bool = False):
        super().__init__()
        for field in contract.observation:
            if field.dtype != 'float32':
                raise SpecError(
                    f'observation {field.name}: dtype {field.dtype} cannot be joined to a vector; '
                    'this agent takes float32 fields'
                )
        self.sizes = [(field.name, field.size) for field in contract.observation]
        self.size = sum(field.size for field in contract.observation)
        self.normalizer = Normalizer(self.size) if normalize else None

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

    `network` maps the vector [B, D] to actions [B, A]; what lies outside [-1, 1] is clipped.
    A feed-forward policy has no state: its dictionaries of states stay empty.
    """

    def __init__(self, contract: Contract, vector: ObservationVector, network: nn.Module):
        super().__init__()
        self.contract = contract
        self.vector, self.network, self.scale = vector, network, ActionScale(contract)

    def forward(self, observation: Mapping[str, Tensor], state: State) -> tuple[Tensor, State]:
        """Return actions [B, A] in contract units, and the next state."""
        return self.scale.to_contract(self.network(self.vector(observation))), state

    def initial_state(self, batch: int) -> State:
        """Return the state that an episode begins with."""
        return {}

    @torch.inference_mode()
    def select(self, observation: Mapping[str, Any], state: Any = None) -> tuple[np.ndarray, Any]:
        """Return float32 actions [B, A] for arrays {field: [B, ...]}, and the next state.

        Raises ContractMismatch where a field is missing or has another shape.
        """
        tensors, device = {}, self.scale.lower.device
        for field in self.contract.observation:
            value = observation.get(field.name)
            if value is None or tuple(np.shape(value)[1:]) != field.full_shape:
                found = 'nothing' if value is None else f'{list(np.shape(value))}'
                raise ContractMismatch(
                    f'observation {field.name}: found {found}, expected a batch of '
                    f'{list(field.full_shape)}'
                )
            tensors[field.name] = torch.as_tensor(value, dtype=torch.float32, device=device)
        action, state = self(tensors, state or {})
        return action.cpu().numpy(), state
