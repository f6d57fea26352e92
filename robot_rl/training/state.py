"""What a run has learned and remembers: all that a checkpoint holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from robot_rl import registry
from robot_rl.errors import SpecError
from robot_rl.imitation.gail import Adversarial, DiscriminatorConfig
from robot_rl.imitation.offline import observations
from robot_rl.policies.agent import ActingLearner, OffPolicyConfig
from robot_rl.specs import Contract
from robot_rl.storage.mixed_sampler import MixedSampler, Source, joined
from robot_rl.storage.priorities import Priorities
from robot_rl.storage.sampler import Sequences, Transitions, WindowSampler
from robot_rl.storage.steps import Steps
from robot_rl.training.actor import Actor
from robot_rl.training.checkpoint import generator_state, set_generator_state
from robot_rl.training.config import RunConfig
from robot_rl.training.device import concatenated, taken_from
from robot_rl.training.judgement import Judgement, rewards_by
from robot_rl.training.replay import Replay


def make_learner(config: RunConfig, contract: Contract) -> ActingLearner:
    """Return the learner that `config` names, before its first update."""
    agent, device = registry.resolve('agent', config.agent), config.training.device
    if device != 'cpu' and (torch.device(device).index or 0) >= torch.cuda.device_count():
        found = f'{torch.cuda.device_count() or "no"} GPU'
        raise SpecError(f'training.device: {device}, but torch finds {found} here; cpu is right')
    return agent.learner(contract, config.learner_config(), config.seed, device)


def make_state(
    config: RunConfig, contract: Contract, demonstrations: Steps | None = None
) -> TrainingState | ImitationState:
    """Return the state of a run before its first step.

    Raises SpecError where the agent learns from demonstrations and there are none.
    """
    settings = config.learner_config()
    alone = not isinstance(settings, OffPolicyConfig)
    if demonstrations is None and (alone or isinstance(settings, DiscriminatorConfig)):
        raise SpecError(
            f'demos: agent {config.agent} learns from demonstrations; --demos QUERY says which'
        )
    return (ImitationState if alone else TrainingState)(config, contract, demonstrations)


class ImitationState:
    """Learner and sampler of a run that learns from demonstrations alone: a step is an update."""

    counted = 'learner_steps'
    env_steps = 0
    actor = None

    def __init__(self, config: RunConfig, contract: Contract, demonstrations: Steps):
        self.settings = settings = config.learner_config()
        _, sampling = np.random.SeedSequence(config.seed).spawn(2)
        self.learner = make_learner(config, contract)
        self.learner.fit_normalizer(observations(demonstrations))
        self.sampler = WindowSampler(
            demonstrations,
            settings.n_step,
            settings.discount,
            np.random.default_rng(sampling),
            take=taken_from(demonstrations, config.training.device),
        )
        self.metrics: dict[str, Tensor] = {}

    @property
    def steps(self) -> int:
        """What the run's length is counted in: updates."""
        return self.learner.steps

    def learn(self) -> None:
        """Update the learner once."""
        self.metrics = self.learner.update(_drawn(self.sampler, self.settings))

    def save(self) -> dict[str, Any]:
        """Return all that the next update depends on; the learner's tensors are not copied."""
        return {'learner': self.learner.save(), 'sampling': generator_state(self.sampler.rng)}

    def restore(self, saved: dict[str, Any]) -> None:
        """Take back what `save` returned: the next update is bitwise the same."""
        self.learner.restore(saved['learner'])
        set_generator_state(self.sampler.rng, saved['sampling'])


