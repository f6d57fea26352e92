"""What D4PG, MPO and DMPO share: networks and their targets, memories, optimiser, the update.

An algorithm adds its policy network, how it explores, and `_losses`. B batch, L and T rows in
time, M rows to learn from (B transitions, or T * B steps of sequences), D observation size,
F feature size, A action size, K atoms.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import pydantic
import torch
from torch import Tensor, nn

from robot_rl.errors import SpecError
from robot_rl.policies.agent import (
    Batch,
    CriticConfig,
    OffPolicyConfig,
    PictureConfig,
    SequenceBatch,
    as_tensors,
    copy_parameters,
    descend,
    require_same_shapes,
)
from robot_rl.policies.compiler import compiled
from robot_rl.policies.encoders import randomly_moved
from robot_rl.policies.networks import CategoricalCritic, LayerNormMLP, Memory, ScalarCritic
from robot_rl.policies.policy import CRITIC, STATE, ObservationVector, Policy, beside
from robot_rl.policies.products import fast_products
from robot_rl.specs import Contract

# How a sequence's priority weighs its largest surprise against the mean (R2D2, section 2.3).
_PRIORITY_OF_MAX = 0.9
# What does not surprise now may do so later, and is drawn now and then (Schaul et al. 2016).
_LEAST_PRIORITY = 1e-4


class ActorCriticConfig(PictureConfig, OffPolicyConfig, CriticConfig):
    """What an agent with a policy and a critic lets one choose.

    An encoder learns with the critic.
    """

    critic: Literal['categorical', 'scalar'] = 'categorical'
    """a distribution over returns between v_min and v_max, or their mean alone"""
    policy_learning_rate: pydantic.PositiveFloat = 3e-4
    """of Adam"""
    critic_learning_rate: pydantic.PositiveFloat = 3e-4
    """of Adam"""
    execution: Literal['plain', 'fused', 'compiled'] = 'fused'
    """plain: as usually written; fused: less time for the same; compiled: also torch.compile"""


class Rows(NamedTuple):
    """M steps to learn from, whether they were drawn one by one or in sequences."""

    action: Tensor  #   [M, A] in [-1, 1]
    reward: Tensor  #   [M]
    discount: Tensor  # [M]
    weight: Tensor  #   [M] of the critic's loss, importance weights included
    valid: Tensor  #    [M] of the policy's loss: mean 1, and 0 where there is no step
    noise: Tensor | None = None  # [N, M, A] from a standard normal, where an algorithm samples


class Seen(NamedTuple):
    """Features of what a network sees at o_t and o_{t+k}, each [M, F].

    Where pictures are encoded and nothing is remembered, `now` of the targets is None: no loss
    asks for it, and encoding takes most of an update.
    """

    now: Tensor | None
    next: Tensor


class View(NamedTuple):
    """What policy and critic see: the same observation, each with its own memory of the past."""

    policy: Seen
    critic: Seen


class CriticLoss(NamedTuple):
    """The critic's part: its loss [], metrics, each [], and how far off each row was [M]."""

    loss: Tensor
    metrics: dict[str, Tensor]
    surprise: Tensor


class Losses(NamedTuple):
    """What an update goes down: `total` []; metrics, each []; and what the critic says of rows."""

    total: Tensor
    metrics: dict[str, Tensor]
    surprise: Tensor


