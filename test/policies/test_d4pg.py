import copy

import numpy as np
import pytest
import torch

from robot_rl.errors import SpecError
from robot_rl.policies import losses
from robot_rl.policies.agent import Batch
from robot_rl.policies.d4pg import D4PG, D4PGConfig, D4PGLearner


def weights(module):
    return [parameter.detach().clone() for parameter in module.parameters()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_defaults_are_those_of_the_baseline_script():
    config = D4PGConfig()
    assert config.policy_layers == config.critic_layers == (256, 256, 256)
    assert config.policy_learning_rate == config.critic_learning_rate == 3e-4
    assert (config.batch_size, config.n_step, config.discount) == (256, 5, 0.99)
    assert (config.v_min, config.v_max, config.num_atoms) == (-150, 150, 51)
    assert (config.target_update_period, config.samples_per_insert) == (100, 32)
    assert (config.min_replay_size, config.replay_size) == (1000, 1_000_000)
    assert (config.sigma, config.max_gradient_norm, config.max_action_gradient_norm) == (
        0.2,
        40,
        1,
    )


@pytest.mark.parametrize(
    ('change', 'named'),
    [
        ({'v_min': 3.0, 'v_max': 3.0}, 'v_min'),
        ({'min_replay_size': 50, 'replay_size': 10}, 'min_replay_size'),
        ({'n_step': 1000}, 'n_step'),
        ({'discount': 1.5}, 'discount'),
        ({'policy_layers': []}, 'policy_layers'),
        ({'learning_rate': 1e-3}, 'policy_learning_rate'),
    ],
)
def test_a_config_that_cannot_work_is_refused_by_name(change, named):
    with pytest.raises(SpecError, match=named):
        D4PGConfig.parse(change)


def test_update_is_the_formula_written_out_once_more(contract, config, batches):
    """One update against plain backward passes, plain clipping and torch's unfused Adam."""
    learner = D4PGLearner(contract, config.replace(max_gradient_norm=0.01), seed=3)
    policy, critic = (copy.deepcopy(learner._online[name]) for name in ('policy', 'critic'))
    policy.requires_grad_(True), critic.requires_grad_(True)
    batch = batches(0)
    o, following = (
        torch.from_numpy(np.concatenate([fields['position'], fields['height']], axis=1))
        for fields in (batch.observation, batch.next_observation)
    )
    a = torch.from_numpy((batch.action - [0, 4]) / [0.5, 2]).float()
    with torch.no_grad():
        target = critic(following, policy(following)).softmax(1)
        atoms = torch.from_numpy(batch.reward)[:, None] + torch.from_numpy(batch.discount)[
            :, None
        ] * torch.linspace(-5, 5, 11)
        target = losses.categorical_projection(atoms, target, critic.support)
    critic_loss = -(target * critic(o, a).log_softmax(1)).sum(1).mean()
    critic_gradient = torch.autograd.grad(critic_loss, list(critic.parameters()))
    action = policy(following)
    q = (critic(following, action).softmax(1) * torch.linspace(-5, 5, 11)).sum()
    dq_da = torch.autograd.grad(q, action, retain_graph=True)[0]
    dq_da = dq_da / dq_da.norm(dim=1, keepdim=True).clamp(min=1)
    policy_gradient = torch.autograd.grad(-(dq_da * action).sum(1).mean(), policy.parameters())
    metrics = learner.update(batch)
    np.testing.assert_allclose(metrics['critic_loss'], critic_loss.detach(), rtol=1e-5)
    for module, gradients, name in (
        (critic, critic_gradient, 'critic'),
        (policy, policy_gradient, 'policy'),
    ):
        norm = torch.sqrt(sum(g.square().sum() for g in gradients))
        np.testing.assert_allclose(metrics[f'{name}_gradient_norm'], norm, rtol=1e-4)
        for parameter, gradient in zip(module.parameters(), gradients, strict=True):
            parameter.grad = gradient * min(1.0, 0.01 / norm)
        torch.optim.Adam(module.parameters(), lr=3e-4, fused=False, foreach=False).step()
        for found, expected in zip(
            learner._online[name].parameters(), module.parameters(), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-6)


def test_targets_are_copied_every_period_and_stay_in_between(contract, config, batches):
    learner = D4PGLearner(contract, config)
    initial = weights(learner._target)
    assert same(initial, weights(learner._online))
    for step in range(1, 8):
        before = weights(learner._target)
        learner.update(batches(step))
        if step % 3 == 0:
            assert same(weights(learner._target), weights(learner._online))
        else:
            assert same(weights(learner._target), before)


def test_the_policy_that_acts_is_the_target(contract, config, batches):
    learner = D4PGLearner(contract, config)
    observation = batches(0).observation
    before, _ = learner.policy.select(observation)
    learner.update(batches(1))
    learner.update(batches(2))
    np.testing.assert_array_equal(learner.policy.select(observation)[0], before)
    learner.update(batches(3))
    assert not np.array_equal(learner.policy.select(observation)[0], before)


def test_the_critics_weights_get_no_gradient_from_the_policys_loss(contract, config, batches):
    learner = D4PGLearner(contract, config)
    vector = learner._vector(
        {name: torch.from_numpy(v) for name, v in batches(0).observation.items()}
    )
    loss, _ = learner._policy_loss(vector)
    loss.backward()
    assert all(parameter.grad is None for parameter in learner._online['critic'].parameters())


@pytest.mark.parametrize('normalize', [False, True])
def test_restore_makes_the_next_update_bitwise_the_same(contract, config, batches, normalize):
    config = config.replace(normalize_observations=normalize)
    learner = D4PGLearner(contract, config, seed=1)
    learner.fit_normalizer(batches(99, size=200).observation)
    for seed in range(4):
        learner.update(batches(seed))
    other = D4PGLearner(contract, config, seed=2)
    other.restore(copy.deepcopy(learner.save()))
    for seed in range(4, 8):
        first, second = learner.update(batches(seed)), other.update(batches(seed))
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert same(weights(learner._online), weights(other._online))
    assert same(weights(learner._target), weights(other._target))
    assert learner.steps == other.steps == 8


def test_one_seed_gives_one_learner_whatever_the_global_generator(contract, config, batches):
    torch.manual_seed(0)
    first = D4PGLearner(contract, config, seed=7)
    torch.manual_seed(1)
    second = D4PGLearner(contract, config, seed=7)
    third = D4PGLearner(contract, config, seed=8)
    for seed in range(5):
        first.update(batches(seed)), second.update(batches(seed))
    assert same(weights(first._online), weights(second._online))
    assert not same(weights(first._online), weights(third._online))


def test_it_learns_a_bandit(contract, config):
    """One step, reward -(distance to an action that depends on the observation)^2."""
    learner = D4PG.learner(
        contract,
        config.replace(policy_learning_rate=3e-3, critic_learning_rate=3e-3, batch_size=64),
        0,
    )
    rng = np.random.default_rng(0)

    def draw(size):
        position = rng.uniform(-1, 1, (size, 3)).astype(np.float32)
        return {'position': position, 'height': np.zeros((size, 2), np.float32)}

    def best(observation):
        x = observation['position'][:, 0]
        return np.stack([0.3 * x, 4 + 1.2 * x], axis=1)

    def error(observation, action):
        return (((action - best(observation)) / [0.5, 2]) ** 2).sum(1).astype(np.float32)

    for _ in range(400):
        observation = draw(64)
        action = rng.uniform([-0.5, 2], [0.5, 6], (64, 2)).astype(np.float32)
        discount = np.zeros(64, np.float32)
        learner.update(
            Batch(observation, action, -error(observation, action), discount, observation)
        )
    observation = draw(200)
    assert error(observation, learner.policy.select(observation)[0]).mean() < 0.1
