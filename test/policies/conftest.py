"""Small contracts, learners and batches, and their updates once more: row by row, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from robot_rl.policies.agent import Batch, SequenceBatch
from robot_rl.policies.d4pg import D4PG, D4PGConfig
from robot_rl.policies.mpo import DMPO, MPO
from robot_rl.specs import ActionField, Contract, ObservationField

GAINS = ([-0.5, 2.0], [0.5, 6.0])  # lower, upper: neither symmetric nor the same
MIDDLE, HALF = [0.0, 4.0], [0.5, 2.0]
BURN_IN, LENGTH, N_STEP = 3, 4, 2
AGENTS = {
    'd4pg': (D4PG, {}),
    'ddpg': (D4PG, {'critic': 'scalar'}),
    'mpo': (MPO, {'num_samples': 5}),
    'dmpo': (DMPO, {'num_samples': 5}),
}


@pytest.fixture(autouse=True)
def all_on_one_thread(one_thread: None) -> None:
    """Let every test here compute on one thread."""


@pytest.fixture
def contract() -> Contract:
    lower, upper = GAINS
    return Contract(
        rate_hz=20,
        observation=(
            ObservationField(name='position', source='env.position', shape=(3,)),
            ObservationField(name='height', source='env.height', shape=(), history=2),
        ),
        action=(
            ActionField(name='a', kind='generic', names=('x', 'y'), lower=lower, upper=upper),
        ),
    )


@pytest.fixture
def config() -> D4PGConfig:
    return D4PGConfig(
        batch_size=8,
        policy_layers=(16, 16),
        critic_layers=(16, 16),
        num_atoms=11,
        v_min=-5,
        v_max=5,
        target_update_period=3,
    )


@pytest.fixture
def make(contract: Contract, config: D4PGConfig) -> Callable[..., Any]:
    """Return `make(name, memory=0, seed=0, **changes)`, a small learner of that agent."""
    shared = {
        name: getattr(config, name)
        for name in ('batch_size', 'policy_layers', 'critic_layers', 'num_atoms', 'v_min', 'v_max')
    }

    def make(name: str, memory: int = 0, seed: int = 0, **changes: Any) -> Any:
        agent, options = AGENTS[name]
        options = shared | {'target_update_period': 3, 'n_step': N_STEP} | options
        if memory:
            options |= {'memory': memory, 'burn_in': BURN_IN, 'sequence_length': LENGTH}
        return agent.learner(contract, agent.config.parse(options | changes), seed)

    return make


@pytest.fixture
def batches(contract: Contract) -> Callable[..., Batch]:
    """Return `draw(seed, size=8)`, a batch of random transitions with some terminations."""

    def draw(seed: int, size: int = 8) -> Batch:
        rng = np.random.default_rng(seed)
        observation, following = (
            {
                name: rng.normal(size=(size, *shape)).astype(np.float32)
                for name, shape in contract.observation_shapes.items()
            }
            for _ in range(2)
        )
        action = rng.uniform(*GAINS, size=(size, 2)).astype(np.float32)
        reward = rng.normal(size=size).astype(np.float32)
        discount = rng.choice([0.0, 0.95], size=size).astype(np.float32)
        return Batch(observation, action, reward, discount, following)

    return draw


@pytest.fixture
def sequences(contract: Contract) -> Callable[..., SequenceBatch]:
    """Return `draw(seed, units, size=8)`, random sequences for memories of `units`.

    They have some rows to burn in, some steps to learn from and some weights, as storage.sampler
    makes them.
    """

    def draw(seed: int, units: int, size: int = 8) -> SequenceBatch:
        rng = np.random.default_rng(seed)

        def normal(*shape: int) -> np.ndarray:
            return rng.normal(size=shape).astype(np.float32)

        time, span = np.arange(LENGTH)[:, None], (LENGTH, size)
        valid = time < rng.integers(1, LENGTH + 1, size)
        names = ('hidden', 'cell', 'critic_hidden', 'critic_cell')
        return SequenceBatch(
            observation={
                name: normal(BURN_IN + LENGTH + N_STEP, size, *shape)
                for name, shape in contract.observation_shapes.items()
            },
            real=np.arange(BURN_IN)[:, None] >= rng.integers(0, BURN_IN + 1, size),
            state={name: normal(size, units) for name in names},
            action=np.where(valid[..., None], rng.uniform(*GAINS, (*span, 2)), 0),
            reward=np.where(valid, normal(*span), 0),
            discount=np.where(valid, rng.choice([0.0, 0.95], span), 0),
            following=np.where(valid, rng.integers(1, N_STEP + 1, span), 0),
            valid=valid,
            weight=rng.uniform(0.2, 1, size).astype(np.float32),
        )

    return draw


@pytest.fixture
def draw(batches: Callable, sequences: Callable) -> Callable[..., Batch | SequenceBatch]:
    """Return `draw(learner, seed, size=8)`, transitions or sequences, whichever it learns from."""

    def draw(learner: Any, seed: int, size: int = 8) -> Batch | SequenceBatch:
        units = learner.config.memory
        return sequences(seed, units, size) if units else batches(seed, size)

    return draw


class Row(NamedTuple):
    """A step to learn from; `online` and `target` are the features by (part, 'now' or 'next')."""

    action: Tensor
    reward: float
    discount: float
    weight: float
    valid: float
    online: dict[tuple[str, str], Tensor]
    target: dict[tuple[str, str], Tensor]


@pytest.fixture
def rows_of() -> Callable[[Any, Batch | SequenceBatch], list[Row]]:
    """Return `rows_of(learner, batch)`: its rows in order, each worked out by itself."""
    return lambda learner, batch: (
        list(_from_sequences(learner, batch))
        if isinstance(batch, SequenceBatch)
        else list(_from_transitions(batch))
    )


def _from_transitions(batch: Batch) -> Iterator[Row]:
    now, following = _vectors(batch.observation), _vectors(batch.next_observation)
    for m in range(len(batch.reward)):
        seen = {
            (part, when): vector
            for part in ('policy', 'critic')
            for when, vector in (('now', now[m]), ('next', following[m]))
        }
        weight = 1.0 if batch.weight is None else float(batch.weight[m])
        action, numbers = _unit(batch.action[m]), (batch.reward[m], batch.discount[m])
        yield Row(action, *map(float, numbers), weight, 1.0, seen, seen)


def _from_sequences(learner: Any, batch: SequenceBatch) -> Iterator[Row]:
    vectors, (length, lanes) = _vectors(batch.observation), batch.reward.shape
    views = {
        (networks, part, b): _remembered(networks[f'{part}_memory'], batch, vectors[:, b], b, name)
        for networks in (learner._online, learner._target)
        for part, name in (('policy', ''), ('critic', 'critic_'))
        for b in range(lanes)
    }
    for t in range(length):
        for b in range(lanes):
            now = len(batch.real) + t
            places = {'now': now, 'next': now + int(batch.following[t, b])}
            online, target = (
                {
                    (part, when): views[networks, part, b][place]
                    for part in ('policy', 'critic')
                    for when, place in places.items()
                }
                for networks in (learner._online, learner._target)
            )
            valid = float(batch.valid[t, b]) * length * lanes / batch.valid.sum()
            weight = valid if batch.weight is None else valid * float(batch.weight[b])
            action, numbers = _unit(batch.action[t, b]), (batch.reward[t, b], batch.discount[t, b])
            yield Row(action, *map(float, numbers), weight, float(valid), online, target)


def _remembered(
    memory: Any, batch: SequenceBatch, vectors: Tensor, b: int, prefix: str
) -> dict[int, Tensor]:
    """Go through one sequence step by step; return the features of the rows behind burn-in."""
    state = tuple(torch.from_numpy(batch.state[prefix + name][b]) for name in ('hidden', 'cell'))
    features = {}
    for row, vector in enumerate(vectors):
        if row >= len(batch.real):
            state = _cell(memory, vector, state)
            features[row] = torch.cat([vector, state[0]])
        elif batch.real[row, b]:
            with torch.no_grad():
                state = _cell(memory, vector, state)
    return features


def _cell(memory: Any, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Hochreiter and Schmidhuber 1997 with a gate that forgets, as torch.nn.LSTM orders them."""
    x = memory.embed(x)  # test_networks has the formula
    gates = memory.weight_ih_l0 @ x + memory.weight_hh_l0 @ state[0]
    enter, keep, news, leave = (gates + memory.bias_ih_l0 + memory.bias_hh_l0).split(len(state[0]))
    cell = torch.sigmoid(keep) * state[1] + torch.sigmoid(enter) * torch.tanh(news)
    return torch.sigmoid(leave) * torch.tanh(cell), cell


