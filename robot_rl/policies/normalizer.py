"""Fixed statistics of observations, for tasks whose fields differ in unit and size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Beyond this many standard deviations a value carries nothing but its sign.
_CLIP = 10.0
# Of a column that hardly varied: what lies on a table has its height and tilt to a micrometre at
# first, and an agent that moves it would see nothing but +-10. In units of the contract: 1 cm.
_LEAST_STD = 0.01


class Normalizer(nn.Module):
    """(x - mean) / std, cut to +-10: [B, D] -> [B, D]; the identity (but for the cut) until `fit`.

    The statistics are buffers: they are saved with the network and stand in the exported graph.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size: int):
        super().__init__()
        self.register_buffer('mean', torch.zeros(size))
        self.register_buffer('std', torch.ones(size))

    def fit(self, observations: Tensor) -> None:
        """Take mean and standard deviation over `observations` [M, D].

        A column that hardly varies is centred and not blown up: its std is taken as 0.01.
        """
        std, mean = torch.std_mean(observations.double(), dim=0, correction=0)
        self.mean.copy_(mean)
        self.std.copy_(std.clamp(min=_LEAST_STD))

    def forward(self, observation: Tensor) -> Tensor:
        """Return the normalised observation."""
        return ((observation - self.mean) / self.std).clamp(-_CLIP, _CLIP)
