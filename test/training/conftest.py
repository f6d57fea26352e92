"""A tiny environment in NumPy, and runs of it that take a second."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from robot_rl import registry
from robot_rl.sim.environment import HELD_OUT, StepType, TimeStep
from robot_rl.specs import ActionField, Contract, ObservationField
from robot_rl.training.config import RunConfig

CONTRACT = Contract(
    rate_hz=10,
    observation=[
        ObservationField(name='position', source='env.position', shape=(1,)),
        ObservationField(name='clock', source='env.clock', shape=()),
    ],
    action=[ActionField(name='push', kind='generic', names=['x'], lower=[-0.5], upper=[1.5])],
)


class Line:
    """A point on a line: pushed by action - 0.5, paid for being near 0.

    Terminates beyond 2.05 (discount 0) and is truncated after 12 steps. An episode's seed is its
    starting point: -0.5 + (seed % 11) / 10.
    """

    reward_range = (0.0, 1.0)
    columns: dict = {}  # noqa: RUF012

    def __init__(self, num_envs: int = 1, seed: int = 0):
        self.contract, self.num_envs, self.max_steps = CONTRACT, num_envs, 12
        self.rng, self.seeds_drawn, self.closed = np.random.default_rng(seed), [], False
        self.x, self.t = np.zeros(num_envs), np.zeros(num_envs, int)
        self.ended = np.ones(num_envs, bool)

    def reset(self, seeds: Sequence[int] | None = None) -> TimeStep:
        self.ended[:] = True
        if seeds is None:
            seeds = self.rng.integers(HELD_OUT, size=self.num_envs)
        return self._begin(np.ones(self.num_envs, bool), seeds)

    def step(self, action: np.ndarray) -> TimeStep:
        first = self.ended.copy()
        assert action.shape == (self.num_envs, 1)
        self.x = np.where(first, self.x, self.x + 0.4 * (action[:, 0] - 0.5))
        self.t = self.t + 1
        if first.any():
            return self._begin(first, self.rng.integers(HELD_OUT, size=self.num_envs))
        return self._timestep(first)

    def close(self) -> None:
        self.closed = True

    def _begin(self, lanes: np.ndarray, seeds: Sequence[int]) -> TimeStep:
        self.seeds_drawn += [int(seed) for seed in np.asarray(seeds)[lanes]]
        self.x = np.where(lanes, -0.5 + np.asarray(seeds) % 11 / 10, self.x)
        self.t = np.where(lanes, 0, self.t)
        return self._timestep(lanes)

    def _timestep(self, first: np.ndarray) -> TimeStep:
        out = np.abs(self.x) > 2.05
        self.ended = ~first & (out | (self.t >= self.max_steps))
        kind = np.where(first, StepType.FIRST, np.where(self.ended, StepType.LAST, StepType.MID))
        return TimeStep(
            kind.astype(np.int8),
            np.where(first, 0, np.exp(-np.abs(self.x))).astype(np.float32),
            np.where(out & ~first, 0, 1).astype(np.float32),
            {
                'position': self.x[:, None].astype(np.float32),
                'clock': (self.t / 12).astype(np.float32),
            },
        )


@pytest.fixture(autouse=True)
def all_on_one_thread(one_thread: None) -> None:
    """Let every test here compute on one thread."""


@pytest.fixture
def line() -> type[Line]:
    return Line


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[Line]:
    """Stand in for the registry's environments; the list holds all that were made."""
    made: list[Line] = []

    def make_environment(
        task: str, num_envs: int = 1, seed: int = 0, changes: tuple = (), rate_hz: float = 0
    ) -> Line:
        assert task == 'suite/line'
        made.append(Line(num_envs, seed))
        assert rate_hz in (0, made[-1].contract.rate_hz)  # whoever runs a policy says its rate
        return made[-1]

    monkeypatch.setattr(registry, 'make_environment', make_environment)
    return made


@pytest.fixture
def run_config() -> Callable[..., RunConfig]:
    """Return `build(steps=..., learner={...}, training={...})`: a run that takes a second."""

    def build(learner: dict | None = None, training: dict | None = None, **options) -> RunConfig:
        small = {
            'batch_size': 16,
            'n_step': 3,
            'samples_per_insert': 4,
            'min_replay_size': 40,
            'replay_size': 300,
            'policy_layers': [16, 16],
            'critic_layers': [16, 16],
            'num_atoms': 11,
            'v_min': 0,
            'v_max': 100,
        }
        often = {'evaluate_every': 100, 'evaluation_episodes': 3, 'checkpoint_every': 150}
        return RunConfig.parse(
            {'task': 'suite/line', 'steps': 300}
            | options
            | {'learner': small | (learner or {}), 'training': often | (training or {})}
        )

    return build


@pytest.fixture
def live() -> Callable[..., None]:
    """Return `live(state, environment, steps)`: act, remember and learn, as the loop does."""

    def go_on(state: Any, environment: Any, steps: int) -> None:
        timestep = environment.reset()
        memory = state.actor.observe_first(timestep)
        for _ in range(steps):
            action, memory, extras = state.actor.select(timestep.observation, memory)
            timestep = environment.step(action)
            memory = state.actor.observe(action, extras, timestep, memory)
            state.actor.update()

    return go_on


class Board:
    def __init__(self, *args: Any, **options: Any):
        pass

    def add_scalar(self, *args: Any) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def no_board(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave TensorBoard out, whose import takes seconds."""
    monkeypatch.setattr('torch.utils.tensorboard.SummaryWriter', Board, raising=False)