def _vectors(observation: dict[str, np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate([observation['position'], observation['height']], -1))


def _unit(action: np.ndarray) -> Tensor:
    return torch.from_numpy((action - MIDDLE) / HALF).float()


@pytest.fixture
def shake() -> Callable[..., Any]:
    """Return `shake(learner, scale=0.2)`, which moves its online networks off their targets."""

    def shake(learner: Any, scale: float = 0.2) -> Any:
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in learner._online.parameters():
                parameter += scale * torch.randn(parameter.shape, generator=generator)
        return learner

    return shake


@pytest.fixture
def follows() -> Callable[..., dict[str, Tensor]]:
    """Return `follows(learner, batch, total)`, the metrics of an update that is as written out.

    `total` [] is its loss worked out by hand: gradients by torch.autograd.grad, clipping in
    NumPy's terms, and torch's plain Adam give what the learner's parameters have to be.
    """

    def follows(learner: Any, batch: Any, total: Tensor) -> dict[str, Tensor]:
        config, groups = learner.config, {}
        for name, parameter in learner._online.named_parameters():
            part = name.split('.')[0].removesuffix('_memory').removesuffix('s')
            groups.setdefault(part, []).append(parameter)
        expected = {}
        for part, parameters in groups.items():
            gradients = torch.autograd.grad(total, parameters, retain_graph=True)
            norm = np.sqrt(sum(float(g.double().square().sum()) for g in gradients))
            copies = [p.detach().clone().requires_grad_() for p in parameters]
            for copy, gradient in zip(copies, gradients, strict=True):
                copy.grad = gradient * min(1.0, config.max_gradient_norm / norm)
            rate = getattr(config, f'{part}_learning_rate')
            torch.optim.Adam(copies, lr=rate, fused=False, foreach=False).step()
            expected[part] = norm, copies, rate
        metrics = learner.update(batch)
        for part, (norm, copies, rate) in expected.items():
            np.testing.assert_allclose(metrics[f'{part}_gradient_norm'], norm, rtol=2e-4)
            for found, copy in zip(groups[part], copies, strict=True):
                tolerance = {'rtol': 5e-4, 'atol': 1e-6 * float(copy.grad.abs().max() + 1)}
                torch.testing.assert_close(found.grad, copy.grad, **tolerance)
                torch.testing.assert_close(found.data, copy.data, rtol=1e-5, atol=0.01 * rate)
        return metrics

    return follows
