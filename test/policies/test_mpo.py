import itertools

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from robot_rl.errors import SpecError
from robot_rl.policies.mpo import DMPOConfig, MPOConfig

DUALS = {'initial_log_temperature': 0.3, 'initial_log_alpha_mean': 1.0, 'initial_log_alpha_std': 2}
BOTH = list(itertools.product([False, True], repeat=2))


def test_defaults_are_those_of_the_baseline_scripts():
    config = MPOConfig()
    assert config.policy_layers == config.critic_layers == (256, 256, 256)
    assert config.policy_learning_rate == config.critic_learning_rate == 3e-4
    assert (config.batch_size, config.n_step, config.discount) == (256, 4, 0.99)
    assert (config.target_update_period, config.samples_per_insert) == (100, 64)
    assert (config.min_replay_size, config.replay_size) == (1000, 1_000_000)
    assert (config.num_samples, config.initial_std, config.max_gradient_norm) == (20, 0.5, 40)
    assert (config.epsilon, config.epsilon_penalty) == (0.1, 0.001)
    assert (config.epsilon_mean, config.epsilon_std) == (0.01, 1e-6)
    assert config.initial_log_temperature == config.initial_log_alpha_mean == 10
    assert (config.initial_log_alpha_std, config.dual_learning_rate) == (1000, 1e-2)
    assert config.per_dimension
    assert config.action_penalty
    assert config.critic == 'scalar'


def test_dmpo_is_mpo_with_a_categorical_critic():
    config = DMPOConfig()
    assert (config.critic, config.v_min, config.v_max, config.num_atoms) == (
        'categorical',
        -150,
        150,
        51,
    )
    assert config.to_dict() | {'critic': 'scalar'} == MPOConfig().to_dict()


@pytest.mark.parametrize(
    ('change', 'named'),
    [
        ({'epsilon': 0}, 'epsilon'),
        ({'num_samples': 0}, 'num_samples'),
        ({'sigma': 0.2}, 'sigma'),
        ({'initial_std': -1}, 'initial_std'),
    ],
)
def test_a_config_that_cannot_work_is_refused_by_name(change, named):
    with pytest.raises(SpecError, match=named):
        MPOConfig.parse(change)


def one(module, *tensors):
    """Call a network on one row."""
    return module(*(tensor[None] for tensor in tensors))[0]


def normal(network, features):
    """The policy's distribution in one state."""
    return Normal(*(x[0] for x in network.gaussian(features[None])))


def sampled(learner, row, noise):
    """The actions a_j of the target policy and what the target critic makes of each."""
    policy, critic = learner._target['policy'], learner._target['critic']
    with torch.no_grad():
        old = normal(policy, row.target['policy', 'next'])
        actions = [old.mean + old.stddev * z for z in noise]
        features = row.target['critic', 'next']
        beliefs = [one(critic, features, action.clip(-1, 1)) for action in actions]
    if learner.config.critic == 'scalar':
        return old, actions, beliefs, [belief[0] for belief in beliefs]
    beliefs = [belief.softmax(0) for belief in beliefs]
    return old, actions, beliefs, [belief @ torch.linspace(-5, 5, 11) for belief in beliefs]


def projected(atoms, probabilities, support):
    """Bellemare et al. 2017, equation 7, for one row."""
    atoms, spacing = atoms.clamp(support[0], support[-1]), support[1] - support[0]
    nearness = 1 - (atoms[None, :] - support[:, None]).abs() / spacing
    return (nearness.clamp(0, 1) * probabilities).sum(1)


def critic_loss_of(learner, row, beliefs):
    """Expected SARSA, or cross-entropy with the mean of the samples' projected distributions."""
    outputs = one(learner._online['critic'], row.online['critic', 'now'], row.action)
    if learner.config.critic == 'scalar':
        following = sum(belief[0] for belief in beliefs) / len(beliefs)
        return 0.5 * (row.reward + row.discount * following - outputs[0]) ** 2
    support = torch.linspace(-5, 5, 11)
    atoms = row.reward + row.discount * support
    target = sum(projected(atoms, belief, support) for belief in beliefs) / len(beliefs)
    return -(target * outputs.log_softmax(0)).sum()


def dual(learner, name):
    log = getattr(learner._online['duals'], f'log_{name}')
    return torch.log(1 + torch.exp(log)) + 1e-8


def improvement(learner, actions, values):
    """The weights of the actions [N], and the temperatures' losses added up []."""
    config, count = learner.config, len(actions)
    objectives = [(torch.stack(values), dual(learner, 'temperature'), config.epsilon)]
    if config.action_penalty:
        costs = [-torch.linalg.norm(action - action.clip(-1, 1)) for action in actions]
        temperature = dual(learner, 'penalty_temperature')
        objectives.append((torch.stack(costs), temperature, config.epsilon_penalty))
    weights, loss = 0, 0
    for objective, temperature, epsilon in objectives:
        exponentials = torch.exp(objective / temperature)
        weights = weights + (exponentials / exponentials.sum()).detach()
        loss = loss + temperature * (epsilon + torch.log(exponentials.sum() / count))
    return weights, loss


