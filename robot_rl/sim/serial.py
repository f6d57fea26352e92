"""Single environments of another library behind the batched interface, one after the other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from robot_rl.control.observation import History
from robot_rl.errors import ContractMismatch, RobotRLError, SpecError
from robot_rl.sim.cameras import Cameras, Colour, Scene, Sizes, with_view
from robot_rl.sim.environment import HELD_OUT, StepType, TimeStep
from robot_rl.specs import Contract

# In the place of a seed: the episode goes on.
GO_ON = -1


class Step(NamedTuple):
    """What one environment returned last."""

    step_type: int  # a value of StepType
    reward: float
    discount: float
    observation: dict[str, np.ndarray]  # field name -> [*shape]


class SeededEnvironment:
    """N environments whose episodes' seeds are drawn here, from `seed`; see sim.environment.

    Who takes the actions says so in `take`: this process, or several others. As the seeds are
    drawn in one place and in one order, either way gives the same episodes.
    """

    def __init__(self, num_envs: int, contract: Contract, seed: int):
        self.num_envs, self.contract = num_envs, contract
        self._lower, self._upper = contract.action_lower, contract.action_upper
        self._rng = np.random.default_rng(seed)
        self._ended: np.ndarray | None = None  # [N] bool: whose last step was LAST

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """Nothing: most of these tasks have no streams."""
        return {}

    def reset(self, seeds: Sequence[int] | None = None) -> TimeStep:
        """Start N new episodes, from these N episode seeds where given; all FIRST."""
        if seeds is None:
            seeds = self._rng.integers(HELD_OUT, size=self.num_envs)
        if len(seeds) != self.num_envs:
            raise ValueError(f'{len(seeds)} seeds for {self.num_envs} environments')
        action = np.zeros((self.num_envs, len(self._lower)))
        return self._noted(self.take(action, np.asarray(seeds, np.int64)))

    def step(self, action: np.ndarray) -> TimeStep:
        """Take action [N, A] in contract units; see Environment.step."""
        if self._ended is None:
            raise RobotRLError('call reset before the first step')
        action = np.asarray(action, dtype=float)
        if action.shape != (self.num_envs, len(self._lower)):
            raise ContractMismatch(
                f'action: shape {list(action.shape)}, right is '
                f'[{self.num_envs}, {len(self._lower)}]'
            )
        finite = np.isfinite(action).all(axis=1) | self._ended
        if not finite.all():
            raise ContractMismatch(f'action: not finite: {action[~finite][0].tolist()}')
        seeds = np.full(self.num_envs, GO_ON)
        for index in np.flatnonzero(self._ended):
            seeds[index] = self._rng.integers(HELD_OUT)
        action = np.minimum(np.maximum(action, self._lower), self._upper)
        return self._noted(self.take(action, seeds))

    def take(self, action: np.ndarray, seeds: np.ndarray) -> TimeStep:
        """Take actions [N, A] within the bounds; where `seeds` [N] is not GO_ON, begin anew."""
        raise NotImplementedError

    def _noted(self, timestep: TimeStep) -> TimeStep:
        self._ended = timestep.step_type == StepType.LAST
        return timestep


class SerialEnvironment(SeededEnvironment):
    """N single environments in this process.

    A family of tasks says how one of them begins an episode (`_begin`) and takes an action
    (`_advance`), and fills the fields of `contract` by them. `cameras` {name: (height, width)}
    of the models are fields beside those, uint8 [height, width, 3]; so are `constants` {field:
    number}, which say nothing; `history` {field: steps} stacks the last steps of a field. With
    `rate_hz` a decision holds for several steps of the task, whose rewards are added up;
    `max_steps` and `reward_range` are given as of those steps. `marker` is in all pictures.
    Raises what sim.cameras does, and SpecError for a rate that the task's is no multiple of and
    for a marker without pictures.
    """

    def __init__(
        self,
        envs: Sequence[Any],
        contract: Contract,
        seed: int,
        max_steps: int | None,
        reward_range: tuple[float, float] | None,
        cameras: Sizes | None = None,
        history: Mapping[str, int] | None = None,
        constants: Mapping[str, float] | None = None,
        rate_hz: float | None = None,
        marker: Colour | None = None,
    ):
        self._repeats = repeats = _repeats(contract, rate_hz)
        slowed = contract.replace(rate_hz=contract.rate_hz / repeats)
        seen = with_view(slowed, cameras or {}, history or {}, constants or {})
        super().__init__(len(envs), seen, seed)
        self.max_steps = None if max_steps is None else math.ceil(max_steps / repeats)
        self.reward_range = None
        if reward_range is not None:
            low, high = reward_range
            self.reward_range = (repeats * low, repeats * high)
        self._constants = {
            name: np.full((len(envs), 1), value, np.float32)
            for name, value in (constants or {}).items()
        }
        self._envs, self._own = list(envs), contract.observation
        if marker is not None and not cameras:
            raise SpecError('marker: nothing is drawn; cameras={overview: [64, 64]} is right')
        self._cameras = None
        if cameras:
            self._cameras = Cameras(cameras, len(envs), self.scene()[0], marker=marker)
        self._history = History(self.contract)

    def take(self, action: np.ndarray, seeds: np.ndarray) -> TimeStep:
        """Take actions [N, A] within the bounds; where `seeds` [N] is not GO_ON, begin anew."""
        last = [
            self._hold(env, row) if seed == GO_ON else self._begin(env, seed)
            for env, row, seed in zip(self._envs, action, seeds.tolist(), strict=True)
        ]
        # Stacked, and so copied: an environment may fill the same array at every step.
        observation = {
            field.name: np.stack([step.observation[field.name] for step in last]).astype(
                field.dtype
            )
            for field in self._own
        }
        if self._cameras is not None:
            observation |= self._cameras.draw(self.scene)
        observation |= self._constants
        return TimeStep(
            step_type=np.array([step.step_type for step in last], dtype=np.int8),
            reward=np.array([step.reward for step in last], dtype=np.float32),
            discount=np.array([step.discount for step in last], dtype=np.float32),
            observation=self._history.push(observation, seeds != GO_ON),
        )

    def scene(self, index: int = 0) -> Scene:
        """Return the model and the present state of environment `index`, to be drawn only."""
        raise NotImplementedError

    def close(self) -> None:
        """Release the graphics."""
        if self._cameras is not None:
            self._cameras.close()

    def _hold(self, env: Any, action: np.ndarray) -> Step:
        """Take an action for as long as a decision holds, or until the episode ends."""
        reward = 0.0
        for _ in range(self._repeats):
            step = self._advance(env, action)
            reward += step.reward
            if step.step_type == StepType.LAST:
                break
        return step._replace(reward=reward)

    def _begin(self, env: Any, seed: int) -> Step:
        """Start the episode of this seed."""
        raise NotImplementedError

    def _advance(self, env: Any, action: np.ndarray) -> Step:
        """Take an action [A] that lies within the bounds."""
        raise NotImplementedError


def _repeats(contract: Contract, rate_hz: float | None) -> int:
    """Return for how many steps of the task a decision holds. Raises SpecError."""
    if rate_hz is None:
        return 1
    repeats = round(contract.rate_hz / rate_hz)
    if repeats < 1 or not math.isclose(repeats * rate_hz, contract.rate_hz, rel_tol=1e-4):
        raise SpecError(
            f'rate_hz: {rate_hz:g}; the task has {contract.rate_hz:g} steps a second, right is '
            f'that by a whole number, such as {contract.rate_hz / max(repeats, 1):g}'
        )
    return repeats
