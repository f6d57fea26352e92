"""A small contract, adversarial learners on it, and steps for them to judge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from robot_rl.imitation.gail import GAIL, GAIL_DMPO, Judged
from robot_rl.imitation.trail import TRAIL
from robot_rl.specs import ActionField, Contract, ObservationField

LOWER, UPPER = np.array([-2.0, 1.0]), np.array([6.0, 2.0])
ADVERSARIES = {'gail': GAIL, 'gail_dmpo': GAIL_DMPO, 'trail': TRAIL}


@pytest.fixture
def contract() -> Contract:
    bounds = {'lower': tuple(LOWER), 'upper': tuple(UPPER)}
    return Contract(
        rate_hz=10,
        observation=(
            ObservationField(name='x', source='env.x', shape=(2,)),
            ObservationField(name='y', source='env.y', shape=()),
        ),
        action=(ActionField(name='a', kind='generic', names=('a', 'b'), **bounds),),
    )


@pytest.fixture
def make(contract: Contract, one_thread: None) -> Callable[..., Any]:
    """Return `make(name='gail', seed=0, **changes)`, a small adversarial learner."""

    def build(name: str = 'gail', seed: int = 0, **changes: Any) -> Any:
        small = {
            'reward': '-log(1-D)',
            'policy_layers': (8,),
            'critic_layers': (8,),
            'discriminator_layers': (6, 5),
            'batch_size': 8,
            'num_atoms': 11,
            'v_min': -30,
            'v_max': 30,
        }
        agent = ADVERSARIES[name]
        return agent.learner(contract, agent.config.parse(small | changes), seed)

    return build


@pytest.fixture
def steps() -> Callable[..., Judged]:
    """Return `draw(seed, size=12, at=0, ends=0)`: steps around `at`, of which `ends` terminate."""

    def draw(seed: int, size: int = 12, at: float = 0.0, ends: int = 0) -> Judged:
        rng = np.random.default_rng(seed)
        now, following = (
            {
                'x': (at + rng.normal(size=(size, 2))).astype(np.float32),
                'y': (at + rng.normal(size=size)).astype(np.float32),
            }
            for _ in range(2)
        )
        action = rng.uniform(LOWER, UPPER, (size, 2)).astype(np.float32)
        return Judged(now, action, following, (np.arange(size) >= ends).astype(np.float32))

    return draw
