"""What holds for every agent, feed-forward and with a memory."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from robot_rl.errors import SpecError
from robot_rl.policies import compiler
from robot_rl.policies.agent import Batch, SequenceBatch, fit_support
from robot_rl.policies.d4pg import D4PGConfig
from robot_rl.policies.mpo import DMPOConfig

NAMES = ['d4pg', 'ddpg', 'mpo', 'dmpo']
every = pytest.mark.parametrize(
    ('name', 'memory'), [(name, memory) for name in NAMES for memory in (0, 6)]
)


def weights(module):
    return [parameter.detach().clone() for parameter in module.parameters()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def together(one, other):
    """Two batches as one: `other` behind `one`."""
    if one is None:
        return None
    axis = {'state': 0, 'weight': 0} if isinstance(one, SequenceBatch) else {}
    default = 1 if isinstance(one, SequenceBatch) else 0

    def joined(name, a, b):
        if isinstance(a, dict):
            return {key: joined(name, a[key], b[key]) for key in a}
        return None if a is None else np.concatenate([a, b], axis.get(name, default))

    return type(one)(*(joined(n, a, b) for n, a, b in zip(one._fields, one, other, strict=True)))


@every
def test_targets_are_copied_every_period_and_stay_in_between(make, draw, name, memory):
    learner = make(name, memory)
    initial = weights(learner._target)
    assert same(initial, weights(learner._online))
    for step in range(1, 8):
        before = weights(learner._target)
        learner.update(draw(learner, step))
        moved = weights(learner._online)
        assert not any(torch.equal(a, b) for a, b in zip(moved, before, strict=True) if a.dim())
        assert same(weights(learner._target), moved if step % 3 == 0 else before)
    assert learner.steps == 7


@every
def test_the_policy_that_acts_is_the_target(make, draw, batches, name, memory):
    learner, observation = make(name, memory), batches(0).observation
    behaviour = learner.behaviour(8)
    noise = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)

    def acted():
        state = behaviour.initial_state(8)
        actions = (
            learner.policy.select(observation, learner.policy.initial_state(8))[0],
            behaviour.select(observation, state, noise)[0],
            *behaviour.select(observation, state, noise)[1].values(),
        )
        return [torch.from_numpy(action.copy()) for action in actions]

    before = acted()
    learner.update(draw(learner, 1)), learner.update(draw(learner, 2))
    assert same(acted(), before)
    learner.update(draw(learner, 3))
    assert not any(torch.equal(a, b) for a, b in zip(acted(), before, strict=True))
    assert {id(p) for p in learner.policy.parameters()} <= {
        id(p) for p in learner._target.parameters()
    }


@pytest.mark.parametrize('normalize', [False, True])
@every
def test_restore_makes_the_next_update_bitwise_the_same(
    make, draw, batches, name, memory, normalize
):
    first, second = (make(name, memory, seed, normalize_observations=normalize) for seed in (1, 2))
    first.fit_normalizer(batches(99, size=200).observation)
    for seed in range(4):
        first.update(draw(first, seed))
    second.restore(copy.deepcopy(first.save()))
    for seed in range(4, 8):
        found, expected = second.update(draw(second, seed)), first.update(draw(first, seed))
        assert all(torch.equal(found[metric], expected[metric]) for metric in expected)
        assert torch.equal(first.priorities, second.priorities)
    assert same(weights(first._online), weights(second._online))
    assert same(weights(first._target), weights(second._target))
    assert first.steps == second.steps == 8


@every
def test_one_seed_gives_one_learner_whatever_the_global_generator(make, draw, name, memory):
    """And the same numbers in each of two runs on one thread."""
    learners = []
    for general, seed in ((0, 7), (1, 7), (1, 8)):
        torch.manual_seed(general)
        learners.append(make(name, memory, seed))
        for step in range(4):
            learners[-1].update(draw(learners[-1], step))
    first, second, third = (weights(learner._online) for learner in learners)
    assert same(first, second)
    assert not same(first, third)


@every
def test_several_updates_of_one_call_are_those_of_several_calls(make, draw, name, memory):
    three, one = make(name, memory, updates_per_call=3), make(name, memory)
    parts = [draw(one, seed) for seed in range(6)]
    weighted = [
        part._replace(weight=np.random.default_rng(i).uniform(0.2, 1, 8).astype(np.float32))
        for i, part in enumerate(parts)
    ]
    for chosen in (weighted[:3], weighted[3:]):
        metrics = three.update(together(together(*chosen[:2]), chosen[2]))
        priorities = []
        for part in chosen:
            expected = one.update(part)
            priorities.append(one.priorities)
        assert torch.equal(three.priorities, torch.cat(priorities))
        assert all(torch.equal(metrics[metric], expected[metric]) for metric in expected)
        assert same(weights(three._online), weights(one._online))
        assert same(weights(three._target), weights(one._target))
    assert three.steps == one.steps == 6


def assert_agree(one, other, draw, updates=4):
    """Two learners give the same numbers but for rounding.

    Where a gradient is all rounding, Adam makes a whole step of it: hence nearly all parameters.
    """
    for seed in range(updates):
        found, expected = (learner.update(draw(learner, seed)) for learner in (one, other))
        for metric, value in expected.items() if seed == 0 else ():
            torch.testing.assert_close(found[metric], value, rtol=2e-4, atol=2e-5)
        torch.testing.assert_close(one.priorities, other.priorities, rtol=2e-3, atol=2e-4)
    pairs = zip(one._online.parameters(), other._online.parameters(), strict=True)
    errors = torch.cat([(a - b).abs().flatten() for a, b in pairs])
    assert (errors > 2e-5).float().mean() < 0.01
    assert errors.max() < 2e-3


@every
def test_plain_and_fused_execution_agree(make, draw, name, memory):
    assert_agree(*(make(name, memory, execution=kind) for kind in ('plain', 'fused')), draw)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'memory'), [('d4pg', 0), ('d4pg', 6), ('ddpg', 0), ('mpo', 0), ('dmpo', 6)]
)
def test_compiled_execution_agrees(make, draw, name, memory):
    if compiler.missing():
        pytest.skip(compiler.missing())
    assert_agree(*(make(name, memory, execution=kind) for kind in ('plain', 'compiled')), draw)


@pytest.mark.slow
def test_what_is_compiled_for_one_learner_is_not_taken_for_another(make, draw):
    """No guard looks at the networks: the first learner's deviation would stand in the second."""
    if compiler.missing():
        pytest.skip(compiler.missing())
    for std in (0.5, 0.2):
        pair = (make('mpo', execution=kind, initial_std=std) for kind in ('plain', 'compiled'))
        assert_agree(*pair, draw)


