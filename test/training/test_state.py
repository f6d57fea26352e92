import copy

import numpy as np
import pytest
import torch

from robot_rl.errors import SpecError
from robot_rl.training.checkpoint import load_checkpoint, save_checkpoint
from robot_rl.training.state import TrainingState


def act(state, environment, rows):
    """Fill the replay with noise; no update is made."""
    rng = np.random.default_rng(0)
    state.replay.add_first(environment.reset())
    for _ in range(rows):
        action = rng.uniform(-0.5, 1.5, (environment.num_envs, 1)).astype(np.float32)
        state.replay.add(action, environment.step(action))


@pytest.mark.parametrize(
    ('ratio', 'batch', 'minimum'), [(4, 16, 40), (32, 256, 100), (8, 8, 17), (3, 7, 40)]
)
def test_each_step_is_sampled_as_often_as_the_ratio_says(line, run_config, ratio, batch, minimum):
    learner = {'samples_per_insert': ratio, 'batch_size': batch, 'min_replay_size': minimum}
    config = run_config(learner=learner)
    environment = line(1)
    state = TrainingState(config, environment.contract)
    act(state, environment, 0)
    zero = np.full((1, 1), 0.5, np.float32)
    while state.env_steps < 200:
        state.replay.add(zero, environment.step(zero))
        state.learn()
        expected = max(0, int((state.env_steps - minimum) * ratio / batch))
        assert state.learner.steps == expected
    assert state.learner.steps > 0


def test_updates_wait_for_a_transition_of_every_environment(line, run_config):
    config = run_config(training={'num_envs': 20})
    with pytest.raises(SpecError, match='min_replay_size: 40 steps of 20 environments'):
        TrainingState(config, line(20).contract)


def test_the_normalizer_is_fixed_at_the_first_update(line, run_config):
    config = run_config(learner={'normalize_observations': True})
    environment = line(1)
    state = TrainingState(config, environment.contract)
    act(state, environment, 60)
    seen = state.replay.observations()['position']
    state.learn()
    mean = state.learner.policy.vector.normalizer.mean.clone()
    np.testing.assert_allclose(mean[0], seen.mean(), rtol=1e-5)
    act(state, environment, 60)
    state.learn()
    assert torch.equal(state.learner.policy.vector.normalizer.mean, mean)


def test_a_checkpoint_makes_the_next_updates_bitwise_the_same(line, run_config, tmp_path):
    """Learner, optimisers, generators and replay: through a file, into a state of another seed."""
    environment = line(3, seed=1)
    config = run_config(training={'num_envs': 3}, learner={'replay_size': 150})
    state = TrainingState(config, environment.contract)
    act(state, environment, 120)  # the ring is full
    state.learn()
    save_checkpoint(tmp_path / 'c.pt', {'state': state.save()})
    torch.manual_seed(123)
    other = TrainingState(config.replace(seed=9), environment.contract)
    other.restore(load_checkpoint(tmp_path / 'c.pt')['state'])
    assert other.learner.steps == state.learner.steps > 0
    observation = environment.reset().observation
    for one, another in (
        (state.actor.select(observation, {})[0], other.actor.select(observation, {})[0]),
        (state.sampler.rng.integers(2**62), other.sampler.rng.integers(2**62)),
        (torch.get_rng_state().numpy(), state.save()['torch'].numpy()),
    ):
        np.testing.assert_array_equal(one, another)
    for _ in range(3):
        batches = [s.sampler.transitions(16) for s in (state, other)]
        first, second = (s.learner.update(b) for s, b in zip((state, other), batches, strict=True))
        assert all(torch.equal(first[name], second[name]) for name in first)
    for a, b in zip(
        flat(state.learner.save()), flat(copy.deepcopy(other.learner.save())), strict=True
    ):
        assert torch.equal(a, b)


def flat(data):
    if isinstance(data, dict):
        return [leaf for value in data.values() for leaf in flat(value)]
    return [data] if isinstance(data, torch.Tensor) else []
