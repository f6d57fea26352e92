"""Actor early stopping: episodes of training end once the agent does what experts do.

Else frames of success fill the agent's side of the discriminator, which then learns to call them
the agent's (Zolna et al. 2020, TRAIL, arXiv 1910.01077).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mujoco
import numpy as np

from robot_rl.imitation.gail import Judged
from robot_rl.sim.environment import Environment, StepType, TimeStep


class StoppingEnvironment:
    """N single environments whose episodes also end by their own score; see sim.environment.

    `make(seed)` returns a single environment, `score(judged)` the score of N steps [N], or None
    as long as there is none. An episode ends, as a truncation, when its score has been above the
    median of its earlier scores for `patience` steps on end. `stopped` counts those that did.
    """

    def __init__(
        self,
        make: Callable[[int], Environment],
        num_envs: int,
        seed: int,
        score: Callable[[Judged], np.ndarray | None],
        patience: int,
    ):
        seeds = np.random.SeedSequence(seed).generate_state(num_envs)
        self._lanes = [make(int(seed)) for seed in seeds]
        self.num_envs, self.contract = num_envs, self._lanes[0].contract
        self.reward_range = self._lanes[0].reward_range
        self.max_steps = self._lanes[0].max_steps
        self.stopped = 0
        self._score, self._patience = score, patience
        self._scores: list[list[float]] = [[] for _ in self._lanes]
        self._above = np.zeros(num_envs, int)
        self._last: TimeStep | None = None

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """The present state as float64 columns '<stream>.<quantity>' -> [N, ...]."""
        rows = [lane.columns for lane in self._lanes]
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    def reset(self, seeds: Sequence[int] | None = None) -> TimeStep:
        """Start N new episodes, from these N episode seeds where given; all FIRST."""
        chosen = [None] * self.num_envs if seeds is None else [[seed] for seed in seeds]
        pairs = zip(self._lanes, chosen, strict=True)
        self._last = _together([lane.reset(seed) for lane, seed in pairs])
        self._forget(self._last.step_type == StepType.FIRST)
        return self._last

    def step(self, action: np.ndarray) -> TimeStep:
        """Take action [N, A] in contract units; see Environment.step."""
        before = self._last
        timestep = _together(
            [
                lane.reset() if ended else lane.step(row[None])
                for lane, row, ended in zip(
                    self._lanes, action, before.step_type == StepType.LAST, strict=True
                )
            ]
        )
        self._forget(timestep.step_type == StepType.FIRST)
        judged = Judged(before.observation, action, timestep.observation, timestep.discount)
        scores = self._score(judged)
        if scores is not None:
            stop = self._is_enough(scores, timestep.step_type) & (
                timestep.step_type == StepType.MID
            )
            self.stopped += int(stop.sum())
            kinds = np.where(stop, StepType.LAST, timestep.step_type).astype(np.int8)
            timestep = timestep._replace(step_type=kinds)
        self._last = timestep
        return timestep

    def scene(self, index: int = 0) -> tuple[mujoco.MjModel, mujoco.MjData]:
        """Return the model and the present state of environment `index`, to be drawn only."""
        return self._lanes[index].scene()

    def close(self) -> None:
        """Release what the environments hold."""
        for lane in self._lanes:
            lane.close()

    def _is_enough(self, scores: np.ndarray, kinds: np.ndarray) -> np.ndarray:
        """Take note of the scores [N] of steps; return whose patience has run out [N] bool."""
        for lane, score in enumerate(scores.tolist()):
            if kinds[lane] == StepType.FIRST:
                continue
            earlier = self._scores[lane]
            above = bool(earlier) and score > np.median(earlier)
            self._above[lane] = self._above[lane] + 1 if above else 0
            earlier.append(score)
        return self._above >= self._patience

    def _forget(self, lanes: np.ndarray) -> None:
        self._above[lanes] = 0
        for lane in np.flatnonzero(lanes):
            self._scores[lane] = []


def _together(timesteps: Sequence[TimeStep]) -> TimeStep:
    """Return the time steps of single environments as one."""
    return TimeStep(
        *(np.concatenate([t[part] for t in timesteps]) for part in range(3)),
        {
            name: np.concatenate([t.observation[name] for t in timesteps])
            for name in timesteps[0].observation
        },
    )
