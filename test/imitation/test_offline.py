"""Learning from recorded steps: CRR filters by reward, cloning does not, shuffling undoes both."""

import threading

import numpy as np
import pytest
import torch

from robot_rl.errors import SpecError, StorageError
from robot_rl.imitation.bc import BCConfig, BCLearner
from robot_rl.imitation.offline import shuffle_rewards, train_offline
from robot_rl.policies.crr import CRRConfig, CRRLearner
from robot_rl.policies.d4pg import D4PGConfig, D4PGLearner
from robot_rl.specs import ActionField, Contract, ObservationField
from robot_rl.storage.mixture import Part
from robot_rl.storage.sampler import Transitions
from robot_rl.storage.steps import LAST, Steps

CONTRACT = Contract(
    rate_hz=10,
    observation=(ObservationField(name='x', source='env.x', shape=(2,)),),
    action=(ActionField(name='a', kind='generic', names=('a',), lower=(-2.0,), upper=(6.0,)),),
)
SMALL = {'policy_layers': (32, 32), 'learning_rate': 3e-3, 'batch_size': 128}
CRR = CRRConfig(critic_layers=(32, 32), v_min=-1, v_max=2, n_step=1, beta=0.1, **SMALL)


def bandit(episodes=4000, seed=0):
    """One-step episodes, actions uniform; an action above the middle (2) is worth 1, others 0."""
    rng = np.random.default_rng(seed)
    shape = (episodes, 2)  # a step, then the LAST row
    action = rng.uniform(-2, 6, (*shape, 1)).astype(np.float32)
    columns = {
        'observation/x': rng.normal(size=(*shape, 2)).astype(np.float32),
        'action': action,
        'reward': (action[..., 0] > 2).astype(np.float32),
        'discount': np.zeros(shape, np.float32),
        'step_type': np.tile(np.array([0, LAST], np.int8), (episodes, 1)),
    }
    return Steps(
        {name: column.reshape(1, -1, *column.shape[2:]) for name, column in columns.items()}
    )


def mean_action(learner, steps):
    action, _ = learner.policy.select({'x': steps.flat['observation/x'][:500]}, {})
    return float(action.mean())


def train(learner, steps):
    torch.manual_seed(0)
    train_offline(learner, steps, updates=300, seed=1)
    return mean_action(learner, steps)


@pytest.mark.parametrize('filter', ['binary', 'exp'])
def test_crr_imitates_the_rewarded_actions_only(filter):
    steps = bandit()
    action = train(CRRLearner(CONTRACT, CRR.replace(filter=filter)), steps)
    # Rewarded actions are uniform in [2, 6]; the mean of all actions is 2. Which of the rewarded
    # ones are better than the rest is noise, and the filter may follow it.
    assert 3.3 < action < 5.7


def test_crr_on_shuffled_rewards_clones_the_data():
    steps = bandit()
    action = train(CRRLearner(CONTRACT, CRR), shuffle_rewards(steps))
    assert action == pytest.approx(2.0, abs=0.6)


def test_behaviour_cloning_finds_the_mean_of_the_data():
    steps = bandit()
    assert train(BCLearner(CONTRACT, BCConfig(**SMALL)), steps) == pytest.approx(2.0, abs=0.3)


def test_crr_weight_is_that_of_the_paper():
    learner = CRRLearner(CONTRACT, CRR.replace(num_samples=3), seed=4)
    critic, policy = learner._online['critic'], learner._online['policy']
    torch.nn.init.normal_(critic.head.weight)  # else all values are nearly equal
    rng = np.random.default_rng(2)
    x = torch.tensor(rng.normal(size=(7, 2)), dtype=torch.float32)
    a = torch.tensor(rng.uniform(-1, 1, (7, 1)), dtype=torch.float32)

    def value(action):
        logits = critic(x, action).detach().numpy().astype(np.float64)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True) @ critic.support.numpy()

    noise = torch.randn((21, 1), generator=torch.Generator().manual_seed(4)).numpy()
    mean, std = (part.detach().numpy() for part in policy.gaussian(x))
    sampled = [
        value(torch.tensor((mean + std * part).clip(-1, 1))) for part in noise.reshape(3, 7, 1)
    ]
    advantage = value(a) - np.mean(sampled, axis=0)
    expected = np.minimum(np.exp(advantage / 0.1), 20.0)
    weight = learner._weight(x, critic(x, a)).numpy()
    np.testing.assert_allclose(weight, expected, rtol=1e-4)


