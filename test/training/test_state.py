import copy

import numpy as np
import pytest
import torch

from robot_rl.errors import SpecError, StorageError
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


RECURRENT = {'memory': 4, 'sequence_length': 5, 'burn_in': 3}
PRIORITISED = {'priority_exponent': 0.6}


@pytest.mark.parametrize(
    ('agent', 'options'),
    [
        ('d4pg', {}),
        ('d4pg', {'memory': 0, **PRIORITISED}),
        ('d4pg', RECURRENT | PRIORITISED),
        ('mpo', {}),
        ('mpo', RECURRENT),
        ('dmpo', PRIORITISED | {'updates_per_call': 2}),
        ('dmpo', RECURRENT),
    ],
)
def test_a_checkpoint_makes_the_next_updates_bitwise_the_same(
    live, line, run_config, tmp_path, agent, options
):
    """Learner, optimiser, generators and replay: through a file, into a state of another seed."""
    environment = line(3, seed=1)
    config = run_config(
        agent=agent, training={'num_envs': 3}, learner={'replay_size': 150} | options
    )
    state = TrainingState(config, environment.contract)
    live(state, environment, 130)  # the ring is full
    save_checkpoint(tmp_path / 'c.pt', {'state': state.save()})
    torch.manual_seed(123)
    other = TrainingState(config.replace(seed=9), environment.contract)
    other.restore(load_checkpoint(tmp_path / 'c.pt')['state'])
    assert other.learner.steps == state.learner.steps > 0
    twin = copy.deepcopy(environment)
    for one, world in ((state, environment), (other, twin)):
        live(one, world, 40)
    assert all(torch.equal(state.metrics[name], other.metrics[name]) for name in state.metrics)
    first, second = (flat(one.save()) for one in (state, other))
    assert len(first) == len(second) > 20
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_sequences_count_every_step_that_they_learn_from(live, line, run_config):
    """samples_per_insert 4 and sequences of 2 x 5 steps: an update every 2.5 steps."""
    config = run_config(learner=RECURRENT | {'batch_size': 2})
    environment = line(1)
    state = TrainingState(config, environment.contract)
    live(state, environment, 150)
    assert state.learner.steps == int((state.env_steps - 40) * 4 / 10) > 30


def test_several_updates_a_call_keep_the_ratio(live, line, run_config):
    config = run_config(learner={'updates_per_call': 3, 'batch_size': 8})
    environment = line(1)
    state = TrainingState(config, environment.contract)
    live(state, environment, 150)
    due = int((state.env_steps - 40) * 4 / 8)
    assert state.learner.steps == due // 3 * 3 > 30


def test_surprising_transitions_are_sampled_more_often(live, line, run_config):
    config = run_config(learner=PRIORITISED | {'priority_exponent': 1.0})
    environment = line(1)
    state = TrainingState(config, environment.contract)
    live(state, environment, 100)
    batch = state.sampler.transitions(64)
    state.sampler.update_priorities(batch.place, np.full(64, 1e-6))
    state.sampler.update_priorities(batch.place[:1], np.array([1e6]))
    drawn = state.sampler.transitions(1000)
    assert (drawn.place == batch.place[0]).mean() > 0.9


def test_an_empty_replay_is_one_clear_line(line, run_config):
    state = TrainingState(run_config(), line(1).contract)
    with pytest.raises(StorageError, match=r'no window of 3 steps .* sample after more steps'):
        state.sampler.transitions(4)


def test_a_device_that_is_not_there_is_named(line, run_config):
    if torch.cuda.is_available():
        pytest.skip('there is a GPU')
    for device in ('cuda', 'cuda:7'):
        with pytest.raises(SpecError, match=f'training.device: {device}, but torch finds no GPU'):
            TrainingState(run_config(training={'device': device}), line(1).contract)
    with pytest.raises(SpecError, match=r'training.device'):
        run_config(training={'device': 'gpu'})


def test_what_has_been_learned_is_still_drawn(live, line, run_config):
    """Rows that once were no surprise had priority 0 for good; at last none could be drawn."""
    config = run_config(learner=PRIORITISED)
    environment = line(1)
    state = TrainingState(config, environment.contract)
    live(state, environment, 60)
    surprise = state.learner._frozen_critic.surprise
    target = torch.tensor([[0.25, 0.75]])
    loss = -(target * target.log()).sum(dim=1)  # the cross-entropy of a target with itself
    assert surprise(loss, target) < 1e-6
    assert state.learner._priorities(torch.zeros(4), None).min() > 0
    assert (state.replay.priorities.scaled(np.arange(20)) > 0).any()


def flat(data):
    if isinstance(data, dict):
        return [leaf for value in data.values() for leaf in flat(value)]
    return [data] if isinstance(data, torch.Tensor | np.ndarray) else []
