"""Cloning: each head's loss against torch.distributions, with a memory step by step."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_rl.imitation.bc import BCConfig, BCLearner
from robot_rl.policies.agent import Batch
from robot_rl.policies.losses import mixture_log_likelihood
from robot_rl.policies.networks import MixturePolicy
from robot_rl.specs import ActionField, Contract, ObservationField
from robot_rl.storage.sampler import WindowSampler
from robot_rl.storage.steps import FIRST, LAST, MID, Steps

LOWER, UPPER = np.array([-2.0, 1.0]), np.array([6.0, 2.0])
CONTRACT = Contract(
    rate_hz=10,
    observation=(
        ObservationField(name='x', source='env.x', shape=(2,)),
        ObservationField(name='y', source='env.y', shape=()),
    ),
    action=(
        ActionField(
            name='a', kind='generic', names=('a', 'b'), lower=tuple(LOWER), upper=tuple(UPPER)
        ),
    ),
)
HEADS = ['deterministic', 'gaussian', 'mixture']
SMALL = {'policy_layers': (16, 16), 'batch_size': 16, 'learning_rate': 3e-3}


pytestmark = pytest.mark.usefixtures('one_thread')


def learner(head='deterministic', memory=0, seed=0, **options):
    return BCLearner(CONTRACT, BCConfig(**SMALL | options, head=head, memory=memory), seed)


def episodes(count=20, length=12, seed=0):
    """Noise to be seen; actions anywhere within their bounds."""
    rng, size = np.random.default_rng(seed), count * length
    kinds = np.array([[FIRST, *[MID] * (length - 2), LAST] * count], np.int8)
    return Steps(
        {
            'observation/x': rng.normal(3, 2, (1, size, 2)).astype(np.float32),
            'observation/y': rng.normal(size=(1, size)).astype(np.float32),
            'action': rng.uniform(LOWER, UPPER, (1, size, 2)).astype(np.float32),
            'reward': np.zeros((1, size), np.float32),
            'discount': np.ones((1, size), np.float32),
            'step_type': kinds,
        }
    )


def draw(which, seed=0, steps=None):
    sampler = WindowSampler(steps or episodes(), 1, 0.99, seed)
    if which.config.memory:
        config = which.config
        return sampler.sequences(config.batch_size, config.sequence_length, config.burn_in)
    return sampler.transitions(which.config.batch_size)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 4), st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_the_likelihood_of_a_mixture_is_that_of_torch_distributions(batch, modes, size, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, modes, generator=generator)
    mean, action = (
        torch.randn(shape, generator=generator) for shape in ((batch, modes, size), (batch, size))
    )
    std = torch.rand(batch, modes, size, generator=generator) + 0.05
    expected = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=logits),
        torch.distributions.Independent(torch.distributions.Normal(mean, std), 1),
    ).log_prob(action)
    torch.testing.assert_close(
        mixture_log_likelihood(action, logits, mean, std), expected, rtol=1e-4, atol=1e-4
    )


def test_a_mixture_of_one_far_away_action_is_still_finite():
    far = torch.full((1, 2), 1e4)
    found = mixture_log_likelihood(
        far, torch.zeros(1, 3), torch.zeros(1, 3, 2), torch.ones(1, 3, 2)
    )
    assert found.item() == pytest.approx(-1e8 - math.log(2 * math.pi), rel=1e-6)


def test_the_mixture_acts_by_the_mean_of_its_likeliest_mode():
    network = MixturePolicy(3, 2, (8,), torch.Generator().manual_seed(0), modes=4)
    with torch.no_grad():
        network.logits.weight.normal_(generator=torch.Generator().manual_seed(1))
        features = torch.randn(20, 3, generator=torch.Generator().manual_seed(2))
        logits, mean, std = network.mixture(features)
        found = network(features)
    assert (logits.shape, mean.shape, std.shape) == ((20, 4), (20, 4, 2), (20, 4, 2))
    assert len(set(logits.argmax(1).tolist())) > 1
    for row in range(20):
        assert torch.equal(found[row], mean[row, logits[row].argmax()])
    assert (mean.abs() < 1).all()
    assert (std > 1e-2).all()
    np.testing.assert_allclose(std, 0.51, atol=0.05)  # initial_std and min_std


def nll(head, network, features, action):
    """The loss of one step, with torch.distributions."""
    if head == 'deterministic':
        return (network(features) - action).square().sum(1)
    if head == 'gaussian':
        return -torch.distributions.Normal(*network.gaussian(features)).log_prob(action).sum(1)
    logits, mean, std = network.mixture(features)
    modes = torch.distributions.Independent(torch.distributions.Normal(mean, std), 1)
    choice = torch.distributions.Categorical(logits=logits)
    return -torch.distributions.MixtureSameFamily(choice, modes).log_prob(action)


@pytest.mark.parametrize('head', HEADS)
def test_the_loss_is_that_of_the_head_in_units_of_the_bounds(head):
    which = learner(head)
    which.fit_normalizer({k: np.asarray(v) for k, v in draw(which).observation.items()})
    batch = draw(which, 1)
    vector = np.concatenate([batch.observation['x'], batch.observation['y'][:, None]], 1)
    normalizer = which.policy.vector.normalizer
    features = (torch.from_numpy(vector) - normalizer.mean) / normalizer.std
    unit = torch.from_numpy((batch.action - (LOWER + UPPER) / 2) / ((UPPER - LOWER) / 2)).float()
    with torch.no_grad():
        expected = nll(head, which.policy.network, features, unit).mean()
    found = which.update(batch)['policy_loss']
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('head', HEADS)
def test_with_a_memory_the_loss_is_that_of_what_was_seen_so_far(head):
    """Step by step from nothing: burn-in rows that are there, then the steps that are valid."""
    which = learner(head, memory=5, sequence_length=4, burn_in=3, normalize_observations=False)
    batch = draw(which, 3)
    assert not batch.valid.all()
    assert not batch.real.all()
    total, count = 0.0, 0
    vectors = np.concatenate([batch.observation['x'], batch.observation['y'][..., None]], 2)
    with torch.no_grad():
        for b in range(vectors.shape[1]):
            state = torch.zeros(1, 5), torch.zeros(1, 5)
            for row in range(3 + 4):
                if row < 3 and not batch.real[row, b]:
                    continue
                seen = torch.from_numpy(vectors[row, b][None])
                features, state = which.policy.memory.step(seen, state)
                if row >= 3 and batch.valid[row - 3, b]:
                    action = (batch.action[row - 3, b] - (LOWER + UPPER) / 2) / (
                        (UPPER - LOWER) / 2
                    )
                    action = torch.from_numpy(action[None]).float()
                    total += nll(head, which.policy.network, features, action).item()
                    count += 1
    assert which.update(batch)['policy_loss'].item() == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize('memory', [0, 5])
@pytest.mark.parametrize('head', HEADS)
def test_restore_makes_the_next_update_bitwise_the_same(head, memory):
    first, second = (learner(head, memory, seed) for seed in (1, 2))
    first.fit_normalizer(draw(learner()).observation)
    for seed in range(3):
        first.update(draw(first, seed))
    second.restore(copy.deepcopy(first.save()))
    for seed in range(3, 6):
        found, expected = second.update(draw(second, seed)), first.update(draw(first, seed))
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    pairs = zip(
        first.policy.state_dict().values(), second.policy.state_dict().values(), strict=True
    )
    assert all(torch.equal(one, other) for one, other in pairs)
    assert first.steps == second.steps == 6


def cloned(head, memory=0, updates=400):
    """Two experts, one of +0.5 and one of -0.5 (of the range) in every state; what is learned."""
    which, rng = learner(head, memory, normalize_observations=False), np.random.default_rng(0)
    for _ in range(updates):
        side = rng.choice([-0.5, 0.5], size=(64, 1))
        unit = side + 0.02 * rng.normal(size=(64, 2))
        action = (LOWER + UPPER) / 2 + unit * (UPPER - LOWER) / 2
        seen = {'x': rng.normal(size=(64, 2)), 'y': rng.normal(size=64)}
        seen = {name: value.astype(np.float32) for name, value in seen.items()}
        one = np.ones(64, np.float32)
        which.update(Batch(seen, action.astype(np.float32), one, one, seen))
    action, _ = which.policy.select(seen)
    return (action - (LOWER + UPPER) / 2) / ((UPPER - LOWER) / 2)


def test_a_mixture_takes_one_of_two_ways_where_the_others_go_between():
    """Averaging two demonstrators who pass an obstacle left and right leads into it."""
    assert np.abs(np.abs(cloned('mixture')) - 0.5).max() < 0.1
    for head in ('deterministic', 'gaussian'):
        assert np.abs(cloned(head)).mean() < 0.2
