"""What a training run is made of, as one frozen config."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic

from robot_rl import registry, resources
from robot_rl.errors import SpecError
from robot_rl.policies.agent import CriticConfig, LearnerConfig, fit_support
from robot_rl.sim.randomisation import Randomisation
from robot_rl.specs import Contract, Spec
from robot_rl.specs.base import load_yaml
from robot_rl.storage.mixture import Mixing

Count = pydantic.NonNegativeInt
Shade = Annotated[int, pydantic.Field(ge=0, le=255)]  # of a colour


class TrainConfig(Spec):
    """How a run goes, whatever the agent."""

    num_envs: pydantic.PositiveInt = 1
    """environments stepped together"""
    workers: Count | None = None
    """processes that step tasks without streams; null: one a core where it pays; 0: in this one"""
    threads: pydantic.PositiveInt = 1
    """of torch; runs repeat bit by bit with one"""
    device: str = pydantic.Field('cpu', pattern=r'^(cpu|cuda(:\d+)?)$')
    """where the learner computes: cpu, cuda, cuda:1"""
    evaluate_every: pydantic.PositiveInt = 10_000
    """steps between evaluations"""
    evaluation_episodes: pydantic.PositiveInt = 10
    """in each evaluation, from held-out seeds"""
    checkpoint_every: pydantic.PositiveInt = 20_000
    """steps between checkpoints"""
    keep: Literal['last', 'best'] = 'last'
    """which policy is exported: the last, or the one that did best in the evaluations"""
    snapshots: tuple[Count, ...] = ()
    """steps at which policies/step-<steps>.onnx is written as well"""
    stop_at_success: float | None = pydantic.Field(None, gt=0, le=1)
    """end early at this success rate"""


class DemosConfig(Spec):
    """Which recorded episodes are demonstrations, and what part of each batch they are."""

    query: str | None = None
    """as `robot-rl episodes ls` takes it; null: no demonstrations"""
    store: str = 'episodes'
    """the folder of the episodes"""
    episodes: pydantic.PositiveInt | None = None
    """at most so many, oldest first; null: all"""
    action: Literal['requested', 'applied'] = 'requested'
    """of an arm's episodes: what the source asked for, or what the guard let through"""
    ratio: float = pydantic.Field(0.25, ge=0, lt=1)
    """part of each batch that an agent which acts gets from them, the rest from its replay"""
    mixing: Mixing = 'quota'
    """quota: exactly that part; bernoulli: each element by chance"""


