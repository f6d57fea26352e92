"""Networks that read pictures, and the augmentation that they learn with.

M pictures, S steps of history, H height, W width, C colours, F features.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from robot_rl.errors import SpecError
from robot_rl.policies.networks import LayerNormMLP
from robot_rl.specs import Contract, ObservationField

Kind = Literal['conv', 'resnet']
# DrQ-v2's, and those of IMPALA's large network.
CHANNELS: dict[Kind, tuple[int, ...]] = {'conv': (32, 32, 32, 32), 'resnet': (16, 32, 32)}
# DrQ moves pictures of 84 pixels by up to 4.
_SHIFT, _OF_PIXELS = 4, 84


class PictureEncoder(nn.Module):
    """Pictures of a contract {field: [M, (S,) H, W, C] uint8} -> features [M, `size`].

    Each field has a torso of its own: 'conv', the layers of DrQ-v2 (Yarats et al. 2021, arXiv
    2107.09645), or 'resnet', those of IMPALA (Espeholt et al. 2018, figure 3). The steps of a
    history are further colours. Linear, LayerNorm and tanh make `features` of what it gives.

    Raises SpecError for pictures that are too small for the layers.
    """

    def __init__(
        self,
        contract: Contract,
        kind: Kind,
        channels: Sequence[int],
        features: int,
        generator: torch.Generator,
    ):
        super().__init__()
        self._shapes = {field.name: tuple(field.full_shape) for field in contract.pictures}
        self.size = features * len(contract.pictures)
        torso = {'conv': _conv, 'resnet': _resnet}[kind]
        # A list: fields may be called what a module's attributes are.
        self.torsos, self.heads = nn.ModuleList(), nn.ModuleList()
        for field in contract.pictures:
            height, width, colours = field.shape
            layers = torso(field.history * colours, channels or CHANNELS[kind])
            _initialise(layers, generator)
            self.torsos.append(layers)
            flat = _flat_size(layers, field, (field.history * colours, height, width))
            self.heads.append(LayerNormMLP(flat, (features,), generator))

    def forward(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Return the features of all pictures, side by side; other fields are not looked at."""
        parts = [
            head(torso(as_planes(observation[name].reshape(-1, *shape))).flatten(1))
            for (name, shape), torso, head in zip(
                self._shapes.items(), self.torsos, self.heads, strict=True
            )
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def as_planes(pictures: Tensor) -> Tensor:
    """Return uint8 [M, (S,) H, W, C] as float32 [M, S * C, H, W] in [-0.5, 0.5]."""
    if pictures.dim() == 4:
        pictures = pictures[:, None]
    planes = pictures.permute(0, 1, 4, 2, 3).flatten(1, 2)
    return planes.float() / 255 - 0.5


def largest_shift(height: int, width: int) -> int:
    """Return by how many pixels a picture of this size is moved at most."""
    return max(1, round(_SHIFT * min(height, width) / _OF_PIXELS))


def randomly_moved(
    observation: Mapping[str, Tensor], contract: Contract, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return fields [..., B, *full_shape], the pictures of each of B moved in its own way."""
    moved = dict(observation)
    for field in contract.pictures:
        pictures, most = observation[field.name], largest_shift(*field.shape[:2])
        flat = pictures.reshape(-1, *field.full_shape)
        lanes = pictures.shape[-len(field.full_shape) - 1]
        shift = torch.randint(
            -most, most + 1, (2, lanes), generator=generator, device=pictures.device
        ).repeat(1, len(flat) // lanes)
        moved[field.name] = shifted(flat, *shift).view(pictures.shape)
    return moved


def shifted(pictures: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Return pictures [M, (S,) H, W, C] moved by `down` and `right` [M], in whole pixels.

    What comes in at an edge repeats the edge; all steps of a history move alike. It is a crop of
    the padded picture (Kostrikov et al. 2020, Image Augmentation Is All You Need, arXiv
    2004.13649).
    """
    height, width, colours = pictures.shape[-3:]
    row, column = (
        (torch.arange(size, device=pictures.device) - shift[:, None]).clamp(0, size - 1)
        for size, shift in ((height, down), (width, right))
    )
    pixel = (row[:, :, None] * width + column[:, None, :]).flatten(1)
    # One index for a pixel and its colours: one for each dimension takes seven times longer.
    pixels = pictures.reshape(-1, colours)
    first = torch.arange(0, len(pixels), height * width, device=pictures.device)
    index = first.view(len(pictures), -1, 1) + pixel[:, None]
    return pixels.index_select(0, index.flatten()).view(pictures.shape)


class Residual(nn.Module):
    """x + (ReLU, convolution, ReLU, convolution)(x): [M, C, H, W] -> the same."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum."""
        return x + self.second(self.first(x.relu()).relu())


def _conv(colours: int, channels: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(itertools.pairwise((colours, *channels))):
        layers += [nn.Conv2d(before, after, 3, stride=2 if index == 0 else 1), nn.ReLU()]
    return nn.Sequential(*layers)


def _resnet(colours: int, channels: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise((colours, *channels)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.MaxPool2d(3, 2, padding=1)]
        layers += [Residual(after), Residual(after)]
    return nn.Sequential(*layers, nn.ReLU())


def _initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Orthogonal weights with the gain of ReLU and zero biases, as DrQ-v2 has them."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.orthogonal_(layer.weight, nn.init.calculate_gain('relu'), generator=generator)
            nn.init.zeros_(layer.bias)


def _flat_size(torso: nn.Module, field: ObservationField, planes: tuple[int, int, int]) -> int:
    try:
        with torch.no_grad():
            return torso(torch.zeros(1, *planes)).numel()
    except RuntimeError:
        height, width = planes[1:]
        raise SpecError(
            f'observation {field.name}: {height} x {width} pixels are too few for the layers of '
            'learner.encoder_channels; larger pictures or fewer layers are right'
        ) from None
