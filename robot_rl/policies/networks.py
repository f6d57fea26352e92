"""The networks of the control-suite agents, with Acme's shapes and initialisers.

B batch, T time, D input size, F feature size, H memory units, A action size, K atoms.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from robot_rl.policies import losses

# Standard deviation of a unit normal that is cut at two standard deviations.
_TRUNCATED_STD = 0.87962566103423978

State = tuple[Tensor, Tensor]  # an LSTM's hidden and cell state, each [B, H]


class Linear(nn.Linear):
    """As torch's; a compiled graph adds the bias in the kernel that reads the sum next."""

    def forward(self, input: Tensor) -> Tensor:
        """Return input [..., fan_in] times the weights, plus the bias: [..., fan_out]."""
        if torch.compiler.is_dynamo_compiling():
            return input @ self.weight.t() + self.bias
        return super().forward(input)


def linear(fan_in: int, fan_out: int, generator: torch.Generator) -> nn.Linear:
    """Return Linear with weights U(+-sqrt(3 * 0.333 / fan_out)) and zero bias.

    Acme's `uniform_initializer` (acme/tf/networks/continuous.py).
    """
    layer = Linear(fan_in, fan_out)
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
    layer = Linear(fan_in, fan_out)
    std = math.sqrt(scale / fan_in) / _TRUNCATED_STD
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


class Tanh(nn.Module):
    """tanh(x) as 2 sigmoid(2 x) - 1: the same to 1e-7, and on a CPU in a third of the time."""

    def forward(self, x: Tensor) -> Tensor:
        """Return tanh(x)."""
        return (2 * x).sigmoid() * 2 - 1


class LayerNormMLP(nn.Sequential):
    """Linear, LayerNorm, tanh, then (Linear, ELU) for each further size: [B, F] -> [B, sizes[-1]].

    The last activation is kept (`activate_final` in Acme): heads follow.
    """

    def __init__(self, input_size: int, sizes: Sequence[int], generator: torch.Generator):
        layers: list[nn.Module] = [
            linear(input_size, sizes[0], generator),
            nn.LayerNorm(sizes[0]),
            Tanh(),
        ]
        for fan_in, fan_out in itertools.pairwise(sizes):
            layers += [linear(fan_in, fan_out, generator), nn.ELU()]
        super().__init__(*layers)

    def as_usually_written(self) -> None:
        """Take torch's own tanh: the same function, with nothing done for speed."""
        self[2] = nn.Tanh()


class Memory(nn.LSTM):
    """What has been seen so far, beside what is seen now: [D] -> features [F = D + H].

    An LSTM reads the observations, embedded by Linear, LayerNorm, tanh so that their units do not
    drive its gates to the ends. Its output is put beside each observation: a network on the
    features has all that a feed-forward one has.
    """

    def __init__(self, input_size: int, units: int, generator: torch.Generator):
        super().__init__(units, units)
        self.feature_size = input_size + units
        bound = 1 / math.sqrt(units)
        for name, parameter in self.named_parameters():
            if 'weight' in name:
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
            else:
                nn.init.zeros_(parameter)
        with torch.no_grad():  # what is in the cell stays there until learning says otherwise
            self.bias_ih_l0[units : 2 * units].fill_(1.0)
        self.embed = LayerNormMLP(input_size, (units,), generator)

    def step(self, observation: Tensor, state: State) -> tuple[Tensor, State]:
        """Read one observation [B, D]; return features [B, F] and the next state.

        Written out: a graph of plain operations is what ONNX takes everywhere.
        """
        state = self._next(self._read(observation), state)
        return torch.cat([observation, state[0]], dim=1), state

    def unroll(self, observation: Tensor, state: State) -> Tensor:
        """Read observations [T, B, D] one after another; return features [T, B, F]."""
        hidden, _ = self(self.embed(observation), (state[0][None], state[1][None]))
        return torch.cat([observation, hidden], dim=2)

    @torch.no_grad()
    def burn_in(self, observation: Tensor, real: Tensor, state: State) -> State:
        """Read observations [T, B, D], but not those where `real` [T, B] is False.

        Returns the state to unroll from; no gradient flows (Kapturowski et al. 2019, R2D2).
        """
        for read, valid in zip(self._read(observation), real, strict=True):
            state = tuple(
                torch.where(valid[:, None], new, old)
                for new, old in zip(self._next(read, state), state, strict=True)
            )
        return state

    def _read(self, observation: Tensor) -> Tensor:
        """Return what observations [..., D] alone give to the gates [..., 4 H]."""
        return functional.linear(self.embed(observation), self.weight_ih_l0, self.bias_ih_l0)

    def _next(self, read: Tensor, state: State) -> State:
        """Return the state after one step that gave `read` [B, 4 H] to the gates."""
        hidden, cell = state
        gates = read + functional.linear(hidden, self.weight_hh_l0, self.bias_hh_l0)
        enter, keep, news, leave = gates.chunk(4, dim=1)
        cell = keep.sigmoid() * cell + enter.sigmoid() * news.tanh()
        return leave.sigmoid() * cell.tanh(), cell


