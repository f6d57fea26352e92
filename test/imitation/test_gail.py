"""What an adversarial learner does with its discriminator, computed once more by other means."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional

from robot_rl.errors import RobotRLError, SpecError
from robot_rl.imitation.gail import GAILConfig, GAILDMPOConfig, require_fixed_horizon
from robot_rl.imitation.trail import TRAILConfig
from robot_rl.policies.d4pg import D4PGConfig
from robot_rl.policies.mpo import DMPOConfig
from robot_rl.storage.sampler import Transitions

PLAIN = {'spectral_norm': False, 'gradient_penalty': 0.0, 'entropy_bonus': 0.0}
MIDDLE, HALF = np.array([2.0, 1.5]), np.array([4.0, 0.5])


def vector(seen):
    return np.concatenate([seen['x'], seen['y'][:, None]], axis=1)


def sample(judged, judges, extra=0):
    """What the discriminator is to see, before any statistics are known."""
    action = np.clip((judged.action - MIDDLE) / HALF, -1, 1)
    now, following = vector(judged.observation), vector(judged.next_observation)
    parts = {
        'observation_action': [now, action],
        'observation': [following],
        'transition': [now, following],
    }[judges]
    return torch.from_numpy(np.concatenate([*parts, np.zeros((len(now), extra))], 1)).float()


def logits(learner, x):
    """The discriminator's network, layer by layer."""
    layers = [m for m in learner.discriminator if isinstance(m, torch.nn.Linear)]
    for layer in layers[:-1]:
        x = torch.relu(x @ layer.weight.T + layer.bias)
    return (x @ layers[-1].weight.T + layers[-1].bias).squeeze(1)


def cross_entropy(learner, expert, agent):
    """Mean binary cross-entropy on experts (1) plus that on the agent (0)."""
    loss = 0.0
    for x, label in ((expert, 1.0), (agent, 0.0)):
        found = logits(learner, x)
        loss = loss + functional.binary_cross_entropy_with_logits(
            found, torch.full_like(found, label)
        )
    return loss


def gradients(loss, learner):
    return torch.autograd.grad(loss, list(learner.discriminator.parameters()))


