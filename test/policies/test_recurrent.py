import copy

import numpy as np
import pytest
import torch

from robot_rl.policies.agent import Batch, SequenceBatch
from robot_rl.policies.networks import Memory

EVERY = ['d4pg', 'ddpg', 'mpo', 'dmpo']
LEARNING = {
    'policy_learning_rate': 1e-3,
    'critic_learning_rate': 1e-2,
    'batch_size': 32,
    'n_step': 1,
}
SOFT = {'initial_log_temperature': 0, 'initial_log_alpha_std': 10, 'target_update_period': 10}


def memory_of(units=5, size=3):
    memory = Memory(size, units, torch.Generator().manual_seed(0))
    with torch.no_grad():
        memory.bias_hh_l0.normal_(generator=torch.Generator().manual_seed(1))
    return memory


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def embed(memory, x):
    """Linear, LayerNorm, tanh."""
    linear, norm, _ = memory.embed
    y = x @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()
    y = (y - y.mean(1, keepdims=True)) / np.sqrt(y.var(1, keepdims=True) + norm.eps)
    return np.tanh(y)


def lstm(memory, x, state):
    """torch.nn.LSTM's documentation in NumPy: [B, D], ([B, H], [B, H]) -> ([B, H], [B, H])."""
    names = ('weight_ih_l0', 'weight_hh_l0', 'bias_ih_l0', 'bias_hh_l0')
    w, u, b, v = (getattr(memory, name).detach().numpy() for name in names)
    gates = embed(memory, x) @ w.T + b + state[0] @ u.T + v
    i, f, g, o = np.split(gates, 4, axis=1)
    cell = sigmoid(f) * state[1] + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(cell), cell


def test_unroll_is_step_after_step_and_both_are_the_formula():
    memory, rng = memory_of(), np.random.default_rng(0)
    seen = rng.normal(size=(6, 4, 3)).astype(np.float32)
    state = expected = tuple(rng.normal(size=(2, 4, 5)).astype(np.float32))
    with torch.no_grad():
        unrolled = memory.unroll(torch.from_numpy(seen), tuple(map(torch.from_numpy, state)))
        state = tuple(map(torch.from_numpy, state))
        for t in range(6):
            features, state = memory.step(torch.from_numpy(seen[t]), state)
            expected = lstm(memory, seen[t], expected)
            joined = np.concatenate([seen[t], expected[0]], axis=1)
            np.testing.assert_allclose(features, joined, atol=1e-6)
            np.testing.assert_allclose(unrolled[t], joined, atol=1e-6)
            for found, right in zip(state, expected, strict=True):
                np.testing.assert_allclose(found, right, atol=1e-6)


def test_burn_in_reads_only_what_is_real():
    memory, rng = memory_of(), np.random.default_rng(1)
    seen = rng.normal(size=(4, 5, 3)).astype(np.float32)
    real = np.arange(4)[:, None] >= np.arange(5)  # all rows of the first lane, none of the last
    stored = rng.normal(size=(2, 5, 5)).astype(np.float32)
    found = memory.burn_in(*map(torch.from_numpy, (seen, real)), tuple(torch.from_numpy(stored)))
    for b in range(5):
        state = tuple(stored[:, b : b + 1])
        for t in range(b, 4):
            state = lstm(memory, seen[t, b : b + 1], state)
        np.testing.assert_allclose([x[b] for x in found], [x[0] for x in state], atol=1e-6)
    assert not any(x.requires_grad for x in found)


