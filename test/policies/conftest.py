"""Small contracts and batches for the tests of the learners."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from robot_rl.policies.agent import Batch
from robot_rl.policies.d4pg import D4PGConfig
from robot_rl.specs import ActionField, Contract, ObservationField

GAINS = ([-0.5, 2.0], [0.5, 6.0])  # lower, upper: neither symmetric nor the same


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
