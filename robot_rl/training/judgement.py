"""What an adversarial learner judges: steps of experts and of the agent, and every reward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from robot_rl.errors import StorageError
from robot_rl.imitation.gail import Adversarial, Judged, require_fixed_horizon
from robot_rl.storage.sampler import Transitions, Windows, WindowSampler, observed
from robot_rl.storage.steps import ACTION, DISCOUNT, FIRST, LAST, REWARD, STEP_TYPE, Steps

Take = Callable[[str, np.ndarray], Any]


class Judgement:
    """Shows `learner` steps of `experts` and of the `agent`'s replay, drawn by `rng`.

    Both are Steps with the `take` of a WindowSampler. Raises RobotRLError where the learner
    needs a fixed horizon and an expert's episode terminates.
    """

    def __init__(
        self,
        learner: Adversarial,
        agent: tuple[Steps, Take],
        experts: tuple[Steps, Take],
        rng: np.random.Generator,
    ):
        self._learner, self._rng = learner, rng
        self._agent, self._experts = (
            WindowSampler(steps, 1, learner.config.discount, rng, take=take)
            for steps, take in (agent, experts)
        )
        require_fixed_horizon(learner, _discounts(experts[0]), 'episodes of the demonstrations')

    def update(self) -> dict[str, Tensor]:
        """Let the learner judge once; return its metrics."""
        learner, size = self._learner, self._learner.config.discriminator_batch_size
        sides = self._experts, self._agent
        expert, agent = (_judged(side.transitions(size)) for side in sides)
        require_fixed_horizon(learner, np.asarray(agent.discount), "the task's episodes")
        early = None
        if learner.early_frames:
            early = tuple(_judged(early_steps(side, learner.early_frames, size)) for side in sides)
        return learner.judge(expert, agent, early)


def rewards_by(
    learner: Adversarial, steps: Steps, take: Take
) -> Callable[[np.ndarray], np.ndarray]:
    """Return what a WindowSampler asks for rewards [...] of flat rows [...]: what is just now.

    That is the discriminator's and, as much of it as the learner wants, the task's: r = r_D + w r
    (Zhu et al. 2018, Reinforcement and imitation learning for diverse visuomotor skills, arXiv
    1802.09564, section III-B, but for the scale).
    """
    weight = learner.config.task_reward

    def rewards(rows: np.ndarray) -> np.ndarray:
        flat = rows.reshape(-1)
        following = steps.following(flat)
        now, then = (observed(steps, take, r) for r in (flat, following))
        judged = Judged(now, take(ACTION, flat), then, steps.flat[DISCOUNT][flat])
        paid = learner.reward(judged).cpu().numpy()
        if weight:
            paid = paid + weight * steps.flat[REWARD][flat]
        return paid.reshape(rows.shape)

    return rewards


def early_steps(sampler: WindowSampler, frames: int, size: int) -> Transitions:
    """Return `size` steps among the first `frames` of episodes; `sampler` is of single steps.

    Raises StorageError where no episode begins.
    """
    steps, rng, types = sampler.steps, sampler.rng, sampler.steps.flat[STEP_TYPE]
    lane, age = steps.places(np.flatnonzero(types == FIRST))
    begins = np.flatnonzero(age < steps.size)  # in a ring that is not full the rest is no step's
    begins = begins[rng.integers(len(begins), size=size)] if len(begins) else begins
    # Behind the end of an episode shorter than that come the first frames of the next one.
    lane, age = lane[begins], age[begins] + rng.integers(frames, size=len(begins))
    rows = steps.rows(lane, np.minimum(age, steps.size - 1))
    # What FIRST follows is the last row of its episode, or the one before a cut: no step.
    good = (age + 1 < steps.size) & (types[steps.following(rows)] != FIRST)
    if not good.any():
        raise StorageError(
            f'the first {frames} frames of episodes: none of them begins among {steps.size} rows; '
            'a replay_size that holds whole episodes is right'
        )
    windows = Windows(lane, age, np.ones(len(lane), np.int64))
    return sampler.gather(Windows(*(np.resize(column[good], size) for column in windows)))


def _judged(batch: Transitions) -> Judged:
    return Judged(batch.observation, batch.action, batch.next_observation, batch.discount)


def _discounts(steps: Steps) -> np.ndarray:
    """Return the discounts of all steps [M]; a LAST row has none."""
    return steps.flat[DISCOUNT][steps.flat[STEP_TYPE] != LAST]