def test_a_memory_begins_by_keeping_and_its_weights_are_the_generators():
    memory, other = (Memory(3, 5, torch.Generator().manual_seed(4)) for _ in range(2))
    for one, two in zip(memory.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    bias = (memory.bias_ih_l0 + memory.bias_hh_l0).detach().view(4, 5)
    np.testing.assert_array_equal(bias, np.outer([0, 1, 0, 0], np.ones(5)))
    for weight in (memory.weight_ih_l0, memory.weight_hh_l0):
        assert 0.8 / np.sqrt(5) < weight.abs().max() <= 1 / np.sqrt(5)


def spoiled(batch, seed=9):
    """The batch with garbage wherever it says that there is nothing."""
    rng, batch = np.random.default_rng(seed), copy.deepcopy(batch)
    burned, valid = len(batch.real), batch.valid
    for array in (batch.action, batch.reward, batch.discount):
        array[~valid] = 10 * rng.normal(size=array[~valid].shape)
    batch.following[~valid] = rng.integers(0, 3, (~valid).sum())
    lanes = np.arange(valid.shape[1])
    steps = np.arange(len(valid))[:, None]
    last = burned + np.where(valid, steps + batch.following, 0).max(0)
    for values in batch.observation.values():
        rows = np.arange(len(values))[:, None]
        unseen = rows > last
        unseen[:burned] |= ~batch.real
        values[unseen] = 10 * rng.normal(size=values[unseen].shape)
    assert len(lanes) == len(last)
    return batch


@pytest.mark.parametrize('name', EVERY)
def test_rows_that_are_not_there_change_nothing(make, shake, sequences, name):
    first, second = (shake(make(name, memory=6)) for _ in range(2))
    batch = sequences(0, 6)
    assert not batch.valid.all()
    assert not batch.real.all()
    found, expected = first.update(spoiled(batch)), second.update(batch)
    for metric, value in expected.items():
        assert torch.equal(found[metric], value), metric
    assert torch.equal(first.priorities, second.priorities)
    for one, other in zip(first._online.parameters(), second._online.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
        assert torch.equal(one, other)


@pytest.mark.parametrize('name', EVERY)
def test_no_gradient_flows_into_burn_in(make, shake, sequences, name):
    learner, batch = shake(make(name, memory=6)), sequences(0, 6)
    observation = {k: torch.from_numpy(v).requires_grad_() for k, v in batch.observation.items()}
    learner.update(batch._replace(observation=observation))
    for values in observation.values():
        assert not values.grad[:3].any()
        assert values.grad[3].any()
    changed = dict(observation, position=observation['position'].detach() + 1)
    changed['position'][3:] -= 1
    before, after = (
        shake(make(name, memory=6)).update(batch._replace(observation=seen))['critic_loss']
        for seen in (batch.observation, changed)
    )
    assert abs(before - after) > 1e-4  # but what is read there matters


@pytest.mark.parametrize('name', EVERY)
def test_what_acts_carries_the_state_of_policy_and_critic(make, batches, name):
    learner = make(name, memory=6)
    behaviour, rng = learner.behaviour(8), np.random.default_rng(0)
    state = behaviour.initial_state(8)
    names = {'hidden', 'cell', 'critic_hidden', 'critic_cell'}
    assert state.keys() == names
    assert all(x.shape == (8, 6) and x.dtype == np.float32 and not x.any() for x in state.values())
    expected = {part: tuple(np.zeros((2, 8, 6))) for part in ('', 'critic_')}
    for t in range(3):
        observation = batches(t).observation
        vector = np.concatenate(list(observation.values()), axis=1)
        _, state = behaviour.select(observation, state, rng.normal(size=(8, 2)))
        for part, memory in (('', 'policy_memory'), ('critic_', 'critic_memory')):
            expected[part] = lstm(learner._target[memory], vector, expected[part])
            found = state[f'{part}hidden'], state[f'{part}cell']
            np.testing.assert_allclose(found, expected[part], atol=1e-6)
    assert learner.policy.initial_state(2).keys() == {'hidden', 'cell'}
    fields = {field.name: field for field in learner.policy.recurrent_state}
    assert fields.keys() == {'hidden', 'cell'}
    assert all(f.shape == (6,) and f.initial == (0.0,) * 6 for f in fields.values())


@pytest.mark.parametrize('memory', [0, 6])
@pytest.mark.parametrize('name', EVERY)
def test_selecting_is_a_pure_function_of_what_it_is_given(make, batches, name, memory):
    learner, observation = make(name, memory), batches(0).observation
    behaviour, noise = learner.behaviour(8), np.random.default_rng(0).normal(size=(8, 2))
    noise, state = noise.astype(np.float32), behaviour.initial_state(8)
    given = copy.deepcopy((observation, state, noise))
    torch.manual_seed(0)
    first, following = behaviour.select(observation, state, noise)
    torch.manual_seed(1)
    second, also = behaviour.select(observation, state, noise)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_equal(following, also)
    np.testing.assert_equal((observation, state, noise), given)
    assert not np.array_equal(behaviour.select(observation, state, -noise)[0], first)
    quiet, _ = behaviour.select(observation, state, 0 * noise)
    np.testing.assert_allclose(
        quiet, learner.policy.select(observation, learner.policy.initial_state(8))[0], atol=1e-6
    )


def episodes(rng, size):
    """Two steps; the cue stands in the first observation alone, and the second action answers."""
    cue = rng.uniform(-1, 1, size).astype(np.float32)
    position = np.zeros((3, size, 3), np.float32)
    position[0, :, 0] = cue
    position[:, :, 1] = np.arange(3)[:, None]
    return cue, {'position': position, 'height': np.zeros((3, size, 2), np.float32)}


def miss(action, cue):
    """The squared distance from the answer, in units of the action's range."""
    return (((action - [0, 4]) / [0.5, 2] - 0.7 * cue[:, None]) ** 2).sum(1)


def recalled(learner, updates):
    """Learn the answer from random actions; return how far off it is, on average."""
    rng, units = np.random.default_rng(0), learner.config.memory
    for _ in range(updates):
        cue, seen = episodes(rng, 32)
        action = rng.uniform([-0.5, 2], [0.5, 6], (2, 32, 2)).astype(np.float32)
        reward = np.stack([np.zeros(32), -miss(action[1], cue)]).astype(np.float32)
        discount = np.repeat([[0.9], [0.0]], 32, axis=1)
        if units:
            names = ('hidden', 'cell', 'critic_hidden', 'critic_cell')
            state = {name: np.zeros((32, units), np.float32) for name in names}
            real, true = np.ones((0, 32), bool), np.ones((2, 32), bool)
            whole = action, reward, discount, true.astype(int), true
            learner.update(SequenceBatch(seen, real, state, *whole))
        else:
            now, following = (
                {name: values[start : start + 2].reshape(64, -1) for name, values in seen.items()}
                for start in (0, 1)
            )
            flat = action.reshape(64, 2), reward.ravel(), discount.ravel()
            learner.update(Batch(now, *flat, following))
    cue, seen = episodes(rng, 500)
    state = learner.policy.initial_state(500)
    for t in range(2):
        action, state = learner.policy.select({k: v[t] for k, v in seen.items()}, state)
    return miss(action, cue).mean()


@pytest.mark.parametrize('name', ['d4pg', 'mpo', 'dmpo'])
def test_it_learns_what_needs_a_memory_and_without_one_does_not(make, name):
    """Who has forgotten the cue is off by 2 * 0.7^2 * E[cue^2] = 0.33 at best."""
    options = LEARNING | (SOFT if 'mpo' in name else {})
    recurrent = make(name, memory=8, **options | {'burn_in': 0, 'sequence_length': 2})
    assert recalled(recurrent, 300) < 0.1
    assert recalled(make(name, **options), 150) > 0.25
