"""Discriminators and their losses. B batch, X size of what is judged, l logits: D = sigmoid(l).

D is the probability that a sample is an expert's. Logits say the same and do not round to 1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

RewardForm = Literal['-log(1-D)', 'log D', 'airl']

# Power iterations in which a new layer finds its largest singular value.
_FIRST_ITERATIONS = 100


class SpectralLinear(nn.Linear):
    """A linear layer whose weights are divided by their largest singular value.

    One step of power iteration in each training pass follows the weights (Miyato et al. 2018,
    Spectral normalization for GANs, algorithm 1).
    """

    left: Tensor
    right: Tensor

    def __init__(self, fan_in: int, fan_out: int, generator: torch.Generator):
        super().__init__(fan_in, fan_out)
        _initialise(self, generator)
        self.register_buffer('left', _unit(torch.randn(fan_out, generator=generator)))
        self.register_buffer('right', _unit(torch.randn(fan_in, generator=generator)))
        for _ in range(_FIRST_ITERATIONS):
            self._iterate()

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, fan_out]."""
        if self.training:
            self._iterate()
        # Copies: the next pass must not change what this one's gradient is made of.
        left, right = self.left.clone(), self.right.clone()
        largest = torch.dot(left, self.weight @ right)
        return functional.linear(x, self.weight / largest, self.bias)

    @torch.no_grad()
    def _iterate(self) -> None:
        self.right.copy_(_unit(self.weight.T @ self.left))
        self.left.copy_(_unit(self.weight @ self.right))


class Dropout(nn.Module):
    """Dropout that draws from `generator`: runs of one seed drop the same."""

    def __init__(self, probability: float, generator: torch.Generator):
        super().__init__()
        self._keep, self._generator = 1 - probability, generator

    def forward(self, x: Tensor) -> Tensor:
        """Return x [B, X] with some of it 0, and the rest larger."""
        if not self.training or self._keep == 1:
            return x
        drawn = torch.rand(x.shape, generator=self._generator, device=x.device)
        return x * (drawn < self._keep) / self._keep


class Discriminator(nn.Sequential):
    """Samples [B, X] -> logits [B, 1], above 0 where they look like an expert's.

    Linear and ReLU for each of `sizes`, and a last linear layer. `weights` draws the initial
    weights, `drops` what is dropped out.
    """

    def __init__(
        self,
        input_size: int,
        sizes: Sequence[int],
        weights: torch.Generator,
        drops: torch.Generator,
        spectral_norm: bool = True,
        input_dropout: float = 0.0,
        dropout: float = 0.0,
    ):
        def linear(fan_in: int, fan_out: int) -> nn.Linear:
            if spectral_norm:
                return SpectralLinear(fan_in, fan_out, weights)
            return _initialise(nn.Linear(fan_in, fan_out), weights)

        layers: list[nn.Module] = [Dropout(input_dropout, drops)]
        widths = [input_size, *sizes]
        for fan_in, fan_out in itertools.pairwise(widths):
            layers += [linear(fan_in, fan_out), nn.ReLU(), Dropout(dropout, drops)]
        super().__init__(*layers, linear(widths[-1], 1))


def expert_loss(logits: Tensor) -> Tensor:
    """Return -log D for each sample of an expert [B]."""
    return functional.softplus(-logits)


def agent_loss(logits: Tensor) -> Tensor:
    """Return -log(1 - D) for each sample of an agent [B]."""
    return functional.softplus(logits)


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy of a Bernoulli variable with probability D [B], in nats.

    Ho and Ermon 2016 (GAIL, arXiv 1606.03476) reward it: policyopt/imitation.py.
    """
    return functional.softplus(-logits) + (1 - logits.sigmoid()) * logits


def gradient_penalty(
    discriminator: nn.Module, expert: Tensor, agent: Tensor, share: Tensor, target: float = 1.0
) -> Tensor:
    """Return the mean of (|dl/dx| - target)^2 at x = share expert + (1 - share) agent -> [].

    `expert` and `agent` [B, X], `share` [B, 1] uniform in [0, 1].
    Source: Gulrajani et al. 2017, Improved training of Wasserstein GANs, section 4; for GAIL
    Kostrikov et al. 2019 (DAC, arXiv 1809.02925).
    """
    between = (share * expert + (1 - share) * agent).detach().requires_grad_()
    logits = discriminator(between)
    (gradient,) = torch.autograd.grad(logits.sum(), between, create_graph=True)
    return (torch.linalg.vector_norm(gradient, dim=1) - target).square().mean()


def reward_of(logits: Tensor, form: RewardForm, limit: float) -> Tensor:
    """Return the reward of each sample [B], within +-limit.

    -log(1-D) >= 0 (Ho and Ermon 2016), log D <= 0, or log D - log(1-D), which is the logit
    (AIRL, Fu et al. 2018, arXiv 1710.11248).
    """
    if form == '-log(1-D)':
        reward = functional.softplus(logits)
    elif form == 'log D':
        reward = -functional.softplus(-logits)
    else:
        reward = logits
    return reward.clamp(-limit, limit)


def reward_bounds(form: RewardForm, limit: float) -> tuple[float, float]:
    """Return the lowest and the highest reward that `reward_of` gives."""
    return {'-log(1-D)': (0.0, limit), 'log D': (-limit, 0.0), 'airl': (-limit, limit)}[form]


def _initialise(layer: nn.Linear, generator: torch.Generator) -> nn.Linear:
    """Draw the weights of Glorot and Bengio 2010; the bias is 0."""
    bound = math.sqrt(6 / sum(layer.weight.shape))
    nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def _unit(x: Tensor) -> Tensor:
    return x / torch.linalg.vector_norm(x).clamp(min=1e-12)
