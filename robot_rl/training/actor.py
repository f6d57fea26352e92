"""Actors choose actions with exploration, remember what followed, and let learning happen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from robot_rl.policies.policy import Behaviour
from robot_rl.sim.environment import StepType, TimeStep
from robot_rl.training.replay import Replay

State = dict[str, np.ndarray]


class Actor:
    """Acts in N environments by `behaviour`, whose noise it draws, and fills the replay.

    `learn` is called by update(), as often as the loop wishes.
    """

    def __init__(
        self,
        behaviour: Behaviour,
        replay: Replay,
        learn: Callable[[], None],
        rng: np.random.Generator,
    ):
        self.behaviour, self.rng = behaviour, rng
        self._replay, self._learn = replay, learn
        self._action_size = behaviour.policy.contract.action_size

    def select(
        self, observation: Mapping[str, np.ndarray], state: State
    ) -> tuple[np.ndarray, State, dict[str, Any]]:
        """Return actions [N, A] in contract units, the next state, and extras to remember."""
        lanes = len(next(iter(observation.values())))
        noise = self.rng.standard_normal((lanes, self._action_size), dtype=np.float32)
        action, following = self.behaviour.select(observation, state, noise)
        return action, following, {}

    def observe_first(self, timestep: TimeStep) -> State:
        """Remember the observations that episodes begin with; return the state to act from."""
        state = self.behaviour.initial_state(len(timestep.reward))
        self._replay.add_first(timestep, state)
        return state

    def observe(
        self, action: np.ndarray, extras: Mapping[str, Any], following: TimeStep, state: State
    ) -> State:
        """Remember the actions [N, A] taken in the newest observations and what followed.

        `state` is what select returned with them. Returns the state to go on from: the initial
        one wherever an episode begins.
        """
        del extras
        state = self._restarted(state, following.step_type == StepType.FIRST)
        self._replay.add(action, following, state)
        return state

    def update(self) -> None:
        """Let the learner catch up with what was observed."""
        self._learn()

    def _restarted(self, state: State, first: np.ndarray) -> State:
        """Put the lanes where `first` [N] is true back into the initial state."""
        if not (state and first.any()):
            return state
        fresh = self.behaviour.initial_state(len(first))
        return {
            name: np.where(first.reshape(-1, *[1] * (value.ndim - 1)), fresh[name], value)
            for name, value in state.items()
        }


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
        self._state: State = {}
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
            self._state = self._actor.observe_first(timestep)
        else:
            self._state = self._actor.observe(action, {}, timestep, self._state)
        return timestep