def test_shuffling_permutes_rewards_and_nothing_else():
    steps = bandit(episodes=50)
    shuffled = shuffle_rewards(steps, seed=3)
    valid = steps.flat['step_type'] != LAST
    for name, column in steps.flat.items():
        if name != 'reward':
            np.testing.assert_array_equal(shuffled.flat[name], column)
    before, after = steps.flat['reward'], shuffled.flat['reward']
    np.testing.assert_array_equal(np.sort(before[valid]), np.sort(after[valid]))
    np.testing.assert_array_equal(before[~valid], after[~valid])
    assert (before[valid] != after[valid]).any()


@pytest.mark.parametrize(
    ('learner', 'config'), [(CRRLearner, CRR), (BCLearner, BCConfig(**SMALL))]
)
def test_two_runs_with_one_seed_are_equal(learner, config):
    torch.set_num_threads(1)
    runs = [train(learner(CONTRACT, config, seed=5), bandit(200)) for _ in range(2)]
    assert runs[0] == runs[1]


def test_crr_critic_bootstraps_a_truncation():
    """With reward 1, discount 0.5 and a truncation the value is 2 where it bootstraps, else 1."""
    x = np.zeros((64, 2), np.float32)
    one = np.ones(64, np.float32)
    config = CRR.replace(v_min=0, v_max=3, target_update_period=5)
    values = {}
    for name, discount in {'truncated': 0.5 * one, 'terminated': 0 * one}.items():
        learner = CRRLearner(CONTRACT, config)
        batch = Transitions({'x': x}, np.full((64, 1), 2, np.float32), one, discount, {'x': x})
        for _ in range(400):
            learner.update(batch)
        critic = learner._online['critic']
        logits = critic(torch.zeros(1, 2), torch.zeros(1, 1))
        values[name] = float(logits.detach().softmax(dim=1) @ critic.support)
    assert values['truncated'] == pytest.approx(2.0, abs=0.15)
    assert values['terminated'] == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(
    'change', [{'memory': 8}, {'updates_per_call': 2}, {'priority_exponent': 0.5}]
)
def test_what_recorded_episodes_cannot_serve_is_refused_by_name(change):
    (name,) = change
    learner = D4PGLearner(CONTRACT, D4PGConfig(policy_layers=(8,), critic_layers=(8,), **change))
    with pytest.raises(SpecError, match=f'learner.{name}: .* is right'):
        train_offline(learner, bandit(episodes=3), updates=1)


@pytest.mark.parametrize('column', ['reward', 'observation/x', 'action'])
def test_nan_among_recorded_steps_is_refused_by_name(column):
    steps = bandit(episodes=5)
    steps.columns[column][0, 4] = np.nan
    learner = BCLearner(CONTRACT, BCConfig(**SMALL))
    told = f'{column.replace("/", " ")}: NaN or infinite in 1 of 10 recorded steps'
    with pytest.raises(StorageError, match=told):
        train_offline(learner, steps, updates=1)


@pytest.mark.parametrize('mixing', ['quota', 'bernoulli'])
def test_parts_are_learned_from_by_their_shares_which_are_reported(mixing):
    steps, rows = bandit(episodes=40), []
    parts = {'all': Part(0.75), 'task': Part(0.25, np.array([[0, 2], [10, 14]]))}
    learner = BCLearner(CONTRACT, BCConfig(**SMALL))
    train_offline(learner, steps, 150, 3, lambda *row: rows.append(row), parts, mixing)
    assert [done for done, _ in rows] == [100, 150]
    told = rows[-1][1]['fraction task']
    assert told == 0.25 if mixing == 'quota' else told == pytest.approx(0.25, abs=0.02)
    assert told + rows[-1][1]['fraction all'] == 1


def test_an_error_while_learning_ends_what_draws_ahead():
    learner = BCLearner(CONTRACT, BCConfig(**SMALL))
    learner.update = lambda batch: 1 / 0
    with pytest.raises(ZeroDivisionError):
        train_offline(learner, bandit(episodes=5), updates=3)
    assert not [t for t in threading.enumerate() if t.name == 'prefetch']