class ActorCritic:
    """Policy, critic, their targets, and the update of all. `policy` acts by the target network.

    Raises SpecError where the support is still open (see agent.fit_support).
    """

    def __init__(
        self, contract: Contract, config: ActorCriticConfig, seed: int = 0, device: str = 'cpu'
    ):
        if config.critic == 'categorical' and (config.v_min is None or config.v_max is None):
            raise SpecError('learner.v_min, learner.v_max: null; the critic needs two numbers')
        self.config, self.contract = config, contract
        self.device = torch.device(device)
        self.steps = 0
        self.priorities: Tensor | None = None
        self._started = False  # from a policy that brought its own statistics
        # Not the stream that the weights come from.
        noise_seed = int(np.random.SeedSequence([seed, 1]).generate_state(1)[0])
        self._generator = torch.Generator(device).manual_seed(noise_seed)
        normalize = config.normalize_observations
        self._vector = ObservationVector(contract, normalize, beside_encoder=True).to(device)
        self._pictures = bool(contract.pictures)
        self._online = self._networks(torch.Generator().manual_seed(seed)).to(device)
        if config.execution == 'plain':
            for module in self._online.modules():
                if isinstance(module, LayerNormMLP):
                    module.as_usually_written()
        self._target = copy.deepcopy(self._online).requires_grad_(False)
        self._frozen_critic = _frozen(self._online['critic'])
        encoder = self._target['encoder'] if self._pictures else None
        self.policy = Policy(
            contract, self._vector, self._target['policy'], self._memory('policy'), encoder
        ).to(device)
        groups = self._parameter_groups()
        self._parts = list(groups)
        self._optimizer = torch.optim.Adam(
            [{'params': parameters, 'lr': rate} for parameters, rate in groups.values()],
            fused=config.execution != 'plain',
            foreach=False if config.execution == 'plain' else None,
        )
        self._products = contextlib.nullcontext
        if config.execution != 'plain':
            self._products = fast_products(self.device)
        self._compute = self._losses
        if config.execution == 'compiled':
            self._compute = compiled(self._losses)

    def update(self, batch: Batch | SequenceBatch) -> dict[str, Tensor]:
        """Take `updates_per_call` steps, each from an equal part of `batch`; return last metrics.

        As in Acme all losses are taken before any step, and the policy's at o_{t+k}. Nothing in
        here waits for a device: metrics, each [], stay tensors.
        """
        batch = as_tensors(batch, self.device)
        priorities = []
        with self._products():
            for part in _split(batch, self.config.updates_per_call):
                metrics = self._update(part)
                priorities.append(self.priorities)
        self.priorities = torch.cat(priorities)
        return metrics

    def fit_normalizer(self, observation: Mapping[str, np.ndarray]) -> None:
        """Fix the observation statistics from fields {name: [M, ...]}; nothing without any.

        Those that a policy came with (start_from) stay: it would be another one without them.
        """
        if not self._started:
            self._vector.fit(observation)

    def start_from(self, policy: Mapping[str, Tensor]) -> None:
        """Begin with another policy's parameters and observation statistics, by its state_dict.

        Raises SpecError where its networks are others.
        """
        require_same_shapes(policy, self.policy.state_dict(), 'init')
        self.policy.load_state_dict(policy)
        for part in ('encoder', 'policy', 'policy_memory'):
            if part in self._online:
                copy_parameters(self._target[part], self._online[part])
        self._started = True

    def remarks(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """Return what a person should know of an evaluation's metrics, {subject: one line}."""
        return {}

    def save(self) -> dict[str, Any]:
        """Return all that the next update depends on, as tensors and numbers."""
        return {
            'steps': self.steps,
            'started': self._started,
            'vector': self._vector.state_dict(),
            'online': self._online.state_dict(),
            'target': self._target.state_dict(),
            'optimizer': self._optimizer.state_dict(),
            'generator': self._generator.get_state(),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Take back what `save` returned: the next update is bitwise the same."""
        self.steps = saved['steps']
        self._started = saved.get('started', False)
        self.restore_policy(saved)
        self._online.load_state_dict(saved['online'])
        self._optimizer.load_state_dict(saved['optimizer'])
        self._generator.set_state(saved['generator'])

    def restore_policy(self, saved: dict[str, Any]) -> None:
        """Take back what acts, and nothing that only a further update depends on."""
        self._vector.load_state_dict(saved['vector'])
        self._target.load_state_dict(saved['target'])

    def _policy_network(self, feature_size: int, generator: torch.Generator) -> nn.Module:
        """Return the policy: features [M, F] -> actions [M, A], or their mean."""
        raise NotImplementedError

    def _losses(self, rows: Rows, online: View, target: View) -> Losses:
        """Return the algorithm's loss on M rows, seen by the online and the target networks."""
        raise NotImplementedError

    def _noise(self, rows: int) -> Tensor | None:
        """Return what an algorithm samples with at M rows [N, M, A], if it samples."""

    def _parameter_groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        """Return the parameters by part, with their learning rates; each is clipped by itself."""
        rates = {
            'policy': self.config.policy_learning_rate,
            'critic': self.config.critic_learning_rate,
        }
        groups = {}
        for part, rate in rates.items():
            wanted = [part, f'{part}_memory', *(['encoder'] if part == 'critic' else [])]
            names = [name for name in wanted if name in self._online]
            modules = nn.ModuleList(self._online[name] for name in names)
            groups[part] = list(modules.parameters()), rate
        return groups

    def _networks(self, generator: torch.Generator) -> nn.ModuleDict:
        config, size = self.config, self._vector.size
        networks = nn.ModuleDict()
        encoder = config.encode(self.contract, generator)
        if encoder is not None:
            networks['encoder'] = encoder
            size += encoder.size
        feature_size = size
        if config.memory:
            for part in ('policy', 'critic'):
                networks[f'{part}_memory'] = Memory(size, config.memory, generator)
            feature_size = networks['policy_memory'].feature_size
        sizes = feature_size, self.contract.action_size, config.critic_layers, generator
        if config.critic == 'scalar':
            networks['critic'] = ScalarCritic(*sizes)
        else:
            support = torch.linspace(config.v_min, config.v_max, config.num_atoms)
            networks['critic'] = CategoricalCritic(*sizes, support)
        networks['policy'] = self._policy_network(feature_size, generator)
        return networks

    def _memory(self, part: str) -> Memory | None:
        """Return the target memory of the policy or the critic, if there is one."""
        return self._target[f'{part}_memory'] if self.config.memory else None

    def _update(self, batch: Batch | SequenceBatch) -> dict[str, Tensor]:
        batch = self._augmented(batch)
        vectors = self._vectors(batch)
        rows, online = self._rows(batch), self._view(self._online, batch, vectors)
        with torch.no_grad():
            target = self._view(self._target, batch, vectors)
        losses = self._compute(rows._replace(noise=self._noise(len(rows.reward))), online, target)
        self.priorities = self._priorities(losses.surprise, rows)
        norms = descend(self._optimizer, losses.total, self.config.max_gradient_norm)
        self._after_step()
        self.steps += 1
        if self.steps % self.config.target_update_period == 0:
            copy_parameters(self._online, self._target)
        norms = zip(self._parts, norms, strict=True)
        return losses.metrics | {f'{part}_gradient_norm': norm for part, norm in norms}

    def _after_step(self) -> None:
        """Mend what a step may have broken; an algorithm with constraints of its own says how."""

    def _augmented(self, batch: Batch | SequenceBatch) -> Batch | SequenceBatch:
        """Return the batch with its pictures moved by a few pixels; a sequence moves as one."""
        if not (self._pictures and self.config.random_shift):
            return batch
        if isinstance(batch, SequenceBatch):
            return batch._replace(observation=self._moved(batch.observation))
        now, following = (self._moved(o) for o in (batch.observation, batch.next_observation))
        return batch._replace(observation=now, next_observation=following)

    def _moved(self, observation: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return randomly_moved(observation, self.contract, self._generator)

    def _vectors(self, batch: Batch | SequenceBatch) -> tuple[Tensor | None, ...]:
        """Return what needs no encoder: o_t and o_{t+k} [B, D], or sequences [L, B, D]."""
        if not self._vector.size:
            return (None, None) if isinstance(batch, Batch) else (None,)
        if isinstance(batch, Batch):
            return self._vector(batch.observation), self._vector(batch.next_observation)
        joined = self._vector(batch.observation)
        return (joined.view(-1, batch.action.shape[1], joined.shape[1]),)

    def _view(
        self, networks: nn.ModuleDict, batch: Any, vectors: tuple[Tensor | None, ...]
    ) -> View:
        """Return what critic and policy see; the encoder learns from the critic's loss alone."""
        seen = detached = vectors
        if self._pictures:
            seen = self._encoded(networks, batch, vectors)
            detached = [None if part is None else part.detach() for part in seen]
        if isinstance(batch, Batch):
            return View(Seen(*detached), Seen(*seen))
        return View(
            _recall(networks['policy_memory'], batch, *detached, ''),
            _recall(networks['critic_memory'], batch, *seen, CRITIC),
        )

    def _encoded(
        self, networks: nn.ModuleDict, batch: Any, vectors: tuple[Tensor | None, ...]
    ) -> tuple[Tensor | None, ...]:
        """Return the vectors with the features of the pictures beside them."""
        encoder = networks['encoder']
        if isinstance(batch, SequenceBatch):
            features = encoder(batch.observation)
            features = features.view(-1, batch.action.shape[1], encoder.size)
            return (beside(vectors[0], features),)
        now = None
        if networks is self._online:
            now = beside(vectors[0], encoder(batch.observation))
        with torch.no_grad():
            return now, beside(vectors[1], encoder(batch.next_observation))

    def _rows(self, batch: Batch | SequenceBatch) -> Rows:
        weight = torch.ones_like(batch.reward)
        valid = weight
        if isinstance(batch, SequenceBatch):
            valid = batch.valid.float()
            valid = valid / valid.mean()
            weight = valid
        if batch.weight is not None:
            weight = weight * batch.weight
        action = self.policy.scale.to_unit(batch.action).flatten(0, -2)
        flat = (x.flatten() for x in (batch.reward, batch.discount, weight, valid))
        return Rows(action, *flat)

    def _critic_loss(self, rows: Rows, features: Tensor, next_belief: Tensor) -> CriticLoss:
        """Return the critic's loss against what n rewards and `next_belief` say."""
        critic = self._online['critic']
        outputs = critic(features, rows.action)
        target = critic.target(rows.reward, rows.discount, next_belief)
        losses = critic.loss(outputs, target)
        surprise = critic.surprise(losses.detach(), target)
        loss = (rows.weight * losses).mean()
        metrics = {'critic_loss': loss.detach(), **critic.edges(target, rows.valid)}
        return CriticLoss(loss, metrics, surprise)

    def _priorities(self, surprise: Tensor, rows: Rows) -> Tensor:
        """Return a priority for each transition or sequence [B] from `surprise` [M]."""
        if not self.config.memory:
            return surprise + _LEAST_PRIORITY
        length = self.config.sequence_length
        surprise, valid = (x.view(length, -1) for x in (surprise, rows.valid > 0))
        surprise = surprise * valid
        mean = surprise.sum(dim=0) / valid.sum(dim=0).clamp(min=1)
        largest = surprise.amax(dim=0)
        return _PRIORITY_OF_MAX * largest + (1 - _PRIORITY_OF_MAX) * mean + _LEAST_PRIORITY


def _recall(memory: Memory, batch: SequenceBatch, sequence: Tensor, prefix: str) -> Seen:
    """Burn in, unroll over `sequence` [L, B, D], and pick what is seen at o_t and o_{t+k}."""
    burned, (length, lanes) = len(batch.real), batch.reward.shape
    state = tuple(batch.state[prefix + name] for name in STATE)
    state = memory.burn_in(sequence[:burned], batch.real, state)
    features = memory.unroll(sequence[burned:], state)  # [T + n, B, F]
    step = torch.arange(length, device=sequence.device)[:, None]
    lane = torch.arange(lanes, device=sequence.device)
    return Seen(
        features[:length].flatten(0, 1), features[step + batch.following, lane].flatten(0, 1)
    )


def _split(batch: Batch | SequenceBatch, count: int) -> list[Any]:
    """Return `batch` in `count` equal parts."""
    if count == 1:
        return [batch]
    # Time comes first in what a sequence has many of.
    by_time = set()
    if isinstance(batch, SequenceBatch):
        by_time = set(batch._fields) - {'state', 'weight'}

    def chunks(name: str, value: Any) -> list[Any]:
        if value is None:
            return [None] * count
        if isinstance(value, Mapping):
            parts = {key: chunks(name, part) for key, part in value.items()}
            return [{key: part[i] for key, part in parts.items()} for i in range(count)]
        return list(value.chunk(count, dim=1 if name in by_time else 0))

    columns = [chunks(name, value) for name, value in batch._asdict().items()]
    return [type(batch)(*parts) for parts in zip(*columns, strict=True)]


def _frozen(module: nn.Module) -> nn.Module:
    """Return a copy that shares its parameters' memory and wants no gradient for them.

    The policy's loss goes through the critic and must leave it as it is.
    """
    frozen = copy.deepcopy(module)
    for mine, own in zip(frozen.parameters(), module.parameters(), strict=True):
        mine.data = own.data
    return frozen.requires_grad_(False)