def test_without_a_compiler_one_line_says_so_and_learning_goes_on(make, draw, monkeypatch, capsys):
    monkeypatch.setattr(compiler, 'missing', lambda: 'no C++ compiler is found')
    learner, other = make('dmpo', execution='compiled'), make('dmpo')
    said = capsys.readouterr()
    assert said.out == ''
    assert said.err.count('\n') == 1
    assert 'compiled' in said.err
    assert 'no C++ compiler is found' in said.err
    learner.update(draw(learner, 0)), other.update(draw(other, 0))
    assert same(weights(learner._online), weights(other._online))


def test_what_fails_to_compile_is_told_in_one_line(make, draw, monkeypatch, capsys):
    """A compiler without Python's headers was taken for one, and failed in the first update."""

    def fail(*args, **kwargs):
        raise RuntimeError('CppCompileError: fatal error: Python.h: No such file\nmore\nlines')

    monkeypatch.setattr(torch, 'compile', fail)
    compiler.missing.cache_clear()
    learner = make('d4pg', execution='compiled')
    compiler.missing.cache_clear()
    (line,) = capsys.readouterr().err.splitlines()
    assert 'Python.h: No such file' in line
    learner.update(draw(learner, 0))


@pytest.mark.slow
def test_compiling_after_dm_control_shows_no_warnings_of_torch_itself():
    """Training on suite/ tasks began with ten of them: dm_control shows every deprecation."""
    code = (
        'import dm_control.composer, torch\n'
        'from robot_rl.policies.compiler import compiled\n'
        'class Twice:\n'
        '    def of(self, x): return 2 * x\n'
        'assert compiled(Twice().of)(torch.ones(1)) == 2'
    )
    command = [sys.executable, '-c', code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert 'Warning' not in done.stderr


class NoWaiting(TorchDispatchMode):
    """Refuses whatever would make the host wait for a device."""

    WAITS = ('_local_scalar_dense', 'item', 'nonzero', 'masked_select', 'is_nonzero', 'equal')

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in self.WAITS, name
        return func(*args, **(kwargs or {}))


@every
def test_an_update_waits_for_nothing(make, draw, name, memory):
    learner = make(name, memory)
    with NoWaiting(), pytest.raises(AssertionError, match='_local_scalar_dense'):
        float(torch.ones(()))
    with NoWaiting():
        for seed in range(3):  # the targets' copy is in the last of them
            metrics = learner.update(draw(learner, seed))
    for value in metrics.values():
        assert isinstance(value, torch.Tensor)
        assert value.shape == ()
        assert not value.requires_grad
    assert learner.priorities.shape == (8,)
    assert not learner.priorities.requires_grad


def critic_says(learner, row):
    """How far off the critic is at a row: |TD error|, or KL(target | prediction), in NumPy."""
    critic, target = learner._online['critic'], learner._target
    with torch.no_grad():
        action = target['policy'](row.target['policy', 'next'][None])
        following = target['critic'](row.target['critic', 'next'][None], action)[0].numpy()
        outputs = critic(row.online['critic', 'now'][None], row.action[None])[0].numpy()
    if learner.config.critic == 'scalar':
        return abs(row.reward + row.discount * following[0] - outputs[0])
    support = np.linspace(-5, 5, 11)
    atoms = np.clip(row.reward + row.discount * support, -5, 5)
    nearness = np.clip(1 - abs(atoms[None, :] - support[:, None]), 0, 1)
    right = (nearness * np.exp(following) / np.exp(following).sum()).sum(1)
    belief = np.exp(outputs) / np.exp(outputs).sum()
    some = right > 0
    return (right[some] * np.log(right[some] / belief[some])).sum()


@pytest.mark.parametrize('memory', [0, 6])
@pytest.mark.parametrize('name', ['d4pg', 'ddpg'])
def test_priorities_are_how_far_off_the_critic_was(make, shake, draw, rows_of, name, memory):
    """For sequences 0.9 of the largest and 0.1 of the mean over steps that are there (R2D2)."""
    learner = shake(make(name, memory))
    batch = draw(learner, 0)
    said = np.array([critic_says(learner, row) for row in rows_of(learner, batch)])
    learner.update(batch)
    if memory:
        said = np.ma.masked_array(said.reshape(4, 8), ~batch.valid)
        said = 0.9 * said.max(0) + 0.1 * said.mean(0)
    # And a little more: what does not surprise now is still drawn now and then.
    np.testing.assert_allclose(learner.priorities, said + 1e-4, rtol=1e-3, atol=1e-5)


@every
def test_pixels_are_refused_by_name(make, contract, name, memory):
    learner = make(name, memory)
    camera = contract.observation[0].replace(dtype='uint8', name='camera')
    contract = contract.replace(observation=[camera.to_dict()])
    with pytest.raises(SpecError, match='camera'):
        type(learner)(contract, learner.config)


@pytest.mark.parametrize('name', ['d4pg', 'dmpo'])
def test_a_support_that_is_still_open_is_refused(make, name):
    for end in ('v_min', 'v_max'):
        with pytest.raises(SpecError, match=f'learner.*{end}'):
            make(name, **{end: None})
    make(name, critic='scalar', v_min=None, v_max=None)  # which has no support


OPEN = {'v_min': None, 'v_max': None}


@pytest.mark.parametrize(
    ('rewards', 'discount', 'expected'),
    [
        ((0, 1), 0.99, (0, 100)),
        ((-16, 0), 0.99, (-1600, 0)),
        ((-1, 1), 0.9, (-10, 10)),
        ((2, 3), 0.9, (2, 30)),
        ((-3, -2), 0.9, (-30, -2)),
    ],
)
def test_an_open_support_holds_all_returns_of_the_rewards(rewards, discount, expected):
    """The farthest returns are those of one step for ever and of an episode of one step."""
    for config in (D4PGConfig(**OPEN), DMPOConfig(**OPEN)):
        support = fit_support(config, discount, rewards)
        assert (support['v_min'], support['v_max']) == pytest.approx(expected)
    forever = discount ** np.arange(5000)
    returns = [np.cumsum(r * forever) for r in rewards]
    assert np.min(returns) >= support['v_min'] - 1e-6
    assert np.max(returns) <= support['v_max'] + 1e-6


@pytest.mark.parametrize(
    ('given', 'rewards', 'discount', 'named'),
    [
        ({'v_max': 50}, (0, 1), 0.99, ('learner.v_max', '50', '100')),
        ({'v_min': -150}, (-16, 0), 0.99, ('learner.v_min', '-150', '-1600')),
        ({'v_max': 9}, (-1, 1), 0.9, ('learner.v_max', '9', '10')),
        ({'v_min': 1}, (0, 1), 0.99, ('learner.v_min', '1', '0')),
        (OPEN, None, 0.99, ('learner.v_min', 'number')),
        ({'v_max': None}, None, 0.99, ('learner.v_max', 'number')),
        ({'v_max': None}, (-1, 1), 1.0, ('learner.v_max', 'discount', '1', 'number')),
    ],
)
def test_a_support_that_cannot_work_is_refused_with_what_would_be_right(
    given, rewards, discount, named
):
    with pytest.raises(SpecError) as refused:
        fit_support(D4PGConfig(**given), discount, rewards)
    assert '\n' not in str(refused.value)
    for part in named:
        assert part in str(refused.value)


def test_a_support_that_is_large_enough_stays():
    config = D4PGConfig(v_min=-3, v_max=200)
    kept = {'v_min': -3, 'v_max': 200}
    assert fit_support(config, 0.99, (0, 1)) == kept
    assert fit_support(config, 0.99, None) == kept
    assert fit_support(config, 1.0, (0, 1)) == kept
    assert fit_support(D4PGConfig(v_min=0, v_max=100), 0.99, (0, 1)) == {'v_min': 0, 'v_max': 100}


def off(observation, action):
    """The squared distance from the best action in units of the range; it depends on what is seen.

    The middle of the range is off by 2 * 0.6^2 * E[x^2] = 0.24.
    """
    unit = (action - [0, 4]) / [0.5, 2]
    return ((unit - 0.6 * observation['position'][:, :1]) ** 2).sum(1).astype(np.float32)


def learned(learner, mixed_up, updates=250):
    """Learn from the rewards of random actions; return how far off the policy is on average."""
    rng = np.random.default_rng(0)

    def observe(size):
        position = rng.uniform(-1, 1, (size, 3)).astype(np.float32)
        return {'position': position, 'height': np.zeros((size, 2), np.float32)}

    for _ in range(updates):
        seen = observe(64)
        action = rng.uniform([-0.5, 2], [0.5, 6], (64, 2)).astype(np.float32)
        reward = -off(seen, action)
        if mixed_up:
            reward = rng.permutation(reward)
        learner.update(Batch(seen, action, reward, np.zeros(64, np.float32), seen))
    seen = observe(500)
    return off(seen, learner.policy.select(seen)[0]).mean()


@pytest.mark.parametrize('name', NAMES)
def test_it_learns_a_bandit(make, name):
    """One step whose best action depends on what is seen; with rewards mixed up it cannot."""
    options = {'policy_learning_rate': 1e-3, 'critic_learning_rate': 1e-2, 'batch_size': 64}
    if 'mpo' in name:
        soft = {'initial_log_temperature': 0, 'initial_log_alpha_std': 10}
        options |= soft | {'target_update_period': 10}
    assert learned(make(name, **options), mixed_up=False) < 0.1
    assert learned(make(name, **options), mixed_up=True, updates=120) > 0.2