class DeterministicPolicy(nn.Sequential):
    """Features [B, F] -> actions [B, A] in (-1, 1): the tanh of what `unsquashed` gives."""

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

    def unsquashed(self, features: Tensor) -> Tensor:
        """Return what the action [B, A] is the tanh of."""
        return self[1](self[0](features))


class GaussianPolicy(nn.Module):
    """Features [B, F] -> actions [B, A], the mean of a normal that is diagonal in A.

    `squash` keeps the mean in (-1, 1) by tanh. The deviation starts at `initial_std` and stays
    above `min_std`. Acme's MultivariateNormalDiagHead (acme/tf/networks/distributional.py).
    """

    def __init__(
        self,
        input_size: int,
        action_size: int,
        sizes: Sequence[int],
        generator: torch.Generator,
        initial_std: float = 0.5,
        min_std: float = 1e-6,
        squash: bool = False,
    ):
        super().__init__()
        self.torso = LayerNormMLP(input_size, sizes, generator)
        self.mean = scaled_linear(sizes[-1], action_size, generator, scale=1e-4)
        self.std = scaled_linear(sizes[-1], action_size, generator, scale=1e-4)
        self._min_std, self._squash = min_std, squash
        self._scale = initial_std / math.log(2)  # softplus(0) is log 2

    def forward(self, features: Tensor) -> Tensor:
        """Return the mean action."""
        return self._mean_of(self.torso(features))

    def gaussian(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation, each [B, A]."""
        hidden = self.torso(features)
        std = functional.softplus(self.std(hidden)) * self._scale + self._min_std
        return self._mean_of(hidden), std

    def _mean_of(self, hidden: Tensor) -> Tensor:
        mean = self.mean(hidden)
        return mean.tanh() if self._squash else mean


class MixturePolicy(nn.Module):
    """Features [B, F] -> actions [B, A], the mean of the likeliest of K diagonal normals.

    Means lie in (-1, 1), deviations start at `initial_std` and stay above `min_std`. As
    robomimic's GMM head (robomimic/models/policy_nets.py), which draws one of the modes.
    """

    def __init__(
        self,
        input_size: int,
        action_size: int,
        sizes: Sequence[int],
        generator: torch.Generator,
        modes: int,
        initial_std: float = 0.5,
        min_std: float = 1e-2,
    ):
        super().__init__()
        self.torso = LayerNormMLP(input_size, sizes, generator)
        self.logits = scaled_linear(sizes[-1], modes, generator, scale=1e-4)
        # Of scale 1: modes that begin alike would learn alike.
        self.mean = scaled_linear(sizes[-1], modes * action_size, generator)
        self.std = scaled_linear(sizes[-1], modes * action_size, generator, scale=1e-4)
        self._shape, self._min_std = (modes, action_size), min_std
        self._scale = initial_std / math.log(2)  # softplus(0) is log 2

    def forward(self, features: Tensor) -> Tensor:
        """Return the mean action of the likeliest mode."""
        logits, mean, _ = self.mixture(features)
        likeliest = logits.argmax(dim=1)[:, None, None].expand(-1, 1, self._shape[1])
        return mean.gather(1, likeliest).squeeze(dim=1)

    def mixture(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits [B, K], and means and deviations [B, K, A]."""
        hidden = self.torso(features)
        mean = self.mean(hidden).tanh().unflatten(1, self._shape)
        std = functional.softplus(self.std(hidden)) * self._scale + self._min_std
        return self.logits(hidden), mean, std.unflatten(1, self._shape)


class _Critic(nn.Module):
    """Features [B, F], actions [B, A] -> outputs [B, K]: a torso on both, and a linear head."""

    def __init__(
        self,
        input_size: int,
        action_size: int,
        sizes: Sequence[int],
        generator: torch.Generator,
        outputs: int,
        head_scale: float = 1.0,
    ):
        super().__init__()
        self.torso = LayerNormMLP(input_size + action_size, sizes, generator)
        self.head = scaled_linear(sizes[-1], outputs, generator, head_scale)

    def forward(self, features: Tensor, action: Tensor) -> Tensor:
        """Return the outputs, which `belief` and `loss` know how to read."""
        return self.head(self.torso(torch.cat([features, action], dim=1)))


class CategoricalCritic(_Critic):
    """Features [B, F], actions [B, A] -> logits [B, K] over returns on `support` [K].

    What a critic believes of a return (`belief`) is for this one the probabilities [B, K].
    """

    support: Tensor

    def __init__(
        self,
        input_size: int,
        action_size: int,
        sizes: Sequence[int],
        generator: torch.Generator,
        support: Tensor,
    ):
        super().__init__(input_size, action_size, sizes, generator, len(support))
        self.register_buffer('support', support)

    def belief(self, logits: Tensor) -> Tensor:
        """Return the probabilities [B, K]; a mean of them is the belief about a mixture."""
        return logits.softmax(dim=1)

    def value(self, belief: Tensor) -> Tensor:
        """Return the expected return [B]."""
        return belief @ self.support

    def target(self, reward: Tensor, discount: Tensor, next_belief: Tensor) -> Tensor:
        """Return the distribution [B, K] that n rewards [B] and what follows them make likely."""
        return losses.categorical_target(self.support, reward, discount, next_belief)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the cross-entropy [B]."""
        return functional.cross_entropy(logits, target, reduction='none')

    def surprise(self, loss: Tensor, target: Tensor) -> Tensor:
        """Return KL(target | belief) [B], the part of `loss` [B] that learning can take away."""
        return (loss - torch.special.entr(target).sum(dim=1)).clamp(min=0)

    def edges(self, target: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """Return the mean probability [] at either end of the support; `weight` [B] has mean 1."""
        low, high = (weight * target[:, end] for end in (0, -1))
        return {'mass_at_v_min': low.mean(), 'mass_at_v_max': high.mean()}


class ScalarCritic(_Critic):
    """Features [B, F], actions [B, A] -> values [B, 1]; the interface of CategoricalCritic."""

    def __init__(
        self,
        input_size: int,
        action_size: int,
        sizes: Sequence[int],
        generator: torch.Generator,
    ):
        # Acme's TruncatedNormal(0.01) for 256 units (acme/agents/jax/mpo/networks.py).
        super().__init__(input_size, action_size, sizes, generator, outputs=1, head_scale=0.02)

    def belief(self, values: Tensor) -> Tensor:
        """Return the values [B, 1] as they are."""
        return values

    def value(self, belief: Tensor) -> Tensor:
        """Return the values [B]."""
        return belief.squeeze(dim=1)

    @torch.no_grad()
    def target(self, reward: Tensor, discount: Tensor, next_belief: Tensor) -> Tensor:
        """Return the n-step target [B]."""
        return reward + discount * self.value(next_belief)

    def loss(self, values: Tensor, target: Tensor) -> Tensor:
        """Return half of the squared error [B]."""
        return 0.5 * (values.squeeze(dim=1) - target).square()

    def surprise(self, loss: Tensor, target: Tensor) -> Tensor:
        """Return the error's size [B]."""
        return (2 * loss).sqrt()

    def edges(self, target: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """Return nothing: there is no support."""
        return {}
