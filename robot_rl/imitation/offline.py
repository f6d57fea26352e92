"""Learning from recorded steps alone: the loop around any learner, and the shuffled control."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from robot_rl.errors import SpecError, StorageError
from robot_rl.policies.agent import Learner
from robot_rl.storage.mixture import Mixing, Part
from robot_rl.storage.prefetch import Prefetch
from robot_rl.storage.sampler import WindowSampler
from robot_rl.storage.shards import chunks
from robot_rl.storage.steps import LAST, OBSERVATION, REWARD, STEP_TYPE, Steps

# How often `report` is called; reading metrics waits for the computation.
_REPORT_EVERY = 100
# Observations that the normaliser is fitted to, at most: statistics of more are the same.
_FITTED = 200_000


def train_offline(
    learner: Learner,
    steps: Steps,
    updates: int,
    seed: int = 0,
    report: Callable[[int, dict[str, float]], None] | None = None,
    parts: Mapping[str, Part] | None = None,
    mixing: Mixing = 'quota',
) -> None:
    """Fit the learner's normaliser to `steps`, then update it `updates` times from them.

    `parts` and `mixing` are those of WindowSampler. `report(done, metrics)` is called every
    hundred updates and after the last; among the metrics is what fraction of all elements came
    from each part, where there are several. Raises SpecError
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
    sampler = WindowSampler(
        steps, config.n_step, config.discount, seed, parts=parts, mixing=mixing
    )
    learner.fit_normalizer(observations(steps))
    with Prefetch(lambda: sampler.transitions(config.batch_size)) as batches:
        for done in range(1, updates + 1):
            metrics = learner.update(next(batches))
            if report and (done % _REPORT_EVERY == 0 or done == updates):
                shown = {name: float(value) for name, value in metrics.items()}
                report(done, shown | (_fractions(sampler) if parts else {}))


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
        if column.dtype.kind != 'f':
            continue  # pictures, say: each value of theirs is a number
        wrong = sum(
            np.count_nonzero(~np.isfinite(rows).reshape(len(rows), -1).all(axis=1))
            for rows in chunks(column)
        )
        if wrong:
            raise StorageError(
                f'{name.replace("/", " ")}: NaN or infinite in {wrong} of {len(column)} recorded '
                'steps; leave their episodes out by the query'
            )


def observations(steps: Steps) -> dict[str, np.ndarray]:
    """Return observations as fields {name: [M, ...]}, but for pictures.

    All of them, or evenly spaced ones of many.
    """
    count = len(steps.flat[STEP_TYPE])
    rows = np.arange(0, count, -(-count // _FITTED))
    columns = {name: steps.flat[OBSERVATION + name] for name in steps.observation_names}
    return {n: c.take(rows, axis=0) for n, c in columns.items() if c.dtype.kind == 'f'}


def _fractions(sampler: WindowSampler) -> dict[str, float]:
    return {f'fraction {name}': part for name, part in sampler.mixture.fractions().items()}
