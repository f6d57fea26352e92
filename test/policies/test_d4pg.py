import numpy as np
import pytest
import torch

from robot_rl.errors import SpecError
from robot_rl.policies.d4pg import D4PGConfig


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
        ({'memory': 8, 'min_replay_size': 20, 'replay_size': 30}, 'sequence_length'),
        ({'critic': 'quantile'}, 'critic'),
        ({'noise_ladder': [0.1, -0.1]}, 'noise_ladder'),
    ],
)
def test_a_config_that_cannot_work_is_refused_by_name(change, named):
    with pytest.raises(SpecError, match=named):
        D4PGConfig.parse(change)


def projected(atoms, probabilities, support):
    """Bellemare et al. 2017, equation 7, for one row."""
    atoms, spacing = atoms.clamp(support[0], support[-1]), support[1] - support[0]
    nearness = 1 - (atoms[None, :] - support[:, None]).abs() / spacing
    return (nearness.clamp(0, 1) * probabilities).sum(1)


def one(module, *tensors):
    """Call a network on one row."""
    return module(*(tensor[None] for tensor in tensors))[0]


def critic_loss_of(learner, row):
    """Barth-Maron et al. 2018, algorithm 1; with a scalar critic Lillicrap et al. 2016."""
    critic, target = learner._online['critic'], learner._target
    with torch.no_grad():
        action = one(target['policy'], row.target['policy', 'next'])
        following = one(target['critic'], row.target['critic', 'next'], action)
    outputs = one(critic, row.online['critic', 'now'], row.action)
    if learner.config.critic == 'scalar':
        return 0.5 * (row.reward + row.discount * following[0] - outputs[0]) ** 2
    support = torch.linspace(-5, 5, 11)
    target = projected(row.reward + row.discount * support, following.softmax(0), support)
    return -(target * outputs.log_softmax(0)).sum()


def policy_loss_of(learner, row):
    """-q(s, a) to first order in a = policy(s), with dq/da cut to a norm of 1."""
    action = one(learner._online['policy'], row.online['policy', 'next'])
    leaf = action.detach().requires_grad_()
    outputs = one(learner._online['critic'], row.online['critic', 'next'].detach(), leaf)
    scalar = learner.config.critic == 'scalar'
    value = outputs[0] if scalar else outputs.softmax(0) @ torch.linspace(-5, 5, 11)
    (dq_da,) = torch.autograd.grad(value, leaf)
    limit = learner.config.max_action_gradient_norm
    climb = -(dq_da * min(1, limit / float(dq_da.norm())) * action).sum()
    penalty = learner.config.preactivation_penalty * action.atanh().square().sum()
    return climb + penalty, value.detach()


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('memory', [0, 6])
@pytest.mark.parametrize('name', ['d4pg', 'ddpg'])
def test_update_is_the_formula_written_out_once_more(
    make, shake, draw, rows_of, follows, name, memory, weighted
):
    """One update against rows one by one, step by step through sequences, and plain autograd."""
    options = {'max_gradient_norm': 0.1, 'max_action_gradient_norm': 0.05}
    options['preactivation_penalty'] = 0.3 if weighted else 0.0
    learner = shake(make(name, memory, seed=3, **options))
    batch = draw(learner, 0)
    weight = np.random.default_rng(1).uniform(0.2, 1, 8).astype(np.float32)
    batch = batch._replace(weight=weight if weighted else None)
    rows = rows_of(learner, batch)
    critic_losses = [critic_loss_of(learner, row) for row in rows]
    policy_losses, values = zip(*(policy_loss_of(learner, row) for row in rows), strict=True)
    critic_loss = sum(row.weight * x for row, x in zip(rows, critic_losses, strict=True))
    policy_loss = sum(row.valid * x for row, x in zip(rows, policy_losses, strict=True))
    value = sum(row.valid * x for row, x in zip(rows, values, strict=True))
    metrics = follows(learner, batch, (critic_loss + policy_loss) / len(rows))
    found = metrics['critic_loss'], metrics['value']
    expected = float(critic_loss.detach()) / len(rows), float(value) / len(rows)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('memory', [0, 6])
@pytest.mark.parametrize('name', ['d4pg', 'ddpg'])
def test_the_policys_loss_leaves_the_critic_as_it_is(make, shake, draw, name, memory):
    """Only the critic's loss moves the critic: with weights of 0 it gets no gradient at all."""
    learner = shake(make(name, memory))
    learner.update(draw(learner, 0)._replace(weight=np.zeros(8, np.float32)))
    online = learner._online
    gradients = {
        part: [p.grad for n, p in online.named_parameters() if n.startswith(part)]
        for part in ('policy', 'critic')
    }
    assert not any(gradient.any() for gradient in gradients['critic'])
    assert all(gradient.any() for gradient in gradients['policy'])


def test_noise_has_the_deviation_of_its_environment(make, batches):
    """noise_ladder: evenly spaced from the first environment to the last."""
    learner = make('d4pg', noise_ladder=(0.1, 0.4))
    observation = batches(0, size=4).observation
    noise = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    behaviour = learner.behaviour(4)
    found, state = behaviour.select(observation, behaviour.initial_state(4), noise)
    quiet, _ = learner.policy.select(observation)
    sigma = np.array([0.1, 0.2, 0.3, 0.4])[:, None]
    expected = quiet + sigma * noise * [0.5, 2]
    np.testing.assert_allclose(found, np.clip(expected, [-0.5, 2], [0.5, 6]), atol=1e-6)
    assert state == {}
    steady, _ = make('d4pg', sigma=0.3).behaviour(4).select(observation, {}, noise)
    expected = quiet + 0.3 * noise * [0.5, 2]
    np.testing.assert_allclose(steady, np.clip(expected, [-0.5, 2], [0.5, 6]), atol=1e-6)


def test_a_ladder_for_one_environment_is_refused_by_name(make):
    with pytest.raises(SpecError, match=r'learner.noise_ladder: \[0.1, 0.4\] for one environment'):
        make('d4pg', noise_ladder=(0.1, 0.4)).behaviour(1)