class TrainingState:
    """Learner, replay, sampler and actor of a run, and the ratio between acting and learning.

    Of `demonstrations` the config's share of each batch is drawn; an adversarial learner judges
    them, and pays for every step that is drawn. Raises SpecError where the first update would
    come before there is a transition to learn from.
    """

    counted = 'env_steps'

    def __init__(self, config: RunConfig, contract: Contract, demonstrations: Steps | None = None):
        self.settings = settings = config.learner_config()
        self._demonstrations = demonstrations
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
        self._rng = sampling
        self._draw_from(config)
        self.actor = Actor(behaviour, self.replay, self.learn, acting)
        self.metrics: dict[str, Tensor] = {}  # of the last update

    @property
    def env_steps(self) -> int:
        """Environment steps taken so far."""
        return self.replay.inserted

    @property
    def steps(self) -> int:
        """What the run's length is counted in: environment steps."""
        return self.env_steps

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
                learner.fit_normalizer(self._observations())
            judged = self._judge()
            batch = self._draw()
            self.metrics = judged | learner.update(batch)
            if self.replay.priorities is not None:
                self.sampler.update_priorities(batch.place, learner.priorities.cpu().numpy())

    def save(self) -> dict[str, Any]:
        """Return all that the next update depends on; the learner's tensors are not copied."""
        return {
            'learner': self.learner.save(),
            'replay': self.replay.save(),
            'acting': generator_state(self.actor.rng),
            'sampling': generator_state(self._rng),
            'mixed': self._mixed.save() if self._mixed else [],
            'torch': torch.get_rng_state(),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Take back what `save` returned: the next update is bitwise the same."""
        self.learner.restore(saved['learner'])
        self.replay.restore(saved['replay'])
        set_generator_state(self.actor.rng, saved['acting'])
        set_generator_state(self._rng, saved['sampling'])
        if self._mixed:
            self._mixed.restore(saved['mixed'])
        torch.set_rng_state(saved['torch'])

    def fractions(self) -> dict[str, float]:
        """Return what part of all that was drawn came from the demonstrations, if any may."""
        return {'fraction_demos': self._mixed.mixture.fractions()['demos']} if self._mixed else {}

    def _draw_from(self, config: RunConfig) -> None:
        """Make the samplers: of the replay, of the demonstrations, and of what is judged."""
        settings, demos, device = self.settings, self._demonstrations, config.training.device
        takes = {'replay': taken_from(self.replay.steps, device, self.replay.on_device)}
        steps = {'replay': self.replay.steps}
        if demos is not None:
            takes['demos'], steps['demos'] = taken_from(demos, device), demos
        learner, self._judgement = self.learner, None
        if isinstance(learner, Adversarial):
            sides = ((steps[side], takes[side]) for side in ('replay', 'demos'))
            self._judgement = Judgement(learner, *sides, self._rng)

        def sampler(source: str, priorities: Priorities | None = None) -> WindowSampler:
            return WindowSampler(
                steps[source],
                settings.n_step,
                settings.discount,
                self._rng,
                priorities,
                takes[source],
                rewards=self._judgement and rewards_by(learner, steps[source], takes[source]),
            )

        self.sampler, self._mixed = sampler('replay', self.replay.priorities), None
        if demos is not None and config.demos.ratio:
            sources = {
                'replay': Source(self.sampler, 1 - config.demos.ratio),
                'demos': Source(sampler('demos'), config.demos.ratio),
            }
            self._mixed = MixedSampler(sources, config.demos.mixing, self._rng, concatenated)
            self.sampler = self._mixed

    def _observations(self) -> dict[str, np.ndarray]:
        """Return what the statistics of observations are of, {field: [M, ...]}."""
        seen = self.replay.observations()
        if self._demonstrations is None:
            return seen
        shown = observations(self._demonstrations)
        return {name: np.concatenate([values, shown[name]]) for name, values in seen.items()}

    def _judge(self) -> dict[str, Tensor]:
        """Let an adversarial learner judge as often as it is updated in one call."""
        metrics = {}
        for _ in range(self.settings.updates_per_call if self._judgement else 0):
            metrics = self._judgement.update()
        return metrics

    def _draw(self) -> Transitions | Sequences:
        """Draw what the next call of the learner learns from."""
        updates = self.settings.updates_per_call
        if self._mixed is None:
            return _drawn(self.sampler, self.settings, updates)
        # One by one: each update is to have its share of demonstrations.
        batches = [_drawn(self.sampler, self.settings) for _ in range(updates)]
        return joined(batches, concatenated)


def _drawn(
    sampler: WindowSampler | MixedSampler, settings: Any, updates: int = 1
) -> Transitions | Sequences:
    """Draw what `updates` updates learn from: transitions, or sequences for a memory."""
    size = settings.batch_size * updates
    if not settings.memory:
        return sampler.transitions(size)
    return sampler.sequences(size, settings.sequence_length, settings.burn_in)
