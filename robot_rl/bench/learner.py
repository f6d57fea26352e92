"""D4PG updates/s on one core, beside the time of the update's own matrix products."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robot_rl.policies.d4pg import D4PGConfig, D4PGLearner
from robot_rl.specs import ActionField, Contract, ObservationField
from robot_rl.storage.sampler import WindowSampler
from robot_rl.storage.steps import ACTION, DISCOUNT, OBSERVATION, REWARD, STEP_TYPE, Steps

# A middling task of the control suite, walker: 24 numbers in, 6 out.
_OBSERVATION, _ACTION = 24, 6
# So short that both sides see the same load of the machine, in updates.
_SLICE = 10
_ROWS = 100_000


def run(seconds: float) -> Iterator[dict[str, Any]]:
    """Yield the update's rate against that of its products, and the share of the sampling.

    The two sides alternate in slices of ten and each keeps the median of its slices.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        config = D4PGConfig()
        learner, sampler = _learner(config), _sampler(config)
        products = _products(config)
        batch = sampler.transitions(config.batch_size)
        update, floor, sampling = _interleaved(
            [
                lambda: learner.update(batch),
                lambda: [torch.mm(left, right, out=out) for left, right, out in products],
                lambda: sampler.transitions(config.batch_size),
            ],
            seconds,
        )
    finally:
        torch.set_num_threads(threads)
    yield _row('d4pg_updates', 1 / update, '1/s', 1 / floor, floor / update)
    yield _row('d4pg_sampling', sampling * 1e3, 'ms', update * 1e3, sampling / update)


def _row(metric: str, value: float, unit: str, reference: float, ratio: float) -> dict[str, Any]:
    numbers = {'value': value, 'reference': reference, 'ratio': ratio}
    numbers = {key: round(number, 4) for key, number in numbers.items()}
    return {'bench': 'learner', 'metric': metric, 'unit': unit} | numbers


def _interleaved(sides: list[Callable[[], Any]], seconds: float) -> list[float]:
    """Return the median seconds of one call of each side, measured in turns."""
    times: list[list[float]] = [[] for _ in sides]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 3:
        for side, taken in zip(sides, times, strict=True):
            side()  # the caches are this side's own when the clock starts
            start = time.perf_counter()
            for _ in range(_SLICE):
                side()
            taken.append((time.perf_counter() - start) / _SLICE)
    return [float(np.median(taken)) for taken in times]


def _products(config: D4PGConfig) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return the operands of every matrix product in one update, with room for each result."""
    policy = [_OBSERVATION, *config.policy_layers, _ACTION]
    critic = [_OBSERVATION + _ACTION, *config.critic_layers, config.num_atoms]
    shapes = [
        *_layers('forward', policy),  # the target policy at o_{t+n}
        *_layers('forward', critic),  # the target critic there
        *_layers('forward', critic),  # the critic's loss ...
        *_layers('weights', critic),
        *_layers('inputs', critic)[1:],  # ... whose inputs need no gradient
        *_layers('forward', policy),  # the policy's loss ...
        *_layers('weights', policy),
        *_layers('inputs', policy)[1:],
        *_layers('forward', critic),  # ... with dq/da
        *_layers('inputs', critic),
    ]
    batch = config.batch_size
    products = []
    for kind, fan_in, fan_out in shapes:
        x, weight, y = (
            torch.randn(size) for size in ((batch, fan_in), (fan_out, fan_in), (batch, fan_out))
        )
        operands = {'forward': (x, weight.t()), 'weights': (y.t(), x), 'inputs': (y, weight)}
        left, right = operands[kind]
        products.append((left, right, torch.empty(left.shape[0], right.shape[1])))
    return products


def _layers(kind: str, sizes: list[int]) -> list[tuple[str, int, int]]:
    return [(kind, fan_in, fan_out) for fan_in, fan_out in itertools.pairwise(sizes)]


def _learner(config: D4PGConfig) -> D4PGLearner:
    contract = Contract(
        rate_hz=40,
        observation=[ObservationField(name='state', source='env.state', shape=(_OBSERVATION,))],
        action=[
            ActionField(
                name='action',
                kind='generic',
                names=[f'a{i}' for i in range(_ACTION)],
                lower=[-1.0] * _ACTION,
                upper=[1.0] * _ACTION,
            )
        ],
    )
    return D4PGLearner(contract, config)


def _sampler(config: D4PGConfig) -> WindowSampler:
    """Return a sampler over episodes of 1000 steps of noise."""
    rng = np.random.default_rng(0)
    kind = np.ones((1, _ROWS), np.int8)
    kind[:, ::1001], kind[:, 1000::1001] = 0, 2
    columns = {
        OBSERVATION + 'state': rng.standard_normal((1, _ROWS, _OBSERVATION), np.float32),
        ACTION: rng.uniform(-1, 1, (1, _ROWS, _ACTION)).astype(np.float32),
        REWARD: rng.uniform(0, 1, (1, _ROWS)).astype(np.float32),
        DISCOUNT: np.ones((1, _ROWS), np.float32),
        STEP_TYPE: kind,
    }
    return WindowSampler(Steps(columns), config.n_step, config.discount)
