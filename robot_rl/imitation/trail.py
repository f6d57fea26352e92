"""TRAIL: GAIL whose discriminator must not tell experts from the agent before the task begins.

Zolna et al. 2020, Task-relevant adversarial imitation learning (arXiv 1910.01077), on D4PG. What
differs between the first frames of an expert's and of the agent's episodes (who holds the arm,
how the light falls) has nothing to do with the task. Where the discriminator is right about those
frames more often than by chance, its gradient on them is reversed.
"""

from __future__ import annotations

from typing import Literal

import pydantic
import torch
from torch import Tensor

from robot_rl.imitation import discriminator as d
from robot_rl.imitation.gail import Adversarial, GAILConfig, Judged
from robot_rl.policies.agent import Agent
from robot_rl.policies.d4pg import D4PGLearner

_CHANCE = 0.5


class TRAILConfig(GAILConfig):
    """What TRAIL lets one choose, beside GAIL's."""

    judges: Literal['observation_action', 'observation', 'transition'] = 'observation'
    """o_t and a_t; o_{t+1} alone; or o_t and o_{t+1}"""
    constraint_frames: pydantic.PositiveInt = 10
    """steps at the start of each episode, of experts and agent, that make the constraining sets"""
    constraint_weight: pydantic.NonNegativeFloat = 1.0
    """of the reversed gradient"""
    constraint_threshold: Literal['half', 'middle'] = 'half'
    """where D tells the constraining sets apart: at 1/2; or where it would best, between both"""
    patience: pydantic.NonNegativeInt = 10
    """an episode of training ends when D has been above its median for so many steps; 0: never"""


class Constrained(Adversarial):
    """A discriminator that is held to chance on the first frames of episodes."""

    @property
    def early_frames(self) -> int:
        """How many steps at the start of episodes `judge` wants to be shown apart."""
        return self.config.constraint_frames

    def _constraint(
        self, early: tuple[Judged, Judged] | None
    ) -> tuple[Tensor | float, dict[str, Tensor]]:
        """Return -G on the constraining sets where accuracy there exceeds chance, and metrics.

        The discriminator goes up G(E, A) = mean log D(E) + mean log(1 - D(A)) on all samples and,
        at the same time, down G(I_E, I_A).
        """
        expert, agent = (self._logits(self._blurred(part)) for part in early)
        if self.config.constraint_threshold == 'middle':
            # Else D is at chance as soon as it calls all of them an expert's, or the agent's, and
            # may tell the two apart as before.
            middle = (expert.mean() + agent.mean()) / 2
            expert, agent = expert - middle, agent - middle
        right = (expert.detach() > 0).float().mean(), (agent.detach() <= 0).float().mean()
        exceeds = ((right[0] + right[1]) / 2 > _CHANCE).float()
        loss = d.expert_loss(expert).mean() + d.agent_loss(agent).mean()
        metrics = {
            'accuracy_expert_early': right[0],
            'accuracy_agent_early': right[1],
            'constraint_active': exceeds,
        }
        return -self.config.constraint_weight * exceeds * loss, metrics

    @torch.no_grad()
    def score(self, judged: Judged) -> Tensor:
        """Return D of each step [B]: how much like an expert's it looks."""
        self.discriminator.eval()
        return self._logits(self._sample(judged)).sigmoid()


class TRAILLearner(Constrained, D4PGLearner):
    """D4PG, paid by a constrained discriminator."""


TRAIL = Agent(TRAILConfig, TRAILLearner)
