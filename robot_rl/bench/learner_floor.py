"""The floor of an update: its matrix products and nothing else, at its own shapes.

M rows to learn from, B sequences of T steps behind which n more are read, D observation size,
A action size, H memory units, F = D + H features.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from robot_rl.policies.actor_critic import ActorCriticConfig
from robot_rl.policies.mpo import MPOConfig

Product = tuple[Tensor, Tensor, Tensor]  # left, right, and room for the result


class Network(NamedTuple):
    """Weights, each [fan_out, fan_in]: layers on top of each other, and heads on the last one."""

    layers: list[Tensor]
    heads: list[Tensor]


def products(
    config: ActorCriticConfig, observation_size: int, action_size: int, device: str = 'cpu'
) -> list[Product]:
    """Return the operands of every matrix product in one update of D4PG, MPO or DMPO.

    A product reads what the one before it wrote, and passes through one network share its
    weights, so that caches hold what they hold in the update. Products with one vector (the mean
    of a distribution over atoms) are left out.
    """
    tape, gaussian = _Tape(device), isinstance(config, MPOConfig)
    rows, features = config.steps_per_update, observation_size + config.memory
    outputs = config.num_atoms if config.critic == 'categorical' else 1
    policy, target_policy = (
        tape.network([features, *config.policy_layers], [action_size] * (2 if gaussian else 1))
        for _ in range(2)
    )
    critic, target_critic = (
        tape.network([features + action_size, *config.critic_layers], [outputs]) for _ in range(2)
    )
    if config.memory:
        _remember(tape, config, observation_size)
    tape.forward(target_policy, rows)
    if gaussian:
        _judge(tape, config, target_critic)
    else:
        tape.forward(target_critic, rows)
    judged = tape.forward(critic, rows)
    acted = tape.forward(policy, rows)
    if not gaussian:  # dq/da
        tape.backward(critic, tape.forward(critic, rows), weights=False)
    # What is seen needs a gradient where a memory is part of it.
    tape.backward(policy, acted, inputs=config.memory > 0)
    tape.backward(critic, judged, inputs=config.memory > 0)
    return tape.products


class _Tape:
    """Writes down products as they are made up."""

    def __init__(self, device: str):
        self.products: list[Product] = []
        self.device = device

    def random(self, rows: int, columns: int) -> Tensor:
        """Return numbers that stay near 1 however many products they go through."""
        return torch.randn(rows, columns, device=self.device) / math.sqrt(columns)

    def network(self, sizes: Sequence[int], heads: Sequence[int]) -> Network:
        """Return weights from sizes[0] inputs through layers to heads."""
        layers = [self.random(fan_out, fan_in) for fan_in, fan_out in itertools.pairwise(sizes)]
        return Network(layers, [self.random(fan_out, sizes[-1]) for fan_out in heads])

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        """Add one product, and return where its result will be."""
        out = torch.empty(left.shape[0], right.shape[1], device=self.device)
        self.products.append((left, right, out))
        return out

    def repeat(self, start: int, times: int) -> None:
        """Make the products from number `start` on `times` times in all."""
        self.products[start:] = self.products[start:] * times

    def forward(self, network: Network, rows: int) -> list[Tensor]:
        """Pass `rows` through a network; return what each of its layers read, and its heads."""
        seen = [self.random(rows, (network.layers + network.heads)[0].shape[1])]
        for weight in network.layers:
            seen.append(self.product(seen[-1], weight.t()))
        for weight in network.heads:
            self.product(seen[-1], weight.t())
        return seen

    def backward(
        self, network: Network, seen: list[Tensor], weights: bool = True, inputs: bool = True
    ) -> None:
        """Go back: gradients of `weights`, and of each layer's input, the first if `inputs`."""
        *below, last = seen
        for weight in network.heads:
            slope = self.random(len(last), len(weight))
            if weights:
                self.product(slope.t(), last)
            following = self.product(slope, weight)
        for number in reversed(range(len(network.layers))):
            slope = following
            if weights:
                self.product(slope.t(), below[number])
            if number or inputs:
                following = self.product(slope, network.layers[number])


def _judge(tape: _Tape, config: MPOConfig, critic: Network) -> None:
    """Pass the N sampled actions of each row through the target critic, as MPOLearner does."""
    rows, samples = config.steps_per_update, config.num_samples
    if config.execution == 'plain' or tape.device != 'cpu':
        tape.forward(critic, samples * rows)
        return
    start = len(tape.products)
    tape.forward(critic, rows)
    tape.repeat(start, samples)


def _remember(tape: _Tape, config: ActorCriticConfig, observation_size: int) -> None:
    """Read sequences with the memories of policy and critic and with their targets'.

    On a CPU torch.nn.LSTM is one operation of oneDNN, in which no product can be seen. These are
    what the equations ask for, all steps in one product wherever no step waits for another: of
    the embedded observations and of the hidden state [B, H] with weights [4 H, H] each, and on
    the way back of the gates' gradients [B, 4 H] with the same. Nothing asks for the gradient of
    observations or of the state that a sequence starts from.
    """
    lanes, units, steps = config.batch_size, config.memory, config.sequence_length + config.n_step
    for learned in (True, True, False, False):
        embedding = tape.network([observation_size, units], [4 * units])  # its head: the gates
        hidden, from_hidden = tape.random(lanes, units), tape.random(4 * units, units)
        tape.forward(embedding, config.burn_in * lanes)
        start = len(tape.products)
        tape.product(hidden, from_hidden.t())
        tape.repeat(start, config.burn_in)
        seen = tape.forward(embedding, steps * lanes)
        start = len(tape.products)
        tape.product(hidden, from_hidden.t())
        tape.repeat(start, steps)
        if not learned:
            continue
        start = len(tape.products)
        slope = tape.random(lanes, 4 * units)
        tape.product(slope, from_hidden)
        tape.repeat(start, steps - 1)
        slopes, states = (tape.random(steps * lanes, size) for size in (4 * units, units))
        tape.product(slopes.t(), states)
        tape.backward(embedding, seen, inputs=False)
