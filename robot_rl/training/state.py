"""What a run has learned and remembers: all that a checkpoint holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from robot_rl import registry
from robot_rl.errors import SpecError
from robot_rl.policies.agent import ActingLearner
from robot_rl.specs import Contract
from robot_rl.storage.sampler import Sequences, Transitions, WindowSampler
from robot_rl.training.actor import Actor
from robot_rl.training.checkpoint import generator_state, set_generator_state
from robot_rl.training.config import RunConfig
from robot_rl.training.replay import Replay


def make_learner(config: RunConfig, contract: Contract) -> ActingLearner:
    """Return the learner that `config` names, before its first update."""
    agent, device = registry.resolve('agent', config.agent), config.training.device
    if device != 'cpu' and (torch.device(device).index or 0) >= torch.cuda.device_count():
        found = f'{torch.cuda.device_count() or "no"} GPU'
        raise SpecError(f'training.device: {device}, but torch finds {found} here; cpu is right')
    return agent.learner(contract, config.learner_config(), config.seed, device)


class TrainingState:
    """Learner, replay, sampler and actor of a run, and the ratio between acting and learning.

    Raises SpecError where the first update would come before there is a transition to learn from.
    """

    def __init__(self, config: RunConfig, contract: Contract):
        self.settings = settings = config.learner_config()
        num_envs = config.training.num_envs
        if settings.min_replay_size <= num_envs * settings.n_step:
            raise SpecError(
                f'learner.min_replay_size: {settings.min_replay_size} steps of '
                f'{num_envs} environments hold no transition of {settings.n_step} steps each; '
                f'more than {num_envs * settings.n_step} is right'
            )
        acting, sampling = (
            np.random.default_rng(seed) for seed in np.random.SeedSequence(config.seed).spawn(2)
        )
        self.learner = make_learner(config, contract)
        behaviour = self.learner.behaviour(num_envs)
        self.replay = Replay(
            contract,
            num_envs,
            settings.replay_size,
            {name: value.shape[1:] for name, value in behaviour.initial_state(1).items()},
            settings.priority_exponents,
            config.training.device,
        )
        self.sampler = WindowSampler(
            self.replay.steps,
            settings.n_step,
            settings.discount,
            sampling,
            self.replay.priorities,
            self.replay.on_device.take if self.replay.on_device else None,
        )
        self.actor = Actor(behaviour, self.replay, self.learn, acting)
        self.metrics: dict[str, Tensor] = {}  # of the last update

    @property
    def env_steps(self) -> int:
        """Environment steps taken so far."""
        return self.replay.inserted

    def learn(self) -> None:
        """Update the learner until each step has been sampled `samples_per_insert` times.

        That is one update every steps_per_update / samples_per_insert environment steps, counted
        from the first min_replay_size of them.
        """
        settings, learner = self.settings, self.learner
        past = self.env_steps - settings.min_replay_size
        if past < 0:
            return
        due = int(past * settings.samples_per_insert / settings.steps_per_update) - learner.steps
        for _ in range(due // settings.updates_per_call):
            if learner.steps == 0:
                learner.fit_normalizer(self.replay.observations())
            batch = self._draw()
            self.metrics = learner.update(batch)
            if self.replay.priorities is not None:
                self.sampler.update_priorities(batch.place, learner.priorities.cpu().numpy())

    def save(self) -> dict[str, Any]:
        """Return all that the next update depends on; the learner's tensors are not copied."""
        return {
            'learner': self.learner.save(),
            'replay': self.replay.save(),
            'acting': generator_state(self.actor.rng),
            'sampling': generator_state(self.sampler.rng),
            'torch': torch.get_rng_state(),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Take back what `save` returned: the next update is bitwise the same."""
        self.learner.restore(saved['learner'])
        self.replay.restore(saved['replay'])
        set_generator_state(self.actor.rng, saved['acting'])
        set_generator_state(self.sampler.rng, saved['sampling'])
        torch.set_rng_state(saved['torch'])

    def _draw(self) -> Transitions | Sequences:
        """Draw what the next call of the learner learns from."""
        settings = self.settings
        size = settings.batch_size * settings.updates_per_call
        if not settings.memory:
            return self.sampler.transitions(size)
        return self.sampler.sequences(size, settings.sequence_length, settings.burn_in)
