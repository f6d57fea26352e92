"""Retraining: a policy from recorded episodes, in a folder with config and metrics."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pydantic

from robot_rl import registry
from robot_rl.errors import StorageError
from robot_rl.imitation.dagger import HumanSteps
from robot_rl.imitation.data import find_episodes, mixed_parts, write_steps
from robot_rl.imitation.offline import shuffle_rewards, train_offline
from robot_rl.policies.agent import CriticConfig, fit_support
from robot_rl.policies.export import export_onnx
from robot_rl.resources import git_revision
from robot_rl.sim.task import ActionKind
from robot_rl.specs import Contract, PolicyCard, Spec
from robot_rl.storage.mixture import Mixing
from robot_rl.storage.store import Store

CONFIG, METRICS, POLICY = 'config.yaml', 'metrics.jsonl', 'policy.onnx'


class RetrainConfig(Spec):
    """One policy from recorded episodes; the folder's config.yaml holds it."""

    schema_version: Literal[1] = 1
    task: str  # whose rewards, and whose contract
    agent: str = 'crr'  # as the registry lists it among those that learn offline
    query: str = ''  # which episodes; see robot-rl episodes ls
    seed: pydantic.NonNegativeInt = 0  # of networks, sampling and hindsight goals
    updates: pydantic.PositiveInt = 3000  # gradient steps
    hide: tuple[str, ...] = ()  # observation fields of the task that the policy is not to see
    # What the policy commands the arm by, whatever the arm was commanded by; null: as the task.
    action_kind: ActionKind | None = None
    # What is learned from: what the source asked for, or what the guard let through.
    action: Literal['requested', 'applied'] = 'requested'
    # All steps; or those that a person did: demonstrations, and interventions (HG-DAgger).
    steps: Literal['all', 'human'] = 'all'
    hindsight_goals: pydantic.NonNegativeInt = 0  # further goals each episode is rewarded for
    # {query: share}: so much of each batch comes from those of the episodes that fit this too,
    # the rest from all; by exact 'quota', or by 'bernoulli' per element.
    mix: dict[str, pydantic.PositiveFloat] = pydantic.Field({})
    mixing: Mixing = 'quota'
    # The control: rewards in a random order. What is learned then owes nothing to them.
    shuffle_rewards: bool = False
    # The agent's own config; what is not given is filled in.
    learner: dict[str, Any] = pydantic.Field({}, validate_default=True)

    @pydantic.field_validator('mix')
    @classmethod
    def _leaves_a_share_for_all(cls, value: dict[str, float]) -> dict[str, float]:
        if sum(value.values()) >= 1:
            raise ValueError(f'shares of {sum(value.values()):g} in all, below 1 is right')
        return value

    @pydantic.model_validator(mode='after')
    def _mixes_whole_episodes(self) -> RetrainConfig:
        if self.mix and self.steps == 'human':
            raise ValueError(
                'mix takes whole episodes, and steps: human parts of them; leave one out'
            )
        return self

    @pydantic.field_validator('learner')
    @classmethod
    def _fits_the_agent(cls, value: dict, info: pydantic.ValidationInfo) -> dict[str, Any]:
        if 'agent' not in info.data:  # which has an error of its own
            return value
        return registry.resolve('offline agent', info.data['agent']).config.parse(value).to_dict()


def retrain(
    config: RetrainConfig,
    store: Store,
    folder: Path,
    report: Callable[[int], None] = lambda done: None,
    refused: Callable[[str], None] = lambda reason: None,
) -> PolicyCard:
    """Learn from the episodes that the config's query finds; write the policy into `folder`.

    `report(updates)` is called as learning goes on, `refused(reason)` for each episode that
    cannot be used. Where a person's steps alone are learned from, the card's `training` counts
    them. Raises StorageError where there is no episode or no such step, or the folder cannot be
    written.
    """
    task = registry.make_task(config.task)
    if config.action_kind is not None:
        task = task.commanded_by(config.action_kind)
    contract = task.contract().without(config.hide)
    agent = registry.resolve('offline agent', config.agent)
    episodes = find_episodes(store, task, contract, config.query, refused)
    settings = agent.config.parse(config.learner)
    if isinstance(settings, CriticConfig):
        settings = settings.replace(**fit_support(settings, settings.discount, task.reward_range))
    learner = agent.learner(contract, settings, config.seed)
    human = HumanSteps() if config.steps == 'human' else None
    rows: list[dict[str, Any]] = []

    def note(done: int, metrics: dict[str, float]) -> None:
        rows.append({'learner_steps': done, **metrics})
        report(done)

    with _steps_folder(folder) as scratch:
        steps = write_steps(
            Path(scratch, 'steps'),
            task,
            contract,
            episodes,
            config.action,
            config.hindsight_goals,
            config.seed,
            human,
        )
        parts = None
        if config.mix:
            parts = mixed_parts(store, config.query, config.mix, episodes.headers, steps.spans)
        if config.shuffle_rewards:
            steps = shuffle_rewards(steps, config.seed)
        train_offline(learner, steps, config.updates, config.seed, note, parts, config.mixing)
    used = {'episodes': len(episodes)} | (human.counts if human else {})
    card = _card(config, task.robot.name, contract, used, rows[-1])
    _write(folder, config, rows)
    export_onnx(learner.policy, card, folder / POLICY)
    return card


def _steps_folder(folder: Path) -> tempfile.TemporaryDirectory:
    """Return a folder for what is learned from, beside the result: there is room for it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix='.steps-', dir=folder)
    except OSError as error:
        raise StorageError(f'{folder}: cannot be written ({error.strerror})') from None


def _card(
    config: RetrainConfig,
    robot: str,
    contract: Contract,
    used: dict[str, int],
    last: dict[str, Any],
) -> PolicyCard:
    control = '-shuffled' if config.shuffle_rewards else ''
    if config.steps == 'human':
        control += '-dagger'
    return PolicyCard(
        id=f'{config.task.replace("/", "-")}-{config.agent}{control}-seed{config.seed}-offline',
        contract=contract,
        task=config.task,
        robot=robot,
        agent=config.agent,
        git_revision=git_revision(),
        training={**used, 'query': config.query, **last},
    )


def _write(folder: Path, config: RetrainConfig, rows: list[dict[str, Any]]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(config.to_yaml(), encoding='utf-8')
        lines = ''.join(json.dumps(row) + '\n' for row in rows)
        (folder / METRICS).write_text(lines, encoding='utf-8')
    except OSError as error:
        raise StorageError(f'{folder}: cannot be written ({error.strerror})') from None
