"""Learning from recorded steps alone: the loop around any learner, and the shuffled control."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from robot_rl.errors import SpecError, StorageError
from robot_rl.policies.agent import Learner
from robot_rl.storage.sampler import WindowSampler
from robot_rl.storage.steps import LAST, OBSERVATION, REWARD, STEP_TYPE, Steps

# How often `report` is called; reading metrics waits for the computation.
_REPORT_EVERY = 100


def train_offline(
    learner: Learner,
    steps: Steps,
    updates: int,
    seed: int = 0,
    report: Callable[[int, dict[str, float]], None] | None = None,
) -> None:
    """Fit the learner's normaliser to `steps`, then update it `updates` times from them.

    `report(done, metrics)` is called every hundred updates and after the last. Raises SpecError
    for a learner that wants other batches than transitions, one at a time, and StorageError for
    steps that are not all numbers.
    """
    config = learner.config
    for name, right in (('memory', 0), ('updates_per_call', 1), ('priority_exponent', 0)):
        if getattr(config, name, right) != right:
            raise SpecError(
                f'learner.{name}: {getattr(config, name)}; learning from recorded episodes takes '
                f'transitions, all alike, one batch at a time: {right} is right'
            )
    _require_finite(steps)
    sampler = WindowSampler(steps, config.n_step, config.discount, np.random.default_rng(seed))
    learner.fit_normalizer(_observations(steps))
    for done in range(1, updates + 1):
        metrics = learner.update(sampler.transitions(config.batch_size))
        if report and (done % _REPORT_EVERY == 0 or done == updates):
            report(done, {name: float(value) for name, value in metrics.items()})


def shuffle_rewards(steps: Steps, seed: int = 0) -> Steps:
    """Return the same steps with their rewards permuted: what is learned then is no skill.

    The rewards keep their distribution and lose their meaning; observations, actions and episode
    ends stay as they are. LAST rows, which have no reward, are left out.
    """
    valid = steps.flat[STEP_TYPE] != LAST
    rewards = steps.flat[REWARD].copy()
    rewards[valid] = np.random.default_rng(seed).permutation(rewards[valid])
    return steps.with_column(REWARD, rewards)


def _require_finite(steps: Steps) -> None:
    """Raise StorageError, which names the column, where a value is NaN or infinite."""
    for name, column in steps.flat.items():
        wrong = np.count_nonzero(~np.isfinite(column).reshape(len(column), -1).all(axis=1))
        if wrong:
            raise StorageError(
                f'{name.replace("/", " ")}: NaN or infinite in {wrong} of {len(column)} recorded '
                'steps; leave their episodes out by the query'
            )


def _observations(steps: Steps) -> dict[str, np.ndarray]:
    """Return all observations as fields {name: [M, ...]}."""
    return {name: steps.flat[OBSERVATION + name] for name in steps.observation_names}
