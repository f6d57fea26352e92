"""The networks of the control-suite agents, with Acme's shapes and initialisers.

B batch, D input size, A action size, K atoms.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

# Standard deviation of a unit normal that is cut at two standard deviations.
_TRUNCATED_STD = 0.87962566103423978
# A deviation below this makes single transitions dominate a likelihood.
_MIN_STD = 1e-2


def linear(fan_in: int, fan_out: int, generator: torch.Generator) -> nn.Linear:
    """Return Linear with weights U(+-sqrt(3 * 0.333 / fan_out)) and zero bias.

    Acme's `uniform_initializer` (acme/tf/networks/continuous.py).
    """
    layer = nn.Linear(fan_in, fan_out)
    bound = math.sqrt(3 * 0.333 / fan_out)
    nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def scaled_linear(
    fan_in: int, fan_out: int, generator: torch.Generator, scale: float = 1.0
) -> nn.Linear:
    """Return Linear with weights of variance scale / fan_in (truncated normal) and zero bias.

    With scale 1e-4 it is Acme's NearZeroInitializedLinear: actions start near the middle.
    """
    layer = nn.Linear(fan_in, fan_out)
    std = math.sqrt(scale / fan_in) / _TRUNCATED_STD
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


class LayerNormMLP(nn.Sequential):
    """Linear, LayerNorm, tanh, then (Linear, ELU) for each further size: [B, D] -> [B, sizes[-1]].

    The last activation is kept (`activate_final` in Acme): heads follow.
    """

    def __init__(self, input_size: int, sizes: Sequence[int], generator: torch.Generator):
        layers: list[nn.Module] = [
            linear(input_size, sizes[0], generator),
            nn.LayerNorm(sizes[0]),
            nn.Tanh(),
        ]
        for fan_in, fan_out in itertools.pairwise(sizes):
            layers += [linear(fan_in, fan_out, generator), nn.ELU()]
        super().__init__(*layers)


class DeterministicPolicy(nn.Sequential):
    """Observations [B, D] -> actions [B, A] in (-1, 1)."""

    def __init__(
        self,
        input_size: int,
        action_size: int,
        sizes: Sequence[int],
        generator: torch.Generator,
    ):
        super().__init__(
            LayerNormMLP(input_size, sizes, generator),
            scaled_linear(sizes[-1], action_size, generator, scale=1e-4),
            nn.Tanh(),
        )


class GaussianPolicy(nn.Module):
    """Observations [B, D] -> actions [B, A] in (-1, 1): the mean of `distribution`."""

    def __init__(
        self,
        input_size: int,
        action_size: int,
        sizes: Sequence[int],
        generator: torch.Generator,
        initial_std: float = 0.5,
    ):
        super().__init__()
        self.torso = LayerNormMLP(input_size, sizes, generator)
        self.mean = scaled_linear(sizes[-1], action_size, generator, scale=1e-4)
        self.std = scaled_linear(sizes[-1], action_size, generator, scale=1e-4)
        # softplus(0) scales to the initial deviation, as Acme's MultivariateNormalDiagHead does.
        self._scale = initial_std / math.log(2)

    def forward(self, observation: Tensor) -> Tensor:
        """Return the mean action."""
        return self.mean(self.torso(observation)).tanh()

    def distribution(self, observation: Tensor) -> torch.distributions.Normal:
        """Return the action's distribution, independent in each dimension."""
        features = self.torso(observation)
        std = functional.softplus(self.std(features)) * self._scale + _MIN_STD
        return torch.distributions.Normal(self.mean(features).tanh(), std, validate_args=False)


class CategoricalCritic(nn.Module):
    """Observations [B, D], actions [B, A] -> logits [B, K] over returns on `support` [K]."""

    support: Tensor

    def __init__(
        self,
        input_size: int,
        action_size: int,
        sizes: Sequence[int],
        support: Tensor,
        generator: torch.Generator,
    ):
        super().__init__()
        self.torso = LayerNormMLP(input_size + action_size, sizes, generator)
        self.head = scaled_linear(sizes[-1], len(support), generator)
        self.register_buffer('support', support)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """Return the logits of the return's distribution."""
        return self.head(self.torso(torch.cat([observation, action], dim=1)))