def written_out(learner, rows, noise):
    """Section 4 of MPO with decoupled bounds, state by state, sample by sample: parts []."""
    config, parts, divergences = learner.config, {'critic': 0, 'temperature': 0, 'policy': 0}, 0
    for m, row in enumerate(rows):
        old, actions, beliefs, values = sampled(learner, row, noise[:, m])
        parts['critic'] += row.weight * critic_loss_of(learner, row, beliefs)
        weights, loss = improvement(learner, actions, values)
        parts['temperature'] += row.valid * loss
        new = normal(learner._online['policy'], row.online['policy', 'next'])
        by_mean, by_std = Normal(new.mean, old.stddev), Normal(old.mean, new.stddev)
        for weight, action in zip(weights, actions, strict=True):
            likelihood = sum(Independent(p, 1).log_prob(action) for p in (by_mean, by_std))
            parts['policy'] -= row.valid * weight * likelihood
        both = torch.stack([kl_divergence(old, by_mean), kl_divergence(old, by_std)])
        divergences = divergences + row.valid * both / len(rows)
    parts = {name: part / len(rows) for name, part in parts.items()}
    if not config.per_dimension:
        divergences = divergences.sum(1, keepdim=True)
    parts['penalty'] = 0
    for name, divergence in zip(('mean', 'std'), divergences, strict=True):
        alpha, epsilon = dual(learner, f'alpha_{name}'), getattr(config, f'epsilon_{name}')
        parts['penalty'] += (alpha.detach() * divergence).sum()
        parts['penalty'] += (alpha * (epsilon - divergence.detach())).sum()
    return parts


@pytest.mark.parametrize(('per_dimension', 'action_penalty'), BOTH)
@pytest.mark.parametrize('memory', [0, 6])
@pytest.mark.parametrize('name', ['mpo', 'dmpo'])
def test_update_is_the_formula_written_out_once_more(
    make, shake, draw, rows_of, follows, name, memory, per_dimension, action_penalty
):
    """One update against rows, steps and samples one by one, and torch.distributions."""
    switches = {'per_dimension': per_dimension, 'action_penalty': action_penalty}
    learner = shake(make(name, memory, 3, max_gradient_norm=0.1, **DUALS, **switches))
    batch = draw(learner, 0)
    weight = np.random.default_rng(1).uniform(0.2, 1, 8).astype(np.float32)
    batch = batch._replace(weight=weight)
    rows = rows_of(learner, batch)
    generator = torch.Generator()
    generator.set_state(learner.save()['generator'])
    noise = torch.randn(5, len(rows), 2, generator=generator)
    parts = written_out(learner, rows, noise)
    metrics = follows(learner, batch, sum(parts.values()))
    for part in ('critic', 'policy'):
        expected = parts[part].detach()
        np.testing.assert_allclose(metrics[f'{part}_loss'], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('critic', ['scalar', 'categorical'])
@pytest.mark.parametrize(('per_dimension', 'action_penalty'), BOTH)
def test_every_multiplier_learns_and_stays_where_softplus_has_a_slope(
    make, shake, batches, critic, per_dimension, action_penalty
):
    """acme/jax/losses/mpo.py lost a dual where just one of the two switches was on."""
    switches = {'per_dimension': per_dimension, 'action_penalty': action_penalty}
    learner = shake(make('mpo', critic=critic, **DUALS, **switches))
    multipliers = dict(learner._online['duals'].named_parameters())
    names = {'log_temperature', 'log_alpha_mean', 'log_alpha_std'}
    assert multipliers.keys() == names | ({'log_penalty_temperature'} if action_penalty else set())
    sizes = [multipliers[f'log_alpha_{name}'].numel() for name in ('mean', 'std')]
    assert sizes == [2 if per_dimension else 1] * 2
    learner.update(batches(0))
    for parameter in multipliers.values():
        assert parameter.grad.all()
    with torch.no_grad():
        for parameter in multipliers.values():
            parameter.fill_(-50)
    learner.update(batches(1))
    for parameter in multipliers.values():
        assert (parameter == -18).all()


def test_it_samples_with_the_deviation_of_the_network(make, shake, batches):
    learner = shake(make('mpo', target_update_period=1), scale=0.5)
    learner.update(batches(1))  # and its target has what was shaken
    observation = batches(0, size=40).observation
    noise = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    found, state = learner.behaviour(40).select(observation, {}, noise)
    vector = torch.from_numpy(np.concatenate(list(observation.values()), axis=1))
    with torch.no_grad():
        mean, std = (x.numpy() for x in learner._target['policy'].gaussian(vector))
    assert std.std() > 0.01
    expected = [0, 4] + (mean + std * noise) * [0.5, 2]
    clipped = np.clip(expected, [-0.5, 2], [0.5, 6])
    assert (clipped != expected).any()
    np.testing.assert_allclose(found, clipped, atol=1e-5)
    assert state == {}
    quiet, _ = learner.policy.select(observation)
    expected = np.clip([0, 4] + mean * [0.5, 2], [-0.5, 2], [0.5, 6])
    np.testing.assert_allclose(quiet, expected, atol=1e-5)