@pytest.mark.parametrize('judges', ['observation_action', 'observation', 'transition'])
@pytest.mark.parametrize('name', ['gail', 'gail_dmpo'])
def test_the_discriminator_goes_down_the_cross_entropy(make, steps, name, judges):
    learner = make(name, judges=judges, max_gradient_norm=1e6, **PLAIN)
    expert, agent = steps(0, at=1.0), steps(1)
    loss = cross_entropy(learner, sample(expert, judges), sample(agent, judges))
    expected = gradients(loss, learner)
    right = [logits(learner, sample(s, judges)).detach() for s in (expert, agent)]
    metrics = learner.judge(expert, agent)
    assert metrics['discriminator_loss'].item() == pytest.approx(loss.item(), rel=1e-5)
    for parameter, gradient in zip(learner.discriminator.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
    assert metrics['accuracy_expert'] == (right[0] > 0).float().mean()
    assert metrics['accuracy_agent'] == (right[1] <= 0).float().mean()
    assert metrics['d_expert'].item() == pytest.approx(right[0].sigmoid().mean().item(), rel=1e-5)


def test_penalty_and_bonus_are_weighed_as_asked(make, steps):
    expert, agent, total = steps(0), steps(1), {}
    for penalty, bonus in ((0, 0), (0, 0.5), (2, 0)):
        learner = make(**PLAIN | {'gradient_penalty': penalty, 'entropy_bonus': bonus})
        metrics, found = {}, []
        learner._descend = found.append
        metrics = learner.judge(expert, agent)
        total[penalty, bonus] = found[0].item()
        if bonus:
            x = torch.cat([sample(s, 'observation_action') for s in (expert, agent)])
            entropy = torch.distributions.Bernoulli(logits=logits(learner, x)).entropy().mean()
            assert total[0, 0.5] == pytest.approx(total[0, 0] - 0.5 * entropy.item(), rel=1e-5)
        if penalty:
            assert metrics['gradient_penalty'] > 0
            expected = total[0, 0] + 2 * metrics['gradient_penalty'].item()
            assert total[2, 0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('form', ['-log(1-D)', 'log D', 'airl'])
def test_rewards_are_what_the_present_discriminator_says(make, steps, form):
    learner = make(reward=form, max_reward=2.5, **PLAIN)
    judged = steps(3)
    for _ in range(2):
        p = logits(learner, sample(judged, 'observation_action')).sigmoid().detach().numpy()
        right = {
            '-log(1-D)': -np.log(1 - p),
            'log D': np.log(p),
            'airl': np.log(p) - np.log(1 - p),
        }
        np.testing.assert_allclose(learner.reward(judged), right[form], rtol=1e-4, atol=1e-5)
        for seed in range(30):
            learner.judge(steps(seed, at=2.0), steps(seed))


@pytest.mark.parametrize(
    ('judges', 'ignored'),
    [('observation', ('observation', 'action')), ('transition', ('action',)),
     ('observation_action', ('next_observation',))],
)  # fmt: skip
def test_what_is_not_judged_changes_no_reward(make, steps, judges, ignored):
    learner, judged, other = make(judges=judges), steps(0), steps(1)
    before = learner.reward(judged)
    for name in judged._fields[:3]:
        changed = learner.reward(judged._replace(**{name: getattr(other, name)}))
        assert torch.equal(changed, before) == (name in ignored)


def test_dropout_and_noise_are_of_training_alone(make, steps):
    learner = make(dropout=0.5, input_dropout=0.2, augmentation=1.0)
    judged = steps(0)
    learner.judge(steps(1), steps(2))
    assert torch.equal(learner.reward(judged), learner.reward(judged))


def test_what_is_judged_is_normalised_by_what_was_seen(make, steps):
    learner, judged = make(**PLAIN), steps(0, at=50.0)
    seen = {name: 50 + 3 * value for name, value in steps(9, size=500).observation.items()}
    learner.fit_normalizer(seen)
    mean, std = vector(seen).mean(0), vector(seen).std(0)
    x = sample(judged, 'observation_action')
    x[:, :3] = torch.from_numpy((vector(judged.observation) - mean) / std)
    expected = functional.softplus(logits(learner, x)).detach()
    torch.testing.assert_close(learner.reward(judged), expected, rtol=1e-4, atol=1e-5)


def test_behind_a_termination_the_absorbing_state_pays_for_ever(make, steps):
    """As if 5000 steps in it had been recorded; other steps are paid as they are."""
    learner = make(horizon='absorbing', reward='airl', max_reward=5, discount=0.95, **PLAIN)
    judged = steps(0, ends=3)
    with torch.no_grad():
        usual = logits(learner, sample(judged, 'observation_action', extra=1)).clamp(-5, 5)
        absorbing = torch.zeros(1, 6)
        absorbing[0, -1] = 1
        forever = logits(learner, absorbing).clamp(-5, 5)
    later = sum(0.95**k for k in range(1, 5000)) * forever
    expected = torch.where(torch.arange(12) < 3, usual + later, usual)
    torch.testing.assert_close(learner.reward(judged), expected, rtol=1e-4, atol=1e-5)


def test_absorbing_states_are_judged_as_often_as_an_episode_would_stay_in_them(make, steps):
    learner = make(horizon='absorbing', discount=0.9, **PLAIN)
    expert, agent = steps(0, ends=0), steps(1, ends=2)
    x = [sample(s, 'observation_action', extra=1) for s in (expert, agent)]
    absorbing = torch.zeros(1, 6)
    absorbing[0, -1] = 1
    weight = 2 * 9.0  # two terminations, 0.9 + 0.9^2 + ... each
    with torch.no_grad():
        agents = functional.softplus(logits(learner, x[1])).sum()
        agents = (agents + weight * functional.softplus(logits(learner, absorbing))) / (
            12 + weight
        )
        expected = functional.softplus(-logits(learner, x[0])).mean() + agents
    found = learner.judge(expert, agent)['discriminator_loss']
    torch.testing.assert_close(found, expected[0], rtol=1e-5, atol=1e-6)


def test_a_fixed_horizon_is_held_to(make):
    learner = make(horizon='fixed')
    require_fixed_horizon(learner, np.ones(5), 'episodes')
    with pytest.raises(RobotRLError, match=r'learner.horizon: fixed, but .*=absorbing is right'):
        require_fixed_horizon(learner, np.array([1.0, 0.0]), 'episodes of the demonstrations')
    require_fixed_horizon(make(horizon='absorbing'), np.zeros(3), 'episodes')


@pytest.mark.parametrize('shift', [-3.0, 3.0])
def test_the_constraint_reverses_the_gradient_where_accuracy_exceeds_chance(make, steps, shift):
    """Computed apart: that of all samples, minus that of the first frames if they are told."""
    learner = make('trail', max_gradient_norm=1e6, discriminator_learning_rate=0.01, **PLAIN)
    for seed in range(100):  # until it can tell what lies at 3 from what lies at 0
        learner.judge(steps(seed, at=3.0), steps(seed + 1), (steps(2), steps(2)))
    expert, agent = steps(0, at=3.0), steps(1)
    early = steps(5, at=shift), steps(6)
    apart = [sample(s, 'observation') for s in early]
    told = [logits(learner, x).detach() for x in apart]
    accuracy = ((told[0] > 0).float().mean() + (told[1] <= 0).float().mean()) / 2
    assert accuracy > 0.8 if shift > 0 else accuracy <= 0.5
    loss = cross_entropy(learner, *(sample(s, 'observation') for s in (expert, agent)))
    expected = gradients(loss, learner)
    if accuracy > 0.5:
        reversed_ = gradients(cross_entropy(learner, *apart), learner)
        expected = [a - b for a, b in zip(expected, reversed_, strict=True)]
    metrics = learner.judge(expert, agent, early)
    assert metrics['constraint_active'] == float(accuracy > 0.5)
    for parameter, gradient in zip(learner.discriminator.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)
    assert metrics['accuracy_expert_early'] == (told[0] > 0).float().mean()
    assert metrics['accuracy_agent_early'] == (told[1] <= 0).float().mean()


def test_a_constraint_in_the_middle_is_not_met_by_calling_all_of_them_an_experts(make, steps):
    """What lies at 6 and at 4 is both an expert's, and yet told apart; computed apart."""
    told = {}
    for threshold in ('half', 'middle'):
        learner = make(
            'trail', constraint_threshold=threshold, max_gradient_norm=1e6,
            discriminator_learning_rate=0.01, **PLAIN,
        )  # fmt: skip
        for seed in range(100):
            learner.judge(steps(seed, at=3.0), steps(seed + 1), (steps(2), steps(2)))
        expert, agent = steps(0, at=3.0), steps(1)
        early = steps(5, at=6.0), steps(6, at=4.0)
        loss = cross_entropy(learner, *(sample(s, 'observation') for s in (expert, agent)))
        apart = [logits(learner, sample(s, 'observation')) for s in early]
        assert all((x > 0).all() for x in apart)
        if threshold == 'middle':
            middle = torch.stack([x.mean() for x in apart]).mean()
            up, down = (middle - apart[0]).exp(), (apart[1] - middle).exp()
            loss = loss - torch.log1p(up).mean() - torch.log1p(down).mean()
        expected = gradients(loss, learner)
        metrics = learner.judge(expert, agent, early)
        told[threshold] = float(metrics['constraint_active'])
        for parameter, gradient in zip(learner.discriminator.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)
    assert told == {'half': 0, 'middle': 1}


def test_what_marks_experts_from_the_first_frame_on_is_not_used(make, steps):
    """A cue in x, from the start; the task in y, later. GAIL uses both, TRAIL the task."""
    accuracy = {}
    for name in ('gail', 'trail'):
        learner = make(
            name, judges='observation', gradient_penalty=1.0, discriminator_learning_rate=3e-3
        )
        for seed in range(400):
            expert, agent = steps(2 * seed, 64), steps(2 * seed + 1, 64)
            expert.next_observation['x'][:] = 1  # the cue
            agent.next_observation['x'][:] = 0
            early = copy.deepcopy(expert), copy.deepcopy(agent)
            expert.next_observation['y'][:] += 2  # the task
            learner.judge(expert, agent, early)
        cue, task = copy.deepcopy(agent), copy.deepcopy(agent)
        cue.next_observation['x'][:] = 1
        task.next_observation['y'][:] += 2
        score = [learner.reward(s).mean().item() for s in (agent, cue, task)]
        accuracy[name] = score[1] - score[0], score[2] - score[0]
    assert accuracy['gail'][0] > 0.1
    assert abs(accuracy['trail'][0]) < accuracy['gail'][0] / 3
    assert accuracy['trail'][1] > 0.1


@pytest.mark.parametrize('name', ['gail', 'gail_dmpo', 'trail'])
def test_restore_makes_the_next_judgements_and_updates_bitwise_the_same(make, steps, name):
    options = {'dropout': 0.3, 'input_dropout': 0.1, 'augmentation': 0.2}
    first, second = (make(name, seed, **options) for seed in (1, 2))
    first.fit_normalizer(steps(99, size=100).observation)

    def live(learner, seed):
        early = (steps(seed + 50), steps(seed + 60)) if learner.early_frames else None
        metrics = learner.judge(steps(seed), steps(seed + 20), early)
        now = steps(seed + 30, size=8)
        one = np.ones(8, np.float32)
        reward = learner.reward(now)
        batch = Transitions(now.observation, now.action, reward, one, now.next_observation)
        return metrics | learner.update(batch) | {'reward': reward.sum()}

    for seed in range(3):
        live(first, seed)
    second.restore(copy.deepcopy(first.save()))
    for seed in range(3, 6):
        found, expected = live(second, seed), live(first, seed)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    for one, other in zip(
        first.discriminator.state_dict().values(),
        second.discriminator.state_dict().values(),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_one_seed_gives_one_discriminator_whatever_the_global_generator(make, steps):
    weights = []
    for general, seed in ((0, 7), (1, 7), (1, 8)):
        torch.manual_seed(general)
        learner = make('gail', seed, dropout=0.5)
        for step in range(3):
            learner.judge(steps(step), steps(step + 9))
        weights.append(
            torch.cat([p.detach().flatten() for p in learner.discriminator.parameters()])
        )
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_agent_below_keeps_its_own_defaults():
    """The discriminator's options beside D4PG's and DMPO's, none of them in place of another."""
    for config, base in (
        (GAILConfig(reward='airl'), D4PGConfig()),
        (GAILDMPOConfig(reward='airl'), DMPOConfig()),
        (TRAILConfig(reward='airl'), D4PGConfig()),
    ):
        own = {'v_min', 'v_max'}
        for key, value in base.to_dict().items():
            assert key in own or config.to_dict()[key] == value, key
        assert config.v_min is config.v_max is None


def test_the_bounds_of_the_rewards_are_the_discriminator_s_and_what_the_task_adds():
    config = GAILConfig(reward='log D', max_reward=2)
    assert config.reward_range((-1, 3)) == config.reward_range(None) == (-2, 0)
    with_task = config.replace(task_reward=0.5)
    assert with_task.reward_range((-1, 3)) == (-2.5, 1.5) and with_task.reward_range(None) is None


def test_the_form_of_the_reward_has_to_be_chosen():
    told = r"reward: this field is required and missing; one of '-log\(1-D\)', 'log D', 'airl'"
    for config in (GAILConfig, GAILDMPOConfig, TRAILConfig):
        with pytest.raises(SpecError, match=told):
            config.parse({})
    with pytest.raises(SpecError, match=r"reward: unknown value 'logD'; did you mean 'log D'"):
        GAILConfig.parse({'reward': 'logD'})


def test_a_saturated_discriminator_is_told_with_what_to_try(make, steps):
    learner = make(**PLAIN, discriminator_learning_rate=0.05)
    for seed in range(200):
        metrics = learner.judge(steps(seed, at=20.0), steps(seed, at=-20.0))
    remarks = learner.remarks({name: float(value) for name, value in metrics.items()})
    (line,) = remarks.values()
    assert '\n' not in line
    for part in ('saturated', 'learner.gradient_penalty', 'dropout', 'trail'):
        assert part in line
    assert learner.remarks({'d_expert': 0.999, 'd_agent': 0.4}) == {}
    assert learner.remarks({}) == {}
