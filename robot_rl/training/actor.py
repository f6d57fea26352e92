"""Actors choose actions with exploration, remember what followed, and let learning happen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from robot_rl.policies.policy import Policy
from robot_rl.sim.environment import StepType, TimeStep
from robot_rl.training.replay import Replay


class Actor:
    """Acts in N environments by `policy` with Gaussian noise, inside the contract's bounds.

    `sigma` is the noise's deviation where the action's range is [-1, 1] (Acme's D4PG). `learn` is
    called by update(), as often as the loop wishes.
    """

    def __init__(
        self,
        policy: Policy,
        replay: Replay,
        learn: Callable[[], None],
        sigma: float,
        rng: np.random.Generator,
    ):
        self.policy, self.rng = policy, rng
        self._replay, self._learn = replay, learn
        lower, upper = policy.contract.action_lower, policy.contract.action_upper
        self._lower, self._upper = lower.astype(np.float32), upper.astype(np.float32)
        self._deviation = (sigma * (upper - lower) / 2).astype(np.float32)

    def select(
        self, observation: Mapping[str, np.ndarray], state: Any
    ) -> tuple[np.ndarray, Any, dict[str, np.ndarray]]:
        """Return actions [N, A] in contract units, the next state, and extras to remember."""
        action, state = self.policy.select(observation, state)
        noise = self.rng.standard_normal(action.shape, dtype=np.float32)
        return np.clip(action + self._deviation * noise, self._lower, self._upper), state, {}

    def observe_first(self, timestep: TimeStep) -> None:
        """Remember the observations that episodes begin with."""
        self._replay.add_first(timestep)

    def observe(
        self, action: np.ndarray, extras: Mapping[str, np.ndarray], following: TimeStep
    ) -> None:
        """Remember the actions [N, A] taken in the newest observations and what followed."""
        self._replay.add(action, following)

    def update(self) -> None:
        """Let the learner catch up with what was observed."""
        self._learn()


class SingleActor:
    """One environment's view of an Actor, as a loop of single steps is written.

        action = actor.policy(observation)
        ... the environment takes the action ...
        actor.observe(observation, action, reward, discount)
        actor.update()

    and at the end of an episode actor.observe_last(observation).
    """

    def __init__(self, actor: Actor):
        self._actor = actor
        self._state = actor.policy.initial_state(1)
        self._taken: tuple[np.ndarray, float, float] | None = None

    def policy(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return an action [A] for one observation {field: [...]}."""
        timestep = self._arrive(observation, StepType.MID if self._taken else StepType.FIRST)
        action, self._state, _ = self._actor.select(timestep.observation, self._state)
        return action[0]

    def observe(
        self,
        observation: Mapping[str, np.ndarray],
        action: np.ndarray,
        reward: float,
        discount: float,
    ) -> None:
        """Take note of the reward and the discount that followed `action` [A]."""
        self._taken = np.asarray(action)[None], reward, discount

    def observe_last(self, observation: Mapping[str, np.ndarray]) -> None:
        """Take note of the observation that ended the episode."""
        self._arrive(observation, StepType.LAST)
        self._state = self._actor.policy.initial_state(1)

    def update(self) -> None:
        """Let the learner catch up with what was observed."""
        self._actor.update()

    def _arrive(self, observation: Mapping[str, np.ndarray], kind: StepType) -> TimeStep:
        """Remember an observation, and with it the step that led there."""
        action, reward, discount = self._taken or (None, 0.0, 1.0)
        self._taken = None
        timestep = TimeStep(
            np.array([kind], np.int8),
            np.array([reward], np.float32),
            np.array([discount], np.float32),
            {name: np.asarray(value)[None] for name, value in observation.items()},
        )
        if action is None:
            self._actor.observe_first(timestep)
        else:
            self._actor.observe(action, {}, timestep)
        return timestep