class RunConfig(Spec):
    """One training run; DIR/config.yaml holds it."""

    schema_version: Literal[1] = 1
    task: str
    """as `robot-rl tasks` lists it"""
    hide: tuple[str, ...] = ()
    """observation fields of the task that the policy is not to see"""
    pixels_only: bool = False
    """whether the policy sees nothing but pictures"""
    cameras: dict[str, tuple[pydantic.PositiveInt, pydantic.PositiveInt]] = pydantic.Field({})
    """pictures to draw, {camera: [height, width]}; overview: of the model's first camera"""
    history: dict[str, pydantic.PositiveInt] = pydantic.Field({})
    """last steps that the policy sees of a field, {field: steps}, the newest among them"""
    rate_hz: pydantic.PositiveFloat | None = None
    """decisions a second, each held for several steps of a task without an arm; null: as many"""
    randomisation: dict[str, Any] = pydantic.Field({})
    """of an arm task: what of its world differs from episode to episode; over the task's own"""
    constants: dict[str, float] = pydantic.Field({})
    """fields that always hold a number, {field: number}: what imitation is not to heed"""
    marker: tuple[Shade, Shade, Shade] | None = None
    """colour of a square in a corner of all pictures, [red, green, blue]; nor is this"""
    agent: str = 'd4pg'
    """as the registry lists it"""
    seed: Count = 0
    """of networks, exploration, sampling and episodes"""
    steps: pydantic.PositiveInt = 100_000
    """environment steps in all; updates, for an agent that learns from demonstrations alone"""
    training: TrainConfig = TrainConfig()
    """how the run goes"""
    demos: DemosConfig = DemosConfig()
    """demonstrations"""
    init: str = ''
    """folder of a run, or its checkpoint.pt, whose policy this one begins with"""
    learner: dict[str, Any] = pydantic.Field({}, validate_default=True)
    """the agent's own config; what is not given is filled in"""

    @pydantic.model_validator(mode='after')
    def _arm_tasks_say_themselves_what_is_shown(self) -> Self:
        seen = 'the contract of an arm task says itself what is seen'
        rate = "the file of an arm's task says it, and its contract"
        for name, why in {'constants': seen, 'marker': seen, 'rate_hz': rate}.items():
            if getattr(self, name) and not self.task.startswith(registry.WITHOUT_STREAMS):
                raise ValueError(
                    f'{name}: {why}; use a task of {", ".join(registry.WITHOUT_STREAMS)}'
                )
        return self

    @pydantic.field_validator('randomisation')
    @classmethod
    def _can_be_drawn_from(cls, value: dict) -> dict[str, Any]:
        return Randomisation.parse(value).model_dump(mode='json', exclude_unset=True)

    @pydantic.field_validator('learner')
    @classmethod
    def _fits_the_agent(cls, value: dict, info: pydantic.ValidationInfo) -> dict[str, Any]:
        if 'agent' not in info.data:  # which has an error of its own
            return value
        return registry.resolve('agent', info.data['agent']).config.parse(value).to_dict()

    def view(self) -> dict[str, Any]:
        """Return the options of make_environment that say what is shown, and in which worlds."""
        given = {'cameras': self.cameras, 'history': self.history, 'constants': self.constants}
        given |= {'rate_hz': self.rate_hz, 'marker': self.marker}
        drawn = self.randomisation.items()
        given['changes'] = [f'randomisation.{key}={json.dumps(value)}' for key, value in drawn]
        return {name: value for name, value in given.items() if value}

    def seen(self, contract: Contract) -> Contract:
        """Return what of an environment's contract the policy sees. Raises SpecError."""
        if not self.pixels_only:
            return contract.without(self.hide)
        pictures = [field.name for field in contract.pictures]
        if not pictures:
            raise SpecError(
                f'pixels_only: {self.task} shows no pictures by itself; '
                'cameras={overview: [64, 64]} is right'
            )
        others = [f.name for f in contract.observation if f.name not in pictures]
        return contract.without([*self.hide, *others])

    def learner_config(self) -> LearnerConfig:
        """Return the agent's config as the agent takes it."""
        return registry.resolve('agent', self.agent).config.parse(self.learner)

    def with_support(self, reward_range: tuple[float, float] | None) -> Self:
        """Return this config with a critic's support that holds the returns of such rewards.

        Raises SpecError where it cannot be worked out, or does not hold them.
        """
        learner = self.learner_config()
        if not isinstance(learner, CriticConfig):
            return self
        support = fit_support(learner, learner.discount, self.reward_range(reward_range))
        return self.replace(learner=self.learner | support)

    def reward_range(self, of_the_task: tuple[float, float] | None) -> tuple[float, float] | None:
        """Return the bounds of the rewards that are learned from: the task's, or a model's."""
        return self.learner_config().reward_range(of_the_task)

    def differences(self, other: RunConfig) -> list[str]:
        """Return the fields in which `other` is another run; `steps` may differ."""
        mine, theirs = (_flat(config.to_dict()) for config in (self, other))
        keys = sorted(mine.keys() | theirs.keys())
        return [key for key in keys if key != 'steps' and mine.get(key) != theirs.get(key)]


def load_run_config(
    agent: str,
    task: str,
    overrides: Sequence[str] = (),
    demos: Mapping[str, Any] = {},
    **options: Any,
) -> RunConfig:
    """Build the config of a run from config/agents/<agent>.yaml (or a path of one).

    `overrides` are 'training.num_envs=8' or 'learner.sigma=0.3', with values as YAML; `options`
    are top-level fields, None where not given; `demos` are some of the section of that name.
    Raises SpecError and UnknownName.
    """
    path = resources.find('config/agents', agent)
    data = load_yaml(path)
    if demos and isinstance(data, dict):
        options['demos'] = (data.get('demos') or {}) | demos
    given = {'task': task} | {key: value for key, value in options.items() if value is not None}
    return RunConfig.from_yaml_with(path, given, overrides, _sections(path))


def _sections(path: Path) -> dict[str, Collection[str]]:
    """Return which keys the sections of an agent's file may have."""
    data = load_yaml(path)
    agent = data.get('agent', 'd4pg') if isinstance(data, dict) else ''
    sections = {
        'training': TrainConfig.model_fields,
        'demos': DemosConfig.model_fields,
        'randomisation': Randomisation.model_fields,
    }
    # Another one, or what is no name at all, is refused where the file is read.
    if isinstance(agent, str) and agent in registry.AGENTS:
        sections['learner'] = registry.resolve('agent', agent).config.model_fields
    return sections


def _flat(data: dict[str, Any], prefix: str = '') -> dict[str, Any]:
    """Return nested dictionaries as one, with dotted keys."""
    flat = {}
    for key, value in data.items():
        nested = isinstance(value, dict)
        flat |= _flat(value, f'{prefix}{key}.') if nested else {prefix + key: value}
    return flat
